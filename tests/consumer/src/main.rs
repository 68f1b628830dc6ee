//! Calls an API with a token from a mounted Secret until it is told to stop, and prints a report every second.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use token_consumer::Consumer;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

/// The pause between two calls.
const PAUSE: Duration = Duration::from_millis(250);
/// A report for so many calls.
const CALLS_PER_REPORT: u64 = 4;

/// Calls an API with a token from a mounted Secret, four times a second, and prints what became of it as a line of JSON every second.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Where the Secret is mounted
    #[arg(long)]
    folder: PathBuf,
    /// The key of the token
    #[arg(long, default_value = "access_token")]
    token_key: String,
    /// The key of the time at which the token expires
    #[arg(long, default_value = "expires_at")]
    expires_at_key: String,
    /// What to call
    #[arg(long)]
    url: String,
    /// The certificate authority to trust, in PEM
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let Arguments { folder, token_key, expires_at_key, url, ca_file } = Arguments::parse();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let read = |file: &PathBuf| std::fs::read(file).with_context(|| format!("cannot read {}", file.display()));
    let ca = ca_file.as_ref().map(read).transpose()?;
    let mut consumer = Consumer::new(folder, [token_key, expires_at_key], url, ca.as_deref())?;
    tokio::select! {
        ended = consume(&mut consumer) => ended,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

async fn consume(consumer: &mut Consumer) -> anyhow::Result<()> {
    let mut pause = interval(PAUSE);
    pause.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for calls in 1_u64.. {
        pause.tick().await;
        consumer.call().await;
        if calls.is_multiple_of(CALLS_PER_REPORT) {
            let report = serde_json::to_string(consumer.report())?;
            writeln!(std::io::stdout(), "{report}")?;
        }
    }
    Ok(())
}
