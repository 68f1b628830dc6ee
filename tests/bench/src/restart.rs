//! A new process finds everything in order: how soon it is ready and at rest, and what it asks for.

use std::time::{Duration, Instant};

use anyhow::Result;
use futures::future::try_join;
use k8s_openapi::api::core::v1::Secret;
use kube::core::params::ListParams;
use kube::core::{ListMeta, Request};
use kube::{Client, Resource};
use moneygo_operator::crd::MoneyGoCredential;
use serde::{Deserialize, Serialize};

use crate::fill::of_verbs;
use crate::subject::{Subject, Who};
use crate::world::{Counts, World};

/// How long it is looked at.
const LOOK: Duration = Duration::from_secs(6);
const POLL: Duration = Duration::from_millis(20);
/// At rest is who uses, from then on, at most so much in each such time: two of the kernel's ticks, that is.
const WINDOW: Duration = Duration::from_millis(500);
const AT_REST: Duration = Duration::from_millis(20);

/// Objects in a page of a list: as the operator's watches ask for them.
const PAGE: u32 = 500;

/// What a start beside objects with fresh tokens took.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Restart {
    /// From the start of the process to a ready probe, in milliseconds.
    pub ready_millis: f64,
    /// From there to when it was at rest for good.
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
    let (mut tail, grants) = (world.tail()?, world.moneygo.request_count());
    let mut subject = Subject::start(world, who)?;
    let started = Instant::now();
    let ready = subject.ready().await?;
    let mut samples = Vec::new();
    while started.elapsed() < LOOK {
        samples.push((started.elapsed(), subject.usage()?.cpu));
        tokio::time::sleep(POLL).await;
    }
    tail.follow()?;
    let usage = subject.usage()?;
    let restart = Restart {
        ready_millis: ready.as_secs_f64() * 1000.0,
        steady_millis: steady_from(&samples).max(ready).as_secs_f64() * 1000.0,
        cpu_millis: usage.cpu.as_secs_f64() * 1000.0,
        resident_bytes: usage.resident,
        peak_bytes: usage.peak,
        grants: world.moneygo.request_count() - grants,
        writes: of_verbs(&tail.counts, &["create", "update", "patch", "delete"]),
        reads: of_verbs(&tail.counts, &["get"]),
        requests: tail.counts,
    };
    Ok((subject, restart))
}

/// As much of a page as leads to the next.
#[derive(Deserialize)]
struct Page {
    metadata: ListMeta,
}

/// The floor of a start: a bare client asks for the same two lists, both at once, and reads nothing of them but where they go on.
/// Returns how long that took, in milliseconds.
///
/// # Errors
/// If the API server refuses one.
pub async fn bare_lists(world: &World) -> Result<f64> {
    world.rest().await?;
    let client = world.user.client().await?;
    let started = Instant::now();
    let objects = Request::new(MoneyGoCredential::url_path(&(), None));
    let secrets = Request::new(Secret::url_path(&(), None));
    try_join(
        pages(&client, |params| objects.list(params)),
        // The metadata alone.
        pages(&client, |params| secrets.list_metadata(params)),
    )
    .await?;
    Ok(started.elapsed().as_secs_f64() * 1000.0)
}

type BuiltRequest = Result<http::Request<Vec<u8>>, kube::core::request::Error>;

async fn pages(client: &Client, list: impl Fn(&ListParams) -> BuiltRequest) -> Result<()> {
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let request = list(&params).map_err(kube::Error::BuildRequest)?;
        let page: Page = client.request(request).await?;
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(()),
        }
    }
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
