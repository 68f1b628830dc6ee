//! The queue of grants ordered by expiry, the limiter they share, and the endpoint's health.
//!
//! An object that needs a token asks for leave ([`Grants::admit`]). It gets a [`Permit`] at once, or waits here without
//! holding a reconcile slot and is called when its turn comes: the token that ends first goes first, and every other turn is the
//! newest newcomer's. While the endpoint itself is down, one permit at a time is given out as a probe.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::num::NonZeroU16;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::schedule::Urgency;
use crate::token::{ClientCredentials, Grant, TokenClient, TokenError};

/// The first wait between two probes of an endpoint that is down.
pub const PROBE_FIRST: Duration = Duration::from_secs(5);
/// The longest wait between two probes, and so the time within which recovery begins.
pub const PROBE_LAST: Duration = Duration::from_secs(30);
/// The shortest wait between two probes, for the sake of a token that is about to end.
const PROBE_SHORTEST: Duration = Duration::from_secs(1);
/// This many clients must fail, with no answer to anyone in between, before it is the endpoint that is down.
const CLIENTS_OF_AN_OUTAGE: usize = 2;
/// A permit that its object has not collected by then goes to the next: the object may be gone.
const COLLECT_WITHIN: Duration = Duration::from_secs(10);
/// Most answers come within this time. At a stop, nobody asks who could wait for no longer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);
/// What the limiter lets through in this time is a short queue, in which nobody says that it waits.
const SHORT_QUEUE: Duration = Duration::from_secs(5);
/// An object that has waited for so long, in whatever queue, is to say so; of thousands, [`MOST_TOLD`] at a time.
pub const LONG_WAIT: Duration = Duration::from_mins(2);
/// How many objects are called at a time to say that they wait: each takes a pass and a write, and those whose turn it is come after them.
pub const MOST_TOLD: usize = 200;

/// Whether an object that waits for leave should say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// No: to say so would take as long as the grant.
    Short,
    /// Once it has waited for a while: the queue is longer than the limiter takes soon, or the endpoint is down.
    Long,
    /// At once: it has waited for [`LONG_WAIT`].
    Overlong,
}

/// What an object says as it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Saying {
    /// Its token lives: it has nothing to say until that ends.
    Nothing,
    /// A token is being asked for.
    IsAskedFor,
    /// The endpoint is down. That stands until there is a token: only then has it recovered.
    EndpointIsDown,
}

/// How much is asked of the endpoint.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From the start of one request to that of the next, at least.
    pub between: Duration,
    /// Requests at the same time.
    pub concurrency: NonZeroU16,
}

/// How much there is to do, and whether it can be done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Objects that wait for leave to make a request.
    pub waiting: usize,
    /// How long the one that came first has waited. No time at all where none waits.
    pub longest_wait: Duration,
    /// Requests under way, those among them of whom it is known only that they may begin.
    pub under_way: u32,
    /// Money-Go's endpoint answered last, whatever it said, or nobody has asked so far.
    pub is_endpoint_up: bool,
}

/// Who wants a token and had no answer asks again before that: a failure that is older tells of someone who wants none any more.
const ASKED_AGAIN_WITHIN: Duration = Duration::from_mins(10);

/// Whose failure a failed request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The client's alone: the endpoint answered, or it answers others.
    Client,
    /// Perhaps the endpoint's: nobody else has tried.
    Endpoint,
    /// The endpoint's: several clients met it. Nobody tries but one probe, and the first answer releases all.
    Outage,
}

/// The queue of grants. `K` names an object.
pub struct Grants<K> {
    client: TokenClient,
    limits: Limits,
    clock: Clock,
    state: Mutex<State<K>>,
    changed: Notify,
}

/// A place in the queue: when the token ends, and who came later.
type Place = (Timestamp, u64);

struct Waiting {
    place: Place,
    since: Instant,
    /// What it has said, or was called to say.
    said: Option<Saying>,
}

impl Waiting {
    fn is_overlong(&self) -> bool {
        self.since.elapsed() >= LONG_WAIT
    }

    fn has_news(&self, is_outage: bool) -> bool {
        match self.said {
            None => true,
            Some(Saying::IsAskedFor) => is_outage,
            Some(Saying::Nothing | Saying::EndpointIsDown) => false,
        }
    }
}

struct State<K> {
    queue: BTreeMap<Place, K>,
    /// Of those in the queue, the ones without any token so far.
    newcomers: BTreeMap<Place, K>,
    waiting: HashMap<K, Waiting>,
    /// How many have come.
    came: u64,
    /// The next turn is the last newcomer's.
    last_first: bool,
    /// Those that failed before an outage that has ended: nothing but their own wait keeps them from trying again, and that is over.
    released: Vec<K>,
    /// Permits for objects that were called and have not come yet.
    called: HashMap<K, Instant>,
    in_use: u32,
    next_start: Instant,
    health: Health<K>,
    /// Until when who asks now may be answered.
    closes_at: Option<Instant>,
}

struct Health<K> {
    /// Who failed, without an answer since.
    failing: HashMap<K, Failing>,
    last_answer: Option<Instant>,
    outage: Option<Outage>,
    recovered_at: Option<Timestamp>,
}

#[derive(Clone, Copy)]
struct Failing {
    since: Instant,
    last: Instant,
    /// It has failed while others were answered.
    alone: bool,
}

#[derive(Clone, Copy)]
struct Outage {
    /// When the last request failed, by both clocks.
    failed_at: Instant,
    failed_at_wall: Timestamp,
    wait: Duration,
}

impl Outage {
    fn new(wait: Duration, now: Timestamp) -> Self {
        Self { failed_at: Instant::now(), failed_at_wall: now, wait }
    }

    /// The wait doubles, but while someone's token lives it is at most a quarter of what that token has left, and at least
    /// a second: an outage that ends before a token does must not let it expire.
    fn next_probe(&self, ends_next: Option<Timestamp>) -> Instant {
        let share = |at: Timestamp| Duration::try_from(at.duration_since(self.failed_at_wall) / 4).unwrap_or_default();
        let wait = ends_next.map_or(self.wait, |at| self.wait.min(share(at).max(PROBE_SHORTEST)));
        self.failed_at + wait
    }
}

/// Leave to make one request. Dropping it gives the place to the next.
pub struct Permit<K: Clone + Ord + Hash> {
    grants: Arc<Grants<K>>,
    key: K,
}

impl<K: Clone + Ord + Hash> Grants<K> {
    /// An empty queue before `client`.
    #[must_use]
    pub fn new(client: TokenClient, limits: Limits, clock: Clock) -> Arc<Self> {
        let health = Health { failing: HashMap::new(), last_answer: None, outage: None, recovered_at: None };
        let state = State {
            queue: BTreeMap::new(),
            newcomers: BTreeMap::new(),
            waiting: HashMap::new(),
            came: 0,
            last_first: false,
            released: Vec::new(),
            called: HashMap::new(),
            in_use: 0,
            next_start: Instant::now(),
            health,
            closes_at: None,
        };
        Arc::new(Self { client, limits, clock, state: Mutex::new(state), changed: Notify::new() })
    }

    /// How many requests may be under way at the same time.
    #[must_use]
    pub fn concurrency(&self) -> NonZeroU16 {
        self.limits.concurrency
    }

    fn state(&self) -> MutexGuard<'_, State<K>> {
        // Nothing that holds the lock can leave the state half-changed: a poisoned one is as good as any.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leave to ask for a token for `key`. `None`: it waits, and will be called.
    pub fn admit(self: &Arc<Self>, key: &K, urgency: impl Into<Urgency>) -> Option<Permit<K>> {
        let mut state = self.state();
        if state.closes_at.is_some() {
            return None;
        }
        let called = state.called.remove(key).is_some();
        if called || (state.queue.is_empty() && state.start_if_possible(self.limits)) {
            state.forget(key);
            return Some(Permit { grants: Arc::clone(self), key: key.clone() });
        }
        state.enqueue(key, urgency.into());
        self.changed.notify_one();
        None
    }

    /// A permit after the queue is closed, for an object that already holds a token: two replicas asked at once, and the token that is in its Secret may be
    /// the dead one, which would stay there until its refresh. The limiter is not asked: this is rare, for one of the two has to stop just then.
    pub fn admit_last(self: &Arc<Self>, key: &K) -> Option<Permit<K>> {
        let mut state = self.state();
        let may_start = state.closes_at.is_some() && !state.is_too_late() && state.has_room(self.limits);
        may_start.then(|| {
            state.in_use += 1;
            Permit { grants: Arc::clone(self), key: key.clone() }
        })
    }

    /// Whether an answer to who asks now would no longer be waited for. What is given up on its way may have ended the token that is there.
    #[must_use]
    pub fn is_too_late(&self) -> bool {
        self.state().is_too_late()
    }

    /// Queues an object of which it is known already that it needs a token: it is called when its turn comes. Returns whether it waits
    /// now. It does not where it has no token and that may take long, so that it can say so; nor where it has been called already.
    pub fn enqueue(&self, key: &K, urgency: impl Into<Urgency>) -> bool {
        let mut state = self.state();
        let urgency = urgency.into();
        let has_to_say_so = matches!(urgency, Urgency::New(_)) && !state.is_short(self.limits);
        if state.closes_at.is_some() || state.health.outage.is_some() || state.called.contains_key(key) || has_to_say_so
        {
            return false;
        }
        state.enqueue(key, urgency);
        self.changed.notify_one();
        true
    }

    /// Whether an object waits for its turn, or has been called.
    #[must_use]
    pub fn has(&self, key: &K) -> bool {
        let state = self.state();
        state.waiting.contains_key(key) || state.called.contains_key(key)
    }

    /// Whether it is an object's turn: it was called, and has not come yet.
    #[must_use]
    pub fn has_called(&self, key: &K) -> bool {
        self.state().called.contains_key(key)
    }

    /// Whether an object should say that it waits.
    #[must_use]
    pub fn wait_of(&self, key: &K) -> Wait {
        let state = self.state();
        if state.waiting.get(key).is_some_and(Waiting::is_overlong) {
            Wait::Overlong
        } else if state.health.outage.is_some() || !state.is_short(self.limits) {
            Wait::Long
        } else {
            Wait::Short
        }
    }

    /// An object has said how it waits: it need not be called for that.
    pub fn has_said(&self, key: &K, saying: Saying) {
        if let Some(waiting) = self.state().waiting.get_mut(key) {
            waiting.said = Some(saying);
        }
    }

    /// Who has waited so long by now that it should say so, or has said so before an outage began; each once, and so few that saying it
    /// holds up nobody. Those in the middle of the queue go first: it is served from both ends, and who is about to be served has
    /// little to say.
    #[must_use]
    pub fn overlong(&self) -> Vec<K> {
        let mut state = self.state();
        let is_outage = state.health.outage.is_some();
        let is_due = |waiting: &Waiting| waiting.has_news(is_outage) && waiting.is_overlong();
        let due = state.queue.values().filter(|key| state.waiting.get(*key).is_some_and(is_due));
        let due: Vec<K> = due.cloned().collect();
        let before_the_middle = due.len().saturating_sub(MOST_TOLD) / 2;
        let called = due.into_iter().skip(before_the_middle).take(MOST_TOLD);
        called
            .inspect(|key| {
                if let Some(waiting) = state.waiting.get_mut(key) {
                    waiting.said = Some(if is_outage { Saying::EndpointIsDown } else { Saying::IsAskedFor });
                }
            })
            .collect()
    }

    /// Takes an object out of the queue: it needs no token any more.
    pub fn withdraw(&self, key: &K) {
        let mut state = self.state();
        state.forget(key);
        if state.called.remove(key).is_some() {
            state.in_use = state.in_use.saturating_sub(1);
            self.changed.notify_one();
        }
    }

    /// Forgets an object that is gone.
    pub fn forget(&self, key: &K) {
        self.withdraw(key);
        self.state().health.failing.remove(key);
    }

    /// When the endpoint last came back from an outage: failures before that count no more.
    #[must_use]
    pub fn recovered_at(&self) -> Option<Timestamp> {
        self.state().health.recovered_at
    }

    /// Whether the endpoint is known to be down.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        self.state().health.outage.is_some()
    }

    /// How much there is to do.
    #[must_use]
    pub fn load(&self) -> Load {
        let state = self.state();
        let longest_wait = state.waiting.values().map(|waiting| waiting.since.elapsed()).max();
        Load {
            waiting: state.queue.len(),
            longest_wait: longest_wait.unwrap_or_default(),
            under_way: state.in_use,
            is_endpoint_up: !state.health.is_silent(),
        }
    }

    /// Gives out no more permits but [`Grants::admit_last`]'s, for answers that are waited for until `by`. Those that are out stay valid.
    pub fn close(&self, by: Instant) {
        let mut state = self.state();
        state.closes_at = Some(by);
        let uncollected = u32::try_from(std::mem::take(&mut state.called).len()).unwrap_or(u32::MAX);
        state.in_use = state.in_use.saturating_sub(uncollected);
        state.queue.clear();
        state.newcomers.clear();
        state.waiting.clear();
        self.changed.notify_one();
    }

    /// Calls waiting objects as their turn comes, until the queue is closed. Runs once for each queue.
    pub async fn run(&self, call: impl Fn(&K)) {
        loop {
            let (turns, released, wake_at) = {
                let mut state = self.state();
                if state.closes_at.is_some() {
                    return;
                }
                (state.next_turns(self.limits), std::mem::take(&mut state.released), state.wake_at(self.limits))
            };
            turns.iter().chain(&released).for_each(&call);
            let timer = async {
                match wake_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = timer => {}
                () = self.changed.notified() => {}
            }
        }
    }

    fn answered(&self, key: &K) {
        let mut state = self.state();
        if let Some(failed) = state.health.answered(key, self.clock.now()) {
            tracing::info!(reason = "EndpointBack", "the token endpoint answers again");
            let State { released, waiting, .. } = &mut *state;
            released.extend(failed.into_iter().filter(|key| !waiting.contains_key(key)));
            // Everyone who waits goes on at once, at the limiter's pace.
            self.changed.notify_one();
        }
    }

    fn failed(&self, key: &K) -> Blame {
        self.state().health.failed(key, self.clock.now())
    }
}

impl<K: Clone + Ord + Hash> State<K> {
    fn may_start(&self, limits: Limits, now: Instant) -> bool {
        let probe_is_due = self.next_probe().is_none_or(|at| at <= now);
        self.has_room(limits) && self.next_start <= now && probe_is_due
    }

    fn is_too_late(&self) -> bool {
        self.closes_at.is_some_and(|at| Instant::now() + ANSWERS_WITHIN > at)
    }

    /// Whether one more may ask. In an outage only one does.
    fn has_room(&self, limits: Limits) -> bool {
        let most = if self.health.outage.is_some() { 1 } else { u32::from(limits.concurrency.get()) };
        self.in_use < most
    }

    fn next_probe(&self) -> Option<Instant> {
        let outage = self.health.outage?;
        let has_a_token = |place: &&Place| !self.newcomers.contains_key(*place);
        let mut ends = self.queue.keys().filter(has_a_token).map(|(urgency, _)| *urgency);
        Some(outage.next_probe(ends.find(|urgency| *urgency > outage.failed_at_wall)))
    }

    fn start_if_possible(&mut self, limits: Limits) -> bool {
        let now = Instant::now();
        let starts = self.may_start(limits, now);
        if starts {
            self.in_use += 1;
            self.next_start = self.next_start.max(now) + limits.between;
        }
        starts
    }

    /// Whether the limiter has soon let all of them through.
    fn is_short(&self, limits: Limits) -> bool {
        let waiting = u32::try_from(self.queue.len()).unwrap_or(u32::MAX);
        limits.between.saturating_mul(waiting) < SHORT_QUEUE
    }

    fn enqueue(&mut self, key: &K, urgency: Urgency) {
        let earlier = self.waiting.get(key);
        if earlier.is_some_and(|waiting| waiting.place.0 == urgency.at()) {
            return;
        }
        let (since, said) = earlier.map_or((Instant::now(), None), |waiting| (waiting.since, waiting.said));
        self.forget(key);
        self.came += 1;
        let place = (urgency.at(), self.came);
        if let Urgency::New(_) = urgency {
            self.newcomers.insert(place, key.clone());
        }
        self.queue.insert(place, key.clone());
        self.waiting.insert(key.clone(), Waiting { place, since, said });
    }

    fn forget(&mut self, key: &K) {
        if let Some(waiting) = self.waiting.remove(key) {
            self.queue.remove(&waiting.place);
            self.newcomers.remove(&waiting.place);
        }
    }

    fn next_turns(&mut self, limits: Limits) -> Vec<K> {
        let now = Instant::now();
        let before = self.called.len();
        self.called.retain(|_, since| now < *since + COLLECT_WITHIN);
        let reclaimed = u32::try_from(before - self.called.len()).unwrap_or(u32::MAX);
        self.in_use = self.in_use.saturating_sub(reclaimed);
        let mut turns = Vec::new();
        while !self.queue.is_empty() && self.start_if_possible(limits) {
            let Some(key) = self.next_in_turn() else { break };
            self.forget(&key);
            self.called.insert(key.clone(), now);
            turns.push(key);
        }
        turns
    }

    /// The token that ends first. But whose probe of an outage failed is behind those that did not try: it may be its own
    /// fault, and the endpoint there for everyone else.
    fn next_in_turn(&mut self) -> Option<K> {
        if self.health.outage.is_none() {
            return self.first_or_last();
        }
        let failed = |key: &&K| self.health.failing.get(*key).map(|failing| failing.last);
        self.queue.values().min_by_key(failed).cloned()
    }

    /// Every other turn is for the newcomer that came last: behind thousands that came at once it would wait for all of them.
    fn first_or_last(&mut self) -> Option<K> {
        let first = self.queue.values().next();
        let Some(last) = self.newcomers.values().next_back() else { return first.cloned() };
        let next = if self.last_first { Some(last) } else { first };
        self.last_first = !self.last_first;
        next.cloned()
    }

    /// The next moment at which something changes by itself. It may be past: the clock went on since the queue was looked at.
    fn wake_at(&self, limits: Limits) -> Option<Instant> {
        let uncollected = self.called.values().map(|since| *since + COLLECT_WITHIN).min();
        // A probe that is under way, or all permits being out, ends with a notification.
        let start = (!self.queue.is_empty() && self.has_room(limits)).then(|| {
            let probe_at = self.next_probe().unwrap_or(self.next_start);
            probe_at.max(self.next_start)
        });
        [uncollected, start].into_iter().flatten().min()
    }
}

impl<K: Clone + Ord + Hash> Health<K> {
    /// Who failed before, where an outage has ended with this answer.
    fn answered(&mut self, key: &K, now: Timestamp) -> Option<Vec<K>> {
        self.last_answer = Some(Instant::now());
        self.failing.remove(key);
        self.outage.take()?;
        self.recovered_at = Some(now);
        Some(std::mem::take(&mut self.failing).into_keys().collect())
    }

    fn failed(&mut self, key: &K, now: Timestamp) -> Blame {
        let last = Instant::now();
        let failing = self.failing.entry(key.clone()).or_insert(Failing { since: last, last, alone: false });
        let before = std::mem::replace(&mut failing.last, last);
        if self.last_answer.is_some_and(|at| at > before) {
            failing.alone = true;
            return Blame::Client;
        }
        if self.last_answer.is_some_and(|at| at > failing.since) {
            // Others were answered once, but not since it failed the last time.
            failing.since = before;
        }
        if let Some(outage) = self.outage {
            // A probe that was made sooner, for a token's sake, says nothing about how long to wait otherwise.
            let waited_in_full = outage.failed_at.elapsed() >= outage.wait;
            let wait = if waited_in_full { (outage.wait * 2).min(PROBE_LAST) } else { outage.wait };
            self.outage = Some(Outage::new(wait, now));
            return Blame::Outage;
        }
        // Two that each failed while others were answered may be broken, each by itself: it takes another to tell.
        let is_any_sound = self.failing.values().any(|failing| self.is_unanswered(failing) && !failing.alone);
        if self.unanswered() < CLIENTS_OF_AN_OUTAGE || !is_any_sound {
            return Blame::Endpoint;
        }
        tracing::warn!(
            reason = "EndpointDown",
            "the token endpoint is down for everyone: it is probed until it answers"
        );
        self.outage = Some(Outage::new(PROBE_FIRST, now));
        Blame::Outage
    }

    /// How many fail with no answer to anyone since they began to.
    fn unanswered(&self) -> usize {
        self.failing.values().filter(|failing| self.is_unanswered(failing)).count()
    }

    fn is_unanswered(&self, failing: &Failing) -> bool {
        self.last_answer.is_none_or(|at| failing.since > at)
    }

    /// Whether someone asks, and nobody is answered.
    fn is_silent(&self) -> bool {
        let asks = |failed_at: Instant| failed_at.elapsed() < ASKED_AGAIN_WITHIN;
        self.outage.is_some_and(|outage| asks(outage.failed_at))
            || self.failing.values().any(|failing| self.is_unanswered(failing) && asks(failing.last))
    }
}

impl<K: Clone + Ord + Hash> Permit<K> {
    /// Asks for a token.
    ///
    /// # Errors
    /// As [`TokenClient::request`], with whose failure it is.
    pub async fn request(self, credentials: &ClientCredentials, scope: &str) -> Result<Grant, (TokenError, Blame)> {
        let answer = self.grants.client.request(credentials, scope).await;
        match answer {
            Err(error @ TokenError::Unavailable { .. }) => Err((error, self.grants.failed(&self.key))),
            Err(error) => {
                self.grants.answered(&self.key);
                Err((error, Blame::Client))
            }
            Ok(grant) => {
                self.grants.answered(&self.key);
                Ok(grant)
            }
        }
    }
}

impl<K: Clone + Ord + Hash> Drop for Permit<K> {
    fn drop(&mut self) {
        let mut state = self.grants.state();
        state.in_use = state.in_use.saturating_sub(1);
        drop(state);
        self.grants.changed.notify_one();
    }
}

#[cfg(test)]
mod tests;
