//! The project's own commands: `cargo xtask <command>`.

use std::{path::Path, process::ExitCode};

use clap::{Parser, Subcommand};

mod chart;
mod ci;
mod coverage;
mod demo;
mod generate;
mod simulate;
mod terminal;
mod test;
mod tools;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's own commands")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the operator at work on a cluster of its own: a token in a Secret, and its refresh
    Demo(demo::Options),
    /// Run every test
    Test {
        /// Print no line for each crate that is compiled
        #[arg(long)]
        no_build_progress: bool,
        /// Arguments for `cargo test`, as a test's name, or --package and -- --nocapture
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Check all that .ci/run checks: formatting, lints, dependencies, docs, generated files, tests
    Ci,
    /// Run the operator in simulated worlds: --seeds N, or --seed S to see one; --help tells the rest
    #[command(disable_help_flag = true)]
    Simulate {
        /// Arguments for the simulation
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Measure which lines of src/ the tests run
    Coverage,
    /// Write what is generated: the CRD, docs/api.md, and the chart's copy, schema and README
    Gen {
        /// Write nothing; fail if a file is stale
        #[arg(long)]
        check: bool,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Demo(options) => return demo::run(&options),
        Command::Test { no_build_progress, arguments } => test::run(no_build_progress, &arguments),
        Command::Ci => ci::run(),
        Command::Simulate { arguments } => simulate::run(&arguments),
        Command::Coverage => coverage::run(),
        Command::Gen { check: true } => generate::check(checkout()),
        Command::Gen { check: false } => generate::write(checkout()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The folder of the workspace.
fn checkout() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}
