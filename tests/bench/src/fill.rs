//! Filling: objects are there, and whoever is measured starts and serves them all. Meanwhile single objects are made beside them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::sight::{Sight, millis};
use crate::stats::real;
use crate::subject::{Subject, Who};
use crate::usage::Usage;
use crate::world::{Counts, OWN, Servers, Tail, World, target_of};

/// What a token takes at the very most.
const LIMIT_EACH: Duration = Duration::from_millis(30);
const LIMIT_LEAST: Duration = Duration::from_mins(1);
/// After the last object: for events that are still to be written.
const LATE: Duration = Duration::from_secs(2);
/// Objects are made beside it while between these shares are served.
const FROM: f64 = 0.05;
const TO: f64 = 0.9;
const PAUSE: Duration = Duration::from_millis(200);
/// Where those are made.
const BESIDE: &str = "beside";
const STATUS: &str = "update moneygocredentials/status";

/// What one filling took.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Filling {
    /// Objects, with those that were made meanwhile.
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
    /// Resident a while after the end, in bytes.
    pub settled_bytes: u64,
    /// What was asked of the API server, by verb and resource.
    pub requests: Counts,
    /// Grants.
    pub grants: usize,
    /// Reconciles a token; 0 of who has none.
    pub reconciles: f64,
    /// The longest time without a Secret being created, once the first was, in milliseconds.
    pub longest_pause_millis: f64,
    /// From an object that was made meanwhile to its Secret, in milliseconds.
    pub meanwhile_millis: Vec<f64>,
}

/// One of its figures, with its name.
pub type Figure = (&'static str, fn(&Filling) -> f64);

impl Filling {
    /// What the process used, and the servers meanwhile.
    #[must_use]
    pub fn spent(objects: usize, usage: Usage, before: Servers, after: Servers) -> Self {
        let each = |spent: Duration| spent.as_secs_f64() * 1000.0 / real(objects);
        Self {
            objects,
            cpu_millis: each(usage.cpu),
            apiserver_cpu_millis: each(after.apiserver.cpu.saturating_sub(before.apiserver.cpu)),
            etcd_cpu_millis: each(after.etcd.cpu.saturating_sub(before.etcd.cpu)),
            peak_bytes: usage.peak,
            resident_bytes: usage.resident,
            ..Self::default()
        }
    }

    /// Tokens a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        real(self.objects) / self.seconds
    }

    /// Requests of these verbs a token, but for those in the operator's own namespace.
    #[must_use]
    pub fn each(&self, verbs: &[&str]) -> f64 {
        of_verbs(&self.requests, verbs) / real(self.objects)
    }
}

/// How many requests of these verbs there were, but for those in the operator's own namespace.
#[must_use]
pub fn of_verbs(requests: &Counts, verbs: &[&str]) -> f64 {
    let counts = |what: &&String| {
        let (verb, resource) = what.split_once(' ').unwrap_or_default();
        verbs.contains(&verb) && !resource.ends_with(OWN) && resource != "version"
    };
    let count: u64 = requests.iter().filter(|(what, _)| counts(what)).map(|(_, count)| *count).sum();
    real(usize::try_from(count).unwrap_or(usize::MAX))
}

/// Has the objects of a world that was populated with `objects` served, and looks again after `settle`. The process goes on.
///
/// # Errors
/// If they are not all served in time, or a token was asked for twice.
pub async fn fill(world: &World, who: &Who<'_>, objects: usize, settle: Duration) -> Result<(Subject, Filling)> {
    world.add_namespace(BESIDE).await?;
    let sight = Sight::on(&world.admin, BESIDE);
    world.rest().await?;
    let (before, mut tail) = (world.servers()?, world.tail()?);
    let grants_before = world.moneygo.request_count();
    let limit = LIMIT_LEAST.max(LIMIT_EACH * u32::try_from(objects)?);
    let (started, started_at) = (Instant::now(), Timestamp::now());
    let subject = Subject::start(world, who)?;
    let meanwhile = add_meanwhile(world, &mut tail, objects, limit).await.with_context(|| subject.last_words())?;
    let wanted = objects + meanwhile.len();
    // Of statuses there may be more: who waits for two minutes says so.
    tail.until("create secrets", wanted as u64, limit).await.with_context(|| subject.last_words())?;
    tail.until(STATUS, wanted as u64, limit).await.with_context(|| subject.last_words())?;
    let _ = tail.until("create events", wanted as u64, LATE).await;
    let (usage, after) = (subject.usage()?, world.servers()?);
    let ended = tail.last_write.map(|at| at.duration_since(started_at).as_secs_f64());
    let grants = world.moneygo.request_count() - grants_before;
    ensure!(grants == wanted, "{grants} grants for {wanted} objects");
    let mut filling = Filling {
        seconds: ended.unwrap_or(started.elapsed().as_secs_f64()),
        grants,
        longest_pause_millis: longest_pause(&mut tail),
        requests: tail.counts,
        ..Filling::spent(wanted, usage, before, after)
    };
    if matches!(who, Who::Operator(..)) {
        filling.reconciles = subject.metric("moneygo_reconcile_total{result=\"Ok\"}").await / real(wanted);
    }
    for (name, made) in meanwhile {
        filling.meanwhile_millis.push(millis(made, sight.after(&name, 0).await?));
    }
    tokio::time::sleep(settle).await;
    filling.settled_bytes = subject.usage()?.resident;
    Ok((subject, filling))
}

/// Makes objects, one after the other, and returns their targets' names and when each was sent.
async fn add_meanwhile(
    world: &World,
    tail: &mut Tail<'_>,
    objects: usize,
    limit: Duration,
) -> Result<Vec<(String, Instant)>> {
    let share = |tail: &Tail<'_>| real(tail.secrets_at.len()) / real(objects);
    let started = Instant::now();
    let mut made = Vec::new();
    loop {
        tail.follow()?;
        if share(tail) > TO {
            return Ok(made);
        }
        ensure!(started.elapsed() < limit, "served were {:?}", tail.counts);
        if share(tail) > FROM {
            let number = objects + made.len();
            world.add_credentials(BESIDE, number).await?;
            made.push((target_of(number), Instant::now()));
            world.add_object(BESIDE, number).await?;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The longest time without a Secret being created, in milliseconds.
pub fn longest_pause(tail: &mut Tail<'_>) -> f64 {
    tail.secrets_at.sort_unstable();
    let pauses = tail.secrets_at.windows(2).map(|two| two[1].duration_since(two[0]).as_secs_f64() * 1000.0);
    pauses.fold(0.0, f64::max)
}
