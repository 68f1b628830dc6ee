//! The cluster that `KUBECONFIG` names, by kubectl and Helm: as users have it.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use moneygo_controlplane::{Binaries, Release, helm};
use serde_json::{Value, json};
use tokio::{process::Command, task::spawn_blocking, time::sleep};

use super::command::{fed, printed};
use crate::{checkout, tools};

/// How long one command may take.
const LIMIT: Duration = Duration::from_mins(3);
/// What kubectl itself waits for at most.
const WAIT: &str = "--timeout=120s";
const POLL: Duration = Duration::from_millis(500);

/// kubectl and Helm.
pub struct Cluster {
    kubectl: PathBuf,
    helm: PathBuf,
    /// Where they may write.
    folder: PathBuf,
}

impl Cluster {
    /// Finds the programs, or builds them.
    pub async fn connect(folder: &Path) -> anyhow::Result<Self> {
        let find = || {
            let kubectl = if tools::is_found("kubectl", "help") {
                PathBuf::from("kubectl")
            } else {
                Binaries::locate(Release::chosen()?)?.kubectl
            };
            anyhow::Ok((kubectl, helm()?))
        };
        let (kubectl, helm) = spawn_blocking(find).await??;
        Ok(Self { kubectl, helm, folder: folder.to_owned() })
    }

    /// What kubectl prints.
    pub async fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.kubectl_with(arguments, "").await
    }

    async fn kubectl_with(&self, arguments: &[&str], input: &str) -> anyhow::Result<String> {
        let mut command = Command::new(&self.kubectl);
        command.env("KUBECACHEDIR", self.folder.join("kubectl"));
        let said = fed(command.args(arguments), input, LIMIT).await;
        said.with_context(|| format!("kubectl {}", arguments.join(" ")))
    }

    /// The same as JSON.
    pub async fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let printed = self.kubectl(&[arguments, &["--output=json"]].concat()).await?;
        serde_json::from_str(&printed).with_context(|| format!("kubectl {} printed no JSON", arguments.join(" ")))
    }

    /// What the API server answers for that path.
    pub async fn raw(&self, path: &str) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.kubectl(&["get", "--raw", path]).await?)?)
    }

    /// Creates the objects in that namespace. One that is there already is an error.
    pub async fn create(&self, namespace: &str, objects: &[Value]) -> anyhow::Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
        let create = ["create", "--validate=strict", "--namespace", namespace, "--filename=-"];
        self.kubectl_with(&create, &list).await.map(drop)
    }

    /// Waits for a condition: `--for=…`.
    pub async fn wait(&self, namespace: &str, what: &str, condition: &str) -> anyhow::Result<()> {
        self.kubectl(&["wait", "--namespace", namespace, what, condition, WAIT]).await.map(drop)
    }

    /// Waits until all Pods of a Deployment are as it says, and ready.
    pub async fn rolled_out(&self, namespace: &str, deployment: &str) -> anyhow::Result<()> {
        let name = format!("deployment/{deployment}");
        self.kubectl(&["rollout", "status", "--namespace", namespace, &name, WAIT]).await.map(drop)
    }

    /// Installs or upgrades the chart of this checkout.
    pub async fn helm(&self, command: &str, release: &str, namespace: &str, values: &Value) -> anyhow::Result<()> {
        let chart = checkout().join("charts/moneygo-operator").display().to_string();
        let arguments = [command, release, &chart, "--namespace", namespace, "--values=-", "--wait=hookOnly"];
        fed(self.helm_command().args(arguments), &values.to_string(), LIMIT).await.map(drop)
    }

    /// Removes the release, if there is one.
    pub async fn uninstall(&self, release: &str, namespace: &str) -> anyhow::Result<()> {
        let arguments = ["uninstall", release, "--namespace", namespace, "--ignore-not-found"];
        printed(self.helm_command().args(arguments), LIMIT).await.map(drop)
    }

    fn helm_command(&self) -> Command {
        let mut command = Command::new(&self.helm);
        for (name, folder) in [("HELM_CACHE_HOME", "cache"), ("HELM_CONFIG_HOME", "config"), ("HELM_DATA_HOME", "data")]
        {
            command.env(name, self.folder.join("helm").join(folder));
        }
        command
    }
}

/// Waits until it is so, and returns how long that took.
pub async fn until(what: &str, limit: Duration, mut is_so: impl AsyncFnMut() -> bool) -> anyhow::Result<Duration> {
    let started = Instant::now();
    while !is_so().await {
        if started.elapsed() > limit {
            bail!("after {} s it is still not so that {what}", limit.as_secs());
        }
        sleep(POLL).await;
    }
    Ok(started.elapsed())
}
