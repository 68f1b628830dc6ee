//! The operators of a cluster: their Deployments as the chart makes them, and their Leases.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Container;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};
use moneygo_operator::crd::MoneyGoCredential;

use super::facts::Lookup;
use crate::cluster::Time;
use crate::words::length;

/// By which the chart's Deployments are found: one of them is enough. A `nameOverride` changes the second, `commonLabels` may the first.
pub const LABELS: [&str; 2] = ["app.kubernetes.io/part-of=moneygo-operator", "app.kubernetes.io/name=moneygo-operator"];
/// The label that the chart gives each of a release's `shards`.
const SHARD: &str = "money-go.com/shard";
/// Where no flag says otherwise.
pub const DEFAULT_TOKEN_URL: &str = "https://api.money-go.com/token";
/// Where the flag is not given.
const DEFAULT_LEASE: &str = "moneygo-operator";
/// Where a Lease states none.
const DEFAULT_LEASE_DURATION: SignedDuration = SignedDuration::from_secs(15);

/// One operator, as its Deployment tells.
#[derive(Debug, Clone, Default)]
pub struct Operator {
    pub namespace: String,
    pub name: String,
    pub wanted_replicas: i32,
    pub ready_replicas: i32,
    pub service_account: String,
    /// None: all.
    pub watched: Vec<String>,
    /// It is one of several of a release, each with namespaces of its own.
    pub is_shard: bool,
    pub label_selector: Option<String>,
    /// Where it asks for tokens. Never `Missing`.
    pub token_url: Lookup<String>,
    /// Whether the object carries the labels; asked of the API server, for the object that is looked at.
    pub selects: Option<bool>,
    /// Where it elects a leader.
    pub lease: Option<LeaseFacts>,
}

/// A Lease, and what is known of it.
#[derive(Debug, Clone)]
pub struct LeaseFacts {
    /// The operator's own, where no flag says otherwise.
    pub namespace: String,
    pub name: String,
    pub held: Lookup<Held>,
}

/// Who holds a Lease.
#[derive(Debug, Clone, Default)]
pub struct Held {
    pub holder: Option<String>,
    pub renewed_at: Option<Timestamp>,
    pub duration: Option<SignedDuration>,
}

impl Operator {
    /// Whether it looks at a namespace at all.
    #[must_use]
    pub fn watches(&self, namespace: &str) -> bool {
        self.watched.is_empty() || self.watched.iter().any(|watched| watched == namespace)
    }

    /// `namespace/name`.
    #[must_use]
    pub fn place(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Why nobody leads, if that can be seen; `clocks_differ` is by how much `now` and the leader's clock may.
    #[must_use]
    pub fn leaderless(&self, now: Timestamp, clocks_differ: SignedDuration) -> Option<String> {
        let lease = self.lease.as_ref()?;
        let place = format!("the Lease {}/{}", lease.namespace, lease.name);
        let held = match &lease.held {
            Lookup::Unknown(_) => return None,
            Lookup::Missing => return Some(format!("{place} is not there")),
            Lookup::Found(held) => held,
        };
        if held.holder.as_deref().unwrap_or_default().is_empty() {
            return Some(format!("nobody holds {place}"));
        }
        let limit = held.duration.unwrap_or(DEFAULT_LEASE_DURATION) + clocks_differ;
        match held.renewed_at.map(|at| now.duration_since(at)) {
            Some(age) if age <= limit => None,
            Some(age) => Some(format!(
                "{place} was renewed {} ago for the last time ({} are allowed for clocks that differ)",
                length(age),
                length(clocks_differ)
            )),
            None => Some(format!("{place} was never renewed")),
        }
    }

    fn of(deployment: &Deployment) -> Self {
        let spec = &deployment.spec;
        let pod = spec.template.spec.as_ref();
        let container = pod.and_then(|pod| {
            let named = pod.containers.iter().find(|container| container.name == "operator");
            named.or_else(|| pod.containers.first())
        });
        let value = |flag: &str| container.and_then(|container| value_of(container, flag));
        let elects = value("--leader-elect").is_some_and(|value| value != "false");
        let own = deployment.namespace().unwrap_or_default();
        let account = pod.and_then(|pod| pod.service_account_name.clone());
        let watched = value("--watch-namespace").unwrap_or_default();
        Self {
            name: deployment.name_any(),
            wanted_replicas: spec.replicas.unwrap_or(1),
            ready_replicas: deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or_default(),
            service_account: account.unwrap_or_else(|| "default".to_owned()),
            watched: watched.split(',').filter(|name| !name.is_empty()).map(ToOwned::to_owned).collect(),
            is_shard: deployment.labels().contains_key(SHARD),
            label_selector: value("--label-selector").filter(|selector| !selector.is_empty()),
            token_url: container.map_or_else(|| Lookup::Unknown("it has no container".to_owned()), token_url),
            selects: None,
            lease: elects.then(|| LeaseFacts {
                namespace: value("--leader-elect-namespace").unwrap_or_else(|| own.clone()),
                name: value("--leader-elect-lease-name").unwrap_or_else(|| DEFAULT_LEASE.to_owned()),
                held: Lookup::Unknown("not looked at yet".to_owned()),
            }),
            namespace: own,
        }
    }
}

/// What a flag is set to: as `--flag=value`, as `--flag value`, as `--flag` alone (which is true), or by its variable. Of one
/// that is given several times, all values with commas between.
fn value_of(container: &Container, flag: &str) -> Option<String> {
    let arguments: Vec<_> = container.command.iter().chain(&container.args).flatten().map(String::as_str).collect();
    let mut values = Vec::new();
    for (at, argument) in arguments.iter().enumerate() {
        match argument.strip_prefix(flag) {
            Some("") => {
                let next = arguments.get(at + 1).filter(|next| !next.starts_with("--"));
                values.push(next.map_or("true", |next| next));
            }
            Some(rest) => values.extend(rest.strip_prefix('=')),
            None => {}
        }
    }
    if !values.is_empty() {
        return Some(values.join(","));
    }
    let variable = variable_of(flag);
    container.env.iter().flatten().find(|set| set.name == variable).and_then(|set| set.value.clone())
}

fn variable_of(flag: &str) -> String {
    format!("MONEYGO_{}", flag.trim_start_matches('-').to_uppercase().replace('-', "_"))
}

/// Where a container asks for tokens. What is not in the Deployment itself is not guessed: a client secret goes there.
fn token_url(container: &Container) -> Lookup<String> {
    const FLAG: &str = "--token-url";
    match value_of(container, FLAG) {
        Some(url) if url.contains("$(") => Lookup::Unknown(format!("its {FLAG} holds a variable")),
        Some(url) => Lookup::Found(url),
        None if container.env.iter().flatten().any(|set| set.name == variable_of(FLAG)) => {
            Lookup::Unknown(format!("its {} comes from elsewhere", variable_of(FLAG)))
        }
        None if container.env_from.iter().flatten().next().is_some() => {
            Lookup::Unknown(format!("its envFrom may hold {}", variable_of(FLAG)))
        }
        None => Lookup::Found(DEFAULT_TOKEN_URL.to_owned()),
    }
}

/// The operators of a namespace, or of all.
pub async fn gather(client: &Client, namespace: Option<&str>) -> Lookup<Vec<Operator>> {
    let deployments: Api<Deployment> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let labelled = async |label| deployments.list(&ListParams::default().labels(label)).await;
    let listed = match tokio::try_join!(labelled(LABELS[0]), labelled(LABELS[1])) {
        Ok((one, other)) => one.items.into_iter().chain(other.items),
        Err(error) => {
            let hint = if namespace.is_none() { " (name its namespace with --operator-namespace)" } else { "" };
            return Lookup::Unknown(super::facts::refusal(&error) + hint);
        }
    };
    let mut operators = Vec::new();
    let mut seen = BTreeSet::new();
    for deployment in listed.filter(|deployment| seen.insert((deployment.namespace(), deployment.name_any()))) {
        let mut operator = Operator::of(&deployment);
        if let Some(lease) = &mut operator.lease {
            lease.held = held(client, &lease.namespace, &lease.name).await;
        }
        operators.push(operator);
    }
    Lookup::Found(operators)
}

async fn held(client: &Client, namespace: &str, name: &str) -> Lookup<Held> {
    let found = Api::<Lease>::namespaced(client.clone(), namespace).get_opt(name).await;
    Lookup::of(found).map(|lease| {
        let spec = lease.spec.unwrap_or_default();
        Held {
            holder: spec.holder_identity,
            renewed_at: spec.renew_time.map(|time| time.0),
            duration: spec.lease_duration_seconds.map(|secs| SignedDuration::from_secs(secs.into())),
        }
    })
}

/// Whether somebody works for an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// As far as can be seen.
    Well,
    /// Nobody does, and why.
    Ill(String),
    /// It cannot be seen, and why.
    Unknown(String),
}

/// Judges the operators for one object.
#[must_use]
pub fn health_for(operators: &Lookup<Vec<Operator>>, object: &MoneyGoCredential, time: &Time) -> Health {
    let all = match operators {
        Lookup::Unknown(why) => return Health::Unknown(why.clone()),
        Lookup::Missing => &Vec::new(),
        Lookup::Found(all) => all,
    };
    if all.is_empty() {
        return Health::Ill(format!("there is no Deployment with the label {}", LABELS.join(" or ")));
    }
    let namespace = object.namespace().unwrap_or_default();
    let watching: Vec<_> = all.iter().filter(|operator| operator.watches(&namespace)).collect();
    let Some(operator) = watching.iter().find(|operator| operator.ready_replicas > 0).or(watching.first()) else {
        return Health::Ill(format!("no operator watches the namespace {namespace}"));
    };
    if operator.ready_replicas == 0 {
        return Health::Ill(format!("the Deployment {} has no ready replica", operator.place()));
    }
    operator.leaderless(time.now(), time.clocks_differ).map_or(Health::Well, Health::Ill)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn operator(args: &[&str]) -> Operator {
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "o", "namespace": "system"},
            "spec": {"replicas": 2, "selector": {}, "template": {"spec": {"serviceAccountName": "sa", "containers": [
                {"name": "sidecar", "args": ["--watch-namespace=wrong"]},
                {"name": "operator", "args": args, "env": [{"name": "MONEYGO_LABEL_SELECTOR", "value": "a=b"}]},
            ]}}},
            "status": {"readyReplicas": 1},
        });
        Operator::of(&serde_json::from_value(deployment).unwrap())
    }

    #[test]
    fn flags_are_read_in_every_form() {
        let seen = operator(&["--watch-namespace=a,b", "--watch-namespace", "c", "--leader-elect"]);
        assert_eq!(seen.watched, ["a", "b", "c"]);
        assert!(seen.watches("b") && !seen.watches("d"));
        assert_eq!(seen.lease.map(|lease| lease.name).as_deref(), Some("moneygo-operator"));
        assert_eq!((seen.ready_replicas, seen.wanted_replicas, seen.service_account.as_str()), (1, 2, "sa"));
        assert_eq!(seen.label_selector.as_deref(), Some("a=b"));
        let seen = operator(&["--leader-elect=false", "--leader-elect-lease-name=x"]);
        assert!(seen.lease.is_none() && seen.watches("anything"));
        let lease = operator(&["--leader-elect", "--leader-elect-namespace=other"]).lease.unwrap();
        assert_eq!(lease.namespace, "other");
    }

    #[test]
    fn the_token_url_is_read_and_never_guessed() {
        let of = |container: serde_json::Value| token_url(&serde_json::from_value(container).unwrap());
        let found = |container| of(container).found().cloned();
        let sandbox = "https://sandbox.money-go.com/token";
        let flag = format!("--token-url={sandbox}");
        let variable = json!([{"name": "MONEYGO_TOKEN_URL", "value": sandbox}]);
        assert_eq!(found(json!({"name": "o", "args": [flag]})).as_deref(), Some(sandbox));
        assert_eq!(found(json!({"name": "o", "env": variable})).as_deref(), Some(sandbox));
        assert_eq!(found(json!({"name": "o"})).as_deref(), Some(DEFAULT_TOKEN_URL));
        let from_map =
            json!([{"name": "MONEYGO_TOKEN_URL", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}}]);
        for elsewhere in [
            json!({"name": "o", "env": from_map}),
            json!({"name": "o", "envFrom": [{"secretRef": {"name": "s"}}]}),
            json!({"name": "o", "args": ["--token-url=$(URL)"]}),
        ] {
            assert!(matches!(of(elsewhere.clone()), Lookup::Unknown(_)), "{elsewhere}");
        }
    }

    /// A `nameOverride` changes the other one.
    #[test]
    fn the_chart_sets_a_label_that_is_looked_for_whatever_its_name() {
        let labels = include_str!("../../../charts/moneygo-operator/templates/_helpers.tpl");
        let (key, value) = LABELS[0].split_once('=').unwrap();
        assert!(labels.contains(&format!("\n{key}: {value}\n")));
    }

    #[test]
    fn who_leads() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let mut seen = operator(&["--leader-elect", "--leader-elect-lease-name=x"]);
        assert_eq!(seen.leaderless(now, SignedDuration::from_secs(30)), None, "it was not looked at");
        let mut held = |held| {
            seen.lease = Some(LeaseFacts { namespace: "system".to_owned(), name: "x".to_owned(), held });
            seen.leaderless(now, SignedDuration::from_secs(30))
        };
        let at = |secs: i64, holder: &str| {
            let renewed_at = Some(Timestamp::from_second(1_000_000 - secs).unwrap());
            Lookup::Found(Held { holder: Some(holder.to_owned()), renewed_at, duration: None })
        };
        assert_eq!(held(Lookup::Missing).as_deref(), Some("the Lease system/x is not there"));
        assert_eq!(held(at(1, "")).as_deref(), Some("nobody holds the Lease system/x"));
        assert_eq!(held(at(45, "me")), None);
        let late =
            "the Lease system/x was renewed 46 s ago for the last time (30 s are allowed for clocks that differ)";
        assert_eq!(held(at(46, "me")).as_deref(), Some(late));
    }
}
