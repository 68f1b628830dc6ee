//! The cluster: a client from the kubeconfig, the objects that a command is about, and errors for people.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::time::Duration;

use anyhow::{anyhow, bail};
use jiff::{SignedDuration, Timestamp};
use kube::api::{DynamicObject, GetParams, ListParams, Patch, PatchParams};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::core::ApiResource;
use kube::{Api, Client, Config, ResourceExt as _};
use moneygo_operator::clock::Clock;
use moneygo_operator::crd::{MoneyGoCredential, MoneyGoCredentialSpec};
use moneygo_operator::error::innermost;
use serde_json::Value;

use crate::args::{ClusterArgs, Which};

/// In `managedFields`, for what is written here.
const FIELD_MANAGER: &str = "kubectl-moneygo";
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Longer than a watch is silent: it gets a bookmark about once a minute.
const SILENCE_LIMIT: Duration = Duration::from_secs(90);
/// By how much the clocks of the cluster's machines may differ.
const SERVERS_DIFFER: SignedDuration = SignedDuration::from_secs(30);
/// And the clock here from theirs.
const CLOCKS_DIFFER: SignedDuration = SignedDuration::from_mins(5);
/// Objects of one answer.
const PAGE: u32 = 500;

/// A cluster, and what of it is looked at.
#[derive(Clone)]
pub struct Cluster {
    pub client: Client,
    /// That of -n, or of the context.
    pub namespace: String,
    /// Whether -A was given.
    pub everywhere: bool,
}

impl Cluster {
    /// Reads the kubeconfig. Asks the cluster for nothing yet.
    ///
    /// # Errors
    /// If there is no kubeconfig, or none that can be used.
    pub async fn connect(args: &ClusterArgs) -> anyhow::Result<Self> {
        let mut config = config(args).await?;
        config.connect_timeout = Some(CONNECT_LIMIT);
        config.read_timeout = Some(SILENCE_LIMIT);
        let namespace = args.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client =
            Client::try_from(config).map_err(|error| anyhow!("cannot use the kubeconfig: {}", innermost(&error)))?;
        Ok(Self { client, namespace, everywhere: args.all_namespaces })
    }

    /// The objects of a namespace, in whatever shape they are.
    #[must_use]
    pub fn objects(&self, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &resource())
    }

    /// The objects of the namespace that is looked at, or of all.
    #[must_use]
    pub fn objects_in_view(&self) -> Api<DynamicObject> {
        if self.everywhere { Api::all_with(self.client.clone(), &resource()) } else { self.objects(&self.namespace) }
    }

    /// One object by name, or all in view, or those of them that a selector finds; by namespace and name.
    ///
    /// # Errors
    /// If they cannot be read, or if the one that was named is not there.
    pub async fn find(&self, name: Option<&str>, selector: Option<&str>) -> anyhow::Result<Vec<MoneyGoCredential>> {
        let Some(name) = name else { return self.list(selector).await };
        if self.everywhere {
            let mut named = self.list(None).await?;
            named.retain(|object| object.name_any() == name);
            if named.is_empty() {
                bail!("there is no MoneyGoCredential \"{name}\" in any namespace");
            }
            return Ok(named);
        }
        let found = self.objects(&self.namespace).get(name).await;
        Ok(vec![read(found.map_err(|error| explain(&format!("read {}/{name}", self.namespace), &error))?)])
    }

    async fn list(&self, selector: Option<&str>) -> anyhow::Result<Vec<MoneyGoCredential>> {
        let place = if self.everywhere { "all namespaces".to_owned() } else { self.namespace.clone() };
        let mut params = ListParams::default().limit(PAGE);
        params.label_selector = selector.map(ToOwned::to_owned);
        let mut found = Vec::new();
        loop {
            let page = self.objects_in_view().list(&params).await;
            let page = page.map_err(|error| explain(&format!("list the objects of {place}"), &error))?;
            found.extend(page.items.into_iter().map(read));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => break,
            }
        }
        found.sort_by_key(|object| (object.namespace(), object.name_any()));
        Ok(found)
    }

    /// The objects that a command was given.
    ///
    /// # Errors
    /// As [`find`](Self::find); and if names are given together with -A.
    pub async fn which(&self, which: &Which) -> anyhow::Result<Vec<MoneyGoCredential>> {
        if which.names.is_empty() {
            return self.list(which.selector.as_deref()).await;
        }
        if self.everywhere {
            bail!("names belong to one namespace: give -n, or --all or -l with -A");
        }
        let mut found = Vec::new();
        let mut named = BTreeSet::new();
        for name in which.names.iter().filter(|name| named.insert(*name)) {
            found.extend(self.find(Some(name), None).await?);
        }
        Ok(found)
    }

    /// A merge patch of an object.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn patch(&self, object: &MoneyGoCredential, patch: Value) -> anyhow::Result<MoneyGoCredential> {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let patched = self.objects(&namespace).patch(&name, &params, &Patch::Merge(patch)).await;
        patched.map(read).map_err(|error| explain(&format!("change {namespace}/{name}"), &error))
    }
}

async fn config(args: &ClusterArgs) -> anyhow::Result<Config> {
    let options = KubeConfigOptions { context: args.context.clone(), ..KubeConfigOptions::default() };
    if let Some(path) = &args.kubeconfig {
        let kubeconfig = Kubeconfig::read_from(path).map_err(|error| unusable(&error))?;
        return Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| unusable(&error));
    }
    match Config::from_kubeconfig(&options).await {
        Err(error) if args.context.is_none() && is_absent(&error, std::env::var_os("KUBECONFIG").as_deref()) => {
            Config::incluster().map_err(|_| unusable(&error))
        }
        found => found.map_err(|error| unusable(&error)),
    }
}

/// Whether nobody gave a kubeconfig. One that is given and cannot be used is not passed over: in a Pod the Pod's own account would act.
fn is_absent(error: &KubeconfigError, variable: Option<&OsStr>) -> bool {
    let is_missing = match error {
        KubeconfigError::FindPath => true,
        KubeconfigError::ReadConfig(error, _) => error.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    };
    is_missing && variable.is_none_or(OsStr::is_empty)
}

/// Of a kubeconfig that is no YAML, the parser would show a part, and there are credentials in it.
fn unusable(error: &KubeconfigError) -> anyhow::Error {
    let why = match error {
        KubeconfigError::Parse(_) => "it is not valid YAML".to_owned(),
        error => error.to_string(),
    };
    anyhow!("cannot use the kubeconfig: {why}: look at --kubeconfig, KUBECONFIG and --context")
}

fn resource() -> ApiResource {
    ApiResource::erase::<MoneyGoCredential>(&())
}

/// An object as far as it can be read. Where its spec cannot, it has one here that names no credentials: the schema lets no such in.
#[must_use]
pub fn read(object: DynamicObject) -> MoneyGoCredential {
    object.clone().try_parse().unwrap_or_else(|_| {
        let part = |name: &str| object.data.get(name).cloned();
        let suspend = object.data.pointer("/spec/suspend").and_then(Value::as_bool);
        MoneyGoCredential {
            status: part("status").and_then(|status| serde_json::from_value(status).ok()),
            spec: part("spec")
                .and_then(|spec| serde_json::from_value(spec).ok())
                .unwrap_or_else(|| MoneyGoCredentialSpec { suspend, ..MoneyGoCredentialSpec::default() }),
            metadata: object.metadata,
        }
    })
}

/// What a failed call means, for whoever made it.
#[must_use]
pub fn explain(doing: &str, error: &kube::Error) -> anyhow::Error {
    let kube::Error::Api(status) = error else {
        return anyhow!("cannot {doing}: the cluster does not answer ({})", innermost(error));
    };
    match status.code {
        404 if status.message.contains("could not find the requested resource")
            || status.message.starts_with("404") =>
        {
            anyhow!("cannot {doing}: the cluster knows no MoneyGoCredential: install the operator's chart, or crds/")
        }
        401 => anyhow!("cannot {doing}: the cluster does not know you: log in again, or choose another --context"),
        _ => anyhow!("cannot {doing}: {}", status.message),
    }
}

/// The time of day as the API server tells it: it and the operator are nearer to each other than to the clock here.
#[derive(Debug, Clone, Copy)]
pub struct Time {
    /// By how much the API server's clock is ahead of the one here. Zero where it did not tell.
    ahead: SignedDuration,
    /// By how much the clock of an operator may differ from [`Time::now`].
    pub clocks_differ: SignedDuration,
}

impl Time {
    /// Asks the API server, and falls back on the clock here.
    pub async fn of(client: &Client) -> Self {
        Self::since(server_time(client).await, now())
    }

    fn since(server: Option<Timestamp>, here: Timestamp) -> Self {
        match server {
            Some(server) => Self { ahead: server.duration_since(here), clocks_differ: SERVERS_DIFFER },
            None => Self { ahead: SignedDuration::ZERO, clocks_differ: CLOCKS_DIFFER },
        }
    }

    /// The time now.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        now().checked_add(self.ahead).unwrap_or_else(|_| now())
    }
}

/// The `Date` of an answer, which may be a refusal as well.
async fn server_time(client: &Client) -> Option<Timestamp> {
    let request = kube::core::Request::new("").get("version", &GetParams::default()).ok()?;
    let answer = client.send(request.map(Body::from)).await.ok()?;
    date(answer.headers().get("date")?.to_str().ok()?)
}

fn date(header: &str) -> Option<Timestamp> {
    jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(header).ok()
}

/// The time of day. The operator's clock may be another: what is reckoned with it is for people's eyes.
#[must_use]
pub fn now() -> Timestamp {
    Clock::SYSTEM.now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_clock_is_read_from_its_answer() {
        let server = date("Thu, 26 Nov 2026 04:40:00 GMT").unwrap();
        assert_eq!(server.to_string(), "2026-11-26T04:40:00Z");
        assert_eq!(date("yesterday"), None);
        let here = server.checked_sub(SignedDuration::from_mins(7)).unwrap();
        let time = Time::since(Some(server), here);
        assert_eq!((time.ahead, time.clocks_differ), (SignedDuration::from_mins(7), SERVERS_DIFFER));
        let time = Time::since(None, here);
        assert_eq!((time.ahead, time.clocks_differ), (SignedDuration::ZERO, CLOCKS_DIFFER));
    }

    #[test]
    fn a_kubeconfig_that_is_given_is_not_passed_over() {
        let missing = || KubeconfigError::ReadConfig(std::io::ErrorKind::NotFound.into(), "config".into());
        let given = Some(OsStr::new("config"));
        assert!(is_absent(&missing(), None) && is_absent(&missing(), Some(OsStr::new(""))));
        assert!(is_absent(&KubeconfigError::FindPath, None));
        assert!(!is_absent(&missing(), given) && !is_absent(&KubeconfigError::FindPath, given));
        let unreadable = KubeconfigError::ReadConfig(std::io::ErrorKind::PermissionDenied.into(), "config".into());
        assert!(!is_absent(&unreadable, None), "it is there");
        assert!(!is_absent(&KubeconfigError::CurrentContextNotSet, None), "it is there");
    }
}
