//! Bad credentials Secrets: what is said of each, that no request is made with it, that its correction is noticed at once, and
//! that nobody else is held up.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod stage;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::future::join_all;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PostParams};
use moneygo_operator::crd::{MoneyGoCredential, Reason};
use serde_json::{Value, json};
use stage::{SOON, Stage, client_secret_of, condition, credentials_name};

/// A correction has to be noticed by then.
const AT_ONCE: Duration = Duration::from_secs(1);

/// What the credentials Secret of a new object holds; its keys are the default ones unless `keys` says otherwise.
struct Row {
    /// The object's name, too.
    name: &'static str,
    /// No Secret at all where it is `None`.
    data: Option<Vec<(&'static str, Vec<u8>)>>,
    /// `clientIdKey` and `clientSecretKey`.
    keys: Option<(&'static str, &'static str)>,
    reason: Reason,
}

fn row(name: &'static str, reason: Reason, data: &[(&'static str, &[u8])]) -> Row {
    let data = data.iter().map(|&(key, value)| (key, value.to_vec())).collect();
    Row { name, data: Some(data), keys: None, reason }
}

/// With a good id, and this as the secret.
fn secret(name: &'static str, reason: Reason, value: &[u8]) -> Row {
    row(name, reason, &[("client_id", b"someone"), ("client_secret", value)])
}

/// With a good secret, and this as the id.
fn id(name: &'static str, reason: Reason, value: &[u8]) -> Row {
    row(name, reason, &[("client_id", value), ("client_secret", b"canary")])
}

fn rows() -> Vec<Row> {
    use Reason::{CredentialsIncomplete as Incomplete, CredentialsMalformed as Malformed, CredentialsNotFound};
    let good: &[(&'static str, &[u8])] = &[("client_id", b"someone"), ("client_secret", b"canary")];
    let keys = |row: Row, keys| Row { keys: Some(keys), ..row };
    vec![
        Row { name: "not-there", data: None, keys: None, reason: CredentialsNotFound },
        row("no-data", Incomplete, &[]),
        row("id-alone", Incomplete, &[("client_id", b"someone")]),
        row("secret-alone", Incomplete, &[("client_secret", b"canary")]),
        row("camel-case-keys", Incomplete, &[("clientId", b"someone"), ("clientSecret", b"canary")]),
        row("upper-case-keys", Incomplete, &[("CLIENT_ID", b"someone"), ("CLIENT_SECRET", b"canary")]),
        row("keys-with-dashes", Incomplete, &[("client-id", b"someone"), ("client-secret", b"canary")]),
        keys(row("another-id-key", Incomplete, good), ("id", "client_secret")),
        keys(row("another-secret-key", Incomplete, good), ("client_id", "secret")),
        id("id-empty", Incomplete, b""),
        secret("secret-empty", Incomplete, b""),
        row("both-empty", Incomplete, &[("client_id", b""), ("client_secret", b"")]),
        secret("secret-newline", Malformed, b"canary\n"),
        secret("secret-crlf", Malformed, b"canary\r\n"),
        secret("secret-space-before", Malformed, b" canary"),
        secret("secret-space-after", Malformed, b"canary "),
        secret("secret-tab", Malformed, b"canary\t"),
        secret("secret-form-feed", Malformed, b"canary\x0c"),
        secret("secret-no-break-space", Malformed, "canary\u{a0}".as_bytes()),
        secret("secret-ideographic-space", Malformed, "\u{3000}canary".as_bytes()),
        secret("secret-line-separator", Malformed, "canary\u{2028}".as_bytes()),
        secret("secret-only-a-newline", Malformed, b"\n"),
        secret("secret-byte-order-mark", Malformed, "\u{feff}canary".as_bytes()),
        secret("secret-utf-16", Malformed, b"\xff\xfec\0a\0"),
        secret("secret-latin-1", Malformed, b"can\xe4ry"),
        secret("secret-cut-within-a-character", Malformed, b"canary\xc3"),
        secret("secret-random-bytes", Malformed, &[0x80; 32]),
        id("id-newline", Malformed, b"someone\n"),
        id("id-space-before", Malformed, b" someone"),
        id("id-byte-order-mark", Malformed, "\u{feff}someone".as_bytes()),
        id("id-not-utf-8", Malformed, b"\xff\xff"),
    ]
}

fn secret_of(name: &str, data: impl IntoIterator<Item = (String, Vec<u8>)>) -> Secret {
    let data: BTreeMap<_, _> = data.into_iter().map(|(key, value)| (key, ByteString(value))).collect();
    let metadata = ObjectMeta { name: Some(credentials_name(name)), ..ObjectMeta::default() };
    Secret { metadata, data: Some(data), ..Secret::default() }
}

async fn set(stage: &Stage, name: &str, data: &[(&str, &[u8])]) {
    let data = data.iter().map(|&(key, value)| (key.to_owned(), value.to_vec()));
    stage.apply_secret(&secret_of(name, data)).await;
}

async fn set_good(stage: &Stage, name: &str, (id_key, secret_key): (&str, &str)) {
    let client_secret = client_secret_of(name);
    set(stage, name, &[(id_key, name.as_bytes()), (secret_key, client_secret.as_bytes())]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_credentials_of_a_new_object_are_told_and_mended_at_once() {
    let stage = Stage::new("credentials-new").await;
    let operator = stage.operator().start().await;
    stage.moneygo.add_client("goes-on", &client_secret_of("goes-on"));
    stage.moneygo.set_expires_in_of("goes-on", Some(Duration::from_secs(4)));
    stage.subscribe("goes-on", json!({})).await;
    let rows = rows();
    for row in &rows {
        if let Some(data) = row.data.clone() {
            stage
                .apply_secret(&secret_of(row.name, data.into_iter().map(|(key, value)| (key.to_owned(), value))))
                .await;
        }
        let reference = match row.keys {
            Some((id, secret)) => json!({"clientIdKey": id, "clientSecretKey": secret}),
            None => json!({}),
        };
        let mut spec = json!({"credentialsRef": reference});
        spec["credentialsRef"]["name"] = credentials_name(row.name).into();
        stage.credential(row.name, spec).await;
    }
    let told = join_all(rows.iter().map(|row| stage.says(row.name, "Ready", "False", row.reason.as_str()))).await;
    for (row, object) in rows.iter().zip(&told) {
        check_conditions(row.name, object, row.reason, false);
        assert!(stage.secrets().get_opt(row.name).await.unwrap().is_none(), "{}: there is a target", row.name);
    }
    // Events are written after the statuses, one by one.
    for row in &rows {
        stage.told(row.name, row.reason.as_str()).await;
    }
    // Another object's refresh, from its beginning to its end, shows that all of this is at rest and in nobody's way.
    let mark = stage.mark();
    let already = stage.grants_of("goes-on");
    stage.moneygo.wait_for_grants("goes-on", already + 2, SOON).await.expect("the others go on");
    assert!(stage.moneygo.requests().iter().all(|request| request.client.as_deref() == Some("goes-on")));
    let mut idle = stage.requests_beside_watches(mark);
    // What is asked for the object that goes on: its own Secrets and status, and whether its namespace is ending.
    idle.retain(|request| !request.name.contains("goes-on") && request.resource != "namespaces");
    assert!(idle.is_empty(), "{idle:#?}");

    for row in &rows {
        stage.moneygo.add_client(row.name, &client_secret_of(row.name));
        set_good(&stage, row.name, row.keys.unwrap_or(("client_id", "client_secret"))).await;
        let corrected = Instant::now();
        stage.ready(row.name).await;
        assert!(corrected.elapsed() < AT_ONCE, "{}: {:?}", row.name, corrected.elapsed());
        assert_eq!(stage.moneygo.request_count_of(row.name), 1, "{}", row.name);
    }
    let lives = stage.moneygo.grants_of("goes-on");
    let has_gap = lives.windows(2).any(|pair| pair[1].issued > pair[0].expires);
    assert!(!has_gap, "the others went on without a gap");
    assert!(!operator.log().contains("canary"));
    operator.stop().await;
    println!("credentials-new: {} bad Secrets, {} passed", rows.len(), rows.len());
}

fn check_conditions(name: &str, object: &MoneyGoCredential, reason: Reason, has_token: bool) {
    let told = |kind: &str| {
        let found = condition(object, kind).unwrap();
        assert_eq!(found.observed_generation, object.metadata.generation, "{name}: {kind}");
        assert!(!found.message.contains("canary"), "{name}: {}", found.message);
        (found.status, found.reason)
    };
    let expected = |status: &str, reason: Reason| (status.to_owned(), reason.as_str().to_owned());
    assert_eq!(told("Refreshed"), expected("False", reason), "{name}");
    let ready = if has_token { expected("True", Reason::TokenValid) } else { expected("False", reason) };
    assert_eq!(told("Ready"), ready, "{name}");
    let is_stalled = !has_token && reason == Reason::CredentialsMalformed;
    let stalled = if is_stalled { expected("True", reason) } else { expected("False", Reason::AsExpected) };
    assert_eq!(told("Stalled"), stalled, "{name}");
}

/// What becomes of the credentials while a good token lives.
#[derive(Clone)]
enum Spoil {
    Delete,
    Data(Value),
    Spec(Value),
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_credentials_leave_a_living_token_in_place() {
    use Reason::{CredentialsIncomplete as Incomplete, CredentialsMalformed as Malformed, CredentialsNotFound};
    let base64 = |text: &str| Spoil::Data(json!({"client_secret": text}));
    let rows = [
        ("deleted", Spoil::Delete, CredentialsNotFound),
        ("secret-removed", Spoil::Data(json!({"client_secret": null})), Incomplete),
        ("id-removed", Spoil::Data(json!({"client_id": null})), Incomplete),
        ("keys-renamed", Spoil::Data(json!({"client_id": null, "client_secret": null, "id": "YQ=="})), Incomplete),
        ("emptied", base64(""), Incomplete),
        ("newline", base64("Y2FuYXJ5Cg=="), Malformed),
        ("not-utf-8", base64("//8="), Malformed),
        ("spec-names-another-key", Spoil::Spec(json!({"clientSecretKey": "other"})), Incomplete),
        ("spec-names-another-secret", Spoil::Spec(json!({"name": "nowhere"})), CredentialsNotFound),
    ];
    let stage = Stage::new("credentials-living").await;
    let operator = stage.operator().start().await;
    join_all(rows.iter().map(|(name, ..)| stage.subscribe(name, json!({})))).await;
    join_all(rows.iter().map(|(name, ..)| stage.ready(name))).await;
    let had = join_all(rows.iter().map(|(name, ..)| stage.secret(name))).await;
    for ((name, spoil, reason), had) in rows.iter().zip(&had) {
        match spoil.clone() {
            Spoil::Delete => stage.delete_secret(&credentials_name(name)).await,
            Spoil::Data(data) => drop(stage.patch_secret(&credentials_name(name), json!({"data": data})).await),
            Spoil::Spec(reference) => drop(stage.patch(name, json!({"spec": {"credentialsRef": reference}})).await),
        }
        let spoiled = Instant::now();
        let object = stage.says(name, "Refreshed", "False", reason.as_str()).await;
        assert!(spoiled.elapsed() < AT_ONCE, "{name}: {:?}", spoiled.elapsed());
        check_conditions(name, &object, *reason, true);
        let has = stage.secret(name).await;
        assert_eq!((&has.data, &has.metadata.resource_version), (&had.data, &had.metadata.resource_version), "{name}");
    }
    for (name, spoil, _) in &rows {
        if let Spoil::Spec(_) = spoil {
            let reference = json!({"name": credentials_name(name), "clientSecretKey": null});
            stage.patch(name, json!({"spec": {"credentialsRef": reference}})).await;
        } else {
            set_good(&stage, name, ("client_id", "client_secret")).await;
        }
        let corrected = Instant::now();
        stage.says(name, "Refreshed", "True", "Succeeded").await;
        assert!(corrected.elapsed() < AT_ONCE, "{name}: {:?}", corrected.elapsed());
    }
    for ((name, ..), had) in rows.iter().zip(&had) {
        assert_eq!(stage.moneygo.request_count_of(name), 1, "{name}: the same client, so no new token");
        assert_eq!(stage.secret(name).await.data, had.data, "{name}");
    }
    operator.stop().await;
    println!("credentials-living: {} bad Secrets, {} passed", rows.len(), rows.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_made_anew_with_the_same_client_costs_no_token() {
    let stage = Stage::new("credentials-anew").await;
    let operator = stage.operator().start().await;
    stage.subscribe("payments", json!({})).await;
    stage.ready("payments").await;
    stage.delete_secret(&credentials_name("payments")).await;
    let anew = stage.client_secret(&credentials_name("payments"), "payments", &client_secret_of("payments")).await;
    stage
        .until("the new Secret was looked at", SOON, |scene| {
            let seen = scene.credential("payments")?.status?.observed_credentials?;
            (Some(seen.uid) == anew.metadata.uid).then_some(())
        })
        .await;
    stage.says("payments", "Refreshed", "True", "Succeeded").await;
    assert_eq!(stage.moneygo.request_count(), 1);
    operator.stop().await;
}

/// What JSON can carry goes to Money-Go as it is, and whatever type the Secret has.
#[tokio::test(flavor = "multi_thread")]
async fn odd_credentials_are_sent_as_they_are() {
    let stage = Stage::new("credentials-odd").await;
    let operator = stage.operator().start().await;
    let long = "x".repeat(32 * 1024);
    let secrets = [
        ("inner-space", "pass phrase"),
        ("inner-newline", "two\nlines"),
        ("nul", "nul\0nul"),
        ("quotes", r#"","client_id":"other"#),
        ("backslash", r"\u0000\"),
        ("umlaut", "pässwörd"),
        ("emoji", "\u{1f511}"),
        ("escape", "\u{1b}[31m"),
        ("one-character", "x"),
        ("long", &long),
    ];
    for (name, client_secret) in secrets {
        stage.moneygo.add_client(name, client_secret);
        stage.client_secret(&credentials_name(name), name, client_secret).await;
        stage.credential(name, json!({})).await;
    }
    join_all(secrets.map(|(name, _)| stage.ready(name))).await;

    let mut basic = secret_of("basic-auth", [("username", "basic-auth"), ("password", "p")].map(text));
    basic.type_ = Some("kubernetes.io/basic-auth".to_owned());
    basic.immutable = Some(true);
    stage.moneygo.add_client("basic-auth", "p");
    stage.secrets().create(&PostParams::default(), &basic).await.unwrap();
    let reference =
        json!({"name": credentials_name("basic-auth"), "clientIdKey": "username", "clientSecretKey": "password"});
    stage.credential("basic-auth", json!({"credentialsRef": reference})).await;
    stage.ready("basic-auth").await;

    // More than the endpoint takes: its answer tells.
    stage.client_secret(&credentials_name("huge"), "huge", &"x".repeat(512 * 1024)).await;
    stage.credential("huge", json!({})).await;
    stage.says("huge", "Ready", "False", Reason::BadResponse.as_str()).await;
    operator.stop().await;
    println!("credentials-odd: {} Secrets, all passed", secrets.len() + 2);
}

fn text((key, value): (&str, &str)) -> (String, Vec<u8>) {
    (key.to_owned(), value.as_bytes().to_vec())
}
