//! The watches, and what runs beside them for as long as the process does.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Namespace;
use kube::Resource as _;
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Call, Context, HEARTBEAT, Settings, Shared};
use crate::apply;
use crate::caches::{Guarded, ObjectKey};
use crate::clock::Moment;
use crate::crd::MoneyGoCredential;
use crate::digest::DigestKey;
use crate::error::{Error, has_code, reason_of};
use crate::plan::{self, Plan};
use crate::secret::{SecretMeta, Version};
use crate::watch::{Shown, watch};

/// How many objects whose tokens have ended are told of at the same time, where no pass did.
const ENDS_TOLD_AT_ONCE: usize = 8;
/// Of the objects that wait for a look, so many are asked at a time whether they are due: each takes some 30 µs.
const MOST_ASKED_UNSEEN: usize = 500;
/// By how much the clocks may drift apart between two heartbeats before it is a jump.
const JUMP: SignedDuration = SignedDuration::from_secs(2);
/// The first wait between two attempts to watch.
const WATCH_RETRY_FIRST: Duration = Duration::from_millis(500);
/// The longest wait between two attempts to watch.
const WATCH_RETRY_LAST: Duration = Duration::from_secs(5);
/// A watch that lasted for as long works: if it ends, the next attempt is made soon.
const WATCH_LASTS: Duration = Duration::from_secs(30);
/// A watch that is open again and has lasted for as long is back.
const WATCH_WORKS: Duration = Duration::from_secs(2);
/// The longest wait between two attempts to get the key of the digests.
const DIGEST_KEY_RETRY: Duration = Duration::from_mins(1);

impl Context {
    pub(super) fn watches(&self, namespace: &str) -> bool {
        self.namespace.as_ref().is_none_or(|watched| watched == namespace)
    }

    pub(super) async fn watch_objects(self: Arc<Self>, listed: oneshot::Sender<()>) {
        let Settings { client, label_selector, .. } = &self.shared.settings;
        let shown = watch::<Guarded>(client.clone(), self.namespace.as_deref(), label_selector.clone());
        follow(&self.followed("MoneyGoCredentials", "moneygocredentials"), shown, listed, |event| {
            let shown = match &event {
                Event::Apply(object) => Some((ObjectKey::of(object), Version::of(object.meta()))),
                _ => None,
            };
            // The watch shows what this process wrote: there is nothing to look at.
            let own = shown.as_ref().is_some_and(|(key, version)| self.shared.memories.wrote_status(key, version));
            let holders = self.holders_that_may_go(&event);
            let folded = self.caches.fold_object(event);
            for holder in holders {
                let key = ObjectKey::of(&holder);
                // It is gone, or was made anew in between.
                let is_gone = self.caches.uid(&key) != holder.metadata.uid;
                if is_gone && self.shared.memories.leave(&key, &holder) {
                    self.settle(key);
                }
            }
            for key in folded.gone {
                if self.shared.settings.leadership.is_leader() {
                    tracing::info!(namespace = %key.namespace(), name = %key.name(), reason = "Gone", "the object is gone: it gets no more tokens");
                }
                if self.shared.memories.left(&key).is_none() {
                    self.forget(&key);
                    // Its timer ends with an empty pass.
                    self.call(key);
                } else {
                    self.settle(key);
                }
            }
            if let Some((key, version)) = shown {
                self.shared.memories.shown(&key, &version);
            }
            if !own {
                self.call_all(folded.look_at);
            }
        })
        .await;
    }

    /// Has what is held for an object that is gone written.
    fn settle(&self, key: ObjectKey) {
        self.shared.settings.grants.forget(&key);
        self.call(key);
    }

    /// The objects that an event may take away while a token is held for them.
    fn holders_that_may_go(&self, event: &Event<Guarded>) -> Vec<MoneyGoCredential> {
        let memories = &self.shared.memories;
        let keys = match event {
            Event::Delete(object) | Event::Apply(object) | Event::InitApply(object) => vec![ObjectKey::of(object)],
            Event::InitDone => memories.holding(),
            Event::Init => return Vec::new(),
        };
        let holding = keys.into_iter().filter(|key| memories.is_holding(key));
        holding.filter_map(|key| self.caches.credential(&key).and_then(Guarded::credential)).collect()
    }

    pub(super) async fn watch_secrets(self: Arc<Self>, listed: oneshot::Sender<()>) {
        let client = self.shared.settings.client.clone();
        let shown = watch::<SecretMeta>(client, self.namespace.as_deref(), None);
        let what = self.followed("Secrets", "secrets");
        follow(&what, shown, listed, |event| self.call_all(self.caches.fold_secret(event))).await;
    }

    pub(super) async fn watch_namespaces(self: Arc<Self>, listed: oneshot::Sender<()>) {
        let shown = watch::<PartialObjectMeta<Namespace>>(self.shared.settings.client.clone(), None, None);
        let what = self.followed("Namespaces", "namespaces");
        follow(&what, shown, listed, |event| self.call_all(self.caches.fold_namespace(&event))).await;
    }

    fn followed(&self, what: &'static str, resource: &'static str) -> Followed {
        Followed { what, failing: self.shared.settings.metrics.watches_failing(resource) }
    }

    pub(super) fn call_all(&self, keys: impl IntoIterator<Item = ObjectKey>) {
        for key in keys {
            if !self.queue_new(&key) {
                self.call(key);
            }
        }
    }

    pub(super) fn call(&self, key: ObjectKey) {
        if self.shared.memories.defer_call(&key) {
            return;
        }
        // Its turn may have come during its pass.
        let is_turn = self.shared.settings.grants.has_called(&key);
        // Only a controller that has ended does not listen.
        let _ = self.calls.send(if is_turn { Call::First(key) } else { Call::Soon(key) });
    }

    /// Puts objects that are due into the queue of grants while they still wait for a look, which may be behind many that hang. At most
    /// [`MOST_ASKED_UNSEEN`] are asked; `round` says which.
    pub(super) fn queue_those_due<'a>(&self, waiting: impl Iterator<Item = &'a ObjectKey>, round: usize) {
        let (now, grants) = (self.now(), &self.shared.settings.grants);
        if grants.is_outage() || !self.shared.settings.leadership.is_leader() {
            return;
        }
        let due: Vec<_> = waiting.filter(|key| self.caches.may_be_due(key, now) && !grants.has(key)).collect();
        let parts = due.len().div_ceil(MOST_ASKED_UNSEEN).max(1);
        for key in due.chunks(MOST_ASKED_UNSEEN).nth(round % parts).unwrap_or_default() {
            let Some(credential) = self.caches.credential(key).and_then(Guarded::credential) else { continue };
            let o = self.observe(&credential);
            // A status that cannot be written is behind its Secret, which takes a look. That tells when it is due.
            let marked = o.target.facts().and_then(|facts| facts.marks.refresh_at);
            let is_due = marked.is_none_or(|at| at <= o.now) && matches!(plan::plan(&o), Plan::Look | Plan::LookToMint);
            // What is held needs no leave to be written.
            if is_due && o.held.is_none() && self.may_take_turns(key, &o.owner.uid) {
                grants.enqueue(key, plan::urgency(&o));
            }
        }
    }

    /// Not during its pass, nor while its Secrets cannot be read: a turn would be for nothing.
    fn may_take_turns(&self, key: &ObjectKey, uid: &str) -> bool {
        let memory = self.shared.memories.of(key, uid);
        !memory.passing && !memory.unread
    }

    /// A new object that can have a token goes to the queue of grants, and is called when its turn comes: a pass before that
    /// could do no more.
    fn queue_new(&self, key: &ObjectKey) -> bool {
        if !self.caches.is_new(key) {
            return false;
        }
        let Some(credential) = self.caches.credential(key).and_then(Guarded::credential) else { return false };
        let o = self.observe(&credential);
        let may = self.may_take_turns(key, &o.owner.uid);
        may && plan::plan(&o) == Plan::LookToMint && self.shared.settings.grants.enqueue(key, plan::urgency(&o))
    }
}

/// Between two attempts to watch: half a second, doubling to five. kube's own waits reach a minute, for which nothing that
/// changes is noticed after the API server is back.
struct WatchBackoff {
    wait: Duration,
    failed_at: Option<Instant>,
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let now = Instant::now();
        if self.failed_at.replace(now).is_some_and(|failed_at| now > failed_at + WATCH_LASTS) {
            self.wait = WATCH_RETRY_FIRST;
        }
        let wait = self.wait;
        self.wait = (wait * 2).min(WATCH_RETRY_LAST);
        Some(wait)
    }
}

impl Backoff for WatchBackoff {
    /// kube calls this for each event, and each attempt to list begins with one. A watch that keeps ending soon after its
    /// list is no success either: time alone tells.
    fn reset(&mut self) {}
}

fn backoff() -> WatchBackoff {
    WatchBackoff { wait: WATCH_RETRY_FIRST, failed_at: None }
}

/// What a watch shows, in words, and how many such watches fail.
pub(super) struct Followed {
    what: &'static str,
    failing: Gauge,
}

impl Followed {
    fn fails(&self, error: &watcher::Error) {
        self.failing.inc();
        let hint = if is_unknown_kind(error) { ": is the CRD installed?" } else { "" };
        tracing::warn!(what = self.what, error = watch_failure(error), "the watch fails, and is tried again{hint}");
    }

    fn is_back(&self) {
        self.failing.dec();
        tracing::info!(what = self.what, "the watch is back");
    }
}

/// Hands on what a watch shows, and says once when it fails and once when it is back. Tells `listed` of the first whole list, once that is handed on.
pub(super) async fn follow<K>(
    watch: &Followed,
    shown: impl Stream<Item = Result<Shown<K>, watcher::Error>>,
    listed: oneshot::Sender<()>,
    mut fold: impl FnMut(Event<K>),
) {
    let (mut failing, mut listed) = (false, Some(listed));
    // Since when it is open again.
    let mut open_since = None;
    let mut shown = std::pin::pin!(shown.backoff(backoff()));
    loop {
        let works_from = open_since.filter(|_| failing).map(|since| since + WATCH_WORKS);
        let next = async {
            match works_from {
                Some(at) => tokio::time::timeout_at(at, shown.next()).await,
                None => Ok(shown.next().await),
            }
        };
        let Ok(next) = next.await else {
            failing = false;
            watch.is_back();
            continue;
        };
        let Some(next) = next else { return };
        match next {
            // What opens may end at once.
            Ok(Shown::Open) => open_since = Some(Instant::now()),
            Ok(Shown::Event(event)) => {
                // A list says nothing of the watch behind it.
                if matches!(event, Event::Apply(_) | Event::Delete(_)) && std::mem::take(&mut failing) {
                    watch.is_back();
                }
                let is_whole = matches!(event, Event::InitDone);
                fold(event);
                if is_whole && let Some(listed) = listed.take() {
                    let _ = listed.send(());
                }
            }
            Err(error) => {
                open_since = None;
                if !std::mem::replace(&mut failing, true) {
                    watch.fails(&error);
                }
            }
        }
    }
}

/// Only a kind that the API server does not know has no list.
fn is_unknown_kind(error: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(cause) | watcher::Error::WatchStartFailed(cause)) = error else {
        return false;
    };
    has_code(cause, 404)
}

/// A watch error's own text can quote what could not be parsed.
pub(super) fn watch_failure(error: &watcher::Error) -> String {
    let (doing, cause) = match error {
        watcher::Error::InitialListFailed(cause) => ("list", cause),
        watcher::Error::WatchStartFailed(cause) => ("start to watch", cause),
        watcher::Error::WatchFailed(cause) => ("watch", cause),
        watcher::Error::WatchError(status) => {
            return format!("the API server ended the watch: {} {}", status.code, reason_of(&status.reason));
        }
        watcher::Error::NoResourceVersion => return "the API server gave a list without a resourceVersion".to_owned(),
    };
    Error::of(doing, cause).to_string()
}

impl Shared {
    fn clocks(&self) -> (Timestamp, Moment) {
        (self.settings.clock.now(), self.settings.clock.moment())
    }

    fn last_beat(&self) -> MutexGuard<'_, (Timestamp, Moment)> {
        self.beat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a clock jumped since they were compared last.
    pub(super) fn is_clock_off(&self) -> bool {
        is_jump(*self.last_beat(), self.clocks())
    }

    /// Gets the key of the digests. Until it can be had, a key of this process's own serves: what was digested before
    /// the start is unknown then, but what changes from here on is noticed.
    ///
    /// Returns whether there is nothing more to try.
    pub(super) async fn fetch_digest_key(&self) -> bool {
        let fetched = match &self.settings.own_namespace {
            Some(namespace) => Some(self.api_server.digest_key(namespace).await),
            None => None,
        };
        let mut key = self.digest_key.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(Ok(Some(stored))) = fetched {
            *key = Some(stored);
            self.has_stored_digest_key.store(true, Ordering::Release);
            return true;
        }
        if key.is_none() {
            *key = apply::ephemeral_digest_key();
            match &fetched {
                Some(Err(error)) => {
                    tracing::warn!(%error, "the key for digests cannot be had yet: one of this process serves");
                }
                Some(Ok(_)) => {
                    tracing::warn!(secret = apply::DIGEST_KEY_SECRET, "holds no key: delete it, and it is made anew");
                }
                None => tracing::warn!(
                    "no namespace for the key for digests: one of this process serves (--leader-elect-namespace names one)"
                ),
            }
        }
        fetched.is_none()
    }

    pub(super) async fn keep_fetching_digest_key(self: Arc<Self>) {
        let mut wait = Duration::from_secs(1);
        while !self.fetch_digest_key().await {
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(DIGEST_KEY_RETRY);
        }
    }

    pub(super) fn digest_key(&self) -> Option<DigestKey> {
        self.digest_key.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn call_everyone(contexts: &[Arc<Context>]) {
    for context in contexts {
        context.call_all(context.caches.keys());
    }
}

fn call_one(contexts: &[Arc<Context>], key: &ObjectKey) {
    for context in contexts.iter().filter(|context| context.watches(key.namespace())) {
        context.call(key.clone());
    }
}

/// On becoming the leader, looks at everything: a standby asked for nothing.
pub(super) async fn follow_leadership(shared: Arc<Shared>, contexts: Arc<[Arc<Context>]>) {
    let mut changed = shared.settings.leadership.changed();
    loop {
        let leads = *changed.borrow_and_update();
        shared.settings.metrics.set_leader(leads);
        if leads {
            call_everyone(&contexts);
        }
        if changed.changed().await.is_err() {
            // Nobody stands for election: it stays as it is.
            return std::future::pending().await;
        }
    }
}

pub(super) async fn call_from_queue(shared: Arc<Shared>, contexts: Arc<[Arc<Context>]>) {
    let grants = Arc::clone(&shared.settings.grants);
    grants.run(|key| call_one(&contexts, key)).await;
}

/// Compares the clocks, and looks at everything again after a jump: timers follow the monotonic clock, which stands still
/// while the machine is suspended and knows nothing of a wall clock that is set.
pub(super) async fn beat(shared: Arc<Shared>, contexts: Arc<[Arc<Context>]>) {
    loop {
        shared.settings.probes.beat();
        tokio::time::sleep(HEARTBEAT).await;
        // Read once: what jumped between two readings would be in neither.
        let now = shared.clocks();
        let jumped = is_jump(std::mem::replace(&mut *shared.last_beat(), now), now);
        for key in shared.settings.grants.overlong() {
            call_one(&contexts, &key);
        }
        if jumped {
            tracing::info!("a clock jumped: looking at everything again");
            call_everyone(&contexts);
        }
    }
}

/// Looks, as often as the heart beats, for tokens that have ended with nobody told. What the API server takes long for must not hold up the heart.
pub(super) async fn look_for_ends(contexts: Arc<[Arc<Context>]>) {
    loop {
        tokio::time::sleep(HEARTBEAT).await;
        // A namespace in turn with the others: in one of them all may hang.
        let of = |context: &Arc<Context>| {
            let context = Arc::clone(context);
            context.next_ends().into_iter().enumerate().map(move |(place, key)| (place, key, Arc::clone(&context)))
        };
        let mut ends: Vec<_> = contexts.iter().flat_map(of).collect();
        ends.sort_by_key(|(place, ..)| *place);
        let tell = |(_, key, context): (usize, ObjectKey, Arc<Context>)| async move { context.tell_of_end(&key).await };
        futures::stream::iter(ends).for_each_concurrent(ENDS_TOLD_AT_ONCE, tell).await;
    }
}

/// Whether the wall clock or the boot clock went by another length than the clock of the timers.
fn is_jump((wall_before, before): (Timestamp, Moment), (wall, now): (Timestamp, Moment)) -> bool {
    let signed = |length: Duration| SignedDuration::try_from(length).unwrap_or(SignedDuration::MAX);
    let monotonic = signed(now.monotonic.saturating_duration_since(before.monotonic));
    let boot = signed(now.boot.saturating_sub(before.boot));
    [wall.duration_since(wall_before), boot].into_iter().any(|passed| passed.saturating_sub(monotonic).abs() > JUMP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Lines;

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_went_by_another_length_than_the_timers_jumped() {
        let (wall, before) =
            (Timestamp::UNIX_EPOCH, Moment { monotonic: Instant::now(), boot: Duration::from_secs(9) });
        let jumps = |wall_millis, boot_millis| {
            let wall_after = wall + SignedDuration::from_millis(wall_millis);
            let monotonic = before.monotonic + Duration::from_secs(10);
            let after = Moment { monotonic, boot: before.boot + Duration::from_millis(boot_millis) };
            is_jump((wall, before), (wall_after, after))
        };
        assert!(!jumps(10_000, 10_000));
        assert!(!jumps(11_900, 10_000), "slewed by less than two seconds");
        assert!(jumps(12_100, 10_000) && jumps(7_900, 10_000), "the wall clock was set");
        assert!(jumps(10_000, 70_000), "the machine was suspended for a minute, and its wall clock not set yet");
        assert!(jumps(-31_536_000_000, 10_000), "back by a year");
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_fails_is_told_of_once_and_once_when_it_is_back() {
        let log = Lines::default();
        let lines = log.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || lines.clone()).finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let fails = || Err(watcher::Error::NoResourceVersion);
        let object = || serde_json::from_str::<SecretMeta>("{\"metadata\": {}}").unwrap();
        for (shown, failed, back) in [
            // What is open may end at once; what lasts is back; so is what shows what has changed.
            (vec![fails(), Ok(Shown::Open), fails(), Ok(Shown::Open), fails()], 1, 0),
            (vec![fails(), fails(), Ok(Shown::Open)], 1, 1),
            (vec![fails(), Ok(Shown::Event(Event::InitDone)), fails()], 1, 0),
            (vec![fails(), Ok(Shown::Open), Ok(Shown::Event(Event::Apply(object()))), fails()], 2, 1),
        ] {
            let shown = futures::stream::iter(shown).chain(futures::stream::pending());
            let (listed, _listed) = oneshot::channel();
            let watch = Followed { what: "Secrets", failing: Gauge::default() };
            let following = follow(&watch, shown, listed, |_: Event<SecretMeta>| {});
            let _ = tokio::time::timeout(WATCH_LASTS, following).await;
            assert_eq!(watch.failing.get(), i64::try_from(failed - back).unwrap());
            let text = String::from_utf8(std::mem::take(&mut *log.0.lock().unwrap())).unwrap();
            assert_eq!(text.matches("the watch fails").count(), failed, "{text}");
            assert_eq!(text.matches("the watch is back").count(), back, "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_is_tried_again_within_five_seconds() {
        let mut backoff = backoff();
        let millis = |wait: Option<Duration>| wait.map_or(0, |wait| wait.as_millis());
        let waits: Vec<_> = (0..6).map(|_| millis(backoff.next())).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 5000, 5000]);
        backoff.reset();
        assert_eq!(millis(backoff.next()), 5000, "a list that begins is no success");
        tokio::time::advance(WATCH_LASTS * 2).await;
        assert_eq!([(); 2].map(|()| millis(backoff.next())), [500, 1000], "it lasted");
    }
}
