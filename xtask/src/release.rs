//! `cargo xtask release` and `cargo xtask reproduce`: the binary that the image is made of, with the list of what it was
//! made from, and the proof that where it was made does not matter.

use std::{
    env,
    ffi::OsString,
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, ensure};
use auditable_info::{Limits, audit_info_from_slice};
use moneygo_controlplane::Leash;
use ring::digest;
use serde_json::Value;

use crate::{checkout, terminal, tools};

const BINARY: &str = "moneygo-operator";
/// Where the binary is, in the folder that [`write()`] returns.
pub const PROGRAM: &str = "out/moneygo-operator";
/// The most that the binary may weigh: with the certificates the image stays below 14 MiB.
const BINARY_MAX_BYTES: u64 = 10 << 20;
/// What the binary cannot do without: a list that lacks them is another program's.
const LISTED: [&str; 3] = ["kube", "reqwest", "rustls"];
/// Where systems keep the certificates of public authorities.
const CERTIFICATES: [&str; 2] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];

/// See [`write()`].
pub fn run() -> anyhow::Result<()> {
    write().map(drop)
}

/// Writes `target/release-artefacts`, which is the Dockerfile's named build context `compile` and holds the SBOM, too.
/// Returns that folder.
pub fn write() -> anyhow::Result<PathBuf> {
    let certificates = env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let certificates = certificates.into_iter().chain(CERTIFICATES.map(PathBuf::from)).find(|file| file.is_file());
    let certificates = certificates.context("no certificates for the image: install ca-certificates")?;
    let leash = temporary("release")?;
    let target = terminal::target_folder();
    let built = Build::make(&leash, checkout(), &target)?;
    let artefacts = target.join("release-artefacts");
    let program = artefacts.join(PROGRAM);
    let out = program.parent().unwrap_or(&artefacts);
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    fs::copy(&built.path, &program).context("cannot copy the binary")?;
    fs::copy(certificates, out.join("ca-certificates.crt")).context("cannot copy the certificates")?;
    fs::write(artefacts.join(format!("{BINARY}.cdx.json")), &built.sbom).context("cannot write the SBOM")?;
    terminal::heading(&format!("Wrote {}", artefacts.display()));
    println!("{built}");
    Ok(artefacts)
}

/// Builds what is committed twice, from two folders, each with a target folder of its own, and compares.
pub fn reproduce() -> anyhow::Result<()> {
    let leash = temporary("reproduce")?;
    let revision = git(&["rev-parse", "HEAD"])?;
    if !git(&["status", "--porcelain"])?.is_empty() {
        println!("What is not committed is left out.");
    }
    // Folders of different depth and length: no path has the place of another by chance.
    let [first, second] = ["a", "another/folder"].map(|name| {
        let source = leash.folder().join(name);
        git(&["clone", "--quiet", "--no-checkout", ".", &source.to_string_lossy()])?;
        git(&["-C", &source.to_string_lossy(), "checkout", "--quiet", &revision])?;
        let built = Build::make(&leash, &source, &source.join("target"))?;
        println!("{built}");
        anyhow::Ok(built)
    });
    let (first, second) = (first?, second?);
    terminal::heading(&format!("Two builds of {revision}"));
    for built in [&first, &second] {
        println!("    {}  {}", built.sum, built.path.display());
    }
    ensure!(first.sum == second.sum, "the two builds differ");
    ensure!(first.sbom == second.sbom, "the two SBOMs differ");
    println!("    the same bytes, and the same SBOM");
    Ok(())
}

/// A binary that was built and looked at.
struct Build {
    path: PathBuf,
    bytes: u64,
    /// SHA-256, in hexadecimal.
    sum: String,
    /// How many packages the list within it names.
    packages: usize,
    /// `CycloneDX` 1.5, as JSON.
    sbom: String,
    components: usize,
}

impl Build {
    fn make(leash: &Leash, source: &Path, target: &Path) -> anyhow::Result<Self> {
        let path = compile(leash, source, target)?;
        let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let bytes = u64::try_from(content.len())?;
        ensure!(bytes <= BINARY_MAX_BYTES, "{bytes} bytes: at most {BINARY_MAX_BYTES} may be");
        ensure_static(&path)?;
        ensure_nameless(&content, &[source, target, &cargo_home()?])?;
        let packages = listed(&content)?;
        let sum = hexadecimal(digest::digest(&digest::SHA256, &content).as_ref());
        let sbom = sbom(leash, source)?;
        let components = components(&sbom)?;
        Ok(Self { path, bytes, sum, packages, sbom, components })
    }
}

impl fmt::Display for Build {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bytes, sum, packages, components, .. } = self;
        writeln!(f, "    sha256 {sum}")?;
        writeln!(f, "    {bytes} bytes ({:.2} MiB), statically linked", terminal::mebibytes(*bytes))?;
        write!(f, "    it lists {packages} packages (.dep-v0); its SBOM has {components} components")
    }
}

/// The operator with its list of dependencies, static, with no path of this machine in it.
fn compile(leash: &Leash, source: &Path, target: &Path) -> anyhow::Result<PathBuf> {
    ensure!(cfg!(target_os = "linux"), "the binary is for Linux: build it there, or use the Dockerfile");
    let triple = triple();
    let mut auditable = terminal::plain(tools::CARGO_AUDITABLE.executable()?, source);
    auditable.args(["auditable", "build", "--release", "--locked", "--bin", BINARY, "--target", &triple]);
    auditable.arg("--target-dir").arg(target);
    // RUSTFLAGS would be split at spaces, which paths may have. It would also be added to.
    auditable.env_remove("RUSTFLAGS").env("CARGO_ENCODED_RUSTFLAGS", flags(source, target)?);
    if cfg!(target_arch = "aarch64") {
        // As in the Dockerfile: a node's pages may be larger than this machine's.
        auditable.env("JEMALLOC_SYS_WITH_LG_PAGE", "16");
    }
    terminal::heading(&format!("Building {BINARY} in {}", source.display()));
    let started = Instant::now();
    succeed(leash.tie(&mut auditable))?;
    println!("    built in {}", terminal::time(started.elapsed()));
    Ok(target.join(triple).join("release").join(BINARY))
}

/// The paths of the Dockerfile's stage "compile". Of several that fit, the last is taken.
fn flags(source: &Path, target: &Path) -> anyhow::Result<OsString> {
    let mut flags = OsString::from("-Ctarget-feature=+crt-static");
    for (from, to) in [(cargo_home()?.as_path(), "/cargo"), (source, "/build"), (target, "/build/target")] {
        flags.push("\u{1f}--remap-path-prefix=");
        flags.push(from);
        flags.push("=");
        flags.push(to);
    }
    Ok(flags)
}

/// With a triple named, the flags are for the binary alone: a procedural macro cannot be static.
fn triple() -> String {
    format!("{}-unknown-linux-gnu", env::consts::ARCH)
}

fn ensure_static(binary: &Path) -> anyhow::Result<()> {
    let output = Command::new("ldd").arg(binary).output().context("cannot run ldd")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(said.contains("statically linked"), "the binary is not static: ldd says {said}");
    Ok(())
}

/// What differs from folder to folder would make the bytes differ, and tell strangers about this machine.
fn ensure_nameless(content: &[u8], folders: &[&Path]) -> anyhow::Result<()> {
    for folder in folders {
        let name = folder.as_os_str().as_encoded_bytes();
        let found = content.windows(name.len()).any(|window| window == name);
        ensure!(!found, "the binary names {}", folder.display());
    }
    Ok(())
}

/// How many packages the binary itself says that it was made of.
fn listed(content: &[u8]) -> anyhow::Result<usize> {
    let list = audit_info_from_slice(content, Limits::default().decompressed_json_size)
        .context("the binary has no list of dependencies")?;
    for name in LISTED {
        ensure!(list.packages.iter().any(|package| package.name == name), "the binary's list lacks {name}");
    }
    Ok(list.packages.len())
}

/// What the binary is made of, with licences and checksums. The same for the same commit, in whatever folder.
fn sbom(leash: &Leash, source: &Path) -> anyhow::Result<String> {
    let tool = tools::CARGO_CYCLONEDX.executable()?;
    let written = Written::by_cyclonedx(source)?;
    let mut cyclonedx = terminal::plain(tool, source);
    cyclonedx.args(["cyclonedx", "--format", "json", "--spec-version", "1.5", "--quiet", "--target", &triple()]);
    // Or it would have a random number and the present time.
    cyclonedx.env("SOURCE_DATE_EPOCH", source_date(source));
    succeed(leash.tie(&mut cyclonedx))?;
    let path = source.join(format!("{BINARY}.cdx.json"));
    let text = fs::read_to_string(&path).with_context(|| format!("cargo-cyclonedx wrote no {}", path.display()))?;
    drop(written);
    Ok(text.replace(&*source.to_string_lossy(), "/build"))
}

/// The files that cargo-cyclonedx writes: one beside each manifest of the workspace, whichever is wanted. Removed in the end.
struct Written(Vec<PathBuf>);

impl Written {
    fn by_cyclonedx(source: &Path) -> anyhow::Result<Self> {
        let output = terminal::cargo(source).args(["metadata", "--no-deps", "--format-version", "1"]).output()?;
        ensure!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
        let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")?;
        let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
        let files = packages.iter().filter_map(|package| {
            let manifest = Path::new(package["manifest_path"].as_str()?);
            Some(manifest.with_file_name(format!("{}.cdx.json", package["name"].as_str()?)))
        });
        Ok(Self(files.collect()))
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        for file in &self.0 {
            let _ = fs::remove_file(file);
        }
    }
}

fn components(sbom: &str) -> anyhow::Result<usize> {
    let sbom: Value = serde_json::from_str(sbom)?;
    let components = sbom["components"].as_array().context("the SBOM has no components")?;
    for name in LISTED {
        ensure!(components.iter().any(|component| component["name"] == name), "the SBOM lacks {name}");
    }
    Ok(components.len())
}

/// In seconds since 1970: what <https://reproducible-builds.org/specs/source-date-epoch/> says, or the commit's.
fn source_date(source: &Path) -> String {
    let committed = || git(&["-C", &source.to_string_lossy(), "log", "-1", "--format=%ct"]).ok();
    env::var("SOURCE_DATE_EPOCH").ok().or_else(committed).unwrap_or_else(|| "0".into())
}

fn git(arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("git").args(arguments).current_dir(checkout()).output().context("cannot run git")?;
    ensure!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn temporary(name: &str) -> anyhow::Result<Leash> {
    let folder = env::temp_dir().join(format!("moneygo-{name}-{}", std::process::id()));
    Leash::new(folder).context("cannot make a temporary folder")
}

fn cargo_home() -> anyhow::Result<PathBuf> {
    let set = env::var_os("CARGO_HOME").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    set.or_else(|| Some(env::home_dir()?.join(".cargo"))).context("neither CARGO_HOME nor HOME is set")
}

fn hexadecimal(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn succeed(command: &mut Command) -> anyhow::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("cannot run {name}"))?;
    ensure!(status.success(), "{name} failed ({status}): see above");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_named_in_the_binary_is_found() {
        let content = b"\x7fELF...panicked at /home/somebody/src/main.rs";
        let refusal = ensure_nameless(content, &[Path::new("/elsewhere"), Path::new("/home/somebody")]);
        assert_eq!(refusal.map_err(|error| error.to_string()), Err("the binary names /home/somebody".into()));
        assert!(ensure_nameless(content, &[Path::new("/home/nobody")]).is_ok());
    }

    /// cargo wants the manifest of every member of the workspace, even to build one.
    #[test]
    fn the_image_is_built_with_every_manifest() -> anyhow::Result<()> {
        let manifest = fs::read_to_string(checkout().join("Cargo.toml"))?;
        let members = manifest.lines().find(|line| line.starts_with("members = ")).unwrap_or_default();
        let members: Vec<_> = members.split('"').skip(1).step_by(2).filter(|member| *member != ".").collect();
        let dockerfile = fs::read_to_string(checkout().join("Dockerfile"))?;
        assert!(members.contains(&"xtask"), "{members:?}");
        for member in members {
            assert!(dockerfile.contains(&format!("COPY {member}/Cargo.toml {member}/\n")), "{member}");
        }
        Ok(())
    }

    #[test]
    fn a_binary_without_a_list_is_refused() -> anyhow::Result<()> {
        assert!(listed(&fs::read(env::current_exe()?)?).is_err());
        Ok(())
    }
}
