//! A token is there, and is replaced before it expires.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod stage;

use serde_json::json;
use stage::Stage;

#[tokio::test(flavor = "multi_thread")]
async fn an_object_becomes_ready_and_its_secret_holds_the_token() {
    let stage = Stage::new("first").await;
    let operator = stage.operator().start().await;
    stage.subscribe("payments", json!({})).await;
    stage.ready("payments").await;
    let grants = stage.moneygo.grants_of("payments");
    assert_eq!(grants.len(), 1);
    assert_eq!(stage.token("payments").await, grants[0].token);
    operator.stop().await;
}
