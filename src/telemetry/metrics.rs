//! What is counted, and what is looked up when it is asked for.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry};

use super::catalogue::{
    BUILD, Described, LEADER, RECONCILE_DURATION, RECONCILES, SECRET_WRITES, STATUS_WRITES, TOKEN_ENDPOINT_UP,
    TOKEN_REQUEST_DURATION, TOKEN_REQUESTS, TOKEN_REQUESTS_LONGEST_WAIT, TOKEN_REQUESTS_UNDER_WAY,
    TOKEN_REQUESTS_WAITING, TOKEN_RESULTS, WATCHES_FAILING, write,
};
use super::process::Process;
use crate::caches::Caches;
use crate::crd::Reason;
use crate::error::Error;
use crate::grants::Load;

/// What an answer in tenths of a second falls apart into; `--token-timeout` is 10 s where unset, and 5 minutes at most.
const REQUEST_BUCKETS: [f64; 13] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

type Outcomes = Family<Outcome, Counter>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Watched {
    resource: &'static str,
}

/// The process's metrics. A `result` is a word of the code's own, never text from outside.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    token_requests: Outcomes,
    token_request_duration_seconds: Histogram,
    secret_writes: Outcomes,
    status_writes: Outcomes,
    reconciles: Outcomes,
    reconcile_duration_seconds: Histogram,
    watches_failing: Family<Watched, Gauge>,
    leader: Gauge,
    queue: Queue,
    scopes: Scopes,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All of them at zero.
    #[must_use]
    pub fn new() -> Self {
        // 0.1 ms to 26 s: most reconciles make no call at all.
        let reconcile_buckets = exponential_buckets(0.0001, 4.0, 10);
        let mut metrics = Self {
            registry: Registry::default(),
            token_requests: counted(TOKEN_RESULTS.map(Reason::as_str)),
            token_request_duration_seconds: Histogram::new(REQUEST_BUCKETS),
            secret_writes: counted(api_results()),
            status_writes: counted(api_results()),
            reconciles: counted(api_results()),
            reconcile_duration_seconds: Histogram::new(reconcile_buckets),
            watches_failing: Family::default(),
            leader: Gauge::default(),
            queue: Queue::default(),
            scopes: Scopes::default(),
        };
        metrics.register_all();
        metrics
    }

    fn register_all(&mut self) {
        self.register(&BUILD, Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        self.register(&TOKEN_REQUESTS, self.token_requests.clone());
        self.register(&TOKEN_REQUEST_DURATION, self.token_request_duration_seconds.clone());
        self.register(&SECRET_WRITES, self.secret_writes.clone());
        self.register(&STATUS_WRITES, self.status_writes.clone());
        self.register(&RECONCILES, self.reconciles.clone());
        self.register(&RECONCILE_DURATION, self.reconcile_duration_seconds.clone());
        self.register(&WATCHES_FAILING, self.watches_failing.clone());
        self.register(&LEADER, self.leader.clone());
        self.registry.register_collector(Box::new(self.queue.clone()));
        self.registry.register_collector(Box::new(Process));
    }

    fn register(&mut self, described: &Described, metric: impl Metric) {
        self.registry.register(described.family(), described.meaning, metric);
    }

    /// Counts a request to the token endpoint and how long it took, in seconds.
    pub fn token_request(&self, result: &'static str, seconds: f64) {
        self.token_requests.get_or_create(&Outcome { result }).inc();
        self.token_request_duration_seconds.observe(seconds);
    }

    /// Counts a write of a target Secret.
    pub fn secret_write<T>(&self, result: &Result<T, Error>) {
        count(&self.secret_writes, result);
    }

    /// Counts a write of an object's status.
    pub fn status_write<T>(&self, result: &Result<T, Error>) {
        count(&self.status_writes, result);
    }

    /// Counts a reconciliation and how long it took, in seconds.
    pub fn reconcile<T>(&self, result: &Result<T, Error>, seconds: f64) {
        count(&self.reconciles, result);
        self.reconcile_duration_seconds.observe(seconds);
    }

    /// How many watches of a resource, by its name in the API, fail at present.
    #[must_use]
    pub fn watches_failing(&self, resource: &'static str) -> Gauge {
        self.watches_failing.get_or_create(&Watched { resource }).clone()
    }

    /// Shows whether this replica leads. The metrics of each object are those of a leader alone.
    pub fn set_leader(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    pub(super) fn leads(&self) -> bool {
        self.leader.get() == 1
    }

    /// Where the queue of grants is looked at. Only the first that is given counts.
    pub fn show_queue(&self, load: impl Fn() -> Load + Send + Sync + 'static) {
        let _ = self.queue.0.set(Box::new(load));
    }

    /// Where the objects are looked at: once for each scope that is watched.
    pub fn show_objects(&self, caches: Arc<Caches>) {
        self.scopes.0.lock().unwrap_or_else(PoisonError::into_inner).push(caches);
    }

    pub(super) fn scope(&self, number: usize) -> Option<Arc<Caches>> {
        self.scopes.0.lock().unwrap_or_else(PoisonError::into_inner).get(number).cloned()
    }

    /// All but the metrics of each object, as `OpenMetrics` text without its end.
    ///
    /// # Errors
    /// When a collector fails to write its metrics.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode_registry(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// What can come of a call of the API server.
fn api_results() -> impl Iterator<Item = &'static str> {
    [Error::OK].into_iter().chain(Error::REASONS)
}

/// Each result at 0: what first happens after hours is an increase only if it was there before.
fn counted(results: impl IntoIterator<Item = &'static str>) -> Outcomes {
    let outcomes = Outcomes::default();
    for result in results {
        drop(outcomes.get_or_create(&Outcome { result }));
    }
    outcomes
}

fn count<T>(outcomes: &Outcomes, result: &Result<T, Error>) {
    outcomes.get_or_create(&Outcome { result: Error::outcome(result) }).inc();
}

/// The scopes' objects.
#[derive(Default)]
struct Scopes(Mutex<Vec<Arc<Caches>>>);

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scopes")
    }
}

/// The queue of grants, looked at when it is asked for.
#[derive(Clone, Default)]
struct Queue(Arc<OnceLock<Box<dyn Fn() -> Load + Send + Sync>>>);

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Queue")
    }
}

impl Collector for Queue {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(load) = self.0.get().map(|load| load()) else { return Ok(()) };
        let waiting = i64::try_from(load.waiting).unwrap_or(i64::MAX);
        write(&mut encoder, &TOKEN_REQUESTS_WAITING, &ConstGauge::new(waiting))?;
        write(&mut encoder, &TOKEN_REQUESTS_LONGEST_WAIT, &ConstGauge::new(load.longest_wait.as_secs_f64()))?;
        write(&mut encoder, &TOKEN_REQUESTS_UNDER_WAY, &ConstGauge::new(i64::from(load.under_way)))?;
        write(&mut encoder, &TOKEN_ENDPOINT_UP, &ConstGauge::new(i64::from(load.is_endpoint_up)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::catalogue::CATALOGUE;

    fn filled() -> String {
        let metrics = Metrics::default();
        metrics.token_request("Succeeded", 0.2);
        let conflict = Error::Api { doing: "write", code: 409, reason: "Conflict", detail: String::new() };
        metrics.secret_write::<()>(&Err(conflict));
        metrics.status_write(&Ok(()));
        metrics.reconcile(&Ok(()), 0.01);
        metrics.watches_failing("secrets").inc();
        metrics.set_leader(true);
        metrics.show_queue(|| Load {
            waiting: 3,
            longest_wait: Duration::from_millis(1500),
            under_way: 2,
            is_endpoint_up: false,
        });
        metrics.encode().unwrap()
    }

    #[test]
    fn metrics_have_the_documented_names() {
        let text = filled();
        for line in [
            concat!("moneygo_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
            "moneygo_token_requests_total{result=\"Succeeded\"} 1",
            "moneygo_token_requests_total{result=\"InvalidClient\"} 0",
            "moneygo_token_request_duration_seconds_sum 0.2",
            "moneygo_token_request_duration_seconds_count 1",
            "moneygo_token_requests_waiting 3",
            "moneygo_token_requests_longest_wait_seconds 1.5",
            "moneygo_token_requests_in_flight 2",
            "moneygo_token_endpoint_up 0",
            "moneygo_secret_writes_total{result=\"Conflict\"} 1",
            "moneygo_secret_writes_total{result=\"Ok\"} 0",
            "moneygo_status_writes_total{result=\"Ok\"} 1",
            "moneygo_reconcile_total{result=\"Ok\"} 1",
            "moneygo_reconcile_duration_seconds_count 1",
            "moneygo_watches_failing{resource=\"secrets\"} 1",
            "moneygo_leader 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} not in\n{text}");
        }
    }

    /// Those of the process where there is a /proc.
    #[test]
    fn what_is_served_is_in_the_catalogue_and_the_other_way_round() {
        let text = filled();
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        let served: Vec<_> = types.collect();
        for (family, kind) in &served {
            let known = CATALOGUE.iter().find(|metric| metric.family() == *family);
            assert_eq!(known.map(|metric| metric.kind.as_str()), Some(*kind), "{family} is not in the catalogue");
        }
        let of_objects = |metric: &&Described| metric.labels.contains(&"name");
        let of_proc = |metric: &&Described| !cfg!(target_os = "linux") && metric.name.starts_with("process_");
        for metric in CATALOGUE.iter().filter(|metric| !of_objects(metric) && !of_proc(metric)) {
            assert!(served.iter().any(|(family, _)| *family == metric.family()), "{} is not served", metric.name);
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_process_tells_of_itself() {
        let text = filled();
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 1e6 && value("process_virtual_memory_bytes") > 1e6);
        assert!(value("process_cpu_seconds_total") >= 0.0 && value("process_threads") >= 1.0);
        assert!(value("process_open_fds") >= 3.0 && value("process_max_fds") >= value("process_open_fds"));
        // The year 2023.
        assert!(value("process_start_time_seconds") > 1.67e9, "{}", value("process_start_time_seconds"));
    }
}
