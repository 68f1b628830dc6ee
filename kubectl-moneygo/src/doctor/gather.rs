//! What is looked at, with the user's own rights. What they do not allow is told, and fails nothing.

use std::collections::BTreeMap;

use futures::future::join_all;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, CustomResourceExt as _, ResourceExt as _};
use moneygo_operator::crd::{CLIENT_ID_KEY, CLIENT_SECRET_KEY, MoneyGoCredential};

use super::facts::{Credentials, Facts, KeyState, Lookup, Right, Target, refusal};
use super::finding::{Cause, Finding, Severity};
use super::operators::{self, Operator};
use super::pods::{Use, uses_of};
use crate::args::DoctorArgs;
use crate::cluster::{self, Cluster};

/// Objects of one answer.
const PAGE: u32 = 250;
/// More Pods of a namespace are not looked at.
const PODS_MAX: usize = 5_000;

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

/// The facts of every object that is wanted.
pub async fn all(cluster: &Cluster, wanted: &DoctorArgs) -> anyhow::Result<Vec<Facts>> {
    let objects = cluster.find(wanted.name.as_deref(), None).await?;
    if objects.is_empty() {
        anyhow::bail!("there is no MoneyGoCredential here: give -n, or -A");
    }
    let operators = operators::gather(&cluster.client, wanted.operator.operator_namespace.as_deref()).await;
    let served_versions = served_versions(&cluster.client).await;
    let (mut gathered, mut known) = (Vec::new(), BTreeMap::new());
    for object in objects {
        let namespace = object.namespace().unwrap_or_default();
        if !known.contains_key(&namespace) {
            known.insert(namespace.clone(), Surroundings::look(cluster, &namespace, &operators).await);
        }
        if let Some(around) = known.get(&namespace) {
            gathered.push(of_object(cluster, object, &operators, &served_versions, around).await);
        }
    }
    Ok(gathered)
}

/// What the objects of a namespace have in common: looked at once.
struct Surroundings {
    ends: Lookup<bool>,
    objects: Lookup<Vec<MoneyGoCredential>>,
    uses: Lookup<Vec<Use>>,
    rights: Vec<Right>,
}

impl Surroundings {
    async fn look(cluster: &Cluster, namespace: &str, operators: &Lookup<Vec<Operator>>) -> Self {
        let client = &cluster.client;
        let (ends, objects, uses, rights) = tokio::join!(
            namespace_ends(client, namespace),
            objects(cluster, namespace),
            uses(client, namespace),
            rights(client, namespace, operators.found()),
        );
        Self { ends, objects, uses, rights }
    }
}

async fn of_object(
    cluster: &Cluster,
    object: MoneyGoCredential,
    operators: &Lookup<Vec<Operator>>,
    served_versions: &Lookup<Vec<String>>,
    around: &Surroundings,
) -> Facts {
    let (client, namespace) = (&cluster.client, object.namespace().unwrap_or_default());
    let reference = &object.spec.credentials_ref;
    let (credentials, target, operators) = tokio::join!(
        secret(client, &namespace, &reference.name),
        secret(client, &namespace, object.target_name()),
        selecting(cluster, &object, &namespace, operators),
    );
    let id_key = reference.client_id_key.as_deref().unwrap_or(CLIENT_ID_KEY);
    let secret_key = reference.client_secret_key.as_deref().unwrap_or(CLIENT_SECRET_KEY);
    let credentials = credentials.map(|secret| Credentials {
        id: KeyState::of(&secret, id_key),
        secret: KeyState::of(&secret, secret_key),
        keys: secret.data.iter().flatten().map(|(key, _)| key.clone()).collect(),
    });
    let named = [object.target_name(), &reference.name];
    let uses = around.uses.clone().map(|mut uses| {
        uses.retain(|one| named.contains(&one.secret.as_str()));
        uses
    });
    let others = around.objects.clone().map(|mut others| {
        others.retain(|other| other.metadata.uid != object.metadata.uid);
        others
    });
    Facts {
        now: cluster::now(),
        served_versions: served_versions.clone(),
        namespace_ends: around.ends.clone(),
        credentials,
        target: target.map(Target::of),
        others,
        uses,
        operators,
        rights: around.rights.clone(),
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

async fn uses(client: &Client, namespace: &str) -> Lookup<Vec<Use>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let (mut params, mut found, mut seen) = (ListParams::default().limit(PAGE), Vec::new(), 0);
    loop {
        let page = match pods.list(&params).await {
            Ok(page) => page,
            Err(error) => return Lookup::Unknown(refusal(&error)),
        };
        seen += page.items.len();
        found.extend(page.items.iter().flat_map(uses_of));
        match page.metadata.continue_.filter(|token| !token.is_empty() && seen < PODS_MAX) {
            Some(token) => params.continue_token = Some(token),
            None => return Lookup::Found(found),
        }
    }
}

async fn objects(cluster: &Cluster, namespace: &str) -> Lookup<Vec<MoneyGoCredential>> {
    let (objects, mut params, mut found) = (cluster.objects(namespace), ListParams::default().limit(PAGE), Vec::new());
    loop {
        let page = match objects.list(&params).await {
            Ok(page) => page,
            Err(error) => return Lookup::Unknown(refusal(&error)),
        };
        found.extend(page.items.into_iter().map(cluster::read));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Lookup::Found(found),
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

/// What an operator does in a namespace that it watches: group, resource, subresource, verb, and in words.
const WORK: [(&str, &str, &str, &str, &str); 8] = [
    ("money-go.com", "moneygocredentials", "", "list", "moneygocredentials"),
    ("money-go.com", "moneygocredentials", "", "watch", "moneygocredentials"),
    ("money-go.com", "moneygocredentials", "status", "patch", "moneygocredentials/status"),
    ("", "secrets", "", "get", "secrets"),
    ("", "secrets", "", "list", "secrets"),
    ("", "secrets", "", "watch", "secrets"),
    ("", "secrets", "", "create", "secrets"),
    ("", "secrets", "", "update", "secrets"),
];
/// And in its own, to elect a leader.
const ELECTION: [(&str, &str, &str, &str, &str); 2] =
    [("coordination.k8s.io", "leases", "", "get", "leases"), ("coordination.k8s.io", "leases", "", "update", "leases")];

async fn rights(client: &Client, namespace: &str, operators: Option<&Vec<Operator>>) -> Vec<Right> {
    let watching = operators.into_iter().flatten().filter(|operator| operator.watches(namespace));
    let asking = watching.flat_map(|operator| {
        let lease = operator.lease.iter();
        let elects = lease.flat_map(|lease| ELECTION.iter().map(|one| (one, lease.namespace.as_str())));
        let work = WORK.iter().map(move |one| (one, namespace));
        work.chain(elects).map(move |(one, place)| right(client, operator, one, place))
    });
    join_all(asking).await
}

async fn right(
    client: &Client,
    operator: &Operator,
    (group, resource, subresource, verb, words): &'static (&str, &str, &str, &'static str, &'static str),
    namespace: &str,
) -> Right {
    let attributes = ResourceAttributes {
        group: Some((*group).to_owned()),
        resource: Some((*resource).to_owned()),
        subresource: Some((*subresource).to_owned()),
        verb: Some((*verb).to_owned()),
        namespace: Some(namespace.to_owned()),
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
        verb,
        resource: words,
        namespace: namespace.to_owned(),
        allowed: Lookup::of(answer.map(|review| review.status.map(|status| status.allowed))),
    }
}
