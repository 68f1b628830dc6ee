//! What is measured in: a control plane and a stand-in of their own, and objects by the thousand.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fake_moneygo::FakeMoneyGo;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, Resource};
use moneygo_controlplane::{Access, AuditEvent, AuditMark, ControlPlane, User};
use moneygo_operator::crd::{CredentialsRef, MoneyGoCredential, MoneyGoCredentialSpec};
use serde::{Serialize, de::DeserializeOwned};

use crate::usage::{self, Usage};

/// The generated CRD.
const CRD: &str = include_str!("../../../crds/moneygocredentials.money-go.com.yaml");
/// The documented rights.
const RBAC: &str = include_str!("../../../docs/rbac/cluster.yaml");
/// The operator's own namespace.
pub const OWN_NAMESPACE: &str = "moneygo-system";
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

/// What the two servers have used so far.
#[derive(Clone, Copy, Debug)]
pub struct Servers {
    /// The API server.
    pub apiserver: Usage,
    /// etcd.
    pub etcd: Usage,
}

impl World {
    /// Starts the servers, installs the CRD, and makes a user with the documented rights and no others.
    ///
    /// # Errors
    /// If a server cannot be had.
    pub async fn start() -> Result<Self> {
        let plane = ControlPlane::start().await?;
        plane.install_crd(CRD).await?;
        let admin = plane.admin().await?;
        let moneygo = FakeMoneyGo::builder().any_client().start().await?;
        create(&admin, None, &namespace(OWN_NAMESPACE)).await?;
        let user = plane.user(&Access::default().manifests(RBAC, OWN_NAMESPACE)?).await?;
        Ok(Self { plane, moneygo, admin, user })
    }

    /// Makes objects `range` with a credentials Secret each, a thousand to a namespace.
    ///
    /// # Errors
    /// If the API server refuses one.
    pub async fn populate(&self, range: std::ops::Range<usize>) -> Result<()> {
        let first = range.start.div_ceil(PER_NAMESPACE);
        for number in first..range.end.div_ceil(PER_NAMESPACE) {
            self.add_namespace_of(number * PER_NAMESPACE).await?;
        }
        self.each(range.clone(), |number| self.add_credentials(number)).await?;
        self.each(range, |number| self.add_object(number)).await
    }

    /// Makes the namespace that an object is to be in.
    ///
    /// # Errors
    /// If it is there already.
    pub async fn add_namespace_of(&self, number: usize) -> Result<()> {
        create(&self.admin, None, &namespace(&namespace_of(number))).await
    }

    /// Makes the credentials Secret of an object.
    ///
    /// # Errors
    /// If the API server refuses it.
    pub async fn add_credentials(&self, number: usize) -> Result<()> {
        let secret = Secret {
            metadata: ObjectMeta { name: Some(format!("client-{number}")), ..ObjectMeta::default() },
            string_data: Some(
                [
                    ("client_id".to_owned(), format!("client-{number}")),
                    ("client_secret".to_owned(), "of the bench".to_owned()),
                ]
                .into(),
            ),
            ..Secret::default()
        };
        create(&self.admin, Some(&namespace_of(number)), &secret).await
    }

    /// Makes an object whose credentials are there.
    ///
    /// # Errors
    /// If the API server refuses it.
    pub async fn add_object(&self, number: usize) -> Result<()> {
        let spec = MoneyGoCredentialSpec {
            credentials_ref: CredentialsRef { name: format!("client-{number}"), ..CredentialsRef::default() },
            ..MoneyGoCredentialSpec::default()
        };
        create(&self.admin, Some(&namespace_of(number)), &MoneyGoCredential::new(&target_of(number), spec)).await
    }

    /// Makes Secrets that are nobody's, of that many bytes each.
    ///
    /// # Errors
    /// If the API server refuses one.
    pub async fn add_foreign(&self, count: usize, bytes: usize) -> Result<()> {
        create(&self.admin, None, &namespace("foreign")).await?;
        let data = k8s_openapi::ByteString(vec![b'x'; bytes]);
        let add = |number| {
            let secret = Secret {
                metadata: ObjectMeta { name: Some(format!("foreign-{number}")), ..ObjectMeta::default() },
                data: Some([("data".to_owned(), data.clone())].into()),
                ..Secret::default()
            };
            async move { create(&self.admin, Some("foreign"), &secret).await }
        };
        self.each(0..count, add).await
    }

    async fn each<F: Future<Output = Result<()>>>(
        &self,
        range: std::ops::Range<usize>,
        one: impl Fn(usize) -> F,
    ) -> Result<()> {
        stream::iter(range).map(|number| one(number)).buffer_unordered(SETTERS).try_collect().await
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
        Ok(Tail { world: self, mark: self.plane.audit_mark()?, counts: Counts::new(), last_write: None })
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

fn label(event: &AuditEvent) -> String {
    let slash = if event.subresource.is_empty() { "" } else { "/" };
    format!("{} {}{slash}{}", event.verb, event.resource, event.subresource)
}

/// Where the object of that number is.
#[must_use]
pub fn namespace_of(number: usize) -> String {
    format!("bench-{}", number / PER_NAMESPACE)
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
    K: Resource<DynamicType = ()> + Serialize + DeserializeOwned + Clone + std::fmt::Debug,
{
    let path = K::url_path(&(), namespace);
    let request = kube::core::Request::new(path).create(&PostParams::default(), serde_json::to_vec(object)?)?;
    // What is sent back is not looked at.
    client.request_text(request).await.map(drop).context("the API server refuses what the bench makes")
}
