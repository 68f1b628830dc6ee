//! What can be seen from outside: logs, metrics, `/healthz`, `/readyz` and `/metrics`.
//!
//! Secrets stay out of all of it. Crates that can print a request, a response or a parser's excerpt are held below
//! the level at which they do, whatever the user asks for; panics are reported without their payload;
//! metric labels are fixed words.

use std::convert::Infallible;
use std::io::IsTerminal;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::{EnvFilter, FilterExt, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people; coloured on a terminal.
    Text,
    /// One JSON object a line, with `timestamp`, `level`, `target`, `fields` and the spans around.
    Json,
}

/// Logging could not be set up.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The level is neither a level nor a list of directives.
    #[error("log level {0:?} is not error, warn, info, debug, trace, off or a list like info,moneygo_operator=debug")]
    Level(String),
    /// Logging was set up before.
    #[error("logging is set up already")]
    Twice,
}

/// A log level, or `tracing-subscriber` `EnvFilter` directives, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLevel(String);

impl FromStr for LogLevel {
    type Err = LogError;

    /// Stricter than `EnvFilter`, which takes a misspelt level for the name of a crate.
    fn from_str(text: &str) -> Result<Self, LogError> {
        let plausible = |part: &str| part.contains(['=', '[']) || LevelFilter::from_str(part).is_ok();
        let named = text.split(',').all(|part| !part.trim().is_empty() && plausible(part.trim()));
        if !named || EnvFilter::builder().parse(text).is_err() {
            return Err(LogError::Level(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

/// The most that a target may log, whatever the user's directives say.
///
/// kube's client logs whole response bodies (Secrets) in `kube_client::client`, and parts of a kubeconfig in
/// `kube_client::config`; the watcher prints parser errors, which quote what they could not parse, below WARN; HTTP and TLS
/// crates print headers and frames. So only what was read and found clean is let through.
fn ceiling(target: &str) -> LevelFilter {
    let within =
        |module: &str| target.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
    if within("moneygo_operator") {
        LevelFilter::TRACE
    } else if within("kube_client::client::builder") {
        LevelFilter::DEBUG
    } else if within("kube_client::client") || within("kube_client::config") {
        LevelFilter::OFF
    } else if within("kube_runtime::watcher") {
        LevelFilter::WARN
    } else if within("kube_runtime") {
        LevelFilter::DEBUG
    } else {
        LevelFilter::WARN
    }
}

/// kube's span around each reconcile is left out: our own lines name the object as fields. So is its word on each request
/// that failed, which names nothing: our own lines say what failed, once.
fn is_clean(metadata: &Metadata<'_>) -> bool {
    let repeats_the_object = metadata.is_span() && metadata.target().starts_with("kube_runtime::controller");
    let repeats_the_failure = *metadata.level() == Level::ERROR && metadata.target() == "kube_client::client::builder";
    !repeats_the_object && !repeats_the_failure && *metadata.level() <= ceiling(metadata.target())
}

fn log_layer<S, W>(level: &LogLevel, format: LogFormat, colour: bool, writer: W) -> Result<impl Layer<S>, LogError>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let wanted = EnvFilter::builder().parse(&level.0).map_err(|_| LogError::Level(level.0.clone()))?;
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(colour).boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    Ok(lines.with_filter(wanted.and(filter_fn(is_clean))))
}

/// Logs to stderr from here on. Records of the `log` crate are not taken in: rustls and others print there.
///
/// # Errors
/// When directives cannot be parsed, or on a second call in one process.
pub fn init_logging(level: &LogLevel, format: LogFormat) -> Result<(), LogError> {
    let colour = std::io::stderr().is_terminal();
    let layer = log_layer(level, format, colour, std::io::stderr)?;
    tracing_subscriber::registry().with(layer).try_init().map_err(|_| LogError::Twice)
}

/// From here on a panic is reported with its place alone: its payload may quote a secret.
pub fn hide_panic_payloads() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, "panicked: this is a bug, please report it with this place");
    }));
}

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

/// How long the heart may be silent before `/healthz` fails.
pub const HEARTBEAT_LIMIT: Duration = Duration::from_mins(1);

/// What the probes answer. Not ready, and alive, when made.
#[derive(Debug)]
pub struct Probes {
    ready: AtomicBool,
    made: Instant,
    /// Milliseconds from `made` to the last beat, on the monotonic clock: suspension is no death.
    last_beat_millis: AtomicU64,
}

impl Default for Probes {
    fn default() -> Self {
        Self { ready: AtomicBool::new(false), made: Instant::now(), last_beat_millis: AtomicU64::new(0) }
    }
}

impl Probes {
    /// What `/readyz` answers from here on.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    /// The controller's loop is alive. To be called every 10 s or so; see [`HEARTBEAT_LIMIT`].
    pub fn beat(&self) {
        let millis = u64::try_from(self.made.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_beat_millis.store(millis, Ordering::Relaxed);
    }

    fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    fn is_alive(&self) -> bool {
        let last_beat = Duration::from_millis(self.last_beat_millis.load(Ordering::Relaxed));
        self.made.elapsed().saturating_sub(last_beat) < HEARTBEAT_LIMIT
    }
}

/// Connections served at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 64;
/// From accepting a connection until its request's headers are there.
const HEADER_READ_LIMIT: Duration = Duration::from_secs(2);
/// From accepting a connection until it is closed.
const CONNECTION_LIMIT: Duration = Duration::from_secs(10);
/// Of a request's line and headers (the least that hyper takes).
const REQUEST_BYTES_MAX: usize = 8 * 1024;
/// Before accepting again after the system refused (out of file descriptors, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

const TEXT: &str = "text/plain; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves `/healthz`, `/readyz` and `/metrics` by GET and HEAD until `shutdown` is cancelled. One request a connection,
/// and a limit on everything a client can hold on to.
pub async fn serve(listener: TcpListener, probes: Arc<Probes>, metrics: Arc<Metrics>, shutdown: CancellationToken) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = TaskTracker::new();
    let accepting = async {
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
                return;
            };
            let stream = accept(&listener).await;
            let (probes, metrics, stop) = (Arc::clone(&probes), Arc::clone(&metrics), shutdown.clone());
            connections.spawn(async move {
                stop.run_until_cancelled(serve_connection(stream, &probes, &metrics)).await;
                drop(slot);
            });
        }
    };
    shutdown.run_until_cancelled(accepting).await;
    connections.close();
    connections.wait().await;
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection");
                time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, probes: &Probes, metrics: &Metrics) {
    let service = service_fn(async |request: Request<Incoming>| {
        Ok::<_, Infallible>(respond(request.method(), request.uri().path(), probes, metrics))
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ_LIMIT)
        .max_buf_size(REQUEST_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // What a client gets wrong, or that it left, is of no interest to anyone.
    drop(time::timeout(CONNECTION_LIMIT, connection).await);
}

fn respond(method: &Method, path: &str, probes: &Probes, metrics: &Metrics) -> Response<Full<Bytes>> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut refusal = answer(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET and HEAD only\n");
        refusal.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD"));
        return refusal;
    }
    match path {
        "/healthz" if probes.is_alive() => answer(StatusCode::OK, TEXT, "ok\n"),
        "/healthz" => answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, "the controller's loop has stopped\n"),
        "/readyz" if probes.is_ready() => answer(StatusCode::OK, TEXT, "ok\n"),
        "/readyz" => answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, "not ready\n"),
        "/metrics" => match metrics.encode() {
            Ok(text) => answer(StatusCode::OK, OPEN_METRICS, text),
            Err(_) => answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "metrics cannot be written\n"),
        },
        _ => answer(StatusCode::NOT_FOUND, TEXT, "only /healthz, /readyz and /metrics are here\n"),
    }
}

fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::SocketAddr;
    use std::sync::Mutex;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(level: &str, format: LogFormat, act: impl FnOnce()) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let layer = log_layer(&level.parse().unwrap(), format, false, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), act);
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn levels_are_checked() {
        for good in ["error", "info", "TRACE", "off", "info,moneygo_operator=debug", "[reconcile]=trace"] {
            assert!(good.parse::<LogLevel>().is_ok(), "{good}");
        }
        for bad in ["", "inof", "info,", "kube=loud", "verbose,info"] {
            assert_eq!(bad.parse::<LogLevel>(), Err(LogError::Level(bad.to_owned())), "{bad}");
        }
    }

    #[test]
    fn what_can_hold_a_secret_is_silent_at_every_level() {
        let everything =
            "trace,kube_client=trace,kube_client::client=trace,hyper=trace,h2=trace,rustls=trace,reqwest=trace";
        let log = logged(everything, LogFormat::Text, || {
            tracing::warn!(target: "kube_client::client", "canary-body");
            tracing::error!(target: "kube_client::client::auth", "canary-auth");
            tracing::error!(target: "kube_client::config", "canary-kubeconfig");
            tracing::error!(target: "kube_client::client::builder", "canary-failed-with-nothing-named");
            tracing::debug!(target: "kube_runtime::watcher", "canary-parser");
            tracing::trace!(target: "kube_runtime::controller", "canary-object");
            for level_and_target in [
                || tracing::debug!(target: "hyper::proto::h1", "canary-hyper"),
                || tracing::trace!(target: "h2::codec", "canary-h2"),
                || tracing::debug!(target: "rustls::client", "canary-rustls"),
                || tracing::info!(target: "reqwest::connect", "canary-reqwest"),
                || tracing::info!(target: "kube_clientele", "canary-unknown"),
            ] {
                level_and_target();
            }
            let _span = tracing::error_span!(target: "kube_client::client", "http", body = "canary-span").entered();
            tracing::trace!("kept-own");
            tracing::debug!(target: "kube_client::client::builder", "kept-request");
            tracing::warn!(target: "hyper", "kept-warning");
        });
        assert!(!log.contains("canary"), "{log}");
        for kept in ["kept-own", "kept-request", "kept-warning"] {
            assert!(log.contains(kept), "{log}");
        }
    }

    #[test]
    fn the_level_is_obeyed() {
        let log = logged("warn", LogFormat::Text, || {
            tracing::info!("hidden");
            tracing::warn!("shown");
        });
        assert!(log.contains("shown") && !log.contains("hidden"), "{log}");
    }

    #[test]
    fn json_lines_hold_time_level_target_and_fields() {
        let log = logged("info", LogFormat::Json, || {
            tracing::info!(answer = 42, "hello");
        });
        let line: serde_json::Value = serde_json::from_str(&log).unwrap();
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["target"], "moneygo_operator::telemetry::tests");
        assert_eq!(line["fields"], serde_json::json!({"message": "hello", "answer": 42}));
        assert!(line["timestamp"].is_string());
    }

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

    #[tokio::test(start_paused = true)]
    async fn the_heart_must_beat() {
        let probes = Probes::default();
        time::advance(Duration::from_secs(59)).await;
        assert!(probes.is_alive());
        probes.beat();
        time::advance(Duration::from_secs(59)).await;
        assert!(probes.is_alive());
        time::advance(Duration::from_secs(1)).await;
        assert!(!probes.is_alive());
        probes.beat();
        assert!(probes.is_alive());
    }

    struct Server {
        address: SocketAddr,
        probes: Arc<Probes>,
        shutdown: CancellationToken,
        running: tokio::task::JoinHandle<()>,
    }

    impl Server {
        async fn start() -> Self {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
            let address = listener.local_addr().unwrap();
            let (probes, shutdown) = (Arc::new(Probes::default()), CancellationToken::new());
            let serving = serve(listener, Arc::clone(&probes), Arc::new(Metrics::new()), shutdown.clone());
            Self { address, probes, shutdown, running: tokio::spawn(serving) }
        }

        async fn send(&self, request: &str) -> String {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            let read = stream.read_to_string(&mut answer);
            time::timeout(CONNECTION_LIMIT * 2, read).await.unwrap().unwrap();
            answer
        }

        async fn get(&self, path: &str) -> String {
            self.send(&format!("GET {path} HTTP/1.1\r\nHost: here\r\n\r\n")).await
        }

        async fn stop(self) {
            self.shutdown.cancel();
            time::timeout(Duration::from_secs(5), self.running).await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn probes_and_metrics_are_served() {
        let server = Server::start().await;
        assert!(server.get("/healthz").await.starts_with("HTTP/1.1 200"));
        assert!(server.get("/readyz").await.starts_with("HTTP/1.1 503"));
        server.probes.set_ready(true);
        assert!(server.get("/readyz?verbose").await.starts_with("HTTP/1.1 200"));
        let metrics = server.get("/metrics").await;
        assert!(metrics.contains(&format!("content-type: {OPEN_METRICS}")), "{metrics}");
        assert!(metrics.ends_with("# EOF\n"), "{metrics}");
        server.stop().await;
    }

    #[tokio::test]
    async fn all_else_is_refused() {
        let server = Server::start().await;
        for path in ["/", "/metrics/", "/debug", "/healthz/x"] {
            assert!(server.get(path).await.starts_with("HTTP/1.1 404"), "{path}");
        }
        let post = server.send("POST /healthz HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\n\r\n").await;
        assert!(post.starts_with("HTTP/1.1 405") && post.contains("allow: GET, HEAD"), "{post}");
        let head = server.send("HEAD /healthz HTTP/1.1\r\nHost: here\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(2 * REQUEST_BYTES_MAX));
        assert!(!server.send(&long).await.starts_with("HTTP/1.1 200"));
        server.stop().await;
    }

    #[tokio::test]
    async fn idle_connections_hold_no_slot_for_ever_and_no_shutdown() {
        let server = Server::start().await;
        let mut idle = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            idle.push(TcpStream::connect(server.address).await.unwrap());
        }
        assert!(server.get("/healthz").await.starts_with("HTTP/1.1 200"), "served once the idle ones were cut off");
        let held = TcpStream::connect(server.address).await.unwrap();
        server.stop().await;
        drop(held);
    }
}
