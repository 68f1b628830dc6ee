//! `cargo xtask e2e`: the chart on a real cluster, and a Pod that uses a token from a mounted Secret while all is disturbed.

use std::{
    env,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::Args;
use jiff::Timestamp;
use moneygo_controlplane::{Binaries, Leash};
use moneygo_operator::crd::annotation::REFRESH_REQUESTED;
use serde_json::{Value, json};
use tokio::{task::spawn_blocking, time::sleep};

use crate::{
    signals::{INTERRUPTED, Signals},
    terminal,
};

mod cluster;
mod command;
mod counts;
mod images;
mod manifests;
mod memory;
mod watch;

use cluster::{Cluster, until};
use command::printed;
use counts::Counts;
use images::{Builder, Images};
use manifests::{CA, CONSUMER, STAND_IN, TOKEN, values};
use watch::Watch;

const RELEASE: &str = "e2e";
/// The chart's name for all that it makes for this release.
const FULL_NAME: &str = "e2e-moneygo-operator";
/// Where the operator is.
const OPERATOR: &str = "moneygo-e2e-operator";
/// Where the stand-in, the object and the consumer are.
const APPS: &str = "moneygo-e2e-apps";
/// What the operator is not told of in the end.
const OUTSIDE: &str = "moneygo-e2e-outside";
const CRD: &str = "moneygocredentials.money-go.com";
/// Selects the operator's Pods.
const SELECTOR: &str = "--selector=app.kubernetes.io/instance=e2e";

/// Refreshes between two disturbances.
const REFRESHES_BETWEEN: usize = 2;
/// How long the API server is away.
const OUTAGE: Duration = Duration::from_secs(30);
const OUTAGE_COMMAND_LIMIT: Duration = Duration::from_mins(2);
/// For a refresh to be seen: 30 s until it, and a minute and a half of a kubelet that is slow.
const REFRESH_LIMIT: Duration = Duration::from_mins(2);
const SOON: Duration = Duration::from_mins(1);

/// How this cluster is to be handled.
#[derive(Args)]
pub struct Options {
    /// Puts an image into the cluster: a command whose last argument will be the image's archive, as of `docker save`. For instance "kind load image-archive". Without it nothing is built, and the cluster must be able to pull the images
    #[arg(long, value_name = "COMMAND")]
    load_image: Option<String>,
    /// What builds the images: the first of these that is there, where it is not said
    #[arg(long, value_enum)]
    builder: Option<Builder>,
    /// What the images' names begin with
    #[arg(long, value_name = "PREFIX", default_value = "localhost")]
    registry: String,
    /// Takes the API server away and brings it back: a command whose last argument will be "stop" or "start". Without it that part is left out
    #[arg(long, value_name = "COMMAND")]
    apiserver: Option<String>,
    /// How many refreshes the consumer must see
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u8).range(1..))]
    refreshes: u8,
}

/// What has been set up.
#[derive(Default)]
struct Stage {
    leash: Option<Leash>,
    cluster: Option<Cluster>,
    /// Whether the cluster holds something of ours.
    is_used: bool,
    /// Whether the API server is away by our doing.
    is_out: bool,
}

/// Runs the test, and takes down what it has set up, however it ends.
pub fn run(options: &Options) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    let code = runtime.block_on(perform(options));
    runtime.shutdown_background();
    code
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("{} {error:#}", terminal::red("error:"));
    ExitCode::FAILURE
}

async fn perform(options: &Options) -> ExitCode {
    let mut stage = Stage::default();
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => return fail(&error),
    };
    let ended = tokio::select! {
        ended = play(&mut stage, options) => Some(ended),
        () = signals.next() => None,
    };
    let code = match ended {
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(error)) => {
            let code = fail(&error);
            tokio::select! {
                () = stage.explain(options) => {}
                () = signals.next() => {}
            }
            code
        }
        None => ExitCode::from(INTERRUPTED),
    };
    terminal::heading("Cleaning up");
    tokio::select! {
        cleared = stage.clear(options) => match cleared {
            Ok(()) => code,
            Err(error) => fail(&error),
        },
        () = signals.next() => ExitCode::from(INTERRUPTED),
    }
}

async fn play(stage: &mut Stage, options: &Options) -> anyhow::Result<()> {
    let name = format!("moneygo-e2e-{}", std::process::id());
    let leash = stage.leash.insert(Leash::new(env::temp_dir().join(name)).context("cannot make a temporary folder")?);
    let cluster = &*stage.cluster.insert(Cluster::connect(leash.folder()).await?);
    look_at(cluster).await?;
    let images = Images::of(&options.registry);
    if let Some(load) = &options.load_image {
        images.load(options.builder, load, leash).await?;
    }

    stage.is_used = true;
    let address = start_stand_in(cluster, &images).await?;
    let values = values(&images, &address);
    let mut counts = Counts::new(options.refreshes.into());
    counts.install_to_ready = install(cluster, &values).await?;
    counts.start_to_ready_secs = start_to_ready_secs(&operators(cluster).await?);
    subscribe(cluster, &images, &address).await?;

    let mut watch = Watch::new(cluster);
    watch.until_refreshes(REFRESHES_BETWEEN, REFRESH_LIMIT * 2).await?;
    upgrade(cluster, &values).await?;
    watch.until_refreshes(watch.refreshes() + REFRESHES_BETWEEN, REFRESH_LIMIT * 2).await?;
    counts.new_leader = Some(delete_leader(cluster).await?);
    watch.until_refreshes(watch.refreshes() + REFRESHES_BETWEEN, REFRESH_LIMIT * 2).await?;
    if let Some(apiserver) = &options.apiserver {
        counts.outage = Some(outage(cluster, apiserver, &mut stage.is_out).await?);
    } else {
        terminal::heading("LEFT OUT: the API server's being away (--apiserver)");
    }
    let rest = counts.wanted.max(watch.refreshes() + REFRESHES_BETWEEN);
    terminal::heading(&format!("Until refresh {rest}"));
    watch.until_refreshes(rest, REFRESH_LIMIT * 10).await?;

    // Before a token is asked for by request.
    counts.grants = grants(cluster).await?;
    let pods = operators(cluster).await?;
    counts.restarts = restarts(&pods);
    counts.memory = memory::of_pods(cluster, &pods).await.map_err(|error| format!("{error:#}"));
    let left_alone = leave_alone(cluster, &values).await;

    watch.look().await?;
    counts.refused = refused(cluster).await?;
    counts.report = watch.report().clone();
    counts.delays_secs = watch.delays_secs();
    terminal::heading("What was counted");
    println!("{}", counts.table());
    left_alone?;
    let broken = counts.broken();
    ensure!(broken.is_empty(), "{}", broken.join("; "));
    println!("{}", terminal::bold("Every promise was kept."));
    Ok(())
}

/// Nothing of another's is touched: two operators would share its objects.
async fn look_at(cluster: &Cluster) -> anyhow::Result<()> {
    let version = cluster.json(&["version"]).await?;
    let version = version["serverVersion"]["gitVersion"].as_str().unwrap_or("of an unknown version").to_owned();
    terminal::heading(&format!("Using the cluster of KUBECONFIG, Kubernetes {version}"));
    let there = cluster.kubectl(&["get", "crd", CRD, "--ignore-not-found", "--output=name"]).await?;
    ensure!(
        there.is_empty(),
        "{CRD} is there already: this cluster is used by another, or has remains of an earlier run"
    );
    Ok(())
}

/// Returns the address of its Service.
async fn start_stand_in(cluster: &Cluster, images: &Images) -> anyhow::Result<String> {
    terminal::heading("Starting the stand-in for Money-Go; its tokens live for 180 s");
    cluster.create("default", &[OPERATOR, APPS, OUTSIDE].map(manifests::namespace)).await?;
    // A Pod needs its account.
    for namespace in [OPERATOR, APPS, OUTSIDE] {
        until("a namespace has its account", SOON, async || {
            cluster.kubectl(&["get", "serviceaccount", "default", "--namespace", namespace]).await.is_ok()
        })
        .await?;
    }
    cluster.create(APPS, &[manifests::stand_in_service(), manifests::stand_in(images)]).await?;
    cluster.wait(APPS, "pod/stand-in", "--for=condition=Ready").await?;
    let printed = cluster.kubectl(&["logs", STAND_IN, "--namespace", APPS]).await?;
    let end = printed.rfind("https://").context("the stand-in prints no certificate")?;
    for namespace in [OPERATOR, APPS] {
        cluster
            .create(namespace, &[manifests::ca(&printed[..end])])
            .await
            .with_context(|| format!("cannot create {CA}"))?;
    }
    let service = cluster.json(&["get", "service", STAND_IN, "--namespace", APPS]).await?;
    let address = service["spec"]["clusterIP"].as_str().context("the stand-in's Service has no address")?;
    println!("    https://{} ({address})", manifests::host());
    Ok(address.to_owned())
}

async fn install(cluster: &Cluster, values: &Value) -> anyhow::Result<Duration> {
    terminal::heading("helm install, in a namespace that enforces Pod Security `restricted`");
    let started = Instant::now();
    cluster.helm("install", RELEASE, OPERATOR, values).await?;
    cluster.rolled_out(OPERATOR, FULL_NAME).await?;
    let pods = operators(cluster).await?;
    ensure!(pods.len() == 2, "there are {} Pods of the operator, not 2", pods.len());
    println!("    2 Pods are Ready after {}", terminal::time(started.elapsed()));
    Ok(started.elapsed())
}

async fn subscribe(cluster: &Cluster, images: &Images, address: &str) -> anyhow::Result<()> {
    terminal::heading("A client, a MoneyGoCredential, and a Pod that mounts the token");
    cluster.create(APPS, &[manifests::client(), manifests::credential()]).await?;
    cluster.wait(APPS, &format!("mgc/{TOKEN}"), "--for=condition=Ready").await?;
    println!("{}", indented(&cluster.kubectl(&["get", "mgc", "--namespace", APPS]).await?));
    cluster.create(APPS, &[manifests::consumer(images, address)]).await?;
    cluster.wait(APPS, &format!("pod/{CONSUMER}"), "--for=condition=Ready").await
}

async fn upgrade(cluster: &Cluster, values: &Value) -> anyhow::Result<()> {
    terminal::heading("helm upgrade: every Pod is replaced");
    let mut changed = values.clone();
    changed["podAnnotations"] = json!({"e2e": "upgraded"});
    cluster.helm("upgrade", RELEASE, OPERATOR, &changed).await?;
    cluster.rolled_out(OPERATOR, FULL_NAME).await
}

/// Returns how long it took until there was another leader.
async fn delete_leader(cluster: &Cluster) -> anyhow::Result<Duration> {
    let holder = holder(cluster).await.context("no Lease is held")?;
    // The Pod's name and something random.
    let (pod, _) = holder.rsplit_once('_').context("the leader does not say which Pod it is")?;
    terminal::heading("Deleting the leader's Pod");
    cluster.kubectl(&["delete", "pod", pod, "--namespace", OPERATOR, "--wait=false"]).await?;
    let is_replaced = async || self::holder(cluster).await.is_some_and(|now| !now.is_empty() && now != holder);
    let took = until("another Pod leads", SOON, is_replaced).await?;
    println!("    another leads after {}", terminal::time(took));
    cluster.rolled_out(OPERATOR, FULL_NAME).await?;
    Ok(took)
}

async fn holder(cluster: &Cluster) -> Option<String> {
    let leases = cluster.json(&["get", "leases", "--namespace", OPERATOR]).await.ok()?;
    Some(leases["items"][0]["spec"]["holderIdentity"].as_str()?.to_owned())
}

/// Returns how long it was away.
async fn outage(cluster: &Cluster, apiserver: &str, is_out: &mut bool) -> anyhow::Result<Duration> {
    terminal::heading(&format!("Taking the API server away for {} s", OUTAGE.as_secs()));
    let started = Instant::now();
    *is_out = true;
    control(apiserver, "stop").await?;
    ensure!(!answers(cluster).await, "the API server still answers");
    sleep(OUTAGE).await;
    control(apiserver, "start").await?;
    *is_out = false;
    until("the API server answers again", SOON, async || answers(cluster).await).await?;
    let took = started.elapsed();
    println!("    it was away for {}", terminal::time(took));
    Ok(took)
}

async fn answers(cluster: &Cluster) -> bool {
    cluster.kubectl(&["get", "--raw", "/readyz"]).await.is_ok()
}

async fn control(apiserver: &str, what: &str) -> anyhow::Result<()> {
    printed(&mut command::shell(apiserver, what), OUTAGE_COMMAND_LIMIT).await.map(drop)
}

/// The operator's Pods that are to stay.
async fn operators(cluster: &Cluster) -> anyhow::Result<Vec<Value>> {
    let pods = cluster.json(&["get", "pods", "--namespace", OPERATOR, SELECTOR]).await?;
    let pods = pods["items"].as_array().cloned().unwrap_or_default();
    Ok(pods.into_iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect())
}

/// In whole seconds: the API has no finer ones.
fn start_to_ready_secs(pods: &[Value]) -> Vec<f64> {
    let time = |value: &Value| value.as_str()?.parse::<Timestamp>().ok();
    let of_pod = |pod: &Value| {
        let status = &pod["status"];
        let started = time(&status["containerStatuses"][0]["state"]["running"]["startedAt"])?;
        let ready = status["conditions"].as_array()?.iter().find(|condition| condition["type"] == "Ready")?;
        Some(time(&ready["lastTransitionTime"])?.duration_since(started).as_secs_f64())
    };
    pods.iter().filter_map(of_pod).collect()
}

fn restarts(pods: &[Value]) -> u64 {
    pods.iter().filter_map(|pod| pod["status"]["containerStatuses"][0]["restartCount"].as_u64()).sum()
}

/// What is not the operator's, and what is still there when it goes.
async fn leave_alone(cluster: &Cluster, values: &Value) -> anyhow::Result<()> {
    keep_to_a_namespace(cluster, values).await?;
    survive_the_uninstall(cluster).await
}

/// Namespaced mode: the API server refuses what is elsewhere, and the operator does not ask for it.
async fn keep_to_a_namespace(cluster: &Cluster, values: &Value) -> anyhow::Result<()> {
    terminal::heading(&format!("helm upgrade with watchNamespaces={{{APPS}}}"));
    let mut narrow = values.clone();
    narrow["watchNamespaces"] = json!([APPS]);
    cluster.helm("upgrade", RELEASE, OPERATOR, &narrow).await?;
    cluster.rolled_out(OPERATOR, FULL_NAME).await?;
    cluster.create(OUTSIDE, &[manifests::client(), manifests::credential()]).await?;

    let account = format!("--as=system:serviceaccount:{OPERATOR}:{FULL_NAME}");
    let list = async |namespace| {
        cluster.kubectl(&["get", "secrets", "--namespace", namespace, "--output=name", &account]).await
    };
    list(APPS).await.context("the operator may not read what it is to look after")?;
    let refusal =
        list(OUTSIDE).await.err().context("the operator may read Secrets elsewhere")?.root_cause().to_string();
    ensure!(refusal.contains("Forbidden"), "{refusal}");
    println!("{}", indented(&refusal));

    // It works where it should: after this, nothing that it was to notice elsewhere is still on its way.
    let request = format!("{REFRESH_REQUESTED}=e2e");
    cluster.kubectl(&["annotate", "mgc", TOKEN, &request, "--namespace", APPS]).await?;
    cluster.wait(APPS, &format!("mgc/{TOKEN}"), "--for=jsonpath={.status.lastHandledRefresh}=e2e").await?;
    let outside = cluster.json(&["get", "mgc", TOKEN, "--namespace", OUTSIDE]).await?;
    ensure!(outside["status"].is_null(), "the object in {OUTSIDE} has a status");
    for pod in operators(cluster).await? {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let log = cluster.kubectl(&["logs", name, "--namespace", OPERATOR]).await?;
        let said: Vec<_> =
            log.lines().filter(|line| line.contains(OUTSIDE) || line.to_lowercase().contains("forbidden")).collect();
        ensure!(said.is_empty(), "{name} is concerned with what is elsewhere: {}", said.join("\n"));
    }
    println!("    the object there has no status, and no operator's log names its namespace");
    Ok(())
}

async fn survive_the_uninstall(cluster: &Cluster) -> anyhow::Result<()> {
    terminal::heading("helm uninstall: the token stays");
    cluster.uninstall(RELEASE, OPERATOR).await?;
    for kept in [format!("secret/{TOKEN}"), format!("mgc/{TOKEN}"), format!("pod/{CONSUMER}")] {
        cluster.kubectl(&["get", &kept, "--namespace", APPS, "--output=name"]).await?;
    }
    Ok(())
}

/// When the stand-in was asked for the tokens that it gave.
async fn grants(cluster: &Cluster) -> anyhow::Result<Vec<Timestamp>> {
    let requests = cluster.raw(&stand_in_path("requests")).await?;
    let requests = requests["requests"].as_array().context("the stand-in does not tell of its requests")?;
    let granted = requests.iter().filter(|request| !request["grant"].is_null());
    let time = |request: &Value| Ok(request["received_at"].as_str().unwrap_or_default().parse()?);
    granted.map(time).collect()
}

/// How many calls the stand-in refused.
async fn refused(cluster: &Cluster) -> anyhow::Result<u64> {
    let counts = cluster.raw(&stand_in_path("counts")).await?;
    counts["protected"]["refused"].as_u64().context("the stand-in does not say what it refused")
}

/// Through the API server.
fn stand_in_path(of: &str) -> String {
    format!("/api/v1/namespaces/{APPS}/services/https:{STAND_IN}:443/proxy/_admin/{of}")
}

fn indented(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(|line| format!("    {line}")).collect();
    lines.join("\n")
}

impl Stage {
    /// What a person needs to know after a failure: no Secret is shown.
    async fn explain(&mut self, options: &Options) {
        self.bring_back(options).await;
        let Some(cluster) = self.cluster.as_ref().filter(|_| self.is_used) else { return };
        let consumer = ["logs", CONSUMER, "--namespace", APPS, "--tail=1"];
        let operator = ["logs", SELECTOR, "--namespace", OPERATOR, "--prefix", "--tail=40"];
        for arguments in [
            &["get", "pods,mgc", "--namespace", OPERATOR, "--output=wide"][..],
            &["get", "pods,mgc", "--namespace", APPS, "--output=wide"],
            &["events", "--namespace", OPERATOR],
            &["events", "--namespace", APPS],
            &consumer,
            &operator,
        ] {
            eprintln!("{}", terminal::bold(&format!("kubectl {}", arguments.join(" "))));
            let said = cluster.kubectl(arguments).await.unwrap_or_else(|error| format!("{error:#}"));
            eprintln!("{}", indented(&said));
        }
    }

    async fn bring_back(&mut self, options: &Options) {
        if let Some(apiserver) = options.apiserver.as_ref().filter(|_| self.is_out) {
            match control(apiserver, "start").await {
                Ok(()) => self.is_out = false,
                Err(error) => eprintln!("{} the API server stays away: {error:#}", terminal::red("error:")),
            }
        }
    }

    /// Removes everything, as far as it can be removed.
    async fn clear(mut self, options: &Options) -> anyhow::Result<()> {
        Binaries::abandon();
        self.bring_back(options).await;
        let mut cleared = Ok(());
        if let Some(cluster) = self.cluster.as_ref().filter(|_| self.is_used) {
            let namespaces = ["delete", "namespace", OPERATOR, APPS, OUTSIDE, "--ignore-not-found"];
            cleared = cluster.uninstall(RELEASE, OPERATOR).await;
            cleared = cleared.and(cluster.kubectl(&namespaces).await.map(drop));
            cleared = cleared.and(cluster.kubectl(&["delete", "crd", CRD, "--ignore-not-found"]).await.map(drop));
        }
        spawn_blocking(move || drop(self.leash)).await?;
        cleared.context("something was left in the cluster")
    }
}
