//! Set-ups that are broken, each for real, and the cause that `doctor` names first.

use std::time::Duration;

use fake_moneygo::Script;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::api::{DeleteParams, ObjectMeta, PostParams};
use kube::{Api, ResourceExt as _};
use moneygo_controlplane::ControlPlane;
use serde_json::json;

use crate::plugin::{Plugin, Ran, deploy, entitle, mounting_pod, pod};
use crate::stage::{Backend, SOON, Stage, client_secret_of, condition};

/// What is broken, the arguments behind `doctor`, and the cause that is to be named.
struct Case {
    setup: &'static str,
    args: Vec<String>,
    cause: &'static str,
}

fn case(setup: &'static str, name: &str, cause: &'static str) -> Case {
    Case { setup, args: vec![name.to_owned()], cause }
}

/// The worst finding's cause, and what is to be done.
fn first(ran: &Ran) -> Option<(String, String)> {
    let report = ran.json();
    let finding = report["diagnoses"][0]["findings"].as_array()?.first()?.clone();
    Some((finding["cause"].as_str()?.to_owned(), finding["what"].as_str()?.to_owned()))
}

/// The table of what was set up and what was named.
#[derive(Default)]
struct Table(Vec<(String, String, bool)>);

impl Table {
    /// Asks the doctor until it names the cause, which may take until the operator or a clock has gone on.
    async fn judge(&mut self, plugin: &Plugin<'_>, case: Case) {
        let mut args = vec!["doctor", "-o", "json"];
        args.extend(case.args.iter().map(String::as_str));
        let is_named = |ran: &Ran| first(ran).is_some_and(|(cause, _)| cause == case.cause);
        let ran = plugin.until(&args, &format!("{}: {} is named first", case.setup, case.cause), is_named).await;
        let (named, what) = first(&ran).unwrap();
        self.0.push((case.setup.to_owned(), format!("{named}: {what}"), named == case.cause));
    }

    fn print(&self) {
        for (setup, named, is_right) in &self.0 {
            println!("{} {setup:<52} {named}", if *is_right { "ok" } else { "WRONG" });
        }
        println!("{} broken set-ups, {} causes named rightly", self.0.len(), self.0.iter().filter(|one| one.2).count());
    }
}

async fn raw_secret(stage: &Stage, name: &str, data: &[(&str, &[u8])]) {
    let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
    let data = data.iter().map(|(key, value)| ((*key).to_owned(), ByteString(value.to_vec()))).collect();
    stage.apply_secret(&Secret { metadata, data: Some(data), ..Secret::default() }).await;
}

/// An object whose client the endpoint answers in some way for ever.
async fn answered(stage: &Stage, name: &str, script: Script) {
    stage.moneygo.script(name, script.forever());
    stage.subscribe(name, json!({})).await;
}

async fn break_clients(stage: &Stage) -> Vec<Case> {
    stage.credential("no-secret", json!({})).await;
    raw_secret(stage, "no-key-client", &[("client_id", b"a"), ("password", b"b")]).await;
    raw_secret(stage, "empty-client", &[("client_id", b"a"), ("client_secret", b"")]).await;
    raw_secret(stage, "newline-client", &[("client_id", b"a"), ("client_secret", b"secret\n")]).await;
    raw_secret(stage, "binary-client", &[("client_id", b"a"), ("client_secret", b"\xff\xfe")]).await;
    raw_secret(stage, "bom-client", &[("client_id", b"\xef\xbb\xbfa"), ("client_secret", b"b")]).await;
    for name in ["no-key", "empty", "newline", "binary", "bom"] {
        stage.credential(name, json!({})).await;
    }
    stage.moneygo.add_client("rejected", "another");
    stage.client_secret("rejected-client", "rejected", &client_secret_of("rejected")).await;
    stage.credential("rejected", json!({})).await;
    stage.subscribe("scope", json!({"scope": "nonsense"})).await;
    answered(stage, "throttled", Script::status(429)).await;
    answered(stage, "gateway", Script::canned(200, "<html>Welcome</html>")).await;
    answered(stage, "down", Script::status(503)).await;
    stage.subscribe("paused", json!({"suspend": true})).await;
    stage.subscribe("first", json!({})).await;
    stage.ready("first").await;
    stage.credential("second", json!({"credentialsRef": {"name": "first-client"}})).await;
    stage.ready("second").await;
    for name in ["first", "second"] {
        mounting_pod(stage, &format!("pod-of-{name}"), name).await;
    }
    vec![
        case("the credentials Secret does not exist", "no-secret", "CredentialsNotFound"),
        case("it lacks the key of the client secret", "no-key", "CredentialsKeyMissing"),
        case("the client secret is empty", "empty", "CredentialsEmpty"),
        case("the client secret ends with a newline", "newline", "CredentialsWhiteSpace"),
        case("the client secret is not text", "binary", "CredentialsNotText"),
        case("the client id begins with a byte order mark", "bom", "CredentialsNotText"),
        case("the endpoint does not know the client secret", "rejected", "ClientRejected"),
        case("the endpoint does not allow the scope", "scope", "RequestRejected"),
        case("the endpoint answers 429", "throttled", "RateLimited"),
        case("a gateway's page answers", "gateway", "BadResponse"),
        case("the endpoint answers 503", "down", "EndpointUnavailable"),
        case("spec.suspend, and no token yet", "paused", "Suspended"),
        case("two objects with one client", "first", "CredentialsShared"),
    ]
}

async fn break_targets(stage: &Stage) -> Vec<Case> {
    raw_secret(stage, "foreign", &[("password", b"of somebody")]).await;
    stage.subscribe("foreign", json!({})).await;

    let maps: Api<ConfigMap> = Api::namespaced(stage.admin.clone(), &stage.namespace);
    let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owner"}});
    let owner = maps.create(&PostParams::default(), &serde_json::from_value(owner).unwrap()).await.unwrap();
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "owned", "ownerReferences": [
        {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.uid(), "controller": true}]}});
    stage.apply_secret(&serde_json::from_value(secret).unwrap()).await;
    stage.subscribe("owned", json!({})).await;

    stage.subscribe("winner", json!({"target": {"name": "contested"}})).await;
    stage.ready("winner").await;
    stage.subscribe("loser", json!({"target": {"name": "contested"}})).await;

    let immutable = json!({"apiVersion": "v1", "kind": "Secret", "immutable": true, "metadata": {"name": "immutable",
        "annotations": {"money-go.com/adopt": "immutable"}}});
    stage.apply_secret(&serde_json::from_value(immutable).unwrap()).await;
    stage.subscribe("immutable", json!({})).await;

    let metadata = ObjectMeta { name: Some("refused".to_owned()), ..ObjectMeta::default() };
    stage.refuse(&Secret { metadata, ..Secret::default() }, json!({"reason": "Forbidden"})).await;
    stage.subscribe("refused", json!({})).await;

    stage.call_for_secrets(json!({"unavailable": "yes"}), &Backend::away().await).await;
    stage.subscribe("unavailable", json!({"target": {"labels": {"unavailable": "yes"}}})).await;

    stage.subscribe("ending", json!({})).await;
    stage.ready("ending").await;
    stage.patch("ending", json!({"metadata": {"finalizers": ["example.com/hold"]}})).await;
    stage.delete("ending").await;
    vec![
        case("the target Secret is somebody else's", "foreign", "TargetForeign"),
        case("the target Secret has another controller", "owned", "TargetForeign"),
        case("two objects with one target: the one that lost", "loser", "TargetRival"),
        case("the target Secret is immutable", "immutable", "TargetImmutable"),
        case("admission refuses the target Secret", "refused", "TargetForbidden"),
        case("what admission asks about the target Secret is away", "unavailable", "SecretsUnavailable"),
        case("the object is held by a finalizer while it goes", "ending", "ObjectEnding"),
    ]
}

async fn break_pods(stage: &Stage) -> Vec<Case> {
    for name in ["by-sub-path", "by-variable", "all-variables", "wrong-key", "with-client", "unused"] {
        stage.subscribe(name, json!({})).await;
        stage.ready(name).await;
    }
    let volume = |secret: &str| json!([{"name": "token", "secret": {"secretName": secret}}]);
    let mount = json!({"name": "token", "mountPath": "/token", "subPath": "access_token"});
    pod(stage, "sub-path", json!({"volumeMounts": [mount]}), volume("by-sub-path")).await;
    let reference = |secret: &str, key: &str| json!({"secretKeyRef": {"name": secret, "key": key}});
    let variable = |secret, key| json!({"env": [{"name": "TOKEN", "valueFrom": reference(secret, key)}]});
    pod(stage, "variable", variable("by-variable", "access_token"), json!([])).await;
    let all = json!({"envFrom": [{"secretRef": {"name": "all-variables"}}]});
    pod(stage, "variables", all, json!([])).await;
    pod(stage, "wrong-key", variable("wrong-key", "token"), json!([])).await;
    mounting_pod(stage, "with-client", "with-client-client").await;
    vec![
        case("a Pod mounts the token by subPath", "by-sub-path", "PodSubPath"),
        case("a Pod has the token in a variable", "by-variable", "PodVariable"),
        case("a Pod has every key in variables", "all-variables", "PodVariable"),
        case("a Pod names a key that is not there", "wrong-key", "PodKeyMissing"),
        case("a Pod mounts the credentials Secret", "with-client", "PodUsesCredentials"),
        case("no Pod uses the token", "unused", "NoPodUses"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn the_right_cause_is_named_for_each_broken_setup() {
    let stage = Stage::new("broken").await;
    let watched = format!("--watch-namespace={}", stage.namespace);
    deploy(&stage, "moneygo-operator", &[&watched], 1).await;
    entitle(&stage).await;
    let operator = stage.operator().flag("--leader-elect").start().await;
    let (plugin, mut table) = (Plugin::new(&stage), Table::default());

    let mut cases = break_clients(&stage).await;
    cases.extend(break_targets(&stage).await);
    cases.extend(break_pods(&stage).await);
    for case in cases {
        table.judge(&plugin, case).await;
    }
    overwritten(&stage, &plugin, &mut table).await;
    unwatched(&stage, &plugin, &mut table).await;
    without_rights(&stage, &plugin, &mut table, &watched).await;

    // What is left as it is once nobody works any more.
    for name in ["key-gone", "edited", "secret-gone"] {
        stage.subscribe(name, json!({})).await;
        stage.ready(name).await;
    }
    for (name, lifetime, percent) in [("expired", 20, 5), ("overdue", 90, 90)] {
        stage.moneygo.set_expires_in_of(name, Some(Duration::from_secs(lifetime)));
        stage.subscribe(name, json!({"refresh": {"renewBeforePercentage": percent}})).await;
        stage.ready(name).await;
    }
    operator.stop().await;
    idle(&stage, &plugin, &mut table).await;

    table.print();
    println!(
        "{} outputs hold no secret",
        plugin.told_no_secret(&["rejected", "scope", "first", "foreign", "with-client"])
    );
    assert!(table.0.iter().all(|(_, _, is_right)| *is_right));
}

/// Somebody keeps overwriting the token.
async fn overwritten(stage: &Stage, plugin: &Plugin<'_>, table: &mut Table) {
    stage.subscribe("fought-over", json!({})).await;
    stage.ready("fought-over").await;
    for round in 0..30 {
        let value = ByteString(format!("of somebody else {round}").into_bytes());
        stage.patch_secret("fought-over", json!({"data": {"access_token": value}})).await;
        let answered = |scene: &crate::stage::Scene| {
            let ready = scene.condition("fought-over", "Ready")?;
            let is_mended = scene.token("fought-over").is_some_and(|token| !token.starts_with("of somebody"));
            (is_mended || ready.reason == "TargetOverwritten").then_some(ready.reason)
        };
        if stage.until("the token is mended, or given up", SOON, answered).await == "TargetOverwritten" {
            break;
        }
    }
    let object = stage.get("fought-over").await;
    assert_eq!(condition(&object, "Ready").unwrap().reason, "TargetOverwritten");
    // The edit is what is there to be seen.
    table.judge(plugin, case("somebody keeps overwriting the token", "fought-over", "TargetEdited")).await;
}

/// A namespace of nobody's, and one whose operator looks for other labels.
async fn unwatched(stage: &Stage, plugin: &Plugin<'_>, table: &mut Table) {
    let other = Stage::setup("broken-unwatched").beside(stage).open().await;
    other.subscribe("payments", json!({})).await;
    let args = vec!["payments".to_owned(), "-n".to_owned(), other.namespace.clone()];
    let case = |setup, cause| Case { setup, args: args.clone(), cause };
    table.judge(plugin, case("no operator watches the namespace", "NotWatched")).await;

    let (watched, selected) = (format!("--watch-namespace={}", other.namespace), "--label-selector=team=payments");
    deploy(&other, "second", &[&watched, selected, "--leader-elect-lease-name=second"], 1).await;
    other.plane.forbid(&other.user, &other.own_namespace).await.unwrap();
    other.be_at_home(&other.user, &other.own_namespace, "second").await;
    let operator = other.operator().flag(selected).flag("--leader-elect").flag("--leader-elect-lease-name=second");
    let operator = operator.start().await;
    let labelled = case("the operator looks for other labels", "NotSelected");
    table.judge(plugin, labelled).await;
    operator.stop().await;

    other.patch("payments", json!({"metadata": {"finalizers": ["example.com/hold"]}})).await;
    let namespaces: Api<Namespace> = Api::all(stage.admin.clone());
    namespaces.delete(&other.namespace, &DeleteParams::default()).await.unwrap();
    table.judge(plugin, case("the namespace is being deleted", "NamespaceEnding")).await;
    other.patch("payments", json!({"metadata": {"finalizers": null}})).await;
    crate::plugin::deployments(stage).delete("second", &DeleteParams::default()).await.unwrap();
}

/// The Deployment's account has no rights.
async fn without_rights(stage: &Stage, plugin: &Plugin<'_>, table: &mut Table, watched: &str) {
    let account = |name: &str| json!({"spec": {"template": {"spec": {"serviceAccountName": name}}}});
    let deployments = crate::plugin::deployments(stage);
    let patch = async |name: &str| {
        let patch = kube::api::Patch::Merge(account(name));
        deployments.patch("moneygo-operator", &kube::api::PatchParams::default(), &patch).await.unwrap();
    };
    patch("powerless").await;
    table.judge(plugin, case("the operator's account has no Role", "winner", "OperatorMayNot")).await;
    patch("moneygo-operator").await;

    deploy(stage, "another", &[watched], 1).await;
    table.judge(plugin, case("two operators watch one namespace", "winner", "TwoOperators")).await;
    deployments.delete("another", &DeleteParams::default()).await.unwrap();
}

/// The operator has stopped.
async fn idle(stage: &Stage, plugin: &Plugin<'_>, table: &mut Table) {
    stage.subscribe("unseen", json!({})).await;
    stage.patch("first", json!({"spec": {"scope": "other"}})).await;
    table.judge(plugin, case("the operator has stopped: nobody holds the Lease", "winner", "NobodyLeads")).await;
    stage.patch_secret("key-gone", json!({"data": {"access_token": null}})).await;
    stage.patch_secret("edited", json!({"data": {"access_token": ByteString(b"of somebody".to_vec())}})).await;
    stage.delete_secret("secret-gone").await;
    table.judge(plugin, case("the token was taken out of the Secret", "key-gone", "TargetKeyMissing")).await;
    table.judge(plugin, case("the token was overwritten", "edited", "TargetEdited")).await;
    table.judge(plugin, case("the target Secret was deleted", "secret-gone", "TargetMissing")).await;
    table.judge(plugin, case("the token expired while nobody worked", "expired", "NobodyLeads")).await;

    // With the Deployment gone, what follows from it is all that is left.
    deploy(stage, "moneygo-operator", &[], 0).await;
    table.judge(plugin, case("the Deployment has no ready replica", "winner", "OperatorNotReady")).await;
    crate::plugin::deployments(stage).delete("moneygo-operator", &DeleteParams::default()).await.unwrap();
    table.judge(plugin, case("there is no operator at all", "unseen", "OperatorMissing")).await;
    let also = [
        ("expired", "TokenExpired"),
        ("overdue", "RefreshOverdue"),
        ("unseen", "NeverLookedAt"),
        ("first", "StatusBehind"),
    ];
    for (name, cause) in also {
        let names = |ran: &Ran| ran.json().to_string().contains(&format!("\"cause\":\"{cause}\""));
        plugin.until(&["doctor", name, "-o", "json"], cause, names).await;
        println!("ok {name}: {cause} is named beside OperatorMissing");
    }
    let now = Timestamp::try_from(crate::stage::now()).unwrap();
    assert!(stage.get("expired").await.status.unwrap().expires_at.unwrap() <= now);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_without_the_definition_is_told() {
    let plane = ControlPlane::start().await.expect("a control plane");
    let run = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_kubectl-moneygo"));
        let output = command.args(args).env("KUBECONFIG", plane.kubeconfig()).output().expect("the plugin runs");
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, told, _) = run(&["doctor", "payments"]);
    println!("{told}");
    assert_eq!(code, Some(1));
    assert!(told.contains("DefinitionMissing"), "{told}");
    let (code, _, told) = run(&["status"]);
    println!("{told}");
    assert_eq!(code, Some(2));
    assert!(told.contains("install the operator's chart"), "{told}");
    plane.shutdown().await.expect("it ends");
}
