//! `kubectl moneygo`: what an administrator does with `MoneyGoCredential` objects, with the rights of the kubeconfig.
//!
//! | module | what it is for | what is not in it |
//! |---|---|---|
//! | [`args`] | the command line | IO |
//! | [`cluster`] | the kubeconfig, reads and writes of objects, errors for people | decisions |
//! | [`terminal`] | colours, characters, the spinner | |
//! | [`words`] | times and durations in words | clocks |
//! | [`life`] | an object → how its token stands, and the bar that shows it | IO |
//! | [`status`] | the command `status` | |
//! | [`refresh`] | the commands `refresh`, `suspend` and `resume` | |
//! | [`check`] | the command `check`: one grant, from here | |
//! | [`doctor`] | the command `doctor`: facts → findings | |
//! | [`complete`] | completion | |
//!
//! No output holds a client secret or a token; `check --show-token` alone shows the one that it was given.

#![deny(clippy::print_stderr, clippy::print_stdout, reason = "they panic on a pipe that nobody reads")]

mod args;
mod check;
mod cluster;
mod complete;
mod doctor;
mod life;
mod refresh;
mod status;
mod terminal;
mod words;

use std::process::ExitCode;

use clap::Parser as _;

use args::{Args, Command};

/// How a command ended, where it could be carried out at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Exit code 0.
    Well,
    /// Exit code 1: what was asked about is not well, or what was asked for did not come about.
    Unwell,
}

/// The exit code where the command could not be carried out: no cluster, no right, a wrong flag.
const COULD_NOT: u8 = 2;

fn main() -> ExitCode {
    let args = Args::parse();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&error.into()),
    };
    let ended = runtime.block_on(run(&args));
    // A resolver that hangs in its thread must not hold up the exit.
    runtime.shutdown_background();
    match ended {
        Ok(Verdict::Well) => ExitCode::SUCCESS,
        Ok(Verdict::Unwell) => ExitCode::FAILURE,
        Err(error) => complain(&error),
    }
}

fn complain(error: &anyhow::Error) -> ExitCode {
    // Whoever reads a pipe may be gone: then there is nobody to complain to.
    if status::is_broken_pipe(error) {
        return ExitCode::SUCCESS;
    }
    terminal::tell("error:", &format!("{error:#}"));
    ExitCode::from(COULD_NOT)
}

async fn run(args: &Args) -> anyhow::Result<Verdict> {
    match &args.command {
        Command::Status(wanted) => status::run(&args.cluster, wanted).await,
        Command::Refresh(wanted) => refresh::refresh(&args.cluster, wanted).await,
        Command::Suspend(which) => refresh::suspend(&args.cluster, which, true).await,
        Command::Resume(which) => refresh::suspend(&args.cluster, which, false).await,
        Command::Doctor(wanted) => doctor::run(&args.cluster, wanted).await,
        Command::Check(wanted) => check::run(&args.cluster, wanted).await,
        Command::Completion { shell } => complete::script(*shell),
        Command::Complete { words } => complete::words(&args.cluster, words).await,
        Command::Version => complete::version(),
    }
}
