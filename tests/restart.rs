//! Stops, crashes and outages of the API server: what was issued is not lost, and what is known is not asked for again.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod stage;

use std::time::Duration;

use fake_moneygo::{Mode, TokenState};
use jiff::Timestamp;
use kube::ResourceExt as _;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use stage::{Operator, SOON, Scene, Stage, client_secret_of, condition, credentials_name, is_newer, token_of};
use tokio::time::sleep;

/// What a stop may take.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// An operator and the object `a` with its token.
async fn settled(stage: &Stage) -> (Operator<'_>, String) {
    let operator = stage.operator().start().await;
    stage.subscribe("a", json!({})).await;
    stage.ready("a").await;
    let token = stage.token("a").await;
    assert_eq!(stage.grants_of("a"), 1);
    (operator, token)
}

/// Until a grant is made whose answer the stand-in holds back.
async fn a_grant_is_in_flight(stage: &Stage) {
    stage.moneygo.hold_answers();
    stage.request_refresh("a", "now").await;
    stage.moneygo.wait_for_held(1, SOON).await.unwrap();
    assert_eq!(stage.grants_of("a"), 2);
}

fn last_token(stage: &Stage) -> String {
    stage.moneygo.grants_of("a").pop().unwrap().token
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_writes_what_was_issued_first() {
    let stage = Stage::setup("stopped").moneygo(|moneygo| moneygo.mode(Mode::RevokePrevious)).open().await;
    let (operator, _) = settled(&stage).await;
    a_grant_is_in_flight(&stage).await;
    let release = async {
        sleep(Duration::from_millis(500)).await;
        stage.moneygo.release();
    };
    let (stopped, ()) = tokio::join!(operator.stop(), release);
    println!("stopped after {:?}", stopped.elapsed);
    assert!(stopped.elapsed < STOP_LIMIT, "{stopped:?}");
    assert_eq!(stage.token("a").await, last_token(&stage));

    let _operator = stage.operator().start().await;
    let handled = |scene: &Scene| scene.credential("a")?.status?.last_handled_refresh;
    assert_eq!(stage.until("the request is handled", SOON, handled).await, "now");
    stage.ready("a").await;
    assert_eq!(stage.moneygo.request_count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_an_answer_that_does_not_come() {
    let stage = Stage::new("mute").await;
    let (operator, token) = settled(&stage).await;
    stage.moneygo.hold();
    stage.request_refresh("a", "now").await;
    stage.moneygo.wait_for_held(1, SOON).await.unwrap();
    let stopped = operator.stop().await;
    println!("stopped after {:?}", stopped.elapsed);
    assert!(stopped.elapsed < STOP_LIMIT, "{stopped:?}");
    assert_eq!(stage.token("a").await, token);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_loses_at_most_the_token_in_flight() {
    let stage = Stage::setup("crashed").moneygo(|moneygo| moneygo.mode(Mode::RevokePrevious)).open().await;
    let (operator, _) = settled(&stage).await;
    a_grant_is_in_flight(&stage).await;
    operator.kill().await;
    stage.moneygo.release();

    let _operator = stage.operator().start().await;
    stage.moneygo.wait_for_grants("a", 3, SOON).await.unwrap();
    let token = stage
        .until("the last token", SOON, |scene| scene.token("a").filter(|token| *token == last_token(&stage)))
        .await;
    assert_eq!(stage.moneygo.state_of(&token, stage::now()), TokenState::Alive);
    stage.ready("a").await;
    assert_eq!(stage.moneygo.request_count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_came_while_the_api_server_was_away_is_written_when_it_is_back() {
    let stage =
        Stage::setup("away").moneygo(|moneygo| moneygo.mode(Mode::RevokePrevious)).own_plane().await.open().await;
    let (operator, _) = settled(&stage).await;
    a_grant_is_in_flight(&stage).await;
    stage.plane.stop_apiserver().unwrap();
    stage.moneygo.release();
    operator.until_logged("trying again", 1).await;
    stage.plane.start_apiserver().await.unwrap();
    let back = stage::now();
    stage.until("the last token", SOON, |scene| scene.token("a").filter(|token| *token == last_token(&stage))).await;
    println!("written {:?} after the API server was back", stage::now().duration_since(back).unwrap());
    stage.ready("a").await;
    assert_eq!(stage.moneygo.request_count(), 2);

    // The watches are back, too.
    let written = last_token(&stage);
    stage.delete_secret("a").await;
    stage.until("another token", SOON, |scene| scene.token("a").filter(|token| *token != written)).await;
    stage.ready("a").await;
    assert_eq!(stage.moneygo.request_count(), 3);
    operator.stop().await;
}

/// The API server notes of whom `stringData` is, and not of whom the data are that it becomes.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_applied_as_string_data_after_a_start_is_seen() {
    let stage = Stage::new("string-data").await;
    let (operator, _) = settled(&stage).await;
    operator.stop().await;
    let _operator = stage.operator().start().await;
    stage.credential("fence", json!({})).await;
    stage.says("fence", "Ready", "False", "CredentialsNotFound").await;
    let ours = stage.token("a").await;
    let applied = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}, "stringData": {"access_token": "junk"}});
    stage.secrets().patch("a", &PatchParams::apply("kubectl"), &Patch::Apply(applied)).await.unwrap();
    assert!(stage.scene().history_of("a").any(|(_, secret)| token_of(secret) == ours));
    stage
        .until("it is overwritten", SOON, |scene| {
            scene.history_of("a").any(|(_, secret)| token_of(secret) == "junk").then_some(())
        })
        .await;
    stage
        .until("another token", SOON, |scene| {
            scene.token("a").filter(|token| *token == last_token(&stage) && *token != ours)
        })
        .await;
    stage.ready("a").await;
    assert_eq!(stage.moneygo.request_count_of("a"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_came_while_the_api_server_was_mute_is_written_when_it_speaks() {
    let stage =
        Stage::setup("paused").moneygo(|moneygo| moneygo.mode(Mode::RevokePrevious)).own_plane().await.open().await;
    let (_operator, _) = settled(&stage).await;
    a_grant_is_in_flight(&stage).await;
    stage.plane.pause_apiserver().unwrap();
    stage.moneygo.release();
    sleep(Duration::from_secs(3)).await;
    stage.plane.resume_apiserver().unwrap();
    stage.until("the last token", SOON, |scene| scene.token("a").filter(|token| *token == last_token(&stage))).await;
    stage.ready("a").await;
    assert_eq!(stage.moneygo.request_count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_stood_still_replaces_what_expired_at_once() {
    let stage = Stage::setup("still").moneygo(|moneygo| moneygo.expires_in(Duration::from_secs(6))).open().await;
    let (operator, token) = settled(&stage).await;
    operator.suspend();
    let expires = stage.moneygo.grants_of("a")[0].expires;
    sleep(expires.duration_since(stage::now()).unwrap() + Duration::from_millis(500)).await;
    assert_eq!(stage.token("a").await, token);
    operator.resume();
    let resumed = stage::now();
    stage.until("another token", SOON, |scene| scene.token("a").filter(|new| *new != token)).await;
    let took = stage::now().duration_since(resumed).unwrap();
    println!("replaced after {took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(stage.moneygo.request_count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_while_the_api_server_is_away_takes_no_longer() {
    let stage = Stage::setup("both").own_plane().await.open().await;
    let (operator, _) = settled(&stage).await;
    a_grant_is_in_flight(&stage).await;
    stage.plane.pause_apiserver().unwrap();
    stage.moneygo.release();
    let stopped = operator.stop().await;
    println!("stopped after {:?}", stopped.elapsed);
    assert!(stopped.elapsed < STOP_LIMIT, "{stopped:?}");
    stage.plane.resume_apiserver().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_does_not_try_again_what_failed_before_its_time() {
    let stage = Stage::new("patient").await;
    let operator = stage.operator().start().await;
    stage.moneygo.add_client("a", &client_secret_of("a"));
    stage.client_secret(&credentials_name("a"), "a", &client_secret_of("wrong")).await;
    stage.credential("a", json!({})).await;
    let before = stage.says("a", "Refreshed", "False", "InvalidClient").await;
    operator.stop().await;

    let _operator = stage.operator().start().await;
    // What comes later and needs more is done: the first was looked at long ago.
    stage.subscribe("b", json!({})).await;
    stage.ready("b").await;
    assert_eq!(stage.moneygo.request_count_of("a"), 1);
    assert_eq!(stage.get("a").await.status, before.status);

    stage.client_secret(&credentials_name("a"), "a", &client_secret_of("a")).await;
    stage.ready("a").await;
    assert_eq!(stage.moneygo.request_count_of("a"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_while_no_operator_ran_is_answered_at_the_start() {
    let stage = Stage::new("meanwhile").await;
    let operator = stage.operator().start().await;
    let names = ["label", "edited", "deleted", "rotated", "requested", "note"];
    for name in names {
        stage.subscribe(name, json!({})).await;
    }
    let mut old = Vec::new();
    for name in names {
        stage.ready(name).await;
        old.push(stage.secret(name).await);
    }
    operator.stop().await;

    let label = json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": null}}});
    stage.patch_secret("label", label).await;
    stage.patch_secret("edited", json!({"stringData": {"access_token": "edited"}})).await;
    stage.delete_secret("deleted").await;
    stage.moneygo.set_secret("rotated", &client_secret_of("another"));
    stage.client_secret(&credentials_name("rotated"), "rotated", &client_secret_of("another")).await;
    stage.request_refresh("requested", "now").await;
    stage.patch_secret(&credentials_name("note"), json!({"metadata": {"annotations": {"note": "text"}}})).await;

    let _operator = stage.operator().start().await;
    for (name, old) in names.iter().zip(&old) {
        let has_new_token = !["label", "note"].contains(name);
        stage
            .until(format!("{name} is answered"), SOON, |scene| {
                let secret = scene.secret(name)?;
                let token = scene.token(name)?;
                let labelled = secret.labels().contains_key("app.kubernetes.io/managed-by");
                let right =
                    if has_new_token { token != token_of(old) && token != "edited" } else { token == token_of(old) };
                (labelled && right).then_some(())
            })
            .await;
        stage.ready(name).await;
        assert_eq!(stage.moneygo.request_count_of(name), if has_new_token { 2 } else { 1 }, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_expired_while_no_operator_ran_is_replaced_at_the_start() {
    let stage = Stage::setup("expired").moneygo(|moneygo| moneygo.expires_in(Duration::from_secs(3))).open().await;
    let (operator, token) = settled(&stage).await;
    operator.kill().await;
    let expires_at: Timestamp = stage.get("a").await.status.unwrap().expires_at.unwrap();
    let left = std::time::SystemTime::from(expires_at).duration_since(stage::now()).unwrap_or_default();
    sleep(left + Duration::from_millis(100)).await;
    let expired = stage.get("a").await;
    assert_eq!(condition(&expired, "Ready").unwrap().status, "True", "nobody was there to say otherwise");

    let _operator = stage.operator().start().await;
    stage.until("another token", SOON, |scene| scene.token("a").filter(|new| *new != token)).await;
    stage.until("it is told", SOON, |scene| scene.credential("a").filter(|object| is_newer(object, &expired))).await;
    stage.ready("a").await;
}
