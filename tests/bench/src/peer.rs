//! The peer: External Secrets with its `Webhook` generator, given the same work in the same run.
//!
//! For each client it has what a person would write: the Secret with the client's id and secret, a `Webhook` that posts them to the
//! endpoint, and an `ExternalSecret` that writes the answer into a Secret.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::Resource as _;
use serde::Deserialize as _;
use serde_json::{Value, json};

use crate::fill::{Filling, longest_pause};
use crate::restart::{Settled, restart_peer};
use crate::subject::{Subject, Who};
use crate::world::{Rights, World, client_of, credentials_of, each, post, target_of};

/// All of its objects are in one: reconciles share one generator, and look a client's Secret up in each other's namespace where there are
/// several.
const NAMESPACE: &str = "peer";
/// Its own label for a Secret that a `Webhook` may use.
const USABLE: (&str, &str) = ("external-secrets.io/type", "webhook");
const API: &str = "external-secrets.io/v1";
const GENERATORS: &str = "generators.external-secrets.io/v1alpha1";
/// An object may take this much: the peer does fewer than a hundred a second, and slows as it grows.
const LIMIT_EACH: Duration = Duration::from_millis(120);
const LIMIT_LEAST: Duration = Duration::from_mins(3);
/// It is done when nothing was written for this long.
const QUIET: Duration = Duration::from_secs(5);

/// Where it is.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its program, of `external-secrets`' main package.
    pub program: PathBuf,
    /// Its CRDs: `deploy/crds/bundle.yaml`.
    pub crds: PathBuf,
}

impl Peer {
    /// Fills a world of its own with as many objects as that, `concurrency` at once; is then started anew so many times; and ends it.
    ///
    /// # Errors
    /// If it cannot be run, or they are not all served in time.
    pub async fn fill(&self, objects: usize, concurrency: usize, restarts: usize) -> Result<(Filling, Vec<Settled>)> {
        let world = World::start(Rights::All).await?;
        let bundle = std::fs::read_to_string(&self.crds).context("the peer's CRDs cannot be read")?;
        for definition in serde_yaml::Deserializer::from_str(&bundle) {
            let definition = Value::deserialize(definition).context("the peer's CRDs are not YAML")?;
            if definition["kind"] == "CustomResourceDefinition" {
                world.plane.install_crd(&definition.to_string()).await?;
            }
        }
        populate(&world, objects).await?;
        let filling = serve(&world, &self.program, objects, concurrency).await?;
        let mut restarted = Vec::new();
        for _ in 0..restarts {
            let who = Who::Peer { program: &self.program, concurrency };
            restarted.push(restart_peer(&world, &who).await?);
        }
        world.end().await?;
        Ok((filling, restarted))
    }
}

async fn populate(world: &World, objects: usize) -> Result<()> {
    world.add_namespace(NAMESPACE).await?;
    each(0..objects, async |number| add_credentials(world, number).await).await?;
    each(0..objects, async |number| {
        let path = format!("/apis/{GENERATORS}/namespaces/{NAMESPACE}/webhooks");
        post(&world.admin, &path, &webhook(number, &world.moneygo.token_url())).await
    })
    .await?;
    each(0..objects, async |number| {
        let path = format!("/apis/{API}/namespaces/{NAMESPACE}/externalsecrets");
        post(&world.admin, &path, &external_secret(number)).await
    })
    .await
}

async fn add_credentials(world: &World, number: usize) -> Result<()> {
    let mut secret = credentials_of(number);
    secret.metadata.labels = Some([(USABLE.0.to_owned(), USABLE.1.to_owned())].into());
    post(&world.admin, &Secret::url_path(&(), Some(NAMESPACE)), &secret).await
}

fn webhook(number: usize, token_url: &str) -> Value {
    let body = json!({
        "grant_type": "client_credentials",
        "client_id": "{{ .client.client_id }}",
        "client_secret": "{{ .client.client_secret }}",
        "scope": "api",
    });
    json!({
        "apiVersion": GENERATORS,
        "kind": "Webhook",
        "metadata": {"name": client_of(number)},
        "spec": {
            "method": "POST",
            "url": token_url,
            "headers": {"Content-Type": "application/json"},
            "body": body.to_string(),
            "result": {"jsonPath": "$"},
            "secrets": [{"name": "client", "secretRef": {"name": client_of(number)}}],
        },
    })
}

fn external_secret(number: usize) -> Value {
    json!({
        "apiVersion": API,
        "kind": "ExternalSecret",
        "metadata": {"name": target_of(number)},
        "spec": {
            // Two thirds of 30 days.
            "refreshInterval": "480h",
            "target": {"name": target_of(number)},
            "dataFrom": [{"sourceRef": {
                "generatorRef": {"apiVersion": GENERATORS, "kind": "Webhook", "name": client_of(number)},
            }}],
        },
    })
}

async fn serve(world: &World, program: &Path, objects: usize, concurrency: usize) -> Result<Filling> {
    world.rest().await?;
    let (before, mut tail) = (world.servers()?, world.tail()?);
    let limit = LIMIT_LEAST.max(LIMIT_EACH * u32::try_from(objects)?);
    let (started, started_at) = (Instant::now(), Timestamp::now());
    let subject = Subject::start(world, &Who::Peer { program, concurrency })?;
    tail.until("create secrets", objects as u64, limit).await.with_context(|| subject.last_words())?;
    loop {
        let last = tail.last_write;
        tokio::time::sleep(QUIET).await;
        tail.follow()?;
        if tail.last_write == last {
            break;
        }
        ensure!(started.elapsed() < limit, "the peer does not come to rest: {:?}", tail.counts);
    }
    let (usage, after) = (subject.usage()?, world.servers()?);
    let ended = tail.last_write.context("the peer wrote nothing")?;
    let filling = Filling {
        seconds: ended.duration_since(started_at).as_secs_f64(),
        settled_bytes: usage.resident,
        grants: world.moneygo.request_count(),
        longest_pause_millis: longest_pause(&mut tail),
        requests: tail.counts,
        ..Filling::spent(objects, usage, before, after)
    };
    subject.kill()?;
    Ok(filling)
}
