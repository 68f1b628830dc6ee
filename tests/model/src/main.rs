//! Explores every setting.

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use moneygo_model::search::{Found, explore};
use moneygo_model::setting::Setting;

/// Looks at every state that the operator, its API server and Money-Go can come to, and prints the counts last.
#[derive(Parser)]
struct Options {
    /// Only what CI looks at
    #[arg(long)]
    small: bool,
    /// Beside all others, what takes an hour
    #[arg(long)]
    long: bool,
    /// Only settings that have this in their names, as in `Revoking:2`
    #[arg(long, default_value = "")]
    only: String,
    /// Give a setting up after so many states
    #[arg(long, default_value_t = 20_000_000)]
    states: usize,
}

impl Options {
    fn settings(&self) -> Vec<Setting> {
        let large = (!self.small).then(Setting::large).into_iter().flatten();
        let long = self.long.then(Setting::long).into_iter().flatten();
        Setting::small().chain(large).chain(long).collect()
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let started = Instant::now();
    let (mut settings, mut states, mut steps, mut violations, mut unfinished) = (0, 0, 0, 0, 0);
    for setting in options.settings() {
        let name = setting.to_string();
        if !name.contains(&options.only) {
            continue;
        }
        let since = Instant::now();
        let found = explore(&setting, options.states);
        print(&name, &found, since.elapsed().as_secs_f64());
        settings += 1;
        states += found.states;
        steps += found.steps;
        violations += found.violations.len();
        unfinished += usize::from(!found.is_whole);
    }
    let elapsed = started.elapsed().as_secs_f64();
    println!(
        "{settings} settings, {unfinished} of them not whole, {states} states, {steps} steps, {violations} violations, {elapsed:.0} s"
    );
    if violations + unfinished == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print(name: &str, found: &Found, took_secs: f64) {
    let Found { states, steps, depth, rests, unknowable, most_lost, most_extra, .. } = found;
    println!(
        "{name}: {states} states, {steps} steps, depth {depth}, {rests} rests; {most_lost} tokens lost, {most_extra} grants too many at most; \
         {unknowable} rests with a token that was revoked unknowably; {took_secs:.1} s"
    );
    if *unknowable > 0 {
        println!("  unknowable after {}: {:?}", found.way_to_unknowable.len(), found.way_to_unknowable);
    }
    for violation in &found.violations {
        println!("  NOT KEPT: {}, after {}: {:?}", violation.promise, violation.path.len(), violation.path);
    }
}
