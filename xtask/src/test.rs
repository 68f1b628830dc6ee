//! `cargo xtask test`: every test of the workspace, and their sum.

use std::{
    io::{BufRead, BufReader, IsTerminal, Write, stdout},
    process::{Command, ExitStatus, Stdio},
    time::Instant,
};

use anyhow::{Context, ensure};
use moneygo_controlplane::{Binaries, RELEASE_VARIABLE, Release, helm};

use crate::{checkout, terminal};

/// What is run, and on what.
#[derive(clap::Args)]
pub struct Options {
    /// The Kubernetes whose servers the tests run on, as 1.34; without it the newest that is known
    #[arg(long, value_name = "VERSION", value_parser = Release::wanted)]
    kubernetes: Option<&'static Release>,
    /// Print no line for each crate that is compiled
    #[arg(long)]
    no_build_progress: bool,
    /// Arguments for `cargo test`, as a test's name, or --package and -- --nocapture
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Runs every test and prints `N passed, N failed` last.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let release = options.kubernetes.map_or_else(Release::chosen, Ok)?;
    // Here they show their progress; a test harness would say nothing for minutes.
    Binaries::locate(release)?;
    helm()?;
    let mut tests = terminal::cargo(checkout());
    tests.args(["test", "--workspace", "--locked"]);
    if options.kubernetes.is_some() {
        tests.env(RELEASE_VARIABLE, release.minor());
    }
    if options.no_build_progress {
        let mut build = terminal::cargo(checkout());
        let status = build.args(["test", "--workspace", "--locked", "--no-run", "--quiet"]).status();
        ensure!(status.context("cannot run cargo")?.success(), "the tests do not compile");
    }
    // What is read from a pipe has no colours by itself.
    if stdout().is_terminal() {
        tests.env("CARGO_TERM_COLOR", "always");
    }
    let started = Instant::now();
    let mut sum = Counts::default();
    let mut count = |line: &str| {
        if let Some(counts) = Counts::of_result(line) {
            sum.passed += counts.passed;
            sum.failed += counts.failed;
        }
    };
    let status = show(tests.arg("--no-fail-fast").args(&options.arguments), &mut count)?;
    // A feature that the image is built without.
    let traced = match options.arguments.as_slice() {
        [] => show(traces(options, release).arg("--no-fail-fast"), &mut count)?.success(),
        _ => true,
    };
    println!("\nAll tests took {} on {} {}.", terminal::time(started.elapsed()), release.product, release.version);
    println!("{} passed, {} failed", sum.passed, sum.failed);
    ensure!(status.success() && traced, "cargo test failed: see above");
    Ok(())
}

/// The tests of what the feature `otlp` adds.
fn traces(options: &Options, release: &Release) -> Command {
    let mut tests = terminal::cargo(checkout());
    tests.args(["test", "--locked", "--features", "otlp", "--lib", "--test", "traces", "traces"]);
    if options.kubernetes.is_some() {
        tests.env(RELEASE_VARIABLE, release.minor());
    }
    if stdout().is_terminal() {
        tests.env("CARGO_TERM_COLOR", "always");
    }
    tests
}

/// Runs a command, prints each line of its standard output at once and gives it to `look`, too.
pub fn show(command: &mut Command, mut look: impl FnMut(&str)) -> anyhow::Result<ExitStatus> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot run {name}"))?;
    let output = child.stdout.take().with_context(|| format!("{name} has no output"))?;
    for line in BufReader::new(output).split(b'\n') {
        let line = line.with_context(|| format!("cannot read what {name} prints"))?;
        let mut ours = stdout().lock();
        ours.write_all(&line)?;
        ours.write_all(b"\n")?;
        look(&String::from_utf8_lossy(&line));
    }
    child.wait().with_context(|| format!("cannot wait for {name}"))
}

#[derive(Debug, Default, PartialEq)]
struct Counts {
    passed: usize,
    failed: usize,
}

impl Counts {
    /// From a test binary's last line: `test result: ok. 12 passed; 0 failed; 1 ignored; …`.
    fn of_result(line: &str) -> Option<Self> {
        let (_, counts) = line.split_once("test result: ")?;
        let count = |of: &str| counts.split(';').find_map(|part| part.trim().strip_suffix(of)?.rsplit(' ').next());
        let number = |of| count(of).and_then(|count| count.parse().ok());
        Some(Self { passed: number(" passed")?, failed: number(" failed")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read() {
        let line = "test result: \x1b[32mok\x1b[m. 12 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(Counts::of_result(line), Some(Counts { passed: 12, failed: 3 }));
        assert_eq!(Counts::of_result("test a::b ... ok"), None);
        assert_eq!(Counts::of_result("test result: nonsense"), None);
    }

    #[test]
    fn output_is_seen_line_by_line() -> anyhow::Result<()> {
        let mut lines = Vec::new();
        let status =
            show(Command::new("sh").args(["-c", "echo a; echo b; exit 3"]), |line| lines.push(line.to_owned()))?;
        assert_eq!((lines, status.code()), (vec!["a".to_owned(), "b".to_owned()], Some(3)));
        Ok(())
    }
}
