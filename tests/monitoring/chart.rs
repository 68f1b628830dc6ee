//! The chart's alerts and dashboard, as Helm renders them: what is tested is what ships.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde::Deserialize as _;
use serde_json::{Value, json};

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/moneygo-operator");

/// The groups of the `PrometheusRule` with these values of `metrics.prometheusRule`, as Prometheus reads them from a file.
pub fn rules(values: &Value) -> Value {
    let mut rule = json!({"enabled": true});
    rule.as_object_mut().unwrap().extend(values.as_object().unwrap().clone());
    render("prometheusrule", &json!({"metrics": {"prometheusRule": rule}}))["spec"].take()
}

/// The same of an installation with the shards a and b.
pub fn rules_of_shards() -> Value {
    let shards = ["a", "b"].map(|name| json!({"name": name, "watchNamespaces": [format!("of-{name}")]}));
    let values = json!({"shards": shards, "metrics": {"prometheusRule": {"enabled": true}}});
    render("prometheusrule", &values)["spec"].take()
}

/// The dashboard that Grafana's sidecar finds.
pub fn dashboard() -> Value {
    let rendered = render("dashboard", &json!({"metrics": {"dashboard": {"enabled": true}}}));
    assert_eq!(rendered["metadata"]["labels"]["grafana_dashboard"], "1");
    serde_json::from_str(rendered["data"]["moneygo-operator.json"].as_str().unwrap()).unwrap()
}

fn render(template: &str, values: &Value) -> Value {
    let mut helm = Command::new(moneygo_controlplane::helm().expect("a Helm"));
    helm.args(["template", "moneygo-operator", CHART, "--namespace=moneygo-system", "--values=-"]);
    helm.arg(format!("--show-only=templates/{template}.yaml")).env_clear().env("HOME", "/nonexistent");
    let mut child = helm.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(values.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let documents = serde_yaml::Deserializer::from_str(&text).map(|document| Value::deserialize(document).unwrap());
    documents.into_iter().find(|document| !document.is_null()).expect("a document")
}
