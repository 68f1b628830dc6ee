//! The floor: what the operator's calls cost where nothing but the calls is done. A bare client that, as its watch brings each object, reads both
//! Secrets, asks for a token, and writes the Secret, the status and the event. It trusts everyone, and does nothing twice. On request it watches
//! the Secrets, too, and does the same for one that is deleted.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::future::try_join;
use futures::stream::BoxStream;
use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::PartialObjectMeta;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::watcher;
use kube::{Api, Client, Config, ResourceExt as _};
use moneygo_operator::crd::MoneyGoCredential;
use moneygo_operator::events;
use moneygo_operator::schedule::Life;
use moneygo_operator::secret::{self, Content, Issue, Owner, Ownership, Version};
use moneygo_operator::token::AccessToken;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Semaphore;

/// How the floor is run: by the bench itself, in a process of its own.
#[derive(clap::Args)]
pub struct Options {
    /// Whom to be
    #[arg(long)]
    kubeconfig: PathBuf,
    /// Where tokens are asked for
    #[arg(long)]
    token_url: String,
    /// Objects at the same time
    #[arg(long)]
    concurrency: usize,
    /// Whether targets that are deleted are made again
    #[arg(long)]
    mend: bool,
}

#[derive(Deserialize)]
struct Answer {
    access_token: String,
    expires_in: u64,
}

struct Floor {
    client: Client,
    http: reqwest::Client,
    token_url: String,
}

/// Serves every object once, until it is killed.
///
/// # Errors
/// Where any call fails: a figure of a floor with failures would mean nothing.
pub async fn run(options: Options) -> Result<()> {
    let kubeconfig = Kubeconfig::read_from(&options.kubeconfig)?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.default_retry = false;
    let http = reqwest::Client::builder().no_proxy().build()?;
    let floor = Arc::new(Floor { client: Client::try_from(config)?, http, token_url: options.token_url });
    let slots = Arc::new(Semaphore::new(options.concurrency));
    let (failed, mut failures) = tokio::sync::mpsc::channel(1);
    let mut known = Known { seen: HashSet::new(), to_mend: options.mend.then(HashMap::new) };
    let objects: Api<MoneyGoCredential> = Api::all(floor.client.clone());
    let mut events = std::pin::pin!(watcher::watcher(objects, watcher::Config::default()));
    let mut targets = if options.mend { floor.targets() } else { stream::pending().boxed() };
    loop {
        let object = tokio::select! {
            event = events.next() => known.for_serving(event.context("the watch ended")??),
            event = targets.next() => known.for_mending(&event.context("the watch ended")??),
            failure = failures.recv() => return failure.map_or(Ok(()), Err),
        };
        let Some(object) = object else { continue };
        let slot = Arc::clone(&slots).acquire_owned().await?;
        let (floor, failed) = (Arc::clone(&floor), failed.clone());
        tokio::spawn(async move {
            if let Err(error) = floor.serve(&object).await {
                let _ = failed.send(error).await;
            }
            drop(slot);
        });
    }
}

/// What the watches brought.
struct Known {
    seen: HashSet<Option<String>>,
    /// By namespace and name; only where deleted targets are made again, for it costs memory.
    to_mend: Option<HashMap<(String, String), MoneyGoCredential>>,
}

impl Known {
    fn for_serving(&mut self, event: watcher::Event<MoneyGoCredential>) -> Option<MoneyGoCredential> {
        let (watcher::Event::Apply(object) | watcher::Event::InitApply(object)) = event else { return None };
        if let Some(objects) = &mut self.to_mend {
            objects.insert((object.namespace().unwrap_or_default(), object.name_any()), object.clone());
        }
        (object.status.is_none() && self.seen.insert(object.uid())).then_some(object)
    }

    fn for_mending(&self, event: &watcher::Event<PartialObjectMeta<Secret>>) -> Option<MoneyGoCredential> {
        let watcher::Event::Delete(target) = event else { return None };
        self.to_mend.as_ref()?.get(&(target.namespace().unwrap_or_default(), target.name_any())).cloned()
    }
}

type Targets = BoxStream<'static, watcher::Result<watcher::Event<PartialObjectMeta<Secret>>>>;

impl Floor {
    fn targets(&self) -> Targets {
        let targets: Api<PartialObjectMeta<Secret>> = Api::all(self.client.clone());
        watcher::watcher(targets, watcher::Config::default()).boxed()
    }

    async fn serve(&self, object: &MoneyGoCredential) -> Result<()> {
        let namespace = object.namespace().unwrap_or_default();
        let spec = object.resolve().map_err(|problem| anyhow::anyhow!("{problem:?}"))?;
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &namespace);
        let (credentials, target) = try_join(secrets.get(&spec.credentials), secrets.get_opt(&spec.target)).await?;
        anyhow::ensure!(target.is_none(), "the floor is for what is new");
        let asked_at = Timestamp::now();
        let (id, client_secret) =
            secret::read_credentials(&credentials, &spec).map_err(|problem| anyhow::anyhow!("{problem:?}"))?;
        let grant = json!({"grant_type": "client_credentials", "client_id": id, "client_secret": client_secret, "scope": spec.scope});
        let answer = self.http.post(&self.token_url).json(&grant).send().await?.error_for_status()?;
        let answer: Answer = answer.json().await?;
        let token = AccessToken::new(answer.access_token).context("no token")?;
        let issue = Issue {
            life: Life::new(asked_at, Duration::from_secs(answer.expires_in)),
            scope: spec.scope.clone(),
            refresh_handled: None,
            credentials: Version::of(&credentials.metadata),
            credentials_digest: None,
        };
        let owner =
            Owner { namespace: namespace.clone(), name: object.name_any(), uid: object.uid().unwrap_or_default() };
        let content = Content { token: token.expose(), issue: &issue };
        let secret = secret::compose(None, &owner, &spec, content, None, Ownership::AsWanted);
        secrets.create(&PostParams::default(), &secret).await?;
        let statuses: Api<MoneyGoCredential> = Api::namespaced(self.client.clone(), &namespace);
        let (name, object) = (object.name_any(), with_status(object, &spec.target, &issue)?);
        let params = PostParams::default();
        try_join(statuses.replace_status(&name, &params, &object), self.tell(&owner, &spec.target, &issue)).await?;
        Ok(())
    }

    async fn tell(&self, owner: &Owner, target: &str, issue: &Issue) -> kube::Result<()> {
        let event = Event {
            type_: EventType::Normal,
            reason: "TokenIssued".to_owned(),
            note: Some(format!("the Secret \"{target}\" holds a token that expires at {}", issue.life.expires_at)),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        let reporter = Reporter { controller: "floor".to_owned(), instance: None };
        // Its memory of earlier events would only cost.
        Recorder::new(self.client.clone(), reporter).publish(&event, &events::regarding(owner)).await
    }
}

/// As much as the operator writes.
fn with_status(object: &MoneyGoCredential, target: &str, issue: &Issue) -> Result<MoneyGoCredential> {
    let generation = object.metadata.generation;
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": message, "observedGeneration": generation,
            "lastTransitionTime": issue.life.issued_at,
        })
    };
    let status = json!({
        "observedGeneration": generation,
        "targetName": target,
        "issuedAt": issue.life.issued_at,
        "expiresAt": issue.life.expires_at,
        "refreshAt": issue.life.expires_at,
        "observedCredentials": {"uid": issue.credentials.uid, "resourceVersion": object.resource_version()},
        "conditions": [
            condition("Ready", "True", "TokenValid", "the Secret holds a token that has not expired"),
            condition("Refreshed", "True", "Succeeded", "the last attempt brought a token"),
            condition("Stalled", "False", "Progressing", "nothing stands in the way"),
        ],
    });
    let metadata = ObjectMeta { managed_fields: None, ..object.metadata.clone() };
    Ok(MoneyGoCredential { metadata, status: serde_json::from_value(status)?, spec: object.spec.clone() })
}
