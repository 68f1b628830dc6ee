//! Users with given RBAC rules and no others.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject};
use kube::api::{DeleteParams, ObjectMeta, PostParams};
use kube::{Api, Client};
use serde::Deserialize;

use crate::controlplane::{ControlPlane, client_of};
use crate::credentials::user_name;

/// How long the API server may take to heed a new role.
const EFFECTIVE_LIMIT: Duration = Duration::from_secs(10);
const EFFECTIVE_POLL: Duration = Duration::from_millis(10);
const RBAC_GROUP: &str = "rbac.authorization.k8s.io";

/// What a user may do. Nothing, by default, but for what every authenticated user may (discovery, reviews of its own access).
#[derive(Clone, Debug, Default)]
pub struct Access {
    cluster: Vec<PolicyRule>,
    namespaces: BTreeMap<String, Vec<PolicyRule>>,
}

impl Access {
    /// Adds rules that hold in all namespaces and for what has none.
    #[must_use]
    pub fn cluster(mut self, rules: impl IntoIterator<Item = PolicyRule>) -> Self {
        self.cluster.extend(rules);
        self
    }

    /// Adds rules that hold in one namespace, which must exist.
    #[must_use]
    pub fn namespace(mut self, namespace: &str, rules: impl IntoIterator<Item = PolicyRule>) -> Self {
        self.namespaces.entry(namespace.to_owned()).or_default().extend(rules);
        self
    }

    /// Adds the rules of each `ClusterRole` and `Role` in `yaml`, a stream of documents. A Role holds in `namespace`,
    /// whatever namespace it names itself: tests have their own. All other kinds of objects are skipped, bindings among them.
    ///
    /// # Errors
    /// If `yaml` is not YAML, or if it holds neither a `ClusterRole` nor a `Role`.
    pub fn manifests(mut self, yaml: &str, namespace: &str) -> Result<Self> {
        let mut roles = 0;
        for document in serde_yaml::Deserializer::from_str(yaml) {
            let Some(manifest) = Option::<Manifest>::deserialize(document).context("not an RBAC manifest")? else {
                continue;
            };
            match manifest.kind.as_str() {
                "ClusterRole" => self = self.cluster(manifest.rules),
                "Role" => self = self.namespace(namespace, manifest.rules),
                _ => continue,
            }
            roles += 1;
        }
        ensure!(roles > 0, "there is neither a ClusterRole nor a Role in this manifest");
        Ok(self)
    }
}

/// As much of any manifest as is needed to recognise a role.
#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    rules: Vec<PolicyRule>,
}

/// A rule about resources of one API group (empty for the core group).
#[must_use]
pub fn rule(api_group: &str, resources: &[&str], verbs: &[&str]) -> PolicyRule {
    let owned = |names: &[&str]| names.iter().copied().map(String::from).collect::<Vec<_>>();
    PolicyRule {
        api_groups: Some(vec![api_group.to_owned()]),
        resources: Some(owned(resources)),
        verbs: owned(verbs),
        ..PolicyRule::default()
    }
}

/// Somebody whom the API server knows by a token.
#[derive(Clone, Debug)]
pub struct User {
    /// The name in RBAC's subjects and in the audit log.
    pub name: String,
    /// Holds the token: for a process that is to act as this user.
    pub kubeconfig: PathBuf,
}

impl User {
    /// A client that acts as this user, for the current runtime. It retries nothing.
    ///
    /// # Errors
    /// If the kubeconfig is gone.
    pub async fn client(&self) -> Result<Client> {
        client_of(&self.kubeconfig).await
    }
}

impl ControlPlane {
    /// A new user who may do just that. Returns when the API server heeds the rules.
    ///
    /// # Errors
    /// If all 256 users are taken, if a namespace does not exist, or if the API server does not answer.
    pub async fn user(&self, access: &Access) -> Result<User> {
        let index = self.next_user();
        let user = User { name: user_name(index), kubeconfig: self.credentials().user_kubeconfig(index)? };
        self.allow(&user, access).await?;
        Ok(user)
    }

    /// A user may do more from here on: in the cluster once, and once in each namespace. Returns when the API server heeds the rules.
    ///
    /// # Errors
    /// If the user has rules there already, if a namespace does not exist, or if the API server does not answer.
    pub async fn allow(&self, user: &User, access: &Access) -> Result<()> {
        let admin = self.admin().await?;
        if !access.cluster.is_empty() {
            grant_in_cluster(&admin, &user.name, &access.cluster).await?;
        }
        for (namespace, rules) in &access.namespaces {
            grant_in_namespace(&admin, &user.name, namespace, rules).await?;
        }
        await_effect(&user.client().await?, access).await
    }

    /// A user may do nothing in a namespace any more, but for what the cluster's rules allow. Returns when the API server heeds it.
    ///
    /// # Errors
    /// If there was nothing that the user might do there, or if the API server does not answer.
    pub async fn forbid(&self, user: &User, namespace: &str) -> Result<()> {
        let (admin, params) = (self.admin().await?, DeleteParams::default());
        let roles: Api<Role> = Api::namespaced(admin.clone(), namespace);
        let role = roles.get(&user.name).await.with_context(|| format!("no Role in namespace {namespace}"))?;
        Api::<RoleBinding>::namespaced(admin, namespace).delete(&user.name, &params).await.context("no RoleBinding")?;
        roles.delete(&user.name, &params).await?;
        let client = user.client().await?;
        for rule in role.rules.iter().flatten().take(1) {
            await_answer(&client, &review(rule, Some(namespace)), false).await?;
        }
        Ok(())
    }
}

async fn grant_in_cluster(admin: &Client, user: &str, rules: &[PolicyRule]) -> Result<()> {
    let metadata = ObjectMeta { name: Some(user.to_owned()), ..ObjectMeta::default() };
    let role = ClusterRole { metadata: metadata.clone(), rules: Some(rules.to_vec()), ..ClusterRole::default() };
    let binding =
        ClusterRoleBinding { metadata, role_ref: role_ref("ClusterRole", user), subjects: Some(vec![subject(user)]) };
    let sent = PostParams::default();
    Api::all(admin.clone()).create(&sent, &role).await.context("cannot create a ClusterRole")?;
    Api::all(admin.clone()).create(&sent, &binding).await.context("cannot create a ClusterRoleBinding")?;
    Ok(())
}

async fn grant_in_namespace(admin: &Client, user: &str, namespace: &str, rules: &[PolicyRule]) -> Result<()> {
    let metadata = ObjectMeta { name: Some(user.to_owned()), ..ObjectMeta::default() };
    let role = Role { metadata: metadata.clone(), rules: Some(rules.to_vec()) };
    let binding = RoleBinding { metadata, role_ref: role_ref("Role", user), subjects: Some(vec![subject(user)]) };
    let sent = PostParams::default();
    let failed = |kind| format!("cannot create a {kind} in namespace {namespace}");
    Api::namespaced(admin.clone(), namespace).create(&sent, &role).await.with_context(|| failed("Role"))?;
    Api::namespaced(admin.clone(), namespace).create(&sent, &binding).await.with_context(|| failed("RoleBinding"))?;
    Ok(())
}

fn role_ref(kind: &str, name: &str) -> RoleRef {
    RoleRef { api_group: Some(RBAC_GROUP.to_owned()), kind: kind.to_owned(), name: name.to_owned() }
}

fn subject(user: &str) -> Subject {
    Subject { api_group: Some(RBAC_GROUP.to_owned()), kind: "User".to_owned(), name: user.to_owned(), namespace: None }
}

/// The authorizer reads roles and bindings from caches of its own: one rule of each pair tells when it has seen both.
async fn await_effect(client: &Client, access: &Access) -> Result<()> {
    let cluster = access.cluster.first().map(|rule| review(rule, None));
    let namespaced =
        access.namespaces.iter().filter_map(|(namespace, rules)| Some(review(rules.first()?, Some(namespace))));
    for review in cluster.into_iter().chain(namespaced) {
        await_answer(client, &review, true).await?;
    }
    Ok(())
}

async fn await_answer(client: &Client, review: &SelfSubjectAccessReview, allowed: bool) -> Result<()> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let started = Instant::now();
    loop {
        let answer = reviews.create(&PostParams::default(), review).await?;
        if answer.status.is_some_and(|status| status.allowed == allowed) {
            return Ok(());
        }
        if started.elapsed() > EFFECTIVE_LIMIT {
            bail!("the API server does not heed a role that is new, or gone: {:?}", review.spec);
        }
        tokio::time::sleep(EFFECTIVE_POLL).await;
    }
}

fn review(rule: &PolicyRule, namespace: Option<&str>) -> SelfSubjectAccessReview {
    let first = |names: &Option<Vec<String>>| names.as_ref().and_then(|names| names.first().cloned());
    let verb = rule.verbs.first().cloned();
    let mut spec = SelfSubjectAccessReviewSpec::default();
    if let Some(path) = first(&rule.non_resource_urls) {
        spec.non_resource_attributes = Some(NonResourceAttributes { path: Some(path), verb });
    } else {
        let resource = first(&rule.resources).unwrap_or_default();
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource.as_str(), ""));
        spec.resource_attributes = Some(ResourceAttributes {
            group: first(&rule.api_groups),
            resource: Some(resource.to_owned()),
            subresource: Some(subresource.to_owned()),
            name: first(&rule.resource_names),
            namespace: namespace.map(String::from),
            verb,
            ..ResourceAttributes::default()
        });
    }
    SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() }
}
