//! `cargo xtask demo`: the operator at work, on a machine with Rust and Go and nothing else.

use std::{
    env,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context, ensure};
use clap::Args;
use fake_moneygo::FakeMoneyGo;
use jiff::Timestamp;
use moneygo_controlplane::{Binaries, Leash, Release};
use serde_json::Value;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::{
    checkout,
    signals::{INTERRUPTED, Signals},
    terminal, tools,
};

mod cluster;
mod operator;
mod sample;
mod watch;

use cluster::Cluster;
use operator::Operator;
use sample::Sample;
use watch::Watch;

/// What the demo runs on, and for how long.
#[derive(Args)]
#[expect(clippy::doc_markdown, reason = "the help is read on a terminal")]
pub struct Options {
    /// End after the first refresh (with --token-url: as soon as the token is there)
    #[arg(long)]
    once: bool,
    /// Use the cluster of this kubeconfig, in a namespace of its own that is removed in the end, instead of starting one
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Ask this token endpoint, as the client that MONEYGO_CLIENT_ID and MONEYGO_CLIENT_SECRET name, instead of a stand-in
    #[arg(long, value_name = "URL")]
    token_url: Option<String>,
}

/// What has been set up, in the order in which it is taken down.
#[derive(Default)]
struct Stage {
    operator: Option<Operator>,
    cluster: Option<Cluster>,
    stand_in: Option<FakeMoneyGo>,
    /// The thread in which the servers are built.
    building: Option<JoinHandle<anyhow::Result<Binaries>>>,
    /// Last: it kills whatever is still tied to it.
    leash: Option<Leash>,
    /// Whether all was shown that `--once` shows.
    shown: bool,
}

/// Runs the demo, and takes down what it has set up, however it ends.
pub fn run(options: &Options) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    let code = runtime.block_on(perform(options));
    // A thread that waits for cargo or Go must not hold up the end: both are gone already.
    runtime.shutdown_background();
    code
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("{} {error:#}", terminal::red("error:"));
    ExitCode::FAILURE
}

async fn perform(options: &Options) -> ExitCode {
    let mut stage = Stage::default();
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => return fail(&error),
    };
    let ended = tokio::select! {
        ended = play(&mut stage, options) => Some(ended),
        () = signals.next() => None,
    };
    let code = match ended {
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(error)) => fail(&error),
        None if stage.shown => ExitCode::SUCCESS,
        None => ExitCode::from(INTERRUPTED),
    };
    println!();
    terminal::heading("Cleaning up");
    tokio::select! {
        cleared = stage.clear() => match cleared {
            Ok(()) => code,
            Err(error) => fail(&error),
        },
        // What is tied to the leash goes even so.
        () = signals.next() => ExitCode::from(INTERRUPTED),
    }
}

impl Stage {
    async fn clear(self) -> anyhow::Result<()> {
        Binaries::abandon();
        if let Some(building) = self.building {
            let _ = building.await;
        }
        if let Some(operator) = self.operator {
            operator.stop().await;
        }
        let cleared = match self.cluster {
            Some(cluster) => cluster.clear().await,
            None => Ok(()),
        };
        if let Some(stand_in) = self.stand_in {
            stand_in.shutdown().await;
        }
        spawn_blocking(move || drop(self.leash)).await?;
        cleared
    }
}

async fn play(stage: &mut Stage, options: &Options) -> anyhow::Result<()> {
    let sample = Sample::read(options.token_url.is_some())?;
    let name = format!("moneygo-demo-{}-{}", std::process::id(), now().as_millisecond());
    let leash = stage.leash.insert(Leash::new(env::temp_dir().join(&name)).context("cannot make a temporary folder")?);
    let program = build_operator(leash).await?;
    let kubectl = kubectl(&mut stage.building, options).await?;

    let cluster = match &options.kubeconfig {
        Some(file) => stage.cluster.insert(Cluster::given(file, name).await?),
        None => stage.cluster.insert(Cluster::started().await?),
    };
    cluster.prepare().await?;
    let token_url = match &options.token_url {
        Some(url) => url.clone(),
        None => stage.stand_in.insert(sample.stand_in().await?).token_url(),
    };
    let operator = stage.operator.insert(Operator::start(&program, &token_url, cluster, leash)?);
    sample.apply(cluster).await?;

    let mut watch = Watch::new(cluster, operator, leash, kubectl, sample.name());
    watch.until_ready().await?;
    if stage.stand_in.is_some() {
        watch.until_refreshed().await?;
    } else {
        watch.tell_refresh();
    }
    stage.shown = true;
    if options.once {
        println!("\nWithout --once the demo goes on, and you can try what you like.");
        return Ok(());
    }
    watch.tell_next();
    watch.show_refreshes().await
}

/// Builds the operator's binary, and returns where it is. Cargo shows the progress.
async fn build_operator(leash: &Leash) -> anyhow::Result<PathBuf> {
    terminal::heading("Building the operator");
    let started = Instant::now();
    let mut cargo = terminal::cargo(checkout());
    // Together with this program, whose dependencies are the same: alone, cargo would choose other features for some, and
    // compile these and all that stands on them again.
    cargo.args([
        "build",
        "--locked",
        "--package",
        "moneygo-operator",
        "--package",
        "xtask",
        "--bin",
        "moneygo-operator",
    ]);
    cargo.arg("--message-format=json-render-diagnostics").stdin(Stdio::null()).stdout(Stdio::piped());
    let child = leash.tie(&mut cargo).spawn().context("cannot run cargo")?;
    let output = spawn_blocking(|| child.wait_with_output()).await?.context("cannot wait for cargo")?;
    ensure!(output.status.success(), "the operator does not compile: see above");
    let messages = output.stdout.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
    let program = messages.filter_map(|message: Value| Some(message["executable"].as_str()?.to_owned())).next_back();
    println!("    done in {}", terminal::time(started.elapsed()));
    program.map(PathBuf::from).context("cargo built no operator")
}

/// The command-line client, after building it and the servers where one is to be started.
async fn kubectl(
    building: &mut Option<JoinHandle<anyhow::Result<Binaries>>>,
    options: &Options,
) -> anyhow::Result<PathBuf> {
    if options.kubeconfig.is_some() && tools::is_found("kubectl", "help") {
        return Ok("kubectl".into());
    }
    let release = Release::chosen()?;
    terminal::heading(&format!("Looking for a Kubernetes API server ({}): built here the first time", release.version));
    let binaries = building.insert(spawn_blocking(|| Binaries::locate(release))).await??;
    *building = None;
    println!("    {}", binaries.apiserver.parent().unwrap_or(Path::new("/")).display());
    Ok(binaries.kubectl)
}

#[expect(clippy::disallowed_methods, reason = "a person is told how long something takes")]
fn now() -> Timestamp {
    Timestamp::now()
}
