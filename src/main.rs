//! The operator's process: arguments, the cluster, the Lease, the HTTP server, signals. All that decides is in the library.

mod args;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use moneygo_operator::clock::Clock;
use moneygo_operator::controller::{self, Settings};
use moneygo_operator::error::{has_code, innermost};
use moneygo_operator::events::{self, Notices};
use moneygo_operator::grants::{Grants, Limits};
use moneygo_operator::lease::{self, Leadership, LeaseConfig};
use moneygo_operator::telemetry::{self, Metrics, Probes};
use moneygo_operator::token::{TokenClient, TokenClientConfig};
#[cfg(feature = "otlp")]
use moneygo_operator::traces::Traces;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;

use crate::args::Args;

/// After the work of a filling it has 10 MiB less resident than glibc's allocator, and a start takes a fifth less CPU (docs/performance.md).
/// `.cargo/config.toml` has its options.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// For the first word with the cluster.
const CLUSTER_LIMIT: Duration = Duration::from_secs(10);
/// The longest that a watch may say nothing.
const SILENCE_LIMIT: Duration = Duration::from_secs(150);
/// For what is left after the controller is done: it has had its share of the 5 s that a stop may take.
const STOP_LIMIT: Duration = Duration::from_millis(2500);

/// The exit code of clap's own errors.
const WRONG_ARGUMENTS: u8 = 2;

fn main() -> ExitCode {
    let args = match Args::from_process() {
        Ok(args) => args,
        Err(error) if error.exit_code() == 0 => error.exit(),
        Err(error) => {
            eprintln!("{}", args::in_one_line(error));
            return ExitCode::from(WRONG_ARGUMENTS);
        }
    };
    match start(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let line = format!("{error:#}").replace(['\n', '\r'], " ");
            eprintln!("error: {line}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: Args) -> anyhow::Result<()> {
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow!("another TLS provider than ring is installed: this is a bug"))?;
    #[cfg(feature = "otlp")]
    let traces = init_logging_and_traces(&args)?;
    #[cfg(not(feature = "otlp"))]
    telemetry::init_logging(&args.log_level, args.log_format)?;
    telemetry::hide_panic_payloads();
    // One thread: a token's work is a fraction of a millisecond between two answers, and what crosses threads costs more.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no async runtime")?;
    let result = runtime.block_on(run(args));
    // A resolver that hangs in its thread must not hold up the exit.
    runtime.shutdown_background();
    #[cfg(feature = "otlp")]
    if let Some(traces) = traces {
        traces.end();
    }
    result
}

/// A collector that cannot be used keeps nobody from working.
#[cfg(feature = "otlp")]
fn init_logging_and_traces(args: &Args) -> anyhow::Result<Option<Traces>> {
    let traces = Traces::from_env();
    let (usable, problem) = traces.map_or_else(|problem| (None, Some(problem)), |traces| (traces, None));
    telemetry::init_logging_and_traces(&args.log_level, args.log_format, usable.as_ref())?;
    if let Some(problem) = problem {
        tracing::warn!(reason = "NoTraces", "no traces are sent: {problem}");
    }
    Ok(usable)
}

/// A task that was not to end. Of a panic its hook has told where it was; what was said there is told by nobody.
fn by_itself(what: &str, error: Option<&JoinError>) -> anyhow::Error {
    let how = if error.is_some_and(JoinError::is_panic) { "panicked" } else { "stopped by itself" };
    anyhow!("{what} {how}")
}

async fn run(args: Args) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let signals = Signals::install()?;
    tokio::spawn(signals.obey(shutdown.clone()));

    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on {}: give another address with --listen", args.listen))?;
    let address = listener.local_addr().context("no address to listen on")?;
    let Some(connected) = shutdown.run_until_cancelled(Cluster::connect()).await else {
        return Ok(());
    };
    let cluster = connected?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), cluster = %cluster.url, listen = %address, "started");

    let (probes, metrics) = (Arc::new(Probes::default()), Arc::new(Metrics::new()));
    let ends = CancellationToken::new();
    let serving = tokio::spawn(telemetry::serve(listener, Arc::clone(&probes), Arc::clone(&metrics), ends.clone()));
    let (leadership, election) = stand_for_election(&args, &cluster)?;
    let in_step = CancellationToken::new();
    let (has_listed, ends_of_election) = (in_step.clone(), ends.clone());
    let mut electing = tokio::spawn(async move {
        match election {
            Some(election) => election.run_after(has_listed.cancelled(), ends_of_election).await,
            None => ends_of_election.cancelled().await,
        }
    });
    let (notices, to_publish) = Notices::new();
    let publishing = tokio::spawn(events::publish(cluster.client.clone(), to_publish));
    let told = Told { leadership, metrics, probes: Arc::clone(&probes), notices, in_step };
    let settings = settings(&args, &cluster, told)?;

    // Returns once everything that was issued is written; only then is the Lease given up.
    let mut controlling = Box::pin(controller::run(settings, shutdown.clone()));
    let result = tokio::select! {
        () = &mut controlling => Ok(()),
        ended = &mut electing => {
            shutdown.cancel();
            controlling.await;
            Err(by_itself("the election", ended.err().as_ref()))
        }
    };

    probes.set_ready(false);
    ends.cancel();
    publishing.abort();
    let ending = async {
        if !electing.is_finished() {
            electing.await.map_err(|error| by_itself("the election", Some(&error)))?;
        }
        serving.await.map_err(|error| by_itself("the HTTP server", Some(&error)))
    };
    match tokio::time::timeout(STOP_LIMIT, ending).await {
        Ok(ended) => result.and(ended),
        Err(_) => result,
    }
}

/// What the controller tells the rest of the process, and is told by it.
struct Told {
    leadership: Leadership,
    metrics: Arc<Metrics>,
    probes: Arc<Probes>,
    notices: Notices,
    in_step: CancellationToken,
}

fn settings(args: &Args, cluster: &Cluster, told: Told) -> anyhow::Result<Settings> {
    let Told { leadership, metrics, probes, notices, in_step } = told;
    let endpoint = TokenClientConfig {
        url: args.token_url.to_string(),
        allow_insecure: args.allow_insecure_token_url,
        ca_file: args.token_ca_file.clone(),
        timeout: args.token_timeout,
    };
    let token_client = TokenClient::new(&endpoint, Clock::SYSTEM)?;
    let between = Duration::from_secs_f64(1.0 / args.token_requests_per_second);
    let limits = Limits { between, concurrency: args.token_concurrency };
    let own_namespace = args.leader_elect_namespace.clone().or_else(|| cluster.namespace.clone());
    Ok(Settings {
        client: cluster.client.clone(),
        clock: Clock::SYSTEM,
        namespaces: args.watch_namespace.clone(),
        label_selector: args.label_selector.clone(),
        own_namespace,
        grants: Grants::new(token_client, limits, Clock::SYSTEM),
        leadership,
        metrics,
        probes,
        notices,
        in_step,
    })
}

fn stand_for_election(args: &Args, cluster: &Cluster) -> anyhow::Result<(Leadership, Option<lease::Election>)> {
    if !args.leader_elect {
        return Ok((Leadership::always(), None));
    }
    let namespace = args.leader_elect_namespace.as_ref().or(cluster.namespace.as_ref()).context(
        "--leader-elect needs a namespace for its Lease: outside a Pod, and with none in the kubeconfig's context, give --leader-elect-namespace",
    )?;
    let (name, duration) = (&args.leader_elect_lease_name, args.leader_elect_lease_duration);
    let config = LeaseConfig::new(namespace, name, identity()?, duration)?;
    let (leadership, election) = lease::elect(cluster.election_client.clone(), config, Clock::SYSTEM);
    Ok((leadership, Some(election)))
}

/// The host's name (in a Pod: the Pod's) and something that no other process has.
fn identity() -> anyhow::Result<String> {
    let random: [u8; 8] = ring::rand::generate(&ring::rand::SystemRandom::new())
        .map_err(|_| anyhow!("the system gives no random bytes"))?
        .expose();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    Ok(format!("{}_{:016x}", host.trim(), u64::from_le_bytes(random)))
}

/// The cluster that is worked on.
struct Cluster {
    client: Client,
    /// With connections of its own: where an API server dies without a word, what waits on the others' must not cost the term.
    election_client: Client,
    url: http::Uri,
    /// The Pod's own, or that of the kubeconfig's context.
    namespace: Option<String>,
}

impl Cluster {
    async fn connect() -> anyhow::Result<Self> {
        let in_pod = is_in_pod();
        let (mut config, namespace) = cluster_config(in_pod).await?;
        // Every call is bounded and repeated where it is made, on that place's own terms.
        config.default_retry = false;
        config.connect_timeout = Some(CLUSTER_LIMIT / 2);
        // A connection that died without a word would leave a watch silent for ever. A watch that lives gets a bookmark
        // about once a minute.
        config.read_timeout = Some(SILENCE_LIMIT);
        let url = config.cluster_url.clone();
        let client = |config| {
            Client::try_from(config)
                .map_err(|error| anyhow!("cannot use the cluster's configuration: {}", innermost(&error)))
        };
        let (election_client, client) = (client(config.clone())?, client(config)?);
        match check_reachable(&client, &url).await {
            // All that asks it tries again within seconds. To be started anew takes the kubelet up to five minutes.
            Err(Unreachable::Silent(error)) if in_pod => {
                tracing::warn!(%error, "goes on without the API server, and tries again");
            }
            Err(Unreachable::Silent(error) | Unreachable::Refuses(error)) => return Err(error),
            Ok(()) => {}
        }
        Ok(Self { client, election_client, url, namespace })
    }
}

fn is_in_pod() -> bool {
    let named = std::env::var_os("KUBECONFIG").is_some_and(|paths| !paths.is_empty());
    !named && std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
}

/// `KUBECONFIG`, else the Pod's service account, else `~/.kube/config`: the order of controller-runtime.
async fn cluster_config(in_pod: bool) -> anyhow::Result<(Config, Option<String>)> {
    if in_pod {
        let config =
            Config::incluster().context("cannot use the Pod's service account: does the Pod mount its token?")?;
        let namespace = config.default_namespace.clone();
        return Ok((config, Some(namespace)));
    }
    let advice = "set KUBECONFIG to the kubeconfig of the cluster, or run in a Pod";
    let kubeconfig = Kubeconfig::read().map_err(|error| anyhow!("{}: {advice}", explain(&error)))?;
    let (namespace, proxy) = (context_namespace(&kubeconfig), cluster_proxy(&kubeconfig));
    let loaded = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    let mut config = loaded.map_err(|error| anyhow!("cannot use the kubeconfig: {}: {advice}", explain(&error)))?;
    // kube takes HTTPS_PROXY here, too: that one is for Money-Go.
    config.proxy_url = proxy.map(|proxy| proxy.parse()).transpose().context("the kubeconfig's proxy-url is no URL")?;
    Ok((config, namespace))
}

/// A parser's own words can quote what is in the file: keys and tokens.
fn explain(error: &KubeconfigError) -> String {
    match error {
        KubeconfigError::Parse(_) => "the kubeconfig is no valid YAML of a Config".to_owned(),
        KubeconfigError::ParseProxyUrl(_) => "a proxy's URL (proxy-url, HTTPS_PROXY) cannot be read".to_owned(),
        other => other.to_string(),
    }
}

fn current_context(kubeconfig: &Kubeconfig) -> Option<&kube::config::Context> {
    let name = kubeconfig.current_context.as_ref()?;
    kubeconfig.contexts.iter().find(|context| &context.name == name)?.context.as_ref()
}

fn context_namespace(kubeconfig: &Kubeconfig) -> Option<String> {
    current_context(kubeconfig)?.namespace.clone().filter(|namespace| !namespace.is_empty())
}

fn cluster_proxy(kubeconfig: &Kubeconfig) -> Option<String> {
    let name = &current_context(kubeconfig)?.cluster;
    let cluster = kubeconfig.clusters.iter().find(|cluster| &cluster.name == name)?.cluster.as_ref()?;
    cluster.proxy_url.clone().filter(|proxy| !proxy.is_empty())
}

/// Why nothing can be asked of the cluster.
enum Unreachable {
    /// It may answer in a moment.
    Silent(anyhow::Error),
    /// It does, and will not have us.
    Refuses(anyhow::Error),
}

/// Any answer will do, but for one that knows nobody of our name.
async fn check_reachable(client: &Client, url: &http::Uri) -> Result<(), Unreachable> {
    let asked = tokio::time::timeout(CLUSTER_LIMIT, client.apiserver_version()).await;
    match asked {
        Err(_) => Err(Unreachable::Silent(anyhow!(
            "cannot reach the cluster at {url}: no answer within 10 s: check the network, or KUBECONFIG"
        ))),
        Ok(Err(error)) if has_code(&error, 401) => Err(Unreachable::Refuses(anyhow!(
            "the cluster at {url} does not accept our credentials (401): renew those in KUBECONFIG or the service account's token"
        ))),
        Ok(Ok(_) | Err(kube::Error::Api(_))) => Ok(()),
        Ok(Err(error)) => Err(Unreachable::Silent(anyhow!(
            "cannot reach the cluster at {url}: {}: check that it runs, or that KUBECONFIG names the right one",
            innermost(&error)
        ))),
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn install() -> anyhow::Result<Self> {
        let install = |kind| signal(kind).context("cannot handle signals");
        Ok(Self { terminate: install(SignalKind::terminate())?, interrupt: install(SignalKind::interrupt())? })
    }

    /// The first asks for an orderly stop; the second is obeyed at once.
    async fn obey(mut self, shutdown: CancellationToken) {
        self.next().await;
        tracing::info!("stopping: writing what was issued; a second signal stops at once");
        shutdown.cancel();
        self.next().await;
        std::process::exit(1);
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kubeconfig(namespace: &str, proxy: &str) -> Kubeconfig {
        Kubeconfig::from_yaml(&format!(
            "{{apiVersion: v1, kind: Config, current-context: c, \
              contexts: [{{name: c, context: {{cluster: k, user: u, namespace: '{namespace}'}}}}], \
              clusters: [{{name: k, cluster: {{server: 'https://127.0.0.1:1', proxy-url: '{proxy}'}}}}]}}"
        ))
        .unwrap()
    }

    #[test]
    fn namespace_and_proxy_come_from_the_current_context() {
        let set = kubeconfig("payments", "http://proxy:3128");
        assert_eq!(context_namespace(&set).as_deref(), Some("payments"));
        assert_eq!(cluster_proxy(&set).as_deref(), Some("http://proxy:3128"));
        let unset = kubeconfig("", "");
        assert_eq!((context_namespace(&unset), cluster_proxy(&unset)), (None, None));
        assert_eq!(context_namespace(&Kubeconfig::default()), None);
    }

    #[test]
    fn a_broken_kubeconfig_is_not_quoted() {
        let error = Kubeconfig::from_yaml("users: [{name: u, user: {token: [canary]}}]").unwrap_err();
        assert!(!explain(&error).contains("canary"), "{}", explain(&error));
    }

    #[test]
    fn identities_differ() {
        assert_ne!(identity().unwrap(), identity().unwrap());
    }
}
