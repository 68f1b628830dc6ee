//! Where the servers' executables are, and building those that are missing from the pinned Go module.

use std::collections::VecDeque;
use std::env;
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf, absolute};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ring::digest;

use crate::leash::Leash;
use crate::progress::Progress;

/// A version of Kubernetes or Helm, and the Go module that pins all it is built from.
#[derive(Debug)]
pub struct Release {
    /// What it is a version of.
    pub product: &'static str,
    /// The version as the program reports it, e.g. `v1.37.2`.
    pub version: &'static str,
    /// The Go variable that the version is built into.
    pub version_variable: &'static str,
    /// The folder of the module's `go.mod` and `go.sum`.
    pub module: &'static str,
}

/// The releases of Kubernetes that the operator is tested on, the oldest first. Without another choice it is the last.
pub const RELEASES: [Release; 4] = [
    kubernetes("v1.34.4", concat!(env!("CARGO_MANIFEST_DIR"), "/servers/1.34")),
    kubernetes("v1.35.4", concat!(env!("CARGO_MANIFEST_DIR"), "/servers/1.35")),
    kubernetes("v1.36.3", concat!(env!("CARGO_MANIFEST_DIR"), "/servers/1.36")),
    kubernetes("v1.37.2", concat!(env!("CARGO_MANIFEST_DIR"), "/servers/1.37")),
];

/// The variable that chooses one of [`RELEASES`], e.g. `1.34`; see [`Release::chosen`].
pub const RELEASE_VARIABLE: &str = "MONEYGO_KUBERNETES";

/// The Helm that the chart is tested with: a Go module of its own, with the libraries that its authors chose.
const HELM_RELEASE: Release = Release {
    product: "Helm",
    version: "v4.3.1",
    version_variable: "helm.sh/helm/v4/internal/version.version",
    module: concat!(env!("CARGO_MANIFEST_DIR"), "/helm"),
};

const fn kubernetes(version: &'static str, module: &'static str) -> Release {
    Release { product: "Kubernetes", version, version_variable: "k8s.io/component-base/version.gitVersion", module }
}

impl Release {
    /// One of [`RELEASES`] by its minor version, as `1.34`, to run on; the patch is the one that is pinned.
    ///
    /// # Errors
    /// If there is no such release: the error names those that there are. If `KUBEBUILDER_ASSETS` is set as well: its servers
    /// have a version of their own.
    pub fn wanted(minor: &str) -> Result<&'static Self> {
        ensure!(assets().is_none(), "KUBEBUILDER_ASSETS is set: unset it to run on Kubernetes {minor}");
        Self::of_kubernetes(minor)
    }

    /// The release that this process is to run on: what `MONEYGO_KUBERNETES` names, or the newest.
    ///
    /// # Errors
    /// As [`Release::wanted`].
    pub fn chosen() -> Result<&'static Self> {
        let Some(minor) = env::var_os(RELEASE_VARIABLE).filter(|minor| !minor.is_empty()) else {
            let [.., newest] = &RELEASES;
            return Ok(newest);
        };
        Self::wanted(&minor.to_string_lossy()).context(RELEASE_VARIABLE)
    }

    fn of_kubernetes(minor: &str) -> Result<&'static Self> {
        let found = RELEASES.iter().find(|release| release.minor() == minor);
        found.with_context(|| {
            format!("no Kubernetes {minor} to test on: there are {}", RELEASES.each_ref().map(Self::minor).join(", "))
        })
    }

    /// The version without its patch, e.g. `1.34`.
    #[must_use]
    pub fn minor(&self) -> &'static str {
        let version = self.version.trim_start_matches('v');
        version.rsplit_once('.').map_or(version, |(minor, _patch)| minor)
    }
}

/// An executable: its name, and the Go package it is built from.
struct Executable {
    name: &'static str,
    package: &'static str,
    /// The name that `go build` gives it.
    built_as: &'static str,
}

const ETCD: Executable = Executable { name: "etcd", package: "go.etcd.io/etcd/server/v3", built_as: "server" };
const APISERVER: Executable =
    Executable { name: "kube-apiserver", package: "k8s.io/kubernetes/cmd/kube-apiserver", built_as: "kube-apiserver" };
const CONTROLLER_MANAGER: Executable = Executable {
    name: "kube-controller-manager",
    package: "k8s.io/kubernetes/cmd/kube-controller-manager",
    built_as: "kube-controller-manager",
};
const KUBECTL: Executable =
    Executable { name: "kubectl", package: "k8s.io/kubernetes/cmd/kubectl", built_as: "kubectl" };
const HELM: Executable = Executable { name: "helm", package: "helm.sh/helm/v4/cmd/helm", built_as: "helm" };

/// How often the progress display is updated, and a lock tried again.
const TICK: Duration = Duration::from_millis(200);
/// How much of a failed build's output its error shows.
const ERROR_LINES: usize = 20;
/// Whether this process is about to end: see [`Binaries::abandon`].
static ABANDONED: AtomicBool = AtomicBool::new(false);

/// The executables of a control plane, all of them present.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// The store.
    pub etcd: PathBuf,
    /// The API server.
    pub apiserver: PathBuf,
    /// Garbage collection, deletion of namespaces, default service accounts.
    pub controller_manager: PathBuf,
    /// The command-line client.
    pub kubectl: PathBuf,
}

impl Binaries {
    /// Finds the executables, and builds those that are missing.
    ///
    /// First the folder that `KUBEBUILDER_ASSETS` names, which must hold etcd, kube-apiserver and kubectl
    /// (kube-controller-manager is built if it is not there, too). Otherwise the cache: `MONEYGO_CACHE_DIR`, or
    /// `moneygo-operator` in `XDG_CACHE_HOME` or in `~/.cache`, shared by all checkouts. Building takes minutes with a cold
    /// Go build cache; progress is shown on standard error. Of several processes one builds and the others wait. Blocks.
    ///
    /// # Errors
    /// If Go is needed and missing, if the build fails, or if the cache cannot be written.
    pub fn locate(release: &Release) -> Result<Self> {
        if let Some(assets) = assets() {
            return Self::from_assets(&absolute(assets)?, release);
        }
        let folder = built(release, &[ETCD, APISERVER, CONTROLLER_MANAGER, KUBECTL])?;
        Ok(Self::within(&folder, &folder))
    }

    /// Makes [`Binaries::locate`] fail wherever it waits, and ends what it builds with, within a second. For good.
    ///
    /// For a process that was asked to end: it has no other way to stop a thread, and the build would be swept away only
    /// after its end.
    pub fn abandon() {
        ABANDONED.store(true, Ordering::Relaxed);
    }

    fn from_assets(assets: &Path, release: &Release) -> Result<Self> {
        for Executable { name, .. } in [ETCD, APISERVER, KUBECTL] {
            let path = assets.join(name);
            ensure!(path.is_file(), "KUBEBUILDER_ASSETS is set, but there is no {}", path.display());
        }
        if assets.join(CONTROLLER_MANAGER.name).is_file() {
            return Ok(Self::within(assets, assets));
        }
        let folder = built(release, &[CONTROLLER_MANAGER])
            .with_context(|| format!("{} has no kube-controller-manager", assets.display()))?;
        Ok(Self::within(assets, &folder))
    }

    fn within(folder: &Path, controller_manager_folder: &Path) -> Self {
        Self {
            etcd: folder.join(ETCD.name),
            apiserver: folder.join(APISERVER.name),
            controller_manager: controller_manager_folder.join(CONTROLLER_MANAGER.name),
            kubectl: folder.join(KUBECTL.name),
        }
    }
}

/// Helm, for tests of the chart. Built once, into the same cache as the servers: see [`Binaries::locate`]. Blocks.
///
/// # Errors
/// If Go is needed and missing, if the build fails, or if the cache cannot be written.
pub fn helm() -> Result<PathBuf> {
    Ok(built(&HELM_RELEASE, &[HELM])?.join(HELM.name))
}

/// The folder of the cache that holds the wanted executables, after building those that it lacked.
fn built(release: &Release, wanted: &[Executable]) -> Result<PathBuf> {
    let folder = cache()?.join(key(release)?);
    if missing(&folder, wanted).is_empty() {
        return Ok(folder);
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let _lock = lock(&folder.join("lock"))?;
    // Another process may have built them while this one waited.
    let missing = missing(&folder, wanted);
    if !missing.is_empty() {
        build(release, &missing, &folder)?;
    }
    Ok(folder)
}

fn assets() -> Option<OsString> {
    env::var_os("KUBEBUILDER_ASSETS").filter(|folder| !folder.is_empty())
}

fn missing<'a>(folder: &Path, wanted: &'a [Executable]) -> Vec<&'a Executable> {
    wanted.iter().filter(|executable| !folder.join(executable.name).is_file()).collect()
}

/// The folder of this user that outlives checkouts: `MONEYGO_CACHE_DIR`, or `moneygo-operator` in `XDG_CACHE_HOME` or in
/// `~/.cache`. It need not exist.
///
/// # Errors
/// If none of these variables nor `HOME` is set.
pub fn cache() -> Result<PathBuf> {
    let set = |variable| env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = set("MONEYGO_CACHE_DIR")
        .or_else(|| set("XDG_CACHE_HOME").map(|caches| caches.join("moneygo-operator")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/moneygo-operator")))
        .context("no folder for the servers' executables: set MONEYGO_CACHE_DIR, or HOME")?;
    Ok(absolute(folder)?)
}

/// Names all that the executables depend on, so that a cached one is never stale.
fn key(release: &Release) -> Result<String> {
    let mut hash = digest::Context::new(&digest::SHA256);
    for file in ["go.mod", "go.sum"] {
        let path = Path::new(release.module).join(file);
        hash.update(&fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
    }
    hash.update(linker_flags(release).as_bytes());
    let digest = hash.finish();
    let short = digest.as_ref().iter().take(6).fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    let product = release.product.to_lowercase();
    Ok(format!("{product}-{}-{}-{}-{short}", release.version, env::consts::OS, env::consts::ARCH))
}

/// Without these the programs report v0.0.0 or the like.
fn linker_flags(release: &Release) -> String {
    format!("-s -w -X {}={}", release.version_variable, release.version)
}

pub(crate) fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut progress = Progress::new("Waiting for another process that builds the same");
    loop {
        ensure!(!ABANDONED.load(Ordering::Relaxed), "abandoned");
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) => progress.show(""),
            Err(TryLockError::Error(error)) => bail!("cannot lock {}: {error}", path.display()),
        }
        thread::sleep(TICK);
    }
    progress.done();
    Ok(file)
}

/// Builds into a folder beside `target`, and moves each executable there when all are complete.
fn build(release: &Release, missing: &[&Executable], target: &Path) -> Result<()> {
    let leash = Leash::new(target.join(format!("building-{}", std::process::id())))
        .with_context(|| format!("cannot build in {}", target.display()))?;
    let mut go = Command::new("go");
    go.args(["build", "-v", "-trimpath", "-buildvcs=false", "-mod=readonly", "-ldflags", &linker_flags(release), "-o"])
        .arg(leash.folder())
        .args(missing.iter().map(|executable| executable.package))
        .current_dir(release.module)
        .envs([("CGO_ENABLED", "0"), ("GOWORK", "off")])
        // Go leaves its own temporary files behind when it is killed.
        .env("GOTMPDIR", leash.folder())
        // The servers are for this machine, whatever else is being built.
        .env_remove("GOOS")
        .env_remove("GOARCH");
    run(leash.tie(&mut go), release)?;
    for executable in missing {
        fs::rename(leash.folder().join(executable.built_as), target.join(executable.name))
            .with_context(|| format!("go build made no {}", executable.name))?;
    }
    Ok(())
}

fn run(go: &mut Command, release: &Release) -> Result<()> {
    let mut child = go
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run go: install Go >= 1.26 (https://go.dev/dl), or set KUBEBUILDER_ASSETS to a folder that holds etcd, kube-apiserver, kube-controller-manager and kubectl")?;
    let (sender, lines) = channel();
    if let Some(output) = child.stderr.take() {
        thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
    }
    let mut progress = Progress::new(format!("Building {} {}, once", release.product, release.version));
    let last_lines = follow(&lines, &mut progress);
    if ABANDONED.load(Ordering::Relaxed) {
        // What it has started itself goes with the leash.
        child.kill()?;
    }
    let status = child.wait().context("cannot wait for go")?;
    ensure!(
        status.success(),
        "go build of {} failed ({status}; it needs Go >= 1.26):\n{}",
        release.product,
        last_lines.join("\n")
    );
    progress.done();
    Ok(())
}

/// Shows what `go build -v` says: a line for each package that it compiles. Returns the last lines.
fn follow(lines: &Receiver<String>, progress: &mut Progress) -> Vec<String> {
    let mut last_lines = VecDeque::with_capacity(ERROR_LINES + 1);
    let mut count: usize = 0;
    while !ABANDONED.load(Ordering::Relaxed) {
        match lines.recv_timeout(TICK) {
            Ok(line) => {
                count += usize::from(!line.starts_with("go: "));
                last_lines.push_back(line);
                if last_lines.len() > ERROR_LINES {
                    last_lines.pop_front();
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        progress.show(&format!("{count} packages, {}", last_lines.back().map_or("", String::as_str)));
    }
    last_lines.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_found_by_its_minor_version() -> Result<()> {
        for release in &RELEASES {
            assert_eq!(Release::of_kubernetes(release.minor())?.version, release.version);
            assert!(release.module.ends_with(&format!("/servers/{}", release.minor())));
        }
        let refusal = Release::of_kubernetes("1.12").err().context("1.12 is found")?;
        assert_eq!(refusal.to_string(), "no Kubernetes 1.12 to test on: there are 1.34, 1.35, 1.36, 1.37");
        Ok(())
    }

    /// The version that a module builds is said twice, and must be one.
    #[test]
    fn each_module_requires_the_version_it_is_named_for() -> Result<()> {
        for release in &RELEASES {
            let module = fs::read_to_string(Path::new(release.module).join("go.mod"))?;
            assert!(module.contains(&format!("\tk8s.io/kubernetes {} // indirect\n", release.version)));
        }
        Ok(())
    }
}
