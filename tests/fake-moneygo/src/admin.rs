//! The ledger, the scripts and the modes over HTTP, for those who run the binary. Without authentication: the tokens are good for nothing.
//!
//! | request | body, answer |
//! |---|---|
//! | `GET /_admin/ledger`, `?client=ID` | `{"grants": [{sequence, client, scope, token, issued, expires, revoked_at, repeated, state}]}`; times in RFC 3339 |
//! | `GET /_admin/requests`, `?client=ID` | `{"requests": [{sequence, connection, received_at, method, path, client, grant, status, answered_at}]}` |
//! | `GET /_admin/counts` | `{grants, requests, connections, held, protected: {accepted, refused}}` |
//! | `POST /_admin/clients` | `{"id", "secret"?, "expires_in_secs"?}` adds or changes a client |
//! | `DELETE /_admin/clients?client=ID` | removes one |
//! | `POST /_admin/script` | see [`ScriptWish`]; adds a script |
//! | `DELETE /_admin/script`, `?client=ID` | drops the scripts of one client, or all |
//! | `POST /_admin/mode` | `"independent"`, `"revoke_previous"`, `"same_while_alive"`, `"same_undiminished"`, `"same_prolonged"`, `{"max_live": 2}` |
//! | `POST /_admin/rate-limit` | `{"requests", "window_secs", "retry_after"?: "seconds", "http_date", "absent"}` or `null` |
//! | `POST /_admin/outage` | `{"how": "unavailable", "closed", "refused" or null, "for_secs"?}`; `refused` needs `for_secs` |
//! | `POST /_admin/settings` | `{"expires_in_secs"?, "any_client"?}` |
//! | `POST /_admin/hold`, `/_admin/hold-answers`, `/_admin/release` | no body |
//!
//! A success without an answer of its own is `{}`; what is wrong with a request is a 400 with `error_description`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use http::{Method, request};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use crate::endpoint::{Refusal, json_answer};
use crate::ledger::{Grant, TokenState};
use crate::script::{Canned, Pace, Script};
use crate::state::{Outage, RateLimit, Request, RetryAfter, Shared, now};

pub(crate) const PREFIX: &str = "/_admin/";

/// The longest outage with an end, script or delay that can be asked for: a day, in seconds.
const MAX_SECS: f64 = 86_400.0;

pub(crate) fn answer(shared: &Arc<Shared>, head: &request::Parts, body: &[u8]) -> Canned {
    match act(shared, head, body) {
        Ok(answer) => json_answer(200, &answer),
        Err(refusal) => refusal.into(),
    }
}

fn act(shared: &Arc<Shared>, head: &request::Parts, body: &[u8]) -> Result<Value, Refusal> {
    let client = head.uri.query().and_then(|query| query.strip_prefix("client="));
    let path = head.uri.path().trim_start_matches(PREFIX);
    match (&head.method, path) {
        (&Method::GET, "ledger") => return Ok(ledger(shared, client)),
        (&Method::GET, "requests") => return Ok(requests(shared, client)),
        (&Method::GET, "counts") => return Ok(counts(shared)),
        (&Method::POST, "clients") => put_client(shared, parse(body)?),
        (&Method::DELETE, "clients") => {
            let client = client.ok_or_else(|| wrong("which client"))?;
            shared.write(|state| state.secrets.remove(client));
        }
        (&Method::POST, "script") => {
            let wish: ScriptWish = parse(body)?;
            let client = wish.client.clone();
            let script = wish.into_script()?;
            shared.write(|state| state.scripts.push(client.as_deref(), script));
        }
        (&Method::DELETE, "script") => shared.write(|state| state.scripts.clear(client)),
        (&Method::POST, "mode") => {
            let mode = parse(body)?;
            shared.write(|state| state.settings.mode = mode);
        }
        (&Method::POST, "rate-limit") => {
            let limit = parse::<Option<RateLimitWish>>(body)?.map(RateLimit::from);
            shared.write(|state| state.settings.rate_limit = limit);
        }
        (&Method::POST, "outage") => set_outage(shared, &parse(body)?)?,
        (&Method::POST, "settings") => put_settings(shared, &parse(body)?),
        (&Method::POST, "hold") => shared.gates.requests.shut(),
        (&Method::POST, "hold-answers") => shared.gates.answers.shut(),
        (&Method::POST, "release") => shared.gates.release(),
        _ => return Err(Refusal::new(404, "not_found", "no such admin request")),
    }
    Ok(json!({}))
}

fn wrong(description: impl Into<String>) -> Refusal {
    Refusal::new(400, "invalid_request", description)
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| wrong(error.to_string()))
}

fn ledger(shared: &Shared, client: Option<&str>) -> Value {
    let now = now();
    let grants: Vec<Value> = shared.read(|state| {
        let all = state.ledger.grants().iter();
        all.filter(|grant| client.is_none_or(|id| id == grant.client)).map(|grant| grant_json(grant, now)).collect()
    });
    json!({ "grants": grants })
}

fn grant_json(grant: &Grant, now: SystemTime) -> Value {
    let state = match grant.state_at(now) {
        TokenState::Alive => "alive",
        TokenState::Expired => "expired",
        TokenState::Revoked { .. } => "revoked",
        TokenState::Unknown => "unknown",
    };
    json!({
        "sequence": grant.sequence,
        "client": grant.client,
        "scope": grant.scope,
        "token": grant.token,
        "issued": rfc3339(grant.issued),
        "expires": rfc3339(grant.expires),
        "revoked_at": grant.revoked_at.and_then(rfc3339),
        "repeated": grant.repeated,
        "state": state,
    })
}

fn requests(shared: &Shared, client: Option<&str>) -> Value {
    let requests: Vec<Value> = shared.read(|state| {
        let all = state.requests.iter();
        all.filter(|request| client.is_none_or(|id| request.client.as_deref() == Some(id))).map(request_json).collect()
    });
    json!({ "requests": requests })
}

fn request_json(request: &Request) -> Value {
    json!({
        "sequence": request.sequence,
        "connection": request.connection,
        "received_at": rfc3339(request.received_at),
        "method": request.method,
        "path": request.path,
        "client": request.client,
        "grant": request.grant,
        "status": request.status,
        "answered_at": request.answered_at.and_then(rfc3339),
    })
}

fn rfc3339(at: SystemTime) -> Option<String> {
    Timestamp::try_from(at).ok().map(|at| at.to_string())
}

fn counts(shared: &Shared) -> Value {
    shared.read(|state| {
        json!({
            "grants": state.ledger.grants().len(),
            "requests": state.requests.len(),
            "connections": shared.connections.load(Ordering::SeqCst),
            "held": shared.gates.waiting(),
            "protected": state.protected,
        })
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClientWish {
    id: String,
    secret: Option<String>,
    expires_in_secs: Option<Secs>,
}

fn put_client(shared: &Shared, wish: ClientWish) {
    shared.write(|state| {
        if let Some(lifetime) = wish.expires_in_secs {
            state.lifetimes.insert(wish.id.clone(), lifetime.0);
        }
        if let Some(secret) = wish.secret {
            state.secrets.insert(wish.id, secret);
        }
    });
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SettingsWish {
    expires_in_secs: Option<Secs>,
    any_client: Option<bool>,
}

fn put_settings(shared: &Shared, wish: &SettingsWish) {
    shared.write(|state| {
        let settings = &mut state.settings;
        settings.expires_in = wish.expires_in_secs.map_or(settings.expires_in, |secs| secs.0);
        settings.any_client = wish.any_client.unwrap_or(settings.any_client);
    });
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RateLimitWish {
    requests: usize,
    window_secs: Secs,
    #[serde(default)]
    retry_after: RetryAfter,
}

impl From<RateLimitWish> for RateLimit {
    fn from(wish: RateLimitWish) -> Self {
        Self { requests: wish.requests, window: wish.window_secs.0, retry_after: wish.retry_after }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OutageWish {
    how: Option<Outage>,
    for_secs: Option<BoundedSecs>,
}

/// An outage that refuses connections must end by itself: nobody could ask for its end.
fn set_outage(shared: &Arc<Shared>, wish: &OutageWish) -> Result<(), Refusal> {
    if wish.how == Some(Outage::Refused) && wish.for_secs.is_none() {
        return Err(wrong("refused needs for_secs"));
    }
    shared.outage.send_replace(wish.how);
    if let Some(BoundedSecs(after)) = wish.for_secs {
        let shared = Arc::downgrade(shared);
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            if let Some(shared) = shared.upgrade() {
                shared.outage.send_replace(None);
            }
        });
    }
    Ok(())
}

/// A script: one `answer`, and what else is to hold of it. `times` is 1 where neither it nor `forever` is given.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ScriptWish {
    client: Option<String>,
    answer: AnswerWish,
    #[serde(default)]
    pace: PaceWish,
    times: Option<u32>,
    #[serde(default)]
    forever: bool,
    #[serde(default)]
    after_grant: bool,
    delay_secs: Option<BoundedSecs>,
    /// Applies only from so many seconds after now.
    after_secs: Option<BoundedSecs>,
    /// Applies only until so many seconds after now or, with `after_secs`, after its beginning.
    for_secs: Option<BoundedSecs>,
}

/// `"endpoint"`, `"close"`, `"reset"`, `"hang"`, or `{"status": 503, "headers": {…}, "body": "…"}`.
#[derive(Deserialize)]
#[serde(untagged)]
enum AnswerWish {
    Plain(PlainAnswer),
    Canned {
        status: u16,
        #[serde(default)]
        headers: BTreeMap<String, String>,
        #[serde(default)]
        body: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum PlainAnswer {
    Endpoint,
    Close,
    Reset,
    Hang,
}

/// `"whole"`, `"endless"`, `{"drip": {"chunk_bytes": 1, "interval_secs": 0.1}}`, `{"cut_after": 10}`, `{"reset_after": 10}`,
/// `{"hang_after": 10}`.
#[derive(Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PaceWish {
    #[default]
    Whole,
    Endless,
    Drip {
        chunk_bytes: usize,
        interval_secs: BoundedSecs,
    },
    CutAfter(usize),
    ResetAfter(usize),
    HangAfter(usize),
}

impl ScriptWish {
    fn into_script(self) -> Result<Script, Refusal> {
        let mut script = Script::from(self.answer).pace(self.pace.into());
        script = match (self.times, self.forever) {
            (Some(_), true) => return Err(wrong("times or forever, not both")),
            (None, true) => script.forever(),
            (times, false) => script.times(times.unwrap_or(1)),
        };
        if self.after_grant {
            script = script.after_grant();
        }
        if let Some(BoundedSecs(delay)) = self.delay_secs {
            script = script.delay(delay);
        }
        let from = now() + self.after_secs.map(|secs| secs.0).unwrap_or_default();
        let until = self.for_secs.map(|secs| from + secs.0);
        Ok(script.when(move |now| from <= now && until.is_none_or(|until| now < until)))
    }
}

impl From<AnswerWish> for Script {
    fn from(wish: AnswerWish) -> Self {
        match wish {
            AnswerWish::Plain(PlainAnswer::Endpoint) => Self::endpoint(),
            AnswerWish::Plain(PlainAnswer::Close) => Self::close(),
            AnswerWish::Plain(PlainAnswer::Reset) => Self::reset(),
            AnswerWish::Plain(PlainAnswer::Hang) => Self::hang(),
            AnswerWish::Canned { status, headers, body } => {
                headers.iter().fold(Self::canned(status, body), |script, (name, value)| script.header(name, value))
            }
        }
    }
}

impl From<PaceWish> for Pace {
    fn from(wish: PaceWish) -> Self {
        match wish {
            PaceWish::Whole => Self::Whole,
            PaceWish::Endless => Self::Endless,
            PaceWish::Drip { chunk_bytes, interval_secs } => Self::Drip { chunk_bytes, interval: interval_secs.0 },
            PaceWish::CutAfter(bytes) => Self::CutAfter { bytes },
            PaceWish::ResetAfter(bytes) => Self::ResetAfter { bytes },
            PaceWish::HangAfter(bytes) => Self::HangAfter { bytes },
        }
    }
}

/// A number of seconds that is not negative.
#[derive(Clone, Copy)]
struct Secs(Duration);

impl<'de> Deserialize<'de> for Secs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let secs = f64::deserialize(deserializer)?;
        Duration::try_from_secs_f64(secs).map(Self).map_err(serde::de::Error::custom)
    }
}

/// As `Secs`, and at most a day: these are added to the time of day.
#[derive(Clone, Copy)]
struct BoundedSecs(Duration);

impl<'de> Deserialize<'de> for BoundedSecs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Secs(secs) = Secs::deserialize(deserializer)?;
        if secs.as_secs_f64() > MAX_SECS {
            return Err(serde::de::Error::custom("more than a day"));
        }
        Ok(Self(secs))
    }
}
