//! Runs the stand-in for Money-Go's token endpoint until it is told to stop.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use fake_moneygo::{FakeMoneyGo, Mode, RateLimit, RetryAfter};
use tokio::signal::unix::{SignalKind, signal};

/// A stand-in for Money-Go's token endpoint, for tests and demonstrations.
///
/// Serves POST /token, GET /protected (200 for a live token), and the ledger, scripts and modes below /_admin/. Prints its URL on one line once it listens.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The address to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The lifetime of tokens, in seconds.
    #[arg(long, default_value = "2592000", value_parser = secs)]
    expires_in: Duration,
    /// A client that may have tokens (repeatable). Where none is given, every client may.
    #[arg(long, value_name = "ID:SECRET", env = "FAKE_MONEYGO_CLIENT", hide_env_values = true, value_delimiter = ',', value_parser = client)]
    client: Vec<(String, String)>,
    /// A scope that may be asked for (repeatable).
    #[arg(long, default_value = "api")]
    scope: Vec<String>,
    /// What a new grant does to the tokens a client has.
    #[arg(long, value_enum, default_value_t = ModeName::Independent)]
    mode: ModeName,
    /// With --mode max-live: how many tokens of a client live.
    #[arg(long, default_value_t = 1)]
    max_live: usize,
    /// Requests a client has in each window of so many seconds; more are answered 429.
    #[arg(long, value_name = "REQUESTS/SECONDS", value_parser = rate_limit)]
    rate_limit: Option<RateLimit>,
    /// What every token begins with.
    #[arg(long, default_value = "mgt_")]
    token_prefix: String,
    /// Serve TLS, with a fresh certificate for localhost, 127.0.0.1 and the IPv6 loopback address.
    #[arg(long)]
    tls: bool,
    /// A further DNS name or IP address for the certificate (repeatable).
    #[arg(long, requires = "tls")]
    tls_name: Vec<String>,
    /// Where to write the certificate authority's certificate, in PEM, before the URL is printed; `-` prints it, too.
    #[arg(long, value_name = "FILE", requires = "tls")]
    ca_out: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum ModeName {
    Independent,
    RevokePrevious,
    SameWhileAlive,
    SameUndiminished,
    SameProlonged,
    MaxLive,
}

fn client(text: &str) -> Result<(String, String), &'static str> {
    let (id, secret) = text.split_once(':').ok_or("ID:SECRET is wanted")?;
    Ok((id.to_owned(), secret.to_owned()))
}

fn secs(text: &str) -> Result<Duration, String> {
    let secs: f64 = text.parse().map_err(|_| "a number of seconds is wanted")?;
    Duration::try_from_secs_f64(secs).map_err(|error| error.to_string())
}

fn rate_limit(text: &str) -> Result<RateLimit, String> {
    let (requests, window) = text.split_once('/').ok_or("REQUESTS/SECONDS is wanted")?;
    let requests = requests.parse().map_err(|_| "a number of requests is wanted")?;
    let window = secs(window)?;
    Ok(RateLimit { requests, window, retry_after: RetryAfter::Seconds })
}

impl Arguments {
    fn mode(&self) -> Mode {
        match self.mode {
            ModeName::Independent => Mode::Independent,
            ModeName::RevokePrevious => Mode::RevokePrevious,
            ModeName::SameWhileAlive => Mode::SameWhileAlive,
            ModeName::SameUndiminished => Mode::SameUndiminished,
            ModeName::SameProlonged => Mode::SameProlonged,
            ModeName::MaxLive => Mode::MaxLive(self.max_live),
        }
    }

    async fn start(&self) -> std::io::Result<FakeMoneyGo> {
        let mut builder = FakeMoneyGo::builder()
            .listen(self.listen)
            .expires_in(self.expires_in)
            .scopes(&self.scope)
            .mode(self.mode())
            .token_prefix(&self.token_prefix)
            .admin();
        for (id, secret) in &self.client {
            builder = builder.client(id, secret);
        }
        if self.client.is_empty() {
            builder = builder.any_client();
        }
        if let Some(limit) = self.rate_limit {
            builder = builder.rate_limit(limit);
        }
        if self.tls {
            builder = builder.tls_names(&self.tls_name);
        }
        builder.start().await
    }
}

fn write_ca(path: &Path, pem: &str) -> std::io::Result<()> {
    // For a container without a folder to write to, whose log is read.
    if path == Path::new("-") { std::io::stdout().write_all(pem.as_bytes()) } else { std::fs::write(path, pem) }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    // Before the URL is printed: whoever reads it may signal at once.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let fake = arguments.start().await.with_context(|| format!("cannot serve on {}", arguments.listen))?;
    if let (Some(path), Some(pem)) = (&arguments.ca_out, fake.ca_pem()) {
        write_ca(path, pem).with_context(|| format!("cannot write {}", path.display()))?;
    }
    writeln!(std::io::stdout(), "{}", fake.url())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    fake.shutdown().await;
    Ok(())
}
