//! Logs. What can hold a secret is held back, whatever the user asks for.

use std::io::IsTerminal;
use std::str::FromStr;

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

/// Spans around each reconcile (kube's and our own) are left out: our own lines name the object as fields. So is its word on each request
/// that failed, which names nothing: our own lines say what failed, once.
fn is_clean(metadata: &Metadata<'_>) -> bool {
    let repeats_the_object = crate::traces::is_ours(metadata)
        || (metadata.is_span() && metadata.target().starts_with("kube_runtime::controller"));
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

/// The same, and spans go to a collector, if there is one.
///
/// # Errors
/// As [`init_logging`].
#[cfg(feature = "otlp")]
pub fn init_logging_and_traces(
    level: &LogLevel,
    format: LogFormat,
    traces: Option<&crate::traces::Traces>,
) -> Result<(), LogError> {
    let colour = std::io::stderr().is_terminal();
    let layer = log_layer(level, format, colour, std::io::stderr)?;
    let registry = tracing_subscriber::registry().with(layer).with(crate::traces::layer(traces));
    registry.try_init().map_err(|_| LogError::Twice)
}

/// From here on a panic is reported with its place alone: its payload may quote a secret.
pub fn hide_panic_payloads() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, "panicked: this is a bug, please report it with this place");
    }));
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    /// What was logged.
    #[derive(Clone, Default)]
    pub struct Lines(pub Arc<Mutex<Vec<u8>>>);

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
        assert_eq!(line["target"], "moneygo_operator::telemetry::logs::tests");
        assert_eq!(line["fields"], serde_json::json!({"message": "hello", "answer": 42}));
        assert!(line["timestamp"].is_string());
    }
}
