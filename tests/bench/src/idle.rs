//! Nothing is due: what is still used, and still asked for.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::subject::Subject;
use crate::world::{Counts, World};

/// A stretch of idling.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Idling {
    /// How long.
    pub seconds: f64,
    /// The share of a core. The kernel counts in hundredths of a second.
    pub core_share: f64,
    /// What was asked of the API server, watches that began anew and the Lease, too.
    pub requests: Counts,
    /// Those of them that are neither.
    pub beyond: u64,
    /// Resident at its end, in bytes; 0 in results that are older than this figure.
    #[serde(default)]
    pub resident_bytes: u64,
}

/// Looks on for as long as `window`.
///
/// # Errors
/// If the process has ended.
pub async fn idle(world: &World, subject: &Subject, window: Duration) -> Result<Idling> {
    let (before, mut tail, started) = (subject.usage()?, world.tail()?, Instant::now());
    tokio::time::sleep(window).await;
    let (after, seconds) = (subject.usage()?, started.elapsed().as_secs_f64());
    tail.follow()?;
    let core_share = after.cpu.saturating_sub(before.cpu).as_secs_f64() / seconds;
    let expected = |what: &str| what.starts_with("watch ") || what.contains(" leases");
    let beyond = tail.counts.iter().filter(|(what, _)| !expected(what)).map(|(_, count)| count).sum();
    Ok(Idling { seconds, core_share, requests: tail.counts, beyond, resident_bytes: after.resident })
}
