//! CI's share of the faults: every request and every event, and samples of the rest. `cargo xtask faults` runs all of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use moneygo_faults::matrix::Share;
use moneygo_faults::tally::Tally;
use moneygo_faults::world::World;
use moneygo_faults::{edits, failover, matrix, outages};
use tokio::sync::Mutex;

/// One after the other: each keeps the machine busy by itself.
static ALONE: Mutex<()> = Mutex::const_new(());
const ALL: Share = Share { parallel: 24, one_of: 1, seed: 0, stop_after: 10 };

async fn judge(play: impl AsyncFnOnce(&World) -> anyhow::Result<Tally>) {
    let _alone = ALONE.lock().await;
    let world = World::start().await.unwrap();
    let tally = play(&world).await;
    world.end().await.unwrap();
    let tally = tally.unwrap();
    println!("{tally}");
    assert_eq!(tally.violations(), 0, "{tally}: see above, and how each is played again");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_at_every_request_in_every_state() {
    judge(async |world| matrix::run(world, false, ALL).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_at_every_event_in_every_state() {
    judge(async |world| matrix::run(world, true, ALL).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failovers_at_every_request() {
    judge(async |world| failover::run(world, 196, 28, 0).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_end_in_the_state_of_a_fresh_object() {
    judge(async |world| edits::run(world, 64, 64, 0).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_writes_and_requests_that_come_too_soon() {
    judge(async |world| outages::run(world, false, 24).await).await;
}
