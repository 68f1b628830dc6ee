//! `cargo xtask mutants`: bugs of known classes, put into a copy of the operator one at a time, and what catches each.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use rustix::process::Signal;
use serde::Deserialize;

use crate::{checkout, terminal};

/// A scenario that takes longer has met an operator that turns in circles.
const LIMIT: Duration = Duration::from_mins(8);
/// Without a bug everything is compiled first, and nothing turns in circles.
const LIMIT_WITHOUT_BUG: Duration = Duration::from_mins(30);
const POLL: Duration = Duration::from_millis(50);

/// One bug, and where it goes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bug {
    name: String,
    class: String,
    /// What the operator does wrong.
    does: String,
    file: PathBuf,
    /// Stands exactly once in the file.
    find: String,
    replace: String,
}

/// Something that fails where the operator is wrong.
struct Scenario {
    name: &'static str,
    /// For cargo, in the copy: to compile what it runs.
    build: &'static [&'static str],
    /// For cargo, to run it.
    arguments: &'static [&'static str],
}

const FAULTS: &[&str] = &["build", "--quiet", "--package", "moneygo-faults"];

/// In the order in which they are tried: the first to fail has caught the bug.
const SCENARIOS: [Scenario; 7] = [
    Scenario {
        name: "simulation",
        build: &["build", "--quiet", "--profile", "simulation", "--package", "moneygo-simulation"],
        arguments: &[
            "run",
            "--profile",
            "simulation",
            "--package",
            "moneygo-simulation",
            "--",
            "--seeds",
            "1000",
            "--failures",
            "1",
            "--no-shrink",
        ],
    },
    Scenario { name: "matrix", build: FAULTS, arguments: &["run", "--package", "moneygo-faults", "--", "matrix"] },
    Scenario { name: "events", build: FAULTS, arguments: &["run", "--package", "moneygo-faults", "--", "events"] },
    Scenario {
        name: "failovers",
        build: FAULTS,
        arguments: &["run", "--package", "moneygo-faults", "--", "failovers", "--rounds", "200"],
    },
    Scenario {
        name: "unit tests",
        build: &["test", "--quiet", "--package", "moneygo-operator", "--lib", "--no-run"],
        arguments: &["test", "--package", "moneygo-operator", "--lib"],
    },
    Scenario {
        name: "written worlds",
        build: &["test", "--quiet", "--package", "moneygo-simulation", "--test", "written", "--no-run"],
        arguments: &["test", "--package", "moneygo-simulation", "--test", "written"],
    },
    Scenario {
        name: "integration tests",
        build: &["test", "--quiet", "--package", "moneygo-operator", "--no-run"],
        arguments: &[
            "test",
            "--package",
            "moneygo-operator",
            "--test",
            "failover",
            "--test",
            "restart",
            "--test",
            "refresh",
            "--test",
            "unavailable",
            "--test",
            "ownership",
        ],
    },
];

#[derive(clap::Args)]
pub struct Options {
    /// Only the bugs of these names
    names: Vec<String>,
    /// Only this scenario, and those that are named likewise, in this order
    #[arg(long = "scenario", value_name = "NAME", value_parser = SCENARIOS.each_ref().map(|scenario| scenario.name))]
    scenarios: Vec<String>,
    /// Print the bugs, and try none
    #[arg(long)]
    list: bool,
}

/// Tries every bug, prints a table of what caught each and fails if one was not caught.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let bugs = chosen(read()?, &options.names)?;
    if options.list {
        for Bug { name, class, does, .. } in &bugs {
            println!("{name:<26} {class:<28} {does}");
        }
        return Ok(());
    }
    let copy = Copy::of(checkout())?;
    let scenarios = wanted(&options.scenarios);
    terminal::heading("Without a bug");
    for scenario in &scenarios {
        let failure = copy.failure_of(scenario, LIMIT_WITHOUT_BUG)?;
        ensure!(failure.is_none(), "{} fails without a bug: {}", scenario.name, failure.unwrap_or_default());
    }
    let mut table = Vec::new();
    for (number, bug) in bugs.iter().enumerate() {
        terminal::heading(&format!("{} of {}: {}: {}", number + 1, bugs.len(), bug.name, bug.does));
        let started = Instant::now();
        let catch = copy.catch(bug, &scenarios)?;
        println!("    {} ({})", catch.as_deref().unwrap_or("NOT CAUGHT"), terminal::time(started.elapsed()));
        table.push((bug, catch));
    }
    report(&table)
}

fn wanted(names: &[String]) -> Vec<&'static Scenario> {
    match names {
        [] => SCENARIOS.iter().collect(),
        names => names.iter().flat_map(|name| SCENARIOS.iter().filter(move |one| one.name == *name)).collect(),
    }
}

fn report(table: &[(&Bug, Option<String>)]) -> anyhow::Result<()> {
    terminal::heading("What caught what");
    for (bug, catch) in table {
        println!("    {:<26} {:<28} {}", bug.name, bug.class, catch.as_deref().unwrap_or("NOT CAUGHT"));
    }
    let caught = table.iter().filter(|(_, catch)| catch.is_some()).count();
    println!("{caught} of {} bugs were caught", table.len());
    ensure!(caught == table.len(), "some bugs were not caught");
    Ok(())
}

fn read() -> anyhow::Result<Vec<Bug>> {
    let text = fs::read_to_string(checkout().join("tests/mutants/bugs.yaml")).context("cannot read the bugs")?;
    serde_yaml::from_str(&text).context("tests/mutants/bugs.yaml")
}

fn chosen(bugs: Vec<Bug>, names: &[String]) -> anyhow::Result<Vec<Bug>> {
    if let Some(unknown) = names.iter().find(|name| bugs.iter().all(|bug| bug.name != **name)) {
        bail!("there is no bug \"{unknown}\": --list prints them");
    }
    Ok(bugs.into_iter().filter(|bug| names.is_empty() || names.contains(&bug.name)).collect())
}

impl Bug {
    /// The file's text with the bug in it.
    fn plant(&self, text: &str) -> anyhow::Result<String> {
        let places = text.matches(&self.find).count();
        ensure!(places == 1, "{}: what it replaces stands {places} times in {}", self.name, self.file.display());
        Ok(text.replacen(&self.find, &self.replace, 1))
    }
}

/// The checkout as it is now, in a place where it may be spoilt; compiled there, so that only the operator is again.
struct Copy(PathBuf);

impl Copy {
    fn of(checkout: &Path) -> anyhow::Result<Self> {
        let folder = checkout.join("target/mutants/checkout");
        let list = Command::new("git").args(["ls-files", "-z", "--cached"]).current_dir(checkout).output();
        let list = list.context("cannot run git")?;
        ensure!(list.status.success(), "git ls-files: {}", String::from_utf8_lossy(&list.stderr));
        for file in String::from_utf8(list.stdout)?.split_terminator('\0') {
            let (from, to) = (checkout.join(file), folder.join(file));
            let Ok(now) = fs::read(&from) else { continue };
            // What is the same keeps its time, and is not compiled again.
            if fs::read(&to).is_ok_and(|before| before == now) {
                continue;
            }
            fs::create_dir_all(to.parent().unwrap_or(&folder))?;
            fs::write(&to, now).with_context(|| format!("cannot write {}", to.display()))?;
        }
        Ok(Self(folder))
    }

    /// What the first of these scenarios to fail finds wrong while the bug is in place.
    fn catch(&self, bug: &Bug, scenarios: &[&Scenario]) -> anyhow::Result<Option<String>> {
        let path = self.0.join(&bug.file);
        let sound = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        fs::write(&path, bug.plant(&sound)?)?;
        let first = scenarios.first().context("no scenario")?;
        let result = self.compiles(first).and_then(|()| self.first_failure(scenarios));
        fs::write(&path, sound)?;
        result.with_context(|| bug.name.clone())
    }

    fn cargo(&self) -> Command {
        let mut cargo = terminal::cargo(&self.0);
        cargo.env("CARGO_TARGET_DIR", self.0.with_file_name("target")).env("RUST_BACKTRACE", "0");
        cargo.env("CARGO_INCREMENTAL", "1").stdin(Stdio::null());
        cargo
    }

    /// A bug that does not compile catches itself, and says nothing of the tests. It is built as the first scenario wants it.
    fn compiles(&self, first: &Scenario) -> anyhow::Result<()> {
        let build = self.cargo().args(first.build).output()?;
        ensure!(build.status.success(), "it does not compile:\n{}", String::from_utf8_lossy(&build.stderr));
        Ok(())
    }

    fn first_failure(&self, scenarios: &[&Scenario]) -> anyhow::Result<Option<String>> {
        for scenario in scenarios {
            if let Some(failure) = self.failure_of(scenario, LIMIT)? {
                return Ok(Some(format!("{}: {failure}", scenario.name)));
            }
        }
        Ok(None)
    }

    /// What a scenario finds wrong. None where it passes.
    fn failure_of(&self, scenario: &Scenario, limit: Duration) -> anyhow::Result<Option<String>> {
        let log = self.0.with_file_name("scenario.log");
        let output = fs::File::create(&log)?;
        let mut child = self
            .cargo()
            .args(scenario.arguments)
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()?;
        let started = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if started.elapsed() > limit {
                // cargo's tests with it.
                rustix::process::kill_process_group(rustix::process::Pid::from_child(&child), Signal::KILL)?;
                child.wait()?;
                return Ok(Some(format!("no end after {}", terminal::time(limit))));
            }
            thread::sleep(POLL);
        };
        let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        Ok((!status.success()).then(|| symptom(&text)))
    }
}

/// The line of an output that tells best what failed.
fn symptom(output: &str) -> String {
    let of_seed = |line: &str| line.starts_with("seed ") && line.contains(" failed: ");
    let failed = |line: &&str| line.ends_with("... FAILED") || line.starts_with("violation") || of_seed(line);
    let line = output.lines().find(failed).or_else(|| output.lines().rfind(|line| !line.trim().is_empty()));
    let line = line.unwrap_or("it failed without a word");
    line.trim_start_matches("test ").trim_end_matches(" ... FAILED").chars().take(160).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bug_still_has_its_place() -> anyhow::Result<()> {
        let bugs = read()?;
        assert!(bugs.len() >= 30, "{}", bugs.len());
        for bug in &bugs {
            let text = fs::read_to_string(checkout().join(&bug.file))?;
            assert_ne!(bug.plant(&text)?, text, "{}", bug.name);
            assert_eq!(bugs.iter().filter(|other| other.name == bug.name).count(), 1, "{}", bug.name);
        }
        Ok(())
    }

    #[test]
    fn the_line_that_tells_most_is_shown() {
        let tests = "running 2 tests\ntest a::good ... ok\ntest a::bad ... FAILED\n\nfailures:\n    a::bad\nerror: test failed\n";
        assert_eq!(symptom(tests), "a::bad");
        assert_eq!(symptom("x\nerror: worse\n\n"), "error: worse");
        assert_eq!(symptom("seed 1000\nseed 7 failed: a promise: b\n1 seeds\n"), "seed 7 failed: a promise: b");
    }
}
