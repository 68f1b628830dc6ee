//! What is known of an object and of all that it depends on. Holds no value of any Secret.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;
use moneygo_operator::crd::MoneyGoCredential;
use moneygo_operator::secret::Contender;

use super::operators::Operator;
use super::pods::Use;

/// What a look ended in.
#[derive(Debug, Clone, Default)]
pub enum Lookup<T> {
    Found(T),
    #[default]
    Missing,
    /// It could not be looked, and why.
    Unknown(String),
}

impl<T> Lookup<T> {
    /// That of a call of the API server.
    #[must_use]
    pub fn of(result: Result<Option<T>, kube::Error>) -> Self {
        match result {
            Ok(Some(found)) => Self::Found(found),
            Ok(None) => Self::Missing,
            Err(error) => Self::Unknown(refusal(&error)),
        }
    }

    /// With what was found made into something else.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Lookup<U> {
        match self {
            Self::Found(found) => Lookup::Found(change(found)),
            Self::Missing => Lookup::Missing,
            Self::Unknown(why) => Lookup::Unknown(why),
        }
    }

    /// What was found, borrowed.
    pub fn as_ref(&self) -> Lookup<&T> {
        match self {
            Self::Found(found) => Lookup::Found(found),
            Self::Missing => Lookup::Missing,
            Self::Unknown(why) => Lookup::Unknown(why.clone()),
        }
    }

    /// What was found.
    pub fn found(&self) -> Option<&T> {
        if let Self::Found(found) = self { Some(found) } else { None }
    }
}

/// Why the API server gave nothing, in short.
#[must_use]
pub fn refusal(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.code == 403 => "you have no right to it".to_owned(),
        kube::Error::Api(status) => format!("the API server answered {} {}", status.code, status.reason),
        _ => "the API server did not answer".to_owned(),
    }
}

/// All that is known, at one moment.
#[derive(Debug, Clone)]
pub struct Facts {
    /// By the API server's clock, where it told the time; else by the clock here.
    pub now: Timestamp,
    /// By how much `now` and the clock of a leader may differ.
    pub clocks_differ: SignedDuration,
    pub object: MoneyGoCredential,
    /// The versions of the definition that are served.
    pub served_versions: Lookup<Vec<String>>,
    /// Whether the namespace is being deleted.
    pub namespace_ends: Lookup<bool>,
    /// The client's Secret, with the state of its two keys.
    pub credentials: Lookup<Credentials>,
    pub target: Lookup<Target>,
    /// The objects of the namespace, this one among them. Every object of it shares them.
    pub neighbours: Lookup<Arc<[Neighbour]>>,
    /// How Pods use the target or the credentials.
    pub uses: Lookup<Vec<Use>>,
    /// Whether the namespace has more Pods than were looked at.
    pub pods_left_out: bool,
    pub operators: Lookup<Vec<Operator>>,
    /// The namespace that the operator was looked for in, if not in all.
    pub operator_namespace: Option<String>,
    /// What an operator must be allowed to do, for those that watch the namespace.
    pub rights: Arc<[Right]>,
}

/// An object of the namespace: as much of it as others depend on.
#[derive(Debug, Clone)]
pub struct Neighbour {
    /// Its part in a contest for the target Secret.
    pub contender: Contender,
    /// The names of its Secrets.
    pub credentials: String,
    pub target: String,
}

impl Neighbour {
    /// What others depend on.
    #[must_use]
    pub fn of(object: &MoneyGoCredential) -> Self {
        Self {
            contender: Contender {
                name: object.name_any(),
                uid: object.uid().unwrap_or_default(),
                created: object.creation_timestamp().map(|time| time.0),
                sound: object.resolve().is_ok(),
            },
            credentials: object.spec.credentials_ref.name.clone(),
            target: object.target_name().to_owned(),
        }
    }
}

/// The client's Secret.
#[derive(Debug, Clone)]
pub struct Credentials {
    pub id: KeyState,
    pub secret: KeyState,
    /// The names of its keys.
    pub keys: Vec<String>,
}

/// The token's Secret.
#[derive(Debug, Clone, Default)]
pub struct Target {
    pub metadata: ObjectMeta,
    pub immutable: bool,
    /// The length of each value, in bytes.
    pub keys: BTreeMap<String, usize>,
}

impl Target {
    /// All but the values.
    #[must_use]
    pub fn of(secret: Secret) -> Self {
        let data = secret.data.unwrap_or_default();
        Self {
            metadata: secret.metadata,
            immutable: secret.immutable.unwrap_or_default(),
            keys: data.into_iter().map(|(key, value)| (key, value.0.len())).collect(),
        }
    }
}

/// How a value of the credentials is, as the operator judges it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyState {
    Good,
    Missing,
    Empty,
    NotText,
    ByteOrderMark,
    WhiteSpace,
}

impl KeyState {
    /// That of a key.
    #[must_use]
    pub fn of(secret: &Secret, key: &str) -> Self {
        let Some(value) = secret.data.as_ref().and_then(|data| data.get(key)) else { return Self::Missing };
        let Ok(text) = std::str::from_utf8(&value.0) else { return Self::NotText };
        match text {
            "" => Self::Empty,
            _ if text.starts_with('\u{feff}') => Self::ByteOrderMark,
            _ if text.trim() != text => Self::WhiteSpace,
            _ => Self::Good,
        }
    }

    /// Behind the name of the key.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Good => "is good",
            Self::Missing => "is missing",
            Self::Empty => "is empty",
            Self::NotText => "is not UTF-8 text",
            Self::ByteOrderMark => "begins with a byte order mark",
            Self::WhiteSpace => "has white space at an end",
        }
    }
}

/// Something that an operator must be allowed to do.
#[derive(Debug, Clone)]
pub struct Right {
    /// `namespace/name` of its service account.
    pub account: String,
    pub verb: &'static str,
    pub resource: &'static str,
    pub namespace: String,
    /// Whether tokens come without it.
    pub is_minor: bool,
    /// The API server's word. Never `Missing`.
    pub allowed: Lookup<bool>,
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    #[test]
    fn values_are_judged_as_the_operator_does() {
        for (value, expected) in [
            (&b"abc"[..], KeyState::Good),
            (b"a b", KeyState::Good),
            (b"", KeyState::Empty),
            (b"abc\n", KeyState::WhiteSpace),
            (b" abc", KeyState::WhiteSpace),
            (b"\xff", KeyState::NotText),
            (b"\xef\xbb\xbfabc", KeyState::ByteOrderMark),
        ] {
            let data = [("k".to_owned(), ByteString(value.to_vec()))];
            let secret = Secret { data: Some(data.into()), ..Secret::default() };
            assert_eq!(KeyState::of(&secret, "k"), expected, "{value:?}");
            assert_eq!(KeyState::of(&secret, "other"), KeyState::Missing);
        }
    }
}
