//! Whatever is changed by someone is answered within a second, from the watch, and without a grant where the token itself
//! is intact. A second is counted from the return of the write that changed it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod stage;

use std::time::{Duration, Instant};

use kube::ResourceExt as _;
use serde_json::json;
use stage::{Operator, SOON, Scene, Stage, base64, client_secret_of, credentials_name, is_newer};
use tokio::sync::Mutex;

/// What is promised.
const LIMIT: Duration = Duration::from_secs(1);

/// Latencies are measured one after the other: the machine may have two cores.
static ALONE: Mutex<()> = Mutex::const_new(());

/// Waits for the answer to what has just been done, and judges how long it took.
#[track_caller]
fn answer<T>(stage: &Stage, what: &str, look: impl FnMut(&Scene) -> Option<T>) -> impl Future<Output = T> {
    let (done, what) = (Instant::now(), what.to_owned());
    let found = stage.until(what.clone(), SOON, look);
    async move {
        let found = found.await;
        let took = done.elapsed();
        println!("{what}: {} ms", took.as_millis());
        assert!(took < LIMIT, "{what}: {took:?}");
        found
    }
}

/// An object with its token, before something happens to it.
async fn settled<'a>(stage: &'a Stage, name: &str) -> (Operator<'a>, String) {
    let operator = stage.operator().start().await;
    stage.subscribe(name, json!({})).await;
    stage.ready(name).await;
    let token = stage.token(name).await;
    assert_eq!(stage.grants_of(name), 1);
    (operator, token)
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_created_after_the_object() {
    let _alone = ALONE.lock().await;
    let stage = Stage::new("late").await;
    let _operator = stage.operator().start().await;
    stage.moneygo.add_client("a", &client_secret_of("a"));
    stage.credential("a", json!({})).await;
    stage.says("a", "Ready", "False", "CredentialsNotFound").await;
    assert_eq!(stage.moneygo.request_count(), 0);

    stage.client_secret(&credentials_name("a"), "a", &client_secret_of("a")).await;
    answer(&stage, "credentials created: token", |scene| scene.token("a")).await;
    stage.ready("a").await;
    assert_eq!(stage.moneygo.request_count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_secret_corrected_after_invalid_client() {
    let _alone = ALONE.lock().await;
    let stage = Stage::new("wrong").await;
    let _operator = stage.operator().start().await;
    stage.moneygo.add_client("a", &client_secret_of("a"));
    stage.client_secret(&credentials_name("a"), "a", &client_secret_of("another")).await;
    stage.credential("a", json!({})).await;
    stage.says("a", "Refreshed", "False", "InvalidClient").await;

    stage.client_secret(&credentials_name("a"), "a", &client_secret_of("a")).await;
    answer(&stage, "client secret corrected: token", |scene| scene.token("a")).await;
    let object = stage.ready("a").await;
    let status = object.status.unwrap();
    assert_eq!((status.failed_attempts, status.next_attempt_at), (None, None));
    assert_eq!(stage.moneygo.request_count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_target() {
    let _alone = ALONE.lock().await;
    let stage = Stage::new("deleted").await;
    let (_operator, old) = settled(&stage, "a").await;

    stage.delete_secret("a").await;
    let new = answer(&stage, "target deleted: token", |scene| scene.token("a").filter(|token| *token != old)).await;
    stage.ready("a").await;
    assert_eq!(stage.moneygo.grants_of("a").last().unwrap().token, new);
    assert_eq!(stage.grants_of("a"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edited_token() {
    let _alone = ALONE.lock().await;
    let stage = Stage::new("edited").await;
    let (_operator, old) = settled(&stage, "a").await;

    stage.patch_secret("a", json!({"stringData": {"access_token": "edited"}})).await;
    let is_new = |token: &String| *token != old && token != "edited";
    let new = answer(&stage, "token edited: token", |scene| scene.token("a").filter(is_new)).await;
    stage.ready("a").await;
    assert_eq!(stage.moneygo.grants_of("a").last().unwrap().token, new);
    assert_eq!(stage.grants_of("a"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_label() {
    const LABEL: &str = "app.kubernetes.io/managed-by";
    let _alone = ALONE.lock().await;
    let stage = Stage::new("label").await;
    let (_operator, token) = settled(&stage, "a").await;

    let without = stage.patch_secret("a", json!({"metadata": {"labels": {LABEL: null}}})).await;
    assert!(!without.labels().contains_key(LABEL));
    let found = answer(&stage, "label removed: label", |scene| {
        let secret = scene.secret("a").filter(|secret| is_newer(*secret, &without))?;
        secret.labels().contains_key(LABEL).then(|| secret.clone())
    });
    assert_eq!(stage::token_of(&found.await), token);
    assert_eq!(stage.grants_of("a"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_key() {
    let _alone = ALONE.lock().await;
    let stage = Stage::new("renamed").await;
    let (_operator, token) = settled(&stage, "a").await;
    stage.patch_secret("a", json!({"stringData": {"of-others": "stays"}})).await;

    stage.patch("a", json!({"spec": {"target": {"accessTokenKey": "token"}}})).await;
    let keys = answer(&stage, "key renamed: key", |scene| {
        let keys: Vec<_> = scene.secret("a")?.data.clone()?.into_keys().collect();
        (!keys.contains(&"access_token".to_owned())).then_some(keys)
    });
    assert_eq!(keys.await, ["of-others", "token"]);
    let secret = stage.secret("a").await;
    assert_eq!(stage::token_in(&secret, "token"), Some(token));
    stage.ready("a").await;
    assert_eq!(stage.grants_of("a"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn suspend_lifted_from_an_object_with_a_token() {
    let _alone = ALONE.lock().await;
    let stage = Stage::new("resumed").await;
    let (_operator, token) = settled(&stage, "a").await;
    stage.patch("a", json!({"spec": {"suspend": true}})).await;
    answer(&stage, "suspended: condition", |scene| {
        scene.condition("a", "Refreshed").filter(|refreshed| refreshed.reason == "Suspended")
    })
    .await;
    assert_eq!(stage.ready("a").await.status.unwrap().observed_generation, Some(2));

    stage.patch("a", json!({"spec": {"suspend": false}})).await;
    answer(&stage, "suspend lifted: condition", |scene| {
        scene.condition("a", "Refreshed").filter(|refreshed| refreshed.reason == "Succeeded")
    })
    .await;
    assert_eq!(stage.token("a").await, token);
    assert_eq!(stage.grants_of("a"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn suspend_lifted_from_an_object_without_a_token() {
    let _alone = ALONE.lock().await;
    let stage = Stage::new("begun").await;
    let _operator = stage.operator().start().await;
    stage.subscribe("a", json!({"suspend": true})).await;
    stage.says("a", "Ready", "False", "Suspended").await;
    assert_eq!(stage.moneygo.request_count(), 0);

    stage.patch("a", json!({"spec": {"suspend": false}})).await;
    answer(&stage, "suspend lifted: token", |scene| scene.token("a")).await;
    stage.ready("a").await;
    assert_eq!(stage.moneygo.request_count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_asked_for_by_annotation() {
    let _alone = ALONE.lock().await;
    let stage = Stage::new("asked").await;
    let (_operator, old) = settled(&stage, "a").await;

    stage.request_refresh("a", "now").await;
    let new = answer(&stage, "refresh asked for: token", |scene| scene.token("a").filter(|token| *token != old)).await;
    let handled = |scene: &Scene| scene.credential("a")?.status?.last_handled_refresh;
    assert_eq!(stage.until("the request is handled", SOON, handled).await, "now");
    assert_eq!(stage.moneygo.grants_of("a").last().unwrap().token, new);
    assert_eq!(stage.grants_of("a"), 2);
}

/// The token is what it was, and so nobody but the program that reads the other keys would notice.
#[tokio::test(flavor = "multi_thread")]
async fn keys_beside_the_token_edited_and_removed() {
    let _alone = ALONE.lock().await;
    let stage = Stage::new("derived").await;
    let _operator = stage.operator().start().await;
    stage.subscribe("a", json!({"target": {"authorizationKey": "authorization", "expiresAtKey": "expires"}})).await;
    stage.ready("a").await;
    let before = stage.secret("a").await.data.unwrap();

    let other = base64(b"Bearer of something else");
    let edits = [
        ("authorization removed", json!({"authorization": null})),
        ("authorization edited", json!({"authorization": other})),
        ("expiry removed", json!({"expires": null})),
        ("expiry edited", json!({"expires": other})),
    ];
    for (what, data) in edits {
        let edited = stage.patch_secret("a", json!({ "data": data })).await;
        assert_ne!(edited.data.as_ref(), Some(&before));
        let is_back = |scene: &Scene| {
            let secret = scene.secret("a").filter(|secret| is_newer(*secret, &edited))?;
            (secret.data.as_ref() == Some(&before)).then_some(())
        };
        answer(&stage, what, is_back).await;
    }
    assert_eq!(stage.grants_of("a"), 1);
}
