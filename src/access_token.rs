//! The access token, and what can be one.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};

/// The longest token that is taken. Most servers take no longer header anyway.
pub const MAX_TOKEN_BYTES: usize = 32 * 1024;

/// An access token that can be sent as `Authorization: Bearer …`. `Debug` does not show it; wiped from memory when
/// dropped.
#[derive(Clone)]
pub struct AccessToken(SecretString);

impl AccessToken {
    /// A token of 1 to [`MAX_TOKEN_BYTES`] visible ASCII characters and inner spaces; none for any other text.
    ///
    /// RFC 6749 App. A.12 has 1*VSCHAR, which includes the space, but a space at an end would be lost on the way
    /// through a header.
    #[must_use]
    pub fn new(token: String) -> Option<Self> {
        // Wiped when refused, too.
        let secret = SecretString::from(token);
        Self::is_possible(secret.expose_secret()).then(|| Self(secret))
    }

    /// Whether a text can be a token.
    #[must_use]
    pub fn is_possible(text: &str) -> bool {
        let bytes = text.as_bytes();
        (1..=MAX_TOKEN_BYTES).contains(&bytes.len())
            && bytes.iter().all(|byte| matches!(byte, 0x20..=0x7e))
            && bytes.trim_ascii().len() == bytes.len()
    }

    /// The token in the clear. For the target Secret and for digests, not for any other output.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessToken([redacted])")
    }
}
