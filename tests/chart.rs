//! The chart, with the real Helm and the real API server. There is no kubelet here: Pods are only ever proposed to it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::PostParams;
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, Resource as _, ResourceExt as _};
use moneygo_controlplane::{ControlPlane, helm};
use moneygo_operator::crd::MoneyGoCredential;
use serde::Deserialize;
use serde_json::{Value, json};

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/moneygo-operator");
const CRD: &str = include_str!("../crds/moneygocredentials.money-go.com.yaml");
const CRD_NAME: &str = "moneygocredentials.money-go.com";
const REFUSED: &str = include_str!("chart/refused.yaml");
/// Every namespace that the value files and the documented roles name.
const NAMESPACES: [&str; 5] = ["moneygo-system", "payments", "invoices", "elsewhere", "monitoring"];
const SOON: Duration = Duration::from_mins(1);

/// Refusals of a kind.
#[derive(Deserialize)]
struct Refusals {
    cases: Vec<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    values: String,
    /// What the message must name.
    names: String,
}

/// Helm and kubectl, with a home and a cluster of their own.
struct Tools<'a> {
    helm: PathBuf,
    plane: &'a ControlPlane,
}

impl<'a> Tools<'a> {
    async fn new(plane: &'a ControlPlane) -> Self {
        let helm = tokio::task::spawn_blocking(helm).await.unwrap().expect("a Helm");
        Self { helm, plane }
    }

    /// On a cluster with the namespaces, all of them `restricted`.
    async fn with_namespaces(plane: &'a ControlPlane) -> Self {
        let tools = Self::new(plane).await;
        let labels = json!({"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted"});
        let namespace =
            |name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        let namespaces = json!({"apiVersion": "v1", "kind": "List", "items": NAMESPACES.map(namespace)});
        tools.kubectl(&["apply", "--server-side", "--filename=-"], &namespaces.to_string()).unwrap();
        tools
    }

    /// What it printed, or what it complained about.
    fn helm(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        self.run(&self.helm, arguments, input)
    }

    fn kubectl(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        self.run(self.plane.kubectl(), arguments, input)
    }

    fn run(&self, program: &Path, arguments: &[&str], input: &str) -> Result<String, String> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .env("HOME", self.plane.folder())
            .env("KUBECONFIG", self.plane.kubeconfig())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self.plane.tie(&mut command).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
        let (stdout, stderr) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
        assert!(!stderr.contains("would violate PodSecurity"), "{arguments:?}: {stderr}");
        if status.success() { Ok(stdout) } else { Err(format!("{stdout}{stderr}")) }
    }

    /// The chart's objects with these values, as YAML.
    fn render(&self, values: &str) -> Result<String, String> {
        self.helm(&["template", "moneygo-operator", CHART, "--namespace=moneygo-system", "--values=-"], values)
    }

    /// Of the release's objects: what each is, and its version.
    fn versions(&self, release: &str) -> BTreeMap<String, String> {
        let manifest = self.helm(&["get", "manifest", release, "--namespace=moneygo-system"], "").unwrap();
        let objects = self.kubectl(&["get", "--filename=-", "--output=json"], &manifest).unwrap();
        let objects: Value = serde_json::from_str(&objects).unwrap();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let row = |object: &Value| {
            let metadata = &object["metadata"];
            let what =
                format!("{} {}/{}", text(&object["kind"]), text(&metadata["namespace"]), text(&metadata["name"]));
            (what, text(&metadata["resourceVersion"]))
        };
        objects["items"].as_array().unwrap().iter().map(row).collect()
    }

    fn may(&self, verb: &str, resource: &str, namespace: &str) -> bool {
        self.may_account("moneygo-operator", verb, resource, namespace)
    }

    fn may_account(&self, account: &str, verb: &str, resource: &str, namespace: &str) -> bool {
        let subject = format!("--as=system:serviceaccount:moneygo-system:{account}");
        let answer = self.kubectl(&["auth", "can-i", verb, resource, &subject, "--namespace", namespace], "");
        answer.is_ok_and(|answer| answer.trim() == "yes")
    }
}

fn objects(yaml: &str) -> Vec<Value> {
    let documents = serde_yaml::Deserializer::from_str(yaml);
    documents.map(|document| Value::deserialize(document).unwrap()).filter(|object| !object.is_null()).collect()
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

/// Each file of `ci/`: its name and text.
fn value_files() -> Vec<(String, String)> {
    let folder = fs::read_dir(Path::new(CHART).join("ci")).unwrap();
    let mut paths: Vec<_> = folder.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let read =
        |path: &PathBuf| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read_to_string(path).unwrap());
    paths.iter().map(read).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn lint_finds_nothing() {
    let tools = Tools::new(ControlPlane::shared().await.unwrap()).await;
    let printed = tools.helm(&["lint", "--strict", CHART], "").unwrap();
    assert!(printed.contains("0 chart(s) failed"), "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rendering_is_accepted() {
    let plane = ControlPlane::shared().await.unwrap();
    let tools = Tools::with_namespaces(plane).await;
    for definition in [CRD, SERVICE_MONITORS, POD_MONITORS, PROMETHEUS_RULES] {
        plane.install_crd(definition).await.unwrap();
    }
    let files = value_files();
    assert!(files.len() >= 37, "{} files", files.len());
    let mut pods = Vec::new();
    for (file, values) in &files {
        let rendered = tools.render(values).unwrap_or_else(|error| panic!("{file}: {error}"));
        let apply = ["apply", "--dry-run=server", "--validate=strict", "--filename=-"];
        let applied = tools.kubectl(&apply, &rendered).unwrap_or_else(|error| panic!("{file}: {error}"));
        let objects = objects(&rendered);
        println!("{file}: {} objects", objects.len());
        assert_eq!(applied.lines().count(), objects.len(), "{file}: {applied}");
        for (number, deployment) in of_kind(&objects, "Deployment").into_iter().enumerate() {
            let pod = pod(&format!("{}-{number}", file.trim_end_matches("-values.yaml")), deployment);
            check_arguments(file, &pod["spec"]["containers"][0]["args"]);
            pods.push(pod);
        }
    }
    // The level `restricted` is enforced for Pods alone.
    let pods = json!({"apiVersion": "v1", "kind": "List", "items": pods});
    tools.kubectl(&["create", "--dry-run=server", "--validate=strict", "--filename=-"], &pods.to_string()).unwrap();
}

/// YAML takes `123`, `12e4` and `no` for something else than the names that they may be.
#[tokio::test(flavor = "multi_thread")]
async fn names_that_look_like_numbers_stay_names() {
    let tools = Tools::new(ControlPlane::shared().await.unwrap()).await;
    let values = r#"
        fullnameOverride: "12e4"
        nameOverride: "34"
        priorityClassName: "56"
        serviceAccount: {name: "78"}
        leaderElection: {leaseName: "90"}
        caBundle: {secretName: "12"}
        metrics:
          serviceMonitor: {enabled: true, namespace: "11"}
          podMonitor: {enabled: true, namespace: "11"}
          prometheusRule: {enabled: true, namespace: "22"}
          dashboard: {enabled: true, namespace: "33"}
    "#;
    let template = ["template", "123", CHART, "--namespace=456", "--values=-"];
    for watched in ["watchNamespaces: ['789', 'no']", "shards: [{name: 'on', watchNamespaces: ['789', 'no']}]"] {
        let rendered = tools.helm(&template, &format!("{values}\n        {watched}")).unwrap();
        let objects = objects(&rendered);
        assert!(objects.len() > 10, "{rendered}");
        for object in &objects {
            are_texts(object, &format!("{} {}", object["kind"], object["metadata"]["name"]));
        }
    }
}

/// Helm takes null for a default that is not wanted. Where there must be a value, that is refused; elsewhere there is nothing then, and no `<nil>`.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_null_is_refused_or_as_good_as_empty() {
    let tools = Tools::new(ControlPlane::shared().await.unwrap()).await;
    let values: Value = serde_yaml::from_str(&fs::read_to_string(format!("{CHART}/values.yaml")).unwrap()).unwrap();
    let schema: Value =
        serde_json::from_str(&fs::read_to_string(format!("{CHART}/values.schema.json")).unwrap()).unwrap();
    let (mut paths, mut refused) = (Vec::new(), 0);
    named(&values, &schema, "", &mut paths);
    assert!(paths.len() >= 150, "{} values", paths.len());
    let everything = "{metrics: {serviceMonitor: {enabled: true}, podMonitor: {enabled: true}, prometheusRule: {enabled: true}, dashboard: {enabled: true}}, \
        networkPolicy: {enabled: true}}";
    for (path, default) in &paths {
        let set = format!("--set={path}=null");
        let template = ["template", "moneygo-operator", CHART, "--values=-", &set];
        match tools.helm(&template, everything) {
            Ok(rendered) => {
                assert!(!rendered.contains("<nil>"), "{path}: {rendered}");
                for object in objects(&rendered) {
                    has_no_null(&object, path);
                }
                let at_once = path.rsplit_once('.').is_some_and(|(_, key)| key == "for");
                let is_empty = at_once || [json!(""), json!([]), json!({})].contains(default);
                assert!(
                    is_empty || default.is_object(),
                    "{path} is {default} where it is not null, and nobody was told"
                );
            }
            Err(error) => {
                let (parent, key) = path.rsplit_once('.').unwrap_or(("", path));
                assert!(error.contains("missing property") && error.contains(key), "{path}: {error}");
                assert!(!parent.ends_with(".alerts"), "an alert that is null is none: {path}");
                refused += 1;
            }
        }
    }
    assert!(refused > 60 && refused < paths.len() - 60, "{refused} of {} are refused", paths.len());
}

/// Every value that the schema names, with its default.
fn named(values: &Value, schema: &Value, place: &str, found: &mut Vec<(String, Value)>) {
    for (key, schema) in schema["properties"].as_object().into_iter().flatten() {
        let path = if place.is_empty() { key.clone() } else { format!("{place}.{key}") };
        if let Some(default) = values.get(key) {
            named(default, schema, &path, found);
            found.push((path, default.clone()));
        }
    }
}

fn has_no_null(value: &Value, path: &str) {
    match value {
        Value::Null => panic!("{path}: null"),
        Value::Object(map) => map.values().for_each(|it| has_no_null(it, path)),
        Value::Array(all) => all.iter().for_each(|it| has_no_null(it, path)),
        _ => {}
    }
}

/// Helm takes more for a release's name than the API server for a Service's.
#[tokio::test(flavor = "multi_thread")]
async fn every_name_of_a_release_makes_names_that_are_accepted() {
    let plane = ControlPlane::shared().await.unwrap();
    let tools = Tools::with_namespaces(plane).await;
    for release in ["v1.prod", "1.2", "a.moneygo-operator.b", "0", &"a".repeat(53), &format!("{}.a", "1".repeat(51))] {
        let template = ["template", release, CHART, "--namespace=moneygo-system"];
        let rendered = tools.helm(&template, "").unwrap_or_else(|error| panic!("{release}: {error}"));
        for service in of_kind(&objects(&rendered), "Service") {
            let name = service["metadata"]["name"].as_str().unwrap();
            let is_label = name.len() <= 63 && name.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '-'));
            assert!(is_label && name.starts_with(|c: char| c.is_ascii_lowercase()), "{release}: RFC 1035: {name}");
        }
        let apply = ["apply", "--dry-run=server", "--validate=strict", "--filename=-"];
        tools.kubectl(&apply, &rendered).unwrap_or_else(|error| panic!("{release}: {error}"));
    }
}

/// `kubectl moneygo` and the runbooks go by it.
#[tokio::test(flavor = "multi_thread")]
async fn no_value_takes_the_label_away_that_the_operator_is_found_by() {
    let tools = Tools::new(ControlPlane::shared().await.unwrap()).await;
    let other = "{app.kubernetes.io/part-of: platform, app.kubernetes.io/name: other, team: a}";
    let values = format!(
        "{{global: {{commonLabels: {other}}}, commonLabels: {other}, podLabels: {other}, nameOverride: tokens}}"
    );
    let rendered = objects(&tools.render(&values).unwrap());
    let deployment = &of_kind(&rendered, "Deployment")[0];
    let pods = &deployment["spec"]["template"];
    for labels in rendered.iter().chain([pods]).map(|object| &object["metadata"]["labels"]) {
        assert_eq!(labels["app.kubernetes.io/part-of"], "moneygo-operator", "{labels}");
        assert_eq!((&labels["app.kubernetes.io/name"], &labels["team"]), (&"tokens".into(), &"a".into()), "{labels}");
    }
}

/// Names and labels, wherever they are.
fn are_texts(value: &Value, place: &str) {
    const TEXTS: [&str; 7] =
        ["name", "namespace", "serviceAccountName", "priorityClassName", "resourceNames", "matchNames", "secretName"];
    const MAPS: [&str; 4] = ["labels", "matchLabels", "podSelector", "selector"];
    let texts = |value: &Value, place: &str| match value {
        Value::Object(map) => assert!(map.values().all(|it| it.is_string() || it.is_object()), "{place}: {map:?}"),
        Value::Array(all) => assert!(all.iter().all(Value::is_string), "{place}: {all:?}"),
        value => assert!(value.is_string(), "{place}: {value}"),
    };
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let place = format!("{place} .{key}");
                if place.contains(".openAPIV3Schema") {
                    continue;
                }
                if TEXTS.contains(&key.as_str()) || MAPS.contains(&key.as_str()) {
                    texts(value, &place);
                }
                are_texts(value, &place);
            }
        }
        Value::Array(all) => all.iter().for_each(|it| are_texts(it, place)),
        _ => {}
    }
}

/// As the Deployment's controller would make it, but for the service account: that of the release is not there.
fn pod(name: &str, deployment: &Value) -> Value {
    let template = &deployment["spec"]["template"];
    let mut spec = template["spec"].clone();
    spec["serviceAccountName"] = "default".into();
    let metadata = json!({
        "name": name,
        "namespace": deployment["metadata"]["namespace"],
        "labels": template["metadata"]["labels"],
        "annotations": template["metadata"]["annotations"],
    });
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
}

/// The operator takes them: with no cluster to be found it gets past its arguments, and no further.
fn check_arguments(file: &str, arguments: &Value) {
    let arguments: Vec<String> = serde_json::from_value(arguments.clone()).unwrap();
    let (listen, others): (Vec<_>, Vec<_>) = arguments.iter().partition(|argument| argument.starts_with("--listen="));
    let address = listen[0].trim_start_matches("--listen=");
    assert!(address.parse::<SocketAddr>().is_ok(), "{file}: {address}");
    let mut operator = Command::new(env!("CARGO_BIN_EXE_moneygo-operator"));
    operator.args(others).arg("--listen=127.0.0.1:0").env_clear().env("KUBECONFIG", "/nowhere/kubeconfig");
    let output = operator.output().unwrap();
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && complaint.contains("/nowhere/kubeconfig"), "{file}: {complaint}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_misspelt_or_wrong_is_refused() {
    let tools = Tools::new(ControlPlane::shared().await.unwrap()).await;
    let kinds: Vec<Refusals> = serde_yaml::from_str(REFUSED).unwrap();
    let cases: Vec<_> = kinds.into_iter().flat_map(|kind| kind.cases).collect();
    assert!(cases.len() >= 95, "{} cases", cases.len());
    for Refusal { values, names } in &cases {
        let error = tools.render(values).expect_err(values);
        assert!(error.contains(names), "{values}: {error}");
        println!("refused for {names}: {values}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_are_those_of_the_documents() {
    let tools = Tools::new(ControlPlane::shared().await.unwrap()).await;
    for (values, document) in [
        ("{}", include_str!("../docs/rbac/cluster.yaml")),
        ("watchNamespaces: [payments]", include_str!("../docs/rbac/namespaced.yaml")),
        ("shards: [{name: a, watchNamespaces: [payments]}]", include_str!("../docs/rbac/namespaced.yaml")),
    ] {
        // The Lease of a shard has another name.
        let rendered = tools.render(values).unwrap().replace("\"moneygo-operator-a\"", "moneygo-operator");
        assert_eq!(rules(&rendered), rules(document), "{values}");
    }
    // As the runbook of the alert MoneyGoNoLeader calls them.
    for (values, name) in
        [("{}", "moneygo-operator-own"), ("shards: [{name: a, watchNamespaces: [payments]}]", "moneygo-operator-a.own")]
    {
        let objects = objects(&tools.render(values).unwrap());
        let names: Vec<_> = of_kind(&objects, "Role").iter().map(|role| &role["metadata"]["name"]).collect();
        assert!(names.contains(&&json!(name)), "{names:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_share_nothing_that_works() {
    let tools = Tools::new(ControlPlane::shared().await.unwrap()).await;
    let files = value_files();
    let (_, values) = files.iter().find(|(file, _)| file.contains("-shards-values")).expect("a value file");
    let objects = objects(&tools.render(values).unwrap());
    let deployments = of_kind(&objects, "Deployment");
    assert_eq!(deployments.len(), 2);

    for kind in ["Deployment", "PodDisruptionBudget"] {
        for one in of_kind(&objects, kind) {
            let selector = &one["spec"]["selector"]["matchLabels"];
            let selects = |other: &&&Value| is_selected(selector, &other["spec"]["template"]["metadata"]["labels"]);
            let selected: Vec<_> = deployments.iter().filter(selects).map(|other| &other["metadata"]["name"]).collect();
            assert_eq!(selected, [&one["metadata"]["name"]], "{kind}");
        }
    }
    let budgets: Vec<_> = of_kind(&objects, "PodDisruptionBudget").iter().map(|it| &it["metadata"]["name"]).collect();
    assert_eq!(budgets, ["moneygo-operator-a"], "the other has one replica");
    for selector in [
        &of_kind(&objects, "NetworkPolicy")[0]["spec"]["podSelector"]["matchLabels"],
        &of_kind(&objects, "Service")[0]["spec"]["selector"],
        &of_kind(&objects, "PodMonitor")[0]["spec"]["selector"]["matchLabels"],
    ] {
        let selects = |other: &&Value| is_selected(selector, &other["spec"]["template"]["metadata"]["labels"]);
        assert!(deployments.iter().all(selects), "{selector} is for all Pods");
    }

    let argument = |deployment: &Value, flag: &str| {
        let arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"].as_array().unwrap().iter();
        arguments.filter_map(Value::as_str).find_map(|it| it.strip_prefix(flag)?.strip_prefix('=')).map(str::to_owned)
    };
    let all = |flag: &str| deployments.iter().map(|one| argument(one, flag).unwrap()).collect::<Vec<_>>();
    assert_eq!(all("--watch-namespace"), ["payments,invoices", "elsewhere"]);
    assert_eq!(all("--leader-elect-lease-name"), ["moneygo-operator-a", "moneygo-operator-b"]);
    assert_eq!(all("--token-requests-per-second"), ["20", "2.5"]);
    let replicas: Vec<_> = deployments.iter().map(|one| &one["spec"]["replicas"]).collect();
    assert_eq!(replicas, [3, 1]);
}

fn is_selected(selector: &Value, labels: &Value) -> bool {
    selector.as_object().unwrap().iter().all(|(label, value)| labels[label] == *value)
}

/// The release's own name differs, so that the accounts are of this test alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_shard_may_do_nothing_in_the_namespaces_of_another() {
    let plane = ControlPlane::shared().await.unwrap();
    plane.install_crd(CRD).await.unwrap();
    let tools = Tools::with_namespaces(plane).await;
    let run = |verb: &str, values: &str| {
        let arguments = [verb, "sharded", CHART, "--namespace=moneygo-system", "--wait=hookOnly", "--values=-"];
        tools.helm(&[&arguments[..], &["--set=crds.enabled=false"]].concat(), values).unwrap()
    };
    let both = |a: &str, b: &str| {
        format!("shards: [{{name: a, watchNamespaces: [{a}]}}, {{name: b, watchNamespaces: [{b}]}}]")
    };
    // Who may do what the operator does in each namespace, in the order of `watched`.
    let watched = ["payments", "invoices", "elsewhere", "moneygo-system"];
    let may = |shard: &str| {
        let account = format!("sharded-moneygo-operator-{shard}");
        let all = |namespace| {
            let rights = [("list", "secrets"), ("update", "secrets"), ("list", "moneygocredentials.money-go.com")];
            let granted =
                rights.iter().filter(|(verb, what)| tools.may_account(&account, verb, what, namespace)).count();
            assert!(granted == 0 || granted == rights.len(), "{account} has a part of the rights in {namespace}");
            let may_lead = |shard: &str| {
                let lease = format!("leases/sharded-moneygo-operator-{shard}");
                tools.may_account(&account, "update", &lease, "moneygo-system")
            };
            let of_another = if shard == "a" { "b" } else { "a" };
            assert!(may_lead(shard) && !may_lead(of_another), "{account}: its own Lease, and no other");
            granted > 0
        };
        watched.map(all)
    };

    let notes = run("install", &both("payments, invoices", "elsewhere"));
    assert!(notes.contains("shard a: payments, invoices\n") && notes.contains("shard b: elsewhere\n"), "{notes}");
    assert!(notes.contains("rollout status deployment/sharded-moneygo-operator-b"), "{notes}");
    assert_eq!((may("a"), may("b")), ([true, true, false, false], [false, false, true, false]));
    let installed = tools.versions("sharded");

    // A namespace is moved: by way of nobody.
    run("upgrade", &both("payments", "elsewhere"));
    assert_eq!((may("a"), may("b")), ([true, false, false, false], [false, false, true, false]));
    run("upgrade", &both("payments", "elsewhere, invoices"));
    assert_eq!((may("a"), may("b")), ([true, false, false, false], [false, true, true, false]));
    let moved = tools.versions("sharded");
    let changed = moved.iter().filter(|(what, version)| installed.get(*what) != Some(version));
    let changed: Vec<_> = changed.map(|(what, _)| what.replace("sharded-moneygo-operator", "")).collect();
    assert_eq!(
        changed,
        ["Deployment moneygo-system/-a", "Deployment moneygo-system/-b", "Role invoices/-b", "RoleBinding invoices/-b",]
    );
    tools.helm(&["uninstall", "sharded", "--namespace=moneygo-system"], "").unwrap();
}

/// What the roles of a stream of documents allow, by kind and namespace, but for those that are for people.
fn rules(yaml: &str) -> BTreeMap<String, Value> {
    let is_role = |object: &&Value| object["kind"] == "ClusterRole" || object["kind"] == "Role";
    let is_for_people = |role: &&Value| AGGREGATED.iter().any(|label| !role["metadata"]["labels"][label].is_null());
    let row = |role: &Value| (format!("{} in {}", role["kind"], role["metadata"]["namespace"]), role["rules"].clone());
    let objects = objects(yaml);
    objects.iter().filter(is_role).filter(|role| !is_for_people(role)).map(row).collect()
}

const AGGREGATED: [&str; 3] = [
    "rbac.authorization.k8s.io/aggregate-to-view",
    "rbac.authorization.k8s.io/aggregate-to-edit",
    "rbac.authorization.k8s.io/aggregate-to-admin",
];

#[tokio::test(flavor = "multi_thread")]
async fn the_chart_is_of_this_version() {
    let plane = ControlPlane::shared().await.unwrap();
    plane.install_crd(CRD).await.unwrap();
    let tools = Tools::new(plane).await;
    let chart: Value = serde_yaml::from_str(&fs::read_to_string(Path::new(CHART).join("Chart.yaml")).unwrap()).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!((&chart["version"], &chart["appVersion"]), (&json!(version), &json!(version)));
    let annotation = |name: &str| chart["annotations"][format!("artifacthub.io/{name}")].as_str().unwrap();
    let parsed = |name: &str| -> Value { serde_yaml::from_str(annotation(name)).unwrap() };

    let deployment = objects(&tools.render("{}").unwrap());
    let image = &of_kind(&deployment, "Deployment")[0]["spec"]["template"]["spec"]["containers"][0]["image"];
    assert_eq!(&parsed("images")[0]["image"], image);
    let definition: CustomResourceDefinition = serde_yaml::from_str(CRD).unwrap();
    assert_eq!(parsed("crds")[0]["name"], json!(definition.name_any()));
    assert_eq!(parsed("crds")[0]["version"], json!(definition.spec.versions[0].name));
    let examples = json!({"apiVersion": "v1", "kind": "List", "items": parsed("crdsExamples")});
    let create = ["create", "--dry-run=server", "--validate=strict", "--filename=-"];
    tools.kubectl(&create, &examples.to_string()).unwrap();
}

// One test, because each part goes on from the one before, and a CRD belongs to the whole cluster.
#[tokio::test(flavor = "multi_thread")]
async fn from_install_to_uninstall() {
    let plane = ControlPlane::start().await.unwrap();
    let tools = Tools::with_namespaces(&plane).await;

    let notes = tools.helm(&install(&[]), "").unwrap();
    assert!(notes.contains("rollout status deployment/moneygo-operator"), "{notes}");
    assert!(notes.contains("leaves the definition"), "{notes}");
    assert!(tools.may("list", "secrets", "invoices"));
    // The garbage collector looks for new kinds of objects every 30 s only; started again it knows this one.
    plane.stop_apiserver().unwrap();
    plane.start_apiserver().await.unwrap();
    upgrades_change_only_what_changed(&tools);

    let uid = make_token(&plane).await;
    uninstall(&tools);
    let admin = plane.admin().await.unwrap();
    let credentials = Api::<MoneyGoCredential>::namespaced(admin.clone(), "payments");
    let secrets = Api::<Secret>::namespaced(admin.clone(), "payments");
    credentials.get("token").await.expect("the object is kept");
    assert!(!tools.may("list", "secrets", "payments"), "rights are not kept");

    let notes = tools.helm(&install(&["--set", "watchNamespaces={payments}", "--set=crds.keep=false"]), "").unwrap();
    assert!(notes.contains("in payments, and in no other"), "{notes}");
    assert!(notes.contains("DELETES every MoneyGoCredential"), "{notes}");
    assert!(tools.may("list", "secrets", "payments") && tools.may("create", "leases", "moneygo-system"));
    for (resource, namespace) in
        [("secrets", "invoices"), ("secrets", "moneygo-system"), ("moneygocredentials", "invoices")]
    {
        assert!(!tools.may("list", resource, namespace), "{resource} in {namespace}");
    }
    assert_eq!(secrets.get("token").await.unwrap().uid().unwrap(), uid);
    let definitions = Api::<CustomResourceDefinition>::all(admin);
    let definition = definitions.get(CRD_NAME).await.unwrap().uid().unwrap();
    uninstall(&tools);
    let gone = async {
        await_condition(definitions, CRD_NAME, conditions::is_deleted(&definition)).await.unwrap();
        await_condition(secrets, "token", conditions::is_deleted(&uid)).await.unwrap();
    };
    tokio::time::timeout(SOON, gone).await.expect("the definition, its objects and what they own are gone");
    plane.shutdown().await.unwrap();
}

fn install<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["install", "moneygo-operator", CHART, "--namespace=moneygo-system", "--wait=hookOnly"], more].concat()
}

fn uninstall(tools: &Tools) {
    tools.helm(&["uninstall", "moneygo-operator", "--namespace=moneygo-system"], "").unwrap();
}

fn upgrades_change_only_what_changed(tools: &Tools) {
    let upgrade = ["upgrade", "moneygo-operator", CHART, "--namespace=moneygo-system", "--wait=hookOnly"];
    let installed = tools.versions("moneygo-operator");
    assert!(installed.len() >= 9, "{installed:?}");
    tools.helm(&upgrade, "").unwrap();
    assert_eq!(tools.versions("moneygo-operator"), installed, "the same values");

    let changed = [&upgrade[..], &["--set-string=podAnnotations.changed=true"]].concat();
    tools.helm(&changed, "").unwrap();
    let upgraded = tools.versions("moneygo-operator");
    let differing: Vec<_> = upgraded.iter().filter(|(what, version)| installed.get(*what) != Some(version)).collect();
    assert!(matches!(differing[..], [(what, _)] if what.starts_with("Deployment ")), "{differing:?}");
    assert_eq!(upgraded.len(), installed.len());

    // What the API server defaulted would stand in the way of another strategy.
    for (values, strategy) in [
        (&["--set=replicaCount=1", "--set=leaderElection.enabled=false"][..], "Recreate"),
        (&["--set=strategy.rollingUpdate.maxSurge=1"], "RollingUpdate"),
        (&["--set=strategy.type=Recreate"], "Recreate"),
        (&["--set=strategy.type=RollingUpdate"], "RollingUpdate"),
        (&["--set=strategy.type=Recreate"], "Recreate"),
        (&[], "RollingUpdate"),
    ] {
        tools
            .helm(&[&upgrade[..], &["--reset-values"], values].concat(), "")
            .unwrap_or_else(|error| panic!("{values:?}: {error}"));
        let get = [
            "get",
            "deployment/moneygo-operator",
            "--namespace=moneygo-system",
            "--output=jsonpath={.spec.strategy.type}",
        ];
        assert_eq!(tools.kubectl(&get, "").unwrap(), strategy, "{values:?}");
    }
}

/// An object, and a Secret as the operator would write it. Returns the Secret's uid.
async fn make_token(plane: &ControlPlane) -> String {
    let admin = plane.admin().await.unwrap();
    let object: MoneyGoCredential = serde_json::from_value(json!({
        "apiVersion": "money-go.com/v1alpha1", "kind": "MoneyGoCredential",
        "metadata": {"name": "token"}, "spec": {"credentialsRef": {"name": "client"}},
    }))
    .unwrap();
    let sent = PostParams::default();
    let object = Api::namespaced(admin.clone(), "payments").create(&sent, &object).await.unwrap();
    let mut secret = Secret::default();
    secret.metadata.name = Some("token".to_owned());
    secret.metadata.owner_references = object.controller_owner_ref(&()).map(|owner| vec![owner]);
    Api::<Secret>::namespaced(admin, "payments").create(&sent, &secret).await.unwrap().uid().unwrap()
}

// As much of the Prometheus operator's definitions as the chart uses: strict validation refuses any other field.
// https://prometheus-operator.dev/docs/api-reference/api/
const SERVICE_MONITORS: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: servicemonitors.monitoring.coreos.com}
spec:
  group: monitoring.coreos.com
  scope: Namespaced
  names: {kind: ServiceMonitor, plural: servicemonitors}
  versions:
    - name: v1
      served: true
      storage: true
      schema:
        openAPIV3Schema:
          type: object
          required: [spec]
          properties:
            spec:
              type: object
              required: [endpoints, selector]
              properties:
                podTargetLabels: {type: array, items: {type: string}}
                namespaceSelector: {type: object, properties: {any: {type: boolean}, matchNames: {type: array, items: {type: string}}}}
                selector: {type: object, properties: {matchLabels: {type: object, additionalProperties: {type: string}}}}
                endpoints:
                  type: array
                  items:
                    type: object
                    properties:
                      port: {type: string}
                      path: {type: string}
                      honorLabels: {type: boolean}
                      interval: &duration
                        type: string
                        pattern: '^(0|(([0-9]+)y)?(([0-9]+)w)?(([0-9]+)d)?(([0-9]+)h)?(([0-9]+)m)?(([0-9]+)s)?(([0-9]+)ms)?)$'
                      scrapeTimeout: *duration
                      relabelings: &relabelings
                        type: array
                        items:
                          type: object
                          properties:
                            action: {type: string}
                            regex: {type: string}
                            sourceLabels: {type: array, items: {type: string}}
                      metricRelabelings: *relabelings
";
const POD_MONITORS: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: podmonitors.monitoring.coreos.com}
spec:
  group: monitoring.coreos.com
  scope: Namespaced
  names: {kind: PodMonitor, plural: podmonitors}
  versions:
    - name: v1
      served: true
      storage: true
      schema:
        openAPIV3Schema:
          type: object
          required: [spec]
          properties:
            spec:
              type: object
              required: [podMetricsEndpoints, selector]
              properties:
                podTargetLabels: {type: array, items: {type: string}}
                namespaceSelector: {type: object, properties: {any: {type: boolean}, matchNames: {type: array, items: {type: string}}}}
                selector: {type: object, properties: {matchLabels: {type: object, additionalProperties: {type: string}}}}
                podMetricsEndpoints:
                  type: array
                  items:
                    type: object
                    properties:
                      port: {type: string}
                      path: {type: string}
                      honorLabels: {type: boolean}
                      interval: {type: string}
                      scrapeTimeout: {type: string}
                      relabelings: {type: array, items: {type: object, x-kubernetes-preserve-unknown-fields: true}}
                      metricRelabelings: {type: array, items: {type: object, x-kubernetes-preserve-unknown-fields: true}}
";
const PROMETHEUS_RULES: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: prometheusrules.monitoring.coreos.com}
spec:
  group: monitoring.coreos.com
  scope: Namespaced
  names: {kind: PrometheusRule, plural: prometheusrules}
  versions:
    - name: v1
      served: true
      storage: true
      schema:
        openAPIV3Schema:
          type: object
          required: [spec]
          properties:
            spec:
              type: object
              properties:
                groups:
                  type: array
                  items:
                    type: object
                    required: [name]
                    properties:
                      name: {type: string, minLength: 1}
                      interval: &duration
                        type: string
                        pattern: '^(0|(([0-9]+)y)?(([0-9]+)w)?(([0-9]+)d)?(([0-9]+)h)?(([0-9]+)m)?(([0-9]+)s)?(([0-9]+)ms)?)$'
                      rules:
                        type: array
                        items:
                          type: object
                          required: [expr]
                          properties:
                            alert: {type: string}
                            expr: {anyOf: [{type: integer}, {type: string}], x-kubernetes-int-or-string: true}
                            for: *duration
                            labels: {type: object, additionalProperties: {type: string}}
                            annotations: {type: object, additionalProperties: {type: string}}
";
