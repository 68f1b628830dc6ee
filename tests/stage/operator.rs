//! The operator's process.

use std::ffi::OsString;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{SOON, Stage};

/// How long it may take to be ready on a machine that is busy.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// How long a stop may take until the process is killed. What it should take is for a test to judge.
const STOP_LIMIT: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(5);
const TAIL_LINES: usize = 40;

static STARTED: AtomicUsize = AtomicUsize::new(0);

/// How an operator is started.
pub struct OperatorBuilder<'a> {
    stage: &'a Stage,
    flags: Vec<String>,
    environment: Vec<(String, OsString)>,
}

impl<'a> OperatorBuilder<'a> {
    pub(super) fn new(stage: &'a Stage) -> Self {
        let mut flags = vec![
            format!("--token-url={}", stage.moneygo.token_url()),
            "--listen=127.0.0.1:0".to_owned(),
            format!("--leader-elect-namespace={}", stage.own_namespace),
        ];
        if stage.is_cluster_wide {
            flags.push(format!("--label-selector={}={}", super::STAGE_LABEL, stage.namespace));
        } else {
            flags.push(format!("--watch-namespace={}", stage.namespace));
        }
        let environment = vec![
            ("KUBECONFIG".to_owned(), stage.user.kubeconfig.clone().into_os_string()),
            ("MONEYGO_LOG_LEVEL".to_owned(), "info,moneygo_operator=debug".into()),
        ];
        Self { stage, flags, environment }
    }

    /// Adds a flag, as `--name=value`. It must not be among those that the stage gives: the token URL, the address, the namespaces and the selector.
    pub fn flag(mut self, flag: impl Into<String>) -> Self {
        self.flags.push(flag.into());
        self
    }

    /// Takes a flag of the stage's own away, by its name (`--token-url`).
    pub fn without_flag(mut self, name: &str) -> Self {
        self.flags.retain(|flag| flag.split('=').next() != Some(name));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// Starts it, and waits until it is ready.
    pub async fn start(self) -> Operator<'a> {
        let stage = self.stage;
        let mut operator = self.spawn();
        if let Err(problem) = operator.is_ready_in_time().await {
            panic!("{problem}\n{}", stage.account());
        }
        operator
    }

    /// Starts it.
    pub fn spawn(self) -> Operator<'a> {
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let log = self.stage.plane.folder().join(format!("operator-{number}-{}.log", self.stage.namespace));
        let output = File::create(&log).expect("a log");
        let mut command = Command::new(program());
        self.stage.plane.tie(&mut command);
        for (name, _) in std::env::vars_os() {
            if is_for_the_tests_alone(&name.to_string_lossy()) {
                command.env_remove(name);
            }
        }
        let process = command
            .args(&self.flags)
            .envs(self.environment)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a log"))
            .stderr(output)
            .spawn()
            .expect("the operator's binary runs");
        self.stage.logs.lock().unwrap().push(log.clone());
        Operator { stage: self.stage, process, log, address: None, exit: None }
    }
}

/// The operator's program. Cargo names it to tests of its own package; for those of another it is where Cargo puts it, and built anew
/// where it is older than what it is made of: a test must not judge yesterday's operator.
fn program() -> PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    if let Some(program) = option_env!("CARGO_BIN_EXE_moneygo-operator") {
        return program.into();
    }
    PROGRAM
        .get_or_init(|| {
            let test = std::env::current_exe().expect("this program");
            let program = test.ancestors().nth(2).expect("Cargo's folder").join("moneygo-operator");
            let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
            let made_of = newest(&root.join("src")).max(written(&root.join("Cargo.lock")));
            if !program.exists() || written(&program) < made_of {
                let build = ["build", "--workspace", "--locked", "--bin", "moneygo-operator"];
                let status = Command::new(env!("CARGO")).args(build).current_dir(root).status();
                assert!(status.expect("cargo").success(), "the operator is not built");
            }
            program
        })
        .clone()
}

fn newest(folder: &Path) -> SystemTime {
    let entries = std::fs::read_dir(folder).expect("a folder of sources").map(|entry| entry.expect("an entry").path());
    let times = entries.map(|path| if path.is_dir() { newest(&path) } else { written(&path) });
    times.max().unwrap_or(SystemTime::UNIX_EPOCH)
}

fn written(path: &Path) -> SystemTime {
    std::fs::metadata(path).and_then(|metadata| metadata.modified()).expect("the time of a file")
}

fn is_for_the_tests_alone(variable: &str) -> bool {
    let upper = variable.to_uppercase();
    upper.starts_with("MONEYGO_")
        || upper.starts_with("OTEL_")
        || upper.starts_with("KUBE")
        || upper.ends_with("_PROXY")
}

/// A running operator. Dropping it stops it; a test that panics shows the end of its log.
pub struct Operator<'a> {
    stage: &'a Stage,
    process: Child,
    /// Where it logs to.
    pub log: PathBuf,
    address: Option<SocketAddr>,
    exit: Option<ExitStatus>,
}

/// How an operator ended.
#[derive(Debug, Clone, Copy)]
pub struct Stopped {
    /// From the signal to its end.
    pub elapsed: Duration,
    /// Its exit status.
    pub status: ExitStatus,
}

impl<'a> Operator<'a> {
    /// Waits until it has logged a text so many times. It may be stopped meanwhile.
    pub fn until_logged(&self, text: &'static str, times: usize) -> impl Future<Output = ()> + use<'a> {
        let (stage, log) = (self.stage, self.log.clone());
        async move {
            let started = Instant::now();
            let count = || String::from_utf8_lossy(&std::fs::read(&log).expect("the log")).matches(text).count();
            while count() < times {
                assert!(started.elapsed() < SOON, "it did not log \"{text}\" {times} times\n{}", stage.account());
                tokio::time::sleep(POLL).await;
            }
        }
    }

    /// Waits until `/readyz` says so.
    pub async fn ready(&mut self) {
        if let Err(problem) = self.is_ready_in_time().await {
            panic!("{problem}\n{}", self.stage.account());
        }
    }

    async fn is_ready_in_time(&mut self) -> Result<(), String> {
        let started = Instant::now();
        while started.elapsed() < READY_LIMIT {
            if let Some(status) = self.process.try_wait().expect("the operator's status") {
                self.exit = Some(status);
                return Err(format!("the operator ended: {status}"));
            }
            if self.get("/readyz").await.is_some_and(|(status, _)| status == 200) {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
        Err(format!("the operator is not ready after {READY_LIMIT:?}"))
    }

    /// Where it serves health and metrics, once it has said so.
    pub fn address(&mut self) -> Option<SocketAddr> {
        if self.address.is_none() {
            self.address = self.log().lines().find_map(|line| {
                let text = line.split_whitespace().find_map(|word| word.strip_prefix("listen="));
                let json = || line.split_once("\"listen\":\"")?.1.split('"').next();
                text.or_else(json)?.parse().ok()
            });
        }
        self.address
    }

    /// Asks it for a path: the status and the body, or `None` while it does not answer.
    pub async fn get(&mut self, path: &str) -> Option<(u16, String)> {
        let address = self.address()?;
        let asking = async {
            let mut stream = TcpStream::connect(address).await.ok()?;
            let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
            stream.write_all(request.as_bytes()).await.ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.ok()?;
            Some(answer)
        };
        let answer = tokio::time::timeout(Duration::from_secs(5), asking).await.ok()??;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split_whitespace().nth(1)?.parse().ok()?, body.to_owned()))
    }

    /// All that it has logged.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.exit.is_none() && self.process.try_wait().expect("the operator's status").is_none()
    }

    /// SIGTERM, and waits until it has ended. Panics where it did not end with 0.
    pub async fn stop(mut self) -> Stopped {
        let started = Instant::now();
        self.signal(Signal::TERM);
        let stopped = self.ended(started).await;
        assert!(stopped.status.success(), "{}\n{}", stopped.status, tail(&self.log));
        stopped
    }

    /// SIGKILL, and waits until it has ended.
    pub async fn kill(mut self) -> Stopped {
        let started = Instant::now();
        self.signal(Signal::KILL);
        self.ended(started).await
    }

    /// Waits until it has ended by itself.
    pub async fn wait(mut self) -> Stopped {
        self.ended(Instant::now()).await
    }

    /// SIGSTOP: it stands still from here on.
    pub fn suspend(&self) {
        moneygo_controlplane::halt(&self.process).expect("the operator stands still");
    }

    /// SIGCONT: it goes on.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).expect("the operator takes signals");
    }

    async fn ended(&mut self, started: Instant) -> Stopped {
        while started.elapsed() < STOP_LIMIT {
            if let Some(status) = self.process.try_wait().expect("the operator's status") {
                self.exit = Some(status);
                return Stopped { elapsed: started.elapsed(), status };
            }
            tokio::time::sleep(POLL).await;
        }
        panic!("the operator has not ended after {STOP_LIMIT:?}\n{}", tail(&self.log));
    }
}

impl Drop for Operator<'_> {
    fn drop(&mut self) {
        if self.exit.is_none() && matches!(self.process.try_wait(), Ok(None)) {
            let _ = kill_process(Pid::from_child(&self.process), Signal::TERM);
            let started = Instant::now();
            while matches!(self.process.try_wait(), Ok(None)) && started.elapsed() < Duration::from_secs(6) {
                std::thread::sleep(POLL);
            }
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
        if std::thread::panicking() {
            eprintln!("{}", tail(&self.log));
        }
    }
}

pub(super) fn tail(log: &Path) -> String {
    let text = String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned();
    let lines: Vec<_> = text.lines().collect();
    format!("the end of {}:\n{}", log.display(), lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n"))
}
