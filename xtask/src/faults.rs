//! `cargo xtask faults`: the harness of `tests/faults`, which prints its counts last.

use anyhow::{Context, ensure};
use moneygo_controlplane::{Binaries, Release};

use crate::{checkout, terminal};

/// Builds it and runs it with these arguments.
pub fn run(arguments: &[String]) -> anyhow::Result<()> {
    // Here their building shows its progress.
    Binaries::locate(Release::chosen()?)?;
    let mut harness = terminal::cargo(checkout());
    harness.args(["run", "--package", "moneygo-faults", "--locked", "--quiet", "--"]).args(arguments);
    let status = harness.status().context("cannot run cargo")?;
    ensure!(status.success(), "see above");
    Ok(())
}
