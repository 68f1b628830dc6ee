//! The binary and its `/_admin/` paths, as the demo and containers use them.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::process::Stdio;
use std::time::Duration;

use reqwest::Client;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

struct Running {
    _child: Child,
    url: String,
    http: Client,
}

async fn run(arguments: &[&str]) -> (Child, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_fake-moneygo"))
        .args(arguments)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let url = tokio::time::timeout(Duration::from_secs(10), lines.next_line()).await;
    (child, url.unwrap().unwrap().unwrap())
}

fn client() -> reqwest::ClientBuilder {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().no_proxy().timeout(Duration::from_secs(10))
}

impl Running {
    async fn new(arguments: &[&str]) -> Self {
        let (child, url) = run(arguments).await;
        Self { _child: child, url, http: client().build().unwrap() }
    }

    async fn send(&self, request: &str, body: &Value) -> (u16, Value) {
        let (method, path) = request.split_once(' ').unwrap();
        let method = method.parse().unwrap();
        let request = self.http.request(method, format!("{}{path}", self.url));
        let request = request.header("content-type", "application/json").body(body.to_string());
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        (status, serde_json::from_str(&response.text().await.unwrap()).unwrap_or_default())
    }

    async fn admin(&self, request: &str, body: Value) -> Value {
        let (status, answer) = self.send(request, &body).await;
        assert_eq!(status, 200, "{request} {body}: {answer}");
        answer
    }

    async fn ask(&self, client: &str) -> (u16, Value) {
        let body = json!({
            "grant_type": "client_credentials",
            "client_id": client,
            "client_secret": "sesame",
            "scope": "api",
        });
        self.send("POST /token", &body).await
    }
}

#[tokio::test]
async fn its_ledger_and_settings_are_reached_over_http() {
    let fake = Running::new(&["--expires-in", "40", "--client", "a:sesame"]).await;
    assert_eq!(fake.ask("a").await.1["expires_in"], 40);
    assert_eq!(fake.ask("b").await.0, 401);
    let new = json!({"id": "b", "secret": "sesame", "expires_in_secs": 7});
    fake.admin("POST /_admin/clients", new).await;
    fake.admin("POST /_admin/mode", json!("revoke_previous")).await;
    assert_eq!(fake.ask("b").await.1["expires_in"], 7);
    fake.ask("b").await;
    fake.admin("POST /_admin/mode", json!({"max_live": 2})).await;
    let ledger = fake.admin("GET /_admin/ledger?client=b", Value::Null).await;
    let states: Vec<_> = ledger["grants"].as_array().unwrap().iter().map(|g| &g["state"]).collect();
    assert_eq!(states, ["revoked", "alive"]);
    fake.admin("DELETE /_admin/clients?client=b", Value::Null).await;
    assert_eq!(fake.ask("b").await.0, 401);
    fake.admin("POST /_admin/settings", json!({"any_client": true, "expires_in_secs": 9})).await;
    assert_eq!(fake.ask("c").await.1["expires_in"], 9);
    fake.admin("POST /_admin/rate-limit", json!({"requests": 0, "window_secs": 60})).await;
    assert_eq!(fake.ask("a").await.0, 429);
    fake.admin("POST /_admin/rate-limit", Value::Null).await;
    fake.admin("POST /_admin/outage", json!({"how": "unavailable"})).await;
    assert_eq!(fake.ask("a").await.0, 503);
    fake.admin("POST /_admin/outage", json!({"how": null})).await;
    let requests = fake.admin("GET /_admin/requests?client=a", Value::Null).await;
    let given = requests["requests"].as_array().unwrap().iter().map(|r| &r["status"]);
    assert_eq!(given.collect::<Vec<_>>(), [200, 429, 503]);
    let counts = fake.admin("GET /_admin/counts", Value::Null).await;
    assert_eq!((&counts["requests"], &counts["grants"]), (&json!(8), &json!(4)));
}

#[tokio::test]
async fn its_scripts_are_set_over_http() {
    let fake = Running::new(&[]).await;
    for script in [
        json!({"client": "a", "answer": {"status": 503, "headers": {"retry-after": "1"}}, "times": 2}),
        json!({"client": "a", "answer": "endpoint", "delay_secs": 0.01, "pace": {"drip": {"chunk_bytes": 9, "interval_secs": 0.001}}}),
        json!({"client": "a", "answer": {"status": 500, "body": "{token}"}, "after_grant": true}),
        json!({"answer": {"status": 404}, "forever": true, "for_secs": 1000}),
        json!({"client": "a", "answer": {"status": 418}, "forever": true, "after_secs": 1000}),
    ] {
        fake.admin("POST /_admin/script", script).await;
    }
    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.push(fake.ask("a").await.0);
    }
    assert_eq!(seen, [503, 503, 200, 500, 404]);
    fake.admin("DELETE /_admin/script", Value::Null).await;
    assert_eq!(fake.ask("a").await.0, 200);
    for (request, bad) in [
        ("POST /_admin/script", json!({"answer": "what"})),
        ("POST /_admin/script", json!({"answer": "hang", "times": 1, "forever": true})),
        ("POST /_admin/script", json!({"answer": "hang", "delay_secs": -1})),
        ("POST /_admin/script", json!({"answer": "hang", "delay_secs": 1e9})),
        ("POST /_admin/outage", json!({"how": "refused"})),
        ("POST /_admin/mode", json!("what")),
        ("DELETE /_admin/clients", Value::Null),
    ] {
        assert_eq!(fake.send(request, &bad).await.0, 400, "{request} {bad}");
    }
    assert_eq!(fake.send("GET /_admin/what", &Value::Null).await.0, 404);
}

#[tokio::test]
async fn it_writes_its_authority_and_ends_on_sigterm() {
    let file = std::env::temp_dir().join(format!("fake-moneygo-ca-{}.pem", std::process::id()));
    let (mut child, url) = run(&["--tls", "--ca-out", file.to_str().unwrap()]).await;
    let pem = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let (_printing, first_line) = run(&["--tls", "--ca-out", "-"]).await;
    assert_eq!(first_line, "-----BEGIN CERTIFICATE-----");
    let root = reqwest::Certificate::from_pem(&pem).unwrap();
    let http = client().tls_certs_only([root]).build().unwrap();
    assert_eq!(http.get(format!("{url}/protected")).send().await.unwrap().status(), 401);
    let id = child.id().unwrap().to_string();
    Command::new("kill").arg(id).status().await.unwrap();
    let end = tokio::time::timeout(Duration::from_secs(10), child.wait()).await;
    assert!(end.unwrap().unwrap().success());
}
