//! The world of one run: what is stored and granted, what is going wrong, and what was promised and not kept.

use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::ByteString;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::happenings::{Account, Expectation, Quiet};
use crate::moneygo::Provider;
use crate::random::{hash, mix};
use crate::schedule::{Away, Blow, Disturbance, Phase, RetryAfter, Setting, Time, Trigger, What};
use crate::store::{Kind, Store};
use crate::time::{Millis, NODES, SECOND};

/// The namespace of the objects.
pub const NAMESPACE: &str = "apps";
/// The operator's namespace.
pub const OWN_NAMESPACE: &str = "operator";
/// The longest answer that is waited for, as the operator's client is set up.
pub const SILENCE_LIMIT: Millis = 150 * SECOND;

/// What a disturbance may keep from working.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hinders {
    /// Reading, writing and seeing the cluster.
    Cluster,
    /// Getting tokens alone.
    Grants,
}

/// A time in which something cannot be expected.
#[derive(Debug, Clone, Copy)]
pub struct Interference {
    from: Millis,
    until: Millis,
    object: Option<usize>,
    hinders: Hinders,
}

/// A promise that was not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub promise: &'static str,
    /// When.
    pub at: Millis,
    /// What was seen.
    pub detail: String,
}

/// What a run counts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Requests to the API server.
    pub requests: u64,
    /// Requests to Money-Go.
    pub posts: u64,
    /// Tokens granted.
    pub grants: u64,
    /// Crashes, and other ends of a process.
    pub crashes: u64,
    /// Processes and machines frozen.
    pub freezes: u64,
    /// Disturbances.
    pub disturbances: u64,
    /// Simulated time.
    pub simulated: Millis,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, one: Self) {
        self.requests += one.requests;
        self.posts += one.posts;
        self.grants += one.grants;
        self.crashes += one.crashes;
        self.freezes += one.freezes;
        self.disturbances += one.disturbances;
        self.simulated += one.simulated;
    }
}

/// A replica as the world sees it.
#[derive(Debug, Default)]
pub struct NodeState {
    /// What struck it, and is not dealt with yet.
    pub blow: Option<(Blow, Millis)>,
    /// Wakes whoever runs it.
    pub struck: Arc<Notify>,
    /// Which Secrets it has read since the last token request of their object.
    reads: BTreeMap<String, u64>,
    /// A process runs on it.
    pub is_up: bool,
    /// When it asked for tokens.
    pub posts: Vec<(Millis, String)>,
}

/// The world, shared by the replicas' connections and whoever runs them: all in one thread.
pub type Shared = Arc<Mutex<World>>;

/// Locks the world. No lock is held over an await.
pub fn lock(world: &Shared) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The world.
pub struct World {
    /// What it is made of.
    pub setting: Setting,
    /// What happens in it.
    pub disturbances: Vec<Disturbance>,
    /// Which of them are happening.
    pub active: Vec<bool>,
    /// Strikes that wait for their request: how many are left.
    armed: Vec<Option<u64>>,
    /// The API server's.
    pub store: Store,
    /// Money-Go.
    pub provider: Provider,
    /// The replicas.
    pub nodes: [NodeState; NODES],
    /// Wakes every watch, in the order in which they wait.
    pub pulse: Arc<Notify>,
    /// How often the watches of a kind were cut, and whether with 410 the last time.
    pub cuts: BTreeMap<Kind, (u64, bool)>,
    /// Grants whose answers are still to be lost.
    pub to_lose: u64,
    /// When nothing can be expected.
    pub interferences: Vec<Interference>,
    /// The first violation.
    pub violation: Option<Violation>,
    /// What happened, where that is wanted.
    pub trace: Option<Vec<String>>,
    /// Counts.
    pub counts: Counts,
    /// Writes and reads of Secrets and statuses, for the quiet time.
    pub touches: u64,
    /// Versions of the client secrets.
    pub secret_versions: Vec<u64>,
    /// What is counted for each object.
    pub accounts: Vec<Account>,
    /// Token requests that must come.
    pub expectations: Vec<Expectation>,
    /// As the quiet time began.
    pub quiet: Quiet,
    /// When garbage collection looks next.
    pub garbage_from: Option<Millis>,
    numbers: BTreeMap<u64, u64>,
}

/// How a request fares.
#[derive(Debug, Clone, Copy)]
pub struct Fate {
    /// Until it is carried out.
    pub before: Millis,
    /// From then until the answer.
    pub after: Millis,
    /// How it fails, if it does.
    pub away: Option<Away>,
    /// The node is struck by it.
    pub strike: Option<(Phase, Blow, Millis)>,
}

impl World {
    /// A world at its start, with its objects, and no replica running.
    #[must_use]
    pub fn new(setting: Setting, disturbances: Vec<Disturbance>, traced: bool) -> Self {
        let mut world = Self {
            active: vec![false; disturbances.len()],
            armed: vec![None; disturbances.len()],
            store: Store::default(),
            provider: Provider::new(setting.mode, setting.lifetime),
            nodes: <[NodeState; NODES]>::default(),
            pulse: Arc::new(Notify::new()),
            cuts: BTreeMap::new(),
            to_lose: 0,
            interferences: Vec::new(),
            violation: None,
            trace: traced.then(Vec::new),
            counts: Counts { disturbances: disturbances.len() as u64, ..Counts::default() },
            touches: 0,
            secret_versions: vec![1; setting.objects.len()],
            accounts: vec![Account::default(); setting.objects.len()],
            expectations: Vec::new(),
            quiet: Quiet::default(),
            garbage_from: None,
            numbers: BTreeMap::new(),
            setting,
            disturbances,
        };
        world.populate();
        world
    }

    fn populate(&mut self) {
        for name in [NAMESPACE, OWN_NAMESPACE] {
            let _ =
                self.store.create((Kind::Namespace, name.to_owned()), json!({"metadata": {"name": name}}), "init", 0);
        }
        if self.setting.digest_key {
            let name = moneygo_operator::apply::DIGEST_KEY_SECRET;
            let key =
                json!({"metadata": {"name": name, "namespace": OWN_NAMESPACE}, "data": {"key": base64(&[7; 32])}});
            let _ = self.store.create((Kind::Secret, name.to_owned()), key, "init", 0);
        }
        for object in 0..self.setting.objects.len() {
            self.put_credentials(object, 0);
            if self.setting.objects.get(object).is_some_and(|setting| setting.foreign) {
                self.put_foreign(object, 0);
            }
            self.create_object(object, 0);
        }
    }

    /// Makes an object's `MoneyGoCredential`.
    pub fn create_object(&mut self, object: usize, now: Millis) {
        let spec = self.spec(object);
        let body = json!({"metadata": {"name": object_name(object), "namespace": NAMESPACE}, "spec": spec});
        let _ = self.store.create((Kind::Credential, object_name(object)), body, "someone", now);
    }

    fn spec(&self, object: usize) -> Value {
        let mut spec =
            json!({"credentialsRef": {"name": credentials_name(object)}, "target": {"name": target_name(object)}});
        let Some(setting) = self.setting.objects.get(object) else { return spec };
        match setting.renew {
            crate::schedule::Renew::Unset => {}
            crate::schedule::Renew::Percent(percent) => spec["refresh"] = json!({"renewBeforePercentage": percent}),
            crate::schedule::Renew::Before(secs) => {
                spec["refresh"] = json!({"renewBefore": format!("{}m{}s", secs / 60, secs % 60)});
            }
        }
        if setting.retain {
            spec["target"]["deletionPolicy"] = "Retain".into();
        }
        if setting.more_keys {
            spec["target"]["authorizationKey"] = "authorization".into();
            spec["target"]["expiresAtKey"] = "expires_at".into();
        }
        spec
    }

    /// The client secret that is right for an object from now on.
    pub fn rotate(&mut self, object: usize) {
        if let Some(version) = self.secret_versions.get_mut(object) {
            *version += 1;
        }
        let secret = self.client_secret(object);
        self.provider.clients.entry(client_id(object)).or_default().secrets.push(secret);
    }

    fn client_secret(&self, object: usize) -> String {
        format!("secret-canary-{object}-{}", self.secret_versions.get(object).copied().unwrap_or_default())
    }

    /// Writes the right credentials into the object's credentials Secret, and makes it where it is not there.
    pub fn put_credentials(&mut self, object: usize, now: Millis) {
        let secret = self.client_secret(object);
        let client = self.provider.clients.entry(client_id(object)).or_default();
        if !client.secrets.contains(&secret) {
            client.secrets.push(secret.clone());
        }
        self.put_secret_of_client(object, &secret, now);
    }

    /// Writes a client secret that may be wrong.
    pub fn put_secret_of_client(&mut self, object: usize, secret: &str, now: Millis) {
        let name = credentials_name(object);
        let data =
            json!({"client_id": base64(client_id(object).as_bytes()), "client_secret": base64(secret.as_bytes())});
        if self.store.get(Kind::Secret, &name).is_some() {
            self.store.edit(Kind::Secret, &name, now, |found| found["data"] = data);
            return;
        }
        let body = json!({"metadata": {"name": name, "namespace": NAMESPACE}, "data": data});
        let _ = self.store.create((Kind::Secret, name), body, "someone", now);
    }

    /// Puts somebody else's Secret where the target would be.
    pub fn put_foreign(&mut self, object: usize, now: Millis) {
        let name = target_name(object);
        let body = json!({"metadata": {"name": name, "namespace": NAMESPACE}, "data": {"theirs": base64(b"x")}});
        let _ = self.store.create((Kind::Secret, name), body, "someone", now);
    }

    /// Adds a line to the trace.
    pub fn note(&mut self, at: Millis, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>14} {}", Time(at).to_string(), line()));
        }
    }

    /// Records a violation. Only the first counts.
    pub fn violate(&mut self, promise: &'static str, at: Millis, detail: String) {
        self.note(at, || format!("VIOLATION of {promise}: {detail}"));
        if self.violation.is_none() {
            self.violation = Some(Violation { promise, at, detail });
        }
    }

    /// A number for the n-th of these, drawn from the seed alone.
    pub fn draw(&mut self, what: &str) -> u64 {
        let what = hash(what);
        let count = self.numbers.entry(what).or_default();
        *count += 1;
        mix(&[self.setting.seed, what, *count])
    }

    /// Nothing can be expected from `from` to `until`.
    pub fn excuse(&mut self, from: Millis, until: Millis, object: Option<usize>, hinders: Hinders) {
        self.interferences.push(Interference { from, until, object, hinders });
    }

    /// Since when everything (or, with `cluster_alone`, everything but grants) could be expected of an object at `at`;
    /// none where something is in the way.
    #[must_use]
    pub fn clean_since(&self, object: usize, at: Millis, cluster_alone: bool) -> Option<Millis> {
        let mut since = 0;
        for one in &self.interferences {
            let concerns = one.object.is_none_or(|of| of == object)
                && (!cluster_alone || one.hinders == Hinders::Cluster)
                && one.from <= at;
            if concerns && one.until > at {
                return None;
            }
            if concerns {
                since = since.max(one.until);
            }
        }
        Some(since)
    }

    /// The end of all that is in the way.
    #[must_use]
    pub fn clean_from(&self) -> Millis {
        self.interferences.iter().map(|one| one.until).max().unwrap_or(0)
    }

    /// Longest time until another replica has taken over, or the next process on the same node.
    #[must_use]
    pub fn failover(&self) -> Millis {
        self.setting.lease_secs * SECOND * 17 / 10 + 3 * SECOND
    }

    /// What is going on.
    pub fn current(&self) -> impl Iterator<Item = What> + '_ {
        self.disturbances.iter().zip(&self.active).filter(|(_, active)| **active).map(|(one, _)| one.what)
    }

    /// Whether the node's processes do not run.
    #[must_use]
    pub fn is_stopped(&self, node: usize) -> bool {
        let blow = self.nodes.get(node).and_then(|node| node.blow);
        blow.is_some_and(|(blow, _)| blow != Blow::Stop)
    }

    /// A strike begins to wait for its request, or strikes.
    pub fn arm(&mut self, index: usize, now: Millis) {
        let Some(Disturbance { what: What::Strike(node, blow, trigger), lasts, .. }) =
            self.disturbances.get(index).copied()
        else {
            return;
        };
        match trigger {
            Trigger::Now => self.strike(node, blow, lasts, now),
            Trigger::Request(count, _) | Trigger::Grant(count, _) | Trigger::Write(count, _) => {
                if let Some(armed) = self.armed.get_mut(index) {
                    *armed = Some(count);
                }
            }
        }
    }

    /// No strike waits any more.
    pub fn disarm(&mut self) {
        self.armed.fill(None);
    }

    /// Strikes a node, unless it is struck already.
    pub fn strike(&mut self, node: usize, blow: Blow, lasts: Millis, now: Millis) {
        let failover = self.failover();
        let Some(state) = self.nodes.get_mut(node).filter(|state| state.is_up && state.blow.is_none()) else { return };
        state.blow = Some((blow, lasts));
        state.struck.notify_one();
        match blow {
            Blow::Crash | Blow::Stop => self.counts.crashes += 1,
            Blow::Freeze | Blow::Suspend => self.counts.freezes += 1,
        }
        self.allow_for_blow(blow);
        self.note(now, || format!("node {node}: {blow:?} for {}", Time(lasts)));
        // A machine that wakes up looks at its clocks within ten seconds; watches that were silent end by themselves.
        let linger = 15 * SECOND + failover + if blow == Blow::Suspend { 25 * SECOND } else { 0 };
        let watches = if matches!(blow, Blow::Freeze | Blow::Suspend) { 45 * SECOND } else { 0 };
        self.excuse(now, now + lasts + linger.max(watches), None, Hinders::Cluster);
    }

    /// What strikes the node at this request of its.
    fn strike_of(&mut self, node: usize, is_grant: bool, is_write: bool) -> Option<(Phase, Blow, Millis)> {
        let mut struck = None;
        for (one, armed) in self.disturbances.iter().zip(&mut self.armed) {
            let (What::Strike(at, blow, trigger), Some(left)) = (one.what, armed.as_mut()) else { continue };
            let phase = match trigger {
                Trigger::Request(_, phase) => phase,
                Trigger::Grant(_, phase) if is_grant => phase,
                Trigger::Write(_, phase) if is_write => phase,
                _ => continue,
            };
            if at != node {
                continue;
            }
            *left = left.saturating_sub(1);
            if *left == 0 {
                *armed = None;
                struck = Some((phase, blow, one.lasts));
            }
        }
        struck
    }

    /// How a request to the API server fares.
    pub fn fate_of_call(&mut self, node: usize, call: &str, is_secret_write: bool) -> Fate {
        let number = self.draw(&format!("{node} {call}"));
        let delay = self.setting.api_delay;
        let mut fate = Fate {
            before: 1 + mix(&[number, 1]) % delay,
            after: 1 + mix(&[number, 2]) % delay,
            away: None,
            strike: self.strike_of(node, false, is_secret_write),
        };
        let current: Vec<What> = self.current().collect();
        for what in current {
            match what {
                What::ApiAway(which, how) if which.is_none_or(|which| which == node) => fate.away = Some(how),
                What::ApiFlaky(percent, how) if mix(&[number, 3]) % 100 < percent => {
                    fate.away = fate.away.or(Some(how));
                }
                What::ApiSlow(longest) => {
                    fate.before += mix(&[number, 4]) % longest;
                    fate.after += mix(&[number, 5]) % longest;
                }
                _ => {}
            }
        }
        fate
    }

    /// How a request to Money-Go fares.
    pub fn fate_of_grant(&mut self, node: usize) -> (Fate, Option<Odd>) {
        let number = self.draw(&format!("{node} POST /token"));
        let delay = self.setting.token_delay;
        let mut fate = Fate {
            before: 1 + mix(&[number, 1]) % delay,
            after: 1 + mix(&[number, 2]) % delay,
            away: None,
            strike: self.strike_of(node, true, false),
        };
        let mut odd = None;
        let current: Vec<What> = self.current().collect();
        for what in current {
            match what {
                What::EndpointAway(how) => fate.away = Some(how),
                What::EndpointSlow(longest) => fate.before += mix(&[number, 4]) % longest,
                What::RateLimited(after) => odd = Some(Odd::RateLimited(after)),
                What::BadAnswers => odd = odd.or(Some(Odd::Bad)),
                _ => {}
            }
        }
        (fate, odd)
    }

    /// Notes that a node has read a Secret.
    pub fn has_read(&mut self, node: usize, name: &str) {
        let count = self.counts.requests;
        if let Some(state) = self.nodes.get_mut(node) {
            state.reads.insert(name.to_owned(), count);
        }
    }

    /// Notes a token request; both Secrets must have been read for it.
    pub fn has_asked(&mut self, node: usize, client: &str, now: Millis) {
        self.counts.posts += 1;
        let Some(object) = client.strip_prefix("client-").and_then(|number| number.parse::<usize>().ok()) else {
            return;
        };
        let Some(state) = self.nodes.get_mut(node) else { return };
        state.posts.push((now, client.to_owned()));
        let both = [state.reads.remove(&credentials_name(object)), state.reads.remove(&target_name(object))];
        if both.contains(&None) {
            self.violate(
                "both Secrets are read for each grant",
                now,
                format!("node {node} asked for a token of {client}"),
            );
        }
    }

    /// A process that starts has read nothing.
    pub fn forget_reads(&mut self, node: usize) {
        if let Some(state) = self.nodes.get_mut(node) {
            state.reads.clear();
        }
    }
}

/// An answer of Money-Go that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Odd {
    /// 429.
    RateLimited(RetryAfter),
    /// 200 with a page.
    Bad,
}

/// The object's name.
#[must_use]
pub fn object_name(object: usize) -> String {
    format!("c{object}")
}

/// Its target's.
#[must_use]
pub fn target_name(object: usize) -> String {
    format!("c{object}-token")
}

/// Its credentials'.
#[must_use]
pub fn credentials_name(object: usize) -> String {
    format!("c{object}-client")
}

/// Its client's id.
#[must_use]
pub fn client_id(object: usize) -> String {
    format!("client-{object}")
}

/// The object that a name is of.
#[must_use]
pub fn object_of(name: &str) -> Option<usize> {
    name.strip_prefix('c')?.split('-').next()?.parse().ok()
}

/// A value as a Secret holds it.
#[must_use]
pub fn base64(bytes: &[u8]) -> Value {
    serde_json::to_value(ByteString(bytes.to_vec())).unwrap_or_default()
}

/// A value out of a Secret.
#[must_use]
pub fn text_of(value: &Value) -> Option<String> {
    let bytes: ByteString = serde_json::from_value(value.clone()).ok()?;
    String::from_utf8(bytes.0).ok()
}

impl World {
    /// How the API server is away for a node's connections.
    #[must_use]
    pub fn away(&self, node: usize) -> Option<Away> {
        self.current().find_map(|what| match what {
            What::ApiAway(which, how) if which.is_none_or(|which| which == node) => Some(how),
            _ => None,
        })
    }

    /// The longest delay of an event; none where events do not come at all.
    #[must_use]
    pub fn watch_delay(&self, kind: Kind) -> Option<Millis> {
        let mut delay = self.setting.api_delay;
        for what in self.current() {
            match what {
                What::WatchBehind(of, _) if of == kind => return None,
                What::WatchSlow(of, longest) if of == kind => delay = delay.max(longest),
                _ => {}
            }
        }
        Some(delay)
    }
}
