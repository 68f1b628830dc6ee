//! `cargo xtask survivors`: small changes to the pure modules (cargo-mutants), and which of them no unit test notices.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

use crate::{checkout, terminal, tools};

/// The modules whose mutants are tried: what they do depends on what they are given, and their own tests can see all of it.
const MODULES: [&str; 5] = ["schedule", "status", "digest", "plan", "secret"];
/// What those modules need besides each other.
const NEEDED: [&str; 2] = ["access_token", "crd"];
/// Draws worlds at random for seconds, and what it finds is hard to read: a mutant wants a test of its own.
const SKIPPED: &str = "whatever_happens_in_whatever_order";
/// For the tests, which need less than one. A mutant that takes longer turns in circles.
const LIMIT_SECS: &str = "20";
/// cargo-mutants's exit codes where it went through all mutants: none missed, some missed, some without an end.
const COMPLETE: [i32; 3] = [0, 2, 3];
const LIST: &str = "tests/mutants/explained.yaml";

#[derive(clap::Args)]
pub struct Options {
    /// Only these modules: schedule, status, digest, plan, secret
    modules: Vec<String>,
}

/// A mutant that may survive, and why. One entry for each, also where two are named alike.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Explained {
    mutant: String,
    why: String,
}

/// What cargo-mutants writes about a run, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Outcomes {
    outcomes: Vec<Outcome>,
}

#[derive(Debug, Deserialize)]
struct Outcome {
    scenario: Scenario,
    summary: Summary,
}

#[derive(Debug, Deserialize)]
enum Scenario {
    Baseline,
    Mutant { name: String, file: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum Summary {
    Success,
    CaughtMutant,
    MissedMutant,
    Unviable,
    Timeout,
    Failure,
}

/// Tries every mutant, prints the counts, and fails where one is missed that nobody explained, or explained and not missed.
pub fn run(options: &Options) -> anyhow::Result<()> {
    if let Some(unknown) = options.modules.iter().find(|name| !MODULES.contains(&name.as_str())) {
        bail!("\"{unknown}\" is no pure module: there are {}", MODULES.join(", "));
    }
    let is_chosen = |name: &&str| options.modules.is_empty() || options.modules.iter().any(|module| module == name);
    let files: Vec<String> = MODULES.into_iter().filter(is_chosen).map(file_of).collect();
    let explained = read()?;
    let folder = checkout().join("target/survivors");
    copy(checkout(), &folder.join("checkout"))?;
    terminal::heading(&format!("Mutants of {}", files.join(", ")));
    let started = Instant::now();
    try_all(&folder, &files)?;
    let text =
        fs::read_to_string(folder.join("mutants.out/outcomes.json")).context("cargo-mutants wrote no outcomes")?;
    let outcomes: Outcomes = serde_json::from_str(&text).context("outcomes.json")?;
    let unexpected = compare(&outcomes.outcomes, &explained, &files);
    terminal::heading("Survivors");
    for Explained { mutant, why } in explained.iter().filter(|one| is_of(one, &files)) {
        println!("    explained: {mutant}: {why}");
    }
    for line in &unexpected {
        println!("    {line}");
    }
    terminal::heading(&format!("Counts, after {}", terminal::time(started.elapsed())));
    println!("    {:<16} {:>8} {:>8} {:>8} {:>8} {:>8}", "", "mutants", "caught", "missed", "unviable", "timeouts");
    for file in &files {
        show(file, |tried| tried == file, &outcomes.outcomes);
    }
    show("in all", |_| true, &outcomes.outcomes);
    ensure!(unexpected.is_empty(), "{} mutants are not as {LIST} has them: see above", unexpected.len());
    Ok(())
}

fn file_of(module: &str) -> String {
    format!("src/{module}.rs")
}

fn read() -> anyhow::Result<Vec<Explained>> {
    let text = fs::read_to_string(checkout().join(LIST)).context("cannot read the explained mutants")?;
    serde_yaml::from_str(&text).context(LIST)
}

/// The checkout as it is now, in a place where it may be spoilt, with a library of the pure modules alone. Compiling and
/// linking the others would take most of the time, and could catch nothing that is not to be caught by the modules' own
/// tests.
fn copy(checkout: &Path, folder: &Path) -> anyhow::Result<()> {
    let list = Command::new("git").args(["ls-files", "-z", "--cached"]).current_dir(checkout).output();
    let list = list.context("cannot run git")?;
    ensure!(list.status.success(), "git ls-files: {}", String::from_utf8_lossy(&list.stderr));
    for file in String::from_utf8(list.stdout)?.split_terminator('\0') {
        if file == "src/lib.rs" {
            continue;
        }
        let Ok(now) = fs::read(checkout.join(file)) else { continue };
        write(&folder.join(file), &now)?;
    }
    let mut modules: Vec<_> = MODULES.into_iter().chain(NEEDED).collect();
    modules.sort_unstable();
    let mut library = vec!["//! The pure modules.".to_owned(), String::new()];
    library.extend(modules.iter().map(|module| format!("pub mod {module};")));
    write(&folder.join("src/lib.rs"), (library.join("\n") + "\n").as_bytes())
}

/// What is the same keeps its time, and is not compiled again.
fn write(path: &Path, now: &[u8]) -> anyhow::Result<()> {
    if fs::read(path).is_ok_and(|before| before == now) {
        return Ok(());
    }
    fs::create_dir_all(path.parent().unwrap_or(path))?;
    fs::write(path, now).with_context(|| format!("cannot write {}", path.display()))
}

/// Runs cargo-mutants in the copy, where each mutant is compiled upon the last.
fn try_all(folder: &Path, files: &[String]) -> anyhow::Result<()> {
    let mut mutants = terminal::plain(tools::CARGO_MUTANTS.executable()?, &folder.join("checkout"));
    mutants.args(["mutants", "--in-place", "--package", "moneygo-operator", "--output"]).arg(folder);
    mutants.args(files.iter().flat_map(|file| ["--file", file]));
    // For the build as for the run, or every integration test would be linked for each mutant.
    mutants.args(["--cargo-arg=--lib", "--cargo-arg=--locked", "--minimum-test-timeout", LIMIT_SECS]);
    mutants.args(["--", "--", "--skip", SKIPPED]);
    mutants.env("CARGO_TARGET_DIR", folder.join("target")).env("CARGO_INCREMENTAL", "1");
    mutants.env("CARGO_PROFILE_DEV_DEBUG", "false").env("RUST_BACKTRACE", "0");
    let status = mutants.stdin(Stdio::null()).status().context("cannot run cargo-mutants")?;
    let is_complete = status.code().is_some_and(|code| COMPLETE.contains(&code));
    ensure!(is_complete, "cargo mutants did not get through: {status}; see above");
    Ok(())
}

/// What is not as the list has it, a line each: of the files that were tried.
fn compare(outcomes: &[Outcome], explained: &[Explained], files: &[String]) -> Vec<String> {
    let mut missed: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for outcome in outcomes {
        if let (Scenario::Mutant { name, .. }, Summary::MissedMutant) = (&outcome.scenario, outcome.summary) {
            missed.entry(without_place(name)).or_default().push(name);
        }
    }
    let mut unexpected = Vec::new();
    for one in explained.iter().filter(|one| is_of(one, files)) {
        if missed.get_mut(&one.mutant).and_then(Vec::pop).is_none() {
            unexpected.push(format!("explained, and not missed: {}", one.mutant));
        }
    }
    unexpected.extend(missed.values().flatten().map(|name| format!("missed, and not explained: {name}")));
    unexpected
}

fn is_of(explained: &Explained, files: &[String]) -> bool {
    files.iter().any(|file| explained.mutant.starts_with(&format!("{file}: ")))
}

/// `src/a.rs:7:5: replace …` without the line and the column, which every edit moves.
fn without_place(name: &str) -> String {
    let parts: Vec<_> = name.splitn(4, ':').collect();
    match parts.as_slice() {
        [file, line, column, what] if [line, column].iter().all(|number| number.parse::<u32>().is_ok()) => {
            format!("{file}:{what}")
        }
        _ => name.to_owned(),
    }
}

fn show(title: &str, is_meant: impl Fn(&str) -> bool, outcomes: &[Outcome]) {
    let is_of = |outcome: &&Outcome| matches!(&outcome.scenario, Scenario::Mutant { file, .. } if is_meant(file));
    let all: Vec<_> = outcomes.iter().filter(is_of).map(|outcome| outcome.summary).collect();
    let count = |summary| all.iter().filter(|one| **one == summary).count();
    let [caught, missed] = [count(Summary::CaughtMutant), count(Summary::MissedMutant)];
    let [unviable, timeouts] = [count(Summary::Unviable), count(Summary::Timeout)];
    println!("    {title:<16} {:>8} {caught:>8} {missed:>8} {unviable:>8} {timeouts:>8}", all.len());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missed(name: &str) -> Outcome {
        let scenario = Scenario::Mutant { name: name.into(), file: "src/a.rs".into() };
        Outcome { scenario, summary: Summary::MissedMutant }
    }

    fn explained(mutant: &str) -> Explained {
        Explained { mutant: mutant.into(), why: "it is the same".into() }
    }

    #[test]
    fn every_explanation_names_a_pure_module_and_says_why() -> anyhow::Result<()> {
        for Explained { mutant, why } in read()? {
            assert!(MODULES.iter().any(|module| mutant.starts_with(&format!("{}: ", file_of(module)))), "{mutant}");
            assert!(!why.trim().is_empty(), "{mutant}");
        }
        Ok(())
    }

    /// Nor do the pure modules import what is not pure.
    #[test]
    fn what_the_pure_modules_import_is_in_their_library() -> anyhow::Result<()> {
        let is_in_it = |name: &str| MODULES.into_iter().chain(NEEDED).any(|module| module == name);
        let list = Command::new("git").args(["ls-files", "src"]).current_dir(checkout()).output()?;
        let files = String::from_utf8(list.stdout)?;
        let of_a_module = |file: &&str| {
            let module = file.trim_start_matches("src/").split(['/', '.']).next();
            module.is_some_and(is_in_it)
        };
        let mut read = 0;
        for file in files.lines().filter(of_a_module) {
            let text = fs::read_to_string(checkout().join(file))?;
            let imports = text
                .split("crate::")
                .skip(1)
                .filter_map(|rest| rest.split(|c: char| c != '_' && !c.is_alphanumeric()).next());
            for module in imports.filter(|name| checkout().join(file_of(name)).exists()) {
                assert!(is_in_it(module), "{file} imports {module}");
                read += 1;
            }
        }
        assert!(read > 10, "{read} imports");
        Ok(())
    }

    #[test]
    fn what_is_not_as_the_list_has_it_is_told() {
        let files = ["src/a.rs".to_owned()];
        let twice = [missed("src/a.rs:7:5: replace > with < in f"), missed("src/a.rs:9:5: replace > with < in f")];
        let one = || explained("src/a.rs: replace > with < in f");
        assert_eq!(compare(&twice, &[one(), one()], &files), Vec::<String>::new());
        assert_eq!(
            compare(&twice, &[one()], &files),
            ["missed, and not explained: src/a.rs:7:5: replace > with < in f"]
        );
        let gone = ["explained, and not missed: src/a.rs: replace > with < in f"];
        assert_eq!(compare(&twice[..1], &[one(), one()], &files), gone);
        let elsewhere = explained("src/b.rs: replace > with < in f");
        assert_eq!(compare(&[], &[elsewhere], &files), Vec::<String>::new(), "its file was not tried");
    }

    #[test]
    fn a_name_keeps_all_but_its_place() {
        assert_eq!(
            without_place("src/a.rs:7:15: replace a::b -> c::D with x"),
            "src/a.rs: replace a::b -> c::D with x"
        );
        assert_eq!(without_place("src/a.rs: replace a::b"), "src/a.rs: replace a::b");
    }

    #[test]
    fn what_cargo_mutants_writes_is_read() -> anyhow::Result<()> {
        let text = r#"{"total_mutants": 1, "outcomes": [
            {"scenario": "Baseline", "summary": "Success", "phase_results": []},
            {"scenario": {"Mutant": {"name": "n", "package": "p", "file": "src/a.rs"}}, "summary": "Timeout"}]}"#;
        let read: Outcomes = serde_json::from_str(text)?;
        assert_eq!(read.outcomes[1].summary, Summary::Timeout);
        Ok(())
    }
}
