//! What is resident with nothing to do, and beside Secrets that are nobody's.

use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::stats::real;
use crate::subject::{Subject, Who};
use crate::usage::Usage;
use crate::world::World;

/// A small foreign Secret, and the large one of the promise, in bytes of data.
const SIZES: [usize; 2] = [64, 50 * 1024];

/// A process without objects.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Empty {
    /// From its start to a ready probe, in milliseconds.
    pub ready_millis: f64,
    /// Resident a while after, in bytes.
    pub resident_bytes: u64,
    /// The most that was resident.
    pub peak_bytes: u64,
}

/// Starts it where there are no objects.
///
/// # Errors
/// If it does not become ready.
pub async fn empty(world: &World, who: &Who<'_>, settle: Duration) -> Result<Empty> {
    let mut subject = Subject::start(world, who)?;
    let ready = subject.ready().await?;
    tokio::time::sleep(settle).await;
    let usage = subject.usage()?;
    subject.stop().await?;
    Ok(Empty { ready_millis: ready.as_secs_f64() * 1000.0, resident_bytes: usage.resident, peak_bytes: usage.peak })
}

/// What foreign Secrets of one size cost.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Foreign {
    /// How many were made.
    pub count: usize,
    /// Data in each, in bytes.
    pub bytes: usize,
    /// Resident before.
    pub before_bytes: u64,
    /// Resident with them.
    pub with_bytes: u64,
    /// Resident in a process that was started when they were there; 0 in results that are older than this figure.
    #[serde(default)]
    pub restarted_bytes: u64,
    /// The most that was resident in that.
    pub peak_bytes: u64,
    /// Resident in that when they were deleted again.
    pub after_bytes: u64,
}

impl Foreign {
    /// Bytes that each of them took, live or after a restart, whichever was more: what was free before may hide what they take.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "bytes of a process")]
    pub fn each(&self) -> f64 {
        self.with_bytes.max(self.restarted_bytes).saturating_sub(self.before_bytes) as f64 / real(self.count)
    }
}

/// Makes foreign Secrets beside a process that runs, starts another that finds them there, and deletes them again: small ones, then large ones.
///
/// # Errors
/// If the API server refuses them.
pub async fn foreign(world: &World, who: &Who<'_>, count: usize, settle: Duration) -> Result<Vec<Foreign>> {
    let mut found = Vec::new();
    for bytes in SIZES {
        let namespace = format!("foreign-{bytes}");
        let subject = ready(world, who).await?;
        let before = at_rest(world, &subject, settle).await?;
        world.add_foreign(&namespace, count, bytes).await?;
        let with = at_rest(world, &subject, settle).await?;
        subject.stop().await?;
        let subject = ready(world, who).await?;
        let restarted = at_rest(world, &subject, settle).await?;
        world.remove_foreign(&namespace, count).await?;
        let after = at_rest(world, &subject, settle).await?;
        subject.stop().await?;
        found.push(Foreign {
            count,
            bytes,
            before_bytes: before.resident,
            with_bytes: with.resident,
            restarted_bytes: restarted.resident,
            peak_bytes: after.peak,
            after_bytes: after.resident,
        });
    }
    Ok(found)
}

async fn ready(world: &World, who: &Who<'_>) -> Result<Subject> {
    let mut subject = Subject::start(world, who)?;
    subject.ready().await?;
    Ok(subject)
}

async fn at_rest(world: &World, subject: &Subject, settle: Duration) -> Result<Usage> {
    world.rest().await?;
    tokio::time::sleep(settle).await;
    subject.usage()
}
