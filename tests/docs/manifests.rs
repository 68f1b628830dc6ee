//! What a block of YAML is, and how a cluster or the chart is asked whether it takes it.

use serde::Deserialize as _;
use serde_yaml::{Deserializer, Value};

const VALUES: &str = include_str!("../../charts/moneygo-operator/values.yaml");

/// The command that is given the block, or what is made of it, on its standard input.
pub struct Trial {
    /// The command.
    pub command: &'static str,
    /// Its input.
    pub input: String,
}

/// How to try a block of YAML: whole manifests are applied; of a Pod or a `MoneyGoCredential` without its head the rest is made up, and it is proposed;
/// values render the chart.
///
/// # Errors
/// If it is none of these.
pub fn trial(text: &str) -> Result<Trial, String> {
    let documents: Result<Vec<Value>, _> = Deserializer::from_str(text).map(Value::deserialize).collect();
    let documents = documents.map_err(|error| error.to_string())?;
    let first = documents.first().ok_or("it is empty")?;
    if documents.iter().all(|document| document.get("apiVersion").is_some()) {
        return Ok(Trial { command: "kubectl apply --validate=strict --filename -", input: text.to_owned() });
    }
    let propose = |input| Trial { command: "kubectl create --validate=strict --dry-run=server --filename -", input };
    if first.get("spec").is_some_and(|spec| spec.get("containers").is_some()) {
        return Ok(propose(format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: part}}\n{text}")));
    }
    if first.get("spec").is_some() {
        let whole = text.replacen("spec:\n", "spec:\n  credentialsRef: {name: part-client}\n", 1);
        return Ok(propose(format!(
            "apiVersion: money-go.com/v1alpha1\nkind: MoneyGoCredential\nmetadata: {{name: part}}\n{whole}"
        )));
    }
    let known: Value = serde_yaml::from_str(VALUES).map_err(|error| error.to_string())?;
    if first.as_mapping().is_some_and(|values| values.keys().all(|key| known.get(key).is_some())) {
        let command = "helm template moneygo-operator charts/moneygo-operator --values -";
        return Ok(Trial { command, input: text.to_owned() });
    }
    Err("it is no manifest, no part of a Pod or a MoneyGoCredential, and no value of the chart".to_owned())
}

/// The name of the file that a block is meant to be in: `values.yaml` in a first line `# values.yaml`.
pub fn file_name(text: &str) -> Option<&str> {
    let name = text.lines().next()?.strip_prefix("# ")?;
    name.strip_suffix(".yaml").filter(|stem| !stem.contains([' ', '/'])).map(|_| name)
}
