//! `cargo xtask faults`.

use std::process::ExitCode;

use anyhow::bail;
use clap::{Parser, ValueEnum};
use moneygo_faults::matrix::{self, Share};
use moneygo_faults::tally::Tally;
use moneygo_faults::world::World;
use moneygo_faults::{edits, failover, outages};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Every fault at every request, in every state
    Matrix,
    /// Every fault at every event of a watch, in every state
    Events,
    /// Two replicas, the leader stopped or cut off at every request
    Failovers,
    /// Sequences of edits, against a fresh object with the last spec
    Edits,
    /// The API server and its store away, writes refused, 429 in every form
    Outages,
}

#[derive(Parser)]
#[command(
    name = "cargo xtask faults",
    about = "Injects faults into the operator on a real API server, and judges what is left"
)]
struct Arguments {
    /// What is run; everything where unset
    parts: Vec<Part>,
    /// Run what a violation named, and nothing else
    #[arg(long)]
    replay: Option<String>,
    /// Run one of this many cells
    #[arg(long, default_value_t = 1)]
    one_of: usize,
    /// What chooses cells and draws what is random
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many cells are run at the same time
    #[arg(long, default_value_t = 24)]
    parallel: usize,
    /// How many failovers are tried; a few find nothing to stop at
    #[arg(long, default_value_t = 1100)]
    rounds: usize,
    /// How many pairs of replicas run at the same time
    #[arg(long, default_value_t = 48)]
    pairs: usize,
    /// How many sequences of edits are run
    #[arg(long, default_value_t = 1000)]
    sequences: usize,
    /// After how many violations the rest of the matrix or of the events is not run
    #[arg(long)]
    stop_after: Option<usize>,
    /// With --replay: print what the operator logged
    #[arg(long)]
    logs: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let result = runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(run(&arguments)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let world = World::start().await?;
    let result = match &arguments.replay {
        Some(replay) => play_again(&world, replay).await,
        None => play(&world, arguments).await,
    };
    if arguments.logs {
        println!("{}", moneygo_faults::canary::log_about("").join("\n"));
    }
    world.end().await?;
    result
}

async fn play_again(world: &World, replay: &str) -> anyhow::Result<()> {
    match replay.split(':').next() {
        Some("edits") => edits::replay(world, replay.parse()?).await?,
        Some("outages") => outages::replay(world, &replay.parse()?).await?,
        Some("failovers") => failover::replay(world, &replay.parse()?).await?,
        _ => matrix::replay(world, &replay.parse()?).await?,
    }
    println!("no violation");
    Ok(())
}

async fn play(world: &World, arguments: &Arguments) -> anyhow::Result<()> {
    let is_wanted = |part| arguments.parts.is_empty() || arguments.parts.contains(&part);
    let share = Share {
        parallel: arguments.parallel.max(1),
        one_of: arguments.one_of.max(1),
        seed: arguments.seed,
        stop_after: arguments.stop_after.unwrap_or(usize::MAX),
    };
    let mut tallies: Vec<Tally> = Vec::new();
    let mut take = |tally: Tally| {
        println!("{tally}");
        tallies.push(tally);
    };
    if is_wanted(Part::Matrix) {
        take(matrix::run(world, false, share).await?);
    }
    if is_wanted(Part::Events) {
        take(matrix::run(world, true, share).await?);
    }
    if is_wanted(Part::Failovers) {
        take(failover::run(world, arguments.rounds, arguments.pairs, arguments.seed).await?);
    }
    if is_wanted(Part::Edits) {
        take(edits::run(world, arguments.sequences, 128, arguments.seed).await?);
    }
    if is_wanted(Part::Outages) {
        take(outages::run(world, true, arguments.parallel).await?);
    }
    println!("\nIn all:");
    for tally in &tallies {
        println!("{tally}");
    }
    if tallies.iter().any(|tally| tally.violations() > 0) {
        bail!("there are violations");
    }
    Ok(())
}
