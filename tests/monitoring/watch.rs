//! What Prometheus' alerts do while a test goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::prometheus::Server;

const POLL: Duration = Duration::from_millis(250);
const LIMIT: Duration = Duration::from_secs(75);

/// An alert: its name, the cluster, and the object that it is about, if any.
pub type Alert = (String, String, String);

/// When an alert began to fire, and when it did no more.
pub type Episode = (Duration, Option<Duration>);

/// Follows the alerts of a Prometheus.
pub struct Watch {
    begun: Instant,
    seen: Mutex<Seen>,
    /// Every alert as it was when it fired first.
    pub fired: Mutex<BTreeMap<String, Value>>,
}

#[derive(Default)]
struct Seen {
    firing: BTreeSet<Alert>,
    times: BTreeMap<Alert, Vec<Episode>>,
}

impl Watch {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { begun: Instant::now(), seen: Mutex::default(), fired: Mutex::default() })
    }

    /// Until it is dropped.
    pub async fn run(&self, server: &Server) {
        loop {
            self.take_in(server.alerts().await);
            tokio::time::sleep(POLL).await;
        }
    }

    fn take_in(&self, alerts: Vec<Value>) {
        let mut firing = BTreeSet::new();
        for alert in alerts.into_iter().filter(|alert| alert["state"] == "firing") {
            let label = |name: &str| alert["labels"][name].as_str().unwrap_or_default().to_owned();
            let name = label("alertname");
            firing.insert((name.clone(), label("cluster"), label("name")));
            self.fired.lock().unwrap().entry(name).or_insert(alert);
        }
        let (now, mut seen) = (self.begun.elapsed(), self.seen.lock().unwrap());
        let begun: Vec<_> = firing.difference(&seen.firing).cloned().collect();
        for alert in begun {
            seen.times.entry(alert).or_default().push((now, None));
        }
        let over: Vec<_> = seen.firing.difference(&firing).cloned().collect();
        for alert in over {
            if let Some(episode) = seen.times.get_mut(&alert).and_then(|episodes| episodes.last_mut()) {
                episode.1 = Some(now);
            }
        }
        seen.firing = firing;
    }

    fn firing(&self) -> BTreeSet<Alert> {
        self.seen.lock().unwrap().firing.clone()
    }

    /// Waits until an alert fires.
    pub async fn fires(&self, name: &str, cluster: &str, object: &str) {
        self.wait(name, cluster, object, true).await;
    }

    /// Waits until an alert fires no more.
    pub async fn resolves(&self, name: &str, cluster: &str, object: &str) {
        self.wait(name, cluster, object, false).await;
    }

    async fn wait(&self, name: &str, cluster: &str, object: &str, fires: bool) {
        let alert = (name.to_owned(), cluster.to_owned(), object.to_owned());
        let started = Instant::now();
        while self.firing().contains(&alert) != fires {
            let goal = if fires { "fires" } else { "resolves" };
            assert!(started.elapsed() < LIMIT, "{alert:?} never {goal}; firing: {:#?}", self.firing());
            tokio::time::sleep(POLL).await;
        }
    }

    /// Every alert that fired, and when.
    pub fn times(&self) -> BTreeMap<Alert, Vec<Episode>> {
        self.seen.lock().unwrap().times.clone()
    }
}
