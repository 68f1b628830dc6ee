//! The stage on which a scenario is played: the real operator, a real API server, a stand-in for Money-Go, and namespaces
//! that no other scenario touches. Every test file begins with `mod stage;`.
//!
//! ```ignore
//! let stage = Stage::new("example").await;
//! let operator = stage.operator().start().await;
//! stage.subscribe("payments", json!({})).await;
//! stage.ready("payments").await;
//! assert_eq!(stage.grants_of("payments"), 1);
//! operator.stop().await;
//! ```
//!
//! - [`Stage`]: what is there, and what a test does to it. A failure panics, and says where and what was seen last.
//! - [`Scene`]: what a watch has shown of the objects and Secrets; [`Stage::until`] waits for something in it.
//! - [`Operator`]: the process, under exactly the documented RBAC rules.
//!
//! Every test is one for leaks: when a stage is struck, the operators' logs, the statuses and events, and the metadata of the targets are
//! searched for the client secrets and tokens that were on it ([`Canaries`]).
//!
//! Several namespaces of one installation are several stages, each [beside](Setup::beside) the first: they have the stand-in and the operator's own
//! namespace in common, and [`Stage::let_in`] gives a user the rights of the operator in one more.
//!
//! With `MONEYGO_TEST_LOGS=FOLDER` the operators' logs are kept there.
//!
//! Tests of one binary share a control plane and run side by side. Use `#[tokio::test(flavor = "multi_thread")]`: the stand-in and the
//! watch run on the test's own runtime.

#![allow(dead_code, unused_imports, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod admission;
mod canaries;
mod operator;
mod scene;

use std::collections::BTreeSet;
use std::future::Future;
use std::panic::Location;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fake_moneygo::{Builder, FakeMoneyGo, Grant};
use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::rbac::v1::PolicyRule;
use kube::api::{DeleteParams, DynamicObject, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use moneygo_controlplane::{Access, AuditEvent, AuditMark, ControlPlane, User};
use moneygo_operator::crd::{MoneyGoCredential, annotation};
use serde_json::{Value, json};
use tokio::runtime::{Handle, RuntimeFlavor};

pub use admission::Backend;
pub use canaries::{Canaries, base64, base64_within};
pub use operator::{Operator, OperatorBuilder, Stopped};
pub use scene::{Condition, Scene, Seen, condition, expires_at, is_newer, is_ready, now, token_in, token_of};

/// The generated CRD.
pub const CRD: &str = include_str!("../../crds/moneygocredentials.money-go.com.yaml");
const CLUSTER_RBAC: &str = include_str!("../../docs/rbac/cluster.yaml");
const NAMESPACED_RBAC: &str = include_str!("../../docs/rbac/namespaced.yaml");
/// What the manifests of docs/rbac call the operator's own namespace.
const OWN_NAMESPACE: &str = "moneygo-system";
/// For what should take less than a second, on a machine that is busy with other tests.
pub const SOON: Duration = Duration::from_secs(20);
/// For the list of events when a stage is struck. The API server may be away.
const EVENTS_LIMIT: Duration = Duration::from_secs(10);
/// How every token begins.
const TOKEN_PREFIX: &str = "canary-token-of-money-go_";
/// Names a folder into which the operators' logs are copied when a stage is struck.
const KEEP_LOGS: &str = "MONEYGO_TEST_LOGS";
/// The label by which operators that watch the whole cluster tell their objects from those of other tests.
const STAGE_LABEL: &str = "stage";

/// Where a scenario is played. Whatever it makes goes with the control plane.
pub struct Stage {
    /// The servers.
    pub plane: &'static ControlPlane,
    /// May do everything.
    pub admin: Client,
    /// Where the objects are.
    pub namespace: String,
    /// Where the operator keeps its Lease and the key of its digests.
    pub own_namespace: String,
    /// The operator, for RBAC and the audit log.
    pub user: User,
    /// The stand-in for Money-Go.
    pub moneygo: Arc<FakeMoneyGo>,
    is_cluster_wide: bool,
    seen: Seen,
    logs: Mutex<Vec<PathBuf>>,
    client_secrets: Mutex<BTreeSet<String>>,
}

/// How a stage is set up; see [`Stage::setup`].
pub struct Setup {
    name: String,
    plane: Option<&'static ControlPlane>,
    moneygo: Builder,
    beside: Option<(String, Arc<FakeMoneyGo>)>,
    is_cluster_wide: bool,
    also_allowed: Vec<PolicyRule>,
}

impl Setup {
    /// Changes how the stand-in begins.
    pub fn moneygo(mut self, change: impl FnOnce(Builder) -> Builder) -> Self {
        self.moneygo = change(self.moneygo);
        self
    }

    /// The operator watches every namespace, and of all objects those that carry this stage's label, with the rights of
    /// docs/rbac/cluster.yaml. Else it watches the stage's namespace with those of docs/rbac/namespaced.yaml.
    pub fn cluster_wide(mut self) -> Self {
        self.is_cluster_wide = true;
        self
    }

    /// A rule in the stage's namespace, beside the documented ones.
    pub fn allow(mut self, rule: PolicyRule) -> Self {
        self.also_allowed.push(rule);
        self
    }

    /// On servers of its own, which it may stop, pause or crowd. They run until the test binary ends.
    pub async fn own_plane(mut self) -> Self {
        let plane = ControlPlane::start().await.expect("a control plane");
        self.plane = Some(Box::leak(Box::new(plane)));
        self
    }

    /// The servers, the stand-in and the operator's own namespace are those of another stage: one installation, and one namespace more.
    pub fn beside(mut self, other: &Stage) -> Self {
        self.plane = Some(other.plane);
        self.beside = Some((other.own_namespace.clone(), Arc::clone(&other.moneygo)));
        self
    }

    /// Sets it up.
    pub async fn open(self) -> Stage {
        let plane = match self.plane {
            Some(plane) => plane,
            None => ControlPlane::shared().await.expect("the shared control plane"),
        };
        plane.install_crd(CRD).await.expect("the CRD");
        let namespace = plane.namespace(&self.name).await.expect("a namespace");
        let (own_namespace, moneygo) = match self.beside {
            Some(shared) => shared,
            None => (
                plane.namespace(&format!("{}-operator", self.name)).await.expect("a namespace"),
                Arc::new(self.moneygo.start().await.expect("the stand-in for Money-Go")),
            ),
        };
        let access =
            if self.is_cluster_wide { cluster_access(&own_namespace) } else { namespaced(&namespace, &own_namespace) };
        let access = access.namespace(&namespace, self.also_allowed);
        let user = plane.user(&access).await.expect("a user");
        let admin = plane.admin().await.expect("a client");
        let seen = Seen::watch(&admin, &namespace).await;
        Stage {
            plane,
            admin,
            namespace,
            own_namespace,
            user,
            moneygo,
            is_cluster_wide: self.is_cluster_wide,
            seen,
            logs: Mutex::default(),
            client_secrets: Mutex::default(),
        }
    }
}

fn cluster_access(own_namespace: &str) -> Access {
    Access::default().manifests(CLUSTER_RBAC, own_namespace).expect("docs/rbac/cluster.yaml")
}

fn namespaced(namespace: &str, own_namespace: &str) -> Access {
    NAMESPACED_RBAC.split("\n---\n").fold(Access::default(), |access, manifest| {
        let is_own = manifest.contains(&format!("namespace: {OWN_NAMESPACE}"));
        access.manifests(manifest, if is_own { own_namespace } else { namespace }).expect("docs/rbac/namespaced.yaml")
    })
}

impl Stage {
    /// A stage as most tests need it: `name` is for reading logs.
    pub async fn new(name: &str) -> Self {
        Self::setup(name).open().await
    }

    /// A stage to be set up otherwise. The stand-in knows no client, and gives tokens of 30 days.
    pub fn setup(name: &str) -> Setup {
        Setup {
            name: name.to_owned(),
            plane: None,
            moneygo: FakeMoneyGo::builder().token_prefix(TOKEN_PREFIX),
            beside: None,
            is_cluster_wide: false,
            also_allowed: Vec::new(),
        }
    }

    /// The operator, to be started.
    pub fn operator(&self) -> OperatorBuilder<'_> {
        OperatorBuilder::new(self)
    }
}

/// What a test does.
impl Stage {
    /// Everything that an object needs, and the object: a client `name` that Money-Go knows, its id and secret in the Secret
    /// `name-client`, and the object `name` that names it, with whatever else `spec` says.
    pub async fn subscribe(&self, name: &str, spec: Value) -> MoneyGoCredential {
        self.moneygo.add_client(name, &client_secret_of(name));
        self.client_secret(&credentials_name(name), name, &client_secret_of(name)).await;
        self.credential(name, spec).await
    }

    /// Stores a client's id and secret in a Secret, under the default keys; over those that are there. From here on the client secret,
    /// where it is of 16 bytes or more, may be told nowhere.
    pub async fn client_secret(&self, secret: &str, id: &str, client_secret: &str) -> Secret {
        self.client_secrets.lock().unwrap().insert(client_secret.to_owned());
        let value = |text: &str| ByteString(text.as_bytes().to_vec());
        let data = [("client_id".to_owned(), value(id)), ("client_secret".to_owned(), value(client_secret))];
        let metadata = ObjectMeta { name: Some(secret.to_owned()), ..ObjectMeta::default() };
        self.apply_secret(&Secret { metadata, data: Some(data.into()), ..Secret::default() }).await
    }

    /// Server-side apply, as the field manager `test`, over whoever owns the fields.
    pub async fn apply_secret(&self, secret: &Secret) -> Secret {
        let params = PatchParams::apply("test").force();
        self.secrets().patch(&secret.name_any(), &params, &Patch::Apply(secret)).await.expect("a Secret is applied")
    }

    /// Creates an object. Where `spec` names no credentials, they are in the Secret `name-client`.
    pub async fn credential(&self, name: &str, mut spec: Value) -> MoneyGoCredential {
        if spec.get("credentialsRef").is_none() {
            spec["credentialsRef"] = json!({ "name": credentials_name(name) });
        }
        let object = json!({"metadata": {"name": name, "labels": {STAGE_LABEL: self.namespace}}, "spec": spec});
        let object = serde_json::from_value(with_type(object)).expect("an object");
        self.credentials().create(&PostParams::default(), &object).await.expect("an object is created")
    }

    /// The same from a manifest of any shape that the API server takes. Its namespace is the stage's.
    pub async fn credential_from_yaml(&self, manifest: &str) -> DynamicObject {
        let mut object: DynamicObject = serde_yaml::from_str(manifest).expect("a manifest");
        object.metadata.namespace = Some(self.namespace.clone());
        object.labels_mut().insert(STAGE_LABEL.to_owned(), self.namespace.clone());
        self.any_credentials().create(&PostParams::default(), &object).await.expect("an object is created")
    }

    /// A merge patch of an object.
    pub async fn patch(&self, name: &str, patch: Value) -> MoneyGoCredential {
        let params = PatchParams { field_manager: Some("test".to_owned()), ..PatchParams::default() };
        self.credentials().patch(name, &params, &Patch::Merge(patch)).await.expect("an object is patched")
    }

    /// A merge patch of an object's status.
    pub async fn patch_status(&self, name: &str, patch: Value) -> MoneyGoCredential {
        let params = PatchParams { field_manager: Some("test".to_owned()), ..PatchParams::default() };
        self.credentials().patch_status(name, &params, &Patch::Merge(patch)).await.expect("a status is patched")
    }

    /// A merge patch of a Secret.
    pub async fn patch_secret(&self, name: &str, patch: Value) -> Secret {
        let params = PatchParams { field_manager: Some("test".to_owned()), ..PatchParams::default() };
        self.secrets().patch(name, &params, &Patch::Merge(patch)).await.expect("a Secret is patched")
    }

    /// Whoever runs an operator for another namespace may do so for this one, too.
    pub async fn let_in(&self, user: &User) {
        let (watched, _) = NAMESPACED_RBAC.split_once("\n---\n").expect("two Roles");
        let access = Access::default().manifests(watched, &self.namespace).expect("docs/rbac/namespaced.yaml");
        self.plane.allow(user, &access).await.expect("rights");
    }

    /// Whoever runs an operator may keep its Lease and its key in a namespace beside the stage's own.
    pub async fn be_at_home(&self, user: &User, namespace: &str, lease: &str) {
        let (_, own) = NAMESPACED_RBAC.split_once("\n---\n").expect("two Roles");
        let own = own.replace("[moneygo-operator]", &format!("[{lease}]"));
        let access = Access::default().manifests(&own, namespace).expect("docs/rbac/namespaced.yaml");
        self.plane.allow(user, &access).await.expect("rights");
    }

    /// Takes a user's rights in this namespace away.
    pub async fn shut_out(&self, user: &User) {
        self.plane.forbid(user, &self.namespace).await.expect("rights that can be taken");
    }

    /// Sets `money-go.com/refresh-requested`.
    pub async fn request_refresh(&self, name: &str, value: &str) -> MoneyGoCredential {
        self.patch(name, json!({"metadata": {"annotations": {annotation::REFRESH_REQUESTED: value}}})).await
    }

    /// Deletes an object; returns before it is gone.
    pub async fn delete(&self, name: &str) {
        self.credentials().delete(name, &DeleteParams::default()).await.expect("an object is deleted");
    }

    /// Deletes a Secret.
    pub async fn delete_secret(&self, name: &str) {
        self.secrets().delete(name, &DeleteParams::default()).await.expect("a Secret is deleted");
    }
}

/// What is there.
impl Stage {
    /// The objects of the stage's namespace, as the administrator sees them.
    pub fn credentials(&self) -> Api<MoneyGoCredential> {
        Api::namespaced(self.admin.clone(), &self.namespace)
    }

    /// The same in whatever shape they are.
    pub fn any_credentials(&self) -> Api<DynamicObject> {
        let resource = ApiResource::erase::<MoneyGoCredential>(&());
        Api::namespaced_with(self.admin.clone(), &self.namespace, &resource)
    }

    /// The Secrets of the stage's namespace, as the administrator sees them.
    pub fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.admin.clone(), &self.namespace)
    }

    /// An object, as it is now.
    pub async fn get(&self, name: &str) -> MoneyGoCredential {
        self.credentials().get(name).await.expect("an object")
    }

    /// A Secret, as it is now.
    pub async fn secret(&self, name: &str) -> Secret {
        self.secrets().get(name).await.expect("a Secret")
    }

    /// A Secret's token, as it is now.
    pub async fn token(&self, secret: &str) -> String {
        token_of(&self.secret(secret).await)
    }

    /// How often a client was given a token.
    pub fn grants_of(&self, client: &str) -> usize {
        self.moneygo.grants_of(client).len()
    }

    /// Waits until an object is Ready at its present generation.
    #[track_caller]
    pub fn ready(&self, name: &str) -> impl Future<Output = MoneyGoCredential> {
        let what = format!("{name} is Ready");
        let name = name.to_owned();
        self.until_at(Location::caller(), what, SOON, move |scene| scene.credential(&name).filter(is_ready))
    }

    /// Waits until a condition of an object has a status and a reason, said of its present generation.
    #[track_caller]
    pub fn says(&self, name: &str, kind: &str, status: &str, reason: &str) -> impl Future<Output = MoneyGoCredential> {
        let what = format!("{name} says {kind}={status} {reason}");
        let [name, kind, status, reason] = [name, kind, status, reason].map(ToOwned::to_owned);
        self.until_at(Location::caller(), what, SOON, move |scene| {
            let object = scene.credential(&name)?;
            let found = condition(&object, &kind)?;
            let is_current = found.observed_generation == object.metadata.generation;
            (is_current && found.status == status && found.reason == reason).then_some(object)
        })
    }

    /// Waits until `look` finds something in what the watches show, and returns it. Panics at the limit, with what was there.
    #[track_caller]
    pub fn until<T>(
        &self,
        what: impl Into<String>,
        limit: Duration,
        look: impl FnMut(&Scene) -> Option<T>,
    ) -> impl Future<Output = T> {
        self.until_at(Location::caller(), what.into(), limit, look)
    }

    async fn until_at<T>(
        &self,
        place: &'static Location<'static>,
        what: String,
        limit: Duration,
        look: impl FnMut(&Scene) -> Option<T>,
    ) -> T {
        let Some(found) = self.seen.wait(limit, look).await else {
            panic!("{place}: waited {limit:?} until {what}\n{}", self.account());
        };
        found
    }

    /// What the watches show now.
    pub fn scene(&self) -> Scene {
        self.seen.now()
    }

    /// The events about an object, oldest first.
    pub async fn events(&self, name: &str) -> Vec<Event> {
        let api: Api<Event> = Api::namespaced(self.admin.clone(), &self.namespace);
        let mut events = api.list(&ListParams::default()).await.expect("events").items;
        events.retain(|event| event.regarding.as_ref().is_some_and(|about| about.name.as_deref() == Some(name)));
        events.sort_by_key(|event| event.metadata.creation_timestamp.clone());
        events
    }

    /// Waits until there is an event about an object for this reason, and returns the first.
    pub async fn told(&self, name: &str, reason: &str) -> Event {
        let api: Api<Event> = Api::namespaced(self.admin.clone(), &self.namespace);
        let events = watcher::watcher(api, watcher::Config::default()).applied_objects();
        let is_it = |event: &Event| {
            let about = event.regarding.as_ref().and_then(|about| about.name.as_deref());
            about == Some(name) && event.reason.as_deref() == Some(reason)
        };
        let mut found = std::pin::pin!(events.filter_map(async |event| event.ok().filter(is_it)));
        let found = tokio::time::timeout(SOON, found.next()).await;
        found.ok().flatten().unwrap_or_else(|| panic!("no event {reason} about {name}\n{}", self.account()))
    }

    /// A position in the audit log, for [`Stage::requests`].
    pub fn mark(&self) -> AuditMark {
        self.plane.audit_mark().expect("the audit log")
    }

    /// What the operator asked of the API server since: one entry for a request, and one for a watch that began.
    pub fn requests(&self, since: AuditMark) -> Vec<AuditEvent> {
        let events = self.plane.audit_events(since, Some(&self.user.name)).expect("the audit log");
        let counts = |event: &AuditEvent| {
            event.stage == if event.verb == "watch" { "ResponseStarted" } else { "ResponseComplete" }
        };
        events.into_iter().filter(counts).collect()
    }

    /// Those of them that are neither a watch nor about the Lease.
    pub fn requests_beside_watches(&self, since: AuditMark) -> Vec<AuditEvent> {
        let mut requests = self.requests(since);
        requests.retain(|request| request.verb != "watch" && request.resource != "leases");
        requests
    }

    /// What there is, for a test that failed: objects, Secrets without their values, grants, the end of the operators' logs.
    pub fn account(&self) -> String {
        let logs = self.logs.lock().unwrap();
        let logs: Vec<_> = logs.iter().map(|log| operator::tail(log)).collect();
        let grants = self.moneygo.ledger();
        let last: Vec<_> = grants[grants.len().saturating_sub(10)..].iter().map(line_of).collect();
        format!(
            "{}\n{} grants, of which the last:\n{}\n{}",
            self.scene(),
            grants.len(),
            last.join("\n"),
            logs.join("\n")
        )
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(folder) = std::env::var_os(KEEP_LOGS).map(PathBuf::from) {
            for log in self.logs.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                let kept = log.file_name().map(|name| folder.join(name));
                let _ = kept.map(|kept| std::fs::copy(log, kept));
            }
        }
        if !std::thread::panicking() {
            self.nothing_leaked();
        }
    }
}

impl Stage {
    /// Panics where a client secret or a token is told anywhere.
    fn nothing_leaked(&self) {
        let (client_secrets, grants) = (self.client_secrets.lock().unwrap(), self.moneygo.ledger());
        let tokens = grants.iter().map(|grant| grant.token.as_str());
        let canaries = Canaries::of(client_secrets.iter().map(String::as_str).chain(tokens));
        let is_not_in = |place: &str, text: &str| {
            if let Some(line) = canaries.find(text) {
                panic!("{place} holds a secret: {line}");
            }
        };
        for log in self.logs.lock().unwrap().iter() {
            let text = std::fs::read(log).expect("a log");
            is_not_in(&log.display().to_string(), &String::from_utf8_lossy(&text));
        }
        let scene = self.seen.now();
        for message in &scene.messages {
            is_not_in("a status", message);
        }
        for (_, secret) in &scene.history {
            is_not_in("the metadata of a target", &json!(secret.metadata).to_string());
        }
        match self.events_at_the_end() {
            Some(events) => events.iter().for_each(|event| is_not_in("an event", &json!(event).to_string())),
            None => eprintln!("{}: the events could not be listed, and were not searched", self.namespace),
        }
    }

    /// Those of both namespaces, where the API server gives them.
    fn events_at_the_end(&self) -> Option<Vec<Event>> {
        let runtime = Handle::try_current().ok().filter(|it| it.runtime_flavor() == RuntimeFlavor::MultiThread)?;
        let listing = async {
            let mut events = Vec::new();
            for namespace in [&self.namespace, &self.own_namespace] {
                let api: Api<Event> = Api::namespaced(self.admin.clone(), namespace);
                events.extend(api.list(&ListParams::default()).await.ok()?);
            }
            Some(events)
        };
        let within = async { tokio::time::timeout(EVENTS_LIMIT, listing).await };
        // On a thread of its own: whoever waits on this one, as the other scenarios of a `join_all` do, would not hear what wakes it meanwhile.
        let listing = || std::thread::scope(|scope| scope.spawn(|| runtime.block_on(within)).join());
        tokio::task::block_in_place(listing).ok()?.ok()?
    }
}

fn line_of(grant: &Grant) -> String {
    let time = |at| Timestamp::try_from(at).map(|at| at.to_string()).unwrap_or_default();
    let revoked = grant.revoked_at.map(|at| format!(", revoked {}", time(at))).unwrap_or_default();
    format!("{}: issued {}, expires {}{revoked}", grant.client, time(grant.issued), time(grant.expires))
}

/// The Secret in which [`Stage::subscribe`] stores a client.
pub fn credentials_name(name: &str) -> String {
    format!("{name}-client")
}

/// The client secret that [`Stage::subscribe`] stores. Nothing but the two places that it belongs to may hold it.
pub fn client_secret_of(name: &str) -> String {
    format!("canary-secret-of-{name}")
}

fn with_type(mut object: Value) -> Value {
    object["apiVersion"] = json!("money-go.com/v1alpha1");
    object["kind"] = json!("MoneyGoCredential");
    object
}
