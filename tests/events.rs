//! Each thing that a person must know is told by one event, and not once more by a retry that ends the same way. docs/events.md lists them.
//!
//! The operator starts once there is what it is to find: two watches have no order, and an object that is seen before its credentials is told so.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod stage;

use std::collections::BTreeMap;

use fake_moneygo::Script;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PostParams};
use moneygo_operator::crd::annotation;
use serde_json::json;
use stage::{SOON, Scene, Stage, client_secret_of, credentials_name};

/// How often each reason was told of an object, once an event that comes after all of them is there.
async fn told_after(stage: &Stage, name: &str, last: &str) -> BTreeMap<String, i32> {
    stage.told(name, last).await;
    let mut told = BTreeMap::new();
    for event in stage.events(name).await {
        let times = event.series.map_or(1, |series| series.count);
        *told.entry(event.reason.unwrap()).or_default() += times;
    }
    told
}

fn counts<const N: usize>(wanted: [(&str, i32); N]) -> BTreeMap<String, i32> {
    wanted.into_iter().map(|(reason, times)| (reason.to_owned(), times)).collect()
}

async fn create_foreign(stage: &Stage, name: &str) {
    let secret = Secret {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        data: Some([("password".to_owned(), ByteString(b"not a token".to_vec()))].into()),
        ..Secret::default()
    };
    stage.secrets().create(&PostParams::default(), &secret).await.unwrap();
}

/// Asks for a refresh, and waits until the status tells of one more request that failed.
async fn fails_again(stage: &Stage, name: &str, request: &str) {
    let failed_at = |scene: &Scene| scene.credential(name)?.status?.last_failure_time;
    let before = stage.until("an attempt failed", SOON, failed_at).await;
    stage.request_refresh(name, request).await;
    let again = |scene: &Scene| failed_at(scene).filter(|at| *at > before);
    stage.until("the next attempt failed, too", SOON, again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_costs_one_event_and_so_do_attempts_that_fail_the_same_way() {
    let stage = Stage::new("events-tokens").await;
    stage.moneygo.script("throttled", Script::status(429).header("retry-after", "1").times(3));
    stage.subscribe("throttled", json!({})).await;
    stage.subscribe("payments", json!({})).await;
    let operator = stage.operator().start().await;
    stage.ready("payments").await;
    assert_eq!(told_after(&stage, "payments", "TokenIssued").await, counts([("TokenIssued", 1)]));
    stage.request_refresh("payments", "once").await;
    let told = told_after(&stage, "payments", "TokenRefreshed").await;
    assert_eq!(told, counts([("TokenIssued", 1), ("TokenRefreshed", 1)]));
    let told = told_after(&stage, "throttled", "TokenIssued").await;
    assert_eq!(told, counts([("RateLimited", 1), ("TokenIssued", 1)]));
    assert_eq!(stage.moneygo.request_count_of("throttled"), 4);
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejection_is_told_once_and_so_is_the_recovery() {
    let stage = Stage::new("events-rejected").await;
    let (name, client) = ("payments", credentials_name("payments"));
    stage.subscribe(name, json!({})).await;
    let operator = stage.operator().start().await;
    stage.ready(name).await;

    stage.client_secret(&client, name, "canary-wrong-secret").await;
    stage.says(name, "Refreshed", "False", "InvalidClient").await;
    fails_again(&stage, name, "once").await;
    let told = told_after(&stage, name, "InvalidClient").await;
    assert_eq!(told, counts([("TokenIssued", 1), ("InvalidClient", 1)]), "two attempts failed the same way");

    // There is a request to answer: a new token tells of the recovery, in place of its own event.
    stage.client_secret(&client, name, &client_secret_of(name)).await;
    stage.says(name, "Refreshed", "True", "Succeeded").await;
    assert_eq!(stage.moneygo.wait_for_grants(name, 2, SOON).await.unwrap().len(), 2);
    let told = told_after(&stage, name, "Recovered").await;
    assert_eq!(told, counts([("TokenIssued", 1), ("InvalidClient", 1), ("Recovered", 1)]));
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_without_a_new_token_is_told_too() {
    let stage = Stage::new("events-back").await;
    let (name, client) = ("payments", credentials_name("payments"));
    stage.subscribe(name, json!({})).await;
    let operator = stage.operator().start().await;
    stage.ready(name).await;
    stage.delete_secret(&client).await;
    stage.says(name, "Refreshed", "False", "CredentialsNotFound").await;
    stage.client_secret(&client, name, &client_secret_of(name)).await;
    stage.says(name, "Refreshed", "True", "Succeeded").await;
    let told = told_after(&stage, name, "Recovered").await;
    assert_eq!(told, counts([("TokenIssued", 1), ("CredentialsNotFound", 1), ("Recovered", 1)]));
    assert_eq!(stage.grants_of(name), 1);
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_is_told_once_and_an_adoption_beside_its_token() {
    let stage = Stage::new("events-conflict").await;
    let name = "payments";
    create_foreign(&stage, name).await;
    stage.subscribe(name, json!({})).await;
    let operator = stage.operator().start().await;
    stage.says(name, "Ready", "False", "TargetConflict").await;
    // Looked at again, with the same result.
    stage.patch(name, json!({"spec": {"refresh": {"renewBeforePercentage": 20}}})).await;
    stage.says(name, "Ready", "False", "TargetConflict").await;
    assert_eq!(told_after(&stage, name, "TargetConflict").await, counts([("TargetConflict", 1)]));

    stage.patch_secret(name, json!({"metadata": {"annotations": {annotation::ADOPT: name}}})).await;
    stage.ready(name).await;
    stage.told(name, "TokenIssued").await;
    stage.told(name, "OwnerRefused").await;
    let adopted = counts([("TargetConflict", 1), ("TargetAdopted", 1), ("TokenIssued", 1), ("OwnerRefused", 1)]);
    assert_eq!(told_after(&stage, name, "TargetAdopted").await, adopted);

    // From here on it is a target like any other, though nobody owns it.
    stage.request_refresh(name, "once").await;
    let told = told_after(&stage, name, "TokenRefreshed").await;
    assert_eq!(told["TargetAdopted"], 1);
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_made_anew_tells_that_it_goes_on_with_the_token_that_is_there() {
    let stage = Stage::new("events-anew").await;
    let (name, spec) = ("payments", json!({"target": {"deletionPolicy": "Retain"}}));
    stage.subscribe(name, spec.clone()).await;
    let operator = stage.operator().start().await;
    stage.ready(name).await;
    stage.told(name, "TokenIssued").await;
    // Its successor is younger than the token by the API server's clock, which counts seconds.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    stage.delete(name).await;
    stage.until("the object is gone", SOON, |scene| scene.any_credential(name).is_none().then_some(())).await;
    let uid = stage.credential(name, spec).await.metadata.uid;
    stage.ready(name).await;
    stage.told(name, "TargetAdopted").await;
    stage.request_refresh(name, "once").await;
    stage.told(name, "TokenRefreshed").await;
    let told: Vec<_> =
        stage.events(name).await.into_iter().filter(|event| event.regarding.as_ref().unwrap().uid == uid).collect();
    let reasons: Vec<_> = told.iter().map(|event| event.reason.as_deref().unwrap()).collect();
    assert_eq!(reasons, ["TargetAdopted", "TokenRefreshed"]);
    assert_eq!(stage.grants_of(name), 2);
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_tells_nothing_again() {
    let stage = Stage::new("events-restart").await;
    stage.subscribe("payments", json!({})).await;
    stage.credential("waiting", json!({})).await;
    let operator = stage.operator().start().await;
    stage.ready("payments").await;
    stage.told("waiting", "CredentialsNotFound").await;
    operator.stop().await;
    let operator = stage.operator().start().await;
    stage.request_refresh("payments", "once").await;
    let told = told_after(&stage, "payments", "TokenRefreshed").await;
    assert_eq!(told, counts([("TokenIssued", 1), ("TokenRefreshed", 1)]));
    assert_eq!(told_after(&stage, "waiting", "CredentialsNotFound").await, counts([("CredentialsNotFound", 1)]));
    operator.stop().await;
}
