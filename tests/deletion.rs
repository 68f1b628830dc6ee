//! Deleting: what is owned goes, what is retained stays, and nothing is minted or written meanwhile.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod stage;

use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::{DeleteParams, ObjectMeta, PostParams};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, ResourceExt as _};
use moneygo_controlplane::AuditMark;
use serde_json::json;
use stage::{Operator, SOON, Stage, client_secret_of, credentials_name};

/// Objects in a namespace that is deleted as a whole.
const CROWD: usize = 50;

async fn gone(stage: &Stage, object: &str) {
    let look = |scene: &stage::Scene| scene.any_credential(object).is_none().then_some(());
    stage.until(&format!("the object {object} is gone"), SOON, look).await;
}

async fn secret_gone(stage: &Stage, secret: &str) {
    let look = |scene: &stage::Scene| scene.secret(secret).is_none().then_some(());
    stage.until(&format!("the Secret {secret} is gone"), SOON, look).await;
}

/// Returns when the operator has seen all that happened before: it says something of an object made now. No grant is needed.
async fn has_seen(stage: &Stage, name: &str) {
    stage.credential(name, json!({})).await;
    stage.says(name, "Ready", "False", "CredentialsNotFound").await;
    stage.client_secret(&credentials_name(name), name, &format!(" {}", client_secret_of("malformed"))).await;
    stage.says(name, "Ready", "False", "CredentialsMalformed").await;
}

fn secret_writes(stage: &Stage, since: AuditMark, after: SystemTime) -> Vec<String> {
    let requests = stage.requests(since).into_iter().filter(|request| SystemTime::from(request.at) > after);
    let writes = requests.filter(|request| request.resource == "secrets" && request.namespace == stage.namespace);
    let writes = writes.filter(|request| !matches!(request.verb.as_str(), "get" | "list" | "watch"));
    writes.map(|request| format!("{} {} {}", request.verb, request.request_uri, request.code)).collect()
}

/// Waits until the operator has had this many tokens.
async fn has_answers(operator: &mut Operator<'_>, count: usize) {
    let wanted = format!("token_requests_total{{result=\"Succeeded\"}} {count}");
    let started = Instant::now();
    while !operator.get("/metrics").await.is_some_and(|(_, metrics)| metrics.contains(&wanted)) {
        assert!(started.elapsed() < SOON, "the operator does not say {wanted}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owned_secret_goes_with_its_object_and_the_retained_one_stays() {
    let stage = Stage::new("policies").await;
    let operator = stage.operator().start().await;
    stage.subscribe("owned", json!({})).await;
    stage.subscribe("retained", json!({"target": {"deletionPolicy": "Retain"}})).await;
    stage.ready("owned").await;
    stage.ready("retained").await;
    let (retained, mark) = (stage.secret("retained").await, stage.mark());
    stage.delete("owned").await;
    stage.delete("retained").await;
    secret_gone(&stage, "owned").await;
    gone(&stage, "retained").await;
    has_seen(&stage, "fence").await;
    assert_eq!(stage.secret("retained").await, retained);
    assert_eq!(secret_writes(&stage, mark, SystemTime::UNIX_EPOCH), [""; 0]);
    assert_eq!(stage.moneygo.request_count(), 2);
    operator.stop().await;
}

/// No pass looks at it any more, and its token ends all the same.
#[tokio::test(flavor = "multi_thread")]
async fn of_an_object_that_is_being_deleted_for_long_it_is_told_that_its_token_has_ended() {
    let life = Duration::from_secs(8);
    let stage = Stage::setup("lasting").moneygo(|moneygo| moneygo.expires_in(life)).open().await;
    let operator = stage.operator().start().await;
    stage.subscribe("payments", json!({})).await;
    stage.ready("payments").await;
    stage.patch("payments", json!({"metadata": {"finalizers": ["example.com/wait"]}})).await;
    stage.delete("payments").await;
    has_seen(&stage, "fence").await;
    let grants = stage.grants_of("payments");
    let told =
        |scene: &stage::Scene| scene.condition("payments", "Ready").filter(|ready| ready.reason == "TokenExpired");
    stage.until("the end is told", SOON * 2, told).await;
    let refreshed = stage.scene().condition("payments", "Refreshed").unwrap();
    assert!(refreshed.message.contains("is being deleted"), "{}", refreshed.message);
    assert_eq!(stage.grants_of("payments"), grants);
    stage.patch("payments", json!({"metadata": {"finalizers": null}})).await;
    gone(&stage, "payments").await;
    operator.stop().await;
}

/// A finalizer of someone else keeps the object for long, and whatever would ask for a token happens meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_being_deleted_asks_for_nothing_and_writes_nothing() {
    let stage = Stage::new("finalizer").await;
    let operator = stage.operator().start().await;
    for name in ["deleted", "edited", "relabelled"] {
        stage.subscribe(name, json!({})).await;
        stage.ready(name).await;
        stage.patch(name, json!({"metadata": {"finalizers": ["example.com/wait"]}})).await;
        stage.delete(name).await;
    }
    has_seen(&stage, "fence").await;
    let mark = stage.mark();
    stage.delete_secret("deleted").await;
    stage.patch_secret("edited", json!({"stringData": {"access_token": "edited"}})).await;
    stage.patch_secret("relabelled", json!({"metadata": {"labels": null, "annotations": null}})).await;
    for name in ["deleted", "edited", "relabelled"] {
        stage.request_refresh(name, "now").await;
        stage.patch(name, json!({"spec": {"scope": "other"}})).await;
        stage.client_secret(&credentials_name(name), name, &client_secret_of("rotated")).await;
    }
    has_seen(&stage, "another-fence").await;
    assert_eq!(secret_writes(&stage, mark, SystemTime::UNIX_EPOCH), [""; 0]);
    assert_eq!(stage.moneygo.request_count(), 3);

    for name in ["deleted", "edited", "relabelled"] {
        stage.patch(name, json!({"metadata": {"finalizers": null}})).await;
        secret_gone(&stage, name).await;
    }
    assert_eq!(secret_writes(&stage, mark, SystemTime::UNIX_EPOCH), [""; 0]);
    assert_eq!(stage.moneygo.request_count(), 3);
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_comes_after_the_deletion_is_dropped() {
    let stage = Stage::new("late").await;
    let mut operator = stage.operator().start().await;
    stage.moneygo.hold_answers();
    stage.subscribe("owned", json!({})).await;
    // There is no Secret yet, and none is made for an object that is gone.
    stage.subscribe("retained", json!({"target": {"deletionPolicy": "Retain"}})).await;
    stage.moneygo.wait_for_held(2, SOON).await.unwrap();
    stage.delete("owned").await;
    stage.delete("retained").await;
    has_seen(&stage, "fence").await;
    let mark = stage.mark();
    stage.moneygo.release();
    has_answers(&mut operator, 2).await;
    has_seen(&stage, "another-fence").await;
    assert_eq!(secret_writes(&stage, mark, SystemTime::UNIX_EPOCH), [""; 0]);
    assert!(stage.scene().secret("owned").is_none() && stage.scene().secret("retained").is_none());
    assert_eq!(stage.moneygo.ledger().len(), 2);
    operator.stop().await;
}

/// The new one waits in the queue of grants as the request for the old one ends.
#[tokio::test(flavor = "multi_thread")]
async fn an_object_made_anew_while_a_token_is_asked_for_gets_one_of_its_own() {
    let stage = Stage::new("anew").await;
    let operator = stage.operator().flag("--token-requests-per-second=0.2").start().await;
    stage.moneygo.hold_answers();
    stage.subscribe("a", json!({})).await;
    stage.moneygo.wait_for_held(1, SOON).await.unwrap();
    stage.delete("a").await;
    gone(&stage, "a").await;
    stage.credential("a", json!({})).await;
    has_seen(&stage, "fence").await;
    stage.moneygo.release();
    stage.ready("a").await;
    assert_eq!(stage.grants_of("a"), 2);
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_comes_after_the_deletion_is_written_to_a_retained_secret() {
    let stage = Stage::new("late-retained").await;
    let operator = stage.operator().start().await;
    stage.subscribe("retained", json!({"target": {"deletionPolicy": "Retain"}})).await;
    stage.ready("retained").await;
    stage.moneygo.hold_answers();
    stage.request_refresh("retained", "now").await;
    stage.moneygo.wait_for_held(1, SOON).await.unwrap();
    stage.delete("retained").await;
    has_seen(&stage, "fence").await;
    stage.moneygo.release();
    let late = stage.moneygo.wait_for_grants("retained", 2, SOON).await.unwrap().pop().unwrap();
    let is_there = |scene: &stage::Scene| (scene.token("retained")? == late.token).then_some(());
    stage.until("the late token is in the retained Secret", SOON, is_there).await;
    has_seen(&stage, "another-fence").await;
    assert_eq!(stage.grants_of("retained"), 2);
    operator.stop().await;
}

/// A provider may have ended the token before: the one that is in the Secret would be dead.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_comes_after_the_object_left_the_label_selector_is_written_all_the_same() {
    let stage = Stage::setup("relabelled").cluster_wide().open().await;
    let operator = stage.operator().start().await;
    stage.subscribe("moved", json!({})).await;
    stage.ready("moved").await;
    stage.moneygo.hold_answers();
    stage.request_refresh("moved", "now").await;
    stage.subscribe("new", json!({})).await;
    stage.moneygo.wait_for_held(2, SOON).await.unwrap();
    for name in ["moved", "new"] {
        stage.patch(name, json!({"metadata": {"labels": {"stage": "another"}}})).await;
    }
    has_seen(&stage, "fence").await;
    stage.moneygo.release();
    for (name, grants) in [("moved", 2), ("new", 1)] {
        let late = stage.moneygo.wait_for_grants(name, grants, SOON).await.unwrap().pop().unwrap();
        let is_there = |scene: &stage::Scene| (scene.token(name)? == late.token).then_some(());
        stage.until("the late token is in the Secret", SOON, is_there).await;
    }
    has_seen(&stage, "another-fence").await;
    assert_eq!((stage.grants_of("moved"), stage.grants_of("new")), (2, 1));
    operator.stop().await;
}

/// A namespace with as many plain Secrets, for comparison.
async fn plain_namespace(stage: &Stage) -> String {
    let name = stage.plane.namespace("plain").await.unwrap();
    let secrets: Api<Secret> = Api::namespaced(stage.admin.clone(), &name);
    for number in 0..CROWD {
        let metadata = ObjectMeta { name: Some(format!("plain-{number}")), ..ObjectMeta::default() };
        let data = [("key".to_owned(), ByteString(b"value".to_vec()))].into();
        let secret = Secret { metadata, data: Some(data), ..Secret::default() };
        secrets.create(&PostParams::default(), &secret).await.unwrap();
    }
    name
}

/// Deletes a namespace, and returns how long it took until it was gone.
async fn delete_namespace(stage: &Stage, name: &str) -> Duration {
    let namespaces: Api<Namespace> = Api::all(stage.admin.clone());
    let uid = namespaces.get(name).await.unwrap().uid().unwrap();
    let started = Instant::now();
    namespaces.delete(name, &DeleteParams::default()).await.unwrap();
    let is_gone = await_condition(namespaces, name, conditions::is_deleted(&uid));
    tokio::time::timeout(Duration::from_mins(1), is_gone).await.expect("the namespace is gone in time").unwrap();
    started.elapsed()
}

/// The tokens are due for a refresh while the namespace goes: its controller waits for 5 s before it does anything.
async fn a_namespace_goes(stage: Stage) {
    let operator = stage.operator().flag("--token-requests-per-second=200").start().await;
    stage.moneygo.set_expires_in(Duration::from_secs(12));
    for number in 0..CROWD {
        stage.subscribe(&format!("payments-{number}"), json!({"refresh": {"renewBeforePercentage": 60}})).await;
    }
    let all = |scene: &stage::Scene| (scene.credentials().filter(stage::is_ready).count() == CROWD).then_some(());
    stage.until("all are Ready", SOON, all).await;
    let plain = plain_namespace(&stage).await;
    // Every token is fresh: whatever is asked for from here on is for the deletion's sake.
    for number in 0..CROWD {
        stage.request_refresh(&format!("payments-{number}"), "fresh").await;
    }
    for number in 0..CROWD {
        let name = format!("payments-{number}");
        stage.moneygo.wait_for_grants(&name, 2, SOON).await.unwrap();
        stage
            .until("the request is answered", SOON, |scene| scene.credential(&name)?.status?.last_handled_refresh)
            .await;
    }

    let (mark, begun) = (stage.mark(), stage::now());
    let (took, plain_took) = tokio::join!(delete_namespace(&stage, &stage.namespace), delete_namespace(&stage, &plain));
    println!(
        "a namespace with {CROWD} objects is gone after {took:.1?}, one with {CROWD} plain Secrets after {plain_took:.1?}"
    );
    assert!(took < plain_took + Duration::from_secs(5), "{took:?}, {plain_took:?}");
    // The deletion is seen some moments after it is asked for.
    let seen = begun + Duration::from_secs(1);
    let asked = stage.moneygo.requests().into_iter().filter(|request| request.received_at > seen);
    assert_eq!(asked.count(), 0);
    assert_eq!(secret_writes(&stage, mark, seen), [""; 0]);
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_goes_in_its_own_time_with_the_whole_cluster_watched() {
    a_namespace_goes(Stage::setup("crowd").cluster_wide().open().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_goes_in_its_own_time_with_this_namespace_watched() {
    a_namespace_goes(Stage::new("crowd-named").await).await;
}
