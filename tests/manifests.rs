//! Good and bad manifests: what the API server says to each, and that the code, which repeats the checks, agrees.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod stage;

use std::time::{Duration, Instant};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
    runtime::{conditions::is_crd_established, wait::await_condition},
};
use moneygo_controlplane::ControlPlane;
use moneygo_operator::crd::{self, MoneyGoCredential, MoneyGoCredentialStatus};
use moneygo_operator::secret::Version;
use moneygo_operator::status::with_status;
use serde::Deserialize as _;
use serde_json::{Value, json};
use stage::{SOON, Scene, Stage};

/// A spec for an object named `object`, and a part of the API server's refusal (`None` for a good one).
struct Case {
    name: &'static str,
    spec: Value,
    refusal: Option<&'static str>,
    /// The code sees what is left after serde, which takes some of what the server refuses.
    code_refuses: bool,
}

fn good(name: &'static str, spec: Value) -> Case {
    Case { name, spec, refusal: None, code_refuses: false }
}

fn bad(name: &'static str, spec: Value, refusal: &'static str) -> Case {
    Case { name, spec, refusal: Some(refusal), code_refuses: true }
}

fn bad_for_the_server(name: &'static str, spec: Value, refusal: &'static str) -> Case {
    Case { name, spec, refusal: Some(refusal), code_refuses: false }
}

fn with(field: &str, value: Value) -> Value {
    let mut spec = json!({"credentialsRef": {"name": "client"}});
    spec[field] = value;
    spec
}

fn labels(key: &str, value: &str) -> Value {
    with("target", json!({"labels": {key: value}}))
}

fn annotations(key: &str, value: &str) -> Value {
    with("target", json!({"annotations": {key: value}}))
}

fn renew_before(text: &str) -> Value {
    with("refresh", json!({"renewBefore": text}))
}

fn many(count: usize) -> Value {
    (0..count).map(|n| (format!("k{n}"), Value::from("v"))).collect::<serde_json::Map<_, _>>().into()
}

fn cases() -> Vec<Case> {
    let mut cases = reference_cases();
    cases.extend(scope_and_suspend_cases());
    cases.extend(target_cases());
    cases.extend(metadata_cases());
    cases.extend(refresh_cases());
    cases
}

#[rustfmt::skip]
fn reference_cases() -> Vec<Case> {
    let reference = |value: Value| json!({"credentialsRef": value});
    vec![
        good("minimal", reference(json!({"name": "client"}))),
        good("longest name", reference(json!({"name": "c".repeat(253)}))),
        good("name with dots", reference(json!({"name": "a.b-c.1"}))),
        good("hidden key", reference(json!({"name": "c", "clientIdKey": ".id"}))),
        good("keys swapped", reference(json!({"name": "c", "clientIdKey": "client_secret", "clientSecretKey": "client_id"}))),
        bad("no credentialsRef", json!({}), "spec.credentialsRef: Required"),
        bad("no name", reference(json!({})), "spec.credentialsRef.name: Required"),
        bad("empty name", reference(json!({"name": ""})), "spec.credentialsRef.name"),
        bad("long name", reference(json!({"name": "c".repeat(254)})), "Too long"),
        bad("upper-case name", reference(json!({"name": "Client"})), "should match"),
        bad("name with a slash", reference(json!({"name": "ns/client"})), "should match"),
        bad("name ends with a dot", reference(json!({"name": "client."})), "should match"),
        bad("name with a line end", reference(json!({"name": "client\n"})), "should match"),
        bad("name is a number", reference(json!({"name": 1})), "must be of type string"),
        bad("key is one dot", reference(json!({"name": "c", "clientIdKey": "."})), "should match"),
        bad("key begins with two dots", reference(json!({"name": "c", "clientIdKey": "..x"})), "should match"),
        bad("key with a slash", reference(json!({"name": "c", "clientSecretKey": "a/b"})), "should match"),
        bad("empty key", reference(json!({"name": "c", "clientSecretKey": ""})), "clientSecretKey"),
        bad("long key", reference(json!({"name": "c", "clientSecretKey": "k".repeat(254)})), "Too long"),
        bad("same keys", reference(json!({"name": "c", "clientIdKey": "k", "clientSecretKey": "k"})), "must differ"),
        bad("same as the default", reference(json!({"name": "c", "clientIdKey": "client_secret"})), "must differ"),
        bad("credentials in the default target", reference(json!({"name": "object"})), "set target.name"),
    ]
}

#[rustfmt::skip]
fn scope_and_suspend_cases() -> Vec<Case> {
    vec![
        good("two scopes", with("scope", json!("read write"))),
        good("scope of symbols", with("scope", json!("https://money-go.com/api!#[]~"))),
        good("longest scope", with("scope", json!("s".repeat(1024)))),
        good("suspended", with("suspend", json!(true))),
        bad("empty scope", with("scope", json!("")), "spec.scope"),
        bad("long scope", with("scope", json!("s".repeat(1025))), "Too long"),
        bad("scope with two spaces", with("scope", json!("a  b")), "should match"),
        bad("scope ends with a space", with("scope", json!("a ")), "should match"),
        bad("scope with a quote", with("scope", json!("a\"b")), "should match"),
        bad("scope with a backslash", with("scope", json!("a\\b")), "should match"),
        bad("scope with a control character", with("scope", json!("a\tb")), "should match"),
        bad("scope not ASCII", with("scope", json!("é")), "should match"),
        bad("suspend is text", with("suspend", json!("yes")), "must be of type boolean"),
        good("null is unset", with("scope", Value::Null)),
        bad("null where required", json!({"credentialsRef": null}), "spec.credentialsRef: Required"),
        bad_for_the_server("unknown field", with("namespace", json!("other")), "unknown field"),
    ]
}

#[rustfmt::skip]
fn target_cases() -> Vec<Case> {
    let target = |value: Value| with("target", value);
    vec![
        good("empty target", target(json!({}))),
        good("named target", target(json!({"name": "token"}))),
        good("target named as the object", target(json!({"name": "object"}))),
        good("named target, credentials named as the object", json!({"credentialsRef": {"name": "object"}, "target": {"name": "token"}})),
        good("all keys", target(json!({"accessTokenKey": "t", "authorizationKey": "a", "expiresAtKey": "e"}))),
        good("authorization takes the default's name", target(json!({"accessTokenKey": "t", "authorizationKey": "access_token"}))),
        good("retained", target(json!({"deletionPolicy": "Retain"}))),
        bad("target is the credentials", target(json!({"name": "client"})), "must not be the Secret that holds the credentials"),
        bad("bad target name", target(json!({"name": "_"})), "should match"),
        bad("authorization over the token", target(json!({"authorizationKey": "access_token"})), "must differ from accessTokenKey"),
        bad("expiry over the token", target(json!({"accessTokenKey": "t", "expiresAtKey": "t"})), "must differ from accessTokenKey"),
        bad("expiry over authorization", target(json!({"authorizationKey": "a", "expiresAtKey": "a"})), "and authorizationKey"),
        bad("key with a space", target(json!({"accessTokenKey": "a b"})), "should match"),
        bad("unknown policy", target(json!({"deletionPolicy": "Orphan"})), "Unsupported value"),
        bad("policy in lower case", target(json!({"deletionPolicy": "retain"})), "Unsupported value"),
        bad("target is text", target(json!("token")), "must be of type object"),
    ]
}

#[rustfmt::skip]
fn metadata_cases() -> Vec<Case> {
    vec![
        good("label", labels("team", "payments")),
        good("empty label", labels("example.com/team", "")),
        good("open label", labels("app.kubernetes.io/instance", "x")),
        good("label of a similar domain", labels("notmoney-go.com/x", "y")),
        good("64 labels", with("target", json!({"labels": many(64)}))),
        good("longest label key", labels(&format!("{}/{}", "p".repeat(253), "k".repeat(63)), "v")),
        good("annotation", annotations("reloader.stakater.com/match", "true")),
        good("long annotation", annotations("a", &"é".repeat(2048))),
        bad("65 labels", with("target", json!({"labels": many(65)})), "Too many"),
        bad("our label", labels("money-go.com/x", "y"), "are reserved"),
        bad("our subdomain's label", labels("a.money-go.com/x", "y"), "are reserved"),
        bad("Kubernetes' label", labels("kubernetes.io/x", "y"), "are reserved"),
        bad("managed-by", labels("app.kubernetes.io/managed-by", "me"), "are reserved"),
        bad("name label", labels("app.kubernetes.io/name", "me"), "are reserved"),
        bad("long label", labels("a", &"v".repeat(64)), "Too long"),
        bad("label value with a space", labels("a", "b c"), "should match"),
        bad("label value ends with a dash", labels("a", "b-"), "should match"),
        bad("label key with two slashes", labels("a/b/c", "d"), "a key is [prefix/]name"),
        bad("empty label key", labels("", "d"), "a key is [prefix/]name"),
        bad("long label key", labels(&"k".repeat(64), "d"), "a key is [prefix/]name"),
        bad("label prefix in upper case", labels("Example.com/a", "d"), "a key is [prefix/]name"),
        bad("long label prefix", labels(&format!("{}/a", "p".repeat(254)), "d"), "a key is [prefix/]name"),
        bad("label is a number", with("target", json!({"labels": {"a": 1}})), "must be of type string"),
        bad("our annotation", annotations("money-go.com/adopt", "x"), "are reserved"),
        bad("kubectl's annotation", annotations("kubectl.kubernetes.io/x", "y"), "are reserved"),
        bad("k8s.io annotation", annotations("k8s.io/x", "y"), "are reserved"),
        bad("too long annotation", annotations("a", &"v".repeat(2049)), "Too long"),
        bad("annotation key with a space", annotations("a b", "c"), "a key is [prefix/]name"),
        bad("65 annotations", with("target", json!({"annotations": many(65)})), "Too many"),
    ]
}

#[rustfmt::skip]
fn refresh_cases() -> Vec<Case> {
    let percentage = |value: Value| with("refresh", json!({"renewBeforePercentage": value}));
    let duration = "must be a duration of at least 5s";
    vec![
        good("empty refresh", with("refresh", json!({}))),
        good("hours", renew_before("240h")),
        good("hours and minutes", renew_before("1h30m")),
        good("least", renew_before("5000ms")),
        good("longest", renew_before("99999h99999h99999h99999h")),
        good("least percentage", percentage(json!(5))),
        good("most percentage", percentage(json!(90))),
        bad("both", with("refresh", json!({"renewBefore": "1h", "renewBeforePercentage": 50})), "not both"),
        bad("days", renew_before("10d"), duration),
        bad("empty duration", renew_before(""), duration),
        bad("no unit", renew_before("300"), duration),
        bad("negative", renew_before("-1h"), duration),
        bad("a minus within", renew_before("1h-5m"), duration),
        bad("a fraction", renew_before("1.5h"), duration),
        bad("too short", renew_before("4999ms"), duration),
        bad("zero", renew_before("0s"), duration),
        bad("five parts", renew_before("1h1m1s1s1s"), duration),
        bad("six digits", renew_before("100000s"), duration),
        bad("microseconds", renew_before("5000000us"), duration),
        bad("upper-case unit", renew_before("5H"), duration),
        bad("duration with a space", renew_before("1h 5m"), duration),
        bad("long duration", renew_before(&"1".repeat(25)), "Too long"),
        bad("duration is a number", with("refresh", json!({"renewBefore": 300})), "must be of type string"),
        bad("percentage too small", percentage(json!(4)), "should be greater than or equal to 5"),
        bad("percentage too large", percentage(json!(91)), "should be less than or equal to 90"),
        bad("percentage is a fraction", percentage(json!(33.3)), "must be of type integer"),
        bad("percentage is text", percentage(json!("33%")), "must be of type integer"),
        bad("percentage is huge", percentage(json!(5_000_000_000_i64)), "renewBeforePercentage"),
    ]
}

/// Every object in docs/samples.
fn samples() -> Vec<Value> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/samples");
    let files = std::fs::read_dir(folder).unwrap();
    let texts = files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap());
    texts.flat_map(|text| documents(&text)).collect()
}

fn documents(text: &str) -> Vec<Value> {
    serde_yaml::Deserializer::from_str(text).map(|document| Value::deserialize(document).unwrap()).collect()
}

fn object(spec: &Value) -> Value {
    json!({"apiVersion": "money-go.com/v1alpha1", "kind": "MoneyGoCredential", "metadata": {"name": "object"}, "spec": spec})
}

fn code_accepts(spec: &Value) -> bool {
    serde_json::from_value::<MoneyGoCredential>(object(spec)).is_ok_and(|credential| credential.resolve().is_ok())
}

#[test]
fn the_code_agrees() {
    for case in cases() {
        assert_eq!(code_accepts(&case.spec), !case.code_refuses, "{}", case.name);
    }
}

#[test]
fn the_samples_are_good() {
    let is_credential = |sample: &Value| sample["kind"] == "MoneyGoCredential";
    let credentials: Vec<_> = samples().into_iter().filter(is_credential).collect();
    assert!(credentials.len() >= 3);
    for credential in credentials {
        let credential: MoneyGoCredential = serde_json::from_value(credential).unwrap();
        assert!(credential.resolve().is_ok(), "{}", credential.name_any());
    }
}

// One test, because its first part needs a cluster whose CRD is an older one.
#[tokio::test]
async fn the_api_server_agrees() {
    // Of its own: other tests rely on the CRD as it is.
    let plane = ControlPlane::start().await.expect("a control plane");
    let client = plane.admin().await.expect("a client");
    let credentials = Api::<MoneyGoCredential>::namespaced(client.clone(), "default");

    install(&client, &without_rules(crd::crd())).await;
    let old = store_what_the_rules_refuse(&credentials).await;
    install(&client, &crd::crd()).await;
    until_refused(&client, &json!({"credentialsRef": {"name": "object"}})).await;

    an_old_object_is_not_stuck(&credentials, &old).await;
    let cases = cases();
    for case in &cases {
        let answer = post(&client, &case.spec).await;
        match (answer, case.refusal) {
            (Ok(()), None) => {}
            (Err(text), Some(part)) => assert!(text.contains(part), "{}: {text}", case.name),
            (answer, _) => panic!("{}: {answer:?}", case.name),
        }
    }
    the_target_name_is_immutable(&credentials).await;
    for sample in samples() {
        create_dry(&client, &sample).await.unwrap();
    }
    plane.shutdown().await.expect("an end");
    let refused = cases.iter().filter(|case| case.refusal.is_some()).count();
    println!("manifests: {} in all, {refused} of them bad, all passed", cases.len());
}

/// Under a rule of the CRD the API server wants a value of the right type, or it refuses every write of the object, that of its status
/// among them: of these nothing can be told but in the log and in an event.
const TOO_BROKEN_TO_BE_TOLD: [&str; 3] = ["name is a number", "target is text", "duration is a number"];

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_object_stops_itself_and_no_other() {
    let stage = Stage::setup("manifests").own_plane().await.open().await;
    install(&stage.admin, &without_schema(crd::crd())).await;
    let bad: Vec<_> = cases().into_iter().filter(|case| case.code_refuses).collect();
    let names: Vec<_> = (0..bad.len()).map(|index| format!("bad-{index}")).collect();
    for (name, case) in names.iter().zip(&bad) {
        store(&stage, name, &case.spec).await;
    }
    install(&stage.admin, &crd::crd()).await;
    until_refused(&stage.admin, &bad[0].spec).await;

    let operator = stage.operator().start().await;
    let mark = stage.mark();
    let began = Instant::now();
    stage.moneygo.set_expires_in_of("good", Some(Duration::from_secs(4)));
    stage.subscribe("good", json!({})).await;
    stage.ready("good").await;
    println!("manifests: beside {} bad objects a good one is ready in {:?}", bad.len(), began.elapsed());
    let is_silent = |scene: &Scene, name: &str| !says_invalid(scene, name);
    let expected: Vec<_> = bad.iter().map(|case| !TOO_BROKEN_TO_BE_TOLD.contains(&case.name)).collect();
    let all_told = |scene: &Scene| {
        let mut told = names.iter().zip(&expected).filter(|(_, expected)| **expected);
        told.all(|(name, _)| !is_silent(scene, name)).then_some(())
    };
    let waited = tokio::time::timeout(SOON, stage.until("every bad object is told", SOON * 2, all_told)).await;
    let silent: Vec<_> = names.iter().zip(&bad).filter(|(name, _)| is_silent(&stage.scene(), name)).collect();
    let silent: Vec<_> = silent.into_iter().map(|(_, case)| case.name).collect();
    assert!(waited.is_ok(), "nothing is said of {silent:?}");
    assert_eq!(silent, TOO_BROKEN_TO_BE_TOLD);
    let log = operator.log();
    for name in &names {
        let is_logged = log.lines().any(|line| line.contains("InvalidSpec") && line.contains(&format!("name={name} ")));
        assert!(is_logged, "{name} is not in the log");
    }

    // Events are written after the statuses, one by one.
    for name in &names {
        stage.told(name, "InvalidSpec").await;
    }

    // Two refreshes of the good one, and nothing about the others meanwhile.
    let at_rest = stage.mark();
    let already = stage.grants_of("good");
    stage.moneygo.wait_for_grants("good", already + 2, SOON).await.expect("the good one goes on");
    let about_bad = |since| {
        let mut requests = stage.requests_beside_watches(since);
        requests.retain(|request| request.name.starts_with("bad-"));
        requests
    };
    let idle = about_bad(at_rest);
    assert!(idle.is_empty(), "{idle:#?}");
    let in_all = about_bad(mark).len();
    assert!(in_all <= 3 * bad.len(), "{in_all} requests for {} bad objects", bad.len());
    assert!(stage.moneygo.requests().iter().all(|request| request.client.as_deref() == Some("good")));
    operator.stop().await;
    println!("manifests: {} bad objects were stored, {} passed", bad.len(), bad.len());
}

fn says_invalid(scene: &Scene, name: &str) -> bool {
    let Some(object) = scene.any_credential(name) else { return false };
    let conditions = object.data.pointer("/status/conditions").and_then(Value::as_array);
    ["Ready", "Refreshed", "Stalled"].iter().all(|kind| {
        conditions.into_iter().flatten().any(|condition| {
            let is_current = condition["observedGeneration"].as_i64() == object.metadata.generation;
            let status = if *kind == "Stalled" { "True" } else { "False" };
            condition["type"] == *kind
                && condition["status"] == status
                && condition["reason"] == "InvalidSpec"
                && is_current
        })
    })
}

/// Stores what the schema would refuse.
async fn store(stage: &Stage, name: &str, spec: &Value) {
    let mut spec = spec.clone();
    // The case that is about the object's own name.
    if spec["credentialsRef"]["name"] == "object" && spec.get("target").is_none() {
        spec["credentialsRef"]["name"] = name.into();
    }
    let mut object = object(&spec);
    object["metadata"]["name"] = name.into();
    let object: DynamicObject = serde_json::from_value(object).unwrap();
    for _ in 0..100 {
        match stage.any_credentials().create(&PostParams::default(), &object).await {
            Ok(_) => return,
            Err(kube::Error::Api(status)) if status.code == 422 || status.code == 404 => {
                // The server takes a changed CRD up a moment after it says so.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => panic!("{name}: {error}"),
        }
    }
    panic!("{name} is not stored");
}

/// The CRD with a spec that may be anything.
fn without_schema(definition: CustomResourceDefinition) -> CustomResourceDefinition {
    let mut definition = without_rules(definition);
    let root = definition.spec.versions[0].schema.as_mut().unwrap().open_api_v3_schema.as_mut().unwrap();
    let anything = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    root.properties.as_mut().unwrap().insert("spec".to_owned(), serde_json::from_value(anything).unwrap());
    definition
}

async fn install(client: &Client, definition: &CustomResourceDefinition) {
    let definitions = Api::<CustomResourceDefinition>::all(client.clone());
    let name = definition.name_any();
    definitions.patch(&name, &PatchParams::apply("test").force(), &Patch::Apply(definition)).await.unwrap();
    let established = await_condition(definitions, &name, is_crd_established());
    tokio::time::timeout(Duration::from_secs(30), established).await.expect("the CRD is taken up").unwrap();
}

/// The CRD as it was before it had rules on the object and on the spec.
fn without_rules(mut definition: CustomResourceDefinition) -> CustomResourceDefinition {
    let root = definition.spec.versions[0].schema.as_mut().unwrap().open_api_v3_schema.as_mut().unwrap();
    root.x_kubernetes_validations = None;
    root.properties.as_mut().unwrap().get_mut("spec").unwrap().x_kubernetes_validations = None;
    definition
}

async fn store_what_the_rules_refuse(credentials: &Api<MoneyGoCredential>) -> MoneyGoCredential {
    let old = json!({
        "apiVersion": "money-go.com/v1alpha1",
        "kind": "MoneyGoCredential",
        "metadata": {"name": "old", "finalizers": ["example.com/test"]},
        "spec": {"credentialsRef": {"name": "old"}},
    });
    let old: MoneyGoCredential = serde_json::from_value(old).unwrap();
    // The first request may come before the server serves the kind.
    for _ in 0..100 {
        if let Ok(stored) = credentials.create(&PostParams::default(), &old).await {
            return stored;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the old object is not stored");
}

/// The server takes a changed CRD up a moment after it says so.
async fn until_refused(client: &Client, spec: &Value) {
    for _ in 0..100 {
        if post(client, spec).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the rules are not taken up");
}

async fn an_old_object_is_not_stuck(credentials: &Api<MoneyGoCredential>, old: &MoneyGoCredential) {
    assert!(old.resolve().is_err(), "the code refuses it, too");
    let params = PatchParams::default();
    let status = MoneyGoCredentialStatus {
        observed_generation: Some(1),
        target_name: Some("old".to_owned()),
        ..Default::default()
    };
    let object = with_status(old.clone(), &Version::of(&old.metadata), status);
    credentials.replace_status("old", &PostParams::default(), &object).await.expect("its status can be written");
    let other_change = json!({"spec": {"scope": "other"}});
    let refused = credentials.patch("old", &params, &Patch::Merge(other_change)).await;
    assert!(refused.unwrap_err().to_string().contains("set target.name"));
    let release = json!({"metadata": {"finalizers": null}});
    credentials.patch("old", &params, &Patch::Merge(release)).await.expect("a finalizer can be removed");
    credentials.delete("old", &DeleteParams::default()).await.unwrap();
}

async fn the_target_name_is_immutable(credentials: &Api<MoneyGoCredential>) {
    let created = object(&json!({"credentialsRef": {"name": "client"}}));
    credentials.create(&PostParams::default(), &serde_json::from_value(created).unwrap()).await.unwrap();
    for (spec, refused) in [
        (json!({"target": {"name": "object"}}), false),
        (json!({"target": {"accessTokenKey": "token"}, "scope": "other"}), false),
        (json!({"target": {"name": "other"}}), true),
        (json!({"target": {"name": null}, "credentialsRef": {"name": "object"}}), true),
    ] {
        let patch = Patch::Merge(json!({"spec": spec}));
        let answer = credentials.patch("object", &PatchParams::default().dry_run(), &patch).await;
        assert_eq!(answer.is_err(), refused, "{spec}");
    }
    credentials.delete("object", &DeleteParams::default()).await.unwrap();
}

async fn post(client: &Client, spec: &Value) -> Result<(), String> {
    create_dry(client, &object(spec)).await
}

/// Creates an object as `kubectl create --dry-run=server` does, refusing unknown fields.
async fn create_dry(client: &Client, object: &Value) -> Result<(), String> {
    let folder = match object["kind"].as_str() {
        Some("MoneyGoCredential") => "/apis/money-go.com/v1alpha1/namespaces/default/moneygocredentials",
        Some("Secret") => "/api/v1/namespaces/default/secrets",
        Some("Pod") => "/api/v1/namespaces/default/pods",
        kind => panic!("no path for {kind:?}"),
    };
    let request = http::Request::post(format!("{folder}?dryRun=All&fieldValidation=Strict"))
        .header("content-type", "application/json")
        .body(serde_json::to_vec(object).unwrap())
        .unwrap();
    let answer = client.request::<Value>(request).await;
    answer.map(drop).map_err(|error| error.to_string())
}
