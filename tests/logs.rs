//! The log as JSON: one line for each change, with the object's name and a reason, and none where nothing changes. docs/logs.md tells of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod stage;

use std::collections::BTreeSet;

use fake_moneygo::Script;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;
use kube::api::{ObjectMeta, PostParams};
use serde_json::{Value, json};
use stage::{Operator, OperatorBuilder, SOON, Scene, Stage, client_secret_of, credentials_name};

const LOGS: &str = include_str!("../docs/logs.md");

fn as_json(stage: &Stage) -> OperatorBuilder<'_> {
    stage.operator().flag("--log-format=json").env("MONEYGO_LOG_LEVEL", "info")
}

fn lines(log: &str) -> Vec<Value> {
    log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// Whether an attempt is held back, and that is told, depends on how fast those before it came.
const HELD_BACK: &str = "Pending";

/// The levels and reasons of an object's lines.
fn told(log: &str, object: &str) -> Vec<(String, String)> {
    let of_object = lines(log).into_iter().filter(|line| line["fields"]["name"] == object);
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let told = of_object.map(|line| (word(&line["level"]), word(&line["fields"]["reason"])));
    told.filter(|(_, reason)| reason != HELD_BACK).collect()
}

/// Waits until so many lines of an object are there.
async fn until_told(operator: &Operator<'_>, object: &str, count: usize) {
    let there = async {
        while told(&operator.log(), object).len() < count {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let in_time = tokio::time::timeout(SOON, there).await.is_ok();
    assert!(in_time, "{count} lines of {object}: {:?}\n{}", told(&operator.log(), object), operator.log());
}

/// Every line has a time, a level, a target and a message; one that names an object has its namespace and a reason, too, which docs/logs.md
/// knows.
fn are_well_formed(log: &str) {
    let reasons: BTreeSet<_> =
        LOGS.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`')).map(|(reason, _)| reason).collect();
    for line in lines(log) {
        let is_text = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
        for key in ["timestamp", "level", "target"] {
            assert!(is_text(&line[key]), "{line}");
        }
        let fields = &line["fields"];
        assert!(is_text(&fields["message"]), "{line}");
        assert!(line.get("span").is_none() && line.get("spans").is_none(), "{line}");
        if fields.get("name").is_some() || fields.get("namespace").is_some() {
            assert!(is_text(&fields["name"]) && is_text(&fields["namespace"]), "{line}");
            let reason = fields["reason"].as_str().unwrap_or_else(|| panic!("without a reason: {line}"));
            assert!(reasons.contains(reason), "docs/logs.md does not know {reason}");
        }
    }
}

fn expect(log: &str, object: &str, wanted: &[(&str, &str)]) {
    let told = told(log, object);
    let told: Vec<_> = told.iter().map(|(level, reason)| (level.as_str(), reason.as_str())).collect();
    assert_eq!(told, wanted, "{object}\n{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_change_is_one_line() {
    let stage = Stage::new("logs").await;
    stage.moneygo.script("throttled", Script::status(429).header("retry-after", "1").times(3));
    stage.subscribe("throttled", json!({})).await;
    let (name, client) = ("payments", credentials_name("payments"));
    stage.subscribe(name, json!({})).await;
    // The operator has seen them before an object that names them: two watches have no order.
    stage.moneygo.add_client("taken", &client_secret_of("taken"));
    stage.client_secret(&credentials_name("taken"), "taken", &client_secret_of("taken")).await;
    let operator = as_json(&stage).flag("--leader-elect").start().await;
    stage.ready(name).await;
    stage.request_refresh(name, "once").await;
    until_told(&operator, name, 2).await;
    stage.client_secret(&client, name, "canary-wrong-secret").await;
    stage.says(name, "Refreshed", "False", "InvalidClient").await;
    let failures = |scene: &Scene| scene.credential(name)?.status?.last_failure_time;
    let first = stage.until("the failure is told", SOON, failures).await;
    stage.request_refresh(name, "in vain").await;
    stage.until("it fails again", SOON, |scene| failures(scene).filter(|at| *at > first)).await;
    until_told(&operator, name, 4).await;
    stage.client_secret(&client, name, &client_secret_of(name)).await;
    stage.says(name, "Refreshed", "True", "Succeeded").await;
    stage.patch(name, json!({"spec": {"suspend": true}})).await;
    stage.says(name, "Refreshed", "Unknown", "Suspended").await;
    stage.patch(name, json!({"spec": {"suspend": false}})).await;
    stage.says(name, "Refreshed", "True", "Succeeded").await;
    stage.patch_secret(name, json!({"metadata": {"labels": null}})).await;
    until_told(&operator, name, 8).await;
    stage.delete(name).await;
    until_told(&operator, name, 9).await;

    let metadata = ObjectMeta { name: Some("taken".to_owned()), ..ObjectMeta::default() };
    let foreign = Secret { metadata, ..Secret::default() };
    stage.secrets().create(&PostParams::default(), &foreign).await.unwrap();
    stage.credential("taken", json!({})).await;
    stage.says("taken", "Ready", "False", "TargetConflict").await;
    stage.delete_secret("taken").await;
    stage.ready("taken").await;

    stage.ready("throttled").await;
    assert_eq!(stage.moneygo.request_count_of("throttled"), 4);

    let log = operator.log.clone();
    operator.stop().await;
    let log = std::fs::read_to_string(log).unwrap();
    are_well_formed(&log);
    let wanted = [
        ("INFO", "TokenIssued"),
        ("INFO", "TokenRefreshed"),
        ("WARN", "InvalidClient"),
        // A person asked for it, and it failed all the same.
        ("WARN", "InvalidClient"),
        ("INFO", "Recovered"),
        ("INFO", "Suspended"),
        ("INFO", "Succeeded"),
        ("INFO", "Mended"),
        ("INFO", "Gone"),
    ];
    expect(&log, name, &wanted);
    assert!(log.matches(&format!("\"reason\":\"{HELD_BACK}\"")).count() <= 1, "{log}");
    // Three attempts that failed the same way.
    expect(&log, "throttled", &[("WARN", "RateLimited"), ("INFO", "TokenIssued")]);
    expect(&log, "taken", &[("WARN", "TargetConflict"), ("INFO", "TokenIssued")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_changes_there_is_no_line() {
    let stage = Stage::new("logs-quiet").await;
    let (name, client) = ("payments", credentials_name("payments"));
    stage.subscribe(name, json!({})).await;
    let operator = as_json(&stage).start().await;
    stage.ready(name).await;
    until_told(&operator, name, 1).await;
    let before = operator.log();
    for round in 0..5 {
        // Each is looked at, and leads to reads; the status follows, which says that it was.
        let labels = json!({"metadata": {"labels": {"round": format!("r{round}")}}});
        let edited = stage.patch_secret(&client, labels.clone()).await.resource_version();
        let is_looked_at = |scene: &Scene| {
            let seen = scene.credential(name)?.status?.observed_credentials?.resource_version;
            (Some(seen) == edited).then_some(())
        };
        stage.until("the edit was looked at", SOON, is_looked_at).await;
        stage
            .patch_secret(name, json!({"metadata": {"annotations": {"example.com/round": format!("r{round}")}}}))
            .await;
        stage.patch(name, labels).await;
    }
    assert_eq!(stage.grants_of(name), 1);
    assert_eq!(operator.log(), before);
    operator.stop().await;
}
