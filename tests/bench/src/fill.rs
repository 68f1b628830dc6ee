//! Filling: objects are there, and whoever is measured starts and serves them all.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::subject::{Subject, Who};
use crate::world::{Counts, World, namespace_of, target_of};

/// What a token takes at the very most.
const LIMIT_EACH: Duration = Duration::from_millis(30);
const LIMIT_LEAST: Duration = Duration::from_mins(1);
/// After the last object: for events that are still to be written.
const LATE: Duration = Duration::from_secs(2);
/// An object is made in the middle of the filling when so much of it is done.
const PROBES: [f64; 3] = [0.2, 0.4, 0.6];

/// What one filling took.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Filling {
    /// Objects.
    pub objects: usize,
    /// From the start of the process to its last write.
    pub seconds: f64,
    /// CPU of whoever is measured, in milliseconds a token.
    pub cpu_millis: f64,
    /// CPU of the API server, likewise.
    pub apiserver_cpu_millis: f64,
    /// CPU of etcd, likewise.
    pub etcd_cpu_millis: f64,
    /// The most that was resident, in bytes.
    pub peak_bytes: u64,
    /// Resident at the end, in bytes.
    pub resident_bytes: u64,
    /// What was asked of the API server, by verb and resource.
    pub requests: Counts,
    /// Grants.
    pub grants: usize,
    /// Reconciles a token; 0 of who has none.
    pub reconciles: f64,
    /// From an object that was made in the middle of the filling to its Secret, in milliseconds.
    pub probe_millis: Vec<f64>,
}

impl Filling {
    /// Tokens a second.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a count of objects")]
    pub fn rate(&self) -> f64 {
        self.objects as f64 / self.seconds
    }

    /// Reads and writes a token, but for lists and watches.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a count of requests")]
    pub fn each(&self, verbs: &[&str]) -> f64 {
        let of_objects = |what: &&String| {
            let (verb, resource) = what.split_once(' ').unwrap_or_default();
            verbs.contains(&verb) && resource != "leases"
        };
        let count: u64 = self.requests.iter().filter(|(what, _)| of_objects(what)).map(|(_, count)| count).sum();
        count as f64 / self.objects as f64
    }
}

/// Has the objects of a world that was populated with `objects` served. The process goes on.
///
/// # Errors
/// If they are not all served in time.
#[expect(clippy::cast_precision_loss, reason = "a count of objects")]
pub async fn fill(world: &World, who: &Who<'_>, objects: usize, probe: bool) -> Result<(Subject, Filling)> {
    world.rest().await?;
    let (before, mut tail) = (world.servers()?, world.tail()?);
    let grants_before = world.moneygo.request_count();
    let limit = LIMIT_LEAST.max(LIMIT_EACH * u32::try_from(objects)?);
    let (started, started_at) = (Instant::now(), Timestamp::now());
    let subject = Subject::start(world, who)?;
    let mut probe_millis = Vec::new();
    let probes = if probe { PROBES.as_slice() } else { &[] };
    for (number, share) in (objects..).zip(probes) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part of a count of objects")]
        let done = (objects as f64 * share) as u64;
        tail.until("create secrets", done, limit).await?;
        probe_millis.push(serve_one(world, number).await?.as_secs_f64() * 1000.0);
    }
    let wanted = (objects + probes.len()) as u64;
    tail.until("patch moneygocredentials/status", wanted, limit).await.with_context(|| format!("{who:?}"))?;
    let _ = tail.until("create events", wanted, LATE).await;
    let usage = subject.usage()?;
    let after = world.servers()?;
    let seconds =
        tail.last_write.map_or(started.elapsed().as_secs_f64(), |at| at.duration_since(started_at).as_secs_f64());
    let tokens = wanted as f64;
    let reconciles = match who {
        Who::Operator(..) => subject.metric("moneygo_reconcile_total{result=\"Ok\"}").await / tokens,
        Who::Floor(_) => 0.0,
    };
    let grants = world.moneygo.request_count() - grants_before;
    ensure!(grants == objects + probes.len(), "{grants} grants for {wanted} objects");
    let each = |spent: Duration| spent.as_secs_f64() * 1000.0 / tokens;
    let filling = Filling {
        objects: objects + probes.len(),
        seconds,
        cpu_millis: each(usage.cpu),
        apiserver_cpu_millis: each(after.apiserver.cpu - before.apiserver.cpu),
        etcd_cpu_millis: each(after.etcd.cpu - before.etcd.cpu),
        peak_bytes: usage.peak,
        resident_bytes: usage.resident,
        requests: tail.counts,
        grants,
        reconciles,
        probe_millis,
    };
    Ok((subject, filling))
}

/// Makes one object, and waits for its Secret.
///
/// # Errors
/// If it does not come within ten seconds.
pub async fn serve_one(world: &World, number: usize) -> Result<Duration> {
    use k8s_openapi::api::core::v1::Secret;
    let _ = world.add_namespace_of(number).await;
    world.add_credentials(number).await?;
    let secrets: kube::Api<Secret> = kube::Api::namespaced(world.admin.clone(), &namespace_of(number));
    let started = Instant::now();
    world.add_object(number).await?;
    while secrets.get_metadata_opt(&target_of(number)).await?.is_none() {
        ensure!(started.elapsed() < Duration::from_mins(1), "an object made in between is not served");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(started.elapsed())
}
