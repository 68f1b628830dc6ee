//! What is measured in: a control plane and a stand-in of their own, and objects by the thousand.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fake_moneygo::FakeMoneyGo;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use k8s_openapi::api::rbac::v1::PolicyRule;
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use moneygo_controlplane::{Access, AuditEvent, AuditMark, ControlPlane, User};
use moneygo_operator::crd::{CredentialsRef, MoneyGoCredential, MoneyGoCredentialSpec};
use serde::Serialize;
use serde_json::json;

use crate::usage::{self, Usage};

/// The generated CRD.
const CRD: &str = include_str!("../../../crds/moneygocredentials.money-go.com.yaml");
/// The documented rights.
const RBAC: &str = include_str!("../../../docs/rbac/cluster.yaml");
/// The operator's own namespace.
pub const OWN_NAMESPACE: &str = "moneygo-system";
/// The client secret of every client.
const CLIENT_SECRET: &str = "of the bench";
/// How a request in the operator's own namespace is told from others.
pub const OWN: &str = " of its own";
/// Objects in a namespace.
const PER_NAMESPACE: usize = 1000;
/// Requests of the bench's own at the same time.
const SETTERS: usize = 48;
const POLL: Duration = Duration::from_millis(50);
/// A process that uses less than this of a core is at rest.
const AT_REST: f64 = 0.1;
const REST_LIMIT: Duration = Duration::from_mins(2);

/// Requests by verb and resource.
pub type Counts = BTreeMap<String, u64>;

/// Where something is measured.
pub struct World {
    /// The servers.
    pub plane: ControlPlane,
    /// The stand-in. It runs in the bench's own process.
    pub moneygo: FakeMoneyGo,
    /// May do everything.
    pub admin: Client,
    /// Who is measured.
    pub user: User,
}

/// What the one who is measured may do.
#[derive(Clone, Copy, Debug)]
pub enum Rights {
    /// What docs/rbac says that the operator needs.
    Documented,
    /// Everything.
    All,
}

impl Rights {
    fn access(self) -> Result<Access> {
        let every = || Some(vec!["*".to_owned()]);
        match self {
            Self::Documented => Access::default().manifests(RBAC, OWN_NAMESPACE),
            Self::All => Ok(Access::default().cluster([PolicyRule {
                api_groups: every(),
                resources: every(),
                verbs: vec!["*".to_owned()],
                ..PolicyRule::default()
            }])),
        }
    }
}

/// What the two servers have used so far.
#[derive(Clone, Copy, Debug)]
pub struct Servers {
    /// The API server.
    pub apiserver: Usage,
    /// etcd.
    pub etcd: Usage,
}

impl World {
    /// Starts the servers, installs the CRD, and makes a user with these rights and no others.
    ///
    /// # Errors
    /// If a server cannot be had.
    pub async fn start(rights: Rights) -> Result<Self> {
        let plane = ControlPlane::start().await?;
        plane.install_crd(CRD).await?;
        let admin = plane.admin().await?;
        let moneygo = FakeMoneyGo::builder().any_client().start().await?;
        create(&admin, None, &namespace(OWN_NAMESPACE)).await?;
        let user = plane.user(&rights.access()?).await?;
        Ok(Self { plane, moneygo, admin, user })
    }

    /// Makes objects `range` with a credentials Secret each, a thousand to a namespace.
    ///
    /// # Errors
    /// If the API server refuses one.
    pub async fn populate(&self, range: Range<usize>) -> Result<()> {
        let first = range.start.div_ceil(PER_NAMESPACE);
        for number in first..range.end.div_ceil(PER_NAMESPACE) {
            self.add_namespace(&namespace_of(number * PER_NAMESPACE)).await?;
        }
        each(range.clone(), async |number| self.add_credentials(&namespace_of(number), number).await).await?;
        each(range, async |number| self.add_object(&namespace_of(number), number).await).await
    }

    /// Makes a namespace.
    ///
    /// # Errors
    /// If it is there already.
    pub async fn add_namespace(&self, name: &str) -> Result<()> {
        create(&self.admin, None, &namespace(name)).await
    }

    /// Makes the credentials Secret of an object.
    ///
    /// # Errors
    /// If the API server refuses it.
    pub async fn add_credentials(&self, namespace: &str, number: usize) -> Result<()> {
        create(&self.admin, Some(namespace), &credentials_of(number)).await
    }

    /// Makes an object, whether its credentials are there or not.
    ///
    /// # Errors
    /// If the API server refuses it.
    pub async fn add_object(&self, namespace: &str, number: usize) -> Result<()> {
        self.add_object_that_waits(namespace, number, false).await
    }

    /// Makes an object that may be suspended.
    ///
    /// # Errors
    /// If the API server refuses it.
    pub async fn add_object_that_waits(&self, namespace: &str, number: usize, suspend: bool) -> Result<()> {
        let spec = MoneyGoCredentialSpec {
            credentials_ref: CredentialsRef { name: client_of(number), ..CredentialsRef::default() },
            suspend: suspend.then_some(true),
            ..MoneyGoCredentialSpec::default()
        };
        create(&self.admin, Some(namespace), &MoneyGoCredential::new(&target_of(number), spec)).await
    }

    /// Makes Secrets that are nobody's, of that many bytes each.
    ///
    /// # Errors
    /// If the API server refuses one.
    pub async fn add_foreign(&self, namespace: &str, count: usize, bytes: usize) -> Result<()> {
        self.add_namespace(namespace).await?;
        let data = k8s_openapi::ByteString(vec![b'x'; bytes]);
        let add = |number| {
            let secret = Secret {
                metadata: ObjectMeta { name: Some(format!("foreign-{number}")), ..ObjectMeta::default() },
                data: Some([("data".to_owned(), data.clone())].into()),
                ..Secret::default()
            };
            async move { create(&self.admin, Some(namespace), &secret).await }
        };
        each(0..count, add).await
    }

    /// Deletes what [`World::add_foreign`] made.
    ///
    /// # Errors
    /// If the API server refuses to.
    pub async fn remove_foreign(&self, namespace: &str, count: usize) -> Result<()> {
        let secrets: Api<Secret> = Api::namespaced(self.admin.clone(), namespace);
        let remove = |number| {
            let secrets = secrets.clone();
            async move {
                secrets.delete(&format!("foreign-{number}"), &DeleteParams::default()).await?;
                Ok(())
            }
        };
        each(0..count, remove).await
    }

    /// Asks for a refresh of each object of `range` by its annotation.
    ///
    /// # Errors
    /// If the API server refuses to write one.
    pub async fn request_refreshes(&self, range: Range<usize>, value: &str) -> Result<()> {
        let patch = json!({"metadata": {"annotations": {"money-go.com/refresh-requested": value}}});
        let ask = |number| {
            let objects: Api<MoneyGoCredential> = Api::namespaced(self.admin.clone(), &namespace_of(number));
            let patch = Patch::Merge(patch.clone());
            async move {
                objects.patch_metadata(&target_of(number), &PatchParams::default(), &patch).await?;
                Ok(())
            }
        };
        each(range, ask).await
    }

    /// Ends the servers, and removes what they stored.
    ///
    /// # Errors
    /// If something is left.
    pub async fn end(self) -> Result<()> {
        self.plane.shutdown().await
    }

    /// What the servers have used so far.
    ///
    /// # Errors
    /// If one is gone.
    pub fn servers(&self) -> Result<Servers> {
        let processes = self.plane.processes()?;
        Ok(Servers { apiserver: usage::of(processes.apiserver)?, etcd: usage::of(processes.etcd)? })
    }

    /// Returns once the servers have nothing to do.
    ///
    /// # Errors
    /// If they still have after two minutes.
    pub async fn rest(&self) -> Result<()> {
        let started = Instant::now();
        let window = Duration::from_secs(1);
        loop {
            let before = self.servers()?;
            tokio::time::sleep(window).await;
            let after = self.servers()?;
            let busy = (after.apiserver.cpu + after.etcd.cpu).saturating_sub(before.apiserver.cpu + before.etcd.cpu);
            if busy.as_secs_f64() < AT_REST * window.as_secs_f64() {
                return Ok(());
            }
            ensure!(started.elapsed() < REST_LIMIT, "the servers do not come to rest");
        }
    }

    /// Follows what the measured user asks of the API server from here on.
    ///
    /// # Errors
    /// If the audit log cannot be read.
    pub fn tail(&self) -> Result<Tail<'_>> {
        Ok(Tail {
            world: self,
            mark: self.plane.audit_mark()?,
            counts: Counts::new(),
            last_write: None,
            secrets_at: Vec::new(),
        })
    }
}

/// What the measured user asked of the API server.
pub struct Tail<'a> {
    world: &'a World,
    mark: AuditMark,
    /// So far, watches where they began.
    pub counts: Counts,
    /// When the last write was answered, but for Leases.
    pub last_write: Option<jiff::Timestamp>,
    /// When each Secret was created, in the order of the log.
    pub secrets_at: Vec<jiff::Timestamp>,
}

impl Tail<'_> {
    /// Takes in what came since.
    ///
    /// # Errors
    /// If the audit log cannot be read.
    pub fn follow(&mut self) -> Result<()> {
        for event in self.world.plane.next_audit_events(&mut self.mark, Some(&self.world.user.name))? {
            if (event.verb == "watch") != (event.stage == "ResponseStarted") {
                continue;
            }
            let what = label(&event);
            if matches!(event.verb.as_str(), "create" | "update" | "patch") && event.resource != "leases" {
                self.last_write = self.last_write.max(Some(event.at));
            }
            if what == "create secrets" {
                self.secrets_at.push(event.at);
            }
            *self.counts.entry(what).or_default() += 1;
        }
        Ok(())
    }

    /// How many there were of a kind.
    #[must_use]
    pub fn count(&self, what: &str) -> u64 {
        self.counts.get(what).copied().unwrap_or_default()
    }

    /// Waits until there were so many of a kind.
    ///
    /// # Errors
    /// If there are fewer after the limit.
    pub async fn until(&mut self, what: &str, count: u64, limit: Duration) -> Result<()> {
        let started = Instant::now();
        loop {
            self.follow()?;
            if self.count(what) >= count {
                return Ok(());
            }
            ensure!(started.elapsed() < limit, "{count} {what} were waited for {limit:?}: {:?}", self.counts);
            tokio::time::sleep(POLL).await;
        }
    }
}

/// What the operator does in its own namespace (the Lease, the key of its digests) is for the process, and not for a token.
fn label(event: &AuditEvent) -> String {
    let slash = if event.subresource.is_empty() { "" } else { "/" };
    let own = if event.namespace == OWN_NAMESPACE { OWN } else { "" };
    let resource = if event.resource.is_empty() { "version" } else { &event.resource };
    format!("{} {resource}{slash}{}{own}", event.verb, event.subresource)
}

/// Does it for each number, several at the same time.
///
/// # Errors
/// As soon as one of them fails.
pub async fn each<F: Future<Output = Result<()>>>(range: Range<usize>, one: impl Fn(usize) -> F) -> Result<()> {
    stream::iter(range).map(one).buffer_unordered(SETTERS).try_collect().await
}

/// What the credentials Secret of that number, and the client, is called.
#[must_use]
pub fn client_of(number: usize) -> String {
    format!("client-{number}")
}

/// Where the object of that number is.
#[must_use]
pub fn namespace_of(number: usize) -> String {
    format!("bench-{}", number / PER_NAMESPACE)
}

/// The client's id and secret, as the Secret that it reads them from.
#[must_use]
pub fn credentials_of(number: usize) -> Secret {
    let texts = [("client_id".to_owned(), client_of(number)), ("client_secret".to_owned(), CLIENT_SECRET.to_owned())];
    Secret {
        metadata: ObjectMeta { name: Some(client_of(number)), ..ObjectMeta::default() },
        string_data: Some(texts.into()),
        ..Secret::default()
    }
}

/// What the object of that number, and its target, is called.
#[must_use]
pub fn target_of(number: usize) -> String {
    format!("token-{number}")
}

fn namespace(name: &str) -> Namespace {
    Namespace { metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() }, ..Namespace::default() }
}

async fn create<K>(client: &Client, namespace: Option<&str>, object: &K) -> Result<()>
where
    K: Resource<DynamicType = ()> + Serialize,
{
    post(client, &K::url_path(&(), namespace), object).await
}

/// Makes an object of any kind.
///
/// # Errors
/// If the API server refuses it.
pub async fn post(client: &Client, path: &str, object: &impl Serialize) -> Result<()> {
    let request = kube::core::Request::new(path).create(&PostParams::default(), serde_json::to_vec(object)?)?;
    // What is sent back is not looked at.
    client.request_text(request).await.map(drop).context("the API server refuses what the bench makes")
}
