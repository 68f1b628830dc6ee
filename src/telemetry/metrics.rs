//! What is counted.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

/// The process's metrics, as `OpenMetrics` text. A `result` is a word of the code's own, never text from outside.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    token_requests: Family<Outcome, Counter>,
    token_request_duration_seconds: Histogram,
    secret_writes: Family<Outcome, Counter>,
    reconciles: Family<Outcome, Counter>,
    reconcile_duration_seconds: Histogram,
    leader: Gauge,
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
        // 5 ms to 40 s: a token request ends at its deadline.
        let request_buckets = exponential_buckets(0.005, 2.0, 14);
        // 0.1 ms to 26 s: most reconciles make no call at all.
        let reconcile_buckets = exponential_buckets(0.0001, 4.0, 10);
        let mut metrics = Self {
            registry: Registry::with_prefix("moneygo"),
            token_requests: Family::default(),
            token_request_duration_seconds: Histogram::new(request_buckets),
            secret_writes: Family::default(),
            reconciles: Family::default(),
            reconcile_duration_seconds: Histogram::new(reconcile_buckets),
            leader: Gauge::default(),
        };
        metrics.register_all();
        metrics
    }

    fn register_all(&mut self) {
        let registry = &mut self.registry;
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The version that runs", version);
        registry.register("token_requests", "Requests to the token endpoint", self.token_requests.clone());
        registry.register(
            "token_request_duration_seconds",
            "How long requests to the token endpoint took",
            self.token_request_duration_seconds.clone(),
        );
        registry.register("secret_writes", "Writes of target Secrets", self.secret_writes.clone());
        registry.register("reconcile", "Reconciliations", self.reconciles.clone());
        registry.register(
            "reconcile_duration_seconds",
            "How long reconciliations took",
            self.reconcile_duration_seconds.clone(),
        );
        registry.register("leader", "1 while this replica leads", self.leader.clone());
    }

    /// Adds metrics that are worked out when they are asked for (those of each object).
    pub fn register_collector(&mut self, collector: Box<dyn Collector>) {
        self.registry.register_collector(collector);
    }

    /// Counts a request to the token endpoint and how long it took, in seconds.
    pub fn token_request(&self, result: &'static str, seconds: f64) {
        self.token_requests.get_or_create(&Outcome { result }).inc();
        self.token_request_duration_seconds.observe(seconds);
    }

    /// Counts a write of a target Secret.
    pub fn secret_write(&self, result: &'static str) {
        self.secret_writes.get_or_create(&Outcome { result }).inc();
    }

    /// Counts a reconciliation and how long it took, in seconds.
    pub fn reconcile(&self, result: &'static str, seconds: f64) {
        self.reconciles.get_or_create(&Outcome { result }).inc();
        self.reconcile_duration_seconds.observe(seconds);
    }

    /// Shows whether this replica leads.
    pub fn set_leader(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// The text that `/metrics` serves.
    ///
    /// # Errors
    /// When a collector fails to write its metrics.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_have_the_documented_names() {
        let metrics = Metrics::default();
        metrics.token_request("ok", 0.2);
        metrics.secret_write("conflict");
        metrics.reconcile("ok", 0.01);
        metrics.set_leader(true);
        let text = metrics.encode().unwrap();
        for line in [
            concat!("moneygo_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
            "moneygo_token_requests_total{result=\"ok\"} 1",
            "moneygo_token_request_duration_seconds_sum 0.2",
            "moneygo_token_request_duration_seconds_count 1",
            "moneygo_secret_writes_total{result=\"conflict\"} 1",
            "moneygo_reconcile_total{result=\"ok\"} 1",
            "moneygo_reconcile_duration_seconds_count 1",
            "moneygo_leader 1",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} not in\n{text}");
        }
    }
}
