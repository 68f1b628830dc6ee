//! A namespace in which one scenario is played: what is done there, what it looks like, and whether that is right.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use fake_moneygo::{FakeMoneyGo, Grant, TokenState};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::{DeleteParams, DynamicObject, ObjectMeta, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use kube::{Api, ResourceExt as _};
use moneygo_operator::clock::Clock;
use moneygo_operator::crd::{MoneyGoCredential, annotation};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::canary;
use crate::interposer::Interposer;
use crate::replica::{Config, Replica};
use crate::world::{Provider, Scene, World};

/// Without a request or an event for this long, an operator that should act would have.
pub const QUIET: Duration = Duration::from_millis(200);
const POLL: Duration = Duration::from_millis(10);

/// A namespace of its own, and clients of its own at a provider.
#[derive(Clone)]
pub struct Cell<'w> {
    /// What it stands in.
    pub world: &'w World,
    /// Its name; those of its clients begin with it.
    pub namespace: String,
    provider: Provider,
    scene: watch::Receiver<Scene>,
}

/// A kept connection that the server closes as a request is sent says nothing about the operator.
async fn again<T, F: Future<Output = kube::Result<T>>>(call: impl Fn() -> F) -> kube::Result<T> {
    let mut left = 5;
    loop {
        match call().await {
            Err(kube::Error::Service(_) | kube::Error::HyperError(_)) if left > 0 => left -= 1,
            result => return result,
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The client secret of a client, at first.
fn secret_of(client: &str) -> String {
    format!("{}{client}", canary::SECRET_PREFIX)
}

impl<'w> Cell<'w> {
    /// Creates the namespace.
    ///
    /// # Errors
    /// Where the API server does not answer.
    pub async fn open(world: &'w World, provider: Provider) -> anyhow::Result<Self> {
        let metadata = ObjectMeta { generate_name: Some("cell-".to_owned()), ..ObjectMeta::default() };
        let namespace = Namespace { metadata, ..Namespace::default() };
        let namespace =
            again(|| async { Api::all(world.admin.clone()).create(&PostParams::default(), &namespace).await }).await?;
        let namespace = namespace.name_any();
        let scene = world.scenes.of(&namespace);
        Ok(Self { world, namespace, provider, scene })
    }

    /// Is not looked at any more.
    pub fn close(self) {
        self.world.scenes.forget(&self.namespace);
    }

    /// The stand-in that its clients are known to.
    #[must_use]
    pub fn moneygo(&self) -> &'w FakeMoneyGo {
        self.world.moneygo(self.provider)
    }

    /// How an operator for this namespace is started.
    #[must_use]
    pub fn config(&self) -> Config {
        Config::new(&self.namespace, self.moneygo().token_url())
    }

    /// The id of the client of an object.
    #[must_use]
    pub fn client_of(&self, name: &str) -> String {
        format!("{}-{name}", self.namespace)
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.world.admin.clone(), &self.namespace)
    }

    fn objects(&self) -> Api<DynamicObject> {
        let resource = ApiResource::erase::<MoneyGoCredential>(&());
        Api::namespaced_with(self.world.admin.clone(), &self.namespace, &resource)
    }

    /// What is seen now.
    #[must_use]
    pub fn scene(&self) -> Scene {
        self.scene.borrow().clone()
    }
}

/// What is done in it.
impl Cell<'_> {
    /// A client that Money-Go knows, its Secret `NAME-client`, and the object `NAME`.
    ///
    /// # Errors
    /// Where the API server refuses.
    pub async fn subscribe(&self, name: &str, spec: &Value, labels: Value) -> anyhow::Result<()> {
        let client = self.client_of(name);
        self.moneygo().add_client(&client, &secret_of(&client));
        self.store_client(&format!("{name}-client"), &client, &secret_of(&client)).await?;
        self.create_object(name, spec, labels).await
    }

    /// A Secret with a client's id and secret, over what is there.
    ///
    /// # Errors
    /// Where the API server refuses.
    pub async fn store_client(&self, secret: &str, id: &str, client_secret: &str) -> anyhow::Result<()> {
        let value = |text: &str| ByteString(text.as_bytes().to_vec());
        let data = [("client_id".to_owned(), value(id)), ("client_secret".to_owned(), value(client_secret))];
        let metadata = ObjectMeta { name: Some(secret.to_owned()), ..ObjectMeta::default() };
        let secret = Secret { metadata, data: Some(data.into()), ..Secret::default() };
        self.apply_secret(&secret).await
    }

    /// A new client secret, at Money-Go and in the Secret.
    ///
    /// # Errors
    /// Where the API server refuses.
    pub async fn rotate(&self, name: &str) -> anyhow::Result<()> {
        let client = self.client_of(name);
        let rotated = format!("{}-rotated", secret_of(&client));
        self.moneygo().set_secret(&client, &rotated);
        self.store_client(&format!("{name}-client"), &client, &rotated).await
    }

    /// Server-side apply, as the field manager `test`.
    ///
    /// # Errors
    /// Where the API server refuses.
    pub async fn apply_secret(&self, secret: &Secret) -> anyhow::Result<()> {
        let params = PatchParams::apply("test").force();
        again(|| async { self.secrets().patch(&secret.name_any(), &params, &Patch::Apply(secret)).await }).await?;
        Ok(())
    }

    /// Creates an object. Unless `spec` says otherwise, its credentials are in `NAME-client`.
    ///
    /// # Errors
    /// Where the API server refuses.
    pub async fn create_object(&self, name: &str, spec: &Value, labels: Value) -> anyhow::Result<()> {
        let mut spec = spec.clone();
        if spec.get("credentialsRef").is_none() {
            spec["credentialsRef"] = json!({ "name": format!("{name}-client") });
        }
        let object: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "money-go.com/v1alpha1", "kind": "MoneyGoCredential",
            "metadata": {"name": name, "labels": labels}, "spec": spec,
        }))?;
        match again(|| async { self.objects().create(&PostParams::default(), &object).await }).await {
            // The first attempt went through, and its answer was lost.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            created => created.map(drop).context("an object is created"),
        }
    }

    /// A merge patch of an object.
    ///
    /// # Errors
    /// Where the API server refuses.
    pub async fn patch(&self, name: &str, patch: Value) -> anyhow::Result<()> {
        let params = PatchParams { field_manager: Some("test".to_owned()), ..PatchParams::default() };
        again(|| async { self.objects().patch(name, &params, &Patch::Merge(&patch)).await }).await?;
        Ok(())
    }

    /// A merge patch of a Secret.
    ///
    /// # Errors
    /// Where the API server refuses.
    pub async fn patch_secret(&self, name: &str, patch: Value) -> anyhow::Result<()> {
        let params = PatchParams { field_manager: Some("test".to_owned()), ..PatchParams::default() };
        again(|| async { self.secrets().patch(name, &params, &Patch::Merge(&patch)).await }).await?;
        Ok(())
    }

    /// Deletes an object, and returns when the watch shows it gone or ending.
    ///
    /// # Errors
    /// Where the API server refuses.
    pub async fn delete(&self, name: &str) -> anyhow::Result<()> {
        self.objects().delete(name, &DeleteParams::default()).await?;
        let ended =
            |scene: &Scene| scene.objects.get(name).is_none_or(|object| object.metadata.deletion_timestamp.is_some());
        let mut scene = self.scene.clone();
        tokio::time::timeout(Duration::from_secs(20), scene.wait_for(ended))
            .await
            .context("an object is deleted")??;
        Ok(())
    }

    /// Deletes a Secret.
    ///
    /// # Errors
    /// Where the API server refuses.
    pub async fn delete_secret(&self, name: &str) -> anyhow::Result<()> {
        self.secrets().delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Runs an operator without faults until every object that it minds is Ready, then ends it.
    ///
    /// # Errors
    /// Where it does not get there.
    pub async fn set_up(&self, clock: Clock, label_selector: Option<&str>) -> anyhow::Result<()> {
        let config = Config { clock, label_selector: label_selector.map(str::to_owned), ..self.config() };
        let interposer = Interposer::new(self.world.admin.clone());
        let replica = Replica::start(interposer, config)?;
        let started = Instant::now();
        loop {
            let scene = self.scene();
            let selected = |object: &&std::sync::Arc<DynamicObject>| {
                label_selector.is_none_or(|selector| {
                    selector
                        .split_once('=')
                        .is_some_and(|(key, value)| object.labels().get(key).is_some_and(|found| found == value))
                })
            };
            let all_ready = scene.objects.values().filter(selected).all(|object| is_ready(object));
            if all_ready
                && replica.reconciles() > 0
                && replica.interposer.quiet().is_some_and(|quiet| quiet > QUIET / 2)
            {
                break;
            }
            ensure!(started.elapsed() < Duration::from_mins(1), "the setting up does not get there");
            tokio::time::sleep(POLL).await;
        }
        replica.crash().await;
        Ok(())
    }
}

/// The fault-free wait and the looks.
impl Cell<'_> {
    /// Waits until an operator has nothing more to do, and what there is satisfies `holds`.
    ///
    /// # Errors
    /// At the limit, with what there is.
    pub async fn settle(
        &self,
        replica: &Replica,
        quiet: Duration,
        limit: Duration,
        holds: impl Fn(&Scene) -> Result<(), String>,
    ) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            // Where there is nothing to reconcile, none is waited for.
            let has_looked = replica.reconciles() > 0 || self.scene.borrow().objects.is_empty();
            let is_quiet = has_looked && replica.interposer.quiet().is_some_and(|for_| for_ > quiet);
            let verdict = if is_quiet { holds(&self.scene()) } else { Err("it is not quiet".to_owned()) };
            match verdict {
                Ok(()) => return Ok(()),
                Err(why) if started.elapsed() > limit => bail!("not settled within {limit:?}: {why}"),
                Err(_) => tokio::time::sleep(POLL).await,
            }
        }
    }

    /// What is compared between runs: an object and its Secrets without times, versions, uids and tokens.
    #[must_use]
    pub fn picture(&self, scene: &Scene, name: &str) -> Value {
        let object = scene.objects.get(name);
        let target_name = object.and_then(|object| object.data["spec"]["target"]["name"].as_str()).unwrap_or(name);
        let credentials = object
            .and_then(|object| object.data["spec"]["credentialsRef"]["name"].as_str())
            .and_then(|credentials| scene.secrets.get(credentials));
        let other = self.grants(&format!("{name}-other"));
        let tokens: BTreeSet<String> = self.grants(name).into_iter().chain(other).map(|grant| grant.token).collect();
        json!({
            "object": object.map(|object| picture_of_object(object, credentials.map(AsRef::as_ref))),
            "target": scene.secrets.get(target_name).map(|secret| {
                picture_of_secret(secret, object.map(AsRef::as_ref), credentials.map(AsRef::as_ref), &tokens)
            }),
        })
    }

    /// All grants to the client of an object.
    #[must_use]
    pub fn grants(&self, name: &str) -> Vec<Grant> {
        self.moneygo().grants_of(&self.client_of(name))
    }

    /// Every token that ever stood in a Secret.
    #[must_use]
    pub fn stored(&self, scene: &Scene, secret: &str) -> BTreeSet<String> {
        let of_secret = scene.history.iter().filter(|sighting| sighting.name == secret);
        of_secret.flat_map(|sighting| sighting.values.clone()).collect()
    }

    /// What holds at every moment: an object says that it is Ready only of a token that is stored already, and no Secret says
    /// that its token lives longer than it does, but for the `skew` of a clock that is ahead.
    ///
    /// To be asked again for a while where it does not hold: the watch of Secrets may be behind that of objects.
    ///
    /// # Errors
    /// What does not hold.
    pub fn check_history(&self, scene: &Scene, name: &str, secret: &str, skew: Duration) -> Result<(), String> {
        let sightings: Vec<_> = scene.history.iter().filter(|sighting| sighting.name == secret).collect();
        for claim in scene.claims.iter().filter(|claim| claim.name == name) {
            let is_stored = sightings.iter().any(|sighting| {
                sighting.revision < claim.revision && sighting.life.is_some_and(|(issued, _)| issued == claim.issued)
            });
            if !is_stored {
                return Err(format!("the status told of a token of {} before the Secret held it", claim.issued));
            }
        }
        let grants = self.grants(name);
        for sighting in sightings {
            let Some((_, expires)) = sighting.life else { continue };
            for grant in grants.iter().filter(|grant| sighting.values.contains(&grant.token)) {
                let end = Timestamp::try_from(grant.expires + skew).map_err(|error| error.to_string())?;
                if expires > end {
                    return Err(format!("the Secret said that its token lives until {expires}, beyond {end}"));
                }
            }
        }
        Ok(())
    }

    /// Whether the token in a Secret is alive at the provider.
    ///
    /// # Errors
    /// Where it is not, or is not there.
    pub fn check_alive(&self, scene: &Scene, secret: &str) -> Result<(), String> {
        let token = scene.secrets.get(secret).and_then(|secret| token_in(secret)).ok_or("there is no token")?;
        match self.moneygo().state_of(&token, crate::world::now()) {
            TokenState::Alive => Ok(()),
            TokenState::Revoked { .. } => Err("the token in the Secret is revoked".to_owned()),
            other => Err(format!("the token in the Secret is {other:?}")),
        }
    }
}

/// The token of a Secret, under whichever key it is.
#[must_use]
pub fn token_in(secret: &Secret) -> Option<String> {
    let applied = secret.annotations().get(annotation::APPLIED)?;
    let applied: Value = serde_json::from_str(applied).ok()?;
    let value = secret.data.as_ref()?.get(applied["token"].as_str()?)?;
    String::from_utf8(value.0.clone()).ok()
}

/// Whether an object says so of its present generation.
#[must_use]
pub fn is_ready(object: &DynamicObject) -> bool {
    condition(object, "Ready").is_some_and(|ready| {
        ready["status"] == "True" && ready["observedGeneration"].as_i64() == object.metadata.generation
    })
}

/// A condition of an object.
#[must_use]
pub fn condition<'a>(object: &'a DynamicObject, kind: &str) -> Option<&'a Value> {
    object.data["status"]["conditions"].as_array()?.iter().find(|one| one["type"] == kind)
}

fn picture_of_object(object: &DynamicObject, credentials: Option<&Secret>) -> Value {
    let status = &object.data["status"];
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    let conditions: BTreeMap<String, Value> = conditions
        .iter()
        .map(|one| {
            let is_current = one["observedGeneration"].as_i64() == object.metadata.generation;
            (one["type"].as_str().unwrap_or_default().to_owned(), json!([one["status"], one["reason"], is_current]))
        })
        .collect();
    let observed = &status["observedCredentials"];
    let is_current = credentials.is_some_and(|secret| {
        observed["uid"].as_str() == secret.metadata.uid.as_deref()
            && observed["resourceVersion"].as_str() == secret.metadata.resource_version.as_deref()
    });
    json!({
        "ending": object.metadata.deletion_timestamp.is_some(),
        "generation": status["observedGeneration"].as_i64() == object.metadata.generation,
        "conditions": conditions,
        "lifetime": lifetime_secs(&status["issuedAt"], &status["expiresAt"]),
        "refreshAt": status["refreshAt"].is_string(),
        "failing": status["failedAttempts"].is_number(),
        "nextAttemptAt": status["nextAttemptAt"].is_string(),
        "lastHandledRefresh": status["lastHandledRefresh"],
        // Of a target that is not ours nothing need be remembered: not to know is always safe.
        "credentials": if observed.is_null() || !is_ready(object) { json!(null) } else { json!(is_current) },
    })
}

/// To the nearest minute: shorter differences are rounding.
fn lifetime_secs(issued: &Value, expires: &Value) -> Option<i64> {
    let time = |value: &Value| value.as_str().and_then(|text| text.parse::<Timestamp>().ok());
    let lifetime = time(expires)?.duration_since(time(issued)?);
    Some((lifetime.as_secs() + 30) / 60 * 60)
}

fn picture_of_secret(
    secret: &Secret,
    object: Option<&DynamicObject>,
    credentials: Option<&Secret>,
    tokens: &BTreeSet<String>,
) -> Value {
    let annotations: BTreeMap<&String, Value> = secret
        .annotations()
        .iter()
        .map(|(key, value)| (key, picture_of_annotation(key, value, object, credentials)))
        .collect();
    let token = token_in(secret);
    let data: BTreeMap<&String, String> = secret
        .data
        .iter()
        .flatten()
        .map(|(key, value)| {
            let text = String::from_utf8_lossy(&value.0).into_owned();
            let expires = secret.annotations().get(annotation::EXPIRES_AT);
            let shown = match &token {
                Some(token) if text == *token && tokens.contains(token) => "the token".to_owned(),
                Some(token) if text == format!("Bearer {token}") => "Bearer and the token".to_owned(),
                _ if Some(&text) == expires => "its expiry".to_owned(),
                _ if tokens.contains(&text) => "another token".to_owned(),
                _ => text,
            };
            (key, shown)
        })
        .collect();
    let owners: Vec<Value> = secret
        .owner_references()
        .iter()
        .map(|owner| {
            let is_object = object.and_then(|object| object.metadata.uid.as_ref()) == Some(&owner.uid);
            json!([owner.kind, is_object, owner.controller, owner.block_owner_deletion])
        })
        .collect();
    json!({
        "labels": secret.labels(), "annotations": annotations, "owners": owners, "data": data, "type": secret.type_,
        "immutable": secret.immutable,
    })
}

fn picture_of_annotation(
    key: &str,
    value: &str,
    object: Option<&DynamicObject>,
    credentials: Option<&Secret>,
) -> Value {
    let status = |field: &str| object.and_then(|object| object.data["status"][field].as_str()) == Some(value);
    match key {
        annotation::ISSUED_AT => json!(["as the status", status("issuedAt")]),
        annotation::EXPIRES_AT => json!(["as the status", status("expiresAt")]),
        annotation::REFRESH_AT => json!(["as the status", status("refreshAt")]),
        annotation::CREDENTIALS_UID => {
            json!(["current", credentials.and_then(|secret| secret.metadata.uid.as_deref()) == Some(value)])
        }
        annotation::CREDENTIALS_RESOURCE_VERSION => {
            json!([
                "current",
                credentials.and_then(|secret| secret.metadata.resource_version.as_deref()) == Some(value)
            ])
        }
        annotation::TOKEN_HMAC | annotation::CREDENTIALS_HMAC => json!("a digest"),
        annotation::ADOPT => json!(["its own", object.is_none_or(|object| object.name_any() == value)]),
        _ => json!(value),
    }
}

/// What differs between two pictures, for people.
#[must_use]
pub fn difference(wanted: &Value, found: &Value) -> Option<String> {
    fn walk(path: &str, wanted: &Value, found: &Value, into: &mut Vec<String>) {
        match (wanted, found) {
            (Value::Object(a), Value::Object(b)) => {
                let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
                for key in keys {
                    let null = Value::Null;
                    let (a, b) = (a.get(key).unwrap_or(&null), b.get(key).unwrap_or(&null));
                    walk(&format!("{path}.{key}"), a, b, into);
                }
            }
            (a, b) if a != b => into.push(format!("{path}: {b} in place of {a}")),
            _ => {}
        }
    }
    let mut differences = Vec::new();
    walk("", wanted, found, &mut differences);
    (!differences.is_empty()).then(|| differences.join("; "))
}
