//! A shell for one page, with the commands that it uses: kubectl for the page's own namespace, and helm.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use moneygo_controlplane::ControlPlane;

/// For one block. `kubectl wait` gives up after 30 s by itself.
const LIMIT: Duration = Duration::from_mins(2);
const POLL: Duration = Duration::from_millis(10);
/// What of the checkout the pages name.
const SHARED: [&str; 3] = ["charts", "crds", "docs"];

/// Where the commands of a page are run: a folder that has the checkout's files, and takes those that the page writes.
pub struct Shell {
    plane: &'static ControlPlane,
    folder: PathBuf,
}

impl Shell {
    /// For a namespace. Without `real_helm`, what would install a chart is rendered only: releases belong to the whole cluster.
    pub fn new(plane: &'static ControlPlane, namespace: &str, helm: &Path, real_helm: bool) -> Self {
        let folder = plane.folder().join(format!("docs-{namespace}"));
        let bin = folder.join("bin");
        fs::create_dir_all(&bin).unwrap();
        for name in SHARED {
            symlink(Path::new(env!("CARGO_MANIFEST_DIR")).join(name), folder.join(name)).unwrap();
        }
        fs::copy(plane.kubeconfig(), folder.join("kubeconfig")).unwrap();
        symlink(plane.kubectl(), bin.join("kubectl")).unwrap();
        if real_helm {
            symlink(helm, bin.join("helm")).unwrap();
        } else {
            let helm = helm.display();
            let text = format!(
                "#!/bin/sh\ncase \"$1\" in install|upgrade) shift; exec {helm} upgrade --install --dry-run=client \"$@\" ;; esac\nexec {helm} \"$@\"\n"
            );
            fs::write(bin.join("helm"), text).unwrap();
            fs::set_permissions(bin.join("helm"), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let shell = Self { plane, folder };
        shell.run(&format!("kubectl config set-context --current --namespace={namespace}"), "").unwrap();
        // Pods are refused before.
        shell.run("kubectl wait --for=create serviceaccount/default", "").unwrap();
        shell
    }

    /// What a script printed, or what came before it failed.
    pub fn run(&self, script: &str, input: &str) -> Result<String, String> {
        let output = self.folder.join("output");
        let file = File::create(&output).unwrap();
        let mut command = Command::new("bash");
        command
            .args(["-euo", "pipefail", "-c", script])
            .current_dir(&self.folder)
            .env_clear()
            .env("PATH", format!("{}:/usr/local/bin:/usr/bin:/bin", self.folder.join("bin").display()))
            .env("HOME", &self.folder)
            .env("KUBECONFIG", self.folder.join("kubeconfig"))
            .stdin(Stdio::piped())
            .stdout(file.try_clone().unwrap())
            .stderr(file);
        let mut child = self.plane.tie(&mut command).spawn().expect("bash");
        // Who does not read it may be gone already.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let started = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status.to_string().replace("exit status: 0", "");
            }
            if started.elapsed() > LIMIT {
                child.kill().unwrap();
                child.wait().unwrap();
                break format!("no end after {LIMIT:?}");
            }
            std::thread::sleep(POLL);
        };
        let said = String::from_utf8_lossy(&fs::read(&output).unwrap()).into_owned();
        if status.is_empty() { Ok(said) } else { Err(format!("{said}{status}")) }
    }

    /// A file that the page's later commands name.
    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.join(name), text).unwrap();
    }
}
