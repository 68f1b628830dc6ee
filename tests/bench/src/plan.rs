//! How much is measured: all of it, or as much as shows that it can be.

use std::time::Duration;

/// What is run, and how often.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What it is called.
    pub name: &'static str,
    /// The concurrencies of which the floor takes the one that serves it best.
    pub concurrencies: &'static [usize],
    /// Objects with which that is found.
    pub trial: usize,
    /// Sizes of fillings, and how often each is done; the operator and the floor take turns.
    pub fillings: &'static [(usize, usize)],
    /// The smaller size at which reactions are measured; foreign Secrets are made beside it.
    pub small: usize,
    /// The size at which everything else is measured.
    pub main: usize,
    /// Starts without objects.
    pub starts: usize,
    /// Rounds of each that needs no filling.
    pub rounds: usize,
    /// Objects made one by one in a round.
    pub one_by_one: usize,
    /// Deleted targets in a round.
    pub deleted: usize,
    /// Changes of each other kind in a round.
    pub changes: usize,
    /// A stretch of idling.
    pub idle: Duration,
    /// Foreign Secrets.
    pub foreign: usize,
    /// The limiter's rate while everything is due at once.
    pub burst_rate: usize,
    /// What a process is left alone for before its memory is looked at.
    pub settle: Duration,
}

impl Plan {
    /// What docs/performance.md is made of.
    pub const FULL: Self = Self {
        name: "full",
        concurrencies: &[16, 32, 64],
        trial: 1_500,
        fillings: &[(1_000, 3), (10_000, 1)],
        small: 1_000,
        main: 10_000,
        starts: 5,
        rounds: 2,
        one_by_one: 100,
        deleted: 30,
        changes: 10,
        idle: Duration::from_mins(1),
        foreign: 10_000,
        burst_rate: 150,
        settle: Duration::from_secs(10),
    };

    /// The same, and a filling of 50,000: a quarter of an hour more.
    pub const LARGEST: Self =
        Self { name: "largest", fillings: &[(1_000, 3), (10_000, 2), (50_000, 1)], rounds: 3, ..Self::FULL };

    /// Fillings alone, beside the peer's.
    pub const PEER: Self = Self { name: "peer's", fillings: &[(1_000, 2), (10_000, 1)], ..Self::FULL };

    /// Everything once, with few objects.
    pub const QUICK: Self = Self {
        name: "quick",
        concurrencies: &[32, 64],
        trial: 150,
        fillings: &[(150, 1), (600, 1)],
        small: 150,
        main: 600,
        starts: 2,
        rounds: 1,
        one_by_one: 20,
        deleted: 6,
        changes: 3,
        idle: Duration::from_secs(10),
        foreign: 300,
        burst_rate: 100,
        settle: Duration::from_secs(2),
    };
}
