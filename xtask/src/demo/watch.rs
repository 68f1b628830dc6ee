//! What a user wants to see: the object becoming Ready, the Secret, and the token being replaced in time.

use std::{
    path::PathBuf,
    pin::Pin,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use futures::{Stream, StreamExt};
use jiff::Timestamp;
use k8s_openapi::{api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{
    Api,
    runtime::{WatchStreamExt, watcher},
};
use moneygo_controlplane::{Leash, Progress};
use moneygo_operator::crd::{ACCESS_TOKEN_KEY, MoneyGoCredential, MoneyGoCredentialStatus};
use tokio::{task::spawn_blocking, time::timeout};

use super::{cluster::Cluster, now, operator::Operator};
use crate::terminal;

const READY_LIMIT: Duration = Duration::from_mins(1);
/// How long an expired token may stay before the demo has failed.
const EXPIRED_LIMIT: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(250);
/// How much of a token is shown.
const SHOWN_CHARS: usize = 4;

const WAITING: &str = "    waiting for Ready";

type Objects = Pin<Box<dyn Stream<Item = watcher::Result<Option<MoneyGoCredential>>> + Send>>;

/// Somebody who looks at the object and its Secret.
pub struct Watch<'a> {
    cluster: &'a Cluster,
    operator: &'a mut Operator,
    leash: &'a Leash,
    kubectl: PathBuf,
    name: String,
    objects: Objects,
    object: Option<MoneyGoCredential>,
    token: Token,
}

/// What is shown of a token.
#[derive(Clone, Default)]
struct Token {
    masked: String,
    issued: Option<Timestamp>,
    expires: Option<Timestamp>,
}

impl<'a> Watch<'a> {
    /// Looks at the object of that name.
    pub fn new(
        cluster: &'a Cluster,
        operator: &'a mut Operator,
        leash: &'a Leash,
        kubectl: PathBuf,
        name: String,
    ) -> Self {
        let api: Api<MoneyGoCredential> = Api::namespaced(cluster.client().clone(), cluster.namespace());
        let objects = Box::pin(watcher::watch_object(api, &name).default_backoff());
        Self { cluster, operator, leash, kubectl, name, objects, object: None, token: Token::default() }
    }

    /// Shows the object until it is Ready, and then its Secret.
    pub async fn until_ready(&mut self) -> anyhow::Result<()> {
        terminal::heading(&format!("kubectl get mgc --namespace {}", self.cluster.namespace()));
        let mut progress = Progress::new(WAITING);
        let (started, mut seen) = (Instant::now(), None);
        while seen.as_ref().is_none_or(|(status, _)| status != "True") {
            self.look().await?;
            let ready = self.condition("Ready").map(|ready| (ready.status.clone(), ready.reason.clone()));
            if ready != seen {
                // Ends the line that is being updated.
                drop(std::mem::replace(&mut progress, Progress::new(WAITING)));
                self.show_row().await?;
                seen = ready;
            }
            if started.elapsed() > READY_LIMIT {
                drop(progress);
                self.operator.show_log();
                bail!("{} is not Ready after {} s: {}", self.name, READY_LIMIT.as_secs(), self.why_not());
            }
            // Mostly there is nothing to wait for.
            if started.elapsed() > TICK * 4 {
                progress.show(seen.as_ref().map_or("", |(_, reason)| reason));
            }
        }
        drop(progress);
        self.token = self.read_token().await?;
        let Token { masked, expires, .. } = &self.token;
        terminal::heading(&format!("The Secret {}", self.target()));
        println!("    {ACCESS_TOKEN_KEY}: {masked}");
        println!("    expires: {}, in {}", time(*expires), left(*expires));
        Ok(())
    }

    /// Waits for the next refresh, which must come before the token expires, and shows it.
    pub async fn until_refreshed(&mut self) -> anyhow::Result<()> {
        terminal::heading("Waiting for the refresh");
        self.refresh(true).await
    }

    /// Shows every refresh, for ever. A user may suspend the object, or delete it: that is no failure.
    pub async fn show_refreshes(&mut self) -> anyhow::Result<()> {
        loop {
            self.refresh(false).await?;
        }
    }

    /// Says when the next token will be asked for.
    pub fn tell_refresh(&self) {
        let at = self.status().and_then(|status| status.refresh_at);
        println!("    the next token will be asked for at {}, in {}", time(at), left(at));
    }

    /// Says what to type next.
    pub fn tell_next(&self) {
        let (namespace, name) = (self.cluster.namespace(), &self.name);
        terminal::heading("What to type next, in another terminal");
        println!("    export KUBECONFIG={}", self.cluster.kubeconfig().display());
        if self.kubectl.is_absolute() {
            println!("    alias kubectl={}", self.kubectl.display());
        }
        println!("    kubectl -n {namespace} get mgc --watch");
        println!("    kubectl -n {namespace} describe mgc {name}");
        println!("    kubectl -n {namespace} delete secret {}    # it comes back at once", self.target());
        println!("    kubectl -n {namespace} annotate mgc {name} money-go.com/refresh-requested=now    # a new token");
        println!("    kubectl explain mgc.spec");
        println!("{}", terminal::bold("Ctrl-C ends the demo, and leaves nothing behind."));
    }

    async fn refresh(&mut self, in_time: bool) -> anyhow::Result<()> {
        let before = self.token.clone();
        let mut progress = Progress::new("   ");
        while self.issued().is_none() || self.issued() == before.issued {
            self.look().await?;
            if in_time && before.expires.is_some_and(|expires| now() > expires + EXPIRED_LIMIT) {
                drop(progress);
                self.operator.show_log();
                bail!("the token has expired and was not refreshed: {}", self.why_not());
            }
            let due = self.status().and_then(|status| status.refresh_at);
            progress.show(&format!("refresh in {}, expiry in {}", left(due), left(before.expires)));
        }
        drop(progress);
        let early = left(before.expires);
        self.token = self.read_token().await?;
        println!("    {ACCESS_TOKEN_KEY}: {} -> {}", before.masked, self.token.masked);
        println!("    expires: {} -> {}", time(before.expires), time(self.token.expires));
        println!("    refreshed {early} before the old token's end");
        self.show_row().await
    }

    /// Waits for the object to change, but not for long.
    async fn look(&mut self) -> anyhow::Result<()> {
        self.operator.check()?;
        // An error is tried again by the stream itself.
        if let Ok(Some(Ok(object))) = timeout(TICK, self.objects.next()).await {
            self.object = object;
        }
        Ok(())
    }

    async fn read_token(&self) -> anyhow::Result<Token> {
        let secrets: Api<Secret> = Api::namespaced(self.cluster.client().clone(), self.cluster.namespace());
        let secret = secrets.get_opt(&self.target()).await.context("cannot read the target Secret")?;
        let token = secret.and_then(|secret| secret.data?.remove(ACCESS_TOKEN_KEY));
        let masked = token.map_or_else(|| "no token".into(), |token| mask(&String::from_utf8_lossy(&token.0)));
        Ok(Token { masked, issued: self.issued(), expires: self.status().and_then(|status| status.expires_at) })
    }

    /// The object, as kubectl shows it.
    async fn show_row(&self) -> anyhow::Result<()> {
        let mut command = Command::new(&self.kubectl);
        command.args(["get", "moneygocredentials", &self.name, "--ignore-not-found", "--request-timeout=10s"]);
        command.args(["--namespace", self.cluster.namespace(), "--kubeconfig"]).arg(self.cluster.kubeconfig());
        // Not in the user's own home.
        command.arg("--cache-dir").arg(self.leash.folder().join("kubectl"));
        let child = self.leash.tie(&mut command).stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let child = child.with_context(|| format!("cannot run {}", self.kubectl.display()))?;
        let output = spawn_blocking(|| child.wait_with_output()).await??;
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            println!("    {line}");
        }
        Ok(())
    }

    fn status(&self) -> Option<&MoneyGoCredentialStatus> {
        self.object.as_ref()?.status.as_ref()
    }

    fn condition(&self, kind: &str) -> Option<&Condition> {
        self.status()?.conditions.iter().find(|condition| condition.type_ == kind)
    }

    fn issued(&self) -> Option<Timestamp> {
        self.status()?.issued_at
    }

    fn target(&self) -> String {
        self.object.as_ref().map_or_else(|| self.name.clone(), |object| object.target_name().to_owned())
    }

    fn why_not(&self) -> String {
        let said = |kind| self.condition(kind).map(|said| format!("{}: {}", said.reason, said.message));
        let mut said: Vec<_> = ["Ready", "Refreshed"].into_iter().filter_map(said).collect();
        said.dedup();
        if said.is_empty() { "the operator has said nothing about it".into() } else { said.join("; ") }
    }
}

/// The beginning of a token: enough to tell two apart, not enough to use one.
fn mask(token: &str) -> String {
    let shown: String = token.chars().take(SHOWN_CHARS).collect();
    format!("{shown}… ({} characters)", token.chars().count())
}

fn time(at: Option<Timestamp>) -> String {
    at.map_or_else(|| "an unknown time".into(), |at| format!("{at:.0}"))
}

/// How long it is until then.
fn left(until: Option<Timestamp>) -> String {
    let secs = until.map_or(0, |until| until.duration_since(now()).as_secs().max(0));
    match secs {
        0..=119 => format!("{secs} s"),
        120..=7_199 => format!("{} min", secs / 60),
        7_200..=172_799 => format!("{} h", secs / 3_600),
        _ => format!("{} days", secs / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_not_shown() {
        assert_eq!(mask("abcdefgh"), "abcd… (8 characters)");
        assert_eq!(mask(""), "… (0 characters)");
    }

    #[test]
    fn what_is_left_is_never_negative() {
        assert_eq!(left(Some(Timestamp::UNIX_EPOCH)), "0 s");
        assert_eq!(left(None), "0 s");
    }
}
