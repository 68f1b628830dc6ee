//! `POST /token` as Money-Go documents it: the checks, the grant, the answer. No IO and no clock.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, header};
use serde_json::{Value, json};

use crate::ledger::{Ask, Grant};
use crate::script::Canned;
use crate::state::{RetryAfter, State};

const FIELDS: [&str; 4] = ["grant_type", "client_id", "client_secret", "scope"];

/// A request as it arrived.
pub(crate) struct Asked<'a> {
    pub headers: &'a HeaderMap,
    /// The body, where it is JSON.
    pub body: Option<&'a Value>,
}

/// A refusal in the form of RFC 6749 §5.2.
pub(crate) struct Refusal {
    status: u16,
    error: &'static str,
    description: String,
    headers: Vec<(String, String)>,
}

impl Refusal {
    pub fn new(status: u16, error: &'static str, description: impl Into<String>) -> Self {
        Self { status, error, description: description.into(), headers: Vec::new() }
    }

    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

impl From<Refusal> for Canned {
    fn from(refusal: Refusal) -> Self {
        let body = json!({ "error": refusal.error, "error_description": refusal.description });
        let mut answer = json_answer(refusal.status, &body);
        answer.headers.extend(refusal.headers);
        answer
    }
}

/// The headers are those of RFC 6749 §5.1.
pub(crate) fn json_answer(status: u16, body: &Value) -> Canned {
    let headers = [("content-type", "application/json"), ("cache-control", "no-store"), ("pragma", "no-cache")];
    Canned {
        status,
        headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        body: body.to_string().into(),
    }
}

/// Checks the request and makes the grant.
pub(crate) fn grant(state: &mut State, asked: &Asked<'_>, now: SystemTime) -> Result<Grant, Refusal> {
    check_content_type(asked.headers)?;
    let [grant_type, client, secret, scope] = fields(asked.body)?;
    if grant_type != "client_credentials" {
        return Err(Refusal::new(400, "unsupported_grant_type", "only client_credentials"));
    }
    check_rate(state, client, now)?;
    if !state.knows(client, secret) {
        return Err(Refusal::new(401, "invalid_client", "no such client, or another secret"));
    }
    if !state.allows_scope(scope) {
        return Err(Refusal::new(400, "invalid_scope", "no such scope"));
    }
    let ask = Ask { client, scope, lifetime: state.lifetime_of(client) };
    let prefix = &state.settings.token_prefix;
    Ok(state.ledger.issue(&ask, state.settings.mode, now, |n| fresh_token(prefix, n)))
}

/// The documented success.
pub(crate) fn success(grant: &Grant) -> Canned {
    let expires_in = seconds(grant.stated);
    json_answer(200, &json!({ "token_type": "Bearer", "expires_in": expires_in, "access_token": grant.token }))
}

fn seconds(lifetime: Duration) -> Value {
    match lifetime.subsec_nanos() {
        0 => lifetime.as_secs().into(),
        _ => lifetime.as_secs_f64().into(),
    }
}

fn check_content_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let essence = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .unwrap_or_default();
    if essence.trim().eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(Refusal::new(415, "invalid_request", "the content type must be application/json"))
}

fn fields(body: Option<&Value>) -> Result<[&str; 4], Refusal> {
    let object = body
        .and_then(Value::as_object)
        .ok_or_else(|| Refusal::new(400, "invalid_request", "the body must be a JSON object"))?;
    let mut values = [""; 4];
    for (value, name) in values.iter_mut().zip(FIELDS) {
        *value = object
            .get(name)
            .and_then(Value::as_str)
            .ok_or_else(|| Refusal::new(400, "invalid_request", format!("{name} must be there, as a string")))?;
    }
    Ok(values)
}

fn check_rate(state: &mut State, client: &str, now: SystemTime) -> Result<(), Refusal> {
    let Some((wait, form)) = state.rate_limited(client, now) else {
        return Ok(());
    };
    let whole_secs = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let refusal = Refusal::new(429, "rate_limited", "too many requests");
    Err(match form {
        RetryAfter::Seconds => refusal.header("retry-after", whole_secs.to_string()),
        RetryAfter::HttpDate => {
            // An HTTP-date drops the fraction, and so would end the wait too early.
            let until = now + wait + Duration::from_millis(999);
            refusal.header("retry-after", httpdate::fmt_http_date(until))
        }
        RetryAfter::Absent => refusal,
    })
}

fn fresh_token(prefix: &str, number: u64) -> String {
    let mut random = [0_u8; 16];
    // The number alone keeps tokens apart; without random bytes they are merely easier to guess.
    let _ = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut random);
    format!("{prefix}{number}_{:032x}", u128::from_be_bytes(random))
}
