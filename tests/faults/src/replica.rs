//! One operator, on a thread and a runtime of its own: it can be crashed as a process is, and stopped as SIGSTOP does.

use std::num::NonZeroU16;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use kube::Client;
use moneygo_operator::clock::Clock;
use moneygo_operator::controller::{self, Settings};
use moneygo_operator::events::{self, Notices};
use moneygo_operator::grants::{Grants, Limits};
use moneygo_operator::lease::{self, Leadership, LeaseConfig};
use moneygo_operator::telemetry::{Metrics, Probes};
use moneygo_operator::token::{TokenClient, TokenClientConfig};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::interposer::Interposer;

const TOKEN_TIMEOUT: Duration = Duration::from_secs(10);
const CONCURRENCY: NonZeroU16 = NonZeroU16::new(16).unwrap();
const BETWEEN_REQUESTS: Duration = Duration::from_millis(2);

/// What an operator is started with.
#[derive(Clone)]
pub struct Config {
    /// What it watches, and where its own objects live.
    pub namespace: String,
    /// Of the objects there, those that it minds.
    pub label_selector: Option<String>,
    /// The token endpoint.
    pub token_url: String,
    /// Its clocks.
    pub clock: Clock,
    /// Its identity, where it stands for election.
    pub candidate: Option<String>,
    /// The shortest that the operator takes, or longer.
    pub lease: Duration,
}

impl Config {
    /// As most cells need it: alone, by the machine's clocks.
    #[must_use]
    pub fn new(namespace: &str, token_url: String) -> Self {
        Self {
            namespace: namespace.to_owned(),
            label_selector: None,
            token_url,
            clock: Clock::SYSTEM,
            candidate: None,
            lease: lease::DURATION_MIN,
        }
    }
}

/// A running operator. Dropping it crashes it.
pub struct Replica {
    /// What it talks through.
    pub interposer: Interposer,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
    leads: watch::Receiver<Option<Leadership>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.interposer.kill();
    }
}

impl Replica {
    /// Starts one. Faults are injected beforehand, into its interposer.
    ///
    /// # Errors
    /// Where the system gives no thread.
    pub fn start(interposer: Interposer, config: Config) -> anyhow::Result<Self> {
        let metrics = Arc::new(Metrics::new());
        let shutdown = CancellationToken::new();
        let (tell, leads) = watch::channel(None);
        let life = (interposer.clone(), Arc::clone(&metrics), shutdown.clone());
        let thread = std::thread::Builder::new().name("operator".to_owned()).spawn(move || {
            let (interposer, metrics, shutdown) = life;
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
            let killed = interposer.killed();
            let client = runtime.block_on(async { interposer.client() });
            let running = serve(client, &interposer, config, metrics, shutdown, tell);
            if let Some(Err(error)) = runtime.block_on(killed.run_until_cancelled(running)) {
                tracing::error!("{error:#}");
            }
            runtime.shutdown_background();
        });
        Ok(Self { interposer, metrics, shutdown, leads, thread: Some(thread.context("a thread")?) })
    }

    /// Ends it at once, and returns when it is gone. What it had sent goes on its way.
    pub async fn crash(mut self) {
        self.interposer.kill();
        self.end().await;
    }

    /// Asks it to stop, and returns when it has.
    pub async fn stop(mut self) {
        self.shutdown.cancel();
        self.end().await;
    }

    async fn end(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        let _ = tokio::task::spawn_blocking(move || thread.join()).await;
    }

    /// How many times it has reconciled.
    #[must_use]
    pub fn reconciles(&self) -> u64 {
        let text = self.metrics.encode().unwrap_or_default();
        let counts = text.lines().filter(|line| line.starts_with("moneygo_reconcile_total"));
        counts.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }

    /// Whether it leads.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.leads.borrow().as_ref().is_some_and(Leadership::is_leader)
    }
}

async fn serve(
    client: Client,
    interposer: &Interposer,
    config: Config,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
    tell: watch::Sender<Option<Leadership>>,
) -> anyhow::Result<()> {
    let endpoint = TokenClientConfig {
        url: config.token_url.clone(),
        allow_insecure: false,
        ca_file: None,
        timeout: TOKEN_TIMEOUT,
    };
    let tokens = TokenClient::new(&endpoint, config.clock)?.layered(interposer);
    let limits = Limits { between: BETWEEN_REQUESTS, concurrency: CONCURRENCY };
    let (leadership, election) = match &config.candidate {
        None => (Leadership::always(), None),
        Some(identity) => {
            let candidacy = LeaseConfig::new(&config.namespace, "moneygo-operator", identity, config.lease)?;
            let (leadership, election) = lease::elect(client.clone(), candidacy, config.clock);
            (leadership, Some(election))
        }
    };
    let _ = tell.send(Some(leadership.clone()));
    let (ends, in_step) = (CancellationToken::new(), CancellationToken::new());
    let electing = tokio::spawn({
        let (listed, ends) = (in_step.clone(), ends.clone());
        async move {
            match election {
                Some(election) => election.run_after(listed.cancelled(), ends).await,
                None => ends.cancelled().await,
            }
        }
    });
    let (notices, to_publish) = Notices::new();
    let publishing = tokio::spawn(events::publish(client.clone(), to_publish));
    let settings = Settings {
        client,
        clock: config.clock,
        namespaces: vec![config.namespace.clone()],
        label_selector: config.label_selector,
        own_namespace: Some(config.namespace),
        grants: Grants::new(tokens, limits, config.clock),
        leadership,
        metrics,
        probes: Arc::new(Probes::default()),
        notices,
        in_step,
    };
    controller::run(settings, shutdown).await;
    publishing.abort();
    ends.cancel();
    electing.await?;
    Ok(())
}
