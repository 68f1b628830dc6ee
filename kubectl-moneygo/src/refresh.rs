//! The commands `refresh`, `suspend` and `resume`.

mod verdict;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::bail;
use futures::{Stream, StreamExt as _, stream};
use kube::ResourceExt as _;
use kube::api::DynamicObject;
use kube::runtime::{WatchStreamExt as _, watcher};
use moneygo_operator::crd::{MoneyGoCredential, annotation};
use serde_json::json;
use tokio::time::Instant;

use crate::Verdict;
use crate::args::{ClusterArgs, RefreshArgs, Which};
use crate::cluster::{self, Cluster, Time};
use crate::doctor::operators::{self, Health};
use crate::terminal::{Colour, Look, Spinner, harmless, tell};
use crate::words;
use verdict::{Outcome, judge};

/// Objects that are changed at the same time.
const CONCURRENCY: usize = 16;

/// How long one object is waited for, where nobody says.
const TIMEOUT: Duration = Duration::from_mins(1);
/// And by how many objects a second the operator gets on: half of what its limiter allows where nobody sets it.
const PACE: usize = 10;

/// What was in the operator's way before is believed after this long: it may have been taken away just before the request.
const PATIENCE: Duration = Duration::from_secs(5);

/// An object that waits for its token.
struct Waiting {
    /// As it was when the token was asked for.
    before: MoneyGoCredential,
    /// As the watch saw it last.
    now: MoneyGoCredential,
    request: String,
}

impl Waiting {
    fn answer(&self, patient: bool) -> Option<Outcome> {
        judge(&self.before, &self.request, &self.now, patient)
    }
}

type Key = (String, String);

fn key(object: &MoneyGoCredential) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// Asks for new tokens, waits for them, and says what came of it.
pub async fn refresh(args: &ClusterArgs, wanted: &RefreshArgs) -> anyhow::Result<Verdict> {
    let cluster = Cluster::connect(args).await?;
    let objects = cluster.which(&wanted.which).await?;
    if objects.is_empty() {
        bail!("there is no such MoneyGoCredential");
    }
    let mut report = Report { look: Look::of_stdout(), well: true, everywhere: cluster.everywhere };
    let (suspended, objects): (Vec<_>, Vec<_>) =
        objects.into_iter().partition(|object| object.spec.suspend == Some(true));
    for object in &suspended {
        report.tell(&key(object), &Outcome::Suspended);
    }
    if objects.is_empty() {
        return Ok(report.verdict());
    }
    for warning in absent_operators(&cluster, wanted, &objects).await {
        tell(&Look::of_stderr().paint(Colour::Doubtful, "warning:"), &warning);
    }
    let (mut waiting, refused) = request(&cluster, objects).await?;
    for (key, message) in refused {
        report.tell(&key, &Outcome::Refused { message });
    }
    let events = watch(&cluster, &wanted.which);
    let timeout = wanted.timeout.unwrap_or_else(|| timeout_for(waiting.len()));
    follow(std::pin::pin!(events), &mut waiting, Instant::now() + timeout, &mut report).await?;
    for (key, one) in &waiting {
        report.tell(key, &one.answer(false).unwrap_or_else(|| Outcome::unanswered(one.now.status.as_ref(), timeout)));
    }
    Ok(report.verdict())
}

fn timeout_for(objects: usize) -> Duration {
    TIMEOUT + Duration::from_secs(u64::try_from(objects / PACE).unwrap_or(u64::MAX / 2))
}

/// Tells of each object as its answer is seen, and takes it out of those that wait. Returns when none waits, or at the deadline.
async fn follow(
    mut events: impl Stream<Item = anyhow::Result<Event>> + Unpin,
    waiting: &mut BTreeMap<Key, Waiting>,
    deadline: Instant,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut spinner = Spinner::new();
    let mut paces = tokio::time::interval(Spinner::PACE);
    let patience = Instant::now() + PATIENCE;
    let mut patient = true;
    while !waiting.is_empty() {
        let answered: Vec<_> = tokio::select! {
            () = tokio::time::sleep_until(deadline) => break,
            () = tokio::time::sleep_until(patience), if patient => {
                patient = false;
                waiting.iter().filter_map(|(key, one)| Some((key.clone(), one.answer(patient)?))).collect()
            }
            _ = paces.tick() => {
                spinner.turn(&waits(waiting, deadline));
                Vec::new()
            }
            event = events.next() => {
                let Some(event) = event else { bail!("the watch of the objects ended") };
                answer(event?, waiting, patient).into_iter().collect()
            }
        };
        for (key, outcome) in answered {
            waiting.remove(&key);
            spinner.clear();
            report.tell(&key, &outcome);
        }
    }
    Ok(())
}

/// What an event tells of an object that waits.
fn answer(event: Event, waiting: &mut BTreeMap<Key, Waiting>, patient: bool) -> Option<(Key, Outcome)> {
    let (object, is_gone) = match event {
        Event::Apply(object) | Event::InitApply(object) => (cluster::read(object), false),
        Event::Delete(object) => (cluster::read(object), true),
        Event::Init | Event::InitDone => return None,
    };
    let key = key(&object);
    let one = waiting.get_mut(&key)?;
    one.now = object;
    let outcome = if is_gone { Some(Outcome::Gone) } else { one.answer(patient) };
    Some((key, outcome?))
}

type Event = watcher::Event<DynamicObject>;

/// The objects as they change. A watch that fails is tried again, but for one that is not allowed.
fn watch(cluster: &Cluster, which: &Which) -> impl Stream<Item = anyhow::Result<Event>> + use<> {
    let mut config = watcher::Config::default();
    if let [name] = which.names.as_slice() {
        config = config.fields(&format!("metadata.name={name}"));
    }
    if let Some(selector) = &which.selector {
        config = config.labels(selector);
    }
    let events = watcher::watcher(cluster.objects_in_view(), config).default_backoff();
    let usable = events.filter_map(async |event| match event {
        Ok(event) => Some(Ok(event)),
        Err(watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error))
            if matches!(&error, kube::Error::Api(status) if matches!(status.code, 401 | 403)) =>
        {
            Some(Err(cluster::explain("watch the objects", &error)))
        }
        Err(_) => None,
    });
    usable.boxed()
}

/// Sets the annotation on each. Where some are refused, the others go on; where all are, there is nothing to wait for.
async fn request(cluster: &Cluster, objects: Vec<MoneyGoCredential>) -> anyhow::Result<Requested> {
    let asking = objects.into_iter().map(|before| async move {
        let request = cluster::now().to_string();
        let patch = json!({"metadata": {"annotations": {annotation::REFRESH_REQUESTED: request}}});
        let patched = cluster.patch(&before, patch).await;
        // What fails between the listing and the request is no answer to it.
        (key(&before), patched.map(|now| Waiting { before: now.clone(), now, request }))
    });
    let asked: Vec<_> = stream::iter(asking).buffer_unordered(CONCURRENCY).collect().await;
    let (mut waiting, mut refused, mut first) = (BTreeMap::new(), Vec::new(), None);
    for (key, asked) in asked {
        match asked {
            Ok(one) => drop(waiting.insert(key, one)),
            Err(error) => {
                refused.push((key, format!("{error:#}")));
                first.get_or_insert(error);
            }
        }
    }
    match first {
        Some(error) if waiting.is_empty() => Err(error),
        _ => Ok((waiting, refused)),
    }
}

/// Those that wait, and those that could not be asked for, with why.
type Requested = (BTreeMap<Key, Waiting>, Vec<(Key, String)>);

fn waits(waiting: &BTreeMap<Key, Waiting>, deadline: Instant) -> String {
    let left = deadline.saturating_duration_since(Instant::now());
    let whom = match waiting.keys().next() {
        Some((_, name)) if waiting.len() == 1 => name.clone(),
        _ => words::count(waiting.len(), "object"),
    };
    format!("waiting for {whom} ({} s left)", left.as_secs())
}

/// What keeps anybody from answering, as far as it can be seen.
async fn absent_operators(cluster: &Cluster, wanted: &RefreshArgs, objects: &[MoneyGoCredential]) -> Vec<String> {
    let place = wanted.operator.operator_namespace.as_deref();
    let (seen, time) = tokio::join!(operators::gather(&cluster.client, place), Time::of(&cluster.client));
    let mut warnings: Vec<_> = objects
        .iter()
        .filter_map(|object| match operators::health_for(&seen, object, &time) {
            Health::Well | Health::Unknown(_) => None,
            Health::Ill(why) => Some(format!("nobody may answer: {why}")),
        })
        .collect();
    warnings.dedup();
    warnings
}

/// Sets or unsets `spec.suspend` of each. One that is refused keeps none of the others.
pub async fn suspend(args: &ClusterArgs, which: &Which, suspend: bool) -> anyhow::Result<Verdict> {
    let cluster = &Cluster::connect(args).await?;
    let objects = cluster.which(which).await?;
    if objects.is_empty() {
        bail!("there is no such MoneyGoCredential");
    }
    let wanted = objects.len();
    let changing = objects.into_iter().map(|object| async move {
        let (namespace, name) = key(&object);
        let name = words::name(&namespace, &name, cluster.everywhere);
        (name, set_suspend(cluster, &object, suspend).await)
    });
    let mut changed = stream::iter(changing).buffered(CONCURRENCY);
    let (mut refused, bad) = (0, Look::of_stdout().either("✗", "FAILED"));
    while let Some((name, outcome)) = changed.next().await {
        let line = match outcome {
            Ok(what) => format!("{name} {what}\n"),
            Err(error) if wanted == 1 => return Err(error),
            Err(error) => {
                refused += 1;
                let why = format!("{error:#}");
                format!("{} {name}: {}\n", Look::of_stdout().paint(Colour::Bad, bad), harmless(&why))
            }
        };
        // Where nobody reads it any more, the exit code still tells.
        let _ = crate::status::print(&line);
    }
    match refused {
        0 => Ok(Verdict::Well),
        _ if refused == wanted => bail!("none of {} could be changed", words::count(wanted, "object")),
        _ => Ok(Verdict::Unwell),
    }
}

/// What became of it, in words.
async fn set_suspend(cluster: &Cluster, object: &MoneyGoCredential, suspend: bool) -> anyhow::Result<String> {
    let was = object.spec.suspend.unwrap_or_default();
    if was != suspend {
        // Gone, where it is not true: as it was before anybody suspended it.
        let value = if suspend { json!(true) } else { json!(null) };
        cluster.patch(object, json!({"spec": {"suspend": value}})).await?;
    }
    let word = match (suspend, was == suspend) {
        (true, false) => "suspended",
        (true, true) => "was suspended already",
        (false, false) => "resumed",
        (false, true) => "was not suspended",
    };
    Ok(format!("{word}{}", stays(object, suspend)))
}

fn stays(object: &MoneyGoCredential, suspend: bool) -> String {
    let expires = object.status.as_ref().and_then(|status| status.expires_at).filter(|_| suspend);
    expires.map_or_else(String::new, |at| format!("; its token ends {} ({at})", words::from_now(at, cluster::now())))
}

/// Says what came of each.
struct Report {
    look: Look,
    everywhere: bool,
    well: bool,
}

impl Report {
    fn tell(&mut self, (namespace, name): &Key, outcome: &Outcome) {
        let name = words::name(namespace, name, self.everywhere);
        let (good, bad) = self.look.either(("✓", "✗"), ("ok", "FAILED"));
        let mark = if outcome.is_good() {
            self.look.paint(Colour::Good, good)
        } else {
            self.well = false;
            self.look.paint(Colour::Bad, bad)
        };
        // Where nobody reads it any more, the exit code still tells.
        let _ = crate::status::print(&format!("{mark} {name}: {}\n", harmless(&outcome.words(cluster::now()))));
    }

    fn verdict(&self) -> Verdict {
        if self.well { Verdict::Well } else { Verdict::Unwell }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It is told at the deadline, and nobody is asked again.
    #[test]
    fn what_the_watch_saw_last_is_kept() {
        let seen = |message: &str| {
            let condition = json!({"type": "Refreshed", "status": "False", "reason": "EndpointUnavailable",
                "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z"});
            let object = json!({
                "apiVersion": "money-go.com/v1alpha1", "kind": "MoneyGoCredential",
                "metadata": {"name": "a", "namespace": "n", "uid": "u"},
                "spec": {"credentialsRef": {"name": "c"}}, "status": {"conditions": [condition]},
            });
            serde_json::from_value::<DynamicObject>(object).unwrap()
        };
        let before = cluster::read(seen("before"));
        let one = Waiting { now: before.clone(), before, request: "r".to_owned() };
        let mut waiting = BTreeMap::from([(key(&one.before), one)]);
        assert!(answer(Event::Apply(seen("after")), &mut waiting, true).is_none(), "an outage ends");
        let status = waiting.values().next().unwrap().now.status.as_ref();
        let told = Outcome::unanswered(status, TIMEOUT).words(cluster::now());
        assert!(told.contains("it says EndpointUnavailable: after"), "{told}");
    }

    #[test]
    fn more_objects_are_waited_for_longer() {
        assert_eq!(timeout_for(1), Duration::from_mins(1));
        assert_eq!(timeout_for(10_000), Duration::from_secs(1060));
    }
}
