//! `cargo xtask simulate`: the operator in simulated worlds, built with a profile of its own.

use anyhow::{Context, ensure};

use crate::{checkout, terminal};

/// Builds the simulation and hands the arguments on to it.
pub fn run(arguments: &[String]) -> anyhow::Result<()> {
    let mut simulation = terminal::cargo(checkout());
    simulation.args(["run", "--quiet", "--locked", "--profile", "simulation", "--package", "moneygo-simulation", "--"]);
    let status = simulation.args(arguments).status().context("cannot run cargo")?;
    ensure!(status.success(), "a promise was not kept, or the simulation cannot run: see above");
    Ok(())
}
