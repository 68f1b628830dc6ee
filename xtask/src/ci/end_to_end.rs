//! The end-to-end test on a one-node cluster in a network namespace of its own, where scripts for such a one are there.

use std::{
    env, io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, ensure};

use super::{Outcome, succeed};
use crate::{checkout, terminal, tools};

/// Names the folder of the cluster's scripts: `build`, `up`, `down` and `apiserver`.
const FOLDER_VARIABLE: &str = "MONEYGO_E2E_CLUSTER";
/// Where it is looked for, from the checkout.
const FOLDER: &str = "../shared/cluster";
/// The network namespace that the scripts make.
const NETWORK: &str = "/var/run/netns/k8s";
/// The scripts' variables, and their defaults: where the binaries go (in the home folder), and where all else goes.
const BINARIES: (&str, &str) = ("BIN", ".cache/k8s-node/bin");
const STATE: (&str, &str) = ("D", "/tmp/k8s-node");

/// Waits until its standard input closes, and takes the cluster down.
const SWEEPER: &str = "trap '' HUP INT TERM; read -r _; exec \"$1\"";

/// Brings the cluster up, runs `cargo xtask e2e` on it, and takes it down, however that ends.
pub fn run() -> anyhow::Result<Outcome> {
    let folder = match folder()? {
        Ok(folder) => folder,
        Err(why) => return Ok(Outcome::Skipped(why)),
    };
    ensure!(
        !Path::new(NETWORK).exists(),
        "{NETWORK} is there: a cluster is up already (`down` in {} ends it)",
        folder.display()
    );
    let scripts = Scripts::of(folder)?;
    succeed(&mut scripts.command("build"))?;
    // The image's binary is built from inside of the network namespace, where nothing can be fetched.
    for tool in [tools::CARGO_AUDITABLE, tools::CARGO_CYCLONEDX] {
        tool.executable()?;
    }
    succeed(terminal::cargo(checkout()).args(["fetch", "--locked"]))?;
    let _down = Down::at_the_end(&scripts)?;
    succeed(&mut scripts.command("up"))?;
    succeed(&mut scripts.test()?)
}

/// The folder of the scripts, or why the test cannot be run.
fn folder() -> anyhow::Result<Result<PathBuf, String>> {
    let named = env::var_os(FOLDER_VARIABLE).filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let folder = named.clone().unwrap_or_else(|| checkout().join(FOLDER));
    if !folder.join("up").is_file() {
        ensure!(named.is_none(), "{FOLDER_VARIABLE} is set, but there is no {}", folder.join("up").display());
        let instead = "`cargo xtask e2e` takes any cluster";
        return Ok(Err(format!(
            "there is no {FOLDER} beside this checkout, and {FOLDER_VARIABLE} is unset ({instead})"
        )));
    }
    // Root in a container may be without the right, too.
    let isolated = Command::new("unshare").args(["--net", "--mount", "true"]).output();
    if !rustix::process::geteuid().is_root() || !isolated.is_ok_and(|output| output.status.success()) {
        return Ok(Err("making a network namespace is for root, with CAP_SYS_ADMIN".into()));
    }
    Ok(Ok(folder.canonicalize()?))
}

struct Scripts {
    folder: PathBuf,
    binaries: PathBuf,
    state: PathBuf,
}

impl Scripts {
    fn of(folder: PathBuf) -> anyhow::Result<Self> {
        let home = env::home_dir().context("there is no home folder")?;
        let set = |(variable, default)| env::var_os(variable).map_or_else(|| home.join(default), PathBuf::from);
        Ok(Self { folder, binaries: set(BINARIES), state: set(STATE) })
    }

    fn command(&self, script: &str) -> Command {
        let mut command = Command::new(self.folder.join(script));
        command.env(BINARIES.0, &self.binaries).env(STATE.0, &self.state);
        // They make the API server's certificate with it.
        command.env("OPENSSL_CONF", checkout().join("xtask/src/ci/openssl.cnf"));
        command
    }

    /// `cargo xtask e2e`, inside of the network namespace: there the API server answers.
    fn test(&self) -> anyhow::Result<Command> {
        let ctr = format!(
            "'{}' -a '{}' -n k8s.io images import",
            self.binaries.join("ctr").display(),
            self.state.join("containerd.sock").display()
        );
        let apiserver = [checkout().join("xtask/src/ci/apiserver.sh"), self.folder.join("apiserver")];
        let apiserver = format!("sh '{}' '{}'", apiserver[0].display(), apiserver[1].display());
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={NETWORK}")).arg(env::current_exe().context("where is this program?")?);
        command.args(["e2e", "--builder=buildah", "--load-image", &ctr, "--apiserver", &apiserver]);
        command
            .env(BINARIES.0, &self.binaries)
            .env(STATE.0, &self.state)
            .env("KUBECONFIG", self.state.join("kubeconfig"));
        // Even if it is killed, nothing is left: `down` removes the folder.
        command.env("TMPDIR", &self.state);
        // For a root that is in a container itself.
        command.envs([("STORAGE_DRIVER", "vfs"), ("BUILDAH_ISOLATION", "chroot")]);
        Ok(command)
    }
}

/// Takes the cluster down when it is dropped, or when this process ends in whatever way: the kernel closes the pipe then.
struct Down(Child);

impl Down {
    fn at_the_end(scripts: &Scripts) -> io::Result<Self> {
        let mut sweeper = Command::new("/bin/sh");
        sweeper.args(["-c", SWEEPER, "end-to-end"]).arg(scripts.folder.join("down")).current_dir("/");
        sweeper.env(BINARIES.0, &scripts.binaries).env(STATE.0, &scripts.state);
        sweeper.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().map(Self)
    }
}

impl Drop for Down {
    fn drop(&mut self) {
        terminal::heading("Taking the cluster down");
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
