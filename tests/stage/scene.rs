//! What watches show of the objects and Secrets of a namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use futures::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::Secret;
pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::DynamicObject;
use kube::core::ApiResource;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, ResourceExt as _};
use moneygo_operator::crd::{MoneyGoCredential, annotation};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// How many objects and Secrets an account of the scene shows.
const SHOWN: usize = 8;

/// The objects and Secrets, by name, as they were seen last.
#[derive(Clone, Default)]
pub struct Scene {
    objects: BTreeMap<String, DynamicObject>,
    secrets: BTreeMap<String, Secret>,
    /// Every target Secret with a token in it that was seen, and when. Oldest first.
    pub history: Vec<(SystemTime, Secret)>,
    /// Every message that a condition was seen with.
    pub messages: BTreeSet<String>,
}

impl Scene {
    /// An object, where it is there and can be read.
    pub fn credential(&self, name: &str) -> Option<MoneyGoCredential> {
        self.objects.get(name)?.clone().try_parse().ok()
    }

    /// An object in whatever shape it is.
    pub fn any_credential(&self, name: &str) -> Option<&DynamicObject> {
        self.objects.get(name)
    }

    /// The objects that can be read.
    pub fn credentials(&self) -> impl Iterator<Item = MoneyGoCredential> {
        self.objects.values().filter_map(|object| object.clone().try_parse().ok())
    }

    /// A Secret.
    pub fn secret(&self, name: &str) -> Option<&Secret> {
        self.secrets.get(name)
    }

    /// The Secret's token under the default key.
    pub fn token(&self, secret: &str) -> Option<String> {
        token_in(self.secret(secret)?, "access_token")
    }

    /// A condition of an object.
    pub fn condition(&self, name: &str, kind: &str) -> Option<Condition> {
        condition(&self.credential(name)?, kind)
    }

    /// Every state in which a Secret with a token was seen.
    pub fn history_of(&self, secret: &str) -> impl Iterator<Item = &(SystemTime, Secret)> {
        self.history.iter().filter(move |(_, seen)| seen.name_any() == secret)
    }
}

impl fmt::Display for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} objects, {} Secrets:", self.objects.len(), self.secrets.len())?;
        for object in self.objects.values().take(SHOWN) {
            let shown = json!({
                "name": object.metadata.name, "generation": object.metadata.generation,
                "annotations": object.metadata.annotations, "spec": object.data.get("spec"), "status": object.data.get("status"),
            });
            writeln!(f, "{shown:#}")?;
        }
        for secret in self.secrets.values().take(2 * SHOWN) {
            let sizes = secret
                .data
                .iter()
                .flatten()
                .map(|(key, value)| (key.clone(), json!(format!("{} bytes", value.0.len()))));
            let metadata = &secret.metadata;
            let shown = json!({
                "name": metadata.name, "resourceVersion": metadata.resource_version, "labels": metadata.labels,
                "annotations": metadata.annotations, "owners": metadata.owner_references.as_ref().map(Vec::len),
                "data": sizes.collect::<serde_json::Map<String, Value>>(),
            });
            writeln!(f, "{shown}")?;
        }
        Ok(())
    }
}

/// No test takes so long, on the slowest machine. What stands still for ever would hold up all that come after it, and say nothing.
const STANDSTILL: Duration = Duration::from_mins(10);

/// A scene that follows what happens.
pub struct Seen {
    scene: watch::Receiver<Scene>,
    watches: [AbortHandle; 2],
    /// Dropped with the scene.
    _alive: mpsc::Sender<()>,
}

/// Ends the test binary, with what was seen last, where a scene is still followed after [`STANDSTILL`].
fn end_a_standstill(namespace: String, scene: watch::Receiver<Scene>) -> mpsc::Sender<()> {
    let (alive, gone) = mpsc::channel();
    std::thread::spawn(move || {
        if gone.recv_timeout(STANDSTILL) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("{namespace}: the test stands still since {STANDSTILL:?}. {}", scene.borrow().clone());
            std::process::exit(101);
        }
    });
    alive
}

impl Drop for Seen {
    fn drop(&mut self) {
        self.watches.iter().for_each(AbortHandle::abort);
    }
}

impl Seen {
    /// Follows a namespace. Both watches have begun when it returns.
    pub async fn watch(client: &Client, namespace: &str) -> Self {
        let (sender, scene) = watch::channel(Scene::default());
        let (objects_sender, secrets_sender) = (sender.clone(), sender);
        let resource = ApiResource::erase::<MoneyGoCredential>(&());
        let objects: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
        let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let (mut objects, mut secrets) = (Box::pin(events(objects)), Box::pin(events(secrets)));
        until_listed(&mut objects, |event| fold_objects(&objects_sender, event)).await;
        until_listed(&mut secrets, |event| fold_secrets(&secrets_sender, event)).await;
        let objects = tokio::spawn(objects.for_each(move |event| {
            fold_objects(&objects_sender, event);
            std::future::ready(())
        }));
        let secrets = tokio::spawn(secrets.for_each(move |event| {
            fold_secrets(&secrets_sender, event);
            std::future::ready(())
        }));
        let alive = end_a_standstill(namespace.to_owned(), scene.clone());
        Self { scene, watches: [objects.abort_handle(), secrets.abort_handle()], _alive: alive }
    }

    /// Waits until `look` finds something; `None` at the limit.
    pub async fn wait<T>(&self, limit: Duration, mut look: impl FnMut(&Scene) -> Option<T>) -> Option<T> {
        let mut scene = self.scene.clone();
        let mut found = None;
        let waiting = scene.wait_for(|scene| {
            found = look(scene);
            found.is_some()
        });
        let _ = tokio::time::timeout(limit, waiting).await;
        found
    }

    /// The scene as it is now.
    pub fn now(&self) -> Scene {
        self.scene.borrow().clone()
    }
}

fn events<K>(api: Api<K>) -> impl Stream<Item = Event<K>>
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + fmt::Debug + Send + 'static,
{
    // During an outage the watch fails, and is tried again.
    watcher::watcher(api, watcher::Config::default())
        .backoff(Steadily)
        .filter_map(|event| std::future::ready(event.ok()))
}

/// Tries again every 100 ms.
struct Steadily;

impl Iterator for Steadily {
    type Item = Duration;
    fn next(&mut self) -> Option<Duration> {
        Some(Duration::from_millis(100))
    }
}

impl Backoff for Steadily {
    fn reset(&mut self) {}
}

async fn until_listed<K>(events: &mut (impl Stream<Item = Event<K>> + Unpin), fold: impl Fn(Event<K>)) {
    while let Some(event) = events.next().await {
        let is_listed = matches!(event, Event::InitDone);
        fold(event);
        if is_listed {
            return;
        }
    }
}

fn fold_objects(scene: &watch::Sender<Scene>, event: Event<DynamicObject>) {
    scene.send_modify(|scene| match event {
        Event::Init => scene.objects.clear(),
        Event::InitApply(object) | Event::Apply(object) => {
            let conditions = object.data.pointer("/status/conditions").and_then(Value::as_array);
            let messages = conditions.into_iter().flatten().filter_map(|condition| condition["message"].as_str());
            scene.messages.extend(messages.map(ToOwned::to_owned));
            scene.objects.insert(object.name_any(), object);
        }
        Event::Delete(object) => {
            scene.objects.remove(&object.name_any());
        }
        Event::InitDone => {}
    });
}

fn fold_secrets(scene: &watch::Sender<Scene>, event: Event<Secret>) {
    let now = now();
    scene.send_modify(|scene| match event {
        Event::Init => scene.secrets.clear(),
        Event::InitApply(secret) | Event::Apply(secret) => {
            if secret.annotations().contains_key(annotation::ISSUED_AT) {
                scene.history.push((now, secret.clone()));
            }
            scene.secrets.insert(secret.name_any(), secret);
        }
        Event::Delete(secret) => {
            scene.secrets.remove(&secret.name_any());
        }
        Event::InitDone => {}
    });
}

/// The wall clock, which the stand-in's ledger follows, too.
#[allow(clippy::disallowed_methods, reason = "a test measures")]
pub fn now() -> SystemTime {
    SystemTime::now()
}

/// A condition of an object, by type.
pub fn condition(object: &MoneyGoCredential, kind: &str) -> Option<Condition> {
    let conditions = &object.status.as_ref()?.conditions;
    conditions.iter().find(|condition| condition.type_ == kind).cloned()
}

/// Whether an object is Ready, and says so of its present generation.
pub fn is_ready(object: &MoneyGoCredential) -> bool {
    let is_true = |found: Condition| found.status == "True" && found.observed_generation == object.metadata.generation;
    condition(object, "Ready").is_some_and(is_true)
}

/// Whether `one` is a later version than `other`: what a watch shows may be behind what a write returned.
pub fn is_newer<K: kube::ResourceExt>(one: &K, other: &K) -> bool {
    let number = |object: &K| object.resource_version().and_then(|version| version.parse::<u64>().ok());
    number(one) > number(other)
}

/// The token in a Secret, under the default key.
pub fn token_of(secret: &Secret) -> String {
    token_in(secret, "access_token").unwrap_or_else(|| panic!("the Secret {} holds no token", secret.name_any()))
}

/// The text under a key of a Secret.
pub fn token_in(secret: &Secret, key: &str) -> Option<String> {
    String::from_utf8(secret.data.as_ref()?.get(key)?.0.clone()).ok()
}

/// When the token in a Secret ends, by its annotation.
pub fn expires_at(secret: &Secret) -> SystemTime {
    let at: jiff::Timestamp = secret.annotations()[annotation::EXPIRES_AT].parse().unwrap();
    at.into()
}
