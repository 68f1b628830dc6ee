//! What the bench itself sees: the metadata of one namespace's Secrets, from a watch of its own. Operator and floor are observed with the same eyes.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Secret;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What is waited for takes longer than this only where it never comes, or where the floor serves what is new last.
const LIMIT: Duration = Duration::from_mins(6);

/// By name: each version, and when its event came.
type Seen = HashMap<String, Vec<(u64, Instant)>>;

/// A watch on the metadata of a namespace's Secrets.
pub struct Sight {
    seen: watch::Receiver<Seen>,
    watching: JoinHandle<()>,
}

impl Sight {
    /// Begins to watch.
    #[must_use]
    pub fn on(client: &Client, namespace: &str) -> Self {
        let secrets: Api<PartialObjectMeta<Secret>> = Api::namespaced(client.clone(), namespace);
        let (sender, seen) = watch::channel(Seen::new());
        let watching = tokio::spawn(async move {
            let mut events = std::pin::pin!(watcher::watcher(secrets, watcher::Config::default()));
            while let Some(event) = events.next().await {
                if let Ok(watcher::Event::Apply(secret) | watcher::Event::InitApply(secret)) = event {
                    note(&sender, &secret);
                }
            }
        });
        Self { seen, watching }
    }

    /// The version that was seen last; 0 of what was never seen.
    #[must_use]
    pub fn version(&self, name: &str) -> u64 {
        self.seen.borrow().get(name).and_then(|versions| versions.last()).map_or(0, |(version, _)| *version)
    }

    /// Waits for a version of a Secret after that one, and returns when its event came.
    ///
    /// # Errors
    /// If there is none within minutes.
    pub async fn after(&self, name: &str, version: u64) -> Result<Instant> {
        let newer = |seen: &Seen| seen.get(name)?.iter().find(|(other, _)| *other > version).map(|(_, at)| *at);
        let mut seen = self.seen.clone();
        let waited = tokio::time::timeout(LIMIT, seen.wait_for(|seen| newer(seen).is_some())).await;
        let seen = waited.with_context(|| format!("the Secret {name} did not come"))?.context("the watch ended")?;
        newer(&seen).context("it was there")
    }
}

impl Drop for Sight {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

fn note(sender: &watch::Sender<Seen>, secret: &PartialObjectMeta<Secret>) {
    let at = Instant::now();
    let version = secret.resource_version().and_then(|version| version.parse().ok()).unwrap_or_default();
    sender.send_modify(|seen| seen.entry(secret.name_any()).or_default().push((version, at)));
}

/// From one instant to another, in milliseconds, as far as they mean something; 0 where the second came first.
#[must_use]
pub fn millis(from: Instant, to: Instant) -> f64 {
    (to.saturating_duration_since(from).as_secs_f64() * 1e6).round() / 1e3
}
