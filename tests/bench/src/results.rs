//! All that was found, as it is stored.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::burst::Burst;
use crate::failover::Failovers;
use crate::fill::Filling;
use crate::idle::Idling;
use crate::machine::Machine;
use crate::memory::{Empty, Foreign};
use crate::reactions::Change;
use crate::restart::{Restart, Settled};
use crate::stats::Spread;

/// The results of one run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Results {
    /// The plan's name.
    pub plan: String,
    /// When it began.
    pub began: Timestamp,
    /// How long it took.
    pub seconds: f64,
    /// Where.
    pub machine: Machine,
    /// The smaller and the larger size at which what needs no filling was measured.
    pub sizes: (usize, usize),
    /// The floor's tokens a second by its concurrency.
    pub concurrencies: BTreeMap<usize, f64>,
    /// The one that served it best; the operator's limiter allows as many.
    pub concurrency: usize,
    /// By the number of objects.
    pub fillings: BTreeMap<usize, Pair<Vec<Filling>>>,
    /// The peer's, of a run beside it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub peer: BTreeMap<usize, Vec<Filling>>,
    /// From a manifest to its Secret beside `sizes.1` objects: milliseconds, by round.
    pub one_by_one: Pair<Vec<Vec<f64>>>,
    /// Milliseconds, by round. The floor makes deleted targets again, and nothing else.
    pub reactions: Vec<Reactions>,
    /// Starts without objects.
    pub empty: Vec<Empty>,
    /// Foreign Secrets, beside `sizes.0` objects.
    pub foreign: Vec<Foreign>,
    /// Starts beside `sizes.1` objects.
    pub restarts: Vec<Restart>,
    /// The peer's starts beside as many, of a run beside it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peer_restarts: Vec<Settled>,
    /// What a bare client takes to list the same, in milliseconds.
    #[serde(default)]
    pub bare_lists: Vec<f64>,
    /// Idling beside as many.
    pub idling: Vec<Idling>,
    /// Failovers beside as many.
    pub failovers: Option<Failovers>,
    /// As many due at once.
    pub burst: Option<Burst>,
    /// What could not be measured, and why.
    pub missing: Vec<String>,
}

/// The same of both.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Pair<T> {
    /// The operator's.
    pub operator: T,
    /// The floor's.
    pub floor: T,
}

/// One kind of change.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reactions {
    /// What was changed.
    pub change: Change,
    /// Objects that were there.
    pub objects: usize,
    /// The operator's rounds, and the floor's where it reacts to such a change.
    pub rounds: Pair<Vec<Vec<f64>>>,
}

impl Pair<Vec<Filling>> {
    /// A figure of both, over the repeats.
    #[must_use]
    pub fn spread(&self, figure: impl Fn(&Filling) -> f64) -> Pair<Option<Spread>> {
        let of = |fillings: &[Filling]| Spread::of(fillings.iter().map(&figure));
        Pair { operator: of(&self.operator), floor: of(&self.floor) }
    }
}

impl<T> Pair<T> {
    /// The same done to both.
    pub fn map<U>(&self, each: impl Fn(&T) -> U) -> Pair<U> {
        Pair { operator: each(&self.operator), floor: each(&self.floor) }
    }
}

impl Results {
    /// The reactions to a change beside so many objects.
    #[must_use]
    pub fn reactions_to(&self, change: Change, objects: usize) -> Option<&Reactions> {
        self.reactions.iter().find(|reactions| reactions.change == change && reactions.objects == objects)
    }
}
