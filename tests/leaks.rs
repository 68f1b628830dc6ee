//! A client secret or token is in the request, the source Secret and the target Secret, and nowhere else: not in logs at the most
//! verbose level, events, status, metrics, annotations, managedFields or Leases, whatever goes wrong; not encoded, and not as
//! a digest that a guess could be tested against.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod stage;

use std::fmt::Write as _;
use std::time::Duration;

use fake_moneygo::{FakeMoneyGo, Pace, Script};
use http::HeaderMap;
use k8s_openapi::ByteString;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::{ListParams, ObjectMeta};
use moneygo_operator::caches::ObjectKey;
use moneygo_operator::crd::annotation;
use moneygo_operator::digest::DigestKey;
use moneygo_operator::error::Error;
use moneygo_operator::memory::{HeldToken, Memories};
use moneygo_operator::schedule::Life;
use moneygo_operator::secret::{Issue, Version};
use moneygo_operator::token::{AccessToken, ClientCredentials, read_answer};
use ring::digest;
use serde_json::{Value, json};
use stage::{Canaries, Operator, SOON, Scene, Stage, base64, base64_within, condition, credentials_name};

const CRD: &str = include_str!("../crds/moneygocredentials.money-go.com.yaml");
/// With bytes that look otherwise in a URL.
const CLIENT_SECRET: &str = "canary-secret/of+the=client~7Qz";
/// How every token begins.
const TOKEN: &str = "canary-token/of+Money=Go~";

/// What must not be found: a secret in every form in which it might slip out.
struct Needles(Vec<(&'static str, String)>);

impl Needles {
    fn of(secrets: &[String]) -> Self {
        let mut needles = Vec::new();
        for secret in secrets {
            needles.push(("as it is", secret.clone()));
            needles.extend((0..3).map(|offset| ("in base64", base64_within(secret, offset))));
            needles.push(("in hex", hex(secret.as_bytes())));
            needles.push(("URL-encoded", url_encoded(secret)));
            needles.push(("as bytes", format!("{:?}", secret.as_bytes()).trim_matches(['[', ']']).to_owned()));
            for algorithm in [&digest::SHA1_FOR_LEGACY_USE_ONLY, &digest::SHA256, &digest::SHA384, &digest::SHA512] {
                let digest = digest::digest(algorithm, secret.as_bytes());
                needles.push(("as a digest in hex", hex(digest.as_ref())));
                needles.push(("as a digest in base64", base64(digest.as_ref()).trim_end_matches('=').to_owned()));
            }
        }
        Self(needles)
    }

    /// The form in which a secret is there, and the line.
    fn find<'a>(&self, text: &'a str) -> Option<(&'static str, &'a str)> {
        self.0.iter().find_map(|(form, needle)| {
            let from = text[..text.find(needle)?].rfind('\n').map_or(0, |end| end + 1);
            Some((*form, text[from..].lines().next()?))
        })
    }

    #[track_caller]
    fn are_not_in(&self, place: &str, text: &str) {
        if let Some((form, line)) = self.find(text) {
            panic!("{place} holds a secret {form}: {line}");
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    })
}

fn url_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => encoded.push(char::from(byte)),
            _ => write!(encoded, "%{byte:02X}").unwrap(),
        }
        encoded
    })
}

#[test]
fn the_needles_are_what_they_should_be() {
    for before in ["", "x", "xy", "xyz", "client:"] {
        let hay = base64(format!("{before}{CLIENT_SECRET}, and more").as_bytes());
        assert!((0..3).any(|offset| hay.contains(&base64_within(CLIENT_SECRET, offset))), "{hay}");
    }
    assert_eq!(url_encoded("a/b+c=~"), "a%2Fb%2Bc%3D~");
    let needles = Needles::of(&[CLIENT_SECRET.to_owned()]);
    let hay = format!("x\n{}\ny", hex(CLIENT_SECRET.as_bytes()));
    assert_eq!(needles.find(&hay).unwrap(), ("in hex", hay.lines().nth(1).unwrap()));
    assert_eq!(needles.find("nothing"), None);
}

#[test]
fn the_beginning_of_a_secret_is_found_in_clear_and_in_base64() {
    let canaries = Canaries::of([CLIENT_SECRET, "short"]);
    let beginning = &CLIENT_SECRET[..20];
    for before in ["", "x", "xy", "xyz"] {
        for hay in [format!("{before}{beginning}"), base64(format!("{before}{beginning}").as_bytes())] {
            assert_eq!(canaries.find(&format!("a\n{hay}\nb")), Some(hay.as_str()));
        }
    }
    assert_eq!(canaries.find(&format!("short {}", &CLIENT_SECRET[..12])), None);
}

/// What every stage does at its end: the name of the namespace, which the log tells, is a client secret here.
#[tokio::test(flavor = "multi_thread")]
#[should_panic(expected = "holds a secret")]
async fn a_leak_fails_whatever_test_it_happens_in() {
    let stage = Stage::new("told-by-the-log").await;
    let operator = stage.operator().start().await;
    stage.subscribe("payments", json!({})).await;
    stage.ready("payments").await;
    operator.stop().await;
    stage.client_secret("other", "other", &stage.namespace).await;
}

/// Bad answers, each of its own kind, with both secrets in every part of it that the operator might tell of.
fn answers() -> Vec<Script> {
    let token = format!("{TOKEN}of-an-answer");
    let both = format!("{CLIENT_SECRET} {token}");
    let html = format!("<html><title>{both}</title></html>");
    let echo = |code: &str| {
        json!({"error": code, "error_description": both, "error_uri": both, "client_secret": CLIENT_SECRET}).to_string()
    };
    let grant = |more: Value| {
        let mut grant = json!({"access_token": token, "token_type": "Bearer", "expires_in": 3600});
        grant.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        grant.to_string()
    };
    vec![
        Script::json(401, echo("invalid_client")),
        Script::json(400, echo("invalid_request")),
        Script::json(400, echo(&both)),
        Script::json(403, echo("access_denied")),
        Script::canned(403, html.clone()).header("content-type", "text/html").header("www-authenticate", &both),
        Script::json(429, echo("slow_down")).header("retry-after", &both),
        Script::json(429, both.clone()).header("retry-after", "3600"),
        Script::json(418, both.clone()).header("x-echo", &both),
        Script::canned(500, both.clone()),
        Script::canned(503, html).header("retry-after", &both),
        Script::redirect(302, &format!("http://127.0.0.1:9/{both}").replace(' ', "/")),
        Script::redirect(307, &format!("https://{token}.example/?client_secret={CLIENT_SECRET}")),
        Script::json(200, echo("invalid_client")),
        Script::json(200, both.clone()),
        Script::json(200, format!("{{\"access_token\": \"{token}\", \"secret\": \"{CLIENT_SECRET}")),
        Script::json(200, grant(json!({"access_token": [token]}))),
        Script::json(200, grant(json!({"access_token": format!("{token}\n{CLIENT_SECRET}")}))),
        Script::json(200, grant(json!({"access_token": format!("{both}\u{e9}")}))),
        Script::json(200, grant(json!({"token_type": both}))),
        Script::json(200, grant(json!({"expires_in": both}))),
        Script::json(200, grant(json!({"expires_in": 0, "scope": both}))),
        Script::json(200, grant(json!({}))).header("content-encoding", &both),
        Script::canned(200, grant(json!({}))).header("content-type", &both),
        Script::gzip(both.clone()),
        Script::json(200, format!("{both}{}", " ".repeat(70_000))),
        Script::json(200, grant(json!({}))).pace(Pace::CutAfter { bytes: 60 }),
        Script::json(200, grant(json!({}))).pace(Pace::ResetAfter { bytes: 60 }),
        Script::json(200, grant(json!({}))).pace(Pace::HangAfter { bytes: 60 }),
        Script::raw(format!("HTTP/1.1 {both}\r\n\r\n")),
        Script::raw(format!("HTTP/1.1 200 OK\r\n{both}\r\nset-cookie: {both}\r\n\r\n")),
        Script::raw(both),
        Script::close(),
        Script::reset(),
        Script::endpoint().after_grant().pace(Pace::CutAfter { bytes: 70 }),
    ]
}

async fn client(stage: &Stage, name: &str) {
    stage.moneygo.add_client(name, CLIENT_SECRET);
    stage.client_secret(&credentials_name(name), name, CLIENT_SECRET).await;
}

/// One after the other: several that fail at once would be an outage, in which little is said of each.
async fn failed_answers(stage: &Stage) -> usize {
    let answers = answers();
    for (number, answer) in answers.iter().enumerate() {
        let name = format!("answer-{number}");
        client(stage, &name).await;
        stage.moneygo.script(&name, answer.clone().forever());
        stage.credential(&name, json!({})).await;
        let is_over = |scene: &Scene| {
            let refreshed = condition(&scene.credential(&name)?, "Refreshed")?;
            (refreshed.status != "Unknown").then_some(())
        };
        stage.until(&format!("{name} is answered"), SOON, is_over).await;
        stage.delete(&name).await;
    }
    answers.len()
}

/// Objects whose Secrets, specs and targets are wrong in ways that a message might quote.
async fn bad_neighbours(stage: &Stage) {
    let malformed: [&[u8]; 3] = [b" ", b"\n", b"\xff"];
    for (number, bytes) in malformed.iter().enumerate() {
        let name = format!("malformed-{number}");
        let value = ByteString([CLIENT_SECRET.as_bytes(), bytes].concat());
        let id = ByteString(name.clone().into_bytes());
        let metadata = ObjectMeta { name: Some(credentials_name(&name)), ..ObjectMeta::default() };
        let data = [("client_id".to_owned(), id), ("client_secret".to_owned(), value)].into();
        stage.apply_secret(&Secret { metadata, data: Some(data), ..Secret::default() }).await;
        stage.credential(&name, json!({})).await;
        stage.says(&name, "Ready", "False", "CredentialsMalformed").await;
    }
    let metadata = ObjectMeta { name: Some("foreign".to_owned()), ..ObjectMeta::default() };
    let data = ["access_token", CLIENT_SECRET.split('/').next().unwrap()];
    let data = data.map(|key| (key.to_owned(), ByteString(format!("{TOKEN} {CLIENT_SECRET}").into_bytes())));
    stage.apply_secret(&Secret { metadata, data: Some(data.into()), ..Secret::default() }).await;
    client(stage, "foreign").await;
    stage.credential("foreign", json!({})).await;
    stage.says("foreign", "Ready", "False", "TargetConflict").await;
    stage.patch_secret("foreign", json!({"metadata": {"annotations": {annotation::ADOPT: "foreign"}}})).await;
    stage.ready("foreign").await;
    stage.told("foreign", "OwnerRefused").await;
}

/// An object that a schema let in which checked nothing, with secrets where texts, numbers and lists should be.
async fn broken_objects(stage: &Stage) {
    let mut crd: Value = serde_yaml::from_str(CRD).unwrap();
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"] =
        json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    stage.plane.install_crd(&serde_yaml::to_string(&crd).unwrap()).await.unwrap();
    let reference = json!({"name": "payments-client"});
    let specs = [
        json!({"credentialsRef": CLIENT_SECRET}),
        json!({"credentialsRef": reference, "suspend": CLIENT_SECRET}),
        json!({"credentialsRef": reference, "target": [CLIENT_SECRET]}),
        json!({"credentialsRef": reference, "target": {"deletionPolicy": CLIENT_SECRET}}),
        json!({"credentialsRef": reference, "refresh": {"renewBefore": CLIENT_SECRET}}),
        json!({"credentialsRef": {"name": CLIENT_SECRET, "clientIdKey": CLIENT_SECRET}}),
        json!({"credentialsRef": reference, "scope": format!("\"{CLIENT_SECRET}")}),
        json!({"credentialsRef": reference, "target": {"name": CLIENT_SECRET, "labels": {CLIENT_SECRET: CLIENT_SECRET}}}),
    ];
    let kind = json!({"apiVersion": "money-go.com/v1alpha1", "kind": "MoneyGoCredential"});
    for (number, spec) in specs.iter().enumerate() {
        let mut object = kind.clone();
        object["metadata"] = json!({"name": format!("broken-{number}")});
        object["spec"] = spec.clone();
        stage.credential_from_yaml(&object.to_string()).await;
    }
    let all_told = |scene: &Scene| {
        let is_told = |number| scene.any_credential(&format!("broken-{number}"))?.data.get("status").map(drop);
        (0..specs.len()).all(|number| is_told(number).is_some()).then_some(())
    };
    stage.until("every broken object is told of", SOON, all_told).await;
    stage.plane.install_crd(CRD).await.unwrap();
}

/// Admission refuses the target, and says what is in it.
async fn refused_write(stage: &Stage) {
    let metadata = ObjectMeta { name: Some("refused".to_owned()), ..ObjectMeta::default() };
    let data = [("access_token".to_owned(), ByteString(b"echo".to_vec()))].into();
    let trial = Secret { metadata, data: Some(data), ..Secret::default() };
    let refusal = json!({"messageExpression": "'it holds ' + object.data['access_token']"});
    let refusal = stage.refuse(&trial, refusal).await;
    assert!(refusal.contains(&base64(b"echo")), "{refusal}");
    client(stage, "refused").await;
    stage.credential("refused", json!({})).await;
    stage.says("refused", "Ready", "False", "TargetForbidden").await;
}

async fn good_lives(stage: &Stage) {
    client(stage, "payments").await;
    let keys = json!({"target": {"authorizationKey": "authorization", "expiresAtKey": "expires"}});
    stage.credential("payments", keys).await;
    stage.ready("payments").await;
    stage.request_refresh("payments", "now").await;
    stage.moneygo.wait_for_grants("payments", 2, SOON).await.unwrap();
    // Someone fights for the target with the client's secret.
    for number in 0..6 {
        let overwritten = json!({"stringData": {"access_token": format!("{CLIENT_SECRET}{number}")}});
        stage.patch_secret("payments", overwritten).await;
        let is_seen = |scene: &Scene| {
            let is_restored = !scene.token("payments")?.starts_with(CLIENT_SECRET);
            let is_given_up = scene.condition("payments", "Refreshed")?.reason == "TargetOverwritten";
            (is_restored || is_given_up).then_some(is_given_up)
        };
        if stage.until("the edit is seen", SOON, is_seen).await {
            break;
        }
    }
    stage.client_secret(&credentials_name("payments"), "payments", &format!("{CLIENT_SECRET}!")).await;
    stage.says("payments", "Refreshed", "False", "InvalidClient").await;
}

/// Everything but the places where secrets belong.
async fn look_everywhere(stage: &Stage, needles: &Needles) {
    let list = ListParams::default();
    for object in stage.any_credentials().list(&list).await.unwrap() {
        let mut shown = json!({"metadata": object.metadata, "status": object.data["status"]});
        // The broken objects' own field names are what somebody made them.
        let entries = shown["metadata"]["managedFields"].as_array_mut().unwrap();
        entries.retain(|entry| entry["manager"] == "moneygo-operator");
        needles.are_not_in("an object", &format!("{shown:#}"));
    }
    for namespace in [&stage.namespace, &stage.own_namespace] {
        let secrets: Api<Secret> = Api::namespaced(stage.admin.clone(), namespace);
        for secret in secrets.list(&list).await.unwrap() {
            needles.are_not_in("a Secret's metadata", &serde_json::to_string_pretty(&secret.metadata).unwrap());
        }
        let events: Api<Event> = Api::namespaced(stage.admin.clone(), namespace);
        let leases: Api<Lease> = Api::namespaced(stage.admin.clone(), namespace);
        let events = events.list(&list).await.unwrap().items;
        needles.are_not_in("an event", &serde_json::to_string_pretty(&events).unwrap());
        let leases = leases.list(&list).await.unwrap().items;
        needles.are_not_in("a Lease", &serde_json::to_string_pretty(&leases).unwrap());
    }
    for request in stage.requests(moneygo_controlplane::AuditMark::default()) {
        needles.are_not_in("a request's URI or user agent", &format!("{} {}", request.request_uri, request.user_agent));
    }
}

/// An endpoint whose certificate nobody trusts, and one that speaks TLS where HTTP was meant.
async fn tls_failures(stage: &Stage, flags: &[&str]) -> Vec<String> {
    let tls = FakeMoneyGo::builder().tls().any_client().start().await.unwrap();
    let mut logs = Vec::new();
    for url in [tls.token_url(), tls.token_url().replace("https://", "http://")] {
        stage.moneygo.release();
        let name = if url.starts_with("https") { "untrusted" } else { "plain" };
        let builder = stage.operator().without_flag("--token-url").flag(format!("--token-url={url}"));
        let operator = flags.iter().copied().fold(builder, stage::OperatorBuilder::flag).start().await;
        client(stage, name).await;
        stage.credential(name, json!({})).await;
        let has_failed = |scene: &Scene| {
            let status = scene.condition(name, "Refreshed")?.status;
            (status == "False").then_some(())
        };
        stage.until("the request has failed", SOON, has_failed).await;
        logs.push(finish(operator).await);
    }
    logs
}

/// Its metrics and its log, once it has stopped.
async fn finish(mut operator: Operator<'_>) -> String {
    let (status, metrics) = operator.get("/metrics").await.unwrap();
    assert_eq!(status, 200);
    let log = operator.log.clone();
    operator.stop().await;
    metrics + &std::fs::read_to_string(log).unwrap()
}

async fn nothing_leaks(stage: Stage, flags: &[&str]) {
    let builder = stage.operator().flag("--token-timeout=1s").flag("--leader-elect");
    let operator = flags.iter().copied().fold(builder, stage::OperatorBuilder::flag).start().await;
    good_lives(&stage).await;
    bad_neighbours(&stage).await;
    refused_write(&stage).await;
    let answers = failed_answers(&stage).await;
    broken_objects(&stage).await;
    // A token that comes too late.
    client(&stage, "late").await;
    stage.moneygo.hold_answers();
    stage.credential("late", json!({})).await;
    stage.moneygo.wait_for_held(1, SOON).await.unwrap();
    stage.delete("late").await;
    stage.moneygo.release();
    let mut logs = vec![finish(operator).await];
    logs.extend(tls_failures(&stage, flags).await);

    let mut secrets = vec![CLIENT_SECRET.to_owned(), TOKEN.to_owned()];
    secrets.extend(stage.moneygo.ledger().into_iter().map(|grant| grant.token));
    let needles = Needles::of(&secrets);
    look_everywhere(&stage, &needles).await;
    for log in &logs {
        needles.are_not_in("a log or the metrics", log);
    }
    let lines: usize = logs.iter().map(|log| log.lines().count()).sum();
    assert!(lines > 500, "{lines} lines are not the most verbose log");
    println!("{} forms of {} secrets, {answers} bad answers, {lines} lines of log", needles.0.len(), secrets.len());
}

/// On servers of its own: while a schema changes, the API server refuses requests for its objects.
async fn open(name: &str) -> Stage {
    let setup = Stage::setup(name).own_plane().await;
    setup.moneygo(|moneygo| moneygo.token_prefix(TOKEN)).open().await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_leaks_with_the_most_verbose_log() {
    nothing_leaks(open("leaks").await, &["--log-level=trace"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_leaks_with_the_most_verbose_log_in_json() {
    nothing_leaks(open("leaks-json").await, &["--log-level=trace", "--log-format=json"]).await;
}

/// `TokenClient`, its configuration, `Content` and what is read of a Secret have no `Debug` at all.
#[test]
fn no_debug_shows_a_secret() {
    let token = AccessToken::new(TOKEN.to_owned()).unwrap();
    let client = ClientCredentials::new("client".to_owned(), CLIENT_SECRET.to_owned());
    let key_bytes = *b"0123456789abcdefghijklmnopqrstuv";
    let key = DigestKey::new(&key_bytes).unwrap();
    let life = Life::new("2026-01-01T00:00:00Z".parse().unwrap(), Duration::from_mins(1));
    let issue = Issue {
        life,
        scope: "api".to_owned(),
        refresh_handled: None,
        credentials: Version::default(),
        credentials_digest: Some(key.of_credentials("client", CLIENT_SECRET)),
    };
    let held = HeldToken { token: token.clone(), issue, replaces: None };
    let memory = Memories::default().with(&ObjectKey::new("namespace", "name"), "uid", |memory| {
        memory.held = Some(held.clone());
        memory.clone()
    });
    let body = json!({"access_token": TOKEN, "token_type": "Bearer", "expires_in": 60}).to_string();
    let grant = read_answer(200, &HeaderMap::new(), body.as_bytes(), life.issued_at).unwrap();
    let shown = [
        format!("{token:?}"),
        format!("{client:?}"),
        format!("{key:?} {:?}", key.of_token(TOKEN, life)),
        format!("{held:?} {held:#?}"),
        format!("{memory:?}"),
        format!("{grant:?}"),
    ];
    let key_text = String::from_utf8(key_bytes.to_vec()).unwrap();
    let needles = Needles::of(&[TOKEN.to_owned(), CLIENT_SECRET.to_owned(), key_text]);
    needles.are_not_in("a Debug", &shown.join("\n"));
}

#[test]
fn no_error_quotes_what_it_is_about() {
    let both = format!("{CLIENT_SECRET} {TOKEN}");
    let needles = Needles::of(&[TOKEN.to_owned(), CLIENT_SECRET.to_owned()]);
    let now = "2026-01-01T00:00:00Z".parse().unwrap();
    let mut headers = HeaderMap::new();
    for name in ["retry-after", "location", "content-type", "content-encoding", "www-authenticate"] {
        headers.insert(name, both.parse().unwrap());
    }
    let bodies = [
        both.clone(),
        json!({"error": both, "error_description": both}).to_string(),
        json!({"access_token": [both], "expires_in": both}).to_string(),
        json!({"access_token": TOKEN, "token_type": both}).to_string(),
        format!("{{\"access_token\": \"{both}"),
    ];
    for status in (200..600).chain([999]) {
        for body in &bodies {
            if let Err(error) = read_answer(status, &headers, body.as_bytes(), now) {
                needles.are_not_in("an error", &format!("{error}\n{error:?}\n{error:#?}"));
            }
        }
    }
    let refused = |reason: &str| {
        let status =
            json!({"status": "Failure", "message": both, "reason": reason, "code": 403, "details": {"name": both}});
        kube::Error::Api(Box::new(serde_json::from_value(status).unwrap()))
    };
    let unreadable = kube::Error::SerdeError(serde_json::from_str::<u8>(&format!("\"{both}\"")).unwrap_err());
    for cause in [refused("Forbidden"), refused(&both), unreadable] {
        let error = Error::of("write a Secret", &cause);
        needles.are_not_in("an error", &format!("{error}\n{error:?}"));
    }
}
