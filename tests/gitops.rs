//! What Argo CD and Flux are told about the health of an object: the texts of docs/gitops, evaluated. Argo CD's is Lua 5.1; Flux's
//! are CEL, which the API server evaluates as Flux does, by cel-go.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

use kube::Api;
use kube::api::{DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use mlua::Lua;
use moneygo_controlplane::ControlPlane;
use serde_json::{Value, json};

const ARGO_CD: &str = include_str!("../docs/gitops/argocd-cm.yaml");
const FLUX: &str = include_str!("../docs/gitops/flux-kustomization.yaml");

struct Case {
    name: &'static str,
    object: Value,
    argo_cd: &'static str,
    flux: &'static str,
}

fn cases() -> Vec<Case> {
    let case = |name, object, argo_cd, flux| Case { name, object, argo_cd, flux };
    vec![
        case("no condition yet", object(2, &json!({})), "Progressing", "inProgress"),
        case("ready", seen(2, "True", "TokenValid", "False"), "Healthy", "current"),
        case("ready for an older spec", seen(1, "True", "TokenValid", "False"), "Progressing", "inProgress"),
        case("the first token", seen(2, "False", "Pending", "False"), "Progressing", ""),
        case("credentials come later", seen(2, "False", "CredentialsNotFound", "False"), "Progressing", ""),
        case("the wrong client", seen(2, "False", "InvalidClient", "True"), "Degraded", "failed"),
        case("somebody else's Secret", seen(2, "False", "TargetConflict", "True"), "Degraded", "failed"),
        case("expired", seen(2, "False", "TokenExpired", "False"), "Degraded", "failed"),
        case("suspended", suspended(seen(2, "True", "TokenValid", "False")), "Suspended", "current"),
        case("suspended without a token", suspended(seen(2, "False", "Suspended", "False")), "Suspended", "current"),
        case(
            "suspended until it expired",
            suspended(seen(2, "False", "TokenExpired", "False")),
            "Suspended",
            "current",
        ),
        case("suspended a moment ago", suspended(seen(1, "False", "Pending", "False")), "Suspended", "inProgress"),
        case("stalled with an older spec", seen(1, "False", "InvalidClient", "True"), "Progressing", "inProgress"),
    ]
}

fn object(generation: i64, status: &Value) -> Value {
    json!({"metadata": {"generation": generation}, "spec": {}, "status": status})
}

fn suspended(mut object: Value) -> Value {
    object["spec"]["suspend"] = true.into();
    object
}

/// An object of generation 2, with conditions about another or the same.
fn seen(observed: i64, ready: &str, reason: &str, stalled: &str) -> Value {
    let condition = |kind, status, reason| json!({"type": kind, "status": status, "reason": reason, "message": "m", "observedGeneration": observed});
    object(2, &json!({"conditions": [condition("Ready", ready, reason), condition("Stalled", stalled, reason)]}))
}

/// The status that Argo CD would show.
fn in_argo_cd(object: &Value) -> String {
    let document: Value = serde_yaml::from_str(ARGO_CD).unwrap();
    let check = document["data"]["resource.customizations.health.money-go.com_MoneyGoCredential"].as_str().unwrap();
    let lua = Lua::new();
    lua.globals().set("obj", to_lua(&lua, object)).unwrap();
    let health: mlua::Table = lua.load(check).eval().unwrap();
    assert!(health.get::<Option<String>>("message").unwrap().is_some());
    health.get("status").unwrap()
}

fn to_lua(lua: &Lua, value: &Value) -> mlua::Value {
    match value {
        Value::Null => mlua::Value::Nil,
        Value::Bool(value) => mlua::Value::Boolean(*value),
        Value::Number(value) => mlua::Value::Number(value.as_f64().unwrap()),
        Value::String(value) => mlua::Value::String(lua.create_string(value).unwrap()),
        Value::Array(values) => {
            mlua::Value::Table(lua.create_sequence_from(values.iter().map(|value| to_lua(lua, value))).unwrap())
        }
        Value::Object(fields) => {
            let fields = fields.iter().map(|(key, value)| (key.as_str(), to_lua(lua, value)));
            mlua::Value::Table(lua.create_table_from(fields).unwrap())
        }
    }
}

#[test]
fn argo_cd_shows_the_health() {
    for Case { name, object, argo_cd, .. } in cases() {
        assert_eq!(in_argo_cd(&object), argo_cd, "{name}");
    }
    assert_eq!(in_argo_cd(&json!({"metadata": {"generation": 1}, "spec": {}})), "Progressing", "no status yet");
}

#[tokio::test(flavor = "multi_thread")]
async fn flux_sees_the_health() {
    let plane = ControlPlane::shared().await.unwrap();
    let namespace = plane.namespace("flux").await.unwrap();
    let expressions = flux_expressions();
    plane.install_crd(&probe(&expressions).to_string()).await.unwrap();
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("test.money-go.com", "v1", "Probe"));
    let probes: Api<DynamicObject> = Api::namespaced_with(plane.admin().await.unwrap(), &namespace, &kind);
    for Case { name, object, flux, .. } in cases() {
        let probe = DynamicObject::new("probe", &kind).data(json!({"spec": object}));
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        let answer = probes.create(&dry_run, &probe).await;
        let refusal = answer.map_or_else(|error| error.to_string(), |_| String::new());
        // Every expression that is false refuses. In Flux the first that is true counts.
        let first = expressions.iter().find(|(state, _)| !refusal.contains(&format!("not {state}")));
        assert_eq!(first.map_or("", |(state, _)| state), flux, "{name}: {refusal}");
    }
}

/// In the order in which Flux evaluates them (its RFC 0009).
fn flux_expressions() -> Vec<(&'static str, String)> {
    let document: Value = serde_yaml::from_str(FLUX).unwrap();
    let check = &document["spec"]["healthCheckExprs"][0];
    ["inProgress", "failed", "current"].map(|state| (state, check[state].as_str().unwrap().to_owned())).into()
}

/// A kind of object whose spec is an object to judge, and which is refused for every expression that is false.
fn probe(expressions: &[(&str, String)]) -> Value {
    let rule = |(state, expression): &(&str, String)| {
        let fields = ["status.conditions", "metadata.generation", "spec.suspend"];
        let of_self =
            fields.iter().fold(expression.clone(), |text, field| text.replace(field, &format!("self.{field}")));
        json!({"rule": of_self, "message": format!("not {state}")})
    };
    let rules: Vec<_> = expressions.iter().map(rule).collect();
    let text = json!({"type": "string", "maxLength": 64});
    let number = json!({"type": "integer"});
    let condition = json!({"type": "object", "properties": {"type": text, "status": text, "reason": text, "message": text, "observedGeneration": number}});
    let spec = json!({
        "type": "object",
        "x-kubernetes-validations": rules,
        "properties": {
            "metadata": {"type": "object", "properties": {"generation": number}},
            "spec": {"type": "object", "properties": {"suspend": {"type": "boolean"}}},
            "status": {"type": "object", "properties": {"conditions": {"type": "array", "maxItems": 8, "items": condition}}},
        },
    });
    let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "probes.test.money-go.com"},
        "spec": {
            "group": "test.money-go.com",
            "scope": "Namespaced",
            "names": {"kind": "Probe", "plural": "probes"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": schema}],
        },
    })
}
