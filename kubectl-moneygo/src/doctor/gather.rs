//! What is looked at, with the user's own rights. What they do not allow is told, and fails nothing.

use std::sync::Arc;

use futures::future::join_all;
use futures::{StreamExt as _, stream};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, CustomResourceExt as _, ResourceExt as _};
use moneygo_operator::apply::DIGEST_KEY_SECRET;
use moneygo_operator::crd::{CLIENT_ID_KEY, CLIENT_SECRET_KEY, MoneyGoCredential};

use super::facts::{Credentials, Facts, KeyState, Lookup, Neighbour, Right, Target, refusal};
use super::finding::{Cause, Finding, Severity};
use super::operators::{self, Operator};
use super::pods::{PODS_MAX, Use, uses_of};
use crate::args::DoctorArgs;
use crate::cluster::{self, Cluster, Time};

/// Objects of one answer.
const PAGE: u32 = 250;
/// Objects that are looked at at the same time.
const CONCURRENCY: usize = 16;
/// And namespaces.
const NAMESPACES: usize = 4;

/// The finding, where the cluster has no definition of these objects at all.
pub async fn undefined(cluster: &Cluster) -> Option<Finding> {
    let Err(kube::Error::Api(status)) = cluster.objects_in_view().list(&ListParams::default().limit(1)).await else {
        return None;
    };
    let missing = Finding::new(
        Severity::Error,
        Cause::DefinitionMissing,
        "the cluster knows no MoneyGoCredential (money-go.com/v1alpha1)",
        "nothing can be asked for, and no operator can run",
        "helm install moneygo-operator charts/moneygo-operator --namespace moneygo-system --create-namespace",
    );
    (status.code == 404).then_some(missing)
}

/// What is made of the facts of each object that is wanted, in their order. Facts are made as they are judged, and not kept.
pub async fn each<T>(cluster: &Cluster, wanted: &DoctorArgs, judge: impl Fn(Facts) -> T) -> anyhow::Result<Vec<T>> {
    let objects = cluster.find(wanted.name.as_deref(), None).await?;
    if objects.is_empty() {
        anyhow::bail!("there is no MoneyGoCredential here: give -n, or -A");
    }
    let operator_namespace = wanted.operator.operator_namespace.clone();
    let (operators, served_versions, time) = tokio::join!(
        operators::gather(&cluster.client, operator_namespace.as_deref()),
        served_versions(&cluster.client),
        Time::of(&cluster.client),
    );
    let scene = &Scene { cluster, time, operators, operator_namespace, served_versions };
    // They are sorted by namespace.
    let namespaces: Vec<Vec<_>> =
        objects.chunk_by(|one, next| one.namespace() == next.namespace()).map(<[_]>::to_vec).collect();
    drop(objects);
    let looked = stream::iter(namespaces).map(|objects| async move {
        let namespace = objects.first().and_then(MoneyGoCredential::namespace).unwrap_or_default();
        (Arc::new(Surroundings::look(scene, &namespace).await), objects)
    });
    let objects = looked.buffered(NAMESPACES).flat_map(|(around, objects)| {
        stream::iter(objects.into_iter().map(move |object| (object, Arc::clone(&around))))
    });
    let judged = objects.map(|(object, around)| async move { of_object(scene, object, &around).await });
    Ok(judged.buffered(CONCURRENCY).map(judge).collect().await)
}

/// What all objects have in common: looked at once.
struct Scene<'a> {
    cluster: &'a Cluster,
    time: Time,
    operators: Lookup<Vec<Operator>>,
    operator_namespace: Option<String>,
    served_versions: Lookup<Vec<String>>,
}

/// What the objects of a namespace have in common: looked at once.
struct Surroundings {
    ends: Lookup<bool>,
    neighbours: Lookup<Arc<[Neighbour]>>,
    uses: Lookup<Vec<Use>>,
    pods_left_out: bool,
    rights: Arc<[Right]>,
}

impl Surroundings {
    async fn look(scene: &Scene<'_>, namespace: &str) -> Self {
        let client = &scene.cluster.client;
        let (ends, neighbours, (uses, pods_left_out), rights) = tokio::join!(
            namespace_ends(client, namespace),
            neighbours(scene.cluster, namespace),
            uses(client, namespace),
            rights(client, namespace, scene.operators.found()),
        );
        Self { ends, neighbours, uses, pods_left_out, rights: rights.into() }
    }
}

async fn of_object(scene: &Scene<'_>, object: MoneyGoCredential, around: &Surroundings) -> Facts {
    let (client, namespace) = (&scene.cluster.client, object.namespace().unwrap_or_default());
    let reference = &object.spec.credentials_ref;
    let (credentials, target, operators) = tokio::join!(
        secret(client, &namespace, &reference.name),
        secret(client, &namespace, object.target_name()),
        selecting(scene.cluster, &object, &namespace, &scene.operators),
    );
    let id_key = reference.client_id_key.as_deref().unwrap_or(CLIENT_ID_KEY);
    let secret_key = reference.client_secret_key.as_deref().unwrap_or(CLIENT_SECRET_KEY);
    let credentials = credentials.map(|secret| Credentials {
        id: KeyState::of(&secret, id_key),
        secret: KeyState::of(&secret, secret_key),
        keys: secret.data.iter().flatten().map(|(key, _)| key.clone()).collect(),
    });
    let named = [object.target_name(), &reference.name];
    let is_named = |one: &&Use| named.contains(&one.secret.as_str());
    let uses = around.uses.as_ref().map(|uses| uses.iter().filter(is_named).cloned().collect());
    Facts {
        now: scene.time.now(),
        clocks_differ: scene.time.clocks_differ,
        served_versions: scene.served_versions.clone(),
        namespace_ends: around.ends.clone(),
        credentials,
        target: target.map(Target::of),
        neighbours: around.neighbours.clone(),
        uses,
        pods_left_out: around.pods_left_out,
        operators,
        operator_namespace: scene.operator_namespace.clone(),
        rights: Arc::clone(&around.rights),
        object,
    }
}

async fn served_versions(client: &Client) -> Lookup<Vec<String>> {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let found = definitions.get_opt(MoneyGoCredential::crd_name()).await;
    Lookup::of(found).map(|definition| {
        let served = definition.spec.versions.into_iter().filter(|version| version.served);
        served.map(|version| version.name).collect()
    })
}

async fn secret(client: &Client, namespace: &str, name: &str) -> Lookup<Secret> {
    if name.is_empty() {
        return Lookup::Missing;
    }
    Lookup::of(Api::namespaced(client.clone(), namespace).get_opt(name).await)
}

async fn namespace_ends(client: &Client, namespace: &str) -> Lookup<bool> {
    let found = Api::<Namespace>::all(client.clone()).get_opt(namespace).await;
    Lookup::of(found).map(|namespace| namespace.metadata.deletion_timestamp.is_some())
}

/// And whether there are more Pods than were looked at.
async fn uses(client: &Client, namespace: &str) -> (Lookup<Vec<Use>>, bool) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let (mut params, mut found, mut seen) = (ListParams::default().limit(PAGE), Vec::new(), 0);
    loop {
        let page = match pods.list(&params).await {
            Ok(page) => page,
            Err(error) => return (Lookup::Unknown(refusal(&error)), false),
        };
        seen += page.items.len();
        found.extend(page.items.iter().flat_map(uses_of));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) if seen < PODS_MAX => params.continue_token = Some(token),
            more => return (Lookup::Found(found), more.is_some()),
        }
    }
}

async fn neighbours(cluster: &Cluster, namespace: &str) -> Lookup<Arc<[Neighbour]>> {
    let (objects, mut params, mut found) = (cluster.objects(namespace), ListParams::default().limit(PAGE), Vec::new());
    loop {
        let page = match objects.list(&params).await {
            Ok(page) => page,
            Err(error) => return Lookup::Unknown(refusal(&error)),
        };
        found.extend(page.items.into_iter().map(|object| Neighbour::of(&cluster::read(object))));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Lookup::Found(found.into()),
        }
    }
}

/// The API server judges a selector, so that it is judged as for the operator's watch.
async fn selecting(
    cluster: &Cluster,
    object: &MoneyGoCredential,
    namespace: &str,
    operators: &Lookup<Vec<Operator>>,
) -> Lookup<Vec<Operator>> {
    let Lookup::Found(operators) = operators else { return operators.clone() };
    let mut judged = operators.clone();
    let name = object.name_any();
    for operator in &mut judged {
        let Some(selector) = operator.label_selector.as_deref().filter(|_| operator.watches(namespace)) else {
            continue;
        };
        let params = ListParams::default().labels(selector).fields(&format!("metadata.name={name}"));
        operator.selects = cluster.objects(namespace).list(&params).await.ok().map(|found| !found.items.is_empty());
    }
    Lookup::Found(judged)
}

/// What an account is to be allowed.
#[derive(Clone, Copy)]
struct Need {
    group: &'static str,
    resource: &'static str,
    subresource: &'static str,
    verb: &'static str,
    /// What it is called.
    words: &'static str,
    /// Whether tokens come without it.
    is_minor: bool,
}

impl Need {
    const fn of(group: &'static str, resource: &'static str, verb: &'static str) -> Self {
        Self { group, resource, subresource: "", verb, words: resource, is_minor: false }
    }

    const fn minor(self) -> Self {
        Self { is_minor: true, ..self }
    }
}

const GROUP: &str = "money-go.com";
const OBJECTS: &str = "moneygocredentials";
/// Without it nobody is the operator of a namespace.
const READS: Need = Need::of("", "secrets", "get");
/// What an operator does in a namespace that it watches.
const WORK: [Need; 11] = [
    Need::of(GROUP, OBJECTS, "list"),
    Need::of(GROUP, OBJECTS, "watch"),
    Need::of(GROUP, OBJECTS, "get").minor(),
    Need { subresource: "status", words: "moneygocredentials/status", ..Need::of(GROUP, OBJECTS, "update") },
    READS,
    Need::of("", "secrets", "list"),
    Need::of("", "secrets", "watch"),
    Need::of("", "secrets", "create"),
    Need::of("", "secrets", "update"),
    Need::of("events.k8s.io", "events", "create").minor(),
    Need::of("events.k8s.io", "events", "patch").minor(),
];
/// That no token is asked for in a namespace that is being deleted: of one that watches the whole cluster, and of one that has Roles.
const NAMESPACES_WATCHED: [Need; 2] =
    [Need::of("", "namespaces", "list").minor(), Need::of("", "namespaces", "watch").minor()];
const NAMESPACE_READ: Need = Need::of("", "namespaces", "get").minor();
/// And in its own: the key of the digests.
const DIGEST_KEY: Need = Need { words: "the Secret of the digests' key", ..READS }.minor();
/// And to elect a leader: with the Lease of its name, for RBAC may let it have no other.
const ELECTION: [Need; 2] =
    [Need::of("coordination.k8s.io", "leases", "get"), Need::of("coordination.k8s.io", "leases", "update")];
/// And where there is no Lease yet.
const FIRST_ELECTION: Need = Need::of("coordination.k8s.io", "leases", "create");

/// What an operator needs for a namespace: each with the namespace where, if any, and the name of what.
fn needs<'a>(operator: &'a Operator, namespace: &'a str) -> Vec<(Need, &'a str, Option<&'a str>)> {
    let mut needs: Vec<_> = WORK.iter().map(|need| (*need, namespace, None)).collect();
    if operator.watched.is_empty() {
        needs.extend(NAMESPACES_WATCHED.map(|need| (need, "", None)));
    } else {
        needs.push((NAMESPACE_READ, namespace, Some(namespace)));
    }
    let own = operator.lease.as_ref().map_or(&operator.namespace, |lease| &lease.namespace);
    needs.push((DIGEST_KEY, own, Some(DIGEST_KEY_SECRET)));
    needs.push((Need::of("", "secrets", "create").minor(), own, None));
    if let Some(lease) = &operator.lease {
        needs.extend(ELECTION.map(|need| (need, lease.namespace.as_str(), Some(lease.name.as_str()))));
        if matches!(lease.held, Lookup::Missing) {
            needs.push((FIRST_ELECTION, &lease.namespace, None));
        }
    }
    needs
}

async fn rights(client: &Client, namespace: &str, operators: Option<&Vec<Operator>>) -> Vec<Right> {
    let watching = operators.into_iter().flatten().filter(|operator| operator.watches(namespace));
    let asking = watching.flat_map(|operator| {
        let needs = needs(operator, namespace).into_iter();
        needs.map(move |(need, place, name)| right(client, operator, need, place, name))
    });
    join_all(asking).await
}

/// Whether an operator's account may read the Secrets of a namespace. Never `Missing`.
pub async fn reads_secrets(client: &Client, operator: &Operator, namespace: &str) -> Lookup<bool> {
    right(client, operator, READS, namespace, None).await.allowed
}

async fn right(client: &Client, operator: &Operator, need: Need, namespace: &str, name: Option<&str>) -> Right {
    let attributes = ResourceAttributes {
        group: Some(need.group.to_owned()),
        resource: Some(need.resource.to_owned()),
        subresource: Some(need.subresource.to_owned()),
        verb: Some(need.verb.to_owned()),
        namespace: Some(namespace.to_owned()),
        name: name.map(str::to_owned),
        ..ResourceAttributes::default()
    };
    let account = format!("system:serviceaccount:{}:{}", operator.namespace, operator.service_account);
    // The groups of every service account: without them, a right that is given to all of them is not seen.
    let groups =
        ["system:serviceaccounts", &format!("system:serviceaccounts:{}", operator.namespace), "system:authenticated"];
    let spec = SubjectAccessReviewSpec {
        resource_attributes: Some(attributes),
        user: Some(account),
        groups: Some(groups.iter().map(ToString::to_string).collect()),
        ..SubjectAccessReviewSpec::default()
    };
    let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
    let answer = Api::all(client.clone()).create(&PostParams::default(), &review).await;
    Right {
        account: format!("{}/{}", operator.namespace, operator.service_account),
        verb: need.verb,
        resource: need.words,
        namespace: namespace.to_owned(),
        is_minor: need.is_minor,
        allowed: Lookup::of(answer.map(|review| review.status.map(|status| status.allowed))),
    }
}
