//! The process as its user meets it: flags, variables, exit codes, one line when something is wrong, signals.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

fn operator() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_moneygo-operator"));
    command.env_clear().arg("--listen=127.0.0.1:0");
    // Where coverage is measured, a program without this would leave its profile in the checkout.
    command.envs(std::env::var_os("LLVM_PROFILE_FILE").map(|file| ("LLVM_PROFILE_FILE", file)));
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Names a server in a kubeconfig of its own.
fn kubeconfig(name: &str, server: SocketAddr) -> Result<PathBuf> {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}.yaml", std::process::id()));
    let text = format!(
        "{{apiVersion: v1, kind: Config, current-context: c, contexts: [{{name: c, context: {{cluster: k, user: u}}}}], \
         clusters: [{{name: k, cluster: {{server: 'http://{server}'}}}}], users: [{{name: u, user: {{}}}}]}}"
    );
    std::fs::write(&path, text)?;
    Ok(path)
}

/// An address where nobody listens.
fn nobody() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// As much of an API server as the start asks for: every request gets `/version`'s answer.
fn api_server() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || listener.incoming().flatten().for_each(|stream| drop(answer_version(stream))));
    Ok(address)
}

fn answer_version(mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = BufReader::new(stream.try_clone()?).lines();
    request.find(|line| line.as_ref().map_or(true, String::is_empty));
    let body = r#"{"major":"1","minor":"37","gitVersion":"v1.37.2","gitCommit":"","gitTreeState":"","buildDate":"","goVersion":"","compiler":"","platform":""}"#;
    write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

#[test]
fn a_wrong_flag_is_said_in_one_line() {
    let see_help = |what: &str| format!("error: {what}: see --help\n");
    for (flags, says) in [
        (&["--no-such-flag"][..], see_help("unexpected argument '--no-such-flag' found")),
        (
            &["--watch-namespaces=a"],
            see_help("unexpected argument '--watch-namespaces' found; a similar argument exists: '--watch-namespace'"),
        ),
        (&["-x"], see_help("unexpected argument '-x' found")),
        (&["payments"], see_help("unexpected argument 'payments' found")),
        (&["--leader-elect", "no"], see_help("unexpected argument 'no' found")),
        (&["--token-url"], see_help("a value is required for '--token-url <URL>' but none was supplied")),
        (
            &["--token-url=x"],
            see_help(
                "invalid value 'x' for '--token-url <URL>': relative URL without a base; it looks like https://host/path",
            ),
        ),
        (
            &["--token-timeout=1\n0"],
            see_help(
                "invalid value '1 0' for '--token-timeout <DURATION>': must be a duration with units h, m, s or ms, as in 10s or 1m30s",
            ),
        ),
        (
            &["--log-format=xml"],
            see_help("invalid value 'xml' for '--log-format <FORMAT>' [possible values: text, json]"),
        ),
        (
            &["--log-level=info", "--log-level=debug"],
            see_help("the argument '--log-level <LEVEL>' cannot be used multiple times"),
        ),
        (
            &["--token-url=http://example.test/"],
            "error: --token-url must begin with https://: client secrets would cross the network in the clear (--allow-insecure-token-url permits it)\n"
                .to_owned(),
        ),
    ] {
        let output = operator().args(flags).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{flags:?}");
        assert_eq!((stderr(&output), output.stdout), (says, Vec::new()), "{flags:?}");
    }
}

#[test]
fn variables_are_checked_as_the_flags_are() {
    for (variable, bad) in [
        ("MONEYGO_TOKEN_URL", "nonsense"),
        ("MONEYGO_ALLOW_INSECURE_TOKEN_URL", "maybe"),
        ("MONEYGO_TOKEN_TIMEOUT", "10"),
        ("MONEYGO_TOKEN_REQUESTS_PER_SECOND", "0"),
        ("MONEYGO_TOKEN_CONCURRENCY", "-1"),
        ("MONEYGO_WATCH_NAMESPACE", "a,B"),
        ("MONEYGO_LABEL_SELECTOR", "a b"),
        ("MONEYGO_LEADER_ELECT", "maybe"),
        ("MONEYGO_LEADER_ELECT_NAMESPACE", "A"),
        ("MONEYGO_LEADER_ELECT_LEASE_NAME", "A"),
        ("MONEYGO_LEADER_ELECT_LEASE_DURATION", "1s"),
        ("MONEYGO_LOG_LEVEL", "loud"),
        ("MONEYGO_LOG_FORMAT", "xml"),
    ] {
        let output = operator().env(variable, bad).output().unwrap();
        let flag = variable.trim_start_matches("MONEYGO_").to_lowercase().replace('_', "-");
        assert_eq!(output.status.code(), Some(2), "{variable}");
        let line = stderr(&output);
        assert!(line.starts_with("error: ") && line.contains(&format!("--{flag}")), "{variable}: {line}");
        assert_eq!(line.lines().count(), 1, "{line}");
    }
    let mut listen = Command::new(env!("CARGO_BIN_EXE_moneygo-operator"));
    let output = listen.env("MONEYGO_LISTEN", "here").output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).lines().count()), (Some(2), 1));
}

#[test]
fn an_unreachable_cluster_is_said_in_one_line() {
    let address = nobody().unwrap();
    let path = kubeconfig("unreachable", address).unwrap();
    // Every variable is good, so that what is left to complain of is the cluster.
    let output = operator()
        .env("KUBECONFIG", &path)
        .env("MONEYGO_TOKEN_URL", "http://example.test/token")
        .env("MONEYGO_ALLOW_INSECURE_TOKEN_URL", "true")
        .env("MONEYGO_TOKEN_TIMEOUT", "1m30s")
        .env("MONEYGO_TOKEN_REQUESTS_PER_SECOND", "0.5")
        .env("MONEYGO_TOKEN_CONCURRENCY", "2")
        .env("MONEYGO_WATCH_NAMESPACE", "a,b")
        .env("MONEYGO_LABEL_SELECTOR", "tier in (a,b)")
        .env("MONEYGO_LEADER_ELECT", "true")
        .env("MONEYGO_LEADER_ELECT_NAMESPACE", "a")
        .env("MONEYGO_LEADER_ELECT_LEASE_NAME", "a.b")
        .env("MONEYGO_LEADER_ELECT_LEASE_DURATION", "3s")
        .env("MONEYGO_LOG_LEVEL", "off")
        .env("MONEYGO_LOG_FORMAT", "json")
        .output()
        .unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with(&format!("error: cannot reach the cluster at http://{address}/")), "{text}");
    assert!(text.contains("Connection refused") && text.contains("KUBECONFIG"), "{text}");
}

#[test]
fn no_configuration_and_a_broken_one_are_said_in_one_line() {
    let broken = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("broken-{}.yaml", std::process::id()));
    std::fs::write(&broken, "users: [{name: u, user: {token: [canary]}}]").unwrap();
    for path in [broken, "/nowhere/kubeconfig".into()] {
        let output = operator().arg("--log-level=trace").env("KUBECONFIG", path).output().unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("set KUBECONFIG") && !text.contains("canary"), "{text}");
    }
}

#[test]
fn an_election_needs_a_namespace() {
    let path = kubeconfig("no-namespace", api_server().unwrap()).unwrap();
    let output = operator().args(["--leader-elect", "--log-level=off"]).env("KUBECONFIG", path).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("--leader-elect-namespace"), "{}", stderr(&output));
}

#[test]
fn help_and_version_end_well() {
    let help = operator().arg("--help").output().unwrap();
    assert!(help.status.success() && help.stderr.is_empty());
    assert!(String::from_utf8_lossy(&help.stdout).contains("MONEYGO_TOKEN_URL"));
    let version = operator().arg("--version").output().unwrap();
    assert_eq!(version.stdout, concat!("moneygo-operator ", env!("CARGO_PKG_VERSION"), "\n").as_bytes());
}

/// Ends the process, whatever becomes of the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn it_serves_and_stops_on_a_signal() {
    // The proxy is for Money-Go alone: were the cluster asked through it, nothing would start.
    let path = kubeconfig("stops", api_server().unwrap()).unwrap();
    let proxy = format!("http://{}", nobody().unwrap());
    for signal in ["TERM", "INT"] {
        let mut command = operator();
        command.arg("--log-format=json").env("KUBECONFIG", &path).env("HTTPS_PROXY", &proxy).stderr(Stdio::piped());
        serves_and_stops(&mut command, signal).unwrap();
    }
}

fn serves_and_stops(command: &mut Command, signal: &str) -> Result<()> {
    let mut operator = Running(command.spawn()?);
    let mut log = BufReader::new(operator.0.stderr.take().context("no stderr")?);
    let mut started = String::new();
    log.read_line(&mut started)?;
    let started: serde_json::Value = serde_json::from_str(&started).context(started)?;
    let address = started["fields"]["listen"].as_str().context("no address")?;

    let mut stream = TcpStream::connect(address)?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), answer);

    let asked = Instant::now();
    let kill = format!("kill -{signal} {}", operator.0.id());
    ensure!(Command::new("sh").args(["-c", &kill]).status()?.success(), "no signal sent");
    let status = operator.0.wait()?;
    ensure!(status.success(), "{status}");
    ensure!(asked.elapsed() < Duration::from_secs(5), "took {:?}", asked.elapsed());
    Ok(())
}
