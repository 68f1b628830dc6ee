//! Replicas that end, stand still or lose the API server: one grant a life, no token lost that could be written, none expired.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod stage;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use fake_moneygo::{Mode, Script, TokenState};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use serde_json::json;
use stage::{Operator, OperatorBuilder, SOON, Scene, Stage, token_of};

/// The shortest that the operator takes.
const LEASE: Duration = Duration::from_secs(3);
const LIFE: Duration = Duration::from_secs(20);
/// Two thirds of the life, less the jitter of a tenth of it.
const EARLIEST_REFRESH: Duration = Duration::from_secs(12);
const OBJECTS: usize = 20;

/// With the most verbose log: the stage searches it for secrets.
fn operator(stage: &Stage) -> OperatorBuilder<'_> {
    stage.operator().flag("--log-level=trace")
}

async fn replica(stage: &Stage) -> Operator<'_> {
    let lease = format!("--leader-elect-lease-duration={}s", LEASE.as_secs());
    let operator = operator(stage).flag("--leader-elect").flag(lease).flag("--token-requests-per-second=200");
    operator.start().await
}

async fn leads(operator: &mut Operator<'_>) {
    let started = Instant::now();
    let is_leader = |metrics: &str| metrics.lines().any(|line| line.ends_with("leader 1"));
    while !operator.get("/metrics").await.is_some_and(|(_, metrics)| is_leader(&metrics)) {
        assert!(started.elapsed() < SOON, "the replica does not lead");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A leader, and one that waits.
async fn replicas(stage: &Stage) -> (Operator<'_>, Operator<'_>) {
    let mut leader = replica(stage).await;
    leads(&mut leader).await;
    (leader, replica(stage).await)
}

async fn holder(stage: &Stage) -> String {
    let leases: Api<Lease> = Api::namespaced(stage.admin.clone(), &stage.own_namespace);
    let lease = leases.get("moneygo-operator").await.unwrap();
    lease.spec.unwrap().holder_identity.unwrap_or_default()
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("payments-{number}")).collect()
}

async fn subscribe_all(stage: &Stage, names: &[String]) {
    for name in names {
        stage.subscribe(name, json!({})).await;
    }
    let all = |scene: &Scene| (scene.credentials().filter(stage::is_ready).count() == names.len()).then_some(());
    stage.until("all are Ready", SOON, all).await;
}

fn tokens(scene: &Scene, names: &[String]) -> Option<BTreeMap<String, String>> {
    names.iter().map(|name| Some((name.clone(), scene.token(name)?))).collect()
}

/// Waits until every Secret holds another token than in `before`.
async fn all_replaced(stage: &Stage, before: &BTreeMap<String, String>) {
    let all = |scene: &Scene| {
        before.iter().all(|(name, token)| scene.token(name).as_ref().is_some_and(|now| now != token)).then_some(())
    };
    stage.until("every token is replaced", SOON, all).await;
}

/// The tokens that a Secret was seen to hold, each with the moment from which on.
fn held(stage: &Stage, name: &str) -> Vec<(SystemTime, String)> {
    let scene = stage.scene();
    let mut held: Vec<_> = scene.history_of(name).map(|(at, secret)| (*at, token_of(secret))).collect();
    held.dedup_by(|later, earlier| later.1 == earlier.1);
    held
}

/// Tokens that were issued for an object, and never came to its Secret.
fn orphans(stage: &Stage, name: &str) -> usize {
    let held: BTreeSet<_> = held(stage, name).into_iter().map(|(_, token)| token).collect();
    stage.moneygo.grants_of(name).iter().filter(|grant| !held.contains(&grant.token)).count()
}

/// No Secret ever held a token beyond its end, none was replaced before its time, and at most `most` tokens an object were lost.
/// Returns how many were lost in all.
fn judge(stage: &Stage, names: &[String], most: usize) -> usize {
    let mut lost = 0;
    for name in names {
        let (held, grants) = (held(stage, name), stage.moneygo.grants_of(name));
        let issued =
            |token: &String| grants.iter().find(|grant| grant.token == *token).expect("a token of ours").issued;
        for pair in held.windows(2) {
            let ((_, earlier), (until, later)) = (&pair[0], &pair[1]);
            assert_ne!(stage.moneygo.state_of(earlier, *until), TokenState::Expired, "{name} held an expired token");
            let apart = issued(later).duration_since(issued(earlier)).unwrap();
            assert!(apart >= EARLIEST_REFRESH, "{name} was refreshed after {apart:?}");
        }
        let (_, newest) = held.last().expect("a token");
        assert_eq!(stage.moneygo.state_of(newest, stage::now()), TokenState::Alive, "{name} holds a dead token");
        let orphans = orphans(stage, name);
        assert!(orphans <= most, "{name} lost {orphans} tokens");
        lost += orphans;
    }
    lost
}

/// Twenty objects, and the moment at which the first four are refreshed: others are in flight, for an answer takes a while.
async fn in_the_midst(stage: &Stage, names: &[String]) -> BTreeMap<String, String> {
    subscribe_all(stage, names).await;
    let before = tokens(&stage.scene(), names).unwrap();
    stage.moneygo.script_all(Script::endpoint().delay(Duration::from_millis(300)).forever());
    stage.moneygo.wait_for_total_grants(OBJECTS + 4, SOON).await.unwrap();
    before
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_leader_is_killed_the_other_takes_over() {
    let stage = Stage::setup("sigkill").moneygo(|moneygo| moneygo.expires_in(LIFE)).open().await;
    let (leader, mut other) = replicas(&stage).await;
    let names = names(OBJECTS);
    let before = in_the_midst(&stage, &names).await;
    leader.kill().await;
    let killed = Instant::now();
    leads(&mut other).await;
    println!("SIGKILL: the other leads after {:.1?}", killed.elapsed());
    assert!(killed.elapsed() < LEASE + Duration::from_secs(2));
    all_replaced(&stage, &before).await;
    let lost = judge(&stage, &names, 2);
    println!("SIGKILL: {lost} of {} tokens were lost", stage.moneygo.ledger().len());
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_leader_is_asked_to_stop_it_writes_what_it_holds_and_gives_the_lease_up() {
    let stage = Stage::setup("sigterm").moneygo(|moneygo| moneygo.expires_in(LIFE)).open().await;
    let (leader, mut other) = replicas(&stage).await;
    let was = holder(&stage).await;
    let names = names(OBJECTS);
    let before = in_the_midst(&stage, &names).await;
    let stopped = leader.stop().await;
    assert!(stopped.elapsed < Duration::from_secs(5), "{:?}", stopped.elapsed);
    let now_held_by = holder(&stage).await;
    assert_ne!(now_held_by, was, "the Lease is given up before the exit");
    let ended = Instant::now();
    leads(&mut other).await;
    println!("SIGTERM: stopped after {:.1?}, the other leads {:.1?} later", stopped.elapsed, ended.elapsed());
    assert!(ended.elapsed() < Duration::from_millis(1500), "at its next look, not when the lease has run out");
    all_replaced(&stage, &before).await;
    let lost = judge(&stage, &names, 0);
    println!("SIGTERM: {lost} of {} tokens were lost", stage.moneygo.ledger().len());
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_for_the_answer_that_is_under_way() {
    let stage = Stage::new("stop").await;
    let operator = operator(&stage).flag("--leader-elect").start().await;
    stage.moneygo.hold_answers();
    stage.subscribe("payments", json!({})).await;
    stage.moneygo.wait_for_held(1, SOON).await.unwrap();
    let stopping = operator.until_logged("stopping", 1);
    let release = async {
        stopping.await;
        stage.moneygo.release();
    };
    let (stopped, ()) = tokio::join!(operator.stop(), release);
    assert!(stopped.elapsed < Duration::from_secs(5), "{:?}", stopped.elapsed);
    assert_eq!(stage.token("payments").await, stage.moneygo.grants_of("payments")[0].token);
    assert_eq!(holder(&stage).await, "", "the Lease is given up");
}

/// The leader stands still with answers on their way, past its lease; the other takes over; then the first goes on, with tokens that are
/// revoked by now.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stood_still_leaves_no_dead_token() {
    let setup = Stage::setup("sigstop").moneygo(|moneygo| moneygo.expires_in(LIFE).mode(Mode::RevokePrevious));
    let stage = setup.open().await;
    let (leader, mut other) = replicas(&stage).await;
    let names = names(5);
    subscribe_all(&stage, &names).await;
    let before = tokens(&stage.scene(), &names).unwrap();
    stage.moneygo.hold_answers();
    stage.moneygo.wait_for_held(names.len(), SOON).await.unwrap();
    leader.suspend();
    stage.moneygo.release();
    leads(&mut other).await;
    all_replaced(&stage, &before).await;
    leader.resume();
    let resumed = Instant::now();

    let is_settled = |scene: &Scene| {
        let now = stage::now();
        let alive = |token: &String| stage.moneygo.state_of(token, now) == TokenState::Alive;
        let settled = tokens(scene, &names)?.values().all(alive);
        // Each of the late tokens was met by a write that had come first.
        let late = names.iter().all(|name| stage.moneygo.grants_of(name).len() >= 4);
        (settled && late).then_some(())
    };
    stage.until("every Secret holds a living token", SOON, is_settled).await;
    println!("SIGSTOP: settled {:.1?} after SIGCONT", resumed.elapsed());
    for name in &names {
        // Never was a token written that had been dead for long.
        for (at, token) in held(&stage, name) {
            match stage.moneygo.state_of(&token, at) {
                TokenState::Alive => {}
                TokenState::Revoked { since }
                    if at.duration_since(since).unwrap_or_default() < Duration::from_secs(1) => {}
                dead => panic!("{name} was given a token that was {dead:?}"),
            }
        }
        assert!(orphans(&stage, name) <= 2, "{name} lost {} tokens", orphans(&stage, name));
    }
    leader.stop().await;
    other.stop().await;
    let scene = stage.scene();
    for (name, token) in tokens(&scene, &names).unwrap() {
        assert_eq!(stage.moneygo.state_of(&token, stage::now()), TokenState::Alive, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_issued_while_the_api_server_is_away_is_written_when_it_is_back() {
    let stage = Stage::setup("outage").own_plane().await.open().await;
    let operator = operator(&stage).start().await;
    stage.subscribe("first", json!({})).await;
    stage.ready("first").await;

    // Refused connections, for a first token and for a refresh.
    stage.moneygo.hold_answers();
    stage.subscribe("second", json!({})).await;
    stage.request_refresh("first", "now").await;
    stage.moneygo.wait_for_held(2, SOON).await.unwrap();
    stage.plane.stop_apiserver().unwrap();
    stage.moneygo.release();
    operator.until_logged("trying again", 2).await;
    stage.plane.start_apiserver().await.unwrap();
    let newest = |client: &str| stage.moneygo.grants_of(client).pop().unwrap().token;
    for name in ["first", "second"] {
        let is_written = |scene: &Scene| (scene.token(name)? == newest(name)).then_some(());
        stage.until("the token that was issued is written", SOON, is_written).await;
        stage.ready(name).await;
    }
    assert_eq!([stage.grants_of("first"), stage.grants_of("second")], [2, 1]);

    // No answers, and a stop meanwhile: what is held is written within the time that a stop may take.
    stage.moneygo.hold_answers();
    stage.request_refresh("first", "once more").await;
    stage.moneygo.wait_for_held(1, SOON).await.unwrap();
    stage.plane.pause_apiserver().unwrap();
    stage.moneygo.release();
    let resume = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        stage.plane.resume_apiserver().unwrap();
    };
    let (stopped, ()) = tokio::join!(operator.stop(), resume);
    assert!(stopped.elapsed < Duration::from_secs(5), "{:?}", stopped.elapsed);
    assert_eq!(stage.token("first").await, newest("first"));
    assert_eq!(stage.grants_of("first"), 3);
}

/// How long the Secret ever held a token that had been revoked.
fn longest_dead(stage: &Stage, name: &str) -> Duration {
    let mut held = held(stage, name);
    held.push((stage::now(), String::new()));
    let dead = held.windows(2).map(|pair| match stage.moneygo.state_of(&pair[0].1, pair[1].0) {
        TokenState::Revoked { since } => pair[1].0.duration_since(since.max(pair[0].0)).unwrap_or_default(),
        _ => Duration::ZERO,
    });
    dead.max().unwrap_or_default()
}

/// Without a Lease, as in the worst case of one: both ask for each token, and each new one revokes the last.
#[tokio::test(flavor = "multi_thread")]
async fn two_that_both_lead_settle_on_a_living_token() {
    let setup = Stage::setup("both").moneygo(|moneygo| moneygo.expires_in(LIFE).mode(Mode::RevokePrevious));
    let stage = setup.open().await;
    let (one, other) = tokio::join!(operator(&stage).start(), operator(&stage).start());
    let names = names(5);
    subscribe_all(&stage, &names).await;
    all_replaced(&stage, &tokens(&stage.scene(), &names).unwrap()).await;
    let is_settled = |scene: &Scene| {
        let alive = |token: &String| stage.moneygo.state_of(token, stage::now()) == TokenState::Alive;
        tokens(scene, &names)?.values().all(alive).then_some(())
    };
    stage.until("every Secret holds a living token", SOON, is_settled).await;
    one.stop().await;
    other.stop().await;
    let dead = names.iter().map(|name| longest_dead(&stage, name)).max().unwrap();
    let grants: Vec<_> = names.iter().map(|name| stage.grants_of(name)).collect();
    println!("two leaders: {grants:?} grants for two lives each, a dead token for {dead:.1?} at most");
    assert!(dead < Duration::from_secs(5), "{dead:?}");
    assert!(grants.iter().all(|&count| count <= 2 * 4), "{grants:?}");
    let scene = stage.scene();
    for (name, token) in tokens(&scene, &names).unwrap() {
        assert_eq!(stage.moneygo.state_of(&token, stage::now()), TokenState::Alive, "{name}");
    }
}

/// The answer that comes during a stop is met by what another leader has written meanwhile: neither is known to live, and who stops is
/// the only one who knows.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_leaves_no_token_that_another_leaders_has_overtaken() {
    let stage = Stage::setup("stop-both").moneygo(|moneygo| moneygo.mode(Mode::RevokePrevious)).open().await;
    let one = operator(&stage).start().await;
    stage.subscribe("payments", json!({})).await;
    stage.ready("payments").await;
    let other = operator(&stage).start().await;
    let before = stage.token("payments").await;
    // Both ask before one is answered, and writes; the other is answered as it stops.
    for millis in [300, 1000] {
        stage.moneygo.script("payments", Script::endpoint().delay(Duration::from_millis(millis)));
    }
    stage.request_refresh("payments", "now").await;
    stage.moneygo.wait_for_grants("payments", 3, SOON).await.unwrap();
    stage
        .until("one of them is written", SOON, |scene: &Scene| scene.token("payments").filter(|token| *token != before))
        .await;
    tokio::join!(one.stop(), other.stop());
    assert_eq!(stage.grants_of("payments"), 4, "the third of the two");
    assert_eq!(stage.moneygo.state_of(&stage.token("payments").await, stage::now()), TokenState::Alive);
}

/// What another leader wrote while a pass was under way is planned on before anything is said over it.
#[tokio::test(flavor = "multi_thread")]
async fn a_status_that_tells_of_a_later_token_is_not_written_over() {
    let stage = Stage::new("failover-status").await;
    let operator = operator(&stage).start().await;
    stage.moneygo.hold_answers();
    stage.subscribe("payments", json!({})).await;
    stage.moneygo.wait_for_held(1, SOON).await.unwrap();
    let later = jiff::Timestamp::try_from(stage::now()).unwrap();
    let expires_at = later + jiff::SignedDuration::from_hours(24);
    stage.patch_status("payments", json!({"status": {"issuedAt": later, "expiresAt": expires_at}})).await;
    // Of one watch, so that the operator has seen the first when it answers the second.
    stage.credential("other", json!({})).await;
    stage.says("other", "Ready", "False", "CredentialsNotFound").await;
    stage.moneygo.release();
    // The Secret holds the earlier token: the later one is gone, and asked for again.
    let grants = stage.moneygo.wait_for_grants("payments", 2, SOON).await.unwrap();
    assert_eq!(grants.len(), 2);
    let ready = stage.ready("payments").await;
    assert!(ready.status.unwrap().issued_at.unwrap() > later);
    operator.stop().await;
}
