//! Leader election over a `coordination.k8s.io/v1` Lease, as client-go's `tools/leaderelection` does it.
//!
//! - Every write is conditional on the Lease's `resourceVersion`.
//! - Whether another's lease has run out is judged by how long its record has not changed *as seen from
//!   here*, never by the times that it holds: clocks of two machines need not agree.
//! - To lead is a deadline, not a flag: [`Leadership::is_leader`] turns false by itself when the lease was not
//!   renewed in time, even in a process that was stopped or a machine that was suspended.
//!
//! RBAC: `create` on `leases` in the Lease's namespace, `get` and `update` on the one of its name.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, Moment};
use crate::error::{has_code, if_there, innermost};

/// The shortest lease duration: below it, two slow calls to the API server lose the lease.
pub const DURATION_MIN: Duration = Duration::from_secs(3);
/// The longest lease duration, and the longest that another's record is believed.
pub const DURATION_MAX: Duration = Duration::from_hours(1);
/// Who has not listed what there is by then stands for election all the same.
pub const STANDS_WITHIN: Duration = Duration::from_secs(20);
/// How long giving the lease up may take on shutdown.
pub const RELEASE_LIMIT: Duration = Duration::from_secs(2);

/// By how much of the retry period an attempt to acquire is put off at most, as in client-go.
const JITTER_FACTOR: f64 = 1.2;

/// Which Lease is fought for, by whom, and how long it holds.
#[derive(Debug, Clone)]
pub struct LeaseConfig {
    namespace: String,
    name: String,
    identity: String,
    duration: Duration,
}

/// Why a [`LeaseConfig`] is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseConfigError {
    /// The duration is out of bounds, or not whole seconds (which is all that a Lease can say).
    #[error("a lease duration must be whole seconds from 3s to 1h")]
    Duration,
    /// A name that is needed is empty.
    #[error("the lease's {0} must not be empty")]
    Empty(&'static str),
}

impl LeaseConfig {
    /// `identity` must differ between any two processes that ever run at once. `duration` is whole seconds from
    /// [`DURATION_MIN`] to [`DURATION_MAX`]; two thirds of it are the renew deadline, two fifteenths
    /// the retry period (client-go's 15, 10 and 2 s).
    ///
    /// # Errors
    /// An empty name, or a duration out of bounds.
    pub fn new(
        namespace: impl Into<String>,
        name: impl Into<String>,
        identity: impl Into<String>,
        duration: Duration,
    ) -> Result<Self, LeaseConfigError> {
        let config = Self { namespace: namespace.into(), name: name.into(), identity: identity.into(), duration };
        for (what, value) in [("namespace", &config.namespace), ("name", &config.name), ("identity", &config.identity)]
        {
            if value.is_empty() {
                return Err(LeaseConfigError::Empty(what));
            }
        }
        let bounded = (DURATION_MIN..=DURATION_MAX).contains(&duration);
        if !bounded || duration.subsec_nanos() != 0 {
            return Err(LeaseConfigError::Duration);
        }
        Ok(config)
    }

    /// How long after the start of the last write that succeeded this process may still lead.
    fn renew_deadline(&self) -> Duration {
        self.duration * 10 / 15
    }

    fn retry_period(&self) -> Duration {
        self.duration * 2 / 15
    }

    /// Half of the renew deadline, as client-go's `NewFromKubeconfig` sets it.
    fn call_timeout(&self) -> Duration {
        self.renew_deadline() / 2
    }

    fn duration_secs(&self) -> i32 {
        i32::try_from(self.duration.as_secs()).unwrap_or(i32::MAX)
    }
}

/// The Lease as last read or written, and when its record was first seen as it is.
#[derive(Debug, Clone)]
struct Observed {
    lease: Lease,
    since: Moment,
}

impl Observed {
    fn spec(&self) -> Option<&LeaseSpec> {
        self.lease.spec.as_ref()
    }

    fn holder(&self) -> &str {
        self.spec().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
    }
}

/// What an observed record asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Nobody holds it, or its holder has been silent for too long.
    Acquire,
    /// It is ours.
    Renew,
    /// Another holds it.
    Wait,
}

fn decide(observed: &Observed, config: &LeaseConfig, now: Moment) -> Step {
    match observed.holder() {
        "" => Step::Acquire,
        holder if holder == config.identity => Step::Renew,
        _ if now.since(observed.since) >= believed_duration(observed, config) => Step::Acquire,
        _ => Step::Wait,
    }
}

/// The holder's own duration; ours where the record has none that makes sense.
fn believed_duration(observed: &Observed, config: &LeaseConfig) -> Duration {
    observed
        .spec()
        .and_then(|spec| spec.lease_duration_seconds)
        .and_then(|secs| u64::try_from(secs).ok())
        .filter(|secs| *secs > 0)
        .map_or(config.duration, |secs| Duration::from_secs(secs).min(DURATION_MAX))
}

fn version_of(lease: &Lease) -> Option<u64> {
    lease.metadata.resource_version.as_deref()?.parse().ok()
}

/// Keeps `since` while the record stays the same. Labels and the like do not count: they are no sign of life.
fn observe(before: Option<Observed>, lease: Lease, now: Moment) -> Observed {
    let since = before.filter(|before| before.lease.spec == lease.spec).map_or(now, |before| before.since);
    Observed { lease, since }
}

/// The record that takes the lease or keeps it.
fn held(before: Option<&LeaseSpec>, config: &LeaseConfig, wall: Timestamp) -> LeaseSpec {
    let mut spec = before.cloned().unwrap_or_default();
    let renewed = spec.holder_identity.as_deref() == Some(&config.identity);
    if !renewed {
        let transitions = spec.lease_transitions.unwrap_or_default();
        spec.lease_transitions = Some(before.map_or(0, |_| transitions.saturating_add(1)));
    }
    if !renewed || spec.acquire_time.is_none() {
        spec.acquire_time = Some(MicroTime(wall));
    }
    spec.holder_identity = Some(config.identity.clone());
    spec.lease_duration_seconds = Some(config.duration_secs());
    spec.renew_time = Some(MicroTime(wall));
    spec
}

/// The record that lets the next candidate in at once.
fn released(before: &LeaseSpec, wall: Timestamp) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(String::new()),
        lease_duration_seconds: Some(1),
        acquire_time: Some(MicroTime(wall)),
        renew_time: Some(MicroTime(wall)),
        ..before.clone()
    }
}

/// Whether this process leads. Cheap to clone and to ask.
#[derive(Clone)]
pub struct Leadership(Arc<Term>);

struct Term {
    clock: Clock,
    length: Option<Duration>,
    /// The start of the last write that took or kept the lease; none while not leading.
    renewed: Mutex<Option<Moment>>,
    leading: watch::Sender<bool>,
    tried: CancellationToken,
}

impl Leadership {
    /// For a process that runs without an election: it always leads.
    #[must_use]
    pub fn always() -> Self {
        let always = Self::new(Clock::SYSTEM, None, true);
        always.0.tried.cancel();
        always
    }

    fn new(clock: Clock, length: Option<Duration>, leading: bool) -> Self {
        let (leading, tried) = (watch::Sender::new(leading), CancellationToken::new());
        Self(Arc::new(Term { clock, length, renewed: Mutex::new(None), leading, tried }))
    }

    /// Whether this process leads now: the lease was renewed less than a renew deadline ago, by every clock.
    /// Ask right before each act that only a leader may start.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.0.length.is_none() || self.remaining(self.0.clock.moment()).is_some()
    }

    /// Tells of each change: true when leadership is acquired (time to look at everything), false when it is seen
    /// to be lost, which can be later than [`Self::is_leader`] turns false.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<bool> {
        self.0.leading.subscribe()
    }

    /// Returns once it is known whether this process leads to begin with, or that the Lease cannot be had.
    pub async fn tried(&self) {
        self.0.tried.cancelled().await;
    }

    fn renewed(&self) -> std::sync::MutexGuard<'_, Option<Moment>> {
        self.0.renewed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remaining(&self, now: Moment) -> Option<Duration> {
        let (length, renewed) = (self.0.length?, (*self.renewed())?);
        length.checked_sub(now.since(renewed)).filter(|left| !left.is_zero())
    }

    /// A write that was begun at `begun` has taken or kept the lease.
    fn extend(&self, begun: Moment) {
        // Time may have ended the term before anybody said so: who looked meanwhile stood still, and is to look again.
        let led = self.is_leader();
        *self.renewed() = Some(begun);
        self.0.leading.send_if_modified(|leading| !std::mem::replace(leading, true) || !led);
    }

    /// Whether there was anything to end.
    fn end(&self) -> bool {
        *self.renewed() = None;
        self.0.leading.send_if_modified(|leading| std::mem::replace(leading, false))
    }
}

impl fmt::Debug for Leadership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Leadership").field(&self.is_leader()).finish()
    }
}

/// Stands for election. Nothing happens until [`Election::run`] is polled. The wall clock gives
/// the times that the record shows to people; no decision rests on them.
#[must_use]
pub fn elect(client: Client, config: LeaseConfig, clock: Clock) -> (Leadership, Election) {
    let leadership = Leadership::new(clock, Some(config.renew_deadline()), false);
    let leases = Api::namespaced(client, &config.namespace);
    let election = Election {
        leases,
        config,
        clock,
        leadership: leadership.clone(),
        observed: None,
        newest: 0,
        reported: None,
        pauses: 0,
    };
    (leadership, election)
}

/// One candidate; see [`elect`].
pub struct Election {
    leases: Api<Lease>,
    config: LeaseConfig,
    clock: Clock,
    leadership: Leadership,
    observed: Option<Observed>,
    /// The newest version of the Lease that was ever seen, also of one that was deleted since.
    newest: u64,
    reported: Option<Report>,
    /// Waits for another's lease so far.
    pauses: u64,
}

/// What was last logged, so that only changes are.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Report {
    Leading,
    Following(String),
    Failing(String),
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("{}", describe(.0))]
    Api(#[from] kube::Error),
    #[error("the API server shows an earlier version of the lease than before: its etcd was restored")]
    WentBack,
}

impl Failure {
    fn has_code(&self, code: u16) -> bool {
        matches!(self, Self::Api(error) if has_code(error, code))
    }

    /// Someone wrote between our read and our write: to be read again, no sign of trouble.
    fn is_stale(&self) -> bool {
        self.has_code(409) || self.has_code(404)
    }
}

/// The API server's own words for a refusal, else the innermost cause ("Connection refused").
fn describe(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return format!("{} {}: {:.200}", status.code, status.reason, status.message);
    }
    innermost(error)
}

impl Election {
    /// As [`Self::run`], but stands for election only once `listed` is done: a leader that is still listing would keep a replica from leading that is
    /// ready to. At the latest after [`STANDS_WITHIN`], for somebody has to say it where a token ends.
    pub async fn run_after(mut self, listed: impl Future<Output = ()>, shutdown: CancellationToken) {
        let listed = time::timeout(STANDS_WITHIN, listed);
        let went_back = async {
            tokio::select! {
                _ = listed => false,
                // For how long a holder has been silent is known then.
                () = self.look_on() => true,
            }
        };
        match shutdown.run_until_cancelled(went_back).await {
            Some(true) => tell_of_restored(),
            _ => self.run(shutdown).await,
        }
    }

    /// Returns where etcd was set back.
    async fn look_on(&mut self) {
        while !matches!(self.look().await, Err(Failure::WentBack)) {
            time::sleep(self.config.retry_period()).await;
        }
    }

    /// Acquires the lease, keeps it, and fights for it again when lost, until `shutdown` is cancelled; then gives it up
    /// within [`RELEASE_LIMIT`]. Cancel only when nothing is left to do that takes a leader.
    ///
    /// Ends by itself where etcd was set back to an earlier state: the API server's watches, asked for what came after a version that is
    /// yet to come, show nothing then, and all that they have shown is to be seen anew.
    pub async fn run(mut self, shutdown: CancellationToken) {
        if shutdown.run_until_cancelled(self.campaign()).await.is_some() {
            tell_of_restored();
            // What names this process there is given up all the same.
            self.newest = 0;
        }
        self.leadership.end();
        if time::timeout(RELEASE_LIMIT, self.release()).await.is_err() {
            tracing::warn!("could not give the lease up in time: it runs out by itself");
        }
    }

    async fn campaign(&mut self) {
        loop {
            self.lapse();
            let result = self.attempt().await;
            self.lapse();
            if matches!(result, Err(Failure::WentBack)) {
                return;
            }
            self.report(result);
            self.leadership.0.tried.cancel();
            time::sleep(self.pause()).await;
        }
    }

    /// Ends a leadership that was not renewed in time, so that winning it again is news.
    fn lapse(&self) {
        if !self.leadership.is_leader() && self.leadership.end() {
            tracing::warn!("lost the lease: it could not be renewed in time");
        }
    }

    /// Until the next attempt, but not beyond the end of our own term.
    fn pause(&mut self) -> Duration {
        let retry = self.config.retry_period();
        if let Some(left) = self.leadership.remaining(self.clock.moment()) {
            return retry.min(left);
        }
        self.pauses += 1;
        retry.mul_f64(1.0 + JITTER_FACTOR * spread(&self.config.identity, self.pauses))
    }

    /// One attempt to acquire or to renew; ends with our own term at the latest.
    async fn attempt(&mut self) -> Result<(), Failure> {
        let limit = self.leadership.remaining(self.clock.moment()).unwrap_or_else(|| self.config.renew_deadline());
        time::timeout(limit, self.try_acquire_or_renew()).await.unwrap_or(Err(Failure::Timeout(limit)))
    }

    async fn try_acquire_or_renew(&mut self) -> Result<(), Failure> {
        if self.leadership.is_leader() {
            match self.hold(self.observed.clone()).await {
                Err(failure) if failure.is_stale() => {}
                result => return result,
            }
        }
        let Some(observed) = self.look().await? else {
            return self.hold(None).await;
        };
        match decide(&observed, &self.config, self.clock.moment()) {
            Step::Acquire | Step::Renew => self.hold(Some(observed)).await,
            Step::Wait => {
                self.leadership.end();
                Ok(())
            }
        }
    }

    /// Reads the Lease; none where there is none.
    async fn look(&mut self) -> Result<Option<Observed>, Failure> {
        let found = self.bounded(async { if_there(self.leases.get(&self.config.name).await) }).await?;
        let before = self.observed.take();
        if let Some(found) = &found {
            self.see(found)?;
        }
        self.observed = found.map(|lease| observe(before, lease, self.clock.moment()));
        Ok(self.observed.clone())
    }

    /// Versions of Leases only ever grow (KEP-5504), and a read without a version is answered by etcd itself: one that is older was restored.
    fn see(&mut self, lease: &Lease) -> Result<(), Failure> {
        let Some(version) = version_of(lease) else { return Ok(()) };
        if version < self.newest {
            return Err(Failure::WentBack);
        }
        self.newest = version;
        Ok(())
    }

    /// Writes the record that makes the lease ours, on the condition that nobody wrote since `observed`.
    async fn hold(&mut self, observed: Option<Observed>) -> Result<(), Failure> {
        let begun = self.clock.moment();
        let mut lease = observed.map_or_else(|| self.new_lease(), |observed| observed.lease);
        lease.spec = Some(held(lease.spec.as_ref(), &self.config, self.clock.now()));
        let lease = self.write(&lease).await?;
        self.see(&lease)?;
        self.observed = Some(Observed { lease, since: self.clock.moment() });
        self.leadership.extend(begun);
        Ok(())
    }

    fn new_lease(&self) -> Lease {
        let metadata = ObjectMeta { name: Some(self.config.name.clone()), ..ObjectMeta::default() };
        Lease { metadata, spec: None }
    }

    async fn write(&self, lease: &Lease) -> Result<Lease, Failure> {
        let params = PostParams::default();
        if lease.metadata.resource_version.is_none() {
            return self.bounded(self.leases.create(&params, lease)).await;
        }
        self.bounded(self.leases.replace(&self.config.name, &params, lease)).await
    }

    async fn bounded<T>(&self, call: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
        let limit = self.config.call_timeout();
        let answer = time::timeout(limit, call).await.map_err(|_| Failure::Timeout(limit))?;
        Ok(answer?)
    }

    /// Reads first: a write of ours that was cut off may have landed all the same.
    async fn release(&mut self) {
        let result = loop {
            match self.try_release().await {
                Err(failure) if failure.has_code(409) => {}
                result => break result,
            }
        };
        match result {
            Ok(true) => tracing::info!("gave the lease up"),
            Ok(false) => {}
            Err(failure) => {
                tracing::warn!(error = %failure, "could not give the lease up: it runs out by itself");
            }
        }
    }

    /// Whether there was anything to give up.
    async fn try_release(&mut self) -> Result<bool, Failure> {
        let Some(Observed { mut lease, .. }) = self.look().await? else {
            return Ok(false);
        };
        let Some(spec) = lease.spec.filter(|spec| spec.holder_identity.as_ref() == Some(&self.config.identity)) else {
            return Ok(false);
        };
        lease.spec = Some(released(&spec, self.clock.now()));
        self.write(&lease).await.map(|_| true)
    }

    fn report(&mut self, result: Result<(), Failure>) {
        let report = match result {
            // Two candidates met: the next attempt sees who won.
            Err(failure) if failure.has_code(409) => return,
            Err(failure) => Report::Failing(failure.to_string()),
            Ok(()) if self.leadership.is_leader() => Report::Leading,
            Ok(()) => Report::Following(self.observed.as_ref().map(|o| o.holder().to_owned()).unwrap_or_default()),
        };
        if self.reported.as_ref() == Some(&report) {
            return;
        }
        let LeaseConfig { namespace, name, identity, .. } = &self.config;
        match &report {
            Report::Leading => {
                tracing::info!(namespace, name, reason = "Leading", identity, "holding the lease: this replica leads");
            }
            Report::Following(holder) => {
                tracing::info!(namespace, name, reason = "Following", holder, "another replica leads");
            }
            Report::Failing(error) => {
                tracing::warn!(namespace, name, reason = "LeaseFailing", error, "cannot reach the lease");
            }
        }
        self.reported = Some(report);
    }
}

fn tell_of_restored() {
    tracing::error!(
        reason = "EtcdRestored",
        "the API server shows an earlier state than before: ending, to begin afresh"
    );
}

/// From 0 to 1, as good as random: no two candidates have the same identity.
fn spread(identity: &str, pauses: u64) -> f64 {
    let digest = ring::digest::digest(&ring::digest::SHA256, format!("{identity} {pauses}").as_bytes());
    let bytes = digest.as_ref().first_chunk().copied().unwrap_or_default();
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Method, Request, Response, StatusCode};
    use http_body_util::BodyExt;
    use kube::client::Body;
    use serde_json::{Value, json};
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicU64, Ordering};
    use tokio::time::Instant;

    const WALL: &str = "2026-01-02T03:04:05Z";

    fn wall() -> Timestamp {
        WALL.parse().unwrap()
    }

    /// A clock that moves, for each renewal must differ from the last.
    fn ticking() -> Timestamp {
        static MILLIS: AtomicU64 = AtomicU64::new(0);
        wall() + Duration::from_millis(MILLIS.fetch_add(1, Ordering::Relaxed))
    }

    fn config(identity: &str) -> LeaseConfig {
        LeaseConfig::new("ns", "operator", identity, Duration::from_secs(15)).unwrap()
    }

    fn at(base: Moment, monotonic_secs: u64, boot_secs: u64) -> Moment {
        Moment {
            monotonic: base.monotonic + Duration::from_secs(monotonic_secs),
            boot: base.boot + Duration::from_secs(boot_secs),
        }
    }

    fn held_by(holder: &str, duration_secs: Option<i32>, since: Moment) -> Observed {
        let spec = LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: duration_secs,
            ..LeaseSpec::default()
        };
        Observed { lease: Lease { spec: Some(spec), ..Lease::default() }, since }
    }

    #[test]
    fn config_bounds_the_duration() {
        let new = |duration| LeaseConfig::new("ns", "n", "me", duration).map(|_| ());
        assert_eq!(new(DURATION_MIN), Ok(()));
        assert_eq!(new(DURATION_MAX), Ok(()));
        for bad in [Duration::ZERO, Duration::from_secs(2), Duration::from_millis(3500), DURATION_MAX * 2] {
            assert_eq!(new(bad), Err(LeaseConfigError::Duration), "{bad:?}");
        }
        let empty = LeaseConfig::new("", "n", "me", DURATION_MIN);
        assert_eq!(empty.map(|_| ()), Err(LeaseConfigError::Empty("namespace")));
    }

    #[test]
    fn config_scales_client_gos_times() {
        let default = config("me");
        assert_eq!(default.renew_deadline(), Duration::from_secs(10));
        assert_eq!(default.retry_period(), Duration::from_secs(2));
        let short = LeaseConfig::new("ns", "n", "me", DURATION_MIN).unwrap();
        assert_eq!(short.renew_deadline(), Duration::from_secs(2));
        assert_eq!(short.retry_period(), Duration::from_millis(400));
    }

    #[test]
    fn anothers_lease_is_waited_for_by_local_time() {
        let (me, start) = (config("me"), Clock::SYSTEM.moment());
        let other = held_by("other", Some(15), start);
        assert_eq!(decide(&other, &me, at(start, 14, 14)), Step::Wait);
        assert_eq!(decide(&other, &me, at(start, 15, 15)), Step::Acquire);
        // Suspended for most of it: only the boot clock went on.
        assert_eq!(decide(&other, &me, at(start, 1, 15)), Step::Acquire);
        assert_eq!(decide(&held_by("other", Some(30), start), &me, at(start, 29, 29)), Step::Wait);
    }

    #[test]
    fn a_record_without_a_sane_duration_is_waited_for_as_ours() {
        let (me, start) = (config("me"), Clock::SYSTEM.moment());
        for duration in [None, Some(0), Some(-1)] {
            let other = held_by("other", duration, start);
            assert_eq!(decide(&other, &me, at(start, 14, 14)), Step::Wait);
            assert_eq!(decide(&other, &me, at(start, 15, 15)), Step::Acquire);
        }
        let endless = held_by("other", Some(i32::MAX), start);
        assert_eq!(decide(&endless, &me, at(start, 3600, 3600)), Step::Acquire);
    }

    #[test]
    fn a_free_lease_is_acquired_and_ours_renewed() {
        let (me, start) = (config("me"), Clock::SYSTEM.moment());
        assert_eq!(decide(&held_by("", Some(1), start), &me, start), Step::Acquire);
        let no_spec = Observed { lease: Lease::default(), since: start };
        assert_eq!(decide(&no_spec, &me, start), Step::Acquire);
        assert_eq!(decide(&held_by("me", Some(15), start), &me, at(start, 99, 99)), Step::Renew);
    }

    #[test]
    fn only_a_changed_record_counts_as_a_sign_of_life() {
        let start = Clock::SYSTEM.moment();
        let before = held_by("other", Some(15), start);
        let later = at(start, 5, 5);
        let mut labelled = before.lease.clone();
        labelled.metadata.resource_version = Some("2".into());
        assert_eq!(observe(Some(before.clone()), labelled, later).since.since(start), Duration::ZERO);
        let mut renewed = before.lease.clone();
        renewed.spec.get_or_insert_default().renew_time = Some(MicroTime(wall()));
        assert_eq!(observe(Some(before), renewed, later).since.since(start), Duration::from_secs(5));
    }

    #[test]
    fn transitions_count_changes_of_holder() {
        let me = config("me");
        let first = held(None, &me, wall());
        assert_eq!(first.lease_transitions, Some(0));
        assert_eq!(first.acquire_time, Some(MicroTime(wall())));
        let later = wall() + Duration::from_secs(2);
        let renewed = held(Some(&first), &me, later);
        assert_eq!((renewed.lease_transitions, &renewed.acquire_time), (Some(0), &first.acquire_time));
        assert_eq!(renewed.renew_time, Some(MicroTime(later)));
        let free = released(&renewed, later);
        assert_eq!((free.holder_identity.as_deref(), free.lease_duration_seconds), (Some(""), Some(1)));
        assert_eq!(free.lease_transitions, Some(0));
        assert_eq!(held(Some(&free), &config("other"), later).lease_transitions, Some(1));
    }

    #[test]
    fn leadership_is_a_deadline_on_both_clocks() {
        let leadership = Leadership::new(Clock::SYSTEM, Some(Duration::from_secs(10)), false);
        let start = Clock::SYSTEM.moment();
        assert!(leadership.remaining(start).is_none());
        leadership.extend(start);
        assert_eq!(leadership.remaining(at(start, 4, 0)), Some(Duration::from_secs(6)));
        assert!(leadership.remaining(at(start, 10, 0)).is_none());
        assert!(leadership.remaining(at(start, 1, 10)).is_none(), "suspended for 9 s");
        leadership.end();
        assert!(!leadership.is_leader());
    }

    #[tokio::test(start_paused = true)]
    async fn a_term_that_ran_out_unnoticed_is_told_of_as_it_goes_on() {
        let clock = Clock::new(Timestamp::default, || Duration::ZERO);
        let leadership = Leadership::new(clock, Some(Duration::from_secs(10)), false);
        let mut changed = leadership.changed();
        leadership.extend(clock.moment());
        assert!(*changed.borrow_and_update());
        tokio::time::advance(Duration::from_secs(4)).await;
        leadership.extend(clock.moment());
        assert!(!changed.has_changed().unwrap(), "it goes on");
        tokio::time::advance(Duration::from_secs(11)).await;
        assert!(!leadership.is_leader());
        leadership.extend(clock.moment());
        assert!(changed.has_changed().unwrap(), "who looked meanwhile stood still");
    }

    #[test]
    fn without_an_election_it_always_leads() {
        let always = Leadership::always();
        assert!(always.is_leader() && *always.changed().borrow());
        assert_eq!(format!("{always:?}"), "Leadership(true)");
    }

    /// A Lease in memory with an API server's optimistic concurrency.
    #[derive(Default)]
    struct Store {
        lease: Option<Value>,
        version: u64,
        calls: Vec<Method>,
        down: bool,
        hangs: bool,
        conflicts: u32,
    }

    type SharedStore = Arc<Mutex<Store>>;

    impl Store {
        fn answer(&mut self, method: &Method, mut body: Value) -> (StatusCode, Value) {
            self.calls.push(method.clone());
            if self.down {
                return failure(StatusCode::SERVICE_UNAVAILABLE);
            }
            let version = |lease: &Value| lease["metadata"]["resourceVersion"].clone();
            let stored = self.lease.as_ref().map(version);
            match (method, stored) {
                (&Method::GET, Some(_)) => (StatusCode::OK, self.lease.clone().unwrap()),
                (&Method::POST, Some(_)) => failure(StatusCode::CONFLICT),
                (&Method::GET | &Method::PUT, None) => failure(StatusCode::NOT_FOUND),
                (&Method::PUT, Some(stored)) if stored != version(&body) || self.conflicts > 0 => {
                    self.conflicts = self.conflicts.saturating_sub(1);
                    failure(StatusCode::CONFLICT)
                }
                _ => {
                    self.version += 1;
                    body["metadata"]["resourceVersion"] = json!(self.version.to_string());
                    self.lease = Some(body.clone());
                    (StatusCode::OK, body)
                }
            }
        }
    }

    fn failure(code: StatusCode) -> (StatusCode, Value) {
        let reason = code.canonical_reason().unwrap().replace(' ', "");
        (
            code,
            json!({"kind": "Status", "status": "Failure", "reason": reason, "message": "scripted", "code": code.as_u16()}),
        )
    }

    fn client(store: &SharedStore) -> Client {
        let store = Arc::clone(store);
        let service = tower::service_fn(move |request: Request<Body>| {
            let store = Arc::clone(&store);
            async move {
                if store.lock().unwrap().hangs {
                    std::future::pending::<()>().await;
                }
                let (parts, body) = request.into_parts();
                assert!(parts.uri.path().starts_with("/apis/coordination.k8s.io/v1/namespaces/ns/leases"));
                let body = body.collect().await.unwrap().to_bytes();
                let body = serde_json::from_slice(&body).unwrap_or_default();
                let (code, answer) = store.lock().unwrap().answer(&parts.method, body);
                let body = Body::from(serde_json::to_vec(&answer).unwrap());
                Ok::<_, Infallible>(Response::builder().status(code).body(body).unwrap())
            }
        });
        Client::new(service, "ns")
    }

    struct Candidate {
        leadership: Leadership,
        shutdown: CancellationToken,
        running: tokio::task::JoinHandle<()>,
    }

    impl Candidate {
        fn start(store: &SharedStore, identity: &str) -> Self {
            let (leadership, election) = elect(client(store), config(identity), Clock::new(ticking, || Duration::ZERO));
            let shutdown = CancellationToken::new();
            let running = tokio::spawn(election.run(shutdown.clone()));
            Self { leadership, shutdown, running }
        }

        /// How long it took until it led, or no longer did.
        async fn until(&self, leads: bool) -> Duration {
            let start = Instant::now();
            let mut changed = self.leadership.changed();
            let change = changed.wait_for(|leading| *leading == leads);
            let _seen = time::timeout(Duration::from_mins(2), change).await.unwrap().unwrap();
            start.elapsed()
        }

        async fn stop(self) {
            self.shutdown.cancel();
            self.running.await.unwrap();
            assert!(!self.leadership.is_leader());
        }
    }

    fn spec(store: &SharedStore) -> Value {
        store.lock().unwrap().lease.as_ref().unwrap()["spec"].clone()
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_creates_the_lease_and_a_release_lets_the_second_in() {
        let store = SharedStore::default();
        let first = Candidate::start(&store, "first");
        first.until(true).await;
        let created = spec(&store);
        let times = [&created["acquireTime"], &created["renewTime"]];
        for time in times.map(|time| time.as_str().unwrap()) {
            assert_eq!(time.len(), "2026-01-02T03:04:05.000000Z".len(), "microseconds: {time}");
        }
        assert_eq!(created["holderIdentity"], "first");
        assert_eq!((&created["leaseDurationSeconds"], &created["leaseTransitions"]), (&json!(15), &json!(0)));
        let second = Candidate::start(&store, "second");
        time::sleep(Duration::from_mins(1)).await;
        assert!(first.leadership.is_leader() && !second.leadership.is_leader());

        first.stop().await;
        assert_eq!(spec(&store)["holderIdentity"], "");
        assert_eq!(spec(&store)["leaseDurationSeconds"], 1);
        assert!(second.until(true).await <= Duration::from_millis(4400), "a retry period and its jitter");
        assert_eq!(spec(&store)["leaseTransitions"], 1);
        second.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_leader_is_replaced_after_its_lease_ran_out() {
        let store = SharedStore::default();
        let first = Candidate::start(&store, "first");
        first.until(true).await;
        let second = Candidate::start(&store, "second");
        time::sleep(Duration::from_secs(10)).await;
        first.running.abort();
        let waited = second.until(true).await;
        assert!((10..=20).contains(&waited.as_secs()), "{waited:?}");
        assert!(!first.leadership.is_leader(), "it had given up before");
        second.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_renews_with_one_write_each_retry_period() {
        let store = SharedStore::default();
        let leader = Candidate::start(&store, "leader");
        leader.until(true).await;
        store.lock().unwrap().calls.clear();
        time::sleep(Duration::from_millis(20_500)).await;
        assert_eq!(store.lock().unwrap().calls, vec![Method::PUT; 10]);
        leader.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_unreachable_server_ends_leadership_at_the_renew_deadline() {
        for hangs in [false, true] {
            let store = SharedStore::default();
            let leader = Candidate::start(&store, "leader");
            leader.until(true).await;
            (store.lock().unwrap().down, store.lock().unwrap().hangs) = (!hangs, hangs);
            assert_eq!(leader.until(false).await.as_secs(), 10);
            assert!(!leader.leadership.is_leader());
            (store.lock().unwrap().down, store.lock().unwrap().hangs) = (false, false);
            leader.until(true).await;
            assert_eq!(spec(&store)["leaseTransitions"], 0, "the holder never changed");
            leader.stop().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_conflict_is_read_again_and_kept_or_lost() {
        let store = SharedStore::default();
        let leader = Candidate::start(&store, "leader");
        leader.until(true).await;
        store.lock().unwrap().conflicts = 1;
        time::sleep(Duration::from_secs(15)).await;
        assert!(leader.leadership.is_leader());

        {
            let mut store = store.lock().unwrap();
            let lease = store.lease.as_mut().unwrap();
            lease["spec"]["holderIdentity"] = json!("thief");
            lease["metadata"]["resourceVersion"] = json!("stolen");
        }
        assert!(leader.until(false).await <= Duration::from_secs(2));
        leader.stop().await;
        assert_eq!(spec(&store)["holderIdentity"], "thief", "what is another's is not released");
    }

    #[tokio::test(start_paused = true)]
    async fn a_deleted_lease_is_created_again() {
        let store = SharedStore::default();
        let leader = Candidate::start(&store, "leader");
        leader.until(true).await;
        store.lock().unwrap().lease = None;
        time::sleep(Duration::from_secs(3)).await;
        assert!(leader.leadership.is_leader());
        assert_eq!(spec(&store)["holderIdentity"], "leader");
        leader.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_etcd_that_was_set_back_ends_leader_and_follower() {
        for had_the_lease in [true, false] {
            let store = SharedStore::default();
            let leader = Candidate::start(&store, "leader");
            leader.until(true).await;
            let follower = Candidate::start(&store, "follower");
            time::sleep(Duration::from_secs(5)).await;
            let snapshot = store.lock().unwrap().lease.clone().filter(|_| had_the_lease);
            time::sleep(Duration::from_mins(1)).await;
            assert!(leader.leadership.is_leader() && !leader.running.is_finished() && !follower.running.is_finished());
            {
                let mut store = store.lock().unwrap();
                store.version -= 10;
                store.lease = snapshot;
            }
            for candidate in [leader, follower] {
                time::timeout(Duration::from_secs(10), candidate.running).await.expect("it ends by itself").unwrap();
                assert!(!candidate.leadership.is_leader());
            }
            assert_eq!(spec(&store)["holderIdentity"], "", "nobody waits for who is gone");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_stands_has_listed_or_waited_for_long_enough() {
        for (lists_take, stands_after) in [(3, 3), (3600, 20)] {
            let store = SharedStore::default();
            let (leadership, election) = elect(client(&store), config("one"), Clock::new(ticking, || Duration::ZERO));
            let (shutdown, begun) = (CancellationToken::new(), Instant::now());
            let running =
                tokio::spawn(election.run_after(time::sleep(Duration::from_secs(lists_take)), shutdown.clone()));
            leadership.changed().wait_for(|leads| *leads).await.unwrap();
            assert_eq!(begun.elapsed().as_secs(), stands_after);
            shutdown.cancel();
            running.await.unwrap();
        }
        // Meanwhile it is seen for how long a holder is silent.
        let store = SharedStore::default();
        let gone = Candidate::start(&store, "gone");
        gone.until(true).await;
        gone.running.abort();
        let (leadership, election) = elect(client(&store), config("one"), Clock::new(ticking, || Duration::ZERO));
        let (shutdown, begun) = (CancellationToken::new(), Instant::now());
        let running = tokio::spawn(election.run_after(time::sleep(Duration::from_secs(14)), shutdown.clone()));
        leadership.changed().wait_for(|leads| *leads).await.unwrap();
        assert!((15..21).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
        shutdown.cancel();
        running.await.unwrap();
        // A stop does not wait for that.
        let (_, election) =
            elect(client(&SharedStore::default()), config("two"), Clock::new(ticking, || Duration::ZERO));
        let (shutdown, begun) = (CancellationToken::new(), Instant::now());
        shutdown.cancel();
        election.run_after(std::future::pending(), shutdown).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_cannot_be_made_is_told_of() {
        // Of a namespace that is not there, say.
        let store = SharedStore::default();
        let (_, mut election) = elect(client(&store), config("one"), Clock::new(ticking, || Duration::ZERO));
        let failed = |code| {
            let status = kube::core::Status { code, ..kube::core::Status::default() };
            Err(Failure::Api(kube::Error::Api(Box::new(status))))
        };
        election.report(failed(409));
        assert_eq!(election.reported, None, "two candidates met");
        election.report(failed(404));
        assert!(matches!(election.reported, Some(Report::Failing(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn release_is_retried_on_conflict_and_bounded() {
        let store = SharedStore::default();
        let leader = Candidate::start(&store, "leader");
        leader.until(true).await;
        store.lock().unwrap().conflicts = 2;
        leader.stop().await;
        assert_eq!(spec(&store)["holderIdentity"], "");

        let leader = Candidate::start(&store, "leader");
        leader.until(true).await;
        store.lock().unwrap().hangs = true;
        let start = Instant::now();
        leader.stop().await;
        assert_eq!(start.elapsed(), RELEASE_LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn labels_of_others_survive_our_writes() {
        let store = SharedStore::default();
        let lease = json!({
            "metadata": {"name": "operator", "resourceVersion": "7", "labels": {"team": "payments"}}, "spec": {}
        });
        {
            let mut store = store.lock().unwrap();
            (store.version, store.lease) = (7, Some(lease));
        }
        let leader = Candidate::start(&store, "leader");
        leader.until(true).await;
        leader.stop().await;
        assert_eq!(store.lock().unwrap().lease.as_ref().unwrap()["metadata"]["labels"]["team"], "payments");
    }

    #[test]
    fn failures_are_described_without_debug_noise() {
        let (_, status) = failure(StatusCode::FORBIDDEN);
        let refused = Failure::Api(kube::Error::Api(Box::new(serde_json::from_value(status).unwrap())));
        assert_eq!(refused.to_string(), "403 Forbidden: scripted");
        let unreachable = kube::Error::Service(Box::new(std::io::Error::other("Connection refused")));
        assert_eq!(Failure::Api(unreachable).to_string(), "Connection refused");
        assert_eq!(Failure::Timeout(Duration::from_secs(5)).to_string(), "no answer within 5s");
    }
}
