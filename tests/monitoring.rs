//! What an administrator sees: metrics, alerts and the dashboard, with a real Prometheus.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

#[path = "monitoring/chart.rs"]
mod chart;
#[path = "monitoring/prometheus.rs"]
mod prometheus;
mod stage;
#[path = "monitoring/watch.rs"]
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fake_moneygo::{Outage, Script};
use futures::StreamExt as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, ListParams, ObjectMeta};
use moneygo_controlplane::ControlPlane;
use moneygo_operator::telemetry::{CATALOGUE, Kind};
use prometheus::{Server, Target, programs, promtool};
use serde_json::{Value, json};
use stage::{Operator, SOON, Stage};
use watch::Watch;

const RUNBOOKS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/runbooks");
const ALERT_TESTS: &str = include_str!("monitoring/alerts.yaml");
const ALERT_TESTS_OF_SHARDS: &str = include_str!("monitoring/shards.yaml");
/// As long as an operator's Lease may be the shortest.
const LEASE: &str = "--leader-elect-lease-duration=3s";

// ---- The rules, by promtool ------------------------------------------------------------------------------------------

fn alerts_in(rules: &Value) -> Vec<Value> {
    let groups = rules["groups"].as_array().unwrap().iter();
    groups.flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

/// Of each alert: how often it must fire in promtool's tests, and how often not.
fn promtool_tests() -> BTreeMap<String, (usize, usize)> {
    let tests: Value = serde_yaml::from_str(ALERT_TESTS).unwrap();
    let mut counts = BTreeMap::<String, (usize, usize)>::new();
    for case in tests["tests"].as_array().unwrap().iter().flat_map(|test| test["alert_rule_test"].as_array().unwrap()) {
        let of_alert = counts.entry(case["alertname"].as_str().unwrap().to_owned()).or_default();
        let fires = !case["exp_alerts"].as_array().unwrap().is_empty();
        *(if fires { &mut of_alert.0 } else { &mut of_alert.1 }) += 1;
    }
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_pass_promtools_tests_and_have_runbooks() {
    let plane = ControlPlane::shared().await.unwrap();
    let program = programs().await.promtool;
    let rules = chart::rules(&json!({}));
    let folder = plane.folder().join("promtool");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("rules.yaml"), rules.to_string()).unwrap();
    fs::write(folder.join("alerts.yaml"), ALERT_TESTS).unwrap();
    fs::write(folder.join("sharded.yaml"), chart::rules_of_shards().to_string()).unwrap();
    fs::write(folder.join("shards.yaml"), ALERT_TESTS_OF_SHARDS).unwrap();
    println!("{}", promtool(&program, &folder, &["check", "rules", "rules.yaml", "sharded.yaml"], "").unwrap());
    println!("{}", promtool(&program, &folder, &["test", "rules", "alerts.yaml", "shards.yaml"], "").unwrap());

    let tests = promtool_tests();
    let alerts = alerts_in(&rules);
    for alert in &alerts {
        let name = alert["alert"].as_str().unwrap();
        assert!(tests.get(name).is_some_and(|(fires, quiet)| *fires > 0 && *quiet > 1), "{name} lacks tests");
        assert!(["warning", "critical"].contains(&alert["labels"]["severity"].as_str().unwrap()), "{name}");
        let runbook = fs::read_to_string(Path::new(RUNBOOKS).join(format!("{name}.md"))).unwrap_or_default();
        assert!(runbook.starts_with(&format!("# {name}\n")), "{name} has no runbook in {RUNBOOKS}");
        for heading in ["## What it means", "## What is at stake", "## How to look", "## What to do", "## When it ends"]
        {
            assert!(runbook.contains(&format!("\n{heading}\n")), "the runbook of {name} lacks {heading:?}");
        }
        let url = alert["annotations"]["runbook_url"].as_str().unwrap();
        assert!(url.ends_with(&format!("/docs/runbooks/{name}.md")), "{url}");
    }
    let names: BTreeSet<_> = alerts.iter().map(|alert| alert["alert"].as_str().unwrap().to_owned()).collect();
    assert_eq!(names, tests.into_keys().collect(), "the alerts, and those that are tested");
    let pages = fs::read_dir(RUNBOOKS).unwrap().map(|page| page.unwrap().file_name().into_string().unwrap());
    let pages: BTreeSet<_> = pages.filter_map(|page| Some(page.strip_suffix(".md")?.to_owned())).collect();
    assert_eq!(pages, names.into_iter().chain(["index".to_owned()]).collect(), "each page is of an alert");
}

/// A shard is told from another by the label alone, which the chart's own monitors set.
#[tokio::test(flavor = "multi_thread")]
async fn the_scrape_configuration_of_the_docs_is_sound_and_keeps_the_shard() {
    let plane = ControlPlane::shared().await.unwrap();
    let program = programs().await.promtool;
    let page = include_str!("../docs/monitoring.md");
    let blocks = page.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let configuration = blocks.into_iter().find(|block| block.starts_with("scrape_configs:")).expect("a configuration");
    let mut parsed: Value = serde_yaml::from_str(configuration).unwrap();
    let job = &mut parsed["scrape_configs"][0];
    // Debian's programs do not know how to find Pods.
    assert!(job.as_object_mut().unwrap().remove("kubernetes_sd_configs").is_some());
    let folder = plane.folder().join("scrape");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("prometheus.yaml"), json!({"scrape_configs": [job]}).to_string()).unwrap();
    println!("{}", promtool(&program, &folder, &["check", "config", "prometheus.yaml"], "").unwrap());

    let job = &parsed["scrape_configs"][0];
    assert_eq!(job["honor_labels"], true);
    let rules = job["relabel_configs"].as_array().unwrap();
    let targets: BTreeMap<_, _> =
        rules.iter().filter_map(|rule| Some((rule["target_label"].as_str()?, &rule["source_labels"][0]))).collect();
    assert_eq!(targets.get("money_go_com_shard"), Some(&&json!("__meta_kubernetes_pod_label_money_go_com_shard")));
}

// ---- What is served --------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn promtool_finds_nothing_wrong_with_what_is_served() {
    let program = programs().await.promtool;
    let stage = Stage::new("served").await;
    let mut operator = stage.operator().start().await;
    stage.subscribe("payments", json!({})).await;
    stage.ready("payments").await;
    let text = text_with(&mut operator, "payments").await;
    let printed = promtool(&program, Path::new("/"), &["check", "metrics"], &text).unwrap_or_else(|it| panic!("{it}"));
    assert_eq!(printed.trim(), "");

    let types: BTreeMap<_, _> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    for metric in CATALOGUE {
        let kind = if metric.kind == Kind::Info { "gauge" } else { metric.kind.as_str() };
        assert_eq!(types.get(metric.name), Some(&kind), "{}", metric.name);
        let series = text.lines().filter(|line| line.starts_with(&format!("{}{{", metric.name)));
        for line in series {
            let labels: Vec<_> =
                line.split(&['{', ','][..]).skip(1).filter_map(|label| Some(label.split_once('=')?.0)).collect();
            assert_eq!(labels, metric.labels, "{line}");
        }
    }
    let documented: BTreeSet<_> = CATALOGUE.iter().map(|metric| metric.name).collect();
    assert_eq!(types.into_keys().collect::<BTreeSet<_>>(), documented, "docs/metrics.md has all that is served");
    operator.stop().await;
}

/// The metrics, once those of an object are among them.
async fn text_with(operator: &mut Operator<'_>, object: &str) -> String {
    let (wanted, started) = (format!("name=\"{object}\",condition=\"Ready\",status=\"True\"}} 1"), Instant::now());
    loop {
        let (status, text) = operator.get("/metrics").await.expect("metrics");
        assert_eq!(status, 200);
        if text.contains(&wanted) {
            return text;
        }
        assert!(started.elapsed() < SOON, "{text}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

// ---- Cardinality -----------------------------------------------------------------------------------------------------

const OBJECTS: usize = 1000;
/// As docs/metrics.md says.
const SERIES_OF_OBJECT: usize = 15;

fn series(text: &str) -> (usize, usize) {
    let series = text.lines().filter(|line| !line.starts_with('#'));
    let (of_objects, others): (Vec<_>, Vec<_>) = series.partition(|line| line.contains(",name=\""));
    (of_objects.len(), others.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_objects_have_their_series_and_take_them_with_them() {
    let stage = Stage::new("thousand").await;
    let mut operator = stage
        .operator()
        .flag("--token-requests-per-second=1000")
        .flag("--token-concurrency=64")
        .flag("--log-level=info")
        .start()
        .await;
    let (_, empty) = operator.get("/metrics").await.unwrap();
    let making = futures::stream::iter(0..OBJECTS).map(|number| {
        let stage = &stage;
        async move { stage.subscribe(&format!("payments-{number}"), json!({})).await }
    });
    let made = making.buffer_unordered(16).count().await;
    assert_eq!(made, OBJECTS);
    let full = until(&mut operator, "all have a token", |text| {
        text.matches("condition=\"Ready\",status=\"True\"} 1").count() == OBJECTS
            && series(text).0 == OBJECTS * SERIES_OF_OBJECT
    });
    let full = full.await;
    stage.credentials().delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
    let emptied = until(&mut operator, "no series is left", |text| series(text).0 == 0).await;
    let rows = [("before", &empty), ("with 1,000 objects", &full), ("after deleting them", &emptied)];
    for (when, text) in rows {
        let (of_objects, others) = series(text);
        let memory = text.lines().find_map(|line| line.strip_prefix("process_resident_memory_bytes ")).unwrap();
        println!("{when}: {of_objects} series of objects, {others} others, {} bytes; memory {memory}", text.len());
    }
    println!("series of each object: {}", series(&full).0 / OBJECTS);
    assert_eq!(series(&empty).1, series(&full).1, "the others do not depend on how many objects there are");
    assert_eq!(series(&empty), series(&emptied));
    operator.stop().await;
}

async fn until(operator: &mut Operator<'_>, what: &str, holds: impl Fn(&str) -> bool) -> String {
    let started = Instant::now();
    loop {
        let (_, text) = operator.get("/metrics").await.expect("metrics");
        if holds(&text) {
            return text;
        }
        assert!(started.elapsed() < SOON * 4, "{what}: never; {:?} series", series(&text));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

// ---- With a real Prometheus ------------------------------------------------------------------------------------------

/// An operator of its own, whose metrics carry the label `cluster`.
struct Installation<'a> {
    cluster: &'static str,
    stage: &'a Stage,
}

/// Every rule, soon: it must hold for a second, and a leader must have led for as long.
fn rules_soon(cluster: &str) -> Value {
    let rules = chart::rules(&soon(cluster)).to_string();
    assert!(rules.contains("offset 1m"), "{rules}");
    serde_json::from_str(&rules.replace("offset 1m", "offset 1s")).unwrap()
}

fn soon(cluster: &str) -> Value {
    let alert = |more: Value| {
        let mut alert = json!({"for": "1s"});
        alert.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        alert
    };
    let mut alerts = json!({});
    for name in [
        "tokenExpired",
        "credentialsRejected",
        "notReady",
        "endpointFailing",
        "throttled",
        "watchFailing",
        "noLeader",
        "absent",
    ] {
        alerts[name] = alert(json!({}));
    }
    alerts["refreshOverdue"] = alert(json!({"threshold": 0.1}));
    alerts["tokenExpiring"] = alert(json!({"threshold": 0.3}));
    json!({"interval": "1s", "matchers": format!("cluster=\"{cluster}\""), "alerts": alerts})
}

fn target(operator: &mut Operator<'_>, cluster: Option<&str>) -> Target {
    let mut labels = json!({"namespace": "moneygo-system"});
    if let Some(cluster) = cluster {
        labels["cluster"] = cluster.into();
    }
    Target { address: operator.address().expect("an address"), labels }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_alert_fires_and_resolves_and_every_panel_has_data() {
    let stages = tokio::join!(Stage::new("tokens"), Stage::new("endpoint"), Stage::new("lease"), Stage::new("watches"));
    let installations = [
        Installation { cluster: "tokens", stage: &stages.0 },
        Installation { cluster: "endpoint", stage: &stages.1 },
        Installation { cluster: "lease", stage: &stages.2 },
        Installation { cluster: "watches", stage: &stages.3 },
    ];
    let [tokens, endpoint, lease, watches] = &installations;
    let rules: Vec<_> = installations.iter().map(|it| rules_soon(it.cluster)).collect();
    let mut of_tokens = tokens.stage.operator().start().await;
    let mut of_endpoint = endpoint.stage.operator().start().await;
    let mut of_lease = lease.stage.operator().flag("--leader-elect").flag(LEASE).start().await;
    watches.stage.shut_out(&watches.stage.user).await;
    let mut of_watches = watches.stage.operator().spawn();
    for name in ["one", "other"] {
        endpoint.stage.subscribe(name, json!({})).await;
        endpoint.stage.ready(name).await;
    }
    let _ = until(&mut of_lease, "it leads", |text| text.contains("\nmoneygo_leader 1\n")).await;

    let server = Server::start(tokens.stage.plane, &rules).await;
    let of_watches_target = target(&mut of_watches, Some("watches"));
    let with_endpoint = |of_tokens: &mut Operator<'_>, of_lease: &mut Operator<'_>, more: Option<Target>| {
        let always = [
            of_watches_target.clone(),
            target(of_tokens, Some("tokens")),
            // The same without the label, as most Prometheus servers scrape it.
            target(of_tokens, None),
            target(of_lease, Some("lease")),
        ];
        server.scrape(&always.into_iter().chain(more).collect::<Vec<_>>());
    };
    let scraped = target(&mut of_endpoint, Some("endpoint"));
    with_endpoint(&mut of_tokens, &mut of_lease, Some(scraped));
    // Until it is scraped, it is absent.
    has_rows(&server, "moneygo_leader == 1", 5).await;
    let watch = Watch::new();
    let following = watch.run(&server);
    let playing = async {
        let of_endpoint = async {
            endpoint_fails(endpoint, &watch).await;
            of_endpoint.stop().await;
            with_endpoint(&mut of_tokens, &mut of_lease, None);
            watch.fires("MoneyGoAbsent", "endpoint", "").await;
            let mut again = endpoint.stage.operator().start().await;
            let scraped = target(&mut again, Some("endpoint"));
            with_endpoint(&mut of_tokens, &mut of_lease, Some(scraped));
            watch.resolves("MoneyGoAbsent", "endpoint", "").await;
            again
        };
        let tokens = async {
            tokio::join!(tokens_end(tokens, &watch), clients_are_wrong(tokens, &watch));
        };
        let ((), again, (), ()) =
            tokio::join!(tokens, of_endpoint, nobody_leads(lease, &watch, &server), nothing_is_shown(watches, &watch));
        again
    };
    let again = tokio::select! {
        again = playing => again,
        () = following => unreachable!("it follows for ever"),
    };
    every_alert_was_seen(&rules[0], &watch);
    // With every cluster, and where no series has the label.
    for cluster in [".*", ""] {
        panels_have_data(&server, cluster).await;
    }
    runbooks_ask_what_prometheus_understands(&server).await;
    drop(server);
    for operator in [of_tokens, again, of_lease, of_watches] {
        operator.stop().await;
    }
}

/// One token's refresh comes late, another's not before its end. A third's is suspended, of which nobody is told.
async fn tokens_end(it: &Installation<'_>, watch: &Arc<Watch>) {
    let (stage, cluster) = (it.stage, it.cluster);
    let names = ["late", "dead", "suspended"];
    for name in names {
        stage.moneygo.set_expires_in_of(name, Some(Duration::from_secs(40)));
        stage.subscribe(name, json!({})).await;
        stage.ready(name).await;
        stage.moneygo.script(name, Script::status(429).forever());
    }
    stage.patch("suspended", json!({"spec": {"suspend": true}})).await;
    let mend = async |name: &str| {
        stage.moneygo.clear_scripts_of(name);
        stage.moneygo.set_expires_in_of(name, None);
        stage.request_refresh(name, "mended").await;
    };
    watch.fires("MoneyGoThrottled", cluster, "").await;
    watch.fires("MoneyGoRefreshOverdue", cluster, "late").await;
    watch.fires("MoneyGoTokenExpiring", cluster, "late").await;
    mend("late").await;
    watch.resolves("MoneyGoRefreshOverdue", cluster, "late").await;
    watch.resolves("MoneyGoTokenExpiring", cluster, "late").await;
    watch.fires("MoneyGoTokenExpired", cluster, "dead").await;
    mend("dead").await;
    watch.resolves("MoneyGoTokenExpired", cluster, "dead").await;
    watch.resolves("MoneyGoThrottled", cluster, "").await;
}

/// A client secret that Money-Go does not know any more, and a Secret that is someone else's. All is well with the healthy one.
async fn clients_are_wrong(it: &Installation<'_>, watch: &Arc<Watch>) {
    let (stage, cluster) = (it.stage, it.cluster);
    stage.subscribe("healthy", json!({})).await;
    stage.subscribe("refused", json!({})).await;
    stage.ready("refused").await;
    stage.moneygo.set_secret("refused", "another-secret-of-the-client");
    stage.request_refresh("refused", "now").await;
    let data = [("mine".to_owned(), ByteString(b"not a token".to_vec()))];
    let metadata = ObjectMeta { name: Some("conflicting".to_owned()), ..ObjectMeta::default() };
    stage.apply_secret(&Secret { metadata, data: Some(data.into()), ..Secret::default() }).await;
    stage.subscribe("conflicting", json!({})).await;

    watch.fires("MoneyGoCredentialsRejected", cluster, "refused").await;
    watch.fires("MoneyGoCredentialNotReady", cluster, "conflicting").await;
    stage.moneygo.set_secret("refused", &stage::client_secret_of("refused"));
    stage.request_refresh("refused", "again").await;
    stage.delete_secret("conflicting").await;
    watch.resolves("MoneyGoCredentialsRejected", cluster, "refused").await;
    watch.resolves("MoneyGoCredentialNotReady", cluster, "conflicting").await;
}

async fn endpoint_fails(it: &Installation<'_>, watch: &Arc<Watch>) {
    it.stage.moneygo.set_outage(Some(Outage::Unavailable)).await.unwrap();
    for name in ["one", "other"] {
        it.stage.request_refresh(name, "now").await;
    }
    watch.fires("MoneyGoEndpointFailing", it.cluster, "").await;
    it.stage.moneygo.set_outage(None).await.unwrap();
    watch.resolves("MoneyGoEndpointFailing", it.cluster, "").await;
}

/// The operator may not write its Lease. Meanwhile it tells of no object.
async fn nobody_leads(it: &Installation<'_>, watch: &Arc<Watch>, server: &Server) {
    let objects = format!("moneygo_credential_suspended{{cluster=\"{}\"}}", it.cluster);
    it.stage.subscribe("held", json!({})).await;
    has_rows(server, &objects, 1).await;
    let (user, own) = (&it.stage.user, &it.stage.own_namespace);
    it.stage.plane.forbid(user, own).await.expect("rights that can be taken");
    watch.fires("MoneyGoNoLeader", it.cluster, "").await;
    has_rows(server, &objects, 0).await;
    it.stage.be_at_home(user, own, "moneygo-operator").await;
    watch.resolves("MoneyGoNoLeader", it.cluster, "").await;
    has_rows(server, &objects, 1).await;
}

/// The operator may not watch anything, until it may.
async fn nothing_is_shown(it: &Installation<'_>, watch: &Arc<Watch>) {
    watch.fires("MoneyGoWatchFailing", it.cluster, "").await;
    it.stage.let_in(&it.stage.user).await;
    watch.resolves("MoneyGoWatchFailing", it.cluster, "").await;
}

async fn has_rows(server: &Server, query: &str, wanted: usize) {
    let started = Instant::now();
    while server.query(query).await.len() != wanted {
        assert!(started.elapsed() < SOON, "{query} never has {wanted} rows");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Prints the table of alerts, and whether each was seen. Panics where one was not, or where one fired that should not have.
fn every_alert_was_seen(rules: &Value, watch: &Watch) {
    let (times, tests) = (watch.times(), promtool_tests());
    let examples = watch.fired.lock().unwrap();
    println!("| alert | promtool: fires / is quiet | fired on a real Prometheus, until it resolved |\n|---|---|---|");
    for alert in alerts_in(rules) {
        let name = alert["alert"].as_str().unwrap();
        let (firing, quiet) = tests[name];
        let of_alert = times.iter().filter(|((of, ..), _)| of == name);
        let seen: Vec<_> = of_alert
            .flat_map(|((_, cluster, object), episodes)| {
                let whole = episodes.iter().filter_map(|(from, to)| Some((from.as_secs_f64(), (*to)?.as_secs_f64())));
                whole.map(move |(from, to)| {
                    format!("{from:.0} to {to:.0} s ({})", if object.is_empty() { cluster } else { object })
                })
            })
            .collect();
        assert!(!seen.is_empty(), "{name} was not seen to fire and to resolve: {times:#?}");
        println!("| {name} | {firing} / {quiet} | {} |", seen.join(", "));
        let annotations = &examples[name]["annotations"];
        for text in ["summary", "description", "runbook_url"].map(|annotation| annotations[annotation].as_str()) {
            let text = text.unwrap_or_default();
            assert!(!text.is_empty() && !text.contains("{{") && !text.contains("<no value>"), "{name}: {annotations}");
        }
    }
    for well in ["healthy", "suspended"] {
        let about = times.keys().find(|(.., object)| object == well);
        assert!(about.is_none(), "nothing is wrong with {well}: {about:?}");
    }
}

/// Every panel's query, as Grafana would send it, and how many rows of data it returns.
async fn panels_have_data(server: &Server, cluster: &str) {
    let dashboard = chart::dashboard();
    let panels = dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row");
    println!("| panel, where cluster is {cluster:?} | queries | rows |\n|---|---|---|");
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        let targets = panel["targets"].as_array().unwrap();
        let mut rows = 0;
        for target in targets {
            let mut query = substituted(target["expr"].as_str().unwrap(), cluster);
            // A zero that has no labels would stand beside each of these.
            let is_of_labels = target["legendFormat"].as_str().is_some_and(|legend| legend.contains("{{"));
            assert!(!(is_of_labels && query.ends_with(" or vector(0)")), "{title}: {query}");
            // There is always that. But no refresh may be ahead in a given time.
            if title != "Refreshes ahead" {
                query = query.replace(" or vector(0)", "");
            }
            let found = server.query(&query).await;
            let has_value = |row: &&Value| row["value"][1].as_str().is_some_and(|value| value != "NaN");
            let count = found.iter().filter(has_value).count();
            assert!(count > 0, "{title}: no data from {query}: {found:?}");
            rows += count;
        }
        println!("| {title} | {} | {rows} |", targets.len());
    }
}

/// Of a selector's Pods kubectl shows the last 10 lines, and of 5 Pods at most, if it is not told otherwise.
#[test]
fn the_commands_of_the_runbooks_read_whole_logs() {
    let pages = fs::read_dir(RUNBOOKS).unwrap().map(|page| page.unwrap().path());
    let troubleshooting = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/troubleshooting.md");
    let mut count = 0;
    for page in pages.chain([troubleshooting]) {
        let text = fs::read_to_string(&page).unwrap().replace("\\\n", "");
        for line in text.lines().filter(|line| line.starts_with("kubectl ") && line.contains(" logs --selector ")) {
            for flag in ["--tail=", "--max-log-requests="] {
                assert!(line.contains(flag), "{}: {line}", page.display());
            }
            assert!(!line.contains("| grep") || line.contains("--tail=-1 "), "{}: {line}", page.display());
            count += 1;
        }
    }
    assert!(count >= 6, "{count} commands");
}

/// A query that finds nothing is right where nothing is wrong.
async fn runbooks_ask_what_prometheus_understands(server: &Server) {
    let mut count = 0;
    for page in fs::read_dir(RUNBOOKS).unwrap() {
        let text = fs::read_to_string(page.unwrap().path()).unwrap();
        for block in text.split("```promql\n").skip(1) {
            server.query(block.split("```").next().unwrap()).await;
            count += 1;
        }
    }
    println!("{count} queries of the runbooks are understood");
    assert!(count >= 9, "one of each page");
}

fn substituted(query: &str, cluster: &str) -> String {
    let variables = [("$cluster", cluster), ("$namespace", ".*"), ("$__rate_interval", "30s"), ("$__range", "10m")];
    let query = variables.iter().fold(query.to_owned(), |query, (name, value)| query.replace(name, value));
    assert!(!query.contains('$'), "{query} has a variable that is not known");
    query
}
