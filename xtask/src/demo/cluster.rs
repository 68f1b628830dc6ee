//! Where the demo takes place: a control plane of its own, or a given cluster.

use std::{
    fs,
    path::{Path, PathBuf},
    pin::pin,
    time::Duration,
};

use anyhow::Context;
use k8s_openapi::{
    api::core::v1::Namespace, apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{DeleteParams, ObjectMeta, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::wait::{await_condition, conditions},
};
use moneygo_controlplane::{Access, ControlPlane, Progress, Release, User};
use moneygo_operator::crd;
use tokio::time::{sleep, timeout};

use crate::{checkout, terminal};

const CRD: &str = "crds/moneygocredentials.money-go.com.yaml";
const RIGHTS: &str = "docs/rbac/cluster.yaml";
/// The operator's namespace in the manifests.
const OPERATOR_NAMESPACE: &str = "moneygo-system";
const DEMO_NAMESPACE: &str = "demo";
/// How long a given cluster may take for anything.
const LIMIT: Duration = Duration::from_mins(1);
/// How long a connection to it may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(500);

/// A cluster with a namespace for the demo.
pub struct Cluster {
    client: Client,
    kubeconfig: PathBuf,
    namespace: String,
    kind: Kind,
}

enum Kind {
    Started {
        control_plane: Box<ControlPlane>,
        /// Whom the operator acts as.
        user: Option<User>,
    },
    Given {
        /// Whether the CRD is to be removed in the end: it was not there.
        installed: bool,
    },
}

impl Cluster {
    /// A control plane for the demo alone.
    pub async fn started() -> anyhow::Result<Self> {
        terminal::heading(&format!("Starting a Kubernetes API server ({})", Release::chosen()?.version));
        let control_plane = Box::new(with_progress("    starting", ControlPlane::start()).await?);
        let client = control_plane.admin().await?;
        let kubeconfig = control_plane.kubeconfig().to_owned();
        println!("    its kubeconfig: {}", kubeconfig.display());
        let kind = Kind::Started { control_plane, user: None };
        Ok(Self { client, kubeconfig, namespace: DEMO_NAMESPACE.into(), kind })
    }

    /// The cluster of that kubeconfig, with a namespace of that name, which nobody else has.
    pub async fn given(kubeconfig: &Path, namespace: String) -> anyhow::Result<Self> {
        let kubeconfig = std::path::absolute(kubeconfig)?;
        let cannot_use = || format!("cannot use {}", kubeconfig.display());
        let read = Kubeconfig::read_from(&kubeconfig).with_context(cannot_use)?;
        let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await;
        let config = config.with_context(cannot_use)?;
        let url = config.cluster_url.clone();
        terminal::heading(&format!("Using the cluster at {url}"));
        let client = Client::try_from(config).with_context(cannot_use)?;
        let asked = with_progress("    connecting", timeout(CONNECT_LIMIT, client.apiserver_version())).await;
        let version = asked.with_context(|| format!("no answer from {url}"))?;
        println!("    {}", version.with_context(|| format!("cannot reach {url}"))?.git_version);
        Ok(Self { client, kubeconfig, namespace, kind: Kind::Given { installed: false } })
    }

    /// Installs the CRD, and makes the namespace and the rights that the operator is to have.
    pub async fn prepare(&mut self) -> anyhow::Result<()> {
        terminal::heading(&format!("Installing the CRD ({CRD})"));
        let manifest = read(CRD)?;
        match &mut self.kind {
            Kind::Started { control_plane, user } => {
                control_plane.install_crd(&manifest).await?;
                create_namespace(&self.client, OPERATOR_NAMESPACE).await?;
                let access = Access::default().manifests(&read(RIGHTS)?, OPERATOR_NAMESPACE)?;
                *user = Some(control_plane.user(&access).await?);
                println!("    the operator may do what {RIGHTS} allows, and no more");
            }
            Kind::Given { installed } => install_crd(&self.client, &manifest, installed).await?,
        }
        create_namespace(&self.client, &self.namespace).await
    }

    /// A client that may do everything that the kubeconfig allows.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What kubectl is to use.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The demo's namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// What the operator is to use.
    pub fn operator_kubeconfig(&self) -> &Path {
        match &self.kind {
            Kind::Started { user: Some(user), .. } => &user.kubeconfig,
            _ => &self.kubeconfig,
        }
    }

    /// Where the operator is at home. On a given cluster it minds the demo's namespace alone.
    pub fn operator_flags(&self) -> Vec<&str> {
        match &self.kind {
            Kind::Started { .. } => vec!["--leader-elect-namespace", OPERATOR_NAMESPACE],
            Kind::Given { .. } => {
                vec!["--leader-elect-namespace", &self.namespace, "--watch-namespace", &self.namespace]
            }
        }
    }

    /// Removes what was made.
    pub async fn clear(self) -> anyhow::Result<()> {
        let Self { client, namespace, kind, .. } = self;
        let installed = match kind {
            Kind::Started { control_plane, .. } => return control_plane.shutdown().await,
            Kind::Given { installed } => installed,
        };
        let removal = timeout(LIMIT, remove_namespace(&client, &namespace));
        let removed = with_progress("    removing the namespace", removal).await;
        if installed {
            let definitions: Api<CustomResourceDefinition> = Api::all(client);
            let deleted = definitions.delete(&crd::crd().name_any(), &DeleteParams::default()).await;
            ignore_missing(deleted).context("cannot remove the CRD")?;
        }
        removed.with_context(|| format!("the namespace {namespace} is still being deleted"))?
    }
}

async fn remove_namespace(client: &Client, name: &str) -> anyhow::Result<()> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let cannot = || format!("cannot remove the namespace {name}: delete it yourself");
    ignore_missing(namespaces.delete(name, &DeleteParams::default()).await).with_context(cannot)?;
    while namespaces.get_metadata_opt(name).await.with_context(cannot)?.is_some() {
        sleep(POLL).await;
    }
    Ok(())
}

/// Leaves one that is there as it is: others may use it.
async fn install_crd(client: &Client, manifest: &str, installed: &mut bool) -> anyhow::Result<()> {
    let definition: CustomResourceDefinition = serde_yaml::from_str(manifest)?;
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let name = definition.name_any();
    if definitions.get_opt(&name).await.context("cannot read CRDs")?.is_some() {
        println!("    it is there already");
        return Ok(());
    }
    *installed = true;
    definitions.create(&PostParams::default(), &definition).await.context("cannot install the CRD")?;
    let established = await_condition(definitions, &name, conditions::is_crd_established());
    timeout(LIMIT, established).await.context("the CRD is not established")??;
    Ok(())
}

async fn create_namespace(client: &Client, name: &str) -> anyhow::Result<()> {
    let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
    let namespace = Namespace { metadata, ..Namespace::default() };
    let created = Api::all(client.clone()).create(&PostParams::default(), &namespace).await;
    created.with_context(|| format!("cannot create the namespace {name}"))?;
    Ok(())
}

fn ignore_missing<T>(deleted: kube::Result<T>) -> kube::Result<()> {
    match deleted {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map(|_| ()),
    }
}

fn read(path: &str) -> anyhow::Result<String> {
    fs::read_to_string(checkout().join(path)).with_context(|| format!("cannot read {path}"))
}

/// Shows how long something takes while it does.
async fn with_progress<T>(step: &str, task: impl Future<Output = T>) -> T {
    let mut progress = Progress::new(step);
    let mut task = pin!(task);
    loop {
        if let Ok(done) = timeout(POLL, &mut task).await {
            progress.done();
            return done;
        }
        progress.show("");
    }
}
