//! What the connections and the handle share.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::ledger::{Ledger, Mode};
use crate::script::Scripts;

/// The longest lifetime of a token: a hundred years, which a `SystemTime` always holds.
const MAX_LIFETIME: Duration = Duration::from_hours(100 * 366 * 24);

/// The longest window of a rate limit.
const MAX_WINDOW: Duration = Duration::from_hours(24);

/// How often a client may ask, over a sliding window. Refused requests do not count towards it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Requests that a client has in each window.
    pub requests: usize,
    /// The window: at most a day.
    pub window: Duration,
    /// How a 429 says when to come back.
    pub retry_after: RetryAfter,
}

/// The form of `Retry-After` (RFC 9110 §10.2.3). Both forms are rounded up to a whole second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetryAfter {
    /// Delay in seconds.
    #[default]
    Seconds,
    /// HTTP-date.
    HttpDate,
    /// No such header.
    Absent,
}

/// How the server is away. `/_admin/` stays, but for `Refused`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outage {
    /// Every request is answered 503.
    Unavailable,
    /// Every request's connection is closed without an answer.
    Closed,
    /// Nothing listens on the port, and the connections that were open are gone.
    Refused,
}

/// One request, from the moment its body was read. `/protected` and `/_admin/` are not among them.
#[derive(Clone, Debug)]
pub struct Request {
    /// The request's number, from 1, in the order of arrival.
    pub sequence: u64,
    /// The connection it came on, numbered from 1.
    pub connection: u64,
    /// When it had arrived.
    pub received_at: SystemTime,
    /// Its method.
    pub method: String,
    /// Its path, without the query.
    pub path: String,
    /// Its headers; `Authorization` is marked sensitive.
    pub headers: HeaderMap,
    /// The body's `client_id`, where there is one.
    pub client: Option<String>,
    /// The number of the grant that was made for it.
    pub grant: Option<u64>,
    /// The status it was given; `None` while it is held or delayed, and for ever if it got no HTTP answer.
    pub status: Option<u16>,
    /// When the answer's head was given.
    pub answered_at: Option<SystemTime>,
}

/// How often `/protected` was asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ProtectedCounts {
    /// Requests with a live token, answered 200.
    pub accepted: u64,
    /// Requests without one, answered 401.
    pub refused: u64,
}

/// What was waited for did not come about in time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("waited {timeout:?} for {wanted}")]
pub struct TimedOut {
    /// What was waited for.
    pub wanted: String,
    /// How long.
    pub timeout: Duration,
}

pub(crate) struct Settings {
    pub expires_in: Duration,
    pub any_client: bool,
    /// `None` allows every scope that is not empty.
    pub scopes: Option<BTreeSet<String>>,
    pub mode: Mode,
    pub rate_limit: Option<RateLimit>,
    pub token_prefix: String,
    pub admin: bool,
}

impl Default for Settings {
    /// Money-Go's documented example: 30 days, the scope `api`.
    fn default() -> Self {
        Self {
            expires_in: Duration::from_hours(30 * 24),
            any_client: false,
            scopes: Some(BTreeSet::from(["api".to_owned()])),
            mode: Mode::default(),
            rate_limit: None,
            token_prefix: "mgt_".to_owned(),
            admin: false,
        }
    }
}

#[derive(Default)]
pub(crate) struct State {
    pub settings: Settings,
    pub secrets: HashMap<String, String>,
    pub lifetimes: HashMap<String, Duration>,
    pub ledger: Ledger,
    pub scripts: Scripts,
    pub requests: Vec<Request>,
    pub protected: ProtectedCounts,
    recent: HashMap<String, VecDeque<SystemTime>>,
}

impl State {
    pub fn knows(&self, client: &str, secret: &str) -> bool {
        self.secrets.get(client).map_or(self.settings.any_client, |known| known == secret)
    }

    pub fn allows_scope(&self, scope: &str) -> bool {
        let Some(allowed) = &self.settings.scopes else {
            return !scope.trim().is_empty();
        };
        !scope.is_empty() && scope.split(' ').all(|one| allowed.contains(one))
    }

    pub fn lifetime_of(&self, client: &str) -> Duration {
        let lifetime = self.lifetimes.get(client).copied().unwrap_or(self.settings.expires_in);
        lifetime.min(MAX_LIFETIME)
    }

    /// Counts a request, or says how long its client has to wait.
    pub fn rate_limited(&mut self, client: &str, now: SystemTime) -> Option<(Duration, RetryAfter)> {
        let limit = self.settings.rate_limit?;
        let window = limit.window.min(MAX_WINDOW);
        let recent = self.recent.entry(client.to_owned()).or_default();
        recent.retain(|&at| at + window > now);
        if recent.len() < limit.requests {
            recent.push_back(now);
            return None;
        }
        let free_at = recent.front().map_or(now, |&oldest| oldest) + window;
        Some((free_at.duration_since(now).unwrap_or_default(), limit.retry_after))
    }

    pub fn requests_of<'a>(&'a self, client: &'a str) -> impl Iterator<Item = &'a Request> {
        self.requests.iter().filter(move |request| request.client.as_deref() == Some(client))
    }
}

pub(crate) struct Shared {
    state: Mutex<State>,
    changed: watch::Sender<()>,
    pub outage: watch::Sender<Option<Outage>>,
    pub listening: watch::Sender<bool>,
    pub gates: Gates,
    pub connections: AtomicU64,
}

impl Shared {
    pub fn new(state: State) -> Self {
        Self {
            state: Mutex::new(state),
            changed: watch::Sender::default(),
            outage: watch::Sender::default(),
            listening: watch::Sender::new(true),
            gates: Gates::default(),
            connections: AtomicU64::new(0),
        }
    }

    pub fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.lock())
    }

    /// Changes the state and wakes whoever waits for a change.
    pub fn write<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.send_replace(());
        result
    }

    /// Waits until `look` finds what it looks for.
    pub async fn wait<T>(
        &self,
        wanted: String,
        timeout: Duration,
        mut look: impl FnMut(&State) -> Option<T>,
    ) -> Result<T, TimedOut> {
        let mut changes = self.changed.subscribe();
        let search = async {
            loop {
                if let Some(found) = self.read(&mut look) {
                    return found;
                }
                // The sender is ours, so it cannot be gone.
                let _ = changes.changed().await;
            }
        };
        in_time(wanted, timeout, search).await
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Two places at which requests are held until they are released.
#[derive(Default)]
pub(crate) struct Gates {
    pub requests: Gate,
    pub answers: Gate,
    waiting: watch::Sender<usize>,
}

impl Gates {
    pub fn release(&self) {
        self.requests.open();
        self.answers.open();
    }

    pub fn waiting(&self) -> usize {
        *self.waiting.borrow()
    }

    pub async fn wait_for_waiting(&self, count: usize, timeout: Duration) -> Result<(), TimedOut> {
        let mut waiting = self.waiting.subscribe();
        let arrival = async { drop(waiting.wait_for(|&now| now >= count).await) };
        in_time(format!("{count} held requests"), timeout, arrival).await
    }

    pub async fn pass(&self, gate: &Gate) {
        let mut state = gate.state.subscribe();
        let GateState { shut: true, turn } = *state.borrow_and_update() else {
            return;
        };
        self.waiting.send_modify(|count| *count += 1);
        let _leaves = Waiting(&self.waiting);
        // By turn, not only by `shut`: a gate shut again at once must not keep those whom it has released.
        let _ = state.wait_for(|now| !now.shut || now.turn != turn).await;
    }
}

#[derive(Default)]
pub(crate) struct Gate {
    state: watch::Sender<GateState>,
}

#[derive(Default)]
struct GateState {
    shut: bool,
    turn: u64,
}

impl Gate {
    pub fn shut(&self) {
        self.state.send_modify(|state| state.shut = true);
    }

    fn open(&self) {
        self.state.send_modify(|state| {
            state.shut = false;
            state.turn += 1;
        });
    }
}

struct Waiting<'a>(&'a watch::Sender<usize>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

async fn in_time<T>(wanted: String, timeout: Duration, event: impl Future<Output = T>) -> Result<T, TimedOut> {
    tokio::time::timeout(timeout, event).await.map_err(|_| TimedOut { wanted, timeout })
}

/// The wall clock, which the judged tokens live by.
#[expect(clippy::disallowed_methods, reason = "this crate's one read of the clock")]
pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}
