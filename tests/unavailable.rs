//! The API server is there, and does not let the Secrets be read or written: what is said of it, and who waits for it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod stage;

use std::time::{Duration, Instant};

use k8s_openapi::api::rbac::v1::PolicyRule;
use moneygo_controlplane::Access;
use moneygo_operator::crd::MoneyGoCredential;
use serde_json::json;
use stage::{Backend, Operator, SOON, Scene, Stage, condition};

/// Long enough for the tests below, and short enough to wait for its end.
const FIRST: Duration = Duration::from_secs(10);
const SECOND: Duration = Duration::from_mins(10);
/// So many reconciles may be under way at once with one grant at a time, where none hangs.
const AT_ONCE: usize = 33;
/// More than those, each of which hangs for ten seconds; and fewer than the API server answers one user at once.
const HANGING: usize = 42;
/// Objects whose status hangs, and how long their tokens live: a third of that is left when the next is asked for.
const MUTE: usize = 40;
const SHORT: Duration = Duration::from_secs(40);
/// At two requests a second, more than can be tried every ten seconds.
const UNREADABLE: usize = 30;
/// Far less than what hangs does.
const NOT_HELD_UP: Duration = Duration::from_secs(5);

/// Every Secret that the operator writes.
fn targets() -> serde_json::Value {
    json!({"app.kubernetes.io/managed-by": "moneygo-operator"})
}

/// An object with a token that ends soon; the next lives long.
async fn with_a_token_that_ends(stage: &Stage, name: &str) {
    stage.moneygo.set_expires_in_of(name, Some(FIRST));
    stage.subscribe(name, json!({})).await;
    stage.ready(name).await;
    stage.moneygo.set_expires_in_of(name, Some(SECOND));
}

/// Its token has expired, and the API server's answer is told, though not with the same write: the end may be found before another is asked for.
async fn says_why_it_expired(stage: &Stage, answer: &str) -> MoneyGoCredential {
    let object = stage.says("payments", "Refreshed", "False", "SecretsUnavailable").await;
    let of = |kind| condition(&object, kind).unwrap();
    assert_eq!((of("Ready").status.as_str(), of("Ready").reason.as_str()), ("False", "TokenExpired"));
    assert!(of("Refreshed").message.contains(answer), "{}", of("Refreshed").message);
    object
}

/// Attempts that fail do not put it off: by then the next one is some three seconds away. A condition's time has whole seconds.
fn is_told_as_it_ends(stage: &Stage, object: &MoneyGoCredential) {
    let ended = stage.moneygo.grants_of("payments")[0].expires;
    let told = std::time::SystemTime::from(condition(object, "Ready").unwrap().last_transition_time.0);
    let late = told.duration_since(ended).unwrap_or_default();
    assert!(late < Duration::from_secs(2), "told {late:?} after the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_ends_while_no_secret_can_be_written_is_told_of_and_costs_one_grant() {
    let stage = Stage::new("unwritable").await;
    let operator = stage.operator().start().await;
    with_a_token_that_ends(&stage, "payments").await;
    stage.call_for_secrets(targets(), &Backend::away().await).await;
    // A first token is told of, too.
    stage.subscribe("new", json!({})).await;

    let object = says_why_it_expired(&stage, "HTTP 500").await;
    assert_eq!(condition(&object, "Stalled").unwrap().status, "False");
    is_told_as_it_ends(&stage, &object);
    stage.says("new", "Ready", "False", "SecretsUnavailable").await;

    stage.call_nobody().await;
    for (name, grants) in [("payments", 2), ("new", 1)] {
        stage.ready(name).await;
        let issued = stage.moneygo.grants_of(name);
        assert_eq!(issued.len(), grants, "{name}: what was issued is kept until it can be written");
        assert_eq!(stage.token(name).await, issued[grants - 1].token);
        stage.says(name, "Refreshed", "True", "Succeeded").await;
    }
    stage.told("payments", "TokenExpired").await;
    stage.told("payments", "Recovered").await;
    operator.stop().await;
}

/// What the operator may do, with these verbs for Secrets.
fn rights(of_secrets: &[&str]) -> [PolicyRule; 3] {
    let rule = |group: &str, resource: &str, verbs: &[&str]| PolicyRule {
        api_groups: Some(vec![group.to_owned()]),
        resources: Some(vec![resource.to_owned()]),
        verbs: verbs.iter().map(ToString::to_string).collect(),
        ..PolicyRule::default()
    };
    [
        rule("money-go.com", "moneygocredentials", &["get", "list", "watch"]),
        rule("money-go.com", "moneygocredentials/status", &["update"]),
        rule("", "secrets", of_secrets),
    ]
}

/// Takes all rights from the operator but those.
async fn limit(stage: &Stage, of_secrets: &[&str]) {
    stage.shut_out(&stage.user).await;
    let access = Access::default().namespace(&stage.namespace, rights(of_secrets));
    stage.plane.allow(&stage.user, &access).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_ends_while_no_secret_can_be_read_is_told_of_and_costs_none() {
    let stage = Stage::new("unreadable").await;
    let operator = stage.operator().start().await;
    with_a_token_that_ends(&stage, "payments").await;
    let mut grants = stage.moneygo.grants_of("payments").len();
    limit(&stage, &["list", "watch", "create", "update"]).await;
    stage.subscribe("new", json!({})).await;

    let object = says_why_it_expired(&stage, "HTTP 403").await;
    is_told_as_it_ends(&stage, &object);
    stage.says("new", "Ready", "False", "SecretsUnavailable").await;
    assert_eq!(stage.moneygo.request_count_of("new"), 0);
    // The refresh may have come just before the rights went.
    grants = grants.max(stage.moneygo.grants_of("payments").len());
    assert!(grants <= 2);

    stage.shut_out(&stage.user).await;
    stage.let_in(&stage.user).await;
    for name in ["payments", "new"] {
        stage.ready(name).await;
    }
    assert!(stage.moneygo.grants_of("payments").len() <= grants + 1);
    assert_eq!(stage.grants_of("new"), 1);
    operator.stop().await;
}

/// An object with a token, and the one that was asked for in its place and cannot be written.
async fn with_a_token_that_is_held(stage: &Stage, operator: &Operator<'_>, spec: serde_json::Value) -> String {
    stage.subscribe("payments", spec).await;
    stage.ready("payments").await;
    stage.call_for_secrets(targets(), &Backend::away().await).await;
    stage.request_refresh("payments", "now").await;
    let token = stage.moneygo.wait_for_grants("payments", 2, SOON).await.unwrap().pop().unwrap().token;
    operator.until_logged("trying again", 1).await;
    token
}

/// The operator has seen what became of an object when it says something of what came later. Then its token is written.
async fn is_written_once_it_can(stage: &Stage, token: &str) {
    stage.credential("fence", json!({})).await;
    stage.says("fence", "Ready", "False", "CredentialsNotFound").await;
    stage.call_nobody().await;
    stage.until("it is written", SOON, |scene: &Scene| (scene.token("payments")? == token).then_some(())).await;
}

/// Whoever looks after it from then on knows nothing of that token, and the one before it may be dead.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_could_not_be_written_before_its_object_left_the_selector_is_written_once_it_can() {
    let stage = Stage::setup("left").cluster_wide().open().await;
    let operator = stage.operator().start().await;
    let token = with_a_token_that_is_held(&stage, &operator, json!({})).await;
    stage.patch("payments", json!({"metadata": {"labels": {"stage": "another"}}})).await;
    is_written_once_it_can(&stage, &token).await;
    assert_eq!(stage.grants_of("payments"), 2);
    operator.stop().await;
}

/// The retained Secret holds a token that this one may have ended. Whoever is made anew under the name finds this one there.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_could_not_be_written_before_its_object_was_made_anew_is_written_once_it_can() {
    let stage = Stage::new("anew").await;
    let operator = stage.operator().start().await;
    let retained = || json!({"target": {"deletionPolicy": "Retain"}});
    let token = with_a_token_that_is_held(&stage, &operator, retained()).await;
    stage.delete("payments").await;
    stage.credential("payments", retained()).await;
    is_written_once_it_can(&stage, &token).await;
    stage.ready("payments").await;
    assert_eq!(stage.grants_of("payments"), 2);
    assert!(!operator.log().contains("TokenDropped"));
    operator.stop().await;
}

/// Without the list no object is looked at, for nobody knows whose its Secret is; but what its status says must not outlive its token.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_ends_before_the_secrets_can_be_listed_is_told_of() {
    let stage = Stage::new("unlisted").await;
    let operator = stage.operator().start().await;
    with_a_token_that_ends(&stage, "payments").await;
    operator.stop().await;
    let grants = stage.grants_of("payments");
    limit(&stage, &["get", "watch", "create", "update"]).await;
    let operator = stage.operator().spawn();
    let told = |scene: &Scene| scene.condition("payments", "Ready").filter(|ready| ready.status == "False");
    let ready = stage.until("the end is told", SOON * 3, told).await;
    assert_eq!(ready.reason, "SecretsUnavailable");
    stage.says("payments", "Refreshed", "False", "SecretsUnavailable").await;
    assert_eq!(stage.grants_of("payments"), grants);

    stage.shut_out(&stage.user).await;
    stage.let_in(&stage.user).await;
    stage.ready("payments").await;
    assert_eq!(stage.grants_of("payments"), grants + 1);
    operator.stop().await;
}

/// Webhooks that are away and may be passed over: whoever hangs up before that has written nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_the_api_server_takes_long_for_is_waited_for() {
    let stage = Stage::new("slow-writes").await;
    let operator = stage.operator().start().await;
    let silent = Backend::silent().await;
    stage.wait_for_secrets(targets(), &silent).await;
    stage.subscribe("payments", json!({})).await;
    stage.until("the token is written", 4 * SOON, |scene: &Scene| scene.token("payments").map(drop)).await;
    stage.ready("payments").await;
    assert_eq!(stage.grants_of("payments"), 1);
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_hangs_holds_up_no_other_object() {
    let stage = Stage::new("hanging").await;
    let operator = stage.operator().flag("--token-requests-per-second=200").flag("--token-concurrency=1").start().await;
    let silent = Backend::silent().await;
    stage.call_for_secrets(json!({"hangs": "yes"}), &silent).await;
    for number in 0..HANGING {
        let name = format!("hangs-{number}");
        stage.subscribe(&name, json!({"target": {"labels": {"hangs": "yes"}}})).await;
    }
    stage.moneygo.wait_for_total_grants(AT_ONCE, SOON).await.unwrap();
    for number in 0..3 {
        let (name, begun) = (format!("good-{number}"), Instant::now());
        stage.subscribe(&name, json!({})).await;
        stage.ready(&name).await;
        assert!(begun.elapsed() < NOT_HELD_UP, "{name} took {:?}", begun.elapsed());
    }
    stage.call_nobody().await;
    let all_ready = |scene: &Scene| (scene.credentials().filter(stage::is_ready).count() == HANGING + 3).then_some(());
    stage.until("all are Ready", SOON * 2, all_ready).await;
    assert_eq!(stage.moneygo.request_count(), HANGING + 3, "what was issued is kept until it can be written");
    operator.stop().await;
}

/// What hangs for ten seconds each time is looked at eight at once: too few, where all that are due would wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_status_that_cannot_be_written_keeps_no_token_from_being_refreshed() {
    let stage = Stage::setup("mute").moneygo(|moneygo| moneygo.expires_in(SHORT)).open().await;
    let operator = stage.operator().flag("--token-requests-per-second=200").start().await;
    let names: Vec<_> = (0..MUTE).map(|number| format!("mute-{number}")).collect();
    let (before, after) = names.split_at(MUTE / 2);
    for name in before {
        stage.subscribe(name, json!({})).await;
    }
    let all_ready = |scene: &Scene| (scene.credentials().filter(stage::is_ready).count() == before.len()).then_some(());
    stage.until("all are Ready", SOON, all_ready).await;
    let silent = Backend::silent().await;
    stage.call_for_statuses(&names[0], &silent).await;
    // Of these not even the first token can be told of.
    for name in after {
        stage.subscribe(name, json!({})).await;
    }
    stage.moneygo.wait_for_total_grants(4 * MUTE, SHORT * 4).await.unwrap();
    for name in &names {
        has_never_held_an_expired_token(&stage, name);
    }
    stage.call_nobody().await;
    operator.stop().await;
}

fn has_never_held_an_expired_token(stage: &Stage, name: &str) {
    let scene = stage.scene();
    let lives: Vec<_> = scene.history_of(name).map(|(seen, secret)| (*seen, stage::expires_at(secret))).collect();
    assert!(lives.len() > 2, "{name} has had {} tokens", lives.len());
    for two in lives.windows(2) {
        assert!(two[1].0 < two[0].1, "{name} held an expired token for {:?}", two[1].0.duration_since(two[0].1));
    }
}

/// Each of them is tried again every ten seconds, and has no token: were that a turn each time, there would be none left for those that have one.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_takes_no_others_turns() {
    let stage = Stage::setup("unread").moneygo(|moneygo| moneygo.expires_in(SHORT)).open().await;
    let operator = stage.operator().flag("--token-requests-per-second=2").start().await;
    stage.subscribe("good", json!({})).await;
    stage.ready("good").await;
    let [objects, status, secrets] = rights(&["list", "watch", "create", "update"]);
    let names = Some(["good", "good-client"].map(ToOwned::to_owned).into());
    let [.., read] = rights(&["get"]);
    let read = PolicyRule { resource_names: names, ..read };
    stage.shut_out(&stage.user).await;
    let access = Access::default().namespace(&stage.namespace, [objects, status, secrets, read]);
    stage.plane.allow(&stage.user, &access).await.unwrap();
    for number in 0..UNREADABLE {
        stage.subscribe(&format!("unread-{number}"), json!({})).await;
    }
    let refreshed_twice = |scene: &Scene| (scene.history_of("good").count() > 2).then_some(());
    stage.until("it is refreshed twice", SHORT * 3, refreshed_twice).await;
    has_never_held_an_expired_token(&stage, "good");
    assert_eq!(stage.moneygo.request_count(), stage.moneygo.request_count_of("good"));
    // They wait for nothing else.
    stage.shut_out(&stage.user).await;
    stage.let_in(&stage.user).await;
    let all_ready =
        |scene: &Scene| (scene.credentials().filter(stage::is_ready).count() == UNREADABLE + 1).then_some(());
    stage.until("all are Ready", SHORT * 2, all_ready).await;
    operator.stop().await;
}
