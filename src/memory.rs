//! What this process remembers of each object, and nobody else has to: tokens not written yet, its own last writes,
//! allowances. Losing it costs a look or, for a token in flight, a grant.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;

use crate::caches::ObjectKey;
use crate::crd::MoneyGoCredentialStatus;
use crate::plan::Failed;
use crate::schedule::Allowance;
use crate::secret::{Issue, Version};
use crate::token::AccessToken;

/// A token that was issued and is not written yet.
#[derive(Debug, Clone)]
pub struct HeldToken {
    /// The token.
    pub token: AccessToken,
    /// What is to be recorded with it.
    pub issue: Issue,
    /// When the token was issued that the target held as this one was asked for.
    pub replaces: Option<Timestamp>,
}

/// What the last attempt that failed was made with, beside what the status says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The refresh request on the object.
    pub refresh_requested: Option<String>,
    /// The target's version.
    pub target: Option<Version>,
}

/// A look at the data of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The version that was looked at, or written.
    pub version: Version,
    /// The token that we wrote was in it.
    pub sound: bool,
}

/// What is remembered of one object.
#[derive(Debug, Clone)]
pub struct Memory {
    uid: String,
    /// For grants in place of tokens that someone else took away.
    pub replacements: Allowance,
    /// For grants that follow a person's change.
    pub changes: Allowance,
    /// For writes that put back what someone changed.
    pub mends: Allowance,
    /// The status that we wrote last, which the watch may not show yet.
    pub status: Option<(Version, MoneyGoCredentialStatus)>,
    /// The last look at the target.
    pub verified: Option<Verified>,
    /// A pass over the object is under way.
    pub passing: bool,
    /// A token that is to be written.
    pub held: Option<HeldToken>,
    /// The last attempt that failed.
    pub attempt: Option<Attempt>,
    /// How it failed, until the status tells of it: what the API server does not take must not be asked for again and again.
    pub untold: Option<Failed>,
    /// Until when the target's owner is left as it is, since the API server refused to change it.
    pub owner_refused_until: Option<Timestamp>,
    /// Since when it waits for leave to ask for a token.
    pub waits_since: Option<Timestamp>,
    /// Reconciles in a row that failed for the API server's sake.
    pub api_failures: u32,
    /// Someone was told that another object has the same credentials.
    pub warned_of_sharing: bool,
}

impl Memory {
    fn new(uid: &str) -> Self {
        Self {
            uid: uid.to_owned(),
            replacements: Allowance::of_unplanned_grants(),
            changes: Allowance::of_unplanned_grants(),
            mends: Allowance::of_mends(),
            status: None,
            verified: None,
            passing: false,
            held: None,
            attempt: None,
            untold: None,
            owner_refused_until: None,
            waits_since: None,
            api_failures: 0,
            warned_of_sharing: false,
        }
    }
}

/// The memories of all objects.
#[derive(Default)]
pub struct Memories(Mutex<HashMap<ObjectKey, Memory>>);

impl Memories {
    /// Reads or changes what is remembered of an object. An object made anew under its name starts afresh.
    pub fn with<T>(&self, key: &ObjectKey, uid: &str, f: impl FnOnce(&mut Memory) -> T) -> T {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = all.entry(key.clone()).or_insert_with(|| Memory::new(uid));
        if memory.uid != uid {
            *memory = Memory::new(uid);
        }
        f(memory)
    }

    /// Forgets an object that is gone, unless a pass over it is under way: that one forgets it as it ends. Returns whether
    /// a token was lost by it.
    pub fn forget(&self, key: &ObjectKey) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_idle = all.get(key).is_some_and(|memory| !memory.passing);
        is_idle && all.remove(key).is_some_and(|memory| memory.held.is_some())
    }

    /// Whether the status that we wrote last is this version.
    #[must_use]
    pub fn wrote_status(&self, key: &ObjectKey, version: &Version) -> bool {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(key).and_then(|memory| memory.status.as_ref()).is_some_and(|(written, _)| written == version)
    }

    /// The objects whose tokens are not written yet.
    #[must_use]
    pub fn holding(&self) -> Vec<ObjectKey> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter(|(_, memory)| memory.held.is_some()).map(|(key, _)| key.clone()).collect()
    }
}

#[cfg(test)]
mod tests;
