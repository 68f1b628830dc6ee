//! Simulated time: one true time, and for each node a monotonic clock (its runtime's), a boot clock and a wall clock.

use std::cell::Cell;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use moneygo_operator::clock::Clock;
use tokio::time::Instant;

/// True time: milliseconds since the start of a run.
pub type Millis = u64;

/// Seconds in milliseconds.
pub const SECOND: Millis = 1000;
/// A minute in milliseconds.
pub const MINUTE: Millis = 60 * SECOND;
/// An hour in milliseconds.
pub const HOUR: Millis = 60 * MINUTE;
/// A day in milliseconds.
pub const DAY: Millis = 24 * HOUR;

/// Machines that a replica can run on.
pub const NODES: usize = 2;

/// The wall clock at the start of a run: 2026-01-01T00:00:00Z.
const EPOCH_SECS: i64 = 1_767_225_600;

#[derive(Clone, Copy, Default)]
struct NodeClock {
    /// The runtime's clock as it started.
    origin: Option<Instant>,
    /// The true time at that moment, moved on by suspensions.
    base: Millis,
    /// By how much the wall clock is wrong.
    wrong_by: i64,
}

thread_local! {
    static CLOCKS: Cell<[NodeClock; NODES]> = const { Cell::new([NodeClock { origin: None, base: 0, wrong_by: 0 }; NODES]) };
}

fn change(node: usize, change: impl FnOnce(&mut NodeClock)) {
    let mut clocks = CLOCKS.get();
    if let Some(clock) = clocks.get_mut(node) {
        change(clock);
    }
    CLOCKS.set(clocks);
}

fn clock(node: usize) -> NodeClock {
    CLOCKS.get().get(node).copied().unwrap_or_default()
}

/// For a new run on this thread.
pub fn reset() {
    CLOCKS.set([NodeClock::default(); NODES]);
}

/// A node's runtime starts at this true time. To be called within it.
pub fn start(node: usize, at: Millis) {
    change(node, |clock| {
        clock.origin = Some(Instant::now());
        clock.base = at;
    });
}

/// True time went on while the node's monotonic clock stood still.
pub fn suspend(node: usize, length: Millis) {
    change(node, |clock| clock.base += length);
}

/// Sets a node's wall clock wrong by so many milliseconds.
pub fn set_wrong(node: usize, by: i64) {
    change(node, |clock| clock.wrong_by = by);
}

/// True time as the node's monotonic clock has it. To be called within its runtime.
#[must_use]
pub fn now(node: usize) -> Millis {
    let clock = clock(node);
    let passed = clock.origin.map_or(Duration::ZERO, |origin| Instant::now().saturating_duration_since(origin));
    clock.base + u64::try_from(passed.as_millis()).unwrap_or(u64::MAX)
}

/// The moment of a node's monotonic clock that is this true time.
#[must_use]
pub fn instant(node: usize, at: Millis) -> Instant {
    let clock = clock(node);
    clock.origin.unwrap_or_else(Instant::now) + Duration::from_millis(at.saturating_sub(clock.base))
}

/// A right wall clock at that true time.
#[must_use]
pub fn timestamp(at: Millis) -> Timestamp {
    let passed = SignedDuration::from_millis(i64::try_from(at).unwrap_or(i64::MAX));
    Timestamp::from_second(EPOCH_SECS).and_then(|epoch| epoch.saturating_add(passed)).unwrap_or_default()
}

/// The true time at which a right wall clock shows this.
#[must_use]
pub fn true_time(at: Timestamp) -> i64 {
    at.as_millisecond() - EPOCH_SECS * 1000
}

/// By how much a node's wall clock is wrong.
#[must_use]
pub fn wrong_by(node: usize) -> i64 {
    clock(node).wrong_by
}

fn wall<const NODE: usize>() -> Timestamp {
    let wrong = SignedDuration::from_millis(wrong_by(NODE));
    let right = timestamp(now(NODE));
    right.saturating_add(wrong).unwrap_or(right)
}

fn boot<const NODE: usize>() -> Duration {
    Duration::from_millis(now(NODE))
}

/// A node's clocks, as the operator reads them.
#[must_use]
pub fn clocks(node: usize) -> Clock {
    if node == 0 { Clock::new(wall::<0>, boot::<0>) } else { Clock::new(wall::<1>, boot::<1>) }
}
