//! Many seeds on several threads, and for one that fails the smallest part of its disturbances that still does.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use moneygo_operator::token::TokenClient;

use crate::node::token_clients;
use crate::run::{Outcome, run_seed};
use crate::schedule::{Setting, disturbances};
use crate::world::{Counts, Violation};

/// How often a run of many seeds says how far it is.
const PROGRESS_EVERY: u64 = 1000;

/// What many runs came to.
#[derive(Debug, Default)]
pub struct Sum {
    /// Seeds that were run.
    pub seeds: u64,
    /// All counts.
    pub counts: Counts,
    /// The seeds that failed, and how.
    pub failed: BTreeMap<u64, Violation>,
}

impl Sum {
    fn add(&mut self, seed: u64, outcome: Outcome) {
        self.seeds += 1;
        self.counts += outcome.counts;
        self.failed.extend(outcome.violation.map(|violation| (seed, violation)));
    }

    fn merge(mut self, other: Self) -> Self {
        self.seeds += other.seeds;
        self.counts += other.counts;
        self.failed.extend(other.failed);
        self
    }
}

/// Runs so many seeds from `first` on; stops early after so many failures.
///
/// # Errors
/// Where the simulation itself cannot run.
pub fn run_seeds(first: u64, seeds: u64, threads: usize, most_failures: usize) -> anyhow::Result<Sum> {
    let next = AtomicU64::new(first);
    let failures = AtomicU64::new(0);
    let sums: Mutex<Vec<anyhow::Result<Sum>>> = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                let sum = work(&next, first.saturating_add(seeds), &failures, most_failures);
                if let Ok(mut sums) = sums.lock() {
                    sums.push(sum);
                }
            });
        }
    });
    let sums = sums.into_inner().unwrap_or_default();
    anyhow::ensure!(sums.len() == threads.max(1), "a thread panicked: see above");
    sums.into_iter().try_fold(Sum::default(), |sum, one| Ok(sum.merge(one?)))
}

fn work(next: &AtomicU64, end: u64, failures: &AtomicU64, most_failures: usize) -> anyhow::Result<Sum> {
    let clients = token_clients()?;
    let mut sum = Sum::default();
    while failures.load(Ordering::Relaxed) < most_failures as u64 {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= end {
            break;
        }
        if seed.is_multiple_of(PROGRESS_EVERY) {
            eprintln!("seed {seed}");
        }
        let outcome = run_seed(&clients, seed, None, false)?;
        if let Some(violation) = &outcome.violation {
            println!("seed {seed} failed: {}: {}", violation.promise, violation.detail);
            failures.fetch_add(1, Ordering::Relaxed);
        }
        sum.add(seed, outcome);
    }
    Ok(sum)
}

/// The places of the disturbances that are needed for a seed to break the same promise: none can be left out (delta
/// debugging, as Zeller's ddmin).
///
/// # Errors
/// As [`run_seeds`].
pub fn shrink(clients: &[TokenClient], seed: u64, promise: &str) -> anyhow::Result<Vec<usize>> {
    let mut kept: Vec<usize> = (0..disturbances(&Setting::of(seed)).len()).collect();
    let mut size = kept.len().div_ceil(2).max(1);
    loop {
        let mut shorter = None;
        for start in (0..kept.len()).step_by(size) {
            let without: Vec<usize> = kept
                .iter()
                .enumerate()
                .filter(|(place, _)| !(start..start + size).contains(place))
                .map(|(_, one)| *one)
                .collect();
            let outcome = run_seed(clients, seed, Some(&without), false)?;
            if outcome.violation.is_some_and(|violation| violation.promise == promise) {
                shorter = Some(without);
                break;
            }
        }
        match shorter {
            Some(without) => kept = without,
            None if size <= 1 => return Ok(kept),
            None => size = size.div_ceil(2),
        }
    }
}
