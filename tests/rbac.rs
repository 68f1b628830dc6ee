//! The documented rules are those that the operator needs: none is missing and none is unused. The API server's audit log is the
//! judge. In all other tests, too, the operator runs under these rules.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod stage;

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::rbac::v1::PolicyRule;
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta};
use moneygo_controlplane::{Access, AuditEvent, AuditMark};
use moneygo_operator::crd::MoneyGoCredential;
use serde::Deserialize as _;
use serde_json::{Value, json};
use stage::{SOON, Stage, client_secret_of};

const CRD: &str = include_str!("../crds/moneygocredentials.money-go.com.yaml");
const CLUSTER: &str = include_str!("../docs/rbac/cluster.yaml");
const NAMESPACED: &str = include_str!("../docs/rbac/namespaced.yaml");

/// The CRD of a time when `spec.suspend` was a text.
fn older_crd() -> String {
    let mut crd: Value = serde_yaml::from_str(CRD).unwrap();
    let schema = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    schema["properties"]["spec"]["properties"]["suspend"] = json!({"type": "string", "description": "yes or no"});
    serde_yaml::to_string(&crd).unwrap()
}

/// A stage with an object, `broken`, that an older schema let in. While a schema changes, the API server refuses requests for
/// its objects: hence servers of its own.
async fn open(name: &str, is_cluster_wide: bool) -> Stage {
    let setup = Stage::setup(name).own_plane().await;
    let stage = if is_cluster_wide { setup.cluster_wide() } else { setup }.open().await;
    stage.plane.install_crd(&older_crd()).await.unwrap();
    let broken = "
        apiVersion: money-go.com/v1alpha1
        kind: MoneyGoCredential
        metadata: {name: broken}
        spec: {credentialsRef: {name: broken-client}, suspend: 'yes'}";
    stage.credential_from_yaml(broken).await;
    stage.plane.install_crd(CRD).await.unwrap();
    stage
}

/// All that an operator ever does: it becomes the leader, makes a key for digests, creates a target and replaces its token, says that an object is
/// broken, waits for credentials, warns of their absence again after they were there (so that an event is repeated), and goes.
async fn everything(stage: &Stage) {
    let start = || {
        let flags = ["--leader-elect", "--leader-elect-lease-duration=3s", "--token-requests-per-second=100"];
        flags.into_iter().fold(stage.operator(), stage::OperatorBuilder::flag).start()
    };
    let operator = start().await;
    stage.subscribe("payments", json!({"target": {"authorizationKey": "authorization"}})).await;
    stage.ready("payments").await;
    for (count, request) in [(2, "once"), (3, "again")] {
        stage.request_refresh("payments", request).await;
        stage.moneygo.wait_for_grants("payments", count, SOON).await.unwrap();
        let is_answered = |scene: &stage::Scene| {
            let status = scene.credential("payments")?.status?;
            (status.last_handled_refresh.as_deref() == Some(request)).then_some(())
        };
        stage.until("the request is answered", SOON, is_answered).await;
    }
    stage.patch_secret("payments", json!({"metadata": {"labels": null}})).await;
    stage.credential("waiting", json!({})).await;
    stage.says("waiting", "Ready", "False", "CredentialsNotFound").await;
    let is_told = |scene: &stage::Scene| {
        let conditions = scene.any_credential("broken")?.data.pointer("/status/conditions")?.as_array()?.clone();
        conditions.iter().any(|one| one["reason"] == "InvalidSpec").then_some(())
    };
    stage.until("the broken object is told of", SOON, is_told).await;
    stage.told("payments", "TokenIssued").await;
    is_warned_of_again(stage, "waiting").await;
    operator.stop().await;
    let operator = start().await;
    stage.delete("payments").await;
    let is_gone = |scene: &stage::Scene| scene.secret("payments").is_none().then_some(());
    stage.until("the Secret is collected", SOON, is_gone).await;
    operator.stop().await;
}

/// The credentials of an object without any come, and go again: the second warning makes the first a series.
async fn is_warned_of_again(stage: &Stage, name: &str) {
    let client = stage::credentials_name(name);
    stage.told(name, "CredentialsNotFound").await;
    let metadata = ObjectMeta { name: Some(client.clone()), ..ObjectMeta::default() };
    stage.apply_secret(&Secret { metadata, ..Secret::default() }).await;
    stage.says(name, "Ready", "False", "CredentialsIncomplete").await;
    stage.delete_secret(&client).await;
    let is_series = async {
        while stage.told(name, "CredentialsNotFound").await.series.is_none() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, is_series).await.expect("the event is repeated");
}

/// One verb of one resource, and where it is granted: everywhere, where there is no namespace.
struct Right {
    namespace: Option<String>,
    group: String,
    resource: String,
    verb: String,
    names: Vec<String>,
}

impl Right {
    fn is_used_by(&self, request: &AuditEvent) -> bool {
        let resource = match request.subresource.as_str() {
            "" => request.resource.clone(),
            subresource => format!("{}/{subresource}", request.resource),
        };
        self.namespace.as_ref().is_none_or(|namespace| *namespace == request.namespace)
            && (&self.group, &self.resource, &self.verb) == (&request.api_group, &resource, &request.verb)
            && (self.names.is_empty() || self.names.contains(&request.name))
            && (200..300).contains(&request.code)
    }
}

/// A Role or a `ClusterRole`.
#[derive(serde::Deserialize)]
struct AnyRole {
    metadata: ObjectMeta,
    rules: Vec<PolicyRule>,
}

fn rights(manifests: &str, stage: &Stage) -> Vec<Right> {
    let roles = serde_yaml::Deserializer::from_str(manifests).map(|document| AnyRole::deserialize(document).unwrap());
    let in_role = |role: AnyRole| {
        let namespace = role.metadata.namespace.map(|namespace| {
            if namespace == "moneygo-system" { stage.own_namespace.clone() } else { stage.namespace.clone() }
        });
        role.rules.into_iter().flat_map(move |rule| rights_of(&rule, namespace.as_ref()))
    };
    roles.flat_map(in_role).collect()
}

fn rights_of(rule: &PolicyRule, namespace: Option<&String>) -> Vec<Right> {
    let mut rights = Vec::new();
    for group in rule.api_groups.iter().flatten() {
        for resource in rule.resources.iter().flatten() {
            for verb in &rule.verbs {
                rights.push(Right {
                    namespace: namespace.cloned(),
                    group: group.clone(),
                    resource: resource.clone(),
                    verb: verb.clone(),
                    names: rule.resource_names.clone().unwrap_or_default(),
                });
            }
        }
    }
    rights
}

/// Prints which rights were used how often, and returns those that were not.
fn unused(rights: &[Right], requests: &[AuditEvent]) -> Vec<String> {
    let mut unused = Vec::new();
    for right in rights {
        let uses = requests.iter().filter(|request| right.is_used_by(request)).count();
        let place = right.namespace.as_deref().unwrap_or("every namespace");
        let row = format!("{:<30} {:<20} {:<26} {:<7}", place, right.group, right.resource, right.verb);
        println!("{row} {uses:>4}");
        if uses == 0 {
            unused.push(row);
        }
    }
    unused
}

fn refused(requests: &[AuditEvent]) -> Vec<String> {
    let refused = requests.iter().filter(|request| request.code == 403);
    refused.map(|request| format!("{} {}", request.verb, request.request_uri)).collect()
}

async fn judge(stage: &Stage, manifests: &str) -> Vec<AuditEvent> {
    everything(stage).await;
    let requests = stage.requests(AuditMark::default());
    let unused = unused(&rights(manifests, stage), &requests);
    assert_eq!(refused(&requests), [""; 0], "a rule is missing");
    assert_eq!(unused, [""; 0], "a rule is not needed");
    requests
}

#[tokio::test(flavor = "multi_thread")]
async fn for_the_whole_cluster_no_rule_is_missing_and_none_unused() {
    let stage = open("rbac-cluster", true).await;
    judge(&stage, CLUSTER).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn for_a_namespace_no_rule_is_missing_and_none_unused_and_no_other_namespace_is_asked_for() {
    let stage = open("rbac-namespaced", false).await;
    let requests = judge(&stage, NAMESPACED).await;
    let own = [stage.namespace.as_str(), stage.own_namespace.as_str()];
    // Reviews of its own access are the stage's, which waits for the rules to be heeded.
    let is_about_objects =
        |request: &&AuditEvent| !request.resource.is_empty() && request.api_group != "authorization.k8s.io";
    let outside = requests.iter().filter(is_about_objects).filter(|request| !own.contains(&request.namespace.as_str()));
    let outside: Vec<_> = outside.map(|request| &request.request_uri).collect();
    assert_eq!(outside, [""; 0]);
}

/// What an attempt came to is remembered, even if it cannot be told.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_to_write_a_status_a_refused_client_is_not_asked_for_again_and_again() {
    let stage = Stage::setup("rbac-statusless").cluster_wide().open().await;
    let less = CLUSTER.replace("resources: [moneygocredentials/status]", "resources: [moneygocredentials/stature]");
    assert_ne!(less, CLUSTER);
    let user = stage.plane.user(&Access::default().manifests(&less, &stage.own_namespace).unwrap()).await.unwrap();
    let mark = stage.mark();
    let operator = stage.operator().env("KUBECONFIG", &user.kubeconfig).start().await;
    stage.client_secret("payments-client", "payments", &client_secret_of("another")).await;
    stage.credential("payments", json!({"credentialsRef": {"name": "payments-client"}})).await;
    let tries = || {
        let requests = stage.plane.audit_events(mark, Some(&user.name)).unwrap();
        refused(&requests).iter().filter(|request| request.contains("/moneygocredentials/payments/status")).count()
    };
    let many = async {
        while tries() < 5 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, many).await.expect("the status is tried again");
    assert_eq!(stage.moneygo.requests().len(), 1);
    operator.stop().await;
}

/// Nor could it: the API server refuses what it never tries.
#[tokio::test(flavor = "multi_thread")]
async fn beside_its_namespaces_it_may_do_nothing_and_says_nothing_of_them() {
    let stage = Stage::new("rbac-narrow").await;
    let operator = stage.operator().flag("--log-level=debug").start().await;
    stage.subscribe("payments", json!({})).await;
    stage.ready("payments").await;

    let elsewhere = Stage::new("rbac-elsewhere").await;
    elsewhere.subscribe("others", json!({})).await;
    let client = stage.user.client().await.unwrap();
    let secrets = Api::<Secret>::namespaced(client.clone(), &elsewhere.namespace);
    let credentials = Api::<MoneyGoCredential>::namespaced(client.clone(), &elsewhere.namespace);
    let everywhere = Api::<Secret>::all(client);
    let list = ListParams::default();
    let code = |error: kube::Error| if let kube::Error::Api(status) = error { status.code } else { 0 };
    let refusals = [
        secrets.get("others-client").await.map(drop),
        secrets.list(&list).await.map(drop),
        secrets.delete("others-client", &DeleteParams::default()).await.map(drop),
        credentials.list(&list).await.map(drop),
        everywhere.list(&list).await.map(drop),
    ];
    assert_eq!(refusals.map(|refused| code(refused.unwrap_err())), [403; 5]);

    // Time enough to meet the other object, had it been looked for.
    stage.request_refresh("payments", "now").await;
    stage.moneygo.wait_for_grants("payments", 2, SOON).await.unwrap();
    let log = operator.log();
    assert!(!log.contains(&elsewhere.namespace) && !log.contains(" WARN ") && !log.contains(" ERROR "), "{log}");
    assert_eq!(elsewhere.moneygo.requests().len(), 0);
    operator.stop().await;
}

/// The rights for the whole cluster serve for some namespaces, too, though one cannot be read by itself with them.
#[tokio::test(flavor = "multi_thread")]
async fn with_rights_for_the_whole_cluster_it_can_keep_to_some_namespaces() {
    let stage = Stage::new("rbac-wide").await;
    let user = stage.plane.user(&Access::default().manifests(CLUSTER, &stage.own_namespace).unwrap()).await.unwrap();
    let operator = stage.operator().env("KUBECONFIG", &user.kubeconfig).start().await;
    stage.subscribe("payments", json!({})).await;
    stage.ready("payments").await;
    operator.stop().await;
}

/// That a missing rule is noticed: by whoever reads the object, and by the judge above.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_rule_the_object_says_so() {
    let stage = Stage::setup("rbac-less").cluster_wide().open().await;
    let less = CLUSTER.replace("watch, create, update]", "watch, create]");
    assert_ne!(less, CLUSTER);
    let user = stage.plane.user(&Access::default().manifests(&less, &stage.own_namespace).unwrap()).await.unwrap();
    let mark = stage.mark();
    let operator = stage.operator().env("KUBECONFIG", &user.kubeconfig).start().await;
    stage.subscribe("payments", json!({})).await;
    stage.ready("payments").await;
    stage.request_refresh("payments", "now").await;
    stage.says("payments", "Refreshed", "False", "TargetForbidden").await;
    stage.says("payments", "Ready", "True", "TokenValid").await;
    let refused = refused(&stage.plane.audit_events(mark, Some(&user.name)).unwrap());
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert!(refused[0].starts_with("update ") && refused[0].contains("/secrets/payments"), "{refused:?}");
    assert!(operator.log().contains("cannot update resource"), "the log says which right is missing");
    operator.stop().await;
}
