//! Keyed digests of secrets, so that a change can be noticed and nothing is stored that a guess could be tested against.
//!
//! A plain hash of a client secret in an annotation would let whoever reads metadata test guesses at it. These digests are
//! HMAC-SHA-256 (RFC 2104) under a random key that lives in the operator's own namespace. Each names its key, so that
//! with another key, or none, a digest is unknown and not wrong.

use ring::hmac;

use crate::schedule::Life;

/// Bytes in a key.
pub const KEY_BYTES: usize = 32;

/// The key that digests are made with. Its `Debug` shows its name alone.
#[derive(Clone)]
pub struct DigestKey {
    key: hmac::Key,
    id: String,
}

impl std::fmt::Debug for DigestKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DigestKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What comparing a value with a stored digest tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// The value is the one that the digest was made of.
    Same,
    /// It is another one.
    Different,
    /// There is no digest, no key, or the digest was made with another key.
    Unknown,
}

impl DigestKey {
    /// A key of exactly [`KEY_BYTES`] bytes; `None` for any other length.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != KEY_BYTES {
            return None;
        }
        let key = hmac::Key::new(hmac::HMAC_SHA256, bytes);
        let id = hex(&hmac::sign(&key, b"key id").as_ref()[..4]);
        Some(Self { key, id })
    }

    /// Digest of a token together with its deadlines, so that an edit of either is noticed.
    #[must_use]
    pub fn of_token(&self, token: &str, life: Life) -> String {
        let (issued, expires) = (life.issued_at.to_string(), life.expires_at.to_string());
        let repeated = match life.repeated {
            None => "new".to_owned(),
            Some(known_end) if known_end == life.expires_at => "repeated".to_owned(),
            Some(known_end) => known_end.to_string(),
        };
        self.of(&["token", token, &issued, &expires, &repeated])
    }

    /// Digest of a client's id and secret.
    #[must_use]
    pub fn of_credentials(&self, client_id: &str, client_secret: &str) -> String {
        self.of(&["credentials", client_id, client_secret])
    }

    fn of(&self, parts: &[&str]) -> String {
        let mut context = hmac::Context::with_key(&self.key);
        for part in parts {
            // Each part's length goes first, or ("ab", "c") and ("a", "bc") would digest alike.
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        }
        format!("{}:{}", self.id, hex(context.sign().as_ref()))
    }

    /// Whether `stored` was made with this key.
    fn made(&self, stored: &str) -> bool {
        stored.split_once(':').is_some_and(|(id, _)| id == self.id)
    }

    /// Compares a stored digest with `fresh`, one that this key has just made.
    #[must_use]
    pub fn compare(&self, stored: Option<&str>, fresh: &str) -> Match {
        match stored {
            Some(stored) if !self.made(stored) => Match::Unknown,
            // Both sides are known to whoever can read the annotation: there is no time to leak.
            Some(stored) if stored == fresh => Match::Same,
            Some(_) => Match::Different,
            None => Match::Unknown,
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> DigestKey {
        DigestKey::new(&[byte; KEY_BYTES]).unwrap()
    }

    #[test]
    fn a_digest_knows_its_own_value_and_no_other() {
        let stored = key(1).of_credentials("id", "secret");
        let against = |id, secret| key(1).compare(Some(&stored), &key(1).of_credentials(id, secret));
        assert_eq!(against("id", "secret"), Match::Same);
        assert_eq!(against("id", "other"), Match::Different);
        assert_eq!(against("ids", "ecret"), Match::Different);
    }

    #[test]
    fn with_another_key_a_digest_is_unknown_and_not_wrong() {
        let stored = key(1).of_credentials("id", "secret");
        assert_eq!(key(2).compare(Some(&stored), &key(2).of_credentials("id", "secret")), Match::Unknown);
        assert_eq!(key(2).compare(None, "x"), Match::Unknown);
        assert_eq!(key(2).compare(Some("no colon"), "x"), Match::Unknown);
    }

    #[test]
    fn a_key_has_one_length_and_is_never_shown() {
        assert!(DigestKey::new(&[7; 31]).is_none());
        let shown = format!("{:?}", key(7));
        assert!(shown.contains(&key(7).id), "its name alone: {shown}");
        assert!(!shown.contains("07070707") && !shown.contains("7, 7"), "{shown}");
    }
}
