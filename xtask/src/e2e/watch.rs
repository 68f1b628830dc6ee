//! What the consumer tells of itself, and when the tokens that it saw were asked for.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use jiff::Timestamp;
use moneygo_operator::crd::annotation::{EXPIRES_AT, ISSUED_AT};
use token_consumer::Report;
use tokio::time::sleep;

use super::{
    APPS,
    cluster::Cluster,
    manifests::{CONSUMER, TOKEN},
};

const POLL: Duration = Duration::from_secs(1);
/// How long nothing may be heard, for a cluster whose API server has just come back.
const SILENCE_LIMIT: Duration = Duration::from_mins(1);

/// Looks at the consumer and at the Secret it mounts.
pub struct Watch<'a> {
    cluster: &'a Cluster,
    /// When each token was asked for, by when it expires.
    issued: BTreeMap<Timestamp, Timestamp>,
    report: Report,
    heard: Instant,
}

impl<'a> Watch<'a> {
    pub fn new(cluster: &'a Cluster) -> Self {
        Self { cluster, issued: BTreeMap::new(), report: Report::default(), heard: Instant::now() }
    }

    /// Waits until the consumer has seen so many refreshes.
    pub async fn until_refreshes(&mut self, count: usize, limit: Duration) -> anyhow::Result<()> {
        let started = Instant::now();
        self.heard = started;
        while self.refreshes() < count {
            match self.look().await {
                Ok(()) => self.heard = Instant::now(),
                Err(error) if self.heard.elapsed() > SILENCE_LIMIT => return Err(error),
                Err(_) => {}
            }
            if started.elapsed() > limit {
                bail!("after {} s the consumer has seen {} refreshes, not {count}", limit.as_secs(), self.refreshes());
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    /// How often the consumer's token was replaced.
    pub fn refreshes(&self) -> usize {
        self.report.seen.len().saturating_sub(1)
    }

    /// What the consumer told last.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// For each refresh, seconds from the request for the token to its being in the file; those that were seen.
    pub fn delays_secs(&self) -> Vec<f64> {
        let refreshes = self.report.seen.iter().skip(1);
        let delays = refreshes.filter_map(|seen| Some(seen.at.duration_since(*self.issued.get(&seen.expires_at)?)));
        delays.map(|delay| delay.as_secs_f64()).collect()
    }

    /// Looks once. The Secret first: what the consumer then tells of is known.
    pub async fn look(&mut self) -> anyhow::Result<()> {
        // The annotations alone: no token comes here.
        let annotations = "--output=jsonpath={.metadata.annotations}";
        let annotations = self.cluster.kubectl(&["get", "secret", TOKEN, "--namespace", APPS, annotations]).await?;
        let annotations: BTreeMap<String, String> = serde_json::from_str(&annotations)?;
        let time = |key| annotations.get(key).and_then(|text| text.parse::<Timestamp>().ok());
        let (issued, expires) =
            time(ISSUED_AT).zip(time(EXPIRES_AT)).context("the Secret does not say how long its token lives")?;
        self.issued.insert(expires, issued);
        let told = self.cluster.kubectl(&["logs", CONSUMER, "--namespace", APPS, "--tail=1"]).await?;
        let before = self.refreshes();
        self.report = serde_json::from_str(&told).context("the consumer has told nothing")?;
        if self.refreshes() > before {
            let delay = self.delays_secs().pop().unwrap_or_default();
            println!("    refresh {}: in the file {delay:.1} s after it", self.refreshes());
        }
        Ok(())
    }
}
