//! Every metric that is served: what it is called, and what it tells.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};

use crate::crd::Reason;

/// What kind of metric it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only ever grows, and begins again at 0 with the process.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Counts of what took up to so long.
    Histogram,
    /// Its labels tell all.
    Info,
}

impl Kind {
    /// As Prometheus and the documents call it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Info => "info",
        }
    }
}

/// A metric, as the documents tell of it.
#[derive(Debug, Clone, Copy)]
pub struct Described {
    /// What a query calls it.
    pub name: &'static str,
    /// What kind of metric it is.
    pub kind: Kind,
    /// Of its value; empty where it is a plain number.
    pub unit: &'static str,
    /// Of each series.
    pub labels: &'static [&'static str],
    /// What it tells, without a full stop.
    pub meaning: &'static str,
}

impl Described {
    /// What `OpenMetrics` calls the family.
    #[must_use]
    pub fn family(&self) -> &'static str {
        let suffix = match self.kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::Gauge | Kind::Histogram => "",
        };
        self.name.strip_suffix(suffix).unwrap_or(self.name)
    }
}

/// Writes a metric that is looked up when it is asked for, under the name and with the words that the catalogue has for it.
pub(super) fn write(encoder: &mut DescriptorEncoder<'_>, metric: &Described, value: &impl EncodeMetric) -> fmt::Result {
    let meaning = format!("{}.", metric.meaning);
    value.encode(encoder.encode_descriptor(metric.family(), &meaning, None, value.metric_type())?)
}

macro_rules! catalogue {
    ($($constant:ident = $kind:ident $name:literal, $unit:literal, [$($label:literal),*], $meaning:literal;)*) => {
        $(pub(super) const $constant: Described = Described {
            name: $name, kind: Kind::$kind, unit: $unit, labels: &[$($label),*], meaning: $meaning,
        };)*

        /// Every metric, in the order in which the documents list them.
        pub const CATALOGUE: &[Described] = &[$($constant),*];
    };
}

catalogue! {
    ISSUED = Gauge "moneygo_credential_issued_timestamp_seconds", "seconds since 1970", ["namespace", "name"],
        "When the token in the object's Secret was issued";
    EXPIRATION = Gauge "moneygo_credential_expiration_timestamp_seconds", "seconds since 1970", ["namespace", "name"],
        "When the token in the object's Secret expires";
    RENEWAL = Gauge "moneygo_credential_renewal_timestamp_seconds", "seconds since 1970", ["namespace", "name"],
        "When the next token is asked for. Not there while the object is suspended";
    SUSPENDED = Gauge "moneygo_credential_suspended", "", ["namespace", "name"],
        "1 while spec.suspend of the object is true, else 0";
    CONDITION = Gauge "moneygo_credential_condition", "", ["namespace", "name", "condition", "status"],
        "1 for the status that a condition of the object has, 0 for the others";
    REASON = Gauge "moneygo_credential_condition_reason", "", ["namespace", "name", "condition", "reason"],
        "1 for the reason that the condition Ready or Refreshed of the object has. There are no others";
    TOKEN_REQUESTS = Counter "moneygo_token_requests_total", "", ["result"],
        "Requests to the token endpoint, by what came of them: a reason of the condition Refreshed";
    TOKEN_REQUEST_DURATION = Histogram "moneygo_token_request_duration_seconds", "seconds", [],
        "How long requests to the token endpoint took, whatever came of them";
    TOKEN_REQUESTS_WAITING = Gauge "moneygo_token_requests_waiting", "", [],
        "Objects that wait for leave to ask for a token: for the limiter, or for an endpoint that is down";
    TOKEN_REQUESTS_LONGEST_WAIT = Gauge "moneygo_token_requests_longest_wait_seconds", "seconds", [],
        "How long the object that has waited longest for leave to ask for a token has waited. 0 where none waits";
    TOKEN_REQUESTS_UNDER_WAY = Gauge "moneygo_token_requests_in_flight", "", [],
        "Requests to the token endpoint under way";
    TOKEN_ENDPOINT_UP = Gauge "moneygo_token_endpoint_up", "", [],
        "0 while requests to the token endpoint get no answer (connection errors, 5xx), 1 otherwise, and 10 min after the last request";
    SECRET_WRITES = Counter "moneygo_secret_writes_total", "", ["result"],
        "Writes of target Secrets, by what the API server said";
    STATUS_WRITES = Counter "moneygo_status_writes_total", "", ["result"],
        "Writes of the objects' status, by what the API server said";
    RECONCILES = Counter "moneygo_reconcile_total", "", ["result"],
        "Looks at an object, by what came of them. Most make no request at all";
    RECONCILE_DURATION = Histogram "moneygo_reconcile_duration_seconds", "seconds", [],
        "How long looks at an object took, with all requests that they made";
    WATCHES_FAILING = Gauge "moneygo_watches_failing", "", ["resource"],
        "Watches of a resource, one for the cluster or for each watched namespace, that show nothing at present, as they fail";
    LEADER = Gauge "moneygo_leader", "", [],
        "1 while this replica leads, or there is no election; else 0";
    BUILD = Info "moneygo_build_info", "", ["version"],
        "The version that runs";
    PROCESS_CPU = Counter "process_cpu_seconds_total", "seconds", [],
        "Processor time of the process, its own and the system's for it";
    PROCESS_MEMORY = Gauge "process_resident_memory_bytes", "bytes", [],
        "Memory of the process that is in RAM";
    PROCESS_VIRTUAL_MEMORY = Gauge "process_virtual_memory_bytes", "bytes", [],
        "Address space of the process";
    PROCESS_START = Gauge "process_start_time_seconds", "seconds since 1970", [],
        "When the process began";
    PROCESS_OPEN_FDS = Gauge "process_open_fds", "", [],
        "File descriptors of the process that are open";
    PROCESS_MAX_FDS = Gauge "process_max_fds", "", [],
        "File descriptors that the process may have open";
    PROCESS_THREADS = Gauge "process_threads", "", [],
        "Threads of the process";
}

/// What can come of a request to the token endpoint.
pub(super) const TOKEN_RESULTS: [Reason; 6] = [
    Reason::Succeeded,
    Reason::InvalidClient,
    Reason::RequestRejected,
    Reason::RateLimited,
    Reason::EndpointUnavailable,
    Reason::BadResponse,
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        let names: BTreeSet<_> = CATALOGUE.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), CATALOGUE.len());
        for metric in CATALOGUE {
            let name = metric.name;
            assert!(name.starts_with("moneygo_") || name.starts_with("process_"), "{name}");
            assert_eq!(metric.kind == Kind::Counter, name.ends_with("_total"), "{name}");
            assert_eq!(metric.kind == Kind::Info, name.ends_with("_info"), "{name}");
            let stem = name.trim_end_matches("_total");
            assert_eq!(metric.unit.starts_with("seconds"), stem.ends_with("_seconds"), "{name}: {}", metric.unit);
            assert_eq!(metric.unit == "bytes", stem.ends_with("_bytes"), "{name}: {}", metric.unit);
            assert!(!metric.meaning.is_empty() && !metric.meaning.ends_with('.'), "{name}");
        }
    }
}
