use std::time::{Duration, Instant};

use futures::StreamExt as _;
use kube::runtime::watcher::Event;
use serde_json::json;

use super::*;
use crate::caches::Guarded;

fn object(name: &str, deleted: bool) -> Guarded {
    let condition = |kind: &str, status: &str, reason: &str| json!({"type": kind, "status": status, "reason": reason, "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let mut object = json!({
        "metadata": {"name": name, "namespace": "shop", "uid": name, "resourceVersion": "1"},
        "spec": {"credentialsRef": {"name": format!("{name}-client")}},
        "status": {
            "issuedAt": "2026-01-01T00:00:00Z", "expiresAt": "2026-01-31T00:00:00Z", "refreshAt": "2026-01-21T00:00:00Z",
            "conditions": [
                condition("Ready", "True", "TokenValid"),
                condition("Refreshed", "False", "RateLimited"),
                condition("Stalled", "False", "AsExpected"),
            ],
        },
    });
    if deleted {
        object["metadata"]["deletionTimestamp"] = json!("2026-01-02T00:00:00Z");
    }
    serde_json::from_value(object).unwrap()
}

fn metrics(scopes: &[&Arc<Caches>]) -> Arc<Metrics> {
    let metrics = Arc::new(Metrics::new());
    for caches in scopes {
        metrics.show_objects(Arc::clone(caches));
    }
    metrics.set_leader(true);
    metrics
}

async fn text(metrics: &Arc<Metrics>) -> String {
    pieces(Arc::clone(metrics)).collect().await
}

#[tokio::test]
async fn a_series_goes_with_its_object_and_a_leader_alone_has_any() {
    let caches = Arc::new(Caches::default());
    let metrics = metrics(&[&caches]);
    assert_eq!(text(&metrics).await, "");
    let _ = caches.fold_object(Event::Apply(object("token", false)));
    let expected = r#"# HELP moneygo_credential_issued_timestamp_seconds When the token in the object's Secret was issued.
# TYPE moneygo_credential_issued_timestamp_seconds gauge
moneygo_credential_issued_timestamp_seconds{namespace="shop",name="token"} 1767225600
# HELP moneygo_credential_expiration_timestamp_seconds When the token in the object's Secret expires.
# TYPE moneygo_credential_expiration_timestamp_seconds gauge
moneygo_credential_expiration_timestamp_seconds{namespace="shop",name="token"} 1769817600
# HELP moneygo_credential_renewal_timestamp_seconds When the next token is asked for. Not there while the object is suspended.
# TYPE moneygo_credential_renewal_timestamp_seconds gauge
moneygo_credential_renewal_timestamp_seconds{namespace="shop",name="token"} 1768953600
# HELP moneygo_credential_suspended 1 while spec.suspend of the object is true, else 0.
# TYPE moneygo_credential_suspended gauge
moneygo_credential_suspended{namespace="shop",name="token"} 0
# HELP moneygo_credential_condition 1 for the status that a condition of the object has, 0 for the others.
# TYPE moneygo_credential_condition gauge
moneygo_credential_condition{namespace="shop",name="token",condition="Ready",status="True"} 1
moneygo_credential_condition{namespace="shop",name="token",condition="Ready",status="False"} 0
moneygo_credential_condition{namespace="shop",name="token",condition="Ready",status="Unknown"} 0
moneygo_credential_condition{namespace="shop",name="token",condition="Refreshed",status="True"} 0
moneygo_credential_condition{namespace="shop",name="token",condition="Refreshed",status="False"} 1
moneygo_credential_condition{namespace="shop",name="token",condition="Refreshed",status="Unknown"} 0
moneygo_credential_condition{namespace="shop",name="token",condition="Stalled",status="True"} 0
moneygo_credential_condition{namespace="shop",name="token",condition="Stalled",status="False"} 1
moneygo_credential_condition{namespace="shop",name="token",condition="Stalled",status="Unknown"} 0
# HELP moneygo_credential_condition_reason 1 for the reason that the condition Ready or Refreshed of the object has. There are no others.
# TYPE moneygo_credential_condition_reason gauge
moneygo_credential_condition_reason{namespace="shop",name="token",condition="Ready",reason="TokenValid"} 1
moneygo_credential_condition_reason{namespace="shop",name="token",condition="Refreshed",reason="RateLimited"} 1
"#;
    assert_eq!(text(&metrics).await, expected);
    metrics.set_leader(false);
    assert_eq!(text(&metrics).await, "", "a standby");
    metrics.set_leader(true);
    let _ = caches.fold_object(Event::Apply(object("token", true)));
    assert!(!text(&metrics).await.contains("token\""), "it is being deleted");
    let _ = caches.fold_object(Event::Delete(object("token", true)));
    assert_eq!(text(&metrics).await, "");
}

#[tokio::test]
async fn every_object_of_every_scope_is_written_once_and_its_family_in_one_place() {
    let scopes = [SLICE * 2 + 1, 0, SLICE].map(|count| {
        let caches = Arc::new(Caches::default());
        for number in 0..count {
            let _ = caches.fold_object(Event::Apply(object(&format!("token-{count}-{number}"), false)));
        }
        caches
    });
    let text = text(&metrics(&scopes.each_ref())).await;
    let mut families = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split('{').next().unwrap();
        if families.last() != Some(&name) {
            families.push(name);
        }
    }
    assert_eq!(families, FAMILIES.each_ref().map(|family| family.metric.name));
    let series: std::collections::BTreeSet<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(series.len(), (SLICE * 3 + 1) * 15);
    assert_eq!(text.lines().count(), series.len() + 2 * FAMILIES.len(), "each once, and each family's head");
}

/// `cargo test --release --lib ten_thousand -- --ignored --nocapture`.
#[tokio::test]
#[ignore = "it measures, and judges nothing"]
async fn a_scrape_of_ten_thousand() {
    let caches = Arc::new(Caches::default());
    for number in 0..10_000 {
        let _ = caches.fold_object(Event::Apply(object(&format!("token-of-somebody-{number}"), false)));
    }
    let metrics = metrics(&[&caches]);
    let mut place = Place { metrics, family: 0, scope: 0, after: None, has_begun: false };
    let (mut bytes, mut count, mut longest, begun) = (0, 0, Duration::ZERO, Instant::now());
    loop {
        let piece_begun = Instant::now();
        let Some(piece) = place.next_piece() else { break };
        longest = longest.max(piece_begun.elapsed());
        (bytes, count) = (bytes + piece.len(), count + 1);
    }
    let took = begun.elapsed();
    println!("10,000 objects: {bytes} bytes in {count} pieces, {took:?} in all, the longest piece {longest:?}");
    println!("kept for each object: {} bytes", size_of::<Figures>());
}
