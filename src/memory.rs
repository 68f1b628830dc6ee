//! What this process remembers of each object, and nobody else has to: tokens not written yet, its own last writes,
//! allowances. Losing it costs a look or, for a token in flight, a grant.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use crate::access_token::AccessToken;
use crate::caches::ObjectKey;
use crate::crd::{MoneyGoCredential, MoneyGoCredentialStatus, Reason};
use crate::plan::{Allowed, Failed};
use crate::schedule::{Allowance, Undone};
use crate::secret::{Issue, Version};

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
    /// When it failed.
    pub at: Timestamp,
    /// The refresh request on the object.
    pub refresh_requested: Option<String>,
    /// The target's version.
    pub target: Option<Version>,
    /// The digest of the client's id and secret, where it was one for a token.
    pub client: Option<Box<str>>,
}

/// What a line of the log, or an event, has told of before the status could.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// A token was written that was issued then.
    Token(Timestamp),
    /// An attempt failed for this reason.
    Failure(Reason),
}

/// A mend that was answered without what it had put there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UndoneMend {
    /// How many there were in a row, as far as that delays the next.
    pub pace: Undone,
    /// The object's `metadata.generation`.
    pub generation: Option<i64>,
    /// The target as it was left.
    pub target: Version,
}

/// What is remembered of one object.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Memory {
    uid: String,
    /// For grants in place of tokens that someone else took away.
    pub replacements: Allowance,
    /// For grants that follow a person's change.
    pub changes: Allowance,
    /// For writes that put back what someone changed.
    pub mends: Allowance,
    /// The last of them, where it did not hold.
    pub undone: Option<Box<UndoneMend>>,
    /// The status that we wrote last, which the watch may not show yet.
    pub status: Option<(Version, MoneyGoCredentialStatus)>,
    /// A pass over the object is under way.
    pub passing: bool,
    /// The object was called during its pass.
    pub called: bool,
    /// A token that is to be written.
    pub held: Option<HeldToken>,
    /// The object as it was last, where the watch shows it no more and a token is still to be written for it.
    pub left: Option<Box<MoneyGoCredential>>,
    /// The last attempt that failed.
    pub attempt: Option<Attempt>,
    /// When the next attempt would be due, where something changed that ends the wait for it.
    pub hurried: Option<Timestamp>,
    /// How it failed, until the status tells of it: what the API server does not take must not be asked for again and again.
    pub untold: Option<Failed>,
    /// What need not be told once more when the status says it.
    pub told: Option<Told>,
    /// Until when the target's owner is left as it is, since the API server refused to change it.
    pub owner_refused_until: Option<Timestamp>,
    /// Since when it waits for leave to ask for a token.
    pub waits_since: Option<Timestamp>,
    /// Reconciles in a row that failed for the API server's sake.
    pub api_failures: u32,
    /// The log has told of them.
    pub told_of_failures: bool,
    /// The last write of the target was not answered within a call's time, or only then.
    pub slow_writes: bool,
    /// At the last look its Secrets could not be read.
    pub unread: bool,
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
            undone: None,
            status: None,
            passing: false,
            called: false,
            held: None,
            left: None,
            attempt: None,
            hurried: None,
            untold: None,
            told: None,
            owner_refused_until: None,
            waits_since: None,
            api_failures: 0,
            told_of_failures: false,
            slow_writes: false,
            unread: false,
            warned_of_sharing: false,
        }
    }

    /// When an attempt failed that a status tells of and this process knows nothing of: it was made before a start, or by another replica. What
    /// changes from here on counts.
    #[must_use]
    pub fn unknown_attempt(&self, status: &MoneyGoCredentialStatus) -> Option<Timestamp> {
        let failed_at = status.last_failure_time.filter(|_| status.failed_attempts.is_some());
        failed_at.filter(|at| self.attempt.as_ref().is_none_or(|known| known.at < *at))
    }

    /// A pass has come to its end.
    pub fn has_passed(&mut self) {
        (self.api_failures, self.told_of_failures, self.unread) = (0, false, false);
    }

    /// Takes a grant from these allowances.
    pub fn take(&mut self, allowances: [Allowed; 2], now: Timestamp) {
        for allowed in allowances {
            match allowed {
                Allowed::Always => {}
                Allowed::AsReplacement => self.replacements.take(now),
                Allowed::AsChange => self.changes.take(now),
            }
        }
    }

    /// When what someone changed may be put back next: `now` where that may be at once. Of another spec, or another target, nobody knows that it will not
    /// hold.
    #[must_use]
    pub fn mend_at(&self, generation: Option<i64>, target: Option<&Version>, now: Timestamp) -> Timestamp {
        let undone = self.undone.as_ref();
        let undone = undone.filter(|undone| undone.generation == generation && Some(&undone.target) == target);
        let next_at = undone.map_or(now, |undone| undone.pace.next_at(now));
        self.mends.available_at(now).max(next_at)
    }

    /// Whether there is nothing in it that another would not have.
    fn is_blank(&self) -> bool {
        let Self { uid, replacements, changes, mends, .. } = self;
        let new = Self::new(uid);
        let full = (*replacements, *changes, *mends) == (new.replacements, new.changes, new.mends);
        let settled = self.status.is_none() && self.attempt.is_none() && self.untold.is_none() && self.told.is_none();
        let idle = !self.passing
            && self.held.is_none()
            && self.undone.is_none()
            && self.hurried.is_none()
            && self.waits_since.is_none()
            && self.api_failures == 0
            && !self.slow_writes
            && !self.unread;
        full && settled && idle && !self.warned_of_sharing && self.owner_refused_until.is_none()
    }
}

/// The memories of all objects.
#[derive(Default)]
pub struct Memories(Mutex<All>);

#[derive(Default)]
struct All {
    latest: HashMap<ObjectKey, Box<Memory>>,
    /// Of objects that are gone and have a token to be written still, where another was made under the name.
    outlived: HashMap<ObjectKey, Box<Memory>>,
}

impl All {
    fn of(&self, key: &ObjectKey, uid: &str) -> Option<&Memory> {
        self.both(key).find(|memory| memory.uid == uid)
    }

    fn of_mut(&mut self, key: &ObjectKey, uid: &str) -> Option<&mut Memory> {
        let known = [self.latest.get_mut(key), self.outlived.get_mut(key)];
        known.into_iter().flatten().map(|memory| &mut **memory).find(|memory| memory.uid == uid)
    }

    fn both(&self, key: &ObjectKey) -> impl Iterator<Item = &Memory> {
        [self.outlived.get(key), self.latest.get(key)].into_iter().flatten().map(|memory| &**memory)
    }
}

impl Memories {
    fn all(&self) -> MutexGuard<'_, All> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads or changes what is remembered of an object. An object made anew under its name starts afresh; a token that is still to be
    /// written for the one before is kept beside it.
    pub fn with<T>(&self, key: &ObjectKey, uid: &str, f: impl FnOnce(&mut Memory) -> T) -> T {
        let mut all = self.all();
        let All { latest, outlived } = &mut *all;
        if let Some(memory) = outlived.get_mut(key).filter(|memory| memory.uid == uid) {
            return f(memory);
        }
        let memory = latest.entry(key.clone()).or_insert_with(|| Box::new(Memory::new(uid)));
        if memory.uid != uid {
            let earlier = std::mem::replace(memory, Box::new(Memory::new(uid)));
            if earlier.left.is_some() && earlier.held.is_some() {
                outlived.insert(key.clone(), earlier);
            }
        }
        f(memory)
    }

    /// What is remembered of an object. To look keeps nothing.
    #[must_use]
    pub fn of(&self, key: &ObjectKey, uid: &str) -> Memory {
        self.all().of(key, uid).map_or_else(|| Memory::new(uid), Memory::clone)
    }

    /// Forgets an object that is gone, unless a pass over it is under way: that one forgets it as it ends. Returns whether
    /// a token was lost by it.
    pub fn forget(&self, key: &ObjectKey) -> bool {
        let mut all = self.all();
        let is_idle = all.latest.get(key).is_some_and(|memory| !memory.passing);
        is_idle && all.latest.remove(key).is_some_and(|memory| memory.held.is_some())
    }

    /// Whether a pass over the object is under way. It knows then that there was a call, and deals with it as it ends.
    #[must_use]
    pub fn defer_call(&self, key: &ObjectKey) -> bool {
        let mut all = self.all();
        let passing = all.latest.get_mut(key).filter(|memory| memory.passing);
        passing.map(|memory| memory.called = true).is_some()
    }

    /// Whether the status that we wrote last is this version.
    #[must_use]
    pub fn wrote_status(&self, key: &ObjectKey, version: &Version) -> bool {
        let all = self.all();
        all.latest.get(key).and_then(|memory| memory.status.as_ref()).is_some_and(|(written, _)| written == version)
    }

    /// The watch has shown this version of the object: what we wrote up to it need not be remembered; and nothing at all of an object
    /// that is at rest.
    pub fn shown(&self, key: &ObjectKey, version: &Version) {
        let mut all = self.all();
        let Some(memory) = all.latest.get_mut(key) else { return };
        if memory.status.as_ref().is_some_and(|(written, _)| !written.is_newer_than(version)) {
            memory.status = None;
        }
        if memory.is_blank() {
            all.latest.remove(key);
        }
    }

    /// Keeps an object that the watch shows no more, as long as a token is held for it. Returns whether one is; the pass that is under way, if there
    /// is one, deals with it as it ends.
    pub fn leave(&self, key: &ObjectKey, credential: &MoneyGoCredential) -> bool {
        let mut all = self.all();
        let memory = all.of_mut(key, credential.metadata.uid.as_deref().unwrap_or_default());
        let holding = memory.filter(|memory| memory.held.is_some() && !memory.passing);
        holding.map(|memory| memory.left = Some(Box::new(credential.clone()))).is_some()
    }

    /// An object that the watch shows no more, with a token that is to be written for it.
    #[must_use]
    pub fn left(&self, key: &ObjectKey) -> Option<MoneyGoCredential> {
        self.all().both(key).find_map(|memory| memory.left.as_deref().cloned())
    }

    /// Whether nothing is to be written for such an object any more. Then it is not kept beside the one that was made anew.
    pub fn settle(&self, key: &ObjectKey, uid: &str) -> bool {
        let mut all = self.all();
        let is_settled = all.of(key, uid).is_none_or(|memory| memory.held.is_none());
        if is_settled && all.outlived.get(key).is_some_and(|memory| memory.uid == uid) {
            all.outlived.remove(key);
        }
        is_settled
    }

    /// Whether an object's token is not written yet.
    #[must_use]
    pub fn is_holding(&self, key: &ObjectKey) -> bool {
        self.all().both(key).any(|memory| memory.held.is_some())
    }

    /// The objects whose tokens are not written yet.
    #[must_use]
    pub fn holding(&self) -> Vec<ObjectKey> {
        let all = self.all();
        let holding = all.latest.iter().chain(&all.outlived).filter(|(_, memory)| memory.held.is_some());
        let keys: BTreeSet<_> = holding.map(|(key, _)| key).collect();
        keys.into_iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests;
