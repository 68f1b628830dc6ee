//! `cargo xtask simulate`: runs seeds, prints what failed with the smallest schedule that does, and counts last.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use moneygo_simulation::node::token_clients;
use moneygo_simulation::run::{Outcome, run_seed};
use moneygo_simulation::scenario;
use moneygo_simulation::schedule::{Setting, Time, disturbances};
use moneygo_simulation::search::{Sum, run_seeds, shrink};
use moneygo_simulation::time::DAY;
use moneygo_simulation::world::Violation;

/// Objects that are due at once.
const CROWD: usize = 10_000;

/// Runs the operator in a simulated world.
#[derive(Parser)]
#[command(name = "cargo xtask simulate")]
struct Options {
    /// Run so many seeds
    #[arg(long, default_value_t = 10_000)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Run this seed alone, and print what happens
    #[arg(long)]
    seed: Option<u64>,
    /// Of that seed, keep only the disturbances at these places, as in 0,3; none where empty
    #[arg(long, requires = "seed")]
    keep: Option<String>,
    /// Threads [default: one for each core]
    #[arg(long)]
    threads: Option<usize>,
    /// Run the outages of 1 s to 40 days, the refused client, and 10,000 objects that are due at once
    #[arg(long)]
    scenarios: bool,
    /// Stop after so many seeds that fail
    #[arg(long, default_value_t = 20)]
    failures: usize,
    /// Do not look for the smallest part of what fails
    #[arg(long)]
    no_shrink: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let done = match options.seed {
        Some(seed) => replay(seed, options.keep.as_deref()),
        None if options.scenarios => scenarios(),
        None => many(&options),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn replay(seed: u64, keep: Option<&str>) -> anyhow::Result<bool> {
    let places = |keep: &str| keep.split(',').filter_map(|place| place.trim().parse().ok()).collect::<Vec<usize>>();
    let keep = keep.map(places);
    println!("{:#?}", Setting::of(seed));
    let outcome = run_seed(&token_clients()?, seed, keep.as_deref(), true)?;
    for line in &outcome.trace {
        println!("{line}");
    }
    match &outcome.violation {
        None => println!("seed {seed}: every promise was kept"),
        Some(violation) => println!("seed {seed}: not kept: {}: {}", violation.promise, violation.detail),
    }
    Ok(outcome.violation.is_none())
}

fn scenarios() -> anyhow::Result<bool> {
    let (clients, mut runs, mut failed, mut simulated) = (token_clients()?, 0_u64, 0_u64, 0);
    let mut each = |name: String, outcome: Outcome| {
        let verdict = outcome.violation.as_ref().map_or("kept".to_owned(), |violation| {
            format!("NOT KEPT: {}: at {} ms: {}", violation.promise, violation.at, violation.detail)
        });
        println!("{name}: {} token requests, {} grants: {verdict}", outcome.counts.posts, outcome.counts.grants);
        runs += 1;
        failed += u64::from(outcome.violation.is_some());
        simulated += outcome.counts.simulated;
    };
    scenario::outages(&clients, &mut each)?;
    scenario::refused_client(&clients, &mut each)?;
    let crowd = scenario::crowd(&clients, CROWD)?;
    println!(
        "{CROWD} due at once, {} of them expired: {} requests while Money-Go was away; at most {} in a second after its return, \
         all done {} after it, in the order of expiry",
        crowd.expired,
        crowd.during,
        crowd.most_in_a_second,
        Time(crowd.until_all)
    );
    println!("{} scenarios, {failed} violations, {:.1} simulated years", runs + 1, years(simulated));
    Ok(failed == 0)
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn years(simulated: u64) -> f64 {
    simulated as f64 / DAY as f64 / 365.0
}

fn many(options: &Options) -> anyhow::Result<bool> {
    let threads =
        options.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
    let started = Instant::now();
    let sum = run_seeds(options.first, options.seeds, threads, options.failures)?;
    let elapsed = started.elapsed().as_secs_f64();
    if !options.no_shrink {
        explain(&sum)?;
    }
    let counts = sum.counts;
    println!(
        "{} seeds, {} violations, {:.1} simulated years, {} disturbances, {} crashes, {} freezes, {} grants, {} token requests, \
         {} API requests, {elapsed:.0} s",
        sum.seeds,
        sum.failed.len(),
        years(counts.simulated),
        counts.disturbances,
        counts.crashes,
        counts.freezes,
        counts.grants,
        counts.posts,
        counts.requests,
    );
    Ok(sum.failed.is_empty())
}

/// For each promise that was broken: which seeds did, and the smallest schedule of the first.
fn explain(sum: &Sum) -> anyhow::Result<()> {
    let mut by_promise: BTreeMap<&str, Vec<(u64, &Violation)>> = BTreeMap::new();
    for (seed, violation) in &sum.failed {
        by_promise.entry(violation.promise).or_default().push((*seed, violation));
    }
    let clients = token_clients()?;
    for (promise, failed) in by_promise {
        let seeds: Vec<u64> = failed.iter().map(|(seed, _)| *seed).collect();
        println!("NOT KEPT: {promise}: seeds {seeds:?}");
        let Some((seed, violation)) = failed.first() else { continue };
        let kept = shrink(&clients, *seed, promise)?;
        println!("    seed {seed}, at {} ms: {}", violation.at, violation.detail);
        let all = disturbances(&Setting::of(*seed));
        for place in &kept {
            if let Some(one) = all.get(*place) {
                println!("    {place}: {one}");
            }
        }
        let places: Vec<String> = kept.iter().map(ToString::to_string).collect();
        println!("    replay: cargo xtask simulate --seed {seed} --keep \"{}\"", places.join(","));
    }
    Ok(())
}
