//! Nothing is left of a control plane, or of a build of its servers, when the process that started it is gone.
#![cfg(target_os = "linux")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use moneygo_controlplane::{Binaries, RELEASE_VARIABLE, Release};
use rustix::process::{Pid, Signal, kill_process};

/// Whether a program has come to a certain moment.
type Reached = fn(&Scene) -> bool;

const LIMIT: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(10);
const HANGS: &str = "#!/bin/sh\n: > \"$FOLDER/go-runs\"\nsleep 1000\n";
/// What it makes ends at once.
const BUILDS: &str = r#"#!/bin/sh
echo built >> "$FOLDER/builds"
while [ "$1" != -o ]; do shift; done
for name in server kube-apiserver kube-controller-manager kubectl; do
    printf '#!/bin/sh\necho I am not Kubernetes\n' > "$2/$name"
    chmod +x "$2/$name"
done
"#;

#[test]
fn after_sigkill_at_any_moment() -> Result<()> {
    Binaries::locate(Release::chosen()?)?;
    let moments: [(&str, Reached); 4] = [
        ("at once", |_| true),
        ("etcd starts", |scene| scene.finds("etcd.log")),
        ("API server starts", |scene| scene.finds("kube-apiserver.log")),
        ("ready", Scene::is_ready),
    ];
    for (moment, reached) in moments {
        let scene = Scene::new("killed")?;
        let mut program = scene.start(|_| {})?;
        scene.wait_until(moment, || reached(&scene))?;
        program.kill()?;
        program.wait()?;
        scene.is_left_clean().with_context(|| format!("killed when: {moment}"))?;
    }
    Ok(())
}

#[test]
fn after_an_interrupt() -> Result<()> {
    Binaries::locate(Release::chosen()?)?;
    let scene = Scene::new("interrupted")?;
    let mut program = scene.start(|_| {})?;
    scene.wait_until("ready", || scene.is_ready())?;
    // The API server is ready before the last of the others shows under its own name.
    scene.wait_until("all servers are seen", || scene.processes().len() >= 4)?;
    kill_process(Pid::from_child(&program), Signal::INT)?;
    ensure!(program.wait()?.success());
    // The program waited for it: there is nothing to wait for here.
    ensure!(scene.folders().is_empty() && scene.processes().is_empty());
    scene.is_left_clean()
}

#[test]
fn after_a_build_is_killed() -> Result<()> {
    let scene = Scene::new("building")?;
    scene.install_go(HANGS)?;
    let mut program = scene.start(|command| scene.without_servers(command))?;
    scene.wait_until("go runs", || scene.folder.join("go-runs").exists())?;
    program.kill()?;
    program.wait()?;
    scene.wait_until("the build is gone", || scene.processes().is_empty() && scene.in_cache("building-").is_empty())?;
    ensure!(scene.in_cache("kube").is_empty());
    scene.is_left_clean()
}

#[test]
fn two_processes_build_once() -> Result<()> {
    let scene = Scene::new("once")?;
    scene.install_go(BUILDS)?;
    let programs = [(); 2].map(|()| scene.start(|command| scene.without_servers(command)));
    for program in programs {
        let output = program?.wait_with_output()?;
        let message = String::from_utf8(output.stderr)?;
        ensure!(message.contains("etcd ended early"), "{message}");
    }
    assert_eq!(fs::read_to_string(scene.folder.join("builds"))?, "built\n");
    assert_eq!(scene.in_cache("building-").len(), 0);
    assert_eq!(scene.in_cache("kube").len(), 3);
    scene.is_left_clean()
}

#[test]
fn says_what_is_missing() -> Result<()> {
    let scene = Scene::new("missing")?;
    let fails = |with_assets: bool| -> Result<String> {
        let program = scene.start(|command| {
            scene.without_servers(command);
            if with_assets {
                command.env("KUBEBUILDER_ASSETS", &scene.folder).env_remove(RELEASE_VARIABLE);
            }
        })?;
        Ok(String::from_utf8(program.wait_with_output()?.stderr)?)
    };
    let message = fails(false)?;
    ensure!(message.contains("install Go >= 1.26") && message.contains("KUBEBUILDER_ASSETS"), "{message}");
    let message = fails(true)?;
    ensure!(message.contains("KUBEBUILDER_ASSETS is set, but there is no"), "{message}");
    for name in ["etcd", "kube-apiserver", "kubectl"] {
        fs::write(scene.folder.join(name), "")?;
    }
    let message = fails(true)?;
    ensure!(message.contains("has no kube-controller-manager") && message.contains("install Go"), "{message}");
    scene.is_left_clean()
}

#[test]
fn says_what_is_contradictory() -> Result<()> {
    let scene = Scene::new("contradiction")?;
    let program = scene.start(|command| {
        scene.without_servers(command);
        command.env("KUBEBUILDER_ASSETS", &scene.folder).env(RELEASE_VARIABLE, "1.34");
    })?;
    let message = String::from_utf8(program.wait_with_output()?.stderr)?;
    ensure!(message.contains("KUBEBUILDER_ASSETS is set: unset it to run on Kubernetes 1.34"), "{message}");
    scene.is_left_clean()
}

/// A program that starts a control plane, with a folder of its own for temporary files.
struct Scene {
    folder: PathBuf,
}

impl Scene {
    fn new(name: &str) -> Result<Self> {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("tmp"))?;
        Ok(Self { folder })
    }

    fn start(&self, change: impl FnOnce(&mut Command)) -> Result<Child> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_moneygo-controlplane"));
        command
            .envs([("TMPDIR", self.folder.join("tmp")), ("FOLDER", self.folder.clone())])
            .env("RUST_BACKTRACE", "0")
            .stdout(fs::File::create(self.folder.join("output"))?)
            .stderr(Stdio::piped());
        change(&mut command);
        Ok(command.spawn()?)
    }

    /// No Go but the one that the test installs, and an empty cache.
    fn without_servers(&self, command: &mut Command) {
        let path = format!("{}:/usr/bin:/bin", self.folder.display());
        command.env("PATH", path).env("MONEYGO_CACHE_DIR", self.folder.join("cache")).env_remove("KUBEBUILDER_ASSETS");
    }

    fn install_go(&self, script: &str) -> Result<()> {
        let go = self.folder.join("go");
        fs::write(&go, script)?;
        Ok(fs::set_permissions(go, fs::Permissions::from_mode(0o700))?)
    }

    fn is_ready(&self) -> bool {
        fs::metadata(self.folder.join("output")).is_ok_and(|output| output.len() > 0)
    }

    fn finds(&self, file: &str) -> bool {
        self.folders().iter().any(|folder| folder.join(file).exists())
    }

    /// The control planes' temporary folders.
    fn folders(&self) -> Vec<PathBuf> {
        entries(&self.folder.join("tmp"))
    }

    fn in_cache(&self, prefix: &str) -> Vec<PathBuf> {
        let releases = entries(&self.folder.join("cache"));
        let mut files: Vec<_> = releases.iter().flat_map(|release| entries(release)).collect();
        files.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)));
        files
    }

    /// The command lines of all processes that were started with one of this scene's paths. Those that have ended have none.
    fn processes(&self) -> Vec<String> {
        let of = |process: &PathBuf| fs::read(process.join("cmdline")).unwrap_or_default();
        let lines = entries(Path::new("/proc")).iter().map(of).collect::<Vec<_>>();
        let lines = lines.iter().map(|line| String::from_utf8_lossy(line).into_owned());
        lines.filter(|line| line.contains(&*self.folder.to_string_lossy())).collect()
    }

    fn is_left_clean(&self) -> Result<()> {
        self.wait_until("nothing is left", || self.folders().is_empty() && self.processes().is_empty())?;
        Ok(fs::remove_dir_all(&self.folder)?)
    }

    fn wait_until(&self, what: &str, reached: impl Fn() -> bool) -> Result<()> {
        let started = Instant::now();
        while !reached() {
            let left = || format!("{:?} {:?}", self.folders(), self.processes());
            ensure!(started.elapsed() < LIMIT, "waited for: {what}; there is {}", left());
            sleep(POLL);
        }
        Ok(())
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}
