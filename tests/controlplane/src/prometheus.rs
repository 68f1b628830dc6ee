//! Where Prometheus' executables are, and getting those of Debian's package where there are none.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::binaries::{cache, lock};
use crate::leash::Leash;

/// Names a folder that holds `prometheus` and `promtool`.
const FOLDER_VARIABLE: &str = "MONEYGO_PROMETHEUS";
const ADVICE: &str = "install Prometheus 2.42 or later with its promtool (https://prometheus.io/download; on Debian: apt-get install prometheus), so that both are on PATH, or set MONEYGO_PROMETHEUS to the folder that holds them";

/// Prometheus, and the tool that checks its rules.
#[derive(Debug, Clone)]
pub struct Prometheus {
    /// The server.
    pub server: PathBuf,
    /// The tool.
    pub promtool: PathBuf,
}

/// The executables in the folder that `MONEYGO_PROMETHEUS` names, else those on `PATH`, else those of Debian's package: it is
/// unpacked into [`cache`] and installed nowhere, so that no server is started by it.
///
/// # Errors
/// If there are none, and none can be had. The error says what to do.
pub fn prometheus() -> Result<Prometheus> {
    if let Some(folder) = env::var_os(FOLDER_VARIABLE).filter(|folder| !folder.is_empty()) {
        return Prometheus::in_folder(Path::new(&folder)).with_context(|| {
            format!("{FOLDER_VARIABLE} names {}, which lacks one of them: {ADVICE}", folder.display())
        });
    }
    let path = env::var_os("PATH").unwrap_or_default();
    if let Some(found) = env::split_paths(&path).find_map(|folder| Prometheus::in_folder(&folder)) {
        return Ok(found);
    }
    unpacked().with_context(|| format!("there is no Prometheus, and Debian's package cannot be had: {ADVICE}"))
}

impl Prometheus {
    fn in_folder(folder: &Path) -> Option<Self> {
        let found = Self { server: folder.join("prometheus"), promtool: folder.join("promtool") };
        (found.server.is_file() && found.promtool.is_file()).then_some(found)
    }
}

fn unpacked() -> Result<Prometheus> {
    let folder = cache()?.join(format!("prometheus-of-debian-{}", env::consts::ARCH));
    let within = folder.join("usr/bin");
    if let Some(found) = Prometheus::in_folder(&within) {
        return Ok(found);
    }
    let above = folder.parent().map(PathBuf::from).unwrap_or_default();
    fs::create_dir_all(&above).with_context(|| format!("cannot create {}", above.display()))?;
    let _lock = lock(&above.join("prometheus.lock"))?;
    // Another process may have got it while this one waited.
    if Prometheus::in_folder(&within).is_none() {
        unpack(&folder)?;
    }
    Prometheus::in_folder(&within).context("the package holds no prometheus and promtool")
}

/// Beside its place, and moved there when it is whole.
fn unpack(folder: &Path) -> Result<()> {
    let leash = Leash::new(folder.with_extension(format!("being-unpacked-{}", std::process::id())))
        .context("cannot unpack a package")?;
    download(&leash)?;
    let entries = fs::read_dir(leash.folder())?.map_while(std::result::Result::ok).map(|entry| entry.path());
    let package = entries.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let package = package.context("apt-get download left no package")?;
    let contents = leash.folder().join("contents");
    run(leash.tie(Command::new("dpkg-deb").arg("--extract").arg(package).arg(&contents)))?;
    fs::rename(&contents, folder).with_context(|| format!("cannot move it to {}", folder.display()))
}

/// Without the lists of packages, as in a fresh container, they are got first, which root alone may do.
fn download(leash: &Leash) -> Result<()> {
    let get = || {
        let mut get = Command::new("apt-get");
        run(leash.tie(get.args(["download", "prometheus"]).current_dir(leash.folder())))
    };
    get().or_else(|_| {
        run(leash.tie(Command::new("apt-get").arg("update")))?;
        get()
    })
}

fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {name}"))?;
    ensure!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
