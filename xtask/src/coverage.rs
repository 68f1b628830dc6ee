//! `cargo xtask coverage`: which lines of `src/` the tests run.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail, ensure};
use moneygo_controlplane::{Binaries, Release};
use serde_json::Value;

use crate::{checkout, terminal, tools};

/// What share of the lines the tests must run, in percent.
const LINES_MIN_PERCENT: f64 = 95.0;
/// The version of LLVM that rustc 1.95 writes profiles for, as Debian names its tools.
const LLVM: [&str; 2] = ["llvm-cov-22", "llvm-profdata-22"];

/// Runs every test with the operator instrumented, and prints a line for each of its files.
pub fn run() -> anyhow::Result<()> {
    let [cov, profdata] = llvm()?;
    let tool = tools::CARGO_LLVM_COV.executable()?;
    Binaries::locate(Release::chosen()?)?;
    let llvm_cov = |arguments: &[&str]| -> anyhow::Result<()> {
        let mut command = Command::new(&tool);
        command.arg("llvm-cov").args(arguments).current_dir(checkout());
        let status = command.envs([("LLVM_COV", &cov), ("LLVM_PROFDATA", &profdata)]).status();
        ensure!(status.context("cannot run cargo-llvm-cov")?.success(), "cargo llvm-cov failed: see above");
        Ok(())
    };
    terminal::heading("Running every test, instrumented");
    // What the tests ran counts even where one failed.
    let tested = llvm_cov(&["--no-report", "--workspace", "--locked", "--no-fail-fast"]);
    let report = env::temp_dir().join(format!("moneygo-coverage-{}.json", std::process::id()));
    let path = report.to_str().context("the temporary folder's name is not UTF-8")?;
    let reported = llvm_cov(&["report", "--json", "--summary-only", "--output-path", path]);
    let text = reported.and_then(|()| fs::read_to_string(&report).context("cargo llvm-cov wrote no report"));
    let _ = fs::remove_file(&report);
    let files = lines(&text?, &checkout().join("src"))?;
    show(&files).and(tested)
}

/// A file, how many lines it has that can run, and how many of them ran.
type Lines = (PathBuf, u64, u64);

/// What the report says about the files in a folder.
fn lines(report: &str, folder: &Path) -> anyhow::Result<Vec<Lines>> {
    let report: Value = serde_json::from_str(report).context("the report is not JSON")?;
    let files = report["data"][0]["files"].as_array().context("the report names no files")?;
    let lines = files.iter().filter_map(|file| {
        let path = Path::new(file["filename"].as_str()?).strip_prefix(folder).ok()?;
        let lines = &file["summary"]["lines"];
        Some((path.to_owned(), lines["count"].as_u64()?, lines["covered"].as_u64()?))
    });
    Ok(lines.collect())
}

fn show(files: &[Lines]) -> anyhow::Result<()> {
    terminal::heading("Lines of src/ that the tests run");
    for (path, count, covered) in files {
        println!("    {:<20} {covered:>6} of {count:>6}  {:>6.2} %", path.display(), percent(*covered, *count));
    }
    let (count, covered) = files.iter().fold((0, 0), |(all, ran), file| (all + file.1, ran + file.2));
    let total = percent(covered, count);
    println!("    {:<20} {covered:>6} of {count:>6}  {total:>6.2} %", "in all");
    ensure!(count > 0, "the report names no file of src/");
    ensure!(total >= LINES_MIN_PERCENT, "{total:.2} % of the lines of src/: at least {LINES_MIN_PERCENT} % must be");
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "no file has 2^52 lines")]
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 100.0 } else { part as f64 * 100.0 / whole as f64 }
}

/// LLVM's tools: what `LLVM_COV` and `LLVM_PROFDATA` name, or Debian's, installed where this user may do so.
fn llvm() -> anyhow::Result<[String; 2]> {
    if let (Ok(cov), Ok(profdata)) = (env::var("LLVM_COV"), env::var("LLVM_PROFDATA")) {
        return Ok([cov, profdata]);
    }
    if !LLVM.iter().all(|tool| tools::is_found(tool, "--version")) {
        install_llvm()?;
    }
    Ok(LLVM.map(String::from))
}

fn install_llvm() -> anyhow::Result<()> {
    let missing = "coverage needs LLVM 22: install Debian's llvm-22 (apt-get install llvm-22), or set LLVM_COV and LLVM_PROFDATA to its llvm-cov and llvm-profdata";
    if !rustix::process::geteuid().is_root() || !tools::is_found("apt-get", "--version") {
        bail!(missing);
    }
    terminal::heading("Installing Debian's llvm-22");
    let apt = |arguments: &[&str]| {
        Command::new("apt-get").arg("--yes").args(arguments).env("DEBIAN_FRONTEND", "noninteractive").status()
    };
    let install = ["install", "--no-install-recommends", "llvm-22"];
    // An old list of packages may name files that are gone.
    let installed = apt(&["update"])?.success() && apt(&install)?.success();
    ensure!(installed && LLVM.iter().all(|tool| tools::is_found(tool, "--version")), missing);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_files_of_the_folder_count() -> anyhow::Result<()> {
        let report = r#"{"data": [{"files": [
            {"filename": "/here/src/a.rs", "summary": {"lines": {"count": 10, "covered": 9}}},
            {"filename": "/here/tests/b.rs", "summary": {"lines": {"count": 10, "covered": 0}}}]}]}"#;
        assert_eq!(lines(report, Path::new("/here/src"))?, [(PathBuf::from("a.rs"), 10, 9)]);
        Ok(())
    }

    #[test]
    fn too_few_lines_are_a_failure() {
        assert!(show(&[("a.rs".into(), 100, 95)]).is_ok());
        assert!(show(&[("a.rs".into(), 100, 94)]).is_err());
        assert!(show(&[]).is_err());
    }
}
