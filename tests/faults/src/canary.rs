//! Secrets where none may be: every client secret and token of the harness holds a word that is searched for in every request
//! and in every line that is logged.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use serde_json::Value;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// What every token begins with.
pub const TOKEN_PREFIX: &str = "canary-token-";
/// What every client secret begins with.
pub const SECRET_PREFIX: &str = "canary-secret-";
/// The word, and it in base64 at each of the three offsets.
const FORMS: [&str; 4] = ["canary-", "Y2FuYXJ5L", "YW5hcnkt", "bmFyeS"];
/// Lines of the log that are kept for a failure.
const LINES: usize = 50_000;

static LEAKS: Mutex<Vec<String>> = Mutex::new(Vec::new());
static LOG: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());

fn holds_canary(text: &str) -> bool {
    FORMS.iter().any(|form| text.contains(form))
}

fn report(leak: String) {
    LEAKS.lock().unwrap_or_else(PoisonError::into_inner).push(leak);
}

/// Looks at a request to the API server. The data of a Secret is the one place where a secret belongs.
pub(crate) fn in_request(parts: &http::request::Parts, body: &Bytes) {
    let path = parts.uri.path();
    let text = String::from_utf8_lossy(body);
    if !holds_canary(&text) && !holds_canary(&parts.uri.to_string()) {
        return;
    }
    let mut object: Value = serde_json::from_slice(body).unwrap_or_default();
    if path.contains("/secrets")
        && let Some(object) = object.as_object_mut()
    {
        object.remove("data");
    }
    if object.is_null() || holds_canary(&object.to_string()) || holds_canary(&parts.uri.to_string()) {
        report(format!("a secret in the request {} {path}", parts.method));
    }
}

/// Where secrets were found that had no business there, since the last call.
#[must_use]
pub fn leaks() -> Vec<String> {
    std::mem::take(&mut LEAKS.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The lines of the log that hold `text`.
#[must_use]
pub fn log_about(text: &str) -> Vec<String> {
    LOG.lock().unwrap_or_else(PoisonError::into_inner).iter().filter(|line| line.contains(text)).cloned().collect()
}

/// Logs of every operator of this process, searched and kept in memory.
///
/// # Errors
/// Where something else logs already.
pub fn listen() -> anyhow::Result<()> {
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new("info,moneygo_operator=debug,tower=off"))
        .with_ansi(false)
        .with_writer(Ear)
        .finish();
    Ok(tracing::subscriber::set_global_default(subscriber)?)
}

struct Ear;

impl<'a> MakeWriter<'a> for Ear {
    type Writer = Self;
    fn make_writer(&'a self) -> Self {
        Self
    }
}

impl Write for Ear {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line).trim_end().to_owned();
        if holds_canary(&text) {
            report(format!("a secret in the log: {} bytes", text.len()));
        }
        let mut log = LOG.lock().unwrap_or_else(PoisonError::into_inner);
        if log.len() == LINES {
            log.pop_front();
        }
        log.push_back(text);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use k8s_openapi::ByteString;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_word_is_found_in_base64_at_every_offset() {
        for before in ["", "a", "ab", "abc"] {
            let value = ByteString(format!("{before}{TOKEN_PREFIX}1").into_bytes());
            assert!(holds_canary(&serde_json::to_string(&value).unwrap()), "after {before:?}");
        }
    }

    #[test]
    fn a_secret_belongs_into_the_data_of_a_secret_alone() {
        let sent = |path: &str, body: Value| {
            let (parts, ()) = Request::put(path).body(()).unwrap().into_parts();
            in_request(&parts, &Bytes::from(body.to_string()));
            leaks().len()
        };
        let data = json!({"data": {"access_token": "Y2FuYXJ5LXRva2VuLTE="}});
        assert_eq!(sent("/api/v1/namespaces/a/secrets/b", data.clone()), 0);
        assert_eq!(sent("/api/v1/namespaces/a/configmaps/b", data), 1);
        let annotated = json!({"metadata": {"annotations": {"a": "canary-token-1"}}, "data": {}});
        assert_eq!(sent("/api/v1/namespaces/a/secrets/b", annotated), 1);
        assert_eq!(sent("/api/v1/namespaces/a/secrets/canary-token-1", json!({})), 1);
    }
}
