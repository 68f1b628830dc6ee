//! The operator's process.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use moneygo_controlplane::Leash;
use rustix::process::{Pid, Signal, kill_process};

use super::cluster::Cluster;
use crate::terminal;

/// It promises 5 s.
const STOP_LIMIT: Duration = Duration::from_secs(6);
const STOP_POLL: Duration = Duration::from_millis(20);
/// How much of its log an error shows.
const LOG_LINES: usize = 20;

/// A running operator. Its leash ends it even if this process is killed.
pub struct Operator {
    process: Child,
    log: PathBuf,
}

impl Operator {
    /// Starts it on that cluster, on a free port and with a log in the leash's folder.
    pub fn start(program: &Path, token_url: &str, cluster: &Cluster, leash: &Leash) -> anyhow::Result<Self> {
        terminal::heading("Starting the operator");
        let log = leash.folder().join("operator.log");
        let output = File::create(&log).context("cannot create the operator's log")?;
        let mut command = Command::new(program);
        // None of the caller's settings, nor the client that they may hold.
        for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MONEYGO_")) {
            command.env_remove(name);
        }
        command.args(["--listen", "127.0.0.1:0", "--token-url", token_url]).args(cluster.operator_flags());
        command.env("KUBECONFIG", cluster.operator_kubeconfig());
        if token_url.starts_with("http://127.0.0.1:") {
            command.envs([("NO_PROXY", "127.0.0.1"), ("no_proxy", "127.0.0.1")]);
        }
        println!("    its log: {}", log.display());
        let command = leash.tie(&mut command).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let process = command.spawn().with_context(|| format!("cannot run {}", program.display()))?;
        Ok(Self { process, log })
    }

    /// Fails if it has ended, and shows its last words.
    pub fn check(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.process.try_wait()? {
            self.show_log();
            bail!("the operator ended by itself ({status})");
        }
        Ok(())
    }

    /// Shows the end of its log.
    pub fn show_log(&self) {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        eprintln!("The end of the operator's log:");
        for line in lines.iter().skip(lines.len().saturating_sub(LOG_LINES)) {
            eprintln!("    {line}");
        }
    }

    /// Asks it to stop, and waits until it has.
    pub async fn stop(mut self) {
        let started = Instant::now();
        if matches!(self.process.try_wait(), Ok(None)) {
            let _ = kill_process(Pid::from_child(&self.process), Signal::TERM);
        }
        while let Ok(None) = self.process.try_wait() {
            if started.elapsed() > STOP_LIMIT {
                let _ = self.process.kill();
            }
            tokio::time::sleep(STOP_POLL).await;
        }
    }
}
