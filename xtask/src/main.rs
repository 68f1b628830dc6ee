//! The project's own commands: `cargo xtask <command>`.

use std::{path::Path, process::ExitCode};

use clap::{Parser, Subcommand};

mod bench;
mod chart;
mod chart_tests;
mod ci;
mod coverage;
mod demo;
mod docs;
mod e2e;
mod faults;
mod fuzz;
mod generate;
mod metrics;
mod mutants;
mod release;
mod signals;
mod simulate;
mod survivors;
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
    /// Install the chart on the cluster that KUBECONFIG names, and have a Pod use a token while all is disturbed
    E2e(e2e::Options),
    /// Run every test
    Test(test::Options),
    /// Check all that .ci/run checks: formatting, lints, dependencies, docs, generated files, tests, the chart on a cluster
    Ci {
        /// Take this step alone, as it is named in the table at the end: `--step "end to end"`
        #[arg(long, value_name = "NAME")]
        step: Option<String>,
    },
    /// Inject faults at every request, in every state, on a real API server: matrix, events, failovers, edits, outages
    Faults {
        /// What is run (everything where unset), and its options: see `cargo xtask faults -- --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run the operator in simulated worlds: --seeds N, or --seed S to see one; --help tells the rest
    #[command(disable_help_flag = true)]
    Simulate {
        /// Arguments for the simulation
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Measure the operator beside a bare client, and write docs/performance.md with its plots (half an hour)
    Bench(bench::Options),
    /// Measure which lines of src/ the tests run
    Coverage,
    /// Build the book of docs/ into target/book, and look at every link
    Docs(docs::Options),
    /// Give the readers of answers, Secrets and objects inputs of every kind
    Fuzz(fuzz::Options),
    /// Put known bugs into a copy of the operator, one at a time, and show what catches each (an hour)
    Mutants(mutants::Options),
    /// Change the pure modules in every small way, one at a time, and fail where no unit test notices and nobody said why
    Survivors(survivors::Options),
    /// Write what is generated: the CRD, docs/api.md, docs/chart-tests.md, and the chart's copy, schema and README
    Gen {
        /// Write nothing; fail if a file is stale
        #[arg(long)]
        check: bool,
    },
    /// Build the image's binary, which lists its dependencies, and its SBOM, into target/release-artefacts
    Release,
    /// Build that binary twice, from two folders, and compare the bytes
    Reproduce,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Demo(options) => return demo::run(&options),
        Command::E2e(options) => return e2e::run(&options),
        Command::Test(options) => test::run(&options),
        Command::Ci { step } => ci::run(step.as_deref()),
        Command::Faults { arguments } => faults::run(&arguments),
        Command::Simulate { arguments } => simulate::run(&arguments),
        Command::Bench(options) => bench::run(&options),
        Command::Coverage => coverage::run(),
        Command::Docs(options) => docs::run(&options),
        Command::Fuzz(options) => fuzz::run(&options),
        Command::Mutants(options) => mutants::run(&options),
        Command::Survivors(options) => survivors::run(&options),
        Command::Gen { check: true } => generate::check(checkout()),
        Command::Gen { check: false } => generate::write(checkout()),
        Command::Release => release::run(),
        Command::Reproduce => release::reproduce(),
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
