//! `cargo xtask bench`: the operator as it is released, measured by `tests/bench` beside a bare client.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use moneygo_controlplane::{Binaries, Release};

use crate::{checkout, terminal};

/// What is measured, and of which operator.
#[derive(clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub struct Options {
    /// Everything once, with few objects, within 5 minutes; written to target/bench instead of docs
    #[arg(long)]
    quick: bool,
    /// Fill 50,000 objects, too: a quarter of an hour more
    #[arg(long, conflicts_with = "quick")]
    largest: bool,
    /// Measure this program instead of building one
    #[arg(long, value_name = "PATH")]
    operator: Option<PathBuf>,
    /// Fail where a figure is not what it must be; else only what could not be measured is a failure
    #[arg(long)]
    check: bool,
    /// Fill beside this program of External Secrets, and nothing more: 10 minutes, and twice that on a slow machine
    #[arg(long, value_name = "PATH", conflicts_with_all = ["quick", "largest", "check"], requires = "peer_crds")]
    peer: Option<PathBuf>,
    /// Its CRDs: deploy/crds/bundle.yaml of its source
    #[arg(long, value_name = "FILE", requires = "peer")]
    peer_crds: Option<PathBuf>,
    /// Measure nothing: write the page and the plots again, from docs/performance.json
    #[arg(long, conflicts_with_all = ["quick", "largest", "operator", "peer", "check"])]
    report: bool,
}

impl Options {
    /// As CI measures: this program.
    pub fn quick(operator: PathBuf) -> Self {
        let operator = Some(operator);
        Self { quick: true, largest: false, operator, check: false, peer: None, peer_crds: None, report: false }
    }
}

/// Builds what is needed, and measures.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let into = checkout().join(if options.quick { "target/bench" } else { "docs" });
    // The bench must not be what is slow.
    let mut bench = terminal::cargo(checkout());
    bench.args(["run", "--quiet", "--locked", "--profile", "simulation", "--package", "moneygo-bench", "--"]);
    if options.report {
        bench.arg("report");
    } else {
        // Here their building shows its progress.
        Binaries::locate(Release::chosen()?)?;
        let operator = options.operator.clone().map_or_else(build, Ok)?;
        let operator = operator.canonicalize().context("there is no such operator")?;
        if let Some((program, crds)) = options.peer.as_ref().zip(options.peer_crds.as_ref()) {
            bench.arg("peer").arg("--program").arg(program.canonicalize().context("there is no such peer")?);
            bench.arg("--crds").arg(crds.canonicalize().context("there is no such file of CRDs")?);
        } else {
            bench.arg("run");
            bench.args(options.quick.then_some("--quick")).args(options.check.then_some("--check"));
            bench.args(options.largest.then_some("--largest"));
        }
        bench.arg("--operator").arg(operator);
    }
    let status = bench.arg("--into").arg(&into).status().context("cannot run cargo")?;
    ensure!(status.success(), "see above");
    println!("written: {}", into.join("performance.md").display());
    Ok(())
}

fn build() -> anyhow::Result<PathBuf> {
    let mut build = terminal::cargo(checkout());
    let status = build.args(["build", "--release", "--locked", "--bin", "moneygo-operator"]).status();
    ensure!(status.context("cannot run cargo")?.success(), "the operator cannot be built: see above");
    Ok(terminal::target_folder().join("release/moneygo-operator"))
}
