//! The one place where the others meet: observe → plan → mint → apply → report.
//!
//! [`run`] watches one scope (the cluster, or a namespace) or several and reconciles every object of it. A reconcile is one
//! straight line: what the watches show is planned on; where they do not decide it, both Secrets are read and it is
//! planned again; the plan is carried out; how things stand is written into the status, where that changed.

use std::future::Future;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::core::PartialObjectMeta;
use kube::core::error_boundary::InvalidObject;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::controller::{Action, Config as ControllerConfig, Controller};
use kube::runtime::reflector;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource as _, ResourceExt as _};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::apply;
use crate::caches::{Caches, Guarded, ObjectKey};
use crate::crd::{ConditionType, MoneyGoCredential, MoneyGoCredentialStatus, Reason, Resolved, annotation};
use crate::digest::{DigestKey, Match};
use crate::error::Error;
use crate::events::{Notice, Notices};
use crate::grants::{Blame, Grants, Permit};
use crate::lease::Leadership;
use crate::memory::{Attempt, HeldToken, Memories, Memory, Verified};
use crate::plan::{self, Cause, Credentials, Held, Observed, Plan, Target};
use crate::schedule::{self, Backoff, Life};
use crate::secret::{self, Claim, Content, Facts, Found, Issue, Owner, Ownership, Version};
use crate::status::{self, Failure, State};
use crate::telemetry::{Metrics, Probes};
use crate::token::{AccessToken, ClientCredentials, TokenError};

/// Reconciles at the same time, beyond the grants that may be under way: mending never waits for a grant.
const CONCURRENCY_BESIDE_GRANTS: u16 = 32;
/// An object that waits for leave to ask for a token says so after this long. Most never wait.
const WAITS_BEFORE_REPORT: SignedDuration = SignedDuration::from_secs(2);
/// The longest sleep of one object. Nothing is done on waking up early.
const LONGEST_SLEEP: Duration = Duration::from_secs(12 * 60 * 60);
/// After a stop is asked for: for what is under way, and for writing tokens that are held.
const STOP_LIMIT: Duration = Duration::from_millis(2200);
/// How often the clocks are compared, and the heart beats.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// By how much the clocks may drift apart between two heartbeats before it is a jump.
const JUMP: SignedDuration = SignedDuration::from_secs(2);
/// How long an owner that the API server refuses to change is left as it is.
const OWNER_REFUSED_FOR: SignedDuration = SignedDuration::from_hours(1);
/// How often the key of the digests is asked for while it cannot be had.
const DIGEST_KEY_RETRY: Duration = Duration::from_secs(60);

/// The wall clock. The only place that reads it: everything else is given the time.
#[expect(clippy::disallowed_methods, reason = "this is that place")]
#[must_use]
pub fn wall_clock() -> Timestamp {
    Timestamp::now()
}

/// What the controller works with.
pub struct Settings {
    /// For the API server. Its retries are off.
    pub client: Client,
    /// Namespaces to watch; every one where empty.
    pub namespaces: Vec<String>,
    /// Objects to watch; every one where unset.
    pub label_selector: Option<String>,
    /// Where the key of the digests lives. Without one, digests are unknown.
    pub own_namespace: Option<String>,
    /// The queue before the token endpoint.
    pub grants: Arc<Grants<ObjectKey>>,
    /// How many grants may be under way.
    pub token_concurrency: u16,
    /// Whether this replica leads.
    pub leadership: Leadership,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Where readiness and liveness are shown.
    pub probes: Arc<Probes>,
    /// Where people are told.
    pub notices: Notices,
}

struct Shared {
    settings: Settings,
    memories: Memories,
    digest_key: RwLock<Option<DigestKey>>,
}

/// What a reconcile is given beside the object.
pub struct Context {
    shared: Arc<Shared>,
    caches: Arc<Caches>,
    /// Namespaces are not watched, since the rights are those of Roles: they are asked after before a grant.
    asks_after_namespaces: bool,
    calls: mpsc::UnboundedSender<ObjectKey>,
}

/// Watches and reconciles until `shutdown` is cancelled, then writes every token that is held, and returns within
/// about two seconds.
///
/// # Errors
/// None that ends it: what fails is retried.
pub async fn run(settings: Settings, shutdown: CancellationToken) {
    let scopes: Vec<Option<String>> = match settings.namespaces.as_slice() {
        [] => vec![None],
        named => named.iter().cloned().map(Some).collect(),
    };
    let shared = Arc::new(Shared { settings, memories: Memories::default(), digest_key: RwLock::new(None) });
    let background = CancellationToken::new();
    let tracker = TaskTracker::new();
    let spawn = |task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
        let background = background.clone();
        tracker.spawn(async move { background.run_until_cancelled(task).await });
    };
    // Before the first reconcile, so that a restart finds every digest known.
    shared.fetch_digest_key().await;
    spawn(Box::pin(Arc::clone(&shared).keep_fetching_digest_key()));

    let mut scoped = Vec::new();
    let mut controllers = Vec::new();
    let mut synced = Vec::new();
    for scope in &scopes {
        let (store, writer) = reflector::store();
        let (calls, called) = mpsc::unbounded_channel();
        let context = Arc::new(Context {
            shared: Arc::clone(&shared),
            caches: Arc::new(Caches::new(store)),
            asks_after_namespaces: scope.is_some(),
            calls,
        });
        let (secrets_listed, listed) = tokio::sync::oneshot::channel();
        spawn(Box::pin(Arc::clone(&context).watch_secrets(scope.clone(), secrets_listed)));
        spawn(Box::pin(Arc::clone(&context).watch_objects(scope.clone(), writer)));
        if scope.is_none() {
            spawn(Box::pin(Arc::clone(&context).watch_namespaces()));
        }
        synced.push(listed);
        controllers.push((Arc::clone(&context), called));
        scoped.push((scope.clone(), context));
    }
    let contexts: Vec<Arc<Context>> = scoped.iter().map(|(_, context)| Arc::clone(context)).collect();
    spawn(Box::pin(beat(Arc::clone(&shared), contexts.clone())));
    spawn(Box::pin(follow_leadership(Arc::clone(&shared), contexts.clone())));
    spawn(Box::pin(call_from_queue(Arc::clone(&shared), scoped)));

    let running = async {
        for listed in synced {
            let _ = listed.await;
        }
        for context in &contexts {
            let _ = context.caches.store().wait_until_ready().await;
        }
        tracing::info!("the watches are in step");
        shared.settings.probes.set_ready(true);
        let streams = controllers.into_iter().map(|(context, called)| reconcile_all(context, called, shutdown.clone()));
        futures::future::join_all(streams).await;
    };
    stop_after(running, &shared, &contexts, &shutdown).await;
    background.cancel();
    tracker.close();
    let _ = tokio::time::timeout(Duration::from_millis(200), tracker.wait()).await;
}

/// Runs until shutdown, then gives what is under way the time that a stop may take.
async fn stop_after(
    running: impl Future<Output = ()>,
    shared: &Arc<Shared>,
    contexts: &[Arc<Context>],
    shutdown: &CancellationToken,
) {
    tokio::pin!(running);
    tokio::select! {
        () = &mut running => {}
        () = shutdown.cancelled() => {}
    }
    shared.settings.grants.close();
    let deadline = tokio::time::Instant::now() + STOP_LIMIT;
    let in_time = tokio::time::timeout_at(deadline, running).await.is_ok();
    if !in_time {
        tracing::warn!("requests were still under way at the stop");
    }
    let written = tokio::time::timeout_at(deadline, write_held(shared, contexts)).await;
    if written.is_err() || !shared.memories.holding().is_empty() {
        tracing::warn!("tokens that were issued could not be written in time");
    }
}

/// Writes what is held, again and again, as long as there is something and the caller waits.
async fn write_held(shared: &Arc<Shared>, contexts: &[Arc<Context>]) {
    loop {
        let holding = shared.memories.holding();
        if holding.is_empty() {
            return;
        }
        for key in holding {
            for context in contexts {
                if let Some(object) = context.caches.credential(&key) {
                    let _ = reconcile(object, Arc::clone(context)).await;
                }
            }
        }
        if !shared.memories.holding().is_empty() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn reconcile_all(context: Arc<Context>, called: mpsc::UnboundedReceiver<ObjectKey>, shutdown: CancellationToken) {
    let concurrency = context.shared.settings.token_concurrency.saturating_add(CONCURRENCY_BESIDE_GRANTS);
    let calls =
        futures::stream::unfold(called, |mut called| async move { called.recv().await.map(|key| (key, called)) });
    let none = futures::stream::pending::<Result<Guarded, watcher::Error>>();
    Controller::for_stream(none, context.caches.store())
        .with_config(ControllerConfig::default().concurrency(concurrency))
        .reconcile_on(calls.map(|key: ObjectKey| key.reference()))
        .graceful_shutdown_on(shutdown.cancelled_owned())
        .run(reconcile, error_policy, Arc::clone(&context))
        .for_each(|_| std::future::ready(()))
        .await;
}

// ---- watches ----

impl Context {
    fn api<K>(&self, scope: Option<&str>) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    {
        let client = self.shared.settings.client.clone();
        scope.map_or_else(|| Api::all(client.clone()), |namespace| Api::namespaced(client.clone(), namespace))
    }

    async fn watch_objects(self: Arc<Self>, scope: Option<String>, mut writer: reflector::store::Writer<Guarded>) {
        let mut config = watcher::Config::default();
        if let Some(selector) = &self.shared.settings.label_selector {
            config = config.labels(selector);
        }
        let api: Api<Guarded> = self.api(scope.as_deref());
        let events = watcher::watcher(api, config).default_backoff().modify(prune);
        follow("MoneyGoCredentials", events, |event| {
            let own = matches!(&event, Event::Apply(object) if self.is_own_status(object));
            let folded = self.caches.fold_object(&mut writer, &event);
            for key in folded.gone {
                self.shared.settings.grants.withdraw(&key);
                self.shared.memories.forget(&key);
            }
            if !own {
                self.call_all(folded.look_at);
            }
        })
        .await;
    }

    /// The watch shows what this process wrote: there is nothing to look at.
    fn is_own_status(&self, object: &Guarded) -> bool {
        self.shared.memories.wrote_status(&ObjectKey::of(object), &Version::of(object.meta()))
    }

    async fn watch_secrets(self: Arc<Self>, scope: Option<String>, listed: tokio::sync::oneshot::Sender<()>) {
        let mut listed = Some(listed);
        let events =
            watcher::watcher(self.api::<PartialObjectMeta<Secret>>(scope.as_deref()), watcher::Config::default())
                .default_backoff();
        follow("Secrets", events, |event| {
            let is_whole = matches!(event, Event::InitDone);
            self.call_all(self.caches.fold_secret(event));
            if is_whole && let Some(listed) = listed.take() {
                let _ = listed.send(());
            }
        })
        .await;
    }

    async fn watch_namespaces(self: Arc<Self>) {
        let api: Api<PartialObjectMeta<Namespace>> = Api::all(self.shared.settings.client.clone());
        let events = watcher::watcher(api, watcher::Config::default()).default_backoff();
        follow("Namespaces", events, |event| self.caches.fold_namespace(&event)).await;
    }

    fn call_all(&self, keys: impl IntoIterator<Item = ObjectKey>) {
        for key in keys {
            // Only a controller that has ended does not listen.
            let _ = self.calls.send(key);
        }
    }
}

/// Hands on a watch's events, and says once when it fails and once when it is back.
async fn follow<K>(
    what: &str,
    events: impl Stream<Item = Result<Event<K>, watcher::Error>>,
    mut fold: impl FnMut(Event<K>),
) {
    let mut failing = false;
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if std::mem::take(&mut failing) {
                    tracing::info!(what, "the watch is back");
                }
                fold(event);
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(what, error = watch_failure(&error), "the watch fails, and is tried again");
                }
            }
        }
    }
}

/// A watch error's own text can quote what could not be parsed.
fn watch_failure(error: &watcher::Error) -> String {
    let (doing, cause) = match error {
        watcher::Error::InitialListFailed(cause) => ("list", cause),
        watcher::Error::WatchStartFailed(cause) => ("start to watch", cause),
        watcher::Error::WatchFailed(cause) => ("watch", cause),
        watcher::Error::WatchError(status) => {
            return format!("the API server ended the watch: {} {}", status.code, status.reason);
        }
        watcher::Error::NoResourceVersion => return "the API server gave a list without a resourceVersion".to_owned(),
    };
    Error::of(doing, cause).to_string()
}

/// What nobody reads is not kept.
fn prune(object: &mut Guarded) {
    object.meta_mut().managed_fields = None;
    if let Some(annotations) = &mut object.meta_mut().annotations {
        annotations.retain(|key, _| key == annotation::REFRESH_REQUESTED);
    }
}

// ---- what runs beside the watches ----

impl Shared {
    async fn fetch_digest_key(&self) {
        let Some(namespace) = &self.settings.own_namespace else { return };
        match apply::digest_key(&self.settings.client, namespace).await {
            Ok(Some(key)) => *self.digest_key.write().unwrap_or_else(PoisonError::into_inner) = Some(key),
            Ok(None) => {
                tracing::warn!(secret = apply::DIGEST_KEY_SECRET, "holds no key: delete it, and it is made anew")
            }
            Err(error) => tracing::warn!(%error, "no key for digests yet: changes are noticed less exactly"),
        }
    }

    async fn keep_fetching_digest_key(self: Arc<Self>) {
        while self.settings.own_namespace.is_some() && self.digest_key().is_none() {
            tokio::time::sleep(DIGEST_KEY_RETRY).await;
            self.fetch_digest_key().await;
        }
    }

    fn digest_key(&self) -> Option<DigestKey> {
        self.digest_key.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn follow_leadership(shared: Arc<Shared>, contexts: Vec<Arc<Context>>) {
    let mut changed = shared.settings.leadership.changed();
    loop {
        let leads = *changed.borrow_and_update();
        shared.settings.metrics.set_leader(leads);
        if leads {
            contexts.iter().for_each(|context| context.call_all(context.caches.keys()));
        }
        if changed.changed().await.is_err() {
            // Nobody stands for election: it stays as it is.
            return std::future::pending().await;
        }
    }
}

async fn call_from_queue(shared: Arc<Shared>, scoped: Vec<(Option<String>, Arc<Context>)>) {
    let grants = Arc::clone(&shared.settings.grants);
    grants
        .run(|key| {
            let of_scope = |scope: &Option<String>| scope.as_ref().is_none_or(|namespace| *namespace == key.namespace);
            for (_, context) in scoped.iter().filter(|(scope, _)| of_scope(scope)) {
                context.call_all([key.clone()]);
            }
        })
        .await;
}

/// Compares the clocks, and looks at everything again after a jump: timers follow the monotonic clock, which stands still
/// while the machine is suspended and knows nothing of a wall clock that is set.
async fn beat(shared: Arc<Shared>, contexts: Vec<Arc<Context>>) {
    let mut before = Clocks::read();
    loop {
        shared.settings.probes.beat();
        tokio::time::sleep(HEARTBEAT).await;
        let now = Clocks::read();
        if now.jumped_since(before) {
            tracing::info!("a clock jumped: looking at everything again");
            contexts.iter().for_each(|context| context.call_all(context.caches.keys()));
        }
        before = now;
    }
}

#[derive(Clone, Copy)]
struct Clocks {
    wall: Timestamp,
    boot: SignedDuration,
    monotonic: SignedDuration,
}

impl Clocks {
    fn read() -> Self {
        use rustix::time::{ClockId, clock_gettime};
        let read = |clock| {
            let time = clock_gettime(clock);
            SignedDuration::new(time.tv_sec, i32::try_from(time.tv_nsec).unwrap_or(0))
        };
        Self { wall: wall_clock(), boot: read(ClockId::Boottime), monotonic: read(ClockId::Monotonic) }
    }

    fn jumped_since(self, before: Self) -> bool {
        let monotonic = self.monotonic - before.monotonic;
        let of = |passed: SignedDuration| (passed - monotonic).abs() > JUMP;
        of(self.wall.duration_since(before.wall)) || of(self.boot - before.boot)
    }
}

// ---- reconcile ----

/// Both Secrets, as just read.
#[derive(Default)]
struct Sight {
    credentials: Option<Secret>,
    target: Option<Secret>,
}

async fn reconcile(object: Arc<Guarded>, context: Arc<Context>) -> Result<Action, Error> {
    let started = std::time::Instant::now();
    let result = match &object.0 {
        Ok(credential) => context.pass(credential).await,
        Err(invalid) => context.report_broken(invalid).await,
    };
    let outcome = result.as_ref().err().map_or("Ok", Error::reason);
    context.shared.settings.metrics.reconcile(outcome, started.elapsed().as_secs_f64());
    result
}

/// What the API server did not do is tried again soon: a token may be waiting to be written.
fn error_policy(object: Arc<Guarded>, error: &Error, context: Arc<Context>) -> Action {
    let key = ObjectKey::of(&*object);
    let uid = object.uid().unwrap_or_default();
    let failures = context.shared.memories.with(&key, &uid, |memory| {
        memory.api_failures = memory.api_failures.saturating_add(1);
        memory.api_failures
    });
    if failures == 1 && !error.is_conflict() {
        tracing::warn!(namespace = %key.namespace, name = %key.name, reason = error.reason(), %error, "trying again");
    }
    Action::requeue(Duration::from_millis(100).saturating_mul(1 << failures.min(7)).min(Duration::from_secs(10)))
}

impl Context {
    async fn pass(&self, credential: &MoneyGoCredential) -> Result<Action, Error> {
        let mut o = self.observe(credential);
        let mut sight = Sight::default();
        let mut permit = None;
        let mut plan = plan::plan(&o);
        if plan == Plan::LookToMint {
            permit = self.admit(&o);
            if permit.is_none() {
                return self.wait(&o).await;
            }
        }
        if matches!(plan, Plan::Look | Plan::LookToMint) {
            sight = self.look(&mut o).await?;
            plan = plan::plan(&o);
        }
        if matches!(plan, Plan::Mint(_)) && permit.is_none() {
            permit = self.admit(&o);
            if permit.is_none() {
                return self.wait(&o).await;
            }
        }
        let action = self.carry_out(&mut o, plan, sight, permit).await?;
        self.remember(&o.owner, |memory| memory.api_failures = 0);
        Ok(action)
    }

    async fn carry_out(
        &self,
        o: &mut Observed,
        plan: Plan,
        sight: Sight,
        permit: Option<Permit<ObjectKey>>,
    ) -> Result<Action, Error> {
        if !matches!(plan, Plan::Mint(_)) {
            drop(permit);
            self.shared.settings.grants.withdraw(&key_of(&o.owner));
            self.remember(&o.owner, |memory| memory.waits_since = None);
            return self.carry_out_at_once(o, plan, sight).await;
        }
        match (plan, permit) {
            (Plan::Mint(cause), Some(permit)) => self.mint(o, cause, sight, permit).await,
            _ => Ok(Action::await_change()),
        }
    }

    async fn carry_out_at_once(&self, o: &mut Observed, plan: Plan, sight: Sight) -> Result<Action, Error> {
        match plan {
            Plan::Rest(report, again_at) => self.report(o, *report, again_at).await,
            Plan::Forget => {
                tracing::warn!(namespace = %o.owner.namespace, name = %o.owner.name, "a token that was issued is dropped: it has expired, or there is nothing left to write it to");
                self.remember(&o.owner, |memory| memory.held = None);
                Ok(Action::requeue(Duration::ZERO))
            }
            Plan::Store => match self.remember(&o.owner, |memory| memory.held.clone()) {
                Some(held) => self.store(o, held, sight).await,
                None => Ok(Action::requeue(Duration::ZERO)),
            },
            Plan::Mend(issue) => self.mend(o, *issue, sight).await,
            // A look is never planned after a look, and `carry_out` has dealt with the mint.
            Plan::Stand | Plan::Look | Plan::LookToMint | Plan::Mint(_) => Ok(Action::await_change()),
        }
    }

    fn remember<T>(&self, owner: &Owner, f: impl FnOnce(&mut Memory) -> T) -> T {
        self.shared.memories.with(&key_of(owner), &owner.uid, f)
    }

    fn admit(&self, o: &Observed) -> Option<Permit<ObjectKey>> {
        self.shared.settings.grants.admit(&key_of(&o.owner), plan::urgency(o))
    }

    // ---- observe ----

    fn observe(&self, credential: &MoneyGoCredential) -> Observed {
        let now = wall_clock();
        let owner = Owner {
            namespace: credential.namespace().unwrap_or_default(),
            name: credential.name_any(),
            uid: credential.uid().unwrap_or_default(),
        };
        let memory = self.remember(&owner, |memory| memory.clone());
        let spec = credential.resolve();
        let mut o = Observed {
            now,
            generation: credential.metadata.generation,
            created: credential.creation_timestamp().map(|time| time.0),
            ending: self.is_ending(&owner, credential),
            refresh_requested: credential.annotations().get(annotation::REFRESH_REQUESTED).cloned(),
            status: newest_status(credential, &memory),
            failure: None,
            leading: self.shared.settings.leadership.is_leader(),
            rival: None,
            live: false,
            credentials: Credentials::Missing,
            target: Target::Missing,
            claimed: true,
            held: memory.held.as_ref().map(|held| held_facts(held, false)),
            unplanned_at: memory.grants.available_at(now),
            mend_at: memory.mends.available_at(now),
            digests: self.shared.digest_key().is_some(),
            owner_refused: memory.owner_refused_until.is_some_and(|until| until > now),
            outage: self.shared.settings.grants.is_outage(),
            spec,
            owner,
        };
        if let Ok(spec) = &o.spec {
            let secret = |name: &str| self.caches.secret(&ObjectKey::new(&o.owner.namespace, name));
            let (credentials, target) = (secret(&spec.credentials), secret(&spec.target));
            o.credentials = credentials.map_or(Credentials::Missing, |facts| Credentials::Seen(facts.version.clone()));
            o.target = target.map_or(Target::Missing, |facts| seen_target(&facts, memory.verified.as_ref()));
        }
        self.judge(&mut o, &memory);
        o
    }

    /// What follows from the Secrets' versions: whose the target is, and whether an earlier failure still counts.
    fn judge(&self, o: &mut Observed, memory: &Memory) {
        let facts = o.target.facts();
        if let Ok(spec) = &o.spec {
            let contenders = self.caches.contenders(&o.owner, &spec.target);
            let winner = secret::winner(&contenders, facts);
            o.rival = winner.filter(|winner| winner.uid != o.owner.uid).map(|winner| winner.name.clone());
        }
        let is_live = |uid: &str| {
            let name = facts.and_then(Facts::controller).map(|controller| controller.name.as_str());
            name.is_some_and(|name| self.caches.is_live(&o.owner.namespace, name, uid))
        };
        o.claimed = facts.is_none_or(|facts| secret::claim(facts, &o.owner, is_live) == Claim::Ours);
        let target = facts.map(|facts| facts.version.clone());
        let changed = memory.attempt.as_ref().is_some_and(|attempt| {
            let of_target = attempt.target.is_some() && attempt.target != target;
            attempt.refresh_requested != o.refresh_requested || of_target
        });
        let since = o.status.last_failure_time;
        let unavailable = status::condition(&o.status, ConditionType::Refreshed)
            .is_some_and(|refreshed| refreshed.reason == Reason::EndpointUnavailable.as_str());
        let recovered = self.shared.settings.grants.recovered_at().filter(|_| unavailable);
        let recovered = recovered.zip(since).is_some_and(|(recovered, since)| recovered > since);
        o.failure = plan::standing_failure(o, changed || recovered);
    }

    fn is_ending(&self, owner: &Owner, credential: &MoneyGoCredential) -> bool {
        credential.metadata.deletion_timestamp.is_some()
            || self.caches.is_ending(&owner.namespace)
            || !self.caches.is_live(&owner.namespace, &owner.name, &owner.uid)
    }

    /// Reads both Secrets.
    async fn look(&self, o: &mut Observed) -> Result<Sight, Error> {
        let Ok(spec) = o.spec.clone() else { return Ok(Sight::default()) };
        let client = &self.shared.settings.client;
        let namespace = o.owner.namespace.clone();
        let (credentials, target) = futures::future::try_join(
            apply::read_secret(client, &namespace, &spec.credentials),
            apply::read_secret(client, &namespace, &spec.target),
        )
        .await?;
        let sight = Sight { credentials, target };
        self.take_in(o, &spec, &sight);
        Ok(sight)
    }

    fn take_in(&self, o: &mut Observed, spec: &Resolved, sight: &Sight) {
        let key = self.shared.digest_key();
        o.now = wall_clock();
        o.live = true;
        o.target = sight.target.as_ref().map_or(Target::Missing, |secret| {
            let facts = Facts::of(&secret.metadata);
            let found = secret::inspect(secret, &facts, spec, plan::life_in_status(&o.status), key.as_ref());
            Target::Read { facts: Box::new(facts), found, immutable: secret.immutable == Some(true) }
        });
        o.credentials = sight.credentials.as_ref().map_or(Credentials::Missing, |secret| Credentials::Read {
            version: Version::of(&secret.metadata),
            content: secret::read_credentials(secret, spec).map(|(id, client_secret)| {
                let stored = o.target.facts().and_then(|facts| facts.marks.credentials_digest.as_deref());
                key.as_ref().map_or(Match::Unknown, |key| key.compare(stored, &key.of_credentials(id, client_secret)))
            }),
        });
        self.note(o, sight, spec);
        let memory = self.remember(&o.owner, |memory| {
            memory.verified = verified(o);
            memory.clone()
        });
        o.held = memory.held.as_ref().map(|held| {
            let stored = sight.target.as_ref().and_then(|secret| secret::stored_token(secret, o.target.facts()?, spec));
            held_facts(held, stored == Some(held.token.expose()))
        });
        self.judge(o, &memory);
    }

    /// What was read is newer than what the watches have shown.
    fn note(&self, o: &Observed, sight: &Sight, spec: &Resolved) {
        for (name, secret) in [(&spec.credentials, &sight.credentials), (&spec.target, &sight.target)] {
            if let Some(secret) = secret {
                self.caches.note_secret(&ObjectKey::new(&o.owner.namespace, name), Facts::of(&secret.metadata));
            }
        }
    }

    // ---- mint ----

    async fn mint(
        &self,
        o: &mut Observed,
        cause: Cause,
        sight: Sight,
        permit: Permit<ObjectKey>,
    ) -> Result<Action, Error> {
        let Ok(spec) = o.spec.clone() else { return Ok(Action::await_change()) };
        let read = sight.credentials.as_ref().map(|secret| secret::read_credentials(secret, &spec));
        let Some(Ok((id, client_secret))) = read else { return Ok(Action::requeue(Duration::ZERO)) };
        let credentials = ClientCredentials::new(id.to_owned(), client_secret.to_owned());
        let digest = self.shared.digest_key().map(|key| key.of_credentials(id, client_secret));
        if self.asks_after_namespaces
            && apply::is_namespace_ending(&self.shared.settings.client, &o.owner.namespace).await?
        {
            return Ok(Action::await_change());
        }
        if !cause.is_planned() {
            self.remember(&o.owner, |memory| memory.grants.take(wall_clock()));
        }
        tracing::debug!(namespace = %o.owner.namespace, name = %o.owner.name, cause = cause.as_str(), "asking for a token");
        let (asked_at, started) = (wall_clock(), std::time::Instant::now());
        let answer = permit.request(&credentials, &spec.scope).await;
        let result = answer.as_ref().map_or_else(|(error, _)| failure_reason(error), |_| Reason::Succeeded);
        self.shared.settings.metrics.token_request(result.as_str(), started.elapsed().as_secs_f64());
        o.now = wall_clock();
        match answer {
            Err((error, blame)) => self.attempt_failed(o, &error, blame).await,
            Ok(grant) => {
                let life = lived(Life::new(asked_at, grant.lifetime.length), o, &sight, &spec, &grant.token);
                let issue = Issue {
                    life,
                    scope: spec.scope.clone(),
                    refresh_handled: o.refresh_requested.clone(),
                    credentials: sight
                        .credentials
                        .as_ref()
                        .map(|secret| Version::of(&secret.metadata))
                        .unwrap_or_default(),
                    credentials_digest: digest,
                };
                self.hold(
                    o,
                    HeldToken { token: grant.token, issue, replaces: life_in_target(o).map(|life| life.issued_at) },
                );
                self.deliver(o, sight).await
            }
        }
    }

    /// From here on the token is not lost while the process lives.
    fn hold(&self, o: &mut Observed, held: HeldToken) {
        o.held = Some(held_facts(&held, false));
        self.remember(&o.owner, |memory| {
            memory.held = Some(held);
            memory.waits_since = None;
        });
    }

    /// Writes a token that has just come, to where it can be written now.
    async fn deliver(&self, o: &mut Observed, sight: Sight) -> Result<Action, Error> {
        let key = key_of(&o.owner);
        let object = self.caches.credential(&key);
        let credential = object.as_deref().and_then(|object| object.0.as_ref().ok());
        o.ending = credential.is_none_or(|credential| self.is_ending(&o.owner, credential));
        match plan::plan(o) {
            plan @ (Plan::Store | Plan::Forget) => {
                let done = self.carry_out_at_once(o, plan, sight).await;
                if o.ending {
                    // Nobody will call this object again.
                    self.remember(&o.owner, |memory| memory.held = None);
                    self.shared.memories.forget(&key);
                }
                done
            }
            // Anything else is decided on a fresh look.
            _ => Ok(Action::requeue(Duration::ZERO)),
        }
    }

    async fn attempt_failed(&self, o: &mut Observed, error: &TokenError, blame: Blame) -> Result<Action, Error> {
        if blame == Blame::Outage {
            // Everyone waits for one probe: nothing is written of each.
            return match self.admit(o) {
                Some(permit) => {
                    drop(permit);
                    Ok(Action::requeue(Duration::from_secs(1)))
                }
                None => self.wait(o).await,
            };
        }
        let attempts = o.failure.as_ref().map_or(1, |failure| failure.attempts.saturating_add(1));
        let living = life_in_target(o).map(|life| life.expires_at);
        let next =
            schedule::next_attempt(o.now, backoff(error, blame), attempts, error.retry_after(), living, &o.owner.uid);
        let failure = Failure {
            reason: failure_reason(error),
            message: error.to_string(),
            at: o.now,
            attempts,
            next_attempt_at: next,
        };
        self.fail(o, failure).await
    }

    async fn fail(&self, o: &mut Observed, failure: Failure) -> Result<Action, Error> {
        tracing::warn!(
            namespace = %o.owner.namespace, name = %o.owner.name, reason = failure.reason.as_str(), attempts = failure.attempts,
            next_attempt_at = %failure.next_attempt_at, "no new token: {}", failure.message
        );
        let attempt = Attempt {
            refresh_requested: o.refresh_requested.clone(),
            target: matches!(failure.reason, Reason::TargetForbidden)
                .then(|| o.target.facts().map(|facts| facts.version.clone()))
                .flatten(),
        };
        self.remember(&o.owner, |memory| {
            memory.attempt = Some(attempt);
            memory.waits_since = None;
        });
        o.failure = Some(failure);
        self.account(o).await
    }

    // ---- apply ----

    async fn store(&self, o: &mut Observed, held: HeldToken, sight: Sight) -> Result<Action, Error> {
        let Ok(spec) = o.spec.clone() else { return Ok(Action::await_change()) };
        let content = Content { token: held.token.expose(), issue: &held.issue };
        let written = match self.write(o, &spec, content, sight.target.as_ref()).await {
            Ok(written) => written,
            Err(error) if error.is_refusal() => return self.write_refused(o, &error).await,
            Err(error) => return Err(error),
        };
        let replaces = held.replaces.is_some();
        self.remember(&o.owner, |memory| {
            memory.held = None;
            memory.attempt = None;
        });
        o.held = None;
        o.failure = None;
        o.status.failed_attempts = None;
        self.stored(o, &written, held.issue.life, &held.issue);
        let (reason, done) = if replaces { ("Refreshed", "refreshed") } else { ("Issued", "issued") };
        tracing::info!(
            namespace = %o.owner.namespace, name = %o.owner.name, secret = %spec.target, reason,
            expires_at = %held.issue.life.expires_at, "token {done}"
        );
        self.notice(
            o,
            false,
            if replaces { "TokenRefreshed" } else { "TokenIssued" },
            format!("the Secret \"{}\" holds a token that expires at {}", spec.target, held.issue.life.expires_at),
        );
        if o.ending {
            return Ok(Action::await_change());
        }
        self.account(o).await
    }

    async fn mend(&self, o: &mut Observed, issue: Issue, sight: Sight) -> Result<Action, Error> {
        let Ok(spec) = o.spec.clone() else { return Ok(Action::await_change()) };
        let token = sight
            .target
            .as_ref()
            .zip(o.target.facts())
            .and_then(|(secret, facts)| secret::stored_token(secret, facts, &spec));
        let Some(token) = token.map(ToOwned::to_owned).and_then(AccessToken::new) else {
            return Ok(Action::requeue(Duration::ZERO));
        };
        let issue = self.restamped(o, issue, &sight, &spec);
        let content = Content { token: token.expose(), issue: &issue };
        self.remember(&o.owner, |memory| memory.mends.take(wall_clock()));
        let written = match self.write(o, &spec, content, sight.target.as_ref()).await {
            Ok(written) => written,
            Err(error) if error.is_refusal() => return self.write_refused(o, &error).await,
            Err(error) => return Err(error),
        };
        self.stored(o, &written, issue.life, &issue);
        tracing::info!(namespace = %o.owner.namespace, name = %o.owner.name, secret = %spec.target, reason = "Mended", "put back what was missing beside the token");
        // There may be more to do than the mending: the next look is at what is there now.
        match plan::plan(o) {
            Plan::Rest(report, again_at) => self.report(o, *report, again_at).await,
            _ => Ok(Action::requeue(Duration::ZERO)),
        }
    }

    /// Puts back a digest that was stripped, where the credentials are the very ones that the token was asked for with.
    fn restamped(&self, o: &Observed, issue: Issue, sight: &Sight, spec: &Resolved) -> Issue {
        let key = self.shared.digest_key();
        let fresh = sight.credentials.as_ref().zip(key).and_then(|(secret, key)| {
            let (id, client_secret) = secret::read_credentials(secret, spec).ok()?;
            (Version::of(&secret.metadata) == issue.credentials).then(|| key.of_credentials(id, client_secret))
        });
        let unknown = !matches!(o.credentials, Credentials::Read { content: Ok(Match::Same | Match::Different), .. });
        let credentials_digest = if unknown { fresh.or(issue.credentials_digest) } else { issue.credentials_digest };
        Issue { credentials_digest, ..issue }
    }

    /// Writes the target; where the API server refuses to change its owner, without that.
    async fn write(
        &self,
        o: &Observed,
        spec: &Resolved,
        content: Content<'_>,
        live: Option<&Secret>,
    ) -> Result<Secret, Error> {
        let key = self.shared.digest_key();
        let compose = |ownership| secret::compose(live, &o.owner, spec, content, key.as_ref(), ownership);
        let ownership = if o.owner_refused { Ownership::AsFound } else { Ownership::AsWanted };
        let wanted = compose(ownership);
        let changes_owner = live.is_some_and(|live| {
            live.metadata.owner_references.clone().unwrap_or_default()
                != wanted.metadata.owner_references.clone().unwrap_or_default()
        });
        let mut result = apply::write_secret(&self.shared.settings.client, &wanted).await;
        if changes_owner && result.as_ref().is_err_and(Error::is_forbidden) {
            result = apply::write_secret(&self.shared.settings.client, &compose(Ownership::AsFound)).await;
            if result.is_ok() {
                self.owner_refused(o);
            }
        }
        let outcome = result.as_ref().err().map_or("Ok", Error::reason);
        self.shared.settings.metrics.secret_write(outcome);
        result
    }

    fn owner_refused(&self, o: &Observed) {
        self.remember(&o.owner, |memory| {
            memory.owner_refused_until = Some(schedule::add(wall_clock(), OWNER_REFUSED_FOR))
        });
        let note = "the API server refuses to change the Secret's owner, so that it will not be deleted with this object: give the operator `delete` on Secrets, or set target.deletionPolicy to Retain";
        tracing::warn!(namespace = %o.owner.namespace, name = %o.owner.name, reason = "OwnerRefused", "{note}");
        self.notice(o, true, "OwnerRefused", note.to_owned());
    }

    /// The API server will not have it. The token, if there is a new one, stays held and is written again.
    async fn write_refused(&self, o: &mut Observed, error: &Error) -> Result<Action, Error> {
        let code = if let Error::Api { code, .. } = error { *code } else { 0 };
        tracing::warn!(namespace = %o.owner.namespace, name = %o.owner.name, %error, "the Secret was not written");
        let attempts = o.failure.as_ref().map_or(1, |failure| failure.attempts.saturating_add(1));
        let living = life_in_target(o).map(|life| life.expires_at);
        let next = schedule::next_attempt(o.now, Backoff::Transient, attempts, None, living, &o.owner.uid);
        let message = format!(
            "the API server refuses to write the Secret (HTTP {code}): look at the operator's rights, quotas and admission webhooks; it is tried again with the same token"
        );
        self.fail(o, Failure { reason: Reason::TargetForbidden, message, at: o.now, attempts, next_attempt_at: next })
            .await
    }

    /// Takes note of what was just written.
    fn stored(&self, o: &mut Observed, written: &Secret, life: Life, issue: &Issue) {
        let facts = Facts::of(&written.metadata);
        let name = written.metadata.name.clone().unwrap_or_default();
        self.caches.note_secret(&ObjectKey::new(&o.owner.namespace, &name), facts.clone());
        self.remember(&o.owner, |memory| {
            memory.verified = Some(Verified { version: facts.version.clone(), sound: true })
        });
        o.claimed = true;
        o.target = Target::Read { facts: Box::new(facts), found: Found::Token(life), immutable: false };
        if let Credentials::Read { version, content: Ok(content) } = &mut o.credentials
            && *version == issue.credentials
        {
            *content = Match::Same;
        }
        // The status is behind the Secret now, and follows.
        o.status.issued_at = Some(life.issued_at);
        o.status.expires_at = Some(life.expires_at);
    }

    // ---- report ----

    async fn account(&self, o: &mut Observed) -> Result<Action, Error> {
        match plan::account(o) {
            Plan::Rest(report, again_at) => self.report(o, *report, again_at).await,
            _ => Ok(Action::await_change()),
        }
    }

    async fn report(
        &self,
        o: &mut Observed,
        report: status::Report,
        again_at: Option<Timestamp>,
    ) -> Result<Action, Error> {
        let key = key_of(&o.owner);
        let object = self.caches.credential(&key);
        let credential = object.as_deref().and_then(|object| object.0.as_ref().ok());
        let Some(credential) = credential.filter(|credential| credential.uid().as_ref() == Some(&o.owner.uid)) else {
            return Ok(Action::await_change());
        };
        let (version, before) = self.remember(&o.owner, |memory| newest_version(credential, memory));
        let wanted = report.status(&before, o.now);
        self.warn_of_sharing(o);
        if wanted != before {
            match apply::patch_status(
                &self.shared.settings.client,
                &o.owner.namespace,
                &o.owner.name,
                &status::patch(&version, &wanted),
            )
            .await
            {
                Ok(version) => {
                    self.announce(o, &before, &wanted);
                    self.remember(&o.owner, |memory| memory.status = Some((version, wanted)));
                }
                // It is gone, or its change is on its way to us.
                Err(error) if error.is_not_found() => return Ok(Action::await_change()),
                Err(error) if error.is_conflict() => return Ok(Action::requeue(Duration::from_millis(100))),
                Err(error) => return Err(error),
            }
        }
        Ok(requeue_at(again_at))
    }

    /// One line and one event for each change of what a condition says; none for a retry that fails the same way.
    fn announce(&self, o: &Observed, before: &MoneyGoCredentialStatus, after: &MoneyGoCredentialStatus) {
        for kind in [ConditionType::Ready, ConditionType::Refreshed] {
            let Some(now) = status::condition(after, kind) else { continue };
            let earlier = status::condition(before, kind);
            if earlier.is_some_and(|earlier| earlier.status == now.status && earlier.reason == now.reason) {
                continue;
            }
            tracing::info!(
                namespace = %o.owner.namespace, name = %o.owner.name, condition = kind.as_str(), status = now.status,
                reason = now.reason, "{}", now.message
            );
            let reason = Reason::ALL.iter().find(|reason| reason.as_str() == now.reason);
            let failed = kind == ConditionType::Refreshed && now.status == "False";
            if let (true, Some(reason)) = (failed, reason) {
                self.notice(o, true, reason.as_str(), now.message.clone());
            }
        }
    }

    fn notice(&self, o: &Observed, is_warning: bool, reason: &'static str, note: String) {
        self.shared.settings.notices.put(Notice { owner: o.owner.clone(), is_warning, reason, note });
    }

    /// With a provider that revokes the last token on a new grant, two objects with one client kill each other's tokens.
    fn warn_of_sharing(&self, o: &Observed) {
        let Ok(spec) = &o.spec else { return };
        let others = self.caches.sharing_credentials(&key_of(&o.owner), &spec.credentials);
        let (Some(other), false) = (others.first(), self.remember(&o.owner, |memory| memory.warned_of_sharing)) else {
            return;
        };
        self.remember(&o.owner, |memory| memory.warned_of_sharing = true);
        let note = format!(
            "the MoneyGoCredential \"{other}\" has the same credentials Secret: if Money-Go ends a client's last token when it gives a new one, the two end each other's; use a client for each"
        );
        self.notice(o, true, "SharedCredentials", note);
    }

    /// Says that the object waits for leave to ask for a token, if that takes long or if its token ends meanwhile.
    async fn wait(&self, o: &Observed) -> Result<Action, Error> {
        let mut o = o.clone();
        let since = self.remember(&o.owner, |memory| *memory.waits_since.get_or_insert(o.now));
        let Plan::Rest(report, again_at) = plan::account(&o) else { return Ok(Action::await_change()) };
        let was_ready = status::condition(&o.status, ConditionType::Ready).is_some_and(|ready| ready.status == "True");
        let ends = was_ready && report.ready.state != State::True;
        let report_at = schedule::add(since, WAITS_BEFORE_REPORT);
        if !ends && o.now < report_at {
            return Ok(requeue_at(Some(report_at)));
        }
        self.report(&mut o, *report, again_at).await
    }

    /// An object that cannot be read: an older schema's, or made by hand. It stops itself and no other.
    async fn report_broken(&self, invalid: &InvalidObject) -> Result<Action, Error> {
        let meta = &invalid.metadata;
        let owner = Owner {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
        };
        if !self.shared.settings.leadership.is_leader() || meta.deletion_timestamp.is_some() {
            return Ok(Action::await_change());
        }
        let client = &self.shared.settings.client;
        let Some(object) = apply::read_any_credential(client, &owner.namespace, &owner.name).await? else {
            return Ok(Action::await_change());
        };
        let stored = object.data.get("status").cloned().unwrap_or_default();
        if status::says_unreadable(&stored, meta.generation) {
            return Ok(Action::await_change());
        }
        tracing::warn!(namespace = %owner.namespace, name = %owner.name, reason = Reason::InvalidSpec.as_str(), "the object cannot be read");
        let patch = status::unreadable(&Version::of(&object.metadata), meta.generation, wall_clock());
        match apply::patch_status(client, &owner.namespace, &owner.name, &patch).await {
            Err(error) if !error.is_not_found() && !error.is_refusal() => Err(error),
            _ => Ok(Action::await_change()),
        }
    }
}

// ---- leaves ----

fn key_of(owner: &Owner) -> ObjectKey {
    ObjectKey::new(&owner.namespace, &owner.name)
}

fn requeue_at(at: Option<Timestamp>) -> Action {
    at.map_or_else(Action::await_change, |at| {
        let wait = at.duration_since(wall_clock()).max(SignedDuration::ZERO);
        Action::requeue(Duration::try_from(wait).unwrap_or_default().min(LONGEST_SLEEP))
    })
}

/// The newest version and status that are known: the watch's, or what we wrote and it does not show yet.
fn newest_version(credential: &MoneyGoCredential, memory: &Memory) -> (Version, MoneyGoCredentialStatus) {
    let seen = Version::of(&credential.metadata);
    match &memory.status {
        Some((written, status)) if written.is_newer_than(&seen) => (written.clone(), status.clone()),
        _ => (seen, credential.status.clone().unwrap_or_default()),
    }
}

fn newest_status(credential: &MoneyGoCredential, memory: &Memory) -> MoneyGoCredentialStatus {
    newest_version(credential, memory).1
}

fn held_facts(held: &HeldToken, is_stored: bool) -> Held {
    Held { issue: held.issue.clone(), replaces: held.replaces, is_stored }
}

/// A Secret that nobody looked at since the start is trusted where `managedFields` show that we wrote its data last.
fn seen_target(facts: &Facts, verified: Option<&Verified>) -> Target {
    let trusted = match verified {
        Some(verified) => verified.sound && verified.version == facts.version,
        None => facts.seal == secret::Seal::Intact,
    };
    Target::Seen { facts: Box::new(facts.clone()), trusted }
}

fn verified(o: &Observed) -> Option<Verified> {
    let Target::Read { facts, found, .. } = &o.target else { return None };
    Some(Verified { version: facts.version.clone(), sound: matches!(found, Found::Token(_)) })
}

fn life_in_target(o: &Observed) -> Option<Life> {
    if let Target::Read { found: Found::Token(life), .. } = &o.target { Some(*life) } else { None }
}

/// The new token's life, in the light of what is there: the provider may have given the same token again.
fn lived(life: Life, o: &Observed, sight: &Sight, spec: &Resolved, token: &AccessToken) -> Life {
    let stored = sight
        .target
        .as_ref()
        .zip(o.target.facts())
        .and_then(|(secret, facts)| secret::stored_token(secret, facts, spec));
    match life_in_target(o) {
        Some(earlier) if stored == Some(token.expose()) => life.of_repeated(earlier),
        _ => life,
    }
}

fn failure_reason(error: &TokenError) -> Reason {
    match error {
        TokenError::Rejected { .. } if error.refuses_client() => Reason::InvalidClient,
        TokenError::Rejected { .. } => Reason::RequestRejected,
        TokenError::RateLimited { .. } => Reason::RateLimited,
        TokenError::Unavailable { .. } => Reason::EndpointUnavailable,
        TokenError::BadResponse { .. } => Reason::BadResponse,
    }
}

fn backoff(error: &TokenError, blame: Blame) -> Backoff {
    match error {
        TokenError::Rejected { .. } => Backoff::Rejected,
        TokenError::Unavailable { .. } if blame == Blame::Endpoint => Backoff::Endpoint,
        _ => Backoff::Transient,
    }
}
