//! What all cells share: the servers, a stand-in for Money-Go of each kind, and watches that see all that ever stood in a Secret.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use fake_moneygo::{FakeMoneyGo, Mode};
use futures::{Stream, StreamExt as _};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DynamicObject, ObjectMeta};
use kube::core::ApiResource;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, ResourceExt as _};
use moneygo_controlplane::ControlPlane;
use moneygo_operator::crd::{MoneyGoCredential, annotation};
use tokio::sync::watch;

use crate::canary;

/// The generated CRD.
const CRD: &str = include_str!("../../../crds/moneygocredentials.money-go.com.yaml");
/// What Money-Go's documentation gives as its example.
pub const LIFETIME: Duration = Duration::from_hours(30 * 24);

/// What a new grant does to the tokens before it: each kind of provider that Money-Go may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Provider {
    /// Nothing.
    Independent,
    /// It revokes them.
    Revoking,
    /// It is the same token.
    Repeating,
    /// It revokes the oldest of more than two.
    TwoAlive,
}

impl Provider {
    /// Each of them.
    pub const ALL: [Self; 4] = [Self::Independent, Self::Revoking, Self::Repeating, Self::TwoAlive];

    fn mode(self) -> Mode {
        match self {
            Self::Independent => Mode::Independent,
            Self::Revoking => Mode::RevokePrevious,
            Self::Repeating => Mode::SameWhileAlive,
            Self::TwoAlive => Mode::MaxLive(2),
        }
    }

    fn index(self) -> usize {
        Self::ALL.iter().position(|one| *one == self).unwrap_or_default()
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Independent => "independent",
            Self::Revoking => "revoking",
            Self::Repeating => "repeating",
            Self::TwoAlive => "two-alive",
        })
    }
}

impl FromStr for Provider {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        match Self::ALL.iter().find(|one| one.to_string() == text) {
            Some(one) => Ok(*one),
            None => bail!("no provider: {text}"),
        }
    }
}

/// A state in which a Secret was seen.
#[derive(Debug, Clone)]
pub struct Sighting {
    /// When.
    pub at: SystemTime,
    /// Whose.
    pub name: String,
    /// Its `resourceVersion`, which is the store's revision: those of Secrets and of objects are of one order.
    pub revision: u64,
    /// What stood under each key.
    pub values: Vec<String>,
    /// When its token was issued and when it expires, by its annotations.
    pub life: Option<(Timestamp, Timestamp)>,
}

/// An object that said it was Ready.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Whose.
    pub name: String,
    /// Its `resourceVersion`.
    pub revision: u64,
    /// When the token was issued of which it said so.
    pub issued: Timestamp,
}

/// What there is in a namespace.
#[derive(Clone, Default)]
pub struct Scene {
    /// The objects by name.
    pub objects: BTreeMap<String, Arc<DynamicObject>>,
    /// The Secrets by name.
    pub secrets: BTreeMap<String, Arc<Secret>>,
    /// Every state of a Secret that was ever seen.
    pub history: Arc<Vec<Sighting>>,
    /// Every version of an object that said it was Ready.
    pub claims: Arc<Vec<Claim>>,
}

fn revision(meta: &ObjectMeta) -> u64 {
    meta.resource_version.as_ref().and_then(|version| version.parse().ok()).unwrap_or_default()
}

impl Sighting {
    fn of(secret: &Secret) -> Self {
        let time = |key: &str| secret.annotations().get(key).and_then(|text| text.parse().ok());
        let values = secret.data.iter().flatten();
        Self {
            at: now(),
            name: secret.name_any(),
            revision: revision(&secret.metadata),
            values: values.map(|(_, value)| String::from_utf8_lossy(&value.0).into_owned()).collect(),
            life: time(annotation::ISSUED_AT).zip(time(annotation::EXPIRES_AT)),
        }
    }
}

impl Claim {
    fn of(object: &DynamicObject) -> Option<Self> {
        let status = &object.data["status"];
        let ready = status["conditions"].as_array()?.iter().find(|one| one["type"] == "Ready")?;
        (ready["status"] == "True").then_some(())?;
        let issued = status["issuedAt"].as_str()?.parse().ok()?;
        Some(Self { name: object.name_any(), revision: revision(&object.metadata), issued })
    }
}

/// The scenes of all namespaces, as they change.
#[derive(Clone, Default)]
pub struct Scenes(Arc<Mutex<HashMap<String, watch::Sender<Scene>>>>);

impl Scenes {
    /// What is seen of a namespace from here on.
    #[must_use]
    pub fn of(&self, namespace: &str) -> watch::Receiver<Scene> {
        self.with(namespace, watch::Sender::subscribe)
    }

    fn with<T>(&self, namespace: &str, f: impl FnOnce(&watch::Sender<Scene>) -> T) -> T {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        f(all.entry(namespace.to_owned()).or_default())
    }

    /// Forgets a namespace that is done with.
    pub fn forget(&self, namespace: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(namespace);
    }

    fn fold_object(&self, event: Event<DynamicObject>) {
        match event {
            Event::InitApply(object) | Event::Apply(object) => {
                self.with(&object.namespace().unwrap_or_default(), |scene| {
                    scene.send_modify(|scene| {
                        Arc::make_mut(&mut scene.claims).extend(Claim::of(&object));
                        scene.objects.insert(object.name_any(), Arc::new(object.clone()));
                    });
                });
            }
            Event::Delete(object) => self.with(&object.namespace().unwrap_or_default(), |scene| {
                scene.send_modify(|scene| {
                    scene.objects.remove(&object.name_any());
                });
            }),
            Event::Init | Event::InitDone => {}
        }
    }

    fn fold_secret(&self, event: Event<Secret>) {
        match event {
            Event::InitApply(secret) | Event::Apply(secret) => {
                self.with(&secret.namespace().unwrap_or_default(), |scene| {
                    scene.send_modify(|scene| {
                        Arc::make_mut(&mut scene.history).push(Sighting::of(&secret));
                        scene.secrets.insert(secret.name_any(), Arc::new(secret.clone()));
                    });
                });
            }
            Event::Delete(secret) => self.with(&secret.namespace().unwrap_or_default(), |scene| {
                scene.send_modify(|scene| {
                    scene.secrets.remove(&secret.name_any());
                });
            }),
            Event::Init | Event::InitDone => {}
        }
    }
}

/// The wall clock, which the stand-ins' ledgers follow, too.
#[expect(clippy::disallowed_methods, reason = "a harness measures")]
#[must_use]
pub fn now() -> SystemTime {
    SystemTime::now()
}

/// See the module.
pub struct World {
    /// The servers.
    pub plane: ControlPlane,
    /// May do everything.
    pub admin: Client,
    /// What there is.
    pub scenes: Scenes,
    providers: Vec<FakeMoneyGo>,
}

impl World {
    /// Starts it all. Logs are heard from here on.
    ///
    /// # Errors
    /// Where a server does not start.
    pub async fn start() -> anyhow::Result<Self> {
        // A second world of the same process listens already.
        let _ = canary::listen();
        let plane = ControlPlane::start().await?;
        plane.install_crd(CRD).await?;
        let admin = plane.admin().await?;
        let mut providers = Vec::new();
        for provider in Provider::ALL {
            let moneygo = FakeMoneyGo::builder().mode(provider.mode()).expires_in(LIFETIME).any_scope();
            providers.push(moneygo.token_prefix(canary::TOKEN_PREFIX).start().await?);
        }
        let scenes = Scenes::default();
        let resource = ApiResource::erase::<MoneyGoCredential>(&());
        let (of_objects, of_secrets) = (scenes.clone(), scenes.clone());
        tokio::spawn(follow(Api::all_with(admin.clone(), &resource), move |event| of_objects.fold_object(event)));
        tokio::spawn(follow(Api::all(admin.clone()), move |event| of_secrets.fold_secret(event)));
        Ok(Self { plane, admin, scenes, providers })
    }

    /// The stand-in of a kind.
    ///
    /// # Panics
    /// Never: there is one of each kind.
    #[must_use]
    pub fn moneygo(&self, provider: Provider) -> &FakeMoneyGo {
        &self.providers[provider.index()]
    }

    /// Ends it all.
    ///
    /// # Errors
    /// Where something is left behind.
    pub async fn end(self) -> anyhow::Result<()> {
        self.plane.shutdown().await.context("the control plane")
    }
}

fn follow<K>(api: Api<K>, mut fold: impl FnMut(Event<K>)) -> impl Future<Output = ()>
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + fmt::Debug + Send + 'static,
{
    let events: std::pin::Pin<Box<dyn Stream<Item = _> + Send>> =
        Box::pin(watcher::watcher(api, watcher::Config::default()).backoff(Steadily));
    events.filter_map(|event| std::future::ready(event.ok())).for_each(move |event| {
        fold(event);
        std::future::ready(())
    })
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
