//! The command line. Every flag can be set by an environment variable of the same name behind `MONEYGO_`.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, CommandFactory, Parser};
use moneygo_operator::lease;
use moneygo_operator::telemetry::{LogFormat, LogLevel};
use moneygo_operator::token::check_url;
use reqwest::Url;

const TOKEN_TIMEOUT_MAX: Duration = Duration::from_mins(5);
/// Slower than once in a quarter of an hour, no token of an hour could be kept.
const REQUESTS_PER_SECOND_MIN: f64 = 0.001;
const REQUESTS_PER_SECOND_MAX: f64 = 10_000.0;
const CONCURRENCY_MAX: u16 = 1_000;
const NAMESPACES_MAX: usize = 1_000;

/// Keeps Money-Go access tokens fresh in Kubernetes Secrets.
///
/// Watches `MoneyGoCredential` objects, asks Money-Go for a token with the client id and secret that each names, writes
/// it to a Secret and replaces it before it expires. Speaks to the cluster that KUBECONFIG names, else to the one whose
/// Pod it runs in. HTTPS_PROXY and NO_PROXY apply to Money-Go; a proxy for the cluster comes from the kubeconfig's
/// `proxy-url`.
#[derive(Debug, Parser)]
#[command(name = "moneygo-operator", version, max_term_width = 100)]
#[expect(clippy::doc_markdown, reason = "the help is read on a terminal")]
pub struct Args {
    /// Where tokens are asked for. Must be https, unless the host is loopback.
    #[arg(long, env = "MONEYGO_TOKEN_URL", value_name = "URL", help_heading = MONEY_GO)]
    #[arg(default_value = "https://api.money-go.com/token", value_parser = parse_url)]
    pub token_url: Url,

    /// Accept a plain http token URL on any host. Client secrets then cross the network in the clear.
    #[arg(long, env = "MONEYGO_ALLOW_INSECURE_TOKEN_URL", value_name = "BOOL", help_heading = MONEY_GO)]
    #[arg(action = ArgAction::Set, default_value_t = false)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub allow_insecure_token_url: bool,

    /// PEM file of certificate authorities to trust for the token URL, besides the usual ones.
    #[arg(long, env = "MONEYGO_TOKEN_CA_FILE", value_name = "FILE", help_heading = MONEY_GO)]
    pub token_ca_file: Option<PathBuf>,

    /// How long one token request may take in all, as in 10s or 1m30s (100ms to 5m).
    #[arg(long, env = "MONEYGO_TOKEN_TIMEOUT", value_name = "DURATION", help_heading = MONEY_GO)]
    #[arg(default_value = "10s", value_parser = parse_token_timeout)]
    pub token_timeout: Duration,

    /// Token requests started each second, at most (0.001 to 10000). May be a fraction, as in 0.5.
    #[arg(long, env = "MONEYGO_TOKEN_REQUESTS_PER_SECOND", value_name = "RATE", help_heading = MONEY_GO)]
    #[arg(default_value = "20", value_parser = parse_rate, allow_negative_numbers = true)]
    pub token_requests_per_second: f64,

    /// Token requests under way at once, at most (1 to 1000).
    #[arg(long, env = "MONEYGO_TOKEN_CONCURRENCY", value_name = "COUNT", help_heading = MONEY_GO)]
    #[arg(default_value = "16", value_parser = parse_concurrency, allow_negative_numbers = true)]
    pub token_concurrency: NonZeroU16,

    /// Namespace to watch. Give it again, or a list with commas, for more. All namespaces where unset.
    #[arg(long, env = "MONEYGO_WATCH_NAMESPACE", value_name = "NAMESPACE", help_heading = CLUSTER)]
    #[arg(value_delimiter = ',', value_parser = parse_namespace)]
    pub watch_namespace: Vec<String>,

    /// Only look at MoneyGoCredentials with these labels, as in team=payments,tier!=test.
    #[arg(long, env = "MONEYGO_LABEL_SELECTOR", value_name = "SELECTOR", help_heading = CLUSTER)]
    #[arg(value_parser = parse_selector)]
    pub label_selector: Option<String>,

    /// Run several replicas of which one works. Without it, run one replica only.
    #[arg(long, env = "MONEYGO_LEADER_ELECT", value_name = "BOOL", help_heading = ELECTION)]
    #[arg(action = ArgAction::Set, default_value_t = false)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub leader_elect: bool,

    /// Namespace of the Lease and of the Secret with the key of the digests. The Pod's own, or the kubeconfig
    /// context's, where unset.
    #[arg(long, env = "MONEYGO_LEADER_ELECT_NAMESPACE", value_name = "NAMESPACE", help_heading = ELECTION)]
    #[arg(value_parser = parse_namespace)]
    pub leader_elect_namespace: Option<String>,

    /// Name of the Lease. Two installations in one namespace need two names.
    #[arg(long, env = "MONEYGO_LEADER_ELECT_LEASE_NAME", value_name = "NAME", help_heading = ELECTION)]
    #[arg(default_value = "moneygo-operator", value_parser = parse_lease_name)]
    pub leader_elect_lease_name: String,

    /// How long a silent leader is waited for before another takes over, in whole seconds (3s to 1h). It renews
    /// every 2/15 of that and gives up after 2/3.
    #[arg(long, env = "MONEYGO_LEADER_ELECT_LEASE_DURATION", value_name = "DURATION", help_heading = ELECTION)]
    #[arg(default_value = "15s", value_parser = parse_lease_duration)]
    pub leader_elect_lease_duration: Duration,

    /// Address that serves /healthz, /readyz and /metrics over http. Port 0 takes any that is free.
    #[arg(long, env = "MONEYGO_LISTEN", value_name = "ADDRESS:PORT", help_heading = TELEMETRY)]
    #[arg(default_value = "0.0.0.0:8080", value_parser = parse_address)]
    pub listen: SocketAddr,

    /// error, warn, info, debug, trace or off, or a list such as info,moneygo_operator=debug.
    #[arg(long, env = "MONEYGO_LOG_LEVEL", value_name = "LEVEL", help_heading = TELEMETRY)]
    #[arg(default_value = "info", value_parser = LogLevel::from_str)]
    pub log_level: LogLevel,

    /// How log lines on stderr look.
    #[arg(long, env = "MONEYGO_LOG_FORMAT", value_name = "FORMAT", help_heading = TELEMETRY)]
    #[arg(default_value = "text", value_parser = log_format())]
    pub log_format: LogFormat,
}

const MONEY_GO: &str = "Money-Go";
const CLUSTER: &str = "What to watch";
const ELECTION: &str = "Leader election";
const TELEMETRY: &str = "Logs and metrics";

impl Args {
    /// From the process's arguments and environment.
    ///
    /// # Errors
    /// For anything that cannot be used, with clap's exit code (2), or for `--help` and `--version` (0).
    pub fn from_process() -> Result<Self, clap::Error> {
        Self::try_parse()?.checked()
    }

    /// What no flag can tell alone.
    fn checked(mut self) -> Result<Self, clap::Error> {
        // Not as the value is parsed: clap would repeat it.
        check_url(&self.token_url, self.allow_insecure_token_url).map_err(|error| refuse(&error.to_string()))?;
        self.watch_namespace.sort_unstable();
        self.watch_namespace.dedup();
        if self.watch_namespace.len() > NAMESPACES_MAX {
            return Err(refuse("more than 1000 namespaces in --watch-namespace: leave it out to watch all"));
        }
        Ok(self)
    }
}

/// An error of one line, with clap's exit code.
fn refuse(what: &str) -> clap::Error {
    clap::Error::raw(ErrorKind::ValueValidation, format!("{what}\n")).with_cmd(&Args::command())
}

/// What is wrong and what to do, in one line. For errors alone: `--help` and `--version` are clap's own.
pub fn in_one_line(mut error: clap::Error) -> String {
    error.remove(ContextKind::Usage);
    let mut text = error.to_string();
    // A URL with a user may hold a password.
    if let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue)
        && value.contains('@')
    {
        text = text.replace(value.as_str(), "…");
    }
    // Where the line is our own, it tells what to do already.
    let (what, advice) = match text.strip_suffix(TRY_HELP) {
        Some(what) => (what, ": see --help"),
        None => (text.as_str(), ""),
    };
    let line = what.replace("\n\n  tip: ", "; ").split_whitespace().collect::<Vec<_>>().join(" ");
    format!("{line}{advice}")
}

/// How clap ends what it says.
const TRY_HELP: &str = "\n\nFor more information, try '--help'.\n";

fn log_format() -> impl TypedValueParser<Value = LogFormat> {
    PossibleValuesParser::new(["text", "json"]).map(|word| match word.as_str() {
        "json" => LogFormat::Json,
        _ => LogFormat::Text,
    })
}

fn parse_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("{error}; it looks like https://host/path"))?;
    if !matches!(url.scheme(), "https" | "http") || !url.has_host() {
        return Err("must begin with https:// and name a host".to_owned());
    }
    Ok(url)
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "must be an IP address and a port, as in 0.0.0.0:8080 or [::]:8080".to_owned())
}

fn parse_token_timeout(text: &str) -> Result<Duration, String> {
    let timeout = parse_duration(text)?;
    if !(Duration::from_millis(100)..=TOKEN_TIMEOUT_MAX).contains(&timeout) {
        return Err("must be from 100ms to 5m".to_owned());
    }
    Ok(timeout)
}

fn parse_lease_duration(text: &str) -> Result<Duration, String> {
    let duration = parse_duration(text)?;
    let bounded = (lease::DURATION_MIN..=lease::DURATION_MAX).contains(&duration);
    if !bounded || duration.subsec_nanos() != 0 {
        return Err("must be whole seconds from 3s to 1h".to_owned());
    }
    Ok(duration)
}

/// Go's form in whole numbers: 10s, 1m30s, 500ms.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let malformed = || "must be a duration with units h, m, s or ms, as in 10s or 1m30s".to_owned();
    let (mut rest, mut total) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(malformed)?;
        let number: u64 = rest[..digits].parse().map_err(|_| malformed())?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let millis = match &rest[..end] {
            "h" => 3_600_000,
            "m" => 60_000,
            "s" => 1_000,
            "ms" => 1,
            _ => return Err(malformed()),
        };
        rest = &rest[end..];
        let part = Duration::from_millis(number.checked_mul(millis).ok_or_else(malformed)?);
        total = total.checked_add(part).ok_or_else(malformed)?;
    }
    if text.is_empty() { Err(malformed()) } else { Ok(total) }
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (REQUESTS_PER_SECOND_MIN..=REQUESTS_PER_SECOND_MAX).contains(&rate) => Ok(rate),
        _ => Err("must be a number from 0.001 to 10000".to_owned()),
    }
}

fn parse_concurrency(text: &str) -> Result<NonZeroU16, String> {
    let count: Option<NonZeroU16> = text.parse().ok().filter(|count: &NonZeroU16| count.get() <= CONCURRENCY_MAX);
    count.ok_or_else(|| "must be a whole number from 1 to 1000".to_owned())
}

/// A DNS label (RFC 1123), as Kubernetes asks of a namespace.
fn parse_namespace(text: &str) -> Result<String, String> {
    if !is_dns_label(text) {
        return Err(
            "must be a namespace's name: at most 63 of a-z, 0-9 and -, not beginning or ending with -".to_owned()
        );
    }
    Ok(text.to_owned())
}

fn parse_lease_name(text: &str) -> Result<String, String> {
    if text.len() > 253 || !text.split('.').all(is_dns_label) {
        return Err("must be an object's name: at most 253 of a-z, 0-9, - and .".to_owned());
    }
    Ok(text.to_owned())
}

fn is_dns_label(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !text.is_empty() && text.len() <= 63 && text.chars().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// As the API server takes it: `key`, `!key`, `key=value`, `key==value`, `key!=value`, `key in (a,b)`,
/// `key notin (a,b)`, with commas between.
fn parse_selector(text: &str) -> Result<String, String> {
    let malformed = |part: &str| {
        format!("{part:?} is no requirement such as team=payments, tier!=test, tier in (a,b), team or !team")
    };
    for part in split_outside_parentheses(text) {
        if !is_requirement(part.trim()) {
            return Err(malformed(part.trim()));
        }
    }
    Ok(text.to_owned())
}

fn split_outside_parentheses(text: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    text.split(move |c| {
        inside = (inside || c == '(') && c != ')';
        c == ',' && !inside
    })
}

fn is_requirement(part: &str) -> bool {
    if let Some(key) = part.strip_prefix('!') {
        return is_label_key(key.trim());
    }
    if let Some((key, value)) = ["!=", "==", "="].iter().find_map(|operator| part.split_once(operator)) {
        return is_label_key(key.trim()) && is_label_value(value.trim());
    }
    let Some((key, set)) = part.split_once(char::is_whitespace) else {
        return is_label_key(part);
    };
    let set = set.trim();
    let values = set.strip_prefix("notin").or_else(|| set.strip_prefix("in")).unwrap_or_default().trim();
    let values = values.strip_prefix('(').and_then(|values| values.strip_suffix(')'));
    is_label_key(key) && values.is_some_and(|values| values.split(',').all(|value| is_label_value(value.trim())))
}

fn is_label_key(key: &str) -> bool {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let prefixed = prefix.is_none_or(|prefix| prefix.len() <= 253 && prefix.split('.').all(is_dns_label));
    prefixed && !name.is_empty() && is_label_value(name)
}

fn is_label_value(value: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let ends =
        value.starts_with(|c: char| c.is_ascii_alphanumeric()) && value.ends_with(|c: char| c.is_ascii_alphanumeric());
    value.is_empty() || (value.len() <= 63 && value.chars().all(inner) && ends)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(flags: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from(["moneygo-operator"].iter().chain(flags))?.checked()
    }

    #[test]
    fn defaults() {
        let args = parse(&[]).unwrap();
        assert_eq!(args.token_url.as_str(), "https://api.money-go.com/token");
        assert_eq!(args.token_timeout, Duration::from_secs(10));
        assert!((args.token_requests_per_second - 20.0).abs() < f64::EPSILON);
        assert_eq!(args.token_concurrency.get(), 16);
        assert!(args.watch_namespace.is_empty() && args.label_selector.is_none() && args.token_ca_file.is_none());
        assert!(!args.leader_elect && !args.allow_insecure_token_url);
        assert_eq!(args.leader_elect_lease_name, "moneygo-operator");
        assert_eq!(args.leader_elect_lease_duration, Duration::from_secs(15));
        assert_eq!(args.listen.port(), 8080);
        assert_eq!((args.log_level, args.log_format), ("info".parse().unwrap(), LogFormat::Text));
    }

    #[test]
    fn every_flag_is_taken() {
        let args = parse(&[
            "--token-url=http://example.test:8443/token",
            "--allow-insecure-token-url",
            "--token-ca-file=/ca.pem",
            "--token-timeout=1m30s",
            "--token-requests-per-second=0.5",
            "--token-concurrency=3",
            "--watch-namespace=b,a",
            "--watch-namespace=b",
            "--label-selector=team=payments",
            "--listen=[::1]:0",
            "--leader-elect",
            "--leader-elect-namespace=system",
            "--leader-elect-lease-name=other",
            "--leader-elect-lease-duration=30s",
            "--log-level=info,moneygo_operator=debug",
            "--log-format=json",
        ])
        .unwrap();
        assert_eq!(args.token_url.as_str(), "http://example.test:8443/token");
        assert!(args.allow_insecure_token_url && args.leader_elect);
        assert_eq!(args.token_ca_file, Some("/ca.pem".into()));
        assert_eq!(args.token_timeout, Duration::from_secs(90));
        assert!((args.token_requests_per_second - 0.5).abs() < f64::EPSILON);
        assert_eq!(args.token_concurrency.get(), 3);
        assert_eq!(args.watch_namespace, ["a", "b"]);
        assert_eq!(args.label_selector.as_deref(), Some("team=payments"));
        assert_eq!(args.listen, "[::1]:0".parse().unwrap());
        assert_eq!(args.leader_elect_namespace.as_deref(), Some("system"));
        assert_eq!(args.leader_elect_lease_name, "other");
        assert_eq!(args.leader_elect_lease_duration, Duration::from_secs(30));
        assert_eq!(args.log_level, "info,moneygo_operator=debug".parse().unwrap());
        assert_eq!(args.log_format, LogFormat::Json);
    }

    #[test]
    fn switches_take_a_value() {
        assert!(parse(&["--leader-elect=true"]).unwrap().leader_elect);
        assert!(!parse(&["--leader-elect=false"]).unwrap().leader_elect);
        assert!(parse(&["--leader-elect=maybe"]).is_err());
    }

    #[test]
    fn every_flag_has_its_variable_a_heading_and_help() {
        let command = Args::command();
        command.clone().debug_assert();
        assert_eq!(command.get_arguments().count(), 15);
        for arg in command.get_arguments() {
            let flag = arg.get_long().unwrap();
            let variable = format!("MONEYGO_{}", flag.to_uppercase().replace('-', "_"));
            assert_eq!(arg.get_env().and_then(|name| name.to_str()), Some(variable.as_str()));
            assert!(arg.get_help().is_some() && arg.get_help_heading().is_some(), "{flag}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_refused_in_one_line_with_code_2() {
        for (flags, says) in [
            (&["--token-url=http://api.money-go.com/token"][..], "--allow-insecure-token-url"),
            (&["--token-url=api.money-go.com"], "https://host/path"),
            (&["--token-url=ftp://api.money-go.com"], "https://"),
            (&["--token-url=https://me:pass@host/"], "user"),
            (&["--token-url=ftp://me:pass@host/"], "'…' for '--token-url"),
            (&["--token-url=https://me:p#ss:pass@host/"], "'…' for '--token-url"),
            (&["--token-timeout=10"], "units"),
            (&["--token-timeout=1d"], "units"),
            (&["--token-timeout="], "units"),
            (&["--token-timeout=99999999999999999999h"], "units"),
            (&["--token-timeout=0s"], "100ms"),
            (&["--token-timeout", "6m"], "5m"),
            (&["--token-requests-per-second=0"], "from 0.001"),
            (&["--token-requests-per-second=1e-20"], "from 0.001"),
            (&["--token-requests-per-second", "-1"], "from 0.001"),
            (&["--token-requests-per-second=NaN"], "from 0.001"),
            (&["--token-requests-per-second=inf"], "from 0.001"),
            (&["--token-concurrency=0"], "1 to 1000"),
            (&["--token-concurrency=-4"], "1 to 1000"),
            (&["--watch-namespace=Payments"], "namespace"),
            (&["--watch-namespace=a,,b"], "namespace"),
            (&["--watch-namespace=-a"], "namespace"),
            (&["--label-selector=a b"], "requirement"),
            (&["--listen=8080"], "port"),
            (&["--leader-elect-lease-duration=2s"], "3s to 1h"),
            (&["--leader-elect-lease-duration=3500ms"], "whole seconds"),
            (&["--leader-elect-lease-name=Not_A_Name"], "name"),
            (&["--leader-elect-namespace=System"], "namespace"),
            (&["--log-level=inof"], "debug"),
            (&["--log-format=xml"], "json"),
            (&["--no-such-flag"], "found: see --help"),
            (&["--token-ur=x"], "; a similar argument exists: '--token-url': see --help"),
            (&["--token-url=a\n\nUsage: b\x1b[31m"], "'a Usage: b' for"),
            (&["--log-format=jsn"], "[possible values: text, json]; a similar value exists: 'json': see --help"),
        ] {
            let error = parse(flags).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{flags:?}");
            let line = in_one_line(error);
            assert!(line.starts_with("error: ") && line.contains(says), "{flags:?}: {line}");
            assert!(!line.contains(char::is_control), "{line:?}");
            assert!(!line.contains("pass@"), "{line}");
        }
    }

    #[test]
    fn loopback_needs_no_tls() {
        for url in ["http://127.0.0.1:1/token", "http://[::1]:1/", "http://localhost/"] {
            assert!(parse(&["--token-url", url]).is_ok(), "{url}");
        }
        assert!(parse(&["--token-url=http://localhost.example.com/"]).is_err());
    }

    #[test]
    fn selectors_are_checked() {
        let good = ["a", "!a", "a=b", "a==b,c!=d", "x.io/a in (b, c),d notin (e)", "a=", " a = b , c "];
        for selector in good {
            assert!(parse_selector(selector).is_ok(), "{selector}");
        }
        for selector in ["", "a,", "a b", "a in b", "a in (b", "a=b c", "=a", "a/b/c=d", "-a=b", "a>", "a in (b)) c"] {
            assert!(parse_selector(selector).is_err(), "{selector}");
        }
    }
}
