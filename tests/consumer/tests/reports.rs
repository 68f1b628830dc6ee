//! What the consumer reports, with files as a kubelet puts them and the stand-in as the API.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fake_moneygo::FakeMoneyGo;
use reqwest::{Certificate, Client};
use serde_json::{Value, json};
use token_consumer::Consumer;

/// A folder that is removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("token-consumer-{name}-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// As a kubelet does it: a new folder, and a link to it that replaces the old one.
fn mount(folder: &Path, version: &str, token: &str) {
    fs::create_dir(folder.join(version)).unwrap();
    fs::write(folder.join(version).join("access_token"), token).unwrap();
    fs::write(folder.join(version).join("expires_at"), "2100-01-01T00:00:00Z").unwrap();
    symlink(version, folder.join("..new")).unwrap();
    fs::rename(folder.join("..new"), folder.join("..data")).unwrap();
}

async fn token(fake: &FakeMoneyGo, ca: &str) -> String {
    let ca = Certificate::from_pem(ca.as_bytes()).unwrap();
    let http = Client::builder().no_proxy().tls_certs_only([ca]).build().unwrap();
    let body = json!({"grant_type": "client_credentials", "client_id": "a", "client_secret": "b", "scope": "api"});
    let request = http.post(fake.token_url()).header("content-type", "application/json").body(body.to_string());
    let answer = request.send().await.unwrap().text().await.unwrap();
    serde_json::from_str::<Value>(&answer).unwrap()["access_token"].as_str().unwrap().to_owned()
}

fn keys() -> [String; 2] {
    ["access_token".to_owned(), "expires_at".to_owned()]
}

#[tokio::test]
async fn tokens_and_answers_are_counted() {
    let fake = FakeMoneyGo::builder().tls().any_client().expires_in(Duration::from_mins(1)).start().await.unwrap();
    let folder = Folder::new("counts");
    let ca = fake.ca_pem().unwrap().to_owned();
    let mut consumer = Consumer::new(folder.0.clone(), keys(), fake.protected_url(), Some(ca.as_bytes())).unwrap();
    consumer.call().await;
    mount(&folder.0, "1", "not a live token");
    consumer.call().await;
    consumer.call().await;
    let token = token(&fake, &ca).await;
    mount(&folder.0, "2", &token);
    consumer.call().await;
    fake.shutdown().await;
    consumer.call().await;
    let report = consumer.report().clone();
    assert_eq!((report.accepted, report.unauthorized, report.failed, report.unreadable), (1, 2, 1, 1));
    assert_eq!(report.seen.len(), 2);
    assert!(report.least_left_secs.unwrap() > 1e9);
    let printed = serde_json::to_string(&report).unwrap();
    assert!(!printed.contains(&token), "{printed}");
}
