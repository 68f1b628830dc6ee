//! The one place where the others meet: observe → plan → mint → apply → report.
//!
//! [`run`] watches one scope (the cluster, or a namespace) or several and reconciles every object of it. A reconcile is one
//! straight line: what the watches show is planned on; where they do not decide it, both Secrets are read and it is
//! planned again; the plan is carried out; how things stand is written into the status, where that changed.

mod mint;
mod observe;
mod report;
mod watches;
mod write;

use std::any::Any;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use futures::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use kube::{Client, Resource as _, ResourceExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::apply::{ApiServer, in_place};
use crate::caches::{Caches, Guarded, ObjectKey};
use crate::clock::{Clock, Moment};
use crate::crd::{MoneyGoCredential, Resolved};
use crate::digest::DigestKey;
use crate::error::Error;
use crate::events::Notices;
use crate::grants::{Grants, Permit};
use crate::lease::Leadership;
use crate::memory::{Memories, Memory};
use crate::plan::{self, Observed, Plan};
use crate::schedule;
use crate::secret::{self, Owner, Version};
use crate::status;
use crate::telemetry::{Metrics, Probes};
use crate::traces::Span;
use crate::work::{Action, Retries, Work};

/// Reconciles at the same time, beyond the grants that may be under way: mending never waits for a grant.
const CONCURRENCY_BESIDE_GRANTS: u16 = 32;
/// Reconciles that hang at the same time, beyond all those: each may hold a connection to the API server.
const CONCURRENCY_OF_WHAT_HANGS: usize = 32;
/// Reconciles at the same time, beyond those, of objects whose turn it is to ask for a token: what hangs must not keep them from it.
const CONCURRENCY_OF_TURNS: usize = 64;
/// An object that waits for leave to ask for a token says so after this long. Most never wait.
const WAITS_BEFORE_REPORT: SignedDuration = SignedDuration::from_secs(2);
/// Who has no token is told that the API server does not let one be had after so many failures: the first few seconds say nothing.
const FAILURES_BEFORE_REPORT: u32 = 4;
/// The first list of the namespaces is waited for no longer: without it a grant is made where one is being deleted, and that is all.
const NAMESPACES_LISTED_WITHIN: Duration = Duration::from_secs(3);
/// Before the first look, the key of the digests is waited for no longer.
const DIGEST_KEY_WITHIN: Duration = Duration::from_secs(3);
/// Whether this replica leads is waited for no longer, before the first look.
const ELECTED_WITHIN: Duration = Duration::from_secs(2);
/// How often it is asked of those that wait to be looked at whether they are due.
const ASKED_UNSEEN_EVERY: Duration = Duration::from_secs(1);
/// The longest sleep of one object. Nothing is done on waking up early.
const LONGEST_SLEEP: Duration = Duration::from_hours(12);
/// After a stop is asked for, so long is waited for what is under way.
const STOP_LIMIT: Duration = Duration::from_millis(1700);
/// After [`STOP_LIMIT`], so long is left for writing the tokens that are still held. What is under way must not take it up.
const LAST_WRITES_LIMIT: Duration = Duration::from_millis(500);
/// How many held tokens are written at the same time at a stop: each write may hang.
const LAST_WRITES_AT_ONCE: usize = 512;
/// Between two attempts to write one of them.
const LAST_WRITE_RETRY: Duration = Duration::from_millis(100);
/// After all that, so long is waited for what runs beside the controllers.
const BACKGROUND_LIMIT: Duration = Duration::from_millis(200);
/// Between two looks for the sake of a late token, where the API server does not answer.
const LEFT_RETRY: Duration = Duration::from_secs(2);
/// How often the clocks are compared, and the heart beats.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Who is tried again after so long has failed several times.
const FAILING_FOR_LONG: Duration = Duration::from_secs(10);
/// Between two looks at those with which the API server has failed for long: of thousands, each is tried the less often.
const BETWEEN_FAILING: Duration = Duration::from_millis(5);
/// If a plan is older than this, a clock was set since it was made.
const SLOWEST_PASS: SignedDuration = SignedDuration::from_secs(30);
/// How long an owner that the API server refuses to change is left as it is.
const OWNER_REFUSED_FOR: SignedDuration = SignedDuration::from_hours(1);

/// What the controller works with.
pub struct Settings {
    /// For the API server. Its retries are off.
    pub client: Client,
    /// The clocks.
    pub clock: Clock,
    /// Namespaces to watch; every one where empty.
    pub namespaces: Vec<String>,
    /// Objects to watch; every one where unset.
    pub label_selector: Option<String>,
    /// Where the key of the digests lives. Without one, digests are unknown.
    pub own_namespace: Option<String>,
    /// The queue before the token endpoint.
    pub grants: Arc<Grants<ObjectKey>>,
    /// Whether this replica leads.
    pub leadership: Leadership,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Where readiness and liveness are shown.
    pub probes: Arc<Probes>,
    /// Where people are told.
    pub notices: Notices,
    /// Is cancelled once the watches have shown what there is, in one scope at least.
    pub in_step: CancellationToken,
}

struct Shared {
    settings: Settings,
    api_server: ApiServer,
    memories: Memories,
    digest_key: RwLock<Option<DigestKey>>,
    /// It is the one that all replicas have.
    has_stored_digest_key: AtomicBool,
    /// Those with which the API server has failed for long.
    retries: Mutex<Retries>,
    /// The clocks as they were compared last.
    beat: Mutex<(Timestamp, Moment)>,
}

/// What a reconcile is given beside the object.
pub struct Context {
    shared: Arc<Shared>,
    caches: Arc<Caches>,
    /// The namespace that is watched; all of them where unset.
    namespace: Option<String>,
    calls: mpsc::UnboundedSender<Call>,
    opened_at: Instant,
    /// Whom the last look for ends came to, where there are more.
    last_end: Mutex<Option<ObjectKey>>,
}

/// A part of the cluster with watches and a controller of its own: all of it, or one namespace.
struct Scope {
    context: Arc<Context>,
    called: mpsc::UnboundedReceiver<Call>,
    /// Of the objects and of the Secrets.
    listed: [oneshot::Receiver<()>; 2],
    namespaces_listed: Option<oneshot::Receiver<()>>,
}

/// An object is to be looked at.
enum Call {
    /// Something happened.
    Soon(ObjectKey),
    /// It is its turn at the queue of grants.
    First(ObjectKey),
}

/// What runs beside the controllers, and ends after them.
#[derive(Default)]
struct Background {
    ends: CancellationToken,
    tasks: JoinSet<Option<()>>,
}

impl Background {
    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(self.ends.clone().run_until_cancelled_owned(task));
    }

    /// Returns with what one of the tasks panicked with.
    async fn panicked(&mut self) -> Box<dyn Any + Send> {
        loop {
            match self.tasks.join_next().await.map(|ended| ended.map_err(JoinError::try_into_panic)) {
                Some(Err(Ok(panic))) => return panic,
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    }

    async fn end(mut self) {
        self.ends.cancel();
        let all_end = async { while self.tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(BACKGROUND_LIMIT, all_end).await;
    }
}

/// Watches and reconciles until `shutdown` is cancelled, then writes every token that is held, and returns within about
/// two and a half seconds. What fails on the way is retried.
pub async fn run(settings: Settings, shutdown: CancellationToken) {
    let namespaces: Vec<Option<String>> = match settings.namespaces.as_slice() {
        [] => vec![None],
        named => named.iter().cloned().map(Some).collect(),
    };
    let beat = Mutex::new((settings.clock.now(), settings.clock.moment()));
    let api_server = ApiServer::new(settings.client.clone());
    let (memories, digest_key) = (Memories::default(), RwLock::new(None));
    let retries = Mutex::new(Retries::new(BETWEEN_FAILING));
    let has_stored_digest_key = AtomicBool::new(settings.own_namespace.is_none());
    let shared = Arc::new(Shared { settings, api_server, memories, digest_key, has_stored_digest_key, retries, beat });
    let mut background = Background::default();
    // Before the first reconcile, so that a restart finds every digest known.
    match shutdown.run_until_cancelled(shared.fetch_digest_key()).await {
        Some(true) => {}
        Some(false) => background.spawn(Arc::clone(&shared).keep_fetching_digest_key()),
        None => return,
    }

    let scopes: Vec<Scope> =
        namespaces.into_iter().map(|namespace| open(&shared, namespace, &mut background)).collect();
    let contexts: Arc<[Arc<Context>]> = scopes.iter().map(|scope| Arc::clone(&scope.context)).collect();
    background.spawn(watches::beat(Arc::clone(&shared), Arc::clone(&contexts)));
    background.spawn(watches::look_for_ends(Arc::clone(&contexts)));
    background.spawn(watches::follow_leadership(Arc::clone(&shared), Arc::clone(&contexts)));
    background.spawn(watches::call_from_queue(Arc::clone(&shared), Arc::clone(&contexts)));

    let (metrics, grants) = (&shared.settings.metrics, Arc::clone(&shared.settings.grants));
    metrics.show_queue(move || grants.load());
    for context in contexts.iter() {
        metrics.show_objects(Arc::clone(&context.caches));
    }

    let running = Box::pin(control(&shared, scopes, &shutdown));
    tokio::select! {
        () = Box::pin(stop_after(running, &shared, &contexts, &shutdown)) => {}
        // Without one of them the process would look well, and do nothing.
        panic = background.panicked() => std::panic::resume_unwind(panic),
    }
    background.end().await;
}

fn open(shared: &Arc<Shared>, namespace: Option<String>, background: &mut Background) -> Scope {
    let (calls, called) = mpsc::unbounded_channel();
    let (objects_are_listed, objects_listed) = oneshot::channel();
    let (secrets_are_listed, secrets_listed) = oneshot::channel();
    let is_whole_cluster = namespace.is_none();
    let (shared, caches) = (Arc::clone(shared), Arc::new(Caches::default()));
    let context =
        Arc::new(Context { shared, caches, namespace, calls, opened_at: Instant::now(), last_end: Mutex::default() });
    background.spawn(Arc::clone(&context).watch_secrets(secrets_are_listed));
    background.spawn(Arc::clone(&context).watch_objects(objects_are_listed));
    let namespaces_listed = is_whole_cluster.then(|| {
        let (are_listed, listed) = oneshot::channel();
        background.spawn(Arc::clone(&context).watch_namespaces(are_listed));
        listed
    });
    Scope { context, called, listed: [objects_listed, secrets_listed], namespaces_listed }
}

/// Runs every scope's controller, each as soon as its own watches have shown what there is: a namespace that cannot be
/// watched holds up no other. The process is ready once all of them have.
async fn control(shared: &Shared, scopes: Vec<Scope>, shutdown: &CancellationToken) {
    let behind = AtomicUsize::new(scopes.len());
    let controllers = scopes.into_iter().map(|Scope { context, mut called, listed, namespaces_listed }| {
        let behind = &behind;
        async move {
            let in_step = async {
                futures::future::join_all(listed).await;
                if let Some(listed) = namespaces_listed {
                    let _ = tokio::time::timeout(NAMESPACES_LISTED_WITHIN, listed).await;
                }
                if behind.fetch_sub(1, Ordering::AcqRel) == 1 {
                    tracing::info!("the watches are in step");
                    shared.settings.probes.set_ready(true);
                }
                // Where the API server was away at the start: without it what is unchanged may look changed.
                if !shared.has_stored_digest_key.load(Ordering::Acquire) {
                    let _ = tokio::time::timeout(DIGEST_KEY_WITHIN, Box::pin(shared.fetch_digest_key())).await;
                }
                shared.settings.in_step.cancel();
                // Who looks before leading looks at everything again.
                let _ = tokio::time::timeout(ELECTED_WITHIN, shared.settings.leadership.tried()).await;
            };
            let mut work = Work::default();
            if shutdown.run_until_cancelled(collect_until(in_step, &mut called, &mut work)).await.is_none() {
                return;
            }
            // Before it was known who leads, none could be sent to the queue of grants.
            context.call_all(work.into_waiting());
            reconcile_all(context, called, Work::default(), shutdown.clone()).await;
        }
    });
    futures::future::join_all(controllers).await;
}

/// Who is called before anybody can be looked at is kept once, however often that is: it may be for long.
async fn collect_until(
    ready: impl Future<Output = ()>,
    called: &mut mpsc::UnboundedReceiver<Call>,
    work: &mut Work<ObjectKey>,
) {
    let mut ready = std::pin::pin!(ready);
    loop {
        tokio::select! {
            biased;
            () = &mut ready => break,
            Some(call) = called.recv() => take(call, work),
        }
    }
    // A list calls faster than this is polled: who was left here would be looked at for nothing while it waits for its turn.
    take_all(called, work);
}

/// Those that are there by now.
fn take_all(called: &mut mpsc::UnboundedReceiver<Call>, work: &mut Work<ObjectKey>) {
    while let Ok(call) = called.try_recv() {
        take(call, work);
    }
}

fn take(call: Call, work: &mut Work<ObjectKey>) {
    match call {
        Call::Soon(key) => work.call(key),
        Call::First(key) => work.call_first(key),
    }
}

/// Runs until shutdown, then gives what is under way the time that a stop may take.
async fn stop_after(
    mut running: impl Future<Output = ()> + Unpin,
    shared: &Arc<Shared>,
    contexts: &[Arc<Context>],
    shutdown: &CancellationToken,
) {
    // Shutdown ends both at the same moment, and whichever is seen first: what has ended must not be polled again.
    let ended_already = tokio::select! {
        () = &mut running => true,
        () = shutdown.cancelled() => false,
    };
    let deadline = Instant::now() + STOP_LIMIT;
    // A pass is dropped then, and with it the answer that it waits for.
    shared.settings.grants.close(deadline);
    shared.api_server.let_all_through();
    let in_time = ended_already || tokio::time::timeout_at(deadline, running).await.is_ok();
    if in_time {
        shared.settings.grants.close(deadline + LAST_WRITES_LIMIT);
    } else {
        tracing::warn!("requests were still under way at the stop");
    }
    let written = tokio::time::timeout_at(deadline + LAST_WRITES_LIMIT, write_held(shared, contexts)).await;
    if written.is_err() || !shared.memories.holding().is_empty() {
        tracing::warn!("tokens that were issued could not be written in time");
    }
}

/// Writes what is held, each again and again, as long as the caller waits; side by side, so that one write that hangs holds up no other, nor its
/// next attempt.
async fn write_held(shared: &Arc<Shared>, contexts: &[Arc<Context>]) {
    let write = |key: ObjectKey| async move {
        while shared.memories.is_holding(&key) {
            for context in contexts.iter().filter(|context| context.watches(key.namespace())) {
                // What the API server refuses, once more, it would refuse again.
                match Box::pin(reconcile(&key, Arc::clone(context))).await {
                    Ok(action) if !action.is_within(STOP_LIMIT + LAST_WRITES_LIMIT) => return,
                    _ => {}
                }
            }
            if shared.memories.is_holding(&key) {
                tokio::time::sleep(LAST_WRITE_RETRY).await;
            }
        }
    };
    futures::stream::iter(shared.memories.holding()).for_each_concurrent(LAST_WRITES_AT_ONCE, write).await;
}

/// Looks at whoever is called or due, so many at a time, until shutdown; from then on only at those that hold a token, all of them and at
/// once: another's slow request must not keep it from being written. Returns as the last look ends. To drop it ends those that are under way.
async fn reconcile_all(
    context: Arc<Context>,
    mut called: mpsc::UnboundedReceiver<Call>,
    mut work: Work<ObjectKey>,
    shutdown: CancellationToken,
) {
    let concurrency = context.shared.settings.grants.concurrency().get().saturating_add(CONCURRENCY_BESIDE_GRANTS);
    let places = Arc::new(Semaphore::new(usize::from(concurrency)));
    let most = usize::from(concurrency) + CONCURRENCY_OF_WHAT_HANGS;
    // Neither takes the room of the other: those whose turn it was may hang, too.
    let has_room_for_turns = |passes: &JoinSet<Passed>| passes.len() < most + CONCURRENCY_OF_TURNS;
    let has_room = |work: &Work<ObjectKey>, passes: &JoinSet<Passed>| passes.len() < most + work.turning();
    let next = |work: &mut Work<ObjectKey>, passes: &JoinSet<Passed>| {
        let turn = has_room_for_turns(passes).then(|| work.start_turn()).flatten();
        turn.or_else(|| has_room(work, passes).then(|| work.start()).flatten())
    };
    let (mut passes, mut stops) = (JoinSet::new(), false);
    let mut those_unseen = tokio::time::interval_at(Instant::now() + ASKED_UNSEEN_EVERY, ASKED_UNSEEN_EVERY);
    those_unseen.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut round = 0_usize;
    while !shutdown.is_cancelled() || !passes.is_empty() {
        while let Ok(place) = Arc::clone(&places).try_acquire_owned()
            && let Some(key) = next(&mut work, &passes)
        {
            if shutdown.is_cancelled() && !context.shared.memories.is_holding(&key) {
                work.done(key, Action::await_change(), Instant::now());
                continue;
            }
            // A task of its own: only those that move are polled.
            passes.spawn(pass_over(key, place, Arc::clone(&context)));
        }
        let due = work.next_timer();
        let may_start =
            (work.is_turn() && has_room_for_turns(&passes)) || (work.is_waiting() && has_room(&work, &passes));
        tokio::select! {
            Some(ended) = passes.join_next() => match ended {
                Ok(Passed { key, action, hung }) => {
                    work.note_pace(&key, hung);
                    work.done(key, action, Instant::now());
                }
                Err(ended) => if let Ok(panic) = ended.try_into_panic() {
                    std::panic::resume_unwind(panic);
                }
            },
            Some(call) = called.recv() => take(call, &mut work),
            _ = places.acquire(), if may_start => {}
            _ = those_unseen.tick(), if work.waiting().next().is_some() => {
                context.queue_those_due(work.waiting(), round);
                round = round.wrapping_add(1);
            }
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => work.call_due(Instant::now()),
            () = shutdown.cancelled(), if !stops => {
                stops = true;
                let held = context.shared.memories.holding().into_iter();
                held.filter(|key| context.watches(key.namespace())).for_each(|key| work.call_first(key));
            }
        }
        take_all(&mut called, &mut work);
    }
}

/// What hangs, at an admission webhook say, gives up its place and holds up no other.
async fn pass_over(key: ObjectKey, place: OwnedSemaphorePermit, context: Arc<Context>) -> Passed {
    let (result, took_long) = in_place(place, Box::pin(reconcile(&key, Arc::clone(&context)))).await;
    // A conflict is an answer; and nobody calls an object that is gone.
    let hung =
        took_long && result.as_ref().is_err_and(|error| !error.is_conflict()) && context.caches.uid(&key).is_some();
    let action = result.unwrap_or_else(|error| error_policy(&key, &error, &context));
    Passed { key, action, hung }
}

/// What came of a pass over an object.
struct Passed {
    key: ObjectKey,
    action: Action,
    /// It took long, and to no avail.
    hung: bool,
}

/// Both Secrets, as just read.
#[derive(Default)]
struct Sight {
    credentials: Option<Secret>,
    target: Option<Secret>,
}

impl Sight {
    /// The token in the target, where it is one that we wrote.
    fn stored_token(&self, o: &Observed, spec: &Resolved) -> Option<&str> {
        secret::stored_token(self.target.as_ref()?, o.target.facts()?, spec)
    }
}

async fn reconcile(key: &ObjectKey, context: Arc<Context>) -> Result<Action, Error> {
    // What is held for one that is gone comes first: who was made anew under its name may find that token there.
    let left = context.shared.memories.left(key).and_then(|left| left.uid());
    let delivered = if left.is_some() && left != context.caches.uid(key) {
        context.deliver_left(key).await
    } else {
        Ok(Action::await_change())
    };
    let Some(object) = context.caches.credential(key) else { return delivered };
    let again = delivered.unwrap_or_else(|_| Action::requeue(LEFT_RETRY));
    let started = Instant::now();
    let span = Span::of_look(key.namespace(), key.name(), object.meta().uid.as_deref());
    let result = match object.read() {
        Ok(credential) => {
            let result = span.around(Box::pin(context.pass(&credential))).await;
            if let Err(error) = &result {
                span.around(Box::pin(context.tell_despite(error, &owner_of(&credential)))).await;
            }
            let was_called = span.around(Box::pin(context.end_pass(&credential))).await;
            match (result, was_called) {
                (Ok(action), true) => Ok(context.answer_call(key).unwrap_or(action).sooner(again)),
                (Err(error), true) => {
                    context.call(key.clone());
                    Err(error)
                }
                (result, false) => result.map(|action| action.sooner(again)),
            }
        }
        Err(metadata) => {
            context.shared.settings.grants.withdraw(key);
            span.around(Box::pin(context.report_broken(&metadata))).await.map(|action| action.sooner(again))
        }
    };
    span.ended(Error::outcome(&result), result.is_err());
    context.shared.settings.metrics.reconcile(&result, started.elapsed().as_secs_f64());
    result
}

/// Whether somebody else wrote meanwhile, as may happen. What is answered so each time is a refusal.
fn is_of_chance(error: &Error, failures: u32) -> bool {
    error.is_conflict() && failures < FAILURES_BEFORE_REPORT
}

/// What the API server did not do is tried again soon: a token may be waiting to be written.
fn error_policy(key: &ObjectKey, error: &Error, context: &Context) -> Action {
    // Of an object that is gone nothing is remembered but a token that is still to be written.
    let left = || context.shared.memories.left(key).and_then(|left| left.uid());
    let Some(uid) = context.caches.uid(key).or_else(left) else { return Action::await_change() };
    let (failures, is_told) = context.shared.memories.with(key, &uid, |memory| {
        memory.api_failures = memory.api_failures.saturating_add(1);
        // Of what is being deleted the watch tells a moment later.
        let is_chance = is_of_chance(error, memory.api_failures) || (error.is_not_found() && memory.api_failures == 1);
        let is_told = !is_chance && !memory.told_of_failures;
        memory.told_of_failures |= is_told;
        (memory.api_failures, is_told)
    });
    if is_told {
        tracing::warn!(namespace = %key.namespace(), name = %key.name(), reason = error.reason(), %error, "trying again");
    }
    Action::requeue(context.next_pass(key, failures))
}

impl Context {
    async fn pass(&self, credential: &MoneyGoCredential) -> Result<Action, Error> {
        let mut o = self.observe(credential);
        let is_unread = self.remember(&o.owner, |memory| {
            (memory.passing, memory.left) = (true, None);
            memory.unread
        });
        let mut sight = Sight::default();
        let mut permit = None;
        let mut plan = plan::plan(&o);
        // Who cannot be read would only take others' turns.
        if plan == Plan::LookToMint && !is_unread {
            permit = self.admit(&o);
            if permit.is_none() {
                return self.wait(&o).await;
            }
        }
        if matches!(plan, Plan::Look | Plan::LookToMint) {
            sight = self.look_or_leave(&mut o).await?;
            if self.has_moved_on(&o) {
                return Ok(Action::requeue(Duration::ZERO));
            }
            plan = plan::plan(&o);
        }
        let action = match plan {
            Plan::Mint(cause) => {
                let Some(permit) = permit.or_else(|| self.admit(&o)) else { return self.wait(&o).await };
                self.mint(&mut o, cause, sight, permit).await?
            }
            plan => {
                drop(permit);
                self.shared.settings.grants.withdraw(&key_of(&o.owner));
                self.remember(&o.owner, |memory| memory.waits_since = None);
                self.carry_out(&mut o, plan, sight).await?
            }
        };
        self.remember(&o.owner, Memory::has_passed);
        Ok(action)
    }

    /// Looks; and where that cannot be, leaves the queue of grants until it can.
    async fn look_or_leave(&self, o: &mut Observed) -> Result<Sight, Error> {
        let looked = self.look(o).await;
        self.remember(&o.owner, |memory| memory.unread = looked.is_err());
        if looked.is_err() {
            self.shared.settings.grants.withdraw(&key_of(&o.owner));
        }
        looked
    }

    /// Whether the watch has shown since that the object is gone or being deleted, or has another spec: what was read says nothing of that.
    fn has_moved_on(&self, o: &Observed) -> bool {
        self.newest_of(&o.owner).is_none_or(|(credential, ..)| {
            credential.metadata.generation != o.generation || self.is_ending(&o.owner, &credential) != o.ending
        })
    }

    /// Nobody calls an object that is gone: what is left of it is settled as its last pass ends. Returns whether the object was
    /// called meanwhile.
    async fn end_pass(&self, credential: &MoneyGoCredential) -> bool {
        let owner = owner_of(credential);
        let (holds, was_called) = self.remember(&owner, |memory| {
            let was_passing = std::mem::replace(&mut memory.passing, false);
            (was_passing && memory.held.is_some(), std::mem::replace(&mut memory.called, false))
        });
        if self.is_there(&owner) {
            if let Some(version) = self.caches.version(&key_of(&owner)) {
                self.shared.memories.shown(&key_of(&owner), &version);
            }
            return was_called;
        }
        if holds {
            // What comes and goes meanwhile must not take it along.
            self.shared.memories.leave(&key_of(&owner), credential);
            let mut o = self.observe(credential);
            let sight = self.look(&mut o).await.unwrap_or_default();
            let _ = self.deliver_to_what_remains(credential, &mut o, sight).await;
            if self.shared.memories.is_holding(&key_of(&owner)) {
                self.shared.settings.grants.forget(&key_of(&owner));
                return true;
            }
        }
        self.forget(&key_of(&owner));
        // Who was made anew under its name may have waited in the queue that it was just taken out of.
        was_called || self.caches.uid(&key_of(&owner)).is_some()
    }

    /// Answers a call that came during a pass, now that the pass has ended: mostly it was for the pass's own writes, there is
    /// nothing more to do and to say, and another pass would only find that. Else the object is called again.
    fn answer_call(&self, key: &ObjectKey) -> Option<Action> {
        let settled = self.caches.credential(key).and_then(Guarded::credential).and_then(|credential| {
            let o = self.observe(&credential);
            let action = self.as_it_rests(&o, &credential);
            self.shared.memories.shown(key, &Version::of(&credential.metadata));
            action
        });
        if settled.is_none() {
            self.call(key.clone());
        }
        settled
    }

    fn as_it_rests(&self, o: &Observed, credential: &MoneyGoCredential) -> Option<Action> {
        let Plan::Rest(report, again_at) = plan::plan(o) else { return None };
        let told = observe::newest_status(credential, &self.shared.memories.of(&key_of(&o.owner), &o.owner.uid));
        (report.status(&told, o.now) == told).then(|| {
            self.warn_of_sharing(o);
            self.requeue_at(o, again_at)
        })
    }

    /// Forgets an object that is gone, and a token that is held for it; but not in the middle of its pass.
    fn forget(&self, key: &ObjectKey) {
        self.shared.settings.grants.forget(key);
        if self.shared.memories.forget(key) {
            Self::log_dropped(key);
        }
    }

    /// Carries out what takes no permit.
    async fn carry_out(&self, o: &mut Observed, plan: Plan, sight: Sight) -> Result<Action, Error> {
        match plan {
            Plan::Rest(report, again_at) => {
                let resumes = plan::resumes(o) && report.issued_at.is_some();
                self.report_and_adopt(o, *report, again_at, resumes).await
            }
            Plan::Forget => {
                if !o.held.as_ref().is_some_and(|held| held.is_stored) {
                    Self::log_dropped(&key_of(&o.owner));
                }
                self.remember(&o.owner, |memory| memory.held = None);
                Ok(Action::requeue(Duration::ZERO))
            }
            Plan::Store => match self.remember(&o.owner, |memory| memory.held.clone()) {
                Some(held) => self.store(o, held, sight).await,
                None => Ok(Action::requeue(Duration::ZERO)),
            },
            Plan::Mend(issue) => self.mend(o, *issue, sight).await,
            Plan::Stand => Ok(Action::await_change()),
            // None of these is planned after a look. If one were, the next pass begins anew.
            Plan::Look | Plan::LookToMint | Plan::Mint(_) => Ok(Action::requeue(LEFT_RETRY)),
        }
    }

    fn log_dropped(key: &ObjectKey) {
        tracing::warn!(
            namespace = %key.namespace(), name = %key.name(), reason = "TokenDropped",
            "a token that was issued is dropped: it has expired, or there is nothing left to write it to"
        );
    }

    fn is_there(&self, owner: &Owner) -> bool {
        self.caches.is_live(&owner.namespace, &owner.name, &owner.uid)
    }

    fn remember<T>(&self, owner: &Owner, f: impl FnOnce(&mut Memory) -> T) -> T {
        self.shared.memories.with(&key_of(owner), &owner.uid, f)
    }

    fn now(&self) -> Timestamp {
        self.shared.settings.clock.now()
    }

    /// Looks again at a moment. What was planned by a clock that is wrong for a moment, between two comparisons of the clocks,
    /// is planned again once they are compared.
    fn requeue_at(&self, o: &Observed, at: Option<Timestamp>) -> Action {
        let now = self.now();
        let is_off = self.shared.is_clock_off() || now.duration_since(o.now).abs() > SLOWEST_PASS;
        let longest = if is_off { HEARTBEAT } else { LONGEST_SLEEP };
        at.map_or_else(Action::await_change, |at| {
            let wait = at.duration_since(now).max(SignedDuration::ZERO);
            Action::requeue(Duration::try_from(wait).unwrap_or_default().min(longest))
        })
    }

    /// When an object is looked at again that the API server kept from it: that its token has ended is told at that moment, and it is replaced when that is
    /// due. A status that cannot be written tells of an earlier token than the target does.
    fn next_pass(&self, key: &ObjectKey, failures: u32) -> Duration {
        let Some(credential) = self.caches.credential(key).and_then(Guarded::credential) else {
            return schedule::next_pass(failures, None);
        };
        let o = self.observe(&credential);
        let until = |at| schedule::until(at, o.now);
        let marks = o.target.facts().map(|facts| &facts.marks);
        let told_end = o.status.expires_at.filter(|_| status::says_ready(&o.status)).and_then(until);
        let marked_end = marks.and_then(|marks| until(marks.life?.expires_at));
        let due = marks.and_then(|marks| until(marks.refresh_at?));
        let end = told_end.into_iter().chain(marked_end).min();
        let wait = schedule::next_pass(failures, end);
        // However many others wait, no living token is stepped over.
        let latest = end.map(schedule::latest_pass).into_iter().chain(due).min();
        // A token that waits to be written stands behind nobody.
        if wait >= FAILING_FOR_LONG && o.held.is_none() {
            let mut retries = self.shared.retries.lock().unwrap_or_else(PoisonError::into_inner);
            return retries.join(Instant::now(), wait, latest);
        }
        latest.map_or(wait, |latest| wait.min(latest))
    }

    fn admit(&self, o: &Observed) -> Option<Permit<ObjectKey>> {
        let (grants, key) = (&self.shared.settings.grants, key_of(&o.owner));
        grants.admit(&key, plan::urgency(o)).or_else(|| o.held.as_ref().and_then(|_| grants.admit_last(&key)))
    }
}

fn owner_of(credential: &MoneyGoCredential) -> Owner {
    Owner {
        namespace: credential.namespace().unwrap_or_default(),
        name: credential.name_any(),
        uid: credential.uid().unwrap_or_default(),
    }
}

fn key_of(owner: &Owner) -> ObjectKey {
    ObjectKey::new(&owner.namespace, &owner.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_was_called_before_anybody_can_be_looked_at_is_kept_to_the_last() {
        let (calls, mut called) = mpsc::unbounded_channel();
        let key = |number: usize| ObjectKey::new("shop", &number.to_string());
        for number in 0..1_000 {
            calls.send(Call::Soon(key(number))).unwrap();
            calls.send(Call::First(key(number % 10))).unwrap();
        }
        let mut work = Work::default();
        collect_until(std::future::ready(()), &mut called, &mut work).await;
        assert!(called.try_recv().is_err(), "each of them would be looked at once more");
        assert_eq!(work.into_waiting().len(), 1_000);
    }
}
