//! The process that is measured: the operator, or the floor.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::usage::{self, Usage};
use crate::world::{OWN_NAMESPACE, World};

const READY_LIMIT: Duration = Duration::from_mins(1);
const STOP_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(2);

/// Who does the work.
#[derive(Clone, Debug)]
pub enum Who<'a> {
    /// The operator's program, with flags of its own.
    Operator(&'a Path, Vec<String>),
    /// The bare client.
    Floor {
        /// Objects at the same time.
        concurrency: usize,
        /// Whether deleted targets are made again.
        mend: bool,
    },
    /// External Secrets.
    Peer {
        /// Its program.
        program: &'a Path,
        /// Reconciles at the same time.
        concurrency: usize,
    },
}

impl Who<'_> {
    /// The operator with its limiter wide open.
    #[must_use]
    pub fn open(program: &Path, concurrency: usize) -> Who<'_> {
        Self::limited(program, 10_000, concurrency)
    }

    /// The operator with a limiter of so many requests a second, and so many at the same time.
    #[must_use]
    pub fn limited(program: &Path, rate: usize, concurrency: usize) -> Who<'_> {
        let flags = [format!("--token-requests-per-second={rate}"), format!("--token-concurrency={concurrency}")];
        Who::Operator(program, flags.into())
    }
}

/// A process that is measured.
pub struct Subject {
    process: Child,
    log: PathBuf,
    started: Instant,
}

impl Subject {
    /// Starts it.
    ///
    /// # Errors
    /// If it cannot be run.
    pub fn start(world: &World, who: &Who) -> Result<Self> {
        let mut command = match who {
            Who::Operator(program, flags) => {
                let mut command = Command::new(program);
                command
                    .args(["--listen=127.0.0.1:0", "--leader-elect", "--leader-elect-lease-duration=15s"])
                    .arg(format!("--leader-elect-namespace={OWN_NAMESPACE}"))
                    .arg(format!("--token-url={}", world.moneygo.token_url()))
                    .args(flags);
                command
            }
            Who::Floor { concurrency, mend } => {
                let mut command = Command::new(std::env::current_exe()?);
                command
                    .arg("floor")
                    .args(mend.then_some("--mend"))
                    .arg(format!("--concurrency={concurrency}"))
                    .arg(format!("--token-url={}", world.moneygo.token_url()))
                    .arg("--kubeconfig")
                    .arg(&world.user.kubeconfig);
                command
            }
            // Its own limits, which are low, are raised; it listens on ports that it does not choose.
            Who::Peer { program, concurrency } => {
                let mut command = Command::new(program);
                command
                    .arg(format!("--concurrent={concurrency}"))
                    .args(["--client-qps=10000", "--client-burst=10000"])
                    .args(["--metrics-addr=127.0.0.1:0", "--live-addr=127.0.0.1:0"]);
                command
            }
        };
        let log = world.plane.folder().join(format!("subject-{}.log", jiff::Timestamp::now().as_nanosecond()));
        let output = File::create(&log)?;
        let command = world.plane.tie(&mut command);
        let process = command
            .env_clear()
            .env("KUBECONFIG", &world.user.kubeconfig)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("what is to be measured cannot be run")?;
        Ok(Self { process, log, started: Instant::now() })
    }

    /// What it has used so far.
    ///
    /// # Errors
    /// If it has ended: then with its last words.
    pub fn usage(&self) -> Result<Usage> {
        usage::of(self.process.id()).with_context(|| self.last_words())
    }

    /// Waits until the operator is ready, and returns how long that took since its start.
    ///
    /// # Errors
    /// If it is not within a minute.
    pub async fn ready(&mut self) -> Result<Duration> {
        loop {
            if let Some((200, _)) = self.get("/readyz").await {
                return Ok(self.started.elapsed());
            }
            let ended = self.process.try_wait()?.is_some();
            ensure!(!ended && self.started.elapsed() < READY_LIMIT, "it is not ready:\n{}", self.last_words());
            tokio::time::sleep(POLL).await;
        }
    }

    /// A value of the operator's metrics; 0 where it has none of that name.
    pub async fn metric(&self, series: &str) -> f64 {
        let text = self.get("/metrics").await.map(|(_, text)| text).unwrap_or_default();
        let value = |line: &str| line.strip_prefix(series)?.trim().parse().ok();
        text.lines().find_map(value).unwrap_or_default()
    }

    async fn get(&self, path: &str) -> Option<(u16, String)> {
        let address = self.address()?;
        let mut stream = TcpStream::connect(address).await.ok()?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split_whitespace().nth(1)?.parse().ok()?, body.to_owned()))
    }

    /// Kills it.
    ///
    /// # Errors
    /// If it cannot be waited for.
    pub fn kill(mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    fn address(&self) -> Option<SocketAddr> {
        let log = std::fs::read_to_string(&self.log).ok()?;
        log.split_whitespace().find_map(|word| word.strip_prefix("listen="))?.parse().ok()
    }

    /// The end of its log.
    #[must_use]
    pub fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let from = log.len().saturating_sub(2000);
        log.get(from..).unwrap_or(&log).to_owned()
    }

    /// Asks it to stop, and waits until it has. The floor does not listen, and is killed.
    ///
    /// # Errors
    /// If it does not end.
    pub async fn stop(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.process), Signal::TERM)?;
        let asked = Instant::now();
        while self.process.try_wait()?.is_none() {
            ensure!(asked.elapsed() < STOP_LIMIT, "it does not stop:\n{}", self.last_words());
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
