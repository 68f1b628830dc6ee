//! A program as users have it: it reads a token from a mounted Secret for each call of an API, and counts how it fares.
//!
//! The end-to-end test runs it in a Pod and reads its [`Report`], a line of JSON, from its log. A token is never logged.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use reqwest::{Certificate, Client, StatusCode};
use serde::{Deserialize, Serialize};

/// The link that the kubelet replaces when a mounted Secret changes: all files change with it, at once.
const MOUNTED: &str = "..data";
/// How long a call may take.
const CALL_LIMIT: Duration = Duration::from_secs(5);
/// How many changes of the token are remembered.
const MAX_SEEN: usize = 1_000;

/// What became of all calls so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Answered with 200.
    pub accepted: u64,
    /// Answered with 401.
    pub unauthorized: u64,
    /// Answered otherwise, or not at all.
    pub failed: u64,
    /// Not made: there was no token to be read.
    pub unreadable: u64,
    /// The least that a token had left to live when it was used, in seconds.
    pub least_left_secs: Option<f64>,
    /// Every token, in the order in which they came: at most 1000.
    pub seen: Vec<Seen>,
}

/// A token that was not in the file before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// When it was first read.
    pub at: Timestamp,
    /// When it expires, as the file beside it says.
    pub expires_at: Timestamp,
}

/// Where the token is, and what it is good for.
pub struct Consumer {
    folder: PathBuf,
    token_key: String,
    expires_at_key: String,
    url: String,
    client: Client,
    last: Option<String>,
    report: Report,
}

impl Consumer {
    /// Of a token in that folder, for that URL, trusting one certificate authority alone if there is one (PEM).
    ///
    /// # Errors
    /// If the authority's certificate is none.
    pub fn new(
        folder: PathBuf,
        [token_key, expires_at_key]: [String; 2],
        url: String,
        ca: Option<&[u8]>,
    ) -> anyhow::Result<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let authorities = ca.map(Certificate::from_pem).transpose().context("not a certificate in PEM")?;
        // Whoever calls in the clear needs no authority; the system's are not to be looked for in an image without any.
        let builder = Client::builder().no_proxy().timeout(CALL_LIMIT).tls_certs_only(authorities);
        let client = builder.build().context("cannot make a client")?;
        Ok(Self { folder, token_key, expires_at_key, url, client, last: None, report: Report::default() })
    }

    /// What became of all calls so far.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Reads the token, and makes one call with it.
    pub async fn call(&mut self) {
        let Ok((token, expires_at)) = self.read() else {
            self.report.unreadable += 1;
            return;
        };
        let now = now();
        if self.last.as_ref() != Some(&token) && self.report.seen.len() < MAX_SEEN {
            self.report.seen.push(Seen { at: now, expires_at });
        }
        let left_secs = expires_at.duration_since(now).as_secs_f64();
        self.report.least_left_secs = Some(self.report.least_left_secs.map_or(left_secs, |least| least.min(left_secs)));
        let answer = self.client.get(&self.url).bearer_auth(&token).send().await;
        match answer.map(|answer| answer.status()) {
            Ok(StatusCode::OK) => self.report.accepted += 1,
            Ok(StatusCode::UNAUTHORIZED) => self.report.unauthorized += 1,
            Ok(_) | Err(_) => self.report.failed += 1,
        }
        self.last = Some(token);
    }

    /// Both files of one state of the Secret: the link might be replaced between two reads through it.
    fn read(&self) -> io::Result<(String, Timestamp)> {
        let folder = self.folder.join(MOUNTED).canonicalize().unwrap_or_else(|_| self.folder.clone());
        let token = read(&folder, &self.token_key)?;
        let expires_at = read(&folder, &self.expires_at_key)?.parse().map_err(io::Error::other)?;
        Ok((token, expires_at))
    }
}

fn read(folder: &Path, key: &str) -> io::Result<String> {
    std::fs::read_to_string(folder.join(key))
}

#[expect(clippy::disallowed_methods, reason = "the token's end is told by the wall clock")]
fn now() -> Timestamp {
    Timestamp::now()
}
