//! When a token is replaced, what does not replace it, and what happens where that fails.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod stage;

use std::time::{Duration, Instant, SystemTime};

use fake_moneygo::{Mode, Script, TokenState};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;
use kube::api::{Patch, PatchParams};
use moneygo_operator::crd::{MoneyGoCredential, MoneyGoCredentialStatus, annotation};
use serde_json::{Value, json};
use stage::{
    Operator, SOON, Scene, Stage, client_secret_of, condition, credentials_name, is_newer, is_ready, token_of,
};

/// An operator and the object `a` with its token.
async fn settled(stage: &Stage, spec: Value) -> (Operator<'_>, MoneyGoCredential) {
    let operator = stage.operator().start().await;
    stage.subscribe("a", spec).await;
    let object = stage.ready("a").await;
    assert_eq!(stage.grants_of("a"), 1);
    (operator, object)
}

fn status_of(object: &MoneyGoCredential) -> MoneyGoCredentialStatus {
    object.status.clone().unwrap_or_default()
}

/// From the issue of an object's token to its refresh time.
fn wait_of(object: &MoneyGoCredential) -> SignedDuration {
    let status = status_of(object);
    status.refresh_at.unwrap().duration_since(status.issued_at.unwrap())
}

fn time(secret: &Secret, key: &str) -> Timestamp {
    secret.annotations()[key].parse().unwrap()
}

#[track_caller]
fn assert_between<T: Copy + PartialOrd + std::fmt::Debug>(least: T, found: T, most: T) {
    assert!(least <= found && found <= most, "{found:?} is not between {least:?} and {most:?}");
}

/// Waits until the status is as it was before it was edited, and nothing else has happened.
#[track_caller]
fn put_back<'a>(
    stage: &'a Stage,
    was: &MoneyGoCredential,
    edited: &MoneyGoCredential,
) -> impl Future<Output = ()> + use<'a> {
    let (was, edited) = (was.clone(), edited.clone());
    stage.until("the status is put back", SOON, move |scene: &Scene| {
        let object = scene.credential("a").filter(|object| is_newer(object, &edited))?;
        let is_as_it_was = |condition: &stage::Condition| {
            let before = stage::condition(&was, &condition.type_);
            before.is_some_and(|before| {
                (before.status, before.reason) == (condition.status.clone(), condition.reason.clone())
            })
        };
        let (now, then) = (status_of(&object), status_of(&was));
        let same =
            now.issued_at == then.issued_at && now.expires_at == then.expires_at && now.refresh_at == then.refresh_at;
        (same && now.conditions.len() == 3 && now.conditions.iter().all(is_as_it_was)).then_some(())
    })
}

// ---- when ----

#[tokio::test(flavor = "multi_thread")]
async fn an_object_becomes_ready_and_its_secret_holds_the_token() {
    let stage = Stage::new("first").await;
    let (operator, object) = settled(&stage, json!({})).await;
    let grant = stage.moneygo.grants_of("a").remove(0);
    let secret = stage.secret("a").await;
    assert_eq!(token_of(&secret), grant.token);
    let expires_at = time(&secret, annotation::EXPIRES_AT);
    assert!(SystemTime::from(expires_at) <= grant.expires, "never later than it is");
    assert_eq!(status_of(&object).expires_at, Some(expires_at));
    assert_eq!(status_of(&object).refresh_at, Some(time(&secret, annotation::REFRESH_AT)));
    assert_eq!(condition(&object, "Stalled").unwrap().status, "False");
    stage.told("a", "TokenIssued").await;
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_third_of_the_lifetime_is_left_or_what_the_spec_says() {
    let stage = Stage::new("when").await;
    let _operator = stage.operator().start().await;
    // The jitter makes it earlier by at most a tenth of the wait, and deadlines are rounded down to seconds.
    let day = |days: i64| SignedDuration::from_hours(24 * days);
    let second = SignedDuration::from_secs(1);
    stage.subscribe("third", json!({})).await;
    assert_between(day(18) - second, wait_of(&stage.ready("third").await), day(20));
    stage.subscribe("half", json!({"refresh": {"renewBeforePercentage": 50}})).await;
    assert_between(day(15) * 9 / 10 - second, wait_of(&stage.ready("half").await), day(15));
    stage.subscribe("hours", json!({"refresh": {"renewBefore": "240h"}})).await;
    assert_between(day(18) - second, wait_of(&stage.ready("hours").await), day(20));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renew_before_that_the_lifetime_cannot_hold_is_cut_and_said() {
    let stage = Stage::setup("cut").moneygo(|moneygo| moneygo.expires_in(Duration::from_mins(10))).open().await;
    let (_operator, object) = settled(&stage, json!({"refresh": {"renewBefore": "1h"}})).await;
    assert_between(SignedDuration::from_secs(53), wait_of(&object), SignedDuration::from_secs(60));
    let message = condition(&object, "Refreshed").unwrap().message;
    assert!(message.contains("cut to nine tenths"), "{message}");
}

/// The answer takes longer than the token is to be used.
#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_time_that_passes_before_the_token_is_written_is_not_forgotten() {
    const LIFETIME: Duration = Duration::from_secs(30);
    let stage = Stage::setup("slow").moneygo(|moneygo| moneygo.expires_in(LIFETIME)).open().await;
    stage.moneygo.script("a", Script::endpoint().delay(Duration::from_secs(4)));
    let (_operator, _) = settled(&stage, json!({"refresh": {"renewBeforePercentage": 90}})).await;
    stage.moneygo.wait_for_grants("a", 2, Duration::from_secs(5)).await.expect("it is due already");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_the_provider_repeats_is_asked_for_halfway_to_its_end() {
    const LIFETIME: Duration = Duration::from_secs(10);
    let same = |moneygo: fake_moneygo::Builder| moneygo.expires_in(LIFETIME).mode(Mode::SameWhileAlive);
    let stage = Stage::setup("same").moneygo(same).open().await;
    let (_operator, _) = settled(&stage, json!({})).await;
    let first = stage.token("a").await;
    let says_so =
        |scene: &Scene| scene.condition("a", "Refreshed").filter(|found| found.message.contains("was there already"));
    stage.until("the provider repeats the token", SOON, says_so).await;
    assert_eq!(stage.token("a").await, first);
    stage.until("another token", SOON, |scene| scene.token("a").filter(|token| *token != first)).await;
    let replaced = stage::now();

    let issued = stage.moneygo.grants_of("a")[0].issued;
    let late = replaced.duration_since(issued + LIFETIME).unwrap_or_default();
    assert!(late < Duration::from_secs(3), "{late:?} after the expiry");
    let asked: Vec<_> = stage.moneygo.requests_of("a").iter().map(|request| request.received_at).collect();
    let least = asked.windows(2).map(|pair| pair[1].duration_since(pair[0]).unwrap()).min().unwrap();
    println!("{} requests, at least {least:?} apart; replaced {late:?} after the expiry", asked.len());
    assert!(least >= Duration::from_millis(990), "{least:?} apart");
    assert!(asked.len() <= 8, "{} requests", asked.len());
}

/// A cache before the endpoint answers so: that the token would live for longer than it was first to is not to be believed before that end.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_seems_prolonged_each_time_is_replaced_as_it_ends() {
    const LIFETIME: Duration = Duration::from_secs(10);
    let same = |moneygo: fake_moneygo::Builder| moneygo.expires_in(LIFETIME).mode(Mode::SameUndiminished);
    let stage = Stage::setup("undiminished").moneygo(same).open().await;
    // Late enough that another whole lifetime would be believed well beyond the end.
    let (_operator, _) = settled(&stage, json!({"refresh": {"renewBeforePercentage": 10}})).await;
    let first = stage.token("a").await;
    let another = |scene: &Scene| scene.token("a").filter(|token| *token != first);
    stage.until("another token", LIFETIME + SOON, another).await;
    let replaced = stage::now();

    let issued = stage.moneygo.grants_of("a")[0].issued;
    let late = replaced.duration_since(issued + LIFETIME).unwrap_or_default();
    let asked = stage.moneygo.request_count_of("a");
    println!("{asked} requests; replaced {late:?} after the end");
    assert!(late < Duration::from_secs(3), "{late:?} after the end");
    assert!((3..=8).contains(&asked), "{asked} requests");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_prolonged_is_believed_once_it_has_outlived_its_end_and_is_ready_all_the_while() {
    const LIFETIME: Duration = Duration::from_secs(10);
    let same = |moneygo: fake_moneygo::Builder| moneygo.expires_in(LIFETIME).mode(Mode::SameProlonged);
    let stage = Stage::setup("prolonged").moneygo(same).open().await;
    let (_operator, object) = settled(&stage, json!({})).await;
    let first = stage.token("a").await;
    let first_end = status_of(&object).expires_at.unwrap();
    let is_believed = |scene: &Scene| {
        let object = scene.credential("a")?;
        let given = condition(&object, "Refreshed").filter(|told| told.message == "the last request gave a token");
        given.filter(|_| status_of(&object).issued_at > Some(first_end)).map(|_| object)
    };
    let believed = stage.until("the token is taken to live on", 2 * LIFETIME + SOON, is_believed).await;
    let since = |object: &MoneyGoCredential| condition(object, "Ready").unwrap().last_transition_time;
    assert_eq!(since(&believed), since(&object), "it was ready all the while");
    assert_eq!(stage.token("a").await, first);
    let asked = stage.moneygo.request_count_of("a");
    println!("{asked} requests until then");
    assert!(asked <= 10, "{asked} requests");
}

/// It is in the status, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_mark_admission_takes_away_is_answered_once() {
    let stage = Stage::new("unmarked").await;
    let (operator, _) = settled(&stage, json!({})).await;
    if !stage.strip_targets(annotation::REFRESH_HANDLED).await {
        eprintln!("not tried: this API server has no MutatingAdmissionPolicy");
        operator.stop().await;
        return;
    }
    for (request, grants) in [("first", 2), ("second", 3)] {
        stage.request_refresh("a", request).await;
        let is_answered = |scene: &Scene| {
            let status = status_of(&scene.credential("a")?);
            (status.last_handled_refresh.as_deref() == Some(request)).then_some(())
        };
        stage.until("the request is answered", SOON, is_answered).await;
        // Another object's answer comes after what there is to do for this one.
        stage.credential(request, json!({})).await;
        stage.says(request, "Ready", "False", "CredentialsNotFound").await;
        assert_eq!(stage.grants_of("a"), grants, "{request}");
    }
    assert!(!stage.secret("a").await.annotations().contains_key(annotation::REFRESH_HANDLED));
    stage.change_nothing().await;
    operator.stop().await;
}

// ---- what does not ----

#[tokio::test(flavor = "multi_thread")]
async fn another_refresh_time_mints_nothing_and_is_shown() {
    let stage = Stage::new("moved").await;
    let (_operator, object) = settled(&stage, json!({})).await;
    let was = status_of(&object).refresh_at.unwrap();
    stage.patch("a", json!({"spec": {"refresh": {"renewBeforePercentage": 90}}})).await;
    let moved = stage.until("refreshAt moves", SOON, |scene| {
        let at = status_of(&scene.credential("a")?).refresh_at?;
        let marked = time(scene.secret("a")?, annotation::REFRESH_AT);
        (at != was && at == marked).then_some(at)
    });
    let moved = moved.await;
    let issued = status_of(&object).issued_at.unwrap();
    assert_between(SignedDuration::from_hours(64), moved.duration_since(issued), SignedDuration::from_hours(72));
    stage.ready("a").await;
    assert_eq!(stage.moneygo.request_count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_that_is_wiped_or_edited_is_put_back() {
    let stage = Stage::new("status").await;
    let (_operator, object) = settled(&stage, json!({})).await;
    let empty: Value =
        ["observedGeneration", "targetName", "issuedAt", "expiresAt", "refreshAt", "observedCredentials", "conditions"]
            .into_iter()
            .map(|field| (field.to_owned(), Value::Null))
            .collect::<serde_json::Map<_, _>>()
            .into();
    let far = json!({"expiresAt": "3000-01-01T00:00:00Z", "refreshAt": "2999-01-01T00:00:00Z"});
    let shifted = json!({"issuedAt": "2001-01-01T00:00:00Z"});
    let failing = json!({"failedAttempts": 7, "nextAttemptAt": "3000-01-01T00:00:00Z", "lastFailureTime": "2001-01-01T00:00:00Z"});
    for (what, edit) in [("wiped", empty), ("far", far), ("shifted", shifted), ("failing", failing)] {
        println!("{what}");
        let edited = stage.patch_status("a", json!({"status": edit})).await;
        put_back(&stage, &object, &edited).await;
    }
    assert_eq!(stage.moneygo.request_count(), 1);
}

/// Kubernetes takes times that are past the last that can be read here.
#[tokio::test(flavor = "multi_thread")]
async fn a_status_that_cannot_be_read_is_written_anew() {
    let stage = Stage::new("unreadable-status").await;
    let (_operator, object) = settled(&stage, json!({})).await;
    let edit = Patch::Merge(json!({"status": {"expiresAt": "9999-12-31T23:59:59Z"}}));
    stage.any_credentials().patch_status("a", &PatchParams::default(), &edit).await.unwrap();
    let is_newer = |found: &MoneyGoCredential| stage::is_newer(found, &object);
    let read = |scene: &Scene| scene.credential("a").filter(is_ready).filter(is_newer);
    let found = stage.until("it can be read again", SOON, read).await;
    assert_eq!(status_of(&found).expires_at, status_of(&object).expires_at);
    assert_eq!(stage.moneygo.request_count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn annotations_that_are_stripped_or_edited_are_put_back() {
    let stage = Stage::new("marks").await;
    let (_operator, _) = settled(&stage, json!({})).await;
    let was = stage.secret("a").await;
    let all: Value =
        was.annotations().keys().map(|key| (key.clone(), Value::Null)).collect::<serde_json::Map<_, _>>().into();
    let mut edits = vec![("all of them are stripped", all)];
    for key in [annotation::EXPIRES_AT, annotation::ISSUED_AT, annotation::REFRESH_AT] {
        edits.push((key, json!({key: "3000-01-01T00:00:00Z"})));
        edits.push((key, json!({key: null})));
    }
    for key in [
        annotation::ADOPT,
        annotation::APPLIED,
        annotation::TOKEN_HMAC,
        annotation::CREDENTIALS_HMAC,
        annotation::SCOPE,
    ] {
        edits.push((key, json!({key: null})));
    }
    for (what, edit) in edits {
        println!("{what}: {edit}");
        let edited = stage.patch_secret("a", json!({"metadata": {"annotations": edit}})).await;
        stage
            .until(format!("{what}: put back"), SOON, |scene| {
                let secret = scene.secret("a").filter(|secret| is_newer(*secret, &edited))?;
                (secret.annotations() == was.annotations()).then_some(())
            })
            .await;
    }
    assert_eq!(stage.token("a").await, token_of(&was));
    stage.ready("a").await;
    assert_eq!(stage.moneygo.request_count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_of_the_object_and_of_its_credentials_mint_nothing() {
    let stage = Stage::new("metadata").await;
    let (_operator, _) = settled(&stage, json!({})).await;
    let was = stage.secret("a").await;
    let labels = json!({"metadata": {"labels": {"team": "payments"}, "annotations": {"note": "text"}}});
    let credentials = stage.patch_secret(&credentials_name("a"), labels.clone()).await;
    // A look shows that the client is the same; the status remembers which version was looked at.
    stage
        .until("the credentials were looked at", SOON, |scene| {
            let seen = status_of(&scene.credential("a")?).observed_credentials?;
            (Some(seen.resource_version) == credentials.resource_version()).then_some(())
        })
        .await;
    stage.patch("a", labels).await;
    // What comes after it in the same watch shows that it was dealt with.
    stage.request_refresh("a", "last").await;
    stage.until("a second token", SOON, |scene| scene.token("a").filter(|token| *token != token_of(&was))).await;
    let between = stage.scene().history_of("a").map(|(_, secret)| token_of(secret)).collect::<Vec<_>>();
    assert_eq!(between.iter().filter(|token| **token == token_of(&was)).count(), 1, "the Secret was written meanwhile");
    assert_eq!(stage.moneygo.request_count(), 2);
}

// ---- what does ----

#[tokio::test(flavor = "multi_thread")]
async fn another_scope_mints_once() {
    let stage = Stage::setup("scope").moneygo(fake_moneygo::Builder::any_scope).open().await;
    let (_operator, _) = settled(&stage, json!({})).await;
    let old = stage.token("a").await;
    stage.patch("a", json!({"spec": {"scope": "api extra"}})).await;
    stage.until("another token", SOON, |scene| scene.token("a").filter(|token| *token != old)).await;
    stage.ready("a").await;
    let grants = stage.moneygo.grants_of("a");
    assert_eq!(grants.iter().map(|grant| grant.scope.as_str()).collect::<Vec<_>>(), ["api", "api extra"]);
    assert_eq!(stage.secret("a").await.annotations()[annotation::SCOPE], "api extra");
    assert_eq!(stage.moneygo.request_count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_client_secret_is_tried_at_once() {
    let stage = Stage::new("rotated").await;
    let (_operator, _) = settled(&stage, json!({})).await;
    let old = stage.token("a").await;
    stage.moneygo.set_secret("a", &client_secret_of("rotated"));
    stage.client_secret(&credentials_name("a"), "a", &client_secret_of("rotated")).await;
    stage.until("another token", SOON, |scene| scene.token("a").filter(|token| *token != old)).await;
    stage.ready("a").await;
    assert_eq!(stage.moneygo.request_count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_client_secret_is_found_while_the_old_token_lives() {
    let stage = Stage::new("wrong").await;
    let (_operator, _) = settled(&stage, json!({})).await;
    let old = stage.token("a").await;
    stage.client_secret(&credentials_name("a"), "a", &client_secret_of("wrong")).await;
    let object = stage.says("a", "Refreshed", "False", "InvalidClient").await;
    assert!(is_ready(&object), "{:?}", object.status);
    assert_eq!(condition(&object, "Stalled").unwrap().status, "False", "the token lives");
    assert_eq!(stage.token("a").await, old);
    let status = status_of(&object);
    let wait = status.next_attempt_at.unwrap().duration_since(status.last_failure_time.unwrap());
    assert_between(SignedDuration::from_mins(4), wait, SignedDuration::from_mins(6));
    assert_eq!(stage.moneygo.request_count(), 2);

    stage.client_secret(&credentials_name("a"), "a", &client_secret_of("a")).await;
    let object = stage.says("a", "Refreshed", "True", "Succeeded").await;
    assert_eq!(status_of(&object).failed_attempts, None);
    assert!(stage.grants_of("a") <= 2);
    assert_eq!(stage.moneygo.state_of(&stage.token("a").await, stage::now()), TokenState::Alive);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_a_row_have_a_small_allowance() {
    let stage = Stage::new("allowance").await;
    let (_operator, _) = settled(&stage, json!({})).await;
    for (request, grants) in [("1", 2), ("2", 3), ("3", 4)] {
        stage.request_refresh("a", request).await;
        stage.moneygo.wait_for_grants("a", grants, SOON).await.unwrap();
        stage
            .until("it is handled", SOON, |scene| {
                status_of(&scene.credential("a")?).last_handled_refresh.filter(|handled| handled == request)
            })
            .await;
    }
    let third = stage.moneygo.grants_of("a")[3].issued;
    stage.request_refresh("a", "4").await;
    let fourth = stage.moneygo.wait_for_grants("a", 5, SOON).await.unwrap()[4].issued;
    let waited = fourth.duration_since(third).unwrap();
    println!("the fourth came {waited:?} after the third");
    assert_between(Duration::from_secs(5), waited, Duration::from_secs(11));
}

// ---- where it fails ----

/// An object without a token, whose client Money-Go does not know, which was found a moment ago.
async fn refused(stage: &Stage) -> Operator<'_> {
    stage.subscribe("a", json!({})).await;
    stage.moneygo.set_secret("a", "another-secret-of-the-client");
    let operator = stage.operator().start().await;
    stage.says("a", "Ready", "False", "InvalidClient").await;
    assert_eq!(stage.moneygo.request_count(), 1);
    operator
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_client_is_not_asked_for_again_for_the_sake_of_a_label() {
    let stage = Stage::new("refused").await;
    let _operator = refused(&stage).await;
    for number in 0..3 {
        let labels = json!({"metadata": {"labels": {"number": number.to_string()}}});
        let credentials = stage.patch_secret(&credentials_name("a"), labels).await;
        stage
            .until("the credentials were looked at", SOON, |scene| {
                let seen = status_of(&scene.credential("a")?).observed_credentials?;
                (Some(seen.resource_version) == credentials.resource_version()).then_some(())
            })
            .await;
    }
    stage.says("a", "Ready", "False", "InvalidClient").await;
    assert_eq!(stage.moneygo.request_count(), 1);
    stage.moneygo.set_secret("a", &client_secret_of("corrected"));
    stage.client_secret(&credentials_name("a"), "a", &client_secret_of("corrected")).await;
    stage.ready("a").await;
    assert_eq!(stage.moneygo.request_count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_in_a_row_make_few_attempts_that_fail() {
    let stage = Stage::setup("edits").moneygo(fake_moneygo::Builder::any_scope).open().await;
    let _operator = refused(&stage).await;
    let started = Instant::now();
    for number in 0..12 {
        let edited = stage.patch("a", json!({"spec": {"scope": format!("scope-{number}")}})).await;
        stage
            .until("the edit was looked at", SOON, |scene| {
                (status_of(&scene.credential("a")?).observed_generation == edited.metadata.generation).then_some(())
            })
            .await;
    }
    let made = stage.moneygo.request_count() - 1;
    let allowed = 4 + usize::try_from(started.elapsed().as_secs() / 10).unwrap();
    assert_between(1, made, allowed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_costs_one_grant() {
    let stage = Stage::setup("lost").moneygo(|moneygo| moneygo.mode(Mode::RevokePrevious)).open().await;
    stage.moneygo.script("a", Script::close().after_grant());
    let _operator = stage.operator().start().await;
    stage.subscribe("a", json!({})).await;
    stage.says("a", "Ready", "False", "EndpointUnavailable").await;
    stage.ready("a").await;
    assert_eq!(stage.grants_of("a"), 2);
    assert_eq!(stage.moneygo.state_of(&stage.token("a").await, stage::now()), TokenState::Alive);
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_honoured_in_both_forms() {
    const ASKED: Duration = Duration::from_secs(7);
    let stage = Stage::new("limited").await;
    let _operator = stage.operator().start().await;
    // A date has whole seconds.
    let at = Timestamp::try_from(stage::now() + ASKED).unwrap().as_second() + 1;
    let at = Timestamp::from_second(at).unwrap();
    let date = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&at).unwrap();
    stage.moneygo.script("seconds", Script::status(429).header("retry-after", "7"));
    stage.moneygo.script("date", Script::status(429).header("retry-after", &date));
    for name in ["seconds", "date"] {
        stage.subscribe(name, json!({})).await;
        let object = stage.says(name, "Refreshed", "False", "RateLimited").await;
        assert_eq!(status_of(&object).failed_attempts, Some(1));
    }
    for name in ["seconds", "date"] {
        stage.ready(name).await;
        let asked: Vec<_> = stage.moneygo.requests_of(name).iter().map(|request| request.received_at).collect();
        assert_eq!(asked.len(), 2);
        let waited = asked[1].duration_since(asked[0]).unwrap();
        println!("{name}: asked again after {waited:?}");
        let until_date = SystemTime::from(at).duration_since(asked[0]).unwrap();
        let least = if name == "date" { until_date } else { ASKED };
        assert_between(least, waited, ASKED + Duration::from_secs(4));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_keeps_overwriting_the_token_is_named_and_costs_few_grants() {
    let stage = Stage::new("fought").await;
    let (_operator, _) = settled(&stage, json!({})).await;
    let secrets = stage.secrets();
    let params = kube::api::PatchParams { field_manager: Some("the-fighter".to_owned()), ..Default::default() };
    let overwrite = kube::api::Patch::Merge(json!({"stringData": {"access_token": "mine"}}));
    let started = stage::now();
    let fight = async {
        loop {
            stage.until("a token to overwrite", SOON, |scene| scene.token("a").filter(|token| token != "mine")).await;
            secrets.patch("a", &params, &overwrite).await.unwrap();
        }
    };
    let named = stage.says("a", "Refreshed", "False", "TargetOverwritten");
    let object = tokio::select! {
        object = named => object,
        () = fight => unreachable!("it fights for ever"),
    };
    let message = condition(&object, "Refreshed").unwrap().message;
    assert!(message.contains("the-fighter"), "{message}");
    let grants = stage.grants_of("a");
    println!("{grants} grants in {:?}", stage::now().duration_since(started).unwrap());
    assert_between(2, grants, 4);

    // It has stopped: the next one stays.
    stage.ready("a").await;
    assert_eq!(stage.grants_of("a"), grants + 1);
    assert_eq!(stage.token("a").await, stage.moneygo.grants_of("a").last().unwrap().token);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_object_stops_itself_and_no_other() {
    let stage = Stage::setup("broken").own_plane().await.open().await;
    let mut lax: Value = serde_yaml::from_str(stage::CRD).unwrap();
    lax["spec"]["versions"][0]["schema"]["openAPIV3Schema"] =
        json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    stage.plane.install_crd(&lax.to_string()).await.unwrap();
    for (name, spec) in
        [("broken", r#"{credentialsRef: {name: a-client}, suspend: "yes"}"#), ("hopeless", "{credentialsRef: text}")]
    {
        let manifest =
            "{apiVersion: money-go.com/v1alpha1, kind: MoneyGoCredential, metadata: {name: NAME}, spec: SPEC}";
        stage.credential_from_yaml(&manifest.replace("NAME", name).replace("SPEC", spec)).await;
    }
    stage.plane.install_crd(stage::CRD).await.unwrap();

    let (_operator, _) = settled(&stage, json!({})).await;
    let conditions = stage.until("it says that it is broken", SOON, |scene| {
        let object = scene.any_credential("broken")?;
        object.data.get("status")?.get("conditions")?.as_array().cloned()
    });
    let conditions = conditions.await;
    let found = |kind: &str| conditions.iter().find(|found| found["type"] == kind).unwrap();
    assert_eq!(found("Ready")["reason"], "InvalidSpec");
    assert_eq!(found("Stalled")["status"], "True");
    // Here the API server takes no status: it cannot evaluate its rules.
    stage.told("hopeless", "InvalidSpec").await;
    stage.delete("broken").await;
    stage.until("it is gone", SOON, |scene| scene.any_credential("broken").is_none().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_objects_with_one_client_are_warned_of_each_other() {
    let stage = Stage::new("shared").await;
    let (_operator, _) = settled(&stage, json!({})).await;
    stage.credential("b", json!({"credentialsRef": {"name": credentials_name("a")}})).await;
    stage.ready("b").await;
    for name in ["a", "b"] {
        stage.told(name, "SharedCredentials").await;
    }
}
