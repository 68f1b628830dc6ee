//! `cargo xtask ci`: all that .ci/run checks. A failed step does not keep the next from being tried.

use std::{
    env, fmt,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};

use crate::{bench, checkout, docs, fuzz, generate, release, simulate, terminal, test, tools};

mod end_to_end;

/// How long the database of advisories may take to come.
const FETCH_LIMIT: Duration = Duration::from_mins(2);
const FETCH_POLL: Duration = Duration::from_millis(100);

/// Simulated runs at each change: two minutes and a half of two slow cores.
const SEEDS: &str = "1000";
/// For each fuzz target.
const FUZZ_SECS: u32 = 20;

/// Ninety minutes are what CI has. On a machine that is new and slow what comes last may not fit, and it is better said so than that nothing is said:
/// the bench takes some 12 minutes there, the end-to-end test 20, and as much again to build a cluster's binaries.
const BENCH_BEGINS_WITHIN: Duration = Duration::from_hours(1);
const END_TO_END_BEGINS_WITHIN: Duration = Duration::from_mins(68);

/// How a step ended.
enum Outcome {
    Passed,
    /// What could not be checked, and why.
    Skipped(String),
    Failed(anyhow::Error),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("passed"),
            Self::Skipped(why) => write!(f, "SKIPPED: {why}"),
            Self::Failed(error) => write!(f, "{}: {error:#}", terminal::red("FAILED")),
        }
    }
}

/// What is checked, how it went and how long it took.
struct Steps<'a> {
    /// The only one to be taken, if one is named.
    only: Option<&'a str>,
    began: Instant,
    taken: Vec<(&'static str, Outcome, Duration)>,
}

impl Steps<'_> {
    fn take(&mut self, name: &'static str, step: impl FnOnce() -> anyhow::Result<Outcome>) {
        if self.only.is_some_and(|only| only != name) {
            return;
        }
        terminal::heading(name);
        let started = Instant::now();
        let outcome = step().unwrap_or_else(Outcome::Failed);
        let elapsed = started.elapsed();
        println!("    {outcome} ({})\n", terminal::time(elapsed));
        self.taken.push((name, outcome, elapsed));
    }

    /// A step that is not begun too late.
    fn take_within(&mut self, limit: Duration, name: &'static str, step: impl FnOnce() -> anyhow::Result<Outcome>) {
        let passed = self.began.elapsed();
        let late = format!(
            "CI began {} ago, and has no time left for it: `cargo xtask ci --step \"{name}\"` takes it alone",
            terminal::time(passed)
        );
        self.take(name, || if passed <= limit { step() } else { Ok(Outcome::Skipped(late)) });
    }

    fn table(&self) {
        terminal::heading("Summary");
        for (name, outcome, elapsed) in &self.taken {
            println!("    {name:<15} {:>12}  {outcome}", terminal::time(*elapsed));
        }
        let total = self.taken.iter().map(|(_, _, elapsed)| elapsed).sum();
        println!("    {:<15} {:>12}\n", "in all", terminal::time(total));
    }

    fn failed(&self) -> Vec<&'static str> {
        self.taken
            .iter()
            .filter(|(_, outcome, _)| matches!(outcome, Outcome::Failed(_)))
            .map(|(name, ..)| *name)
            .collect()
    }
}

/// Takes every step, or the one of that name, and prints a table of them.
pub fn run(only: Option<&str>) -> anyhow::Result<()> {
    let mut steps = Steps { only, began: Instant::now(), taken: Vec::new() };
    let mut tested = None;
    steps.take("formatting", || cargo(&["fmt", "--all", "--check"]));
    steps.take("generated files", || generate::check(checkout()).map(|()| Outcome::Passed));
    steps.take("dependencies", || deny(&["check", "--hide-inclusion-graph", "licenses", "bans", "sources"]));
    steps.take("advisories", advisories);
    let lints = ["clippy", "--workspace", "--all-targets", "--all-features", "--locked", "--", "--deny", "warnings"];
    steps.take("clippy", || cargo(&lints));
    steps.take("documentation", || {
        let mut doc = terminal::cargo(checkout());
        succeed(doc.args(["doc", "--workspace", "--no-deps", "--locked"]).env("RUSTDOCFLAGS", "--deny warnings"))
    });
    steps.take("book", || docs::run(&docs::Options::default()).map(|()| Outcome::Passed));
    steps.take("simulation", || simulate::run(&["--seeds".to_owned(), SEEDS.to_owned()]).map(|()| Outcome::Passed));
    steps.take("fuzzing", fuzzing);
    // The README's first command.
    steps.take("demo", || succeed(Command::new(env::current_exe()?).args(["demo", "--once"])));
    steps.take("tests", || tests(&mut tested));
    // Its figures are no verdict on a machine that does other things, too: that they can be had is.
    steps.take_within(BENCH_BEGINS_WITHIN, "bench", || {
        let operator = release::write()?.join(release::PROGRAM);
        bench::run(&bench::Options::quick(operator)).map(|()| Outcome::Passed)
    });
    steps.take_within(END_TO_END_BEGINS_WITHIN, "end to end", end_to_end::run);
    ensure!(!steps.taken.is_empty(), "there is no such step: see the table that follows all of them");
    steps.table();
    if let Some(tested) = tested {
        println!("{tested}");
    }
    let failed = steps.failed();
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

/// A short run. libFuzzer is C++, which nothing else needs.
fn fuzzing() -> anyhow::Result<Outcome> {
    if !Command::new("c++").arg("--version").output().is_ok_and(|output| output.status.success()) {
        return Ok(Outcome::Skipped("there is no C++ compiler, which libFuzzer is built with: install g++".into()));
    }
    fuzz::run(&fuzz::Options::all(FUZZ_SECS)).map(|()| Outcome::Passed)
}

/// The command that the README names, so that it is known to work; `sum` becomes its last line.
fn tests(sum: &mut Option<String>) -> anyhow::Result<Outcome> {
    let mut tests = Command::new(env::current_exe().context("where is this program?")?);
    let status = test::show(tests.arg("test"), |line| {
        if line.ends_with(" failed") && line.contains(" passed, ") {
            *sum = Some(line.to_owned());
        }
    })?;
    ensure!(status.success(), "see above");
    Ok(Outcome::Passed)
}

fn cargo(arguments: &[&str]) -> anyhow::Result<Outcome> {
    succeed(terminal::cargo(checkout()).args(arguments))
}

fn deny(arguments: &[&str]) -> anyhow::Result<Outcome> {
    succeed(Command::new(tools::CARGO_DENY.executable()?).args(arguments).current_dir(checkout()))
}

fn succeed(command: &mut Command) -> anyhow::Result<Outcome> {
    let status = command.status().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    ensure!(status.success(), "{status}: see above");
    Ok(Outcome::Passed)
}

/// No network, no database: nothing that a change could be blamed for.
fn advisories() -> anyhow::Result<Outcome> {
    match fetch_advisories() {
        Ok(()) => deny(&["check", "--disable-fetch", "advisories"]),
        Err(error) => Ok(Outcome::Skipped(format!("{error:#}"))),
    }
}

fn fetch_advisories() -> anyhow::Result<()> {
    let mut fetch = Command::new(tools::CARGO_DENY.executable()?);
    let mut child = fetch
        .args(["--log-level", "error", "fetch", "db"])
        .current_dir(checkout())
        .stdin(Stdio::null())
        .env("GIT_TERMINAL_PROMPT", "0")
        .spawn()
        .context("cannot run cargo-deny")?;
    let started = Instant::now();
    while started.elapsed() < FETCH_LIMIT {
        if let Some(status) = child.try_wait()? {
            ensure!(status.success(), "the database of advisories cannot be fetched: see above");
            return Ok(());
        }
        thread::sleep(FETCH_POLL);
    }
    child.kill()?;
    child.wait()?;
    bail!("the database of advisories did not come within {}", terminal::time(FETCH_LIMIT))
}
