//! Measures the operator beside a bare client that makes the same calls, on a real API server: `cargo xtask bench`.

#![allow(clippy::disallowed_methods, reason = "the bench measures time, and is not tested with another clock")]

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};

mod burst;
mod failover;
mod fill;
mod floor;
mod idle;
mod latency;
mod machine;
mod memory;
mod peer;
mod plan;
mod plot;
mod reactions;
mod report;
mod restart;
mod results;
mod run;
mod sight;
mod stats;
mod subject;
mod usage;
mod verdicts;
mod world;

use peer::Peer;
use plan::Plan;
use results::Results;
use run::Run;
use verdicts::Line;

/// The file of results.
const RESULTS: &str = "performance.json";
/// The file of results of a run beside the peer.
const PEER_RESULTS: &str = "performance/peer.json";

#[derive(Parser)]
#[command(name = "moneygo-bench")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Be the bare client
    #[command(hide = true)]
    Floor(floor::Options),
    /// Measure everything, and write performance.json, performance.md and performance/*.svg
    Run {
        /// The operator's program
        #[arg(long)]
        operator: PathBuf,
        /// Everything once, with few objects
        #[arg(long)]
        quick: bool,
        /// Fill 50,000, too
        #[arg(long, conflicts_with = "quick")]
        largest: bool,
        /// Fail where a figure is not what it must be
        #[arg(long)]
        check: bool,
        /// The folder that is written to
        #[arg(long)]
        into: PathBuf,
    },
    /// Measure fillings and restarts of the operator, the floor and External Secrets, and write performance/peer.json and performance.md
    Peer {
        /// The operator's program
        #[arg(long)]
        operator: PathBuf,
        /// External Secrets' program
        #[arg(long)]
        program: PathBuf,
        /// The file of its CRDs
        #[arg(long)]
        crds: PathBuf,
        /// The folder that is written to
        #[arg(long)]
        into: PathBuf,
    },
    /// Write the page and the plots again, from the results that are there
    Report {
        /// Where they are
        #[arg(long)]
        into: PathBuf,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    match Arguments::parse().command {
        Command::Floor(options) => floor::run(options).await,
        Command::Run { operator, quick, largest, check, into } => {
            let plan = match (quick, largest) {
                (true, _) => Plan::QUICK,
                (false, true) => Plan::LARGEST,
                (false, false) => Plan::FULL,
            };
            let mut run = Run::new(plan, &operator)?;
            run.all().await;
            store(&run.results, &into.join(RESULTS))?;
            report(&into)?;
            conclude(&run.results, "floor", &verdicts::all(&run.results), check)
        }
        Command::Peer { operator, program, crds, into } => {
            let mut run = Run::new(Plan::PEER, &operator)?;
            run.beside(&Peer { program, crds }).await;
            store(&run.results, &into.join(PEER_RESULTS))?;
            report(&into)?;
            conclude(&run.results, "peer", &verdicts::beside_peer(&run.results), false)
        }
        Command::Report { into } => report(&into),
    }
}

fn store(results: &Results, path: &Path) -> Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(path))?;
    let text = serde_json::to_string_pretty(results)?;
    fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
}

fn read(path: &Path) -> Result<Results> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(serde_json::from_str(&text)?)
}

/// A run beside the peer is a run of its own, and not always there.
fn report(folder: &Path) -> Result<()> {
    let beside = folder.join(PEER_RESULTS);
    let peer = beside.exists().then(|| read(&beside)).transpose()?;
    report::write(&read(&folder.join(RESULTS))?, peer.as_ref(), folder)
}

/// The table of what must be shown is the last that is printed.
fn conclude(results: &Results, beside: &str, lines: &[Line], check: bool) -> Result<()> {
    println!("\n{}", report::table_of(lines, beside));
    ensure!(results.missing.is_empty(), "not everything could be measured:\n{}", results.missing.join("\n"));
    let unmet = lines.iter().filter(|line| line.verdict == verdicts::Verdict::NotMet).count();
    ensure!(!check || unmet == 0, "{unmet} figures are not what they must be: see above");
    Ok(())
}
