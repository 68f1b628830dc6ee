//! Edits of the spec, in any number and order: what comes of them is what a fresh object with the last spec comes to
//! (the oracle of Acto, SOSP 2023).

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use futures::StreamExt as _;
use kube::ResourceExt as _;
use serde_json::{Map, Value, json};

use crate::canary;
use crate::cell::{Cell, difference, is_ready, token_in};
use crate::interposer::Interposer;
use crate::random::Draws;
use crate::replica::Replica;
use crate::tally::Tally;
use crate::world::{Provider, World};

/// How many objects one operator minds at once.
const OBJECTS: usize = 16;
const MOST_EDITS: usize = 6;
/// Grants that follow edits have an allowance: three at once, then one in ten seconds.
const LIMIT: Duration = Duration::from_secs(150);
const STABLE: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(100);

/// One sequence of edits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequence {
    seed: u64,
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "edits:{}", self.seed)
    }
}

impl FromStr for Sequence {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let Some(("edits", seed)) = text.split_once(':') else { bail!("a sequence is edits:SEED") };
        Ok(Self { seed: seed.parse()? })
    }
}

/// A field of the spec: where it stands, and what it may be.
struct Field {
    path: &'static [&'static str],
    values: fn(&str) -> Vec<Value>,
}

const FIELDS: [Field; 11] = [
    Field {
        path: &["credentialsRef", "name"],
        values: |name| vec![json!(format!("{name}-client")), json!(format!("{name}-alt"))],
    },
    Field { path: &["credentialsRef", "clientIdKey"], values: |_| vec![Value::Null, json!("id")] },
    Field { path: &["credentialsRef", "clientSecretKey"], values: |_| vec![Value::Null, json!("key")] },
    Field { path: &["scope"], values: |_| vec![Value::Null, json!("api:read"), json!("api:write")] },
    Field { path: &["suspend"], values: |_| vec![Value::Null, json!(true)] },
    Field { path: &["target", "accessTokenKey"], values: |_| vec![Value::Null, json!("token"), json!("jwt")] },
    Field { path: &["target", "authorizationKey"], values: |_| vec![Value::Null, json!("header")] },
    Field { path: &["target", "expiresAtKey"], values: |_| vec![Value::Null, json!("expires")] },
    Field { path: &["target", "deletionPolicy"], values: |_| vec![Value::Null, json!("Retain")] },
    Field {
        path: &["target", "labels"],
        values: |_| vec![Value::Null, json!({"team": "a", "tier": null}), json!({"team": "b", "tier": "gold"})],
    },
    Field { path: &["refresh", "renewBeforePercentage"], values: |_| vec![Value::Null, json!(20), json!(60)] },
];

fn nested(path: &[&str], value: Value) -> Value {
    path.iter().rev().fold(value, |inner, key| json!({ *key: inner }))
}

/// RFC 7386.
fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        into.clone_from(patch);
        return;
    };
    if !into.is_object() {
        *into = Value::Object(Map::new());
    }
    let Value::Object(object) = into else { return };
    for (key, value) in patch {
        if value.is_null() {
            object.remove(key);
        } else {
            merge(object.entry(key).or_insert(Value::Null), value);
        }
    }
}

impl Sequence {
    /// The patches, each with the wait before it, in milliseconds.
    fn edits(self, name: &str) -> Vec<(u64, Value)> {
        let mut draws = Draws::new(self.seed);
        let count = 1 + draws.below(MOST_EDITS);
        let mut edits: Vec<(u64, Value)> = (0..count)
            .map(|_| {
                let mut patch = json!({});
                for _ in 0..=draws.below(2) {
                    let field = &FIELDS[draws.below(FIELDS.len())];
                    let values = (field.values)(name);
                    let value = values[draws.below(values.len())].clone();
                    merge_patches(&mut patch, nested(field.path, value));
                }
                (draws.one_of(&[0, 5, 30, 300]), json!({ "spec": patch }))
            })
            .collect();
        // A suspended object keeps what it has, a fresh one has nothing.
        edits.push((draws.one_of(&[0, 30]), json!({"spec": {"suspend": null}})));
        edits
    }
}

/// Nulls are kept: they are what the patch is for.
fn merge_patches(into: &mut Value, patch: Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                merge_patches(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, patch) => *into = patch,
    }
}

/// Both clients of an object, each under two pairs of keys in a Secret of its own.
async fn store_clients(cell: &Cell<'_>, name: &str) -> anyhow::Result<()> {
    for (suffix, of) in [("client", name.to_owned()), ("alt", format!("{name}-other"))] {
        let id = cell.client_of(&of);
        let client_secret = format!("{}{id}", canary::SECRET_PREFIX);
        cell.moneygo().add_client(&id, &client_secret);
        let text = |text: &str| k8s_openapi::ByteString(text.as_bytes().to_vec());
        let data = [("client_id", &id), ("client_secret", &client_secret), ("id", &id), ("key", &client_secret)];
        let secret = k8s_openapi::api::core::v1::Secret {
            metadata: kube::api::ObjectMeta { name: Some(format!("{name}-{suffix}")), ..Default::default() },
            data: Some(data.into_iter().map(|(key, value)| (key.to_owned(), text(value))).collect()),
            ..Default::default()
        };
        cell.apply_secret(&secret).await?;
    }
    Ok(())
}

async fn play(cell: &Cell<'_>, sequence: Sequence) -> anyhow::Result<usize> {
    let (name, fresh) = (format!("e{}", sequence.seed), format!("f{}", sequence.seed));
    store_clients(cell, &name).await?;
    store_clients(cell, &fresh).await?;
    let mut spec = json!({"credentialsRef": {"name": format!("{name}-client")}});
    cell.create_object(&name, &spec, json!({})).await?;
    let edits = sequence.edits(&name);
    for (wait_millis, patch) in &edits {
        tokio::time::sleep(Duration::from_millis(*wait_millis)).await;
        cell.patch(&name, patch.clone()).await.with_context(|| patch.to_string())?;
        merge(&mut spec, &patch["spec"]);
    }
    let used = spec["credentialsRef"]["name"].as_str().unwrap_or_default().to_owned();
    spec["credentialsRef"]["name"] = json!(used.replace(&name, &fresh));
    cell.create_object(&fresh, &spec, json!({})).await?;
    let client = if used.ends_with("-alt") { format!("{name}-other") } else { name.clone() };
    same(cell, &name, &fresh, &client, spec["scope"].as_str().unwrap_or("api")).await?;
    Ok(edits.len())
}

/// Waits until both look the same, and stay so.
async fn same(cell: &Cell<'_>, name: &str, fresh: &str, client: &str, scope: &str) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut since: Option<(Instant, String)> = None;
    loop {
        match compare(cell, name, fresh, client, scope) {
            Ok(version) => {
                let first = since.get_or_insert_with(|| (Instant::now(), version.clone()));
                if first.1 != version {
                    since = None;
                } else if first.0.elapsed() > STABLE {
                    return Ok(());
                }
            }
            Err(why) => {
                ensure!(started.elapsed() < LIMIT, "after {LIMIT:?} it is not as a fresh one: {why}");
                since = None;
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Their versions, where they look the same and the token is that of the last client and scope.
fn compare(cell: &Cell<'_>, name: &str, fresh: &str, client: &str, scope: &str) -> Result<String, String> {
    let scene = cell.scene();
    for one in [name, fresh] {
        let object = scene.objects.get(one).ok_or("no object")?;
        if !is_ready(object) {
            return Err(format!("{one} is not Ready"));
        }
        cell.check_alive(&scene, one)?;
    }
    if let Some(difference) = difference(&cell.picture(&scene, fresh), &cell.picture(&scene, name)) {
        return Err(difference);
    }
    let secret = scene.secrets.get(name).ok_or("no Secret")?;
    let token = token_in(secret).ok_or("no token")?;
    let grants = cell.grants(client);
    let grant = grants.iter().find(|grant| grant.token == token).ok_or("the token is not the last client's")?;
    if grant.scope != scope {
        return Err(format!("the token is for the scope {}", grant.scope));
    }
    let version = |name: &str| scene.objects.get(name).and_then(|object| object.resource_version());
    Ok(format!("{:?} {:?} {:?}", version(name), version(fresh), secret.resource_version()))
}

/// Plays sequences, many objects at once.
///
/// # Errors
/// Where a namespace cannot be had.
pub async fn run(world: &World, sequences: usize, parallel: usize, seed: u64) -> anyhow::Result<Tally> {
    let started = Instant::now();
    let mut tally = Tally::new("edits");
    let all: Vec<Sequence> = (0..sequences as u64).map(|number| Sequence { seed: seed + number }).collect();
    let mut batches = futures::stream::iter(all.chunks(OBJECTS))
        .map(|batch| play_batch(world, batch))
        .buffer_unordered(parallel.div_ceil(OBJECTS).max(1));
    let mut edits = 0;
    while let Some(results) = batches.next().await {
        for (sequence, result) in results? {
            tally.count();
            match result {
                Ok(count) => edits += count,
                Err(error) => tally.violation(&sequence.to_string(), &format!("{error:#}")),
            }
        }
    }
    tally.note(format!("{edits} edits"));
    tally.took(started.elapsed());
    Ok(tally)
}

async fn play_batch(world: &World, batch: &[Sequence]) -> anyhow::Result<Vec<(Sequence, anyhow::Result<usize>)>> {
    let cell = Cell::open(world, Provider::Independent).await?;
    let replica = Replica::start(Interposer::new(world.admin.clone()), cell.config())?;
    let plays = batch.iter().map(|sequence| async { (*sequence, play(&cell, *sequence).await) });
    let results = futures::future::join_all(plays).await;
    replica.crash().await;
    Ok(results)
}

/// Plays one sequence again.
///
/// # Errors
/// What is wrong.
pub async fn replay(world: &World, sequence: Sequence) -> anyhow::Result<()> {
    for (wait_millis, patch) in sequence.edits("NAME") {
        println!("  after {wait_millis} ms: {patch}");
    }
    for (_, result) in play_batch(world, &[sequence]).await? {
        result?;
    }
    Ok(())
}
