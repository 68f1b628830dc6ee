//! The plugin's process, and what stands beside it on the stage.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use moneygo_controlplane::User;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::{Value, json};

use crate::stage::{Canaries, SOON, Stage, client_secret_of};

const POLL: Duration = Duration::from_millis(100);
/// The Deployments of other tests are seen from everywhere, and last as long as those.
const OTHERS_GO: Duration = Duration::from_mins(3);

/// How a run ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// As it would stand on a terminal.
    pub fn both(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    /// Standard output as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }
}

/// Runs the plugin for one stage, and keeps all that it printed.
pub struct Plugin<'a> {
    stage: &'a Stage,
    printed: Mutex<Vec<(String, String)>>,
}

impl<'a> Plugin<'a> {
    pub fn new(stage: &'a Stage) -> Self {
        Self { stage, printed: Mutex::default() }
    }

    /// Runs it as the administrator, in the stage's namespace.
    pub fn run(&self, args: &[&str]) -> Ran {
        self.run_as(self.stage.plane.kubeconfig(), args, None)
    }

    /// Runs it with a kubeconfig, and with something on its standard input.
    pub fn run_as(&self, kubeconfig: &Path, args: &[&str], input: Option<&str>) -> Ran {
        let mut args = args.to_vec();
        // Of other tests on the same servers.
        if matches!(args.first(), Some(&("check" | "doctor" | "refresh"))) && !args.contains(&"--operator-namespace") {
            args.extend(["--operator-namespace", &self.stage.own_namespace]);
        }
        self.launch(kubeconfig, &args, input)
    }

    /// Runs it with nothing but what is given, and a namespace.
    pub fn launch(&self, kubeconfig: &Path, args: &[&str], input: Option<&str>) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-moneygo"));
        command.args(args).env_clear().env("KUBECONFIG", kubeconfig).env("LANG", "C.UTF-8");
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        if !args.iter().any(|arg| matches!(*arg, "-n" | "-A")) {
            command.args(["-n", &self.stage.namespace]);
        }
        self.stage.plane.tie(&mut command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the plugin's binary runs");
        let mut stdin = child.stdin.take().expect("a pipe");
        let _ = stdin.write_all(input.unwrap_or_default().as_bytes());
        drop(stdin);
        let output = child.wait_with_output().expect("the plugin ends");
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
        let ran = Ran {
            code: output.status.code().expect("an exit code"),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        };
        self.printed.lock().unwrap().push((args.join(" "), ran.both()));
        ran
    }

    /// Runs it again and again, until what it ends with is as wanted.
    pub async fn until(&self, args: &[&str], what: &str, wanted: impl Fn(&Ran) -> bool) -> Ran {
        self.until_of(|| self.run(args), what, wanted).await
    }

    /// The same of any run.
    pub async fn until_of(&self, run: impl Fn() -> Ran, what: &str, wanted: impl Fn(&Ran) -> bool) -> Ran {
        let started = Instant::now();
        loop {
            let ran = run();
            if wanted(&ran) {
                return ran;
            }
            assert!(started.elapsed() < OTHERS_GO, "waited until {what}:\n{}", ran.both());
            tokio::time::sleep(POLL).await;
        }
    }

    /// Panics where anything that was printed holds the beginning of a secret; returns how many outputs were searched. Of `names`
    /// the client secrets; and every token.
    pub fn told_no_secret(&self, names: &[&str]) -> usize {
        let secrets: Vec<_> = names.iter().map(|name| client_secret_of(name)).collect();
        let grants = self.stage.moneygo.ledger();
        assert!(!grants.is_empty());
        let all = secrets.iter().map(String::as_str).chain(grants.iter().map(|grant| grant.token.as_str()));
        let canaries = Canaries::of(all);
        let printed = self.printed.lock().unwrap();
        for (args, text) in printed.iter() {
            if let Some(line) = canaries.find(text) {
                panic!("kubectl moneygo {args} told a secret: {line}");
            }
        }
        printed.len()
    }

    /// Forgets the last output, which is about a secret that was asked for.
    pub fn forget_last(&self) {
        self.printed.lock().unwrap().pop();
    }
}

/// What the plugin prints on a terminal of its own, control sequences included.
pub fn on_a_terminal(stage: &Stage, args: &[&str], variables: &[(&str, &str)]) -> String {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&terminal).expect("a terminal");
    unlockpt(&terminal).expect("a terminal");
    let name = ptsname(&terminal, Vec::new()).expect("its name").into_string().expect("text");
    let other_end = OpenOptions::new().read(true).write(true).open(name).expect("its other end");
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-moneygo"));
    command.args(args).args(["-n", &stage.namespace]).env_clear().envs(variables.iter().copied());
    command.env("KUBECONFIG", stage.plane.kubeconfig()).env("LANG", "C.UTF-8").env("TERM", "xterm");
    stage.plane.tie(&mut command).stdin(Stdio::null());
    command.stdout(other_end.try_clone().expect("a handle")).stderr(other_end);
    let mut child = command.spawn().expect("the plugin's binary runs");
    // It holds the other end, too.
    drop(command);
    let mut printed = Vec::new();
    // At the end of a terminal there is an error.
    let _ = File::from(terminal).read_to_end(&mut printed);
    child.wait().expect("the plugin ends");
    String::from_utf8_lossy(&printed).into_owned()
}

/// The Deployment as the chart makes it with a `nameOverride`. No controller makes Pods of it: the operator is the stage's process.
pub async fn deploy(stage: &Stage, name: &str, args: &[&str], ready: i32) {
    let selected = json!({"app.kubernetes.io/name": "tokens", "app.kubernetes.io/instance": name});
    let mut labels = selected.clone();
    labels["app.kubernetes.io/part-of"] = json!("moneygo-operator");
    let all: Vec<_> = args.iter().copied().chain(["--leader-elect"]).collect();
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": 1, "selector": {"matchLabels": selected},
            "template": {"metadata": {"labels": labels}, "spec": {
                "serviceAccountName": "moneygo-operator",
                "containers": [{"name": "operator", "image": "moneygo-operator", "args": all}],
            }},
        },
    });
    deployments(stage).patch(name, &PatchParams::apply("test").force(), &Patch::Apply(deployment)).await.unwrap();
    let status = json!({"status": {"replicas": 1, "readyReplicas": ready}});
    deployments(stage).patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

pub fn deployments(stage: &Stage) -> Api<Deployment> {
    Api::namespaced(stage.admin.clone(), &stage.own_namespace)
}

/// Gives the Deployment's account the operator's rights.
pub async fn entitle(stage: &Stage) {
    let name = format!("system:serviceaccount:{}:moneygo-operator", stage.own_namespace);
    let account = User { name, kubeconfig: stage.user.kubeconfig.clone() };
    stage.let_in(&account).await;
    stage.be_at_home(&account, &stage.own_namespace, "moneygo-operator").await;
}

/// A Pod that never starts: there is no kubelet.
pub async fn pod(stage: &Stage, name: &str, container: Value, volumes: Value) {
    let mut container = container;
    container["name"] = json!("app");
    container["image"] = json!("app");
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [container], "volumes": volumes, "automountServiceAccountToken": false},
    });
    let pod: Pod = serde_json::from_value(pod).unwrap();
    let pods: Api<Pod> = Api::namespaced(stage.admin.clone(), &stage.namespace);
    // The namespace's default account is made some moments after the namespace.
    let started = Instant::now();
    while let Err(error) = pods.create(&PostParams::default(), &pod).await {
        assert!(started.elapsed() < SOON, "{error}");
        tokio::time::sleep(POLL).await;
    }
}

/// A Pod that mounts a Secret at a folder, as it should be.
pub async fn mounting_pod(stage: &Stage, name: &str, secret: &str) {
    let mount = json!({"volumeMounts": [{"name": "token", "mountPath": "/var/run/moneygo", "readOnly": true}]});
    pod(stage, name, mount, json!([{"name": "token", "secret": {"secretName": secret}}])).await;
}

/// A file on the stage that goes with it.
pub fn file(stage: &Stage, name: &str, content: impl AsRef<OsStr>) -> PathBuf {
    let path = stage.plane.folder().join(format!("{}-{name}", stage.namespace));
    std::fs::write(&path, content.as_ref().as_encoded_bytes()).unwrap();
    path
}
