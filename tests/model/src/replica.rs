//! One of the operator's processes: what the watches have shown it, what it remembers, and where it is in a pass.

use std::collections::VecDeque;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use moneygo_operator::caches::Look;
use moneygo_operator::crd::MoneyGoCredentialStatus;
use moneygo_operator::memory::Attempt;
use moneygo_operator::plan::{Failed, Observed};
use moneygo_operator::schedule::Allowance;
use moneygo_operator::secret::{Facts, Issue, Version};

use crate::shared::Shared;
use crate::world::{Event, Object, token_number};

/// A token that is not written yet: `memory::HeldToken`, with the token in clear.
#[derive(Debug, Clone)]
pub struct HeldToken {
    /// The token.
    pub token: String,
    /// What is to be recorded with it.
    pub issue: Issue,
    /// When the token was issued that the target held as this one was asked for.
    pub replaces: Option<Timestamp>,
}

/// What of `memory::Memory` plans are made of.
#[derive(Debug, Clone)]
pub struct Memory {
    /// A token that is to be written.
    pub held: Option<HeldToken>,
    /// The status that it wrote last, which the watch may not show yet.
    pub status: Option<(Version, MoneyGoCredentialStatus)>,
    /// The last attempt that failed.
    pub attempt: Option<Attempt>,
    /// How it failed, until the status tells of it.
    pub untold: Option<Failed>,
    /// For grants in place of tokens that someone else took away.
    pub replacements: Allowance,
    /// For grants that follow a person's change.
    pub changes: Allowance,
    /// For writes that put back what someone changed.
    pub mends: Allowance,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            held: None,
            status: None,
            attempt: None,
            untold: None,
            replacements: Allowance::of_unplanned_grants(),
            changes: Allowance::of_unplanned_grants(),
            mends: Allowance::of_mends(),
        }
    }
}

/// What becomes of an object after a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Next {
    /// Nothing before something happens.
    Await,
    /// It is looked at again then.
    At(Timestamp),
    /// It is looked at again soon.
    Soon,
}

/// Whether a call was answered: not before it was taken, and with nothing where it failed.
pub type Answer<T> = Option<Option<T>>;

/// Where a pass is: between two calls nothing can come between, so that a pass is where it waits for an answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Pass {
    /// Nowhere.
    Idle,
    /// It reads both Secrets. The credentials are never another.
    Look {
        /// What was planned on.
        o: Shared<Observed>,
        /// The target.
        answer: Answer<Option<Shared<Secret>>>,
    },
    /// It asks for a token.
    Ask {
        /// What was planned on.
        o: Shared<Observed>,
        /// The target as it was read.
        target: Option<Shared<Secret>>,
        /// When the request was sent, by its own clock.
        asked_at: Timestamp,
        /// The token's number, and how many seconds it lives.
        answer: Answer<(usize, i64)>,
    },
    /// It writes the target.
    Write {
        /// What was planned on.
        o: Shared<Observed>,
        /// What is written.
        secret: Shared<Secret>,
        /// What is recorded of the token.
        issue: Shared<Issue>,
        /// Whether it is the token that is held; else something beside the one that is there is mended.
        is_held: bool,
        /// Its metadata as they are then.
        answer: Answer<Shared<ObjectMeta>>,
    },
    /// It writes the status.
    Report {
        /// The version that it is for.
        version: Shared<Version>,
        /// What it is to be.
        status: Shared<MoneyGoCredentialStatus>,
        /// What comes then.
        next: Next,
        /// The version that it is then.
        answer: Answer<u64>,
    },
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Replica {
    /// The object as the watch shows it.
    pub object: Shared<Object>,
    /// The target's metadata as the watch, a read or a write of its own showed them.
    pub target: Option<Shared<(Facts, Look)>>,
    /// The newest version of a Secret that the watch has shown.
    pub shown: u64,
    /// Versions of the object that the watch is still to show.
    pub objects: VecDeque<Shared<Object>>,
    /// Events of the target that the watch is still to show.
    pub secrets: VecDeque<Event>,
    /// What it remembers.
    pub memory: Shared<Memory>,
    /// Where its pass is.
    pub pass: Pass,
    /// The object is to be looked at: now or, during a pass, as that ends.
    pub called: bool,
    /// When it is looked at again.
    pub timer: Option<Timestamp>,
}

impl Replica {
    /// A process that has just started: it has listed everything and remembers nothing.
    #[must_use]
    pub fn new(object: Shared<Object>, target: Option<&Secret>, version: u64) -> Self {
        Self {
            object,
            target: target.map(|target| (Facts::of(&target.metadata), Look::Never).into()),
            shown: version,
            objects: VecDeque::new(),
            secrets: VecDeque::new(),
            memory: Memory::default().into(),
            pass: Pass::Idle,
            called: false,
            timer: None,
        }
    }

    /// Whether no pass is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.pass == Pass::Idle
    }

    /// Whether the call that it waits for was taken, and answered.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        match &self.pass {
            Pass::Idle => false,
            Pass::Look { answer, .. } => answer.is_some(),
            Pass::Ask { answer, .. } => answer.is_some(),
            Pass::Write { answer, .. } => answer.is_some(),
            Pass::Report { answer, .. } => answer.is_some(),
        }
    }

    /// The number of the token that nobody else has.
    #[must_use]
    pub fn token_at_hand(&self) -> Option<usize> {
        match &self.pass {
            Pass::Ask { answer: Some(Some((number, _))), .. } => Some(*number),
            _ => token_number(&self.memory.held.as_ref()?.token),
        }
    }

    /// Changes what it remembers.
    pub fn remember(&mut self, change: impl FnOnce(&mut Memory)) {
        let mut memory = Memory::clone(&self.memory);
        change(&mut memory);
        self.memory = memory.into();
    }

    /// The newest version and status that it knows of: `observe::newest_version`.
    #[must_use]
    pub fn newest_status(&self) -> (Version, MoneyGoCredentialStatus) {
        let seen = object_version(self.object.version);
        match &self.memory.status {
            Some((written, status)) if written.is_newer_than(&seen) => (written.clone(), status.clone()),
            _ => (seen, self.object.status.clone()),
        }
    }

    /// The watch has shown the object as it is known: `Memories::shown`.
    pub fn forget_shown_status(&mut self) {
        let seen = object_version(self.object.version);
        if self.memory.status.as_ref().is_some_and(|(written, _)| !written.is_newer_than(&seen)) {
            self.remember(|memory| memory.status = None);
        }
    }

    /// The next event of the object's watch. Whether it is news: `watches::watch_objects`.
    #[must_use]
    pub fn see_object(&mut self) -> bool {
        let Some(object) = self.objects.pop_front() else { return false };
        let is_own = self.wrote(&object);
        self.object = object;
        self.forget_shown_status();
        !is_own
    }

    /// The next event of the Secrets' watch. Whether it is news: `caches::Secrets::fold`.
    #[must_use]
    pub fn see_secret(&mut self) -> bool {
        match self.secrets.pop_front() {
            None => false,
            Some(Event::Applied(facts)) => {
                self.show(&facts.version);
                self.put(&facts)
            }
            Some(Event::Deleted(deleted)) => {
                self.show(&deleted);
                let is_another =
                    |known: &Facts| known.version.uid != deleted.uid && known.version.is_newer_than(&deleted);
                let is_gone = self.target.as_ref().is_some_and(|known| !is_another(&known.0));
                if is_gone {
                    self.target = None;
                }
                is_gone
            }
        }
    }

    /// Whether the watches have nothing left to show.
    #[must_use]
    pub fn has_seen_all(&self) -> bool {
        self.objects.is_empty() && self.secrets.is_empty()
    }

    /// Sees what changes nothing, and all that is more than `most` events of a kind behind.
    pub fn catch_up(&mut self, most: usize) {
        while self.objects.len() > most || self.objects.front().is_some_and(|next| self.wrote(next)) {
            let _ = self.see_object();
        }
        while self.secrets.len() > most || self.secrets.front().is_some_and(|next| self.knows(next)) {
            let _ = self.see_secret();
        }
    }

    fn wrote(&self, object: &Object) -> bool {
        self.memory.status.as_ref().is_some_and(|(written, _)| *written == object_version(object.version))
    }

    fn knows(&self, event: &Event) -> bool {
        let Event::Applied(facts) = event else { return false };
        self.target.as_ref().is_some_and(|known| is_as_new(&known.0, facts))
    }

    fn show(&mut self, version: &Version) {
        self.shown = self.shown.max(version.resource_version.parse().unwrap_or_default());
    }

    fn put(&mut self, facts: &Facts) -> bool {
        let known = self.target.as_ref();
        if known.is_some_and(|known| is_as_new(&known.0, facts)) {
            return false;
        }
        let looked_at = known.is_some_and(|known| known.1 != Look::Never);
        let look = if looked_at { Look::Unsound } else { Look::Never };
        self.target = Some((facts.clone(), look).into());
        true
    }

    /// Takes note of a Secret that was read or written: `caches::Secrets::note`, and whether its data was found to be sound.
    pub fn note(&mut self, facts: &Facts, is_sound: bool) {
        let version: u64 = facts.version.resource_version.parse().unwrap_or_default();
        let is_gone = self.target.is_none() && self.shown > version;
        if !is_gone {
            self.put(facts);
        }
        if let Some(known) = &self.target {
            let is_that = known.0.version == facts.version;
            let look = if is_sound && is_that { Look::Sound } else { Look::Unsound };
            self.target = Some((known.0.clone(), look).into());
        }
    }
}

/// The version of the object, as the operator knows it.
#[must_use]
pub fn object_version(number: u64) -> Version {
    Version { uid: "object-uid".to_owned(), resource_version: number.to_string() }
}

fn is_as_new(known: &Facts, facts: &Facts) -> bool {
    known.version == facts.version || known.version.is_newer_than(&facts.version)
}
