//! `cargo xtask fuzz`: the fuzz targets in tests/fuzz, each for a while, from the corpus that is kept with them.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::Stdio,
};

use anyhow::{Context, ensure};

use crate::{checkout, terminal, tools};

const TARGETS: [&str; 4] = ["token_response", "retry_after", "secret", "credential"];
/// One input must not take longer.
const INPUT_LIMIT_SECS: u32 = 5;

#[derive(clap::Args)]
pub struct Options {
    /// How long each target is fuzzed
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Only these targets
    targets: Vec<String>,
}

impl Options {
    /// Every target, for so long each.
    pub fn all(seconds: u32) -> Self {
        Self { seconds, targets: Vec::new() }
    }
}

/// Fuzzes each target and prints how many inputs it was given. Fails at the end if one of them found something.
pub fn run(options: &Options) -> anyhow::Result<()> {
    if let Some(unknown) = options.targets.iter().find(|name| !TARGETS.contains(&name.as_str())) {
        anyhow::bail!("there is no target \"{unknown}\": there are {}", TARGETS.join(", "));
    }
    let chosen = |name: &&str| options.targets.is_empty() || options.targets.iter().any(|target| target == name);
    let mut results = Vec::new();
    for target in TARGETS.into_iter().filter(chosen) {
        terminal::heading(&format!("Fuzzing {target} for {} s", options.seconds));
        results.push((target, fuzz(target, options.seconds)?));
    }
    let mut crashed = Vec::new();
    for (target, Outcome { executions, passed }) in results {
        let verdict = if passed { "0 crashes" } else { "CRASHED" };
        println!("    {target:<16} {executions:>12} executions, {verdict}");
        if !passed {
            crashed.push(target);
        }
    }
    ensure!(crashed.is_empty(), "{}: the input is in tests/fuzz/artifacts; see above", crashed.join(", "));
    Ok(())
}

struct Outcome {
    executions: u64,
    passed: bool,
}

fn fuzz(target: &str, seconds: u32) -> anyhow::Result<Outcome> {
    // What is found goes to the first folder; the corpus that is kept grows by hand only.
    let found = checkout().join("target/fuzz-corpus").join(target);
    fs::create_dir_all(&found)?;
    let mut fuzz = terminal::cargo(checkout());
    // No sanitizer: there is no unsafe code, and a stable compiler is enough. Overflows and debug assertions count.
    fuzz.args(["fuzz", "run", "--fuzz-dir", "tests/fuzz", "--sanitizer", "none", "--debug-assertions", target]);
    fuzz.arg(&found).arg(checkout().join("tests/fuzz/corpus").join(target));
    fuzz.args(["--", "-print_final_stats=1", "-max_len=4096"]);
    fuzz.arg(format!("-max_total_time={seconds}")).arg(format!("-timeout={INPUT_LIMIT_SECS}"));
    let path = std::env::join_paths(
        [tools::CARGO_FUZZ.folder()?]
            .into_iter()
            .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
    )?;
    fuzz.env("PATH", path).env("CARGO_TARGET_DIR", checkout().join("target/fuzz"));
    let mut child = fuzz.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().context("cannot run cargo fuzz")?;
    let mut executions = 0;
    if let Some(output) = child.stderr.take() {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if let Some(number) = line.strip_prefix("stat::number_of_executed_units:") {
                executions = number.trim().parse().unwrap_or(0);
            }
            if is_worth_showing(&line) {
                eprintln!("    {line}");
            }
        }
    }
    let passed = child.wait()?.success();
    ensure!(!passed || executions > 0, "{target}: nothing was executed");
    Ok(Outcome { executions, passed })
}

/// Not the line for each new input that reaches something new.
fn is_worth_showing(line: &str) -> bool {
    let line = line.trim_start();
    let is_progress = line.starts_with('#') || line.starts_with("INFO:") || line.starts_with("NEW_FUNC");
    !is_progress && !line.is_empty()
}
