//! Money-Go is away: what is said of it, how it is probed, and how all go on when it is back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod stage;

use std::time::{Duration, Instant, SystemTime};

use fake_moneygo::{Grant, Outage, Request};
use moneygo_controlplane::AuditMark;
use serde_json::json;
use stage::{Condition, SOON, Scene, Stage, condition};

const OBJECTS: usize = 10;
/// Recovery begins within this time of the endpoint's return.
const RECOVERY: Duration = Duration::from_secs(30);
/// The first failure of one client, and the second, by which it is known that it is not the client's.
const BEFORE_IT_IS_KNOWN: usize = 2;
/// The shortest wait between two probes, less what the clocks of two processes may show.
const BETWEEN_PROBES: Duration = Duration::from_millis(4500);

fn names() -> Vec<String> {
    (0..OBJECTS).map(|number| format!("payments-{number}")).collect()
}

fn status_writes(stage: &Stage, since: AuditMark) -> Vec<String> {
    let requests = stage.requests(since).into_iter().filter(|request| request.subresource == "status");
    requests.map(|request| format!("{} {}", request.at, request.request_uri)).collect()
}

/// Money-Go went away while every token had long to live: nobody's status is written for it, and one request at a time is made.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_probed_by_one_and_its_end_releases_all() {
    let stage = Stage::setup("probes").moneygo(|moneygo| moneygo.expires_in(Duration::from_mins(1))).open().await;
    let operator = stage.operator().start().await;
    let names = names();
    for name in &names {
        stage.subscribe(name, json!({"refresh": {"renewBeforePercentage": 90}})).await;
    }
    let all_ready = |scene: &Scene| (scene.credentials().filter(stage::is_ready).count() == OBJECTS).then_some(());
    stage.until("all are Ready", SOON, all_ready).await;
    stage.moneygo.set_outage(Some(Outage::Unavailable)).await.unwrap();
    let (mark, begun) = (stage.mark(), stage::now());

    // Two find out, and a third is a probe.
    let met = |request: &Request| request.received_at > begun && request.status == Some(503);
    let failures = || stage.moneygo.requests().into_iter().filter(met).collect::<Vec<_>>();
    let started = Instant::now();
    while failures().len() <= BEFORE_IT_IS_KNOWN {
        assert!(started.elapsed() < SOON, "nobody probes");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let writes = status_writes(&stage, mark);
    assert!(writes.len() < BEFORE_IT_IS_KNOWN, "the status was written in an outage: {writes:#?}");
    assert!(stage.scene().credentials().all(|object| stage::is_ready(&object)));

    stage.moneygo.set_outage(None).await.unwrap();
    let (back, back_at) = (Instant::now(), stage::now());
    let first = stage.moneygo.wait_for_total_grants(OBJECTS + 1, RECOVERY).await.unwrap();
    println!("recovery began {:.1?} after the return, with {} failed requests", back.elapsed(), failures().len());
    let last = stage.moneygo.wait_for_total_grants(2 * OBJECTS, SOON).await.unwrap();
    let took = last[2 * OBJECTS - 1].issued.duration_since(first[OBJECTS].issued).unwrap();
    println!("all {OBJECTS} went on within {took:.1?} of the first");
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert!(names.iter().all(|name| stage.grants_of(name) == 2));
    probes_are_apart(&failures(), back_at);
    let all_went_on = |scene: &Scene| {
        let goes_well = |name: &String| scene.condition(name, "Refreshed").is_some_and(|found| found.status == "True");
        names.iter().all(goes_well).then_some(())
    };
    stage.until("all say that they go on", SOON, all_went_on).await;
    operator.stop().await;
}

fn assert_in_time(name: &str, told: &Condition, grant: &Grant) {
    let late = SystemTime::from(told.last_transition_time.0).duration_since(grant.expires).unwrap_or_default();
    assert!(late < Duration::from_secs(2), "{name}: told {late:?} after the end");
}

/// Once it is known, no request begins before the last is answered, nor sooner than a probe may.
fn probes_are_apart(failures: &[Request], until: SystemTime) {
    for pair in failures[BEFORE_IT_IS_KNOWN - 1..].windows(2) {
        assert!(pair[1].received_at >= pair[0].answered_at.unwrap(), "one at a time");
        let apart = pair[1].received_at.duration_since(pair[0].received_at).unwrap();
        assert!(apart >= BETWEEN_PROBES || pair[1].received_at > until, "probed again after {apart:?}");
    }
}

/// Nobody touches the object, and Ready says by itself when the token has ended; the dead token stays where it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_ends_in_an_outage_is_told_of_and_replaced_after_it() {
    let stage = Stage::setup("expired").moneygo(|moneygo| moneygo.expires_in(Duration::from_secs(6))).open().await;
    let operator = stage.operator().start().await;
    for name in ["first", "second", "third"] {
        stage.subscribe(name, json!({})).await;
        stage.ready(name).await;
    }
    stage.moneygo.set_outage(Some(Outage::Refused)).await.unwrap();
    for name in ["first", "second", "third"] {
        let object = stage.says(name, "Ready", "False", "TokenExpired").await;
        let ready = condition(&object, "Ready").unwrap();
        let grant = stage.moneygo.grants_of(name).pop().unwrap();
        assert_in_time(name, &ready, &grant);
        assert_eq!(stage.token(name).await, grant.token, "{name}: the last token stays");
        assert_eq!(condition(&object, "Stalled").unwrap().status, "False");
    }
    stage.moneygo.set_outage(None).await.unwrap();
    let back = Instant::now();
    for name in ["first", "second", "third"] {
        let is_back = |scene: &Scene| scene.credential(name).filter(stage::is_ready);
        stage.until(&format!("{name} is Ready again"), RECOVERY, is_back).await;
    }
    println!("all are Ready {:.1?} after the return", back.elapsed());
    operator.stop().await;
}

/// Money-Go says nothing for as long as the operator waits; the token ends meanwhile. What others write of the object changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_ends_while_the_next_is_awaited_is_told_of_whoever_writes_the_object_then() {
    let stage = Stage::setup("awaited").moneygo(|moneygo| moneygo.expires_in(Duration::from_secs(6))).open().await;
    let operator = stage.operator().start().await;
    for name in ["untouched", "annotated"] {
        stage.subscribe(name, json!({})).await;
        stage.ready(name).await;
    }
    stage.moneygo.hold();
    stage.moneygo.wait_for_held(2, SOON).await.unwrap();
    stage.patch("annotated", json!({"metadata": {"annotations": {"example.com/team": "payments"}}})).await;
    for name in ["untouched", "annotated"] {
        let object = stage.says(name, "Ready", "False", "TokenExpired").await;
        let grant = stage.moneygo.grants_of(name).pop().unwrap();
        assert_in_time(name, &condition(&object, "Ready").unwrap(), &grant);
    }
    stage.moneygo.release();
    for name in ["untouched", "annotated"] {
        stage.ready(name).await;
        stage.told(name, "Recovered").await;
    }
    operator.stop().await;
}
