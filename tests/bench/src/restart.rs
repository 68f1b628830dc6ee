//! A new process finds everything in order: how soon it is ready and at rest, and what it asks for.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures::future::try_join;
use k8s_openapi::api::core::v1::Secret;
use kube::core::Request;
use kube::core::params::ListParams;
use kube::{Client, Resource};
use moneygo_operator::crd::MoneyGoCredential;
use serde::{Deserialize, Serialize};

use crate::fill::of_verbs;
use crate::subject::{Subject, Who};
use crate::world::{Counts, Tail, World};

/// It is looked at for this long, and again for as long until it was at rest for `QUIET`.
const LOOK: Duration = Duration::from_secs(6);
const QUIET: Duration = Duration::from_secs(3);
/// The peer reads every Secret again.
const REST_LIMIT: Duration = Duration::from_mins(5);
const POLL: Duration = Duration::from_millis(20);
/// At rest is who uses, from then on, at most so much in each such time: two of the kernel's ticks, that is.
const WINDOW: Duration = Duration::from_millis(500);
const AT_REST: Duration = Duration::from_millis(20);

/// What a start beside objects with fresh tokens took.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Restart {
    /// From the start of the process to a ready probe, in milliseconds.
    pub ready_millis: f64,
    /// Until it was at rest.
    #[serde(flatten)]
    pub whole: Settled,
}

/// What whoever was started took to come to rest.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Settled {
    /// From the start of the process to when it was at rest for good, in milliseconds.
    pub steady_millis: f64,
    /// CPU until the end of the look, in milliseconds.
    pub cpu_millis: f64,
    /// Resident at the end of the look, in bytes.
    pub resident_bytes: u64,
    /// The most that was resident.
    pub peak_bytes: u64,
    /// Requests to the stand-in.
    pub grants: usize,
    /// Writes of anything but what is in the operator's own namespace.
    pub writes: f64,
    /// Reads of single objects, likewise.
    pub reads: f64,
    /// What was asked of the API server.
    pub requests: Counts,
}

/// Starts whoever is measured in a world that is served.
///
/// # Errors
/// If it does not become ready.
pub async fn restart(world: &World, who: &Who<'_>) -> Result<(Subject, Restart)> {
    world.rest().await?;
    let before = Before::of(world)?;
    let mut subject = Subject::start(world, who)?;
    let ready = subject.ready().await?.as_secs_f64() * 1000.0;
    let whole = settled(world, &subject, before).await?;
    let whole = Settled { steady_millis: whole.steady_millis.max(ready), ..whole };
    Ok((subject, Restart { ready_millis: ready, whole }))
}

/// Starts the peer, which does not say when it is ready, in a world that it has served.
///
/// # Errors
/// If it does not come to rest.
pub async fn restart_peer(world: &World, who: &Who<'_>) -> Result<Settled> {
    world.rest().await?;
    let before = Before::of(world)?;
    let subject = Subject::start(world, who)?;
    let whole = settled(world, &subject, before).await?;
    subject.kill()?;
    Ok(whole)
}

/// What there was before a start.
struct Before<'a> {
    tail: Tail<'a>,
    grants: usize,
    started: Instant,
}

impl<'a> Before<'a> {
    fn of(world: &'a World) -> Result<Self> {
        Ok(Self { tail: world.tail()?, grants: world.moneygo.request_count(), started: Instant::now() })
    }
}

async fn settled(world: &World, subject: &Subject, before: Before<'_>) -> Result<Settled> {
    let Before { mut tail, grants, started } = before;
    let mut samples: Vec<(Duration, Duration)> = Vec::new();
    let mut until = Duration::ZERO;
    while until.saturating_sub(steady_from(&samples)) < QUIET {
        ensure!(until < REST_LIMIT, "it does not come to rest:\n{}", subject.last_words());
        until += LOOK;
        while started.elapsed() < until {
            samples.push((started.elapsed(), subject.usage()?.cpu));
            tokio::time::sleep(POLL).await;
        }
    }
    tail.follow()?;
    let usage = subject.usage()?;
    Ok(Settled {
        steady_millis: steady_from(&samples).as_secs_f64() * 1000.0,
        cpu_millis: usage.cpu.as_secs_f64() * 1000.0,
        resident_bytes: usage.resident,
        peak_bytes: usage.peak,
        grants: world.moneygo.request_count() - grants,
        writes: of_verbs(&tail.counts, &["create", "update", "patch", "delete"]),
        reads: of_verbs(&tail.counts, &["get"]),
        requests: tail.counts,
    })
}

/// The floor of a start: a bare client asks for the same two lists, both at once, and reads nothing of them. Returns how long that took, in
/// milliseconds.
///
/// # Errors
/// If the API server refuses one.
pub async fn bare_lists(world: &World) -> Result<f64> {
    world.rest().await?;
    let client = world.user.client().await?;
    let started = Instant::now();
    let everything = ListParams::default();
    let objects = Request::new(MoneyGoCredential::url_path(&(), None)).list(&everything)?;
    // The metadata alone.
    let secrets = Request::new(Secret::url_path(&(), None)).list_metadata(&everything)?;
    try_join(read(&client, objects), read(&client, secrets)).await?;
    Ok(started.elapsed().as_secs_f64() * 1000.0)
}

async fn read(client: &Client, request: http::Request<Vec<u8>>) -> Result<()> {
    let answer = client.request_stream(request).await?;
    futures::io::copy_buf(answer, &mut futures::io::sink()).await?;
    Ok(())
}

/// The first instant after which no window has more than a process at rest uses.
fn steady_from(samples: &[(Duration, Duration)]) -> Duration {
    let busy = |(at, cpu): &(Duration, Duration)| {
        let mut window = samples.iter().filter(|(later, _)| (*at..=*at + WINDOW).contains(later));
        window.next_back().is_some_and(|(_, later)| later.saturating_sub(*cpu) > AT_REST)
    };
    let last = samples.iter().rposition(busy);
    let first_at_rest = last.map_or(0, |last| last + 1);
    samples.get(first_at_rest).map_or(LOOK, |(at, _)| *at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steady_is_when_the_work_ends() {
        let millis = Duration::from_millis;
        let at = |at: u64| (millis(at), millis(at.min(300)));
        let samples: Vec<_> = (0..300).map(|n| at(n * 20)).collect();
        let steady = steady_from(&samples);
        assert!((millis(260)..=millis(300)).contains(&steady), "{steady:?}");
        assert_eq!(steady_from(&[]), LOOK);
    }
}
