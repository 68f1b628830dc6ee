//! The images of the operator, of the stand-in and of the consumer, and how they come into the cluster.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, ensure};
use clap::ValueEnum;
use moneygo_controlplane::Leash;
use tokio::process::Command;

use super::command::{self, printed};
use crate::{checkout, terminal, tools};

/// How long a step may take. The operator's release build is the longest, with 6 minutes on two busy cores.
const LIMIT: Duration = Duration::from_mins(20);
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Of each image.
pub const TAG: &str = "e2e";

/// Where images come from.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Builder {
    Docker,
    Podman,
    Buildah,
}

impl Builder {
    /// The first that is there.
    fn found() -> anyhow::Result<Self> {
        let mut all = [Self::Docker, Self::Podman, Self::Buildah].into_iter();
        all.find(|builder| tools::is_found(builder.name(), "--version"))
            .context("there is no docker, podman or buildah")
    }

    fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Buildah => "buildah",
        }
    }

    async fn run(self, arguments: &[&str]) -> anyhow::Result<()> {
        let mut command = Command::new(self.name());
        printed(command.args(arguments), LIMIT).await.map(drop)
    }

    async fn save(self, image: &str, archive: &Path) -> anyhow::Result<()> {
        let file = archive.display();
        match self {
            Self::Docker | Self::Podman => self.run(&["save", "--output", &file.to_string(), image]).await,
            Self::Buildah => self.run(&["push", "--quiet", image, &format!("docker-archive:{file}:{image}")]).await,
        }
    }
}

/// The images' names.
pub struct Images {
    /// The operator's, without its tag.
    pub operator: String,
    pub stand_in: String,
    pub consumer: String,
}

impl Images {
    /// Of that registry.
    pub fn of(registry: &str) -> Self {
        let name = |of: &str| format!("{registry}/{of}:{TAG}");
        Self {
            operator: format!("{registry}/moneygo-operator"),
            stand_in: name("fake-moneygo"),
            consumer: name("token-consumer"),
        }
    }

    /// Builds them, and puts them into the cluster with that command, which is given the archive of one at a time.
    pub async fn load(&self, builder: Option<Builder>, load: &str, leash: &Leash) -> anyhow::Result<()> {
        let builder = builder.map_or_else(Builder::found, Ok)?;
        terminal::heading("Compiling static binaries");
        let target = compile().await?;
        terminal::heading(&format!("Building the images with {}", builder.name()));
        let folder = leash.folder();
        let operator = format!("{}:{TAG}", self.operator);
        let context = prebuilt(&target, folder).await?;
        let (dockerfile, root) = (checkout().join("Dockerfile"), checkout().display().to_string());
        let file = dockerfile.display().to_string();
        let stage = format!("compile={}", context.display());
        builder.run(&["build", "--file", &file, "--build-context", &stage, "--tag", &operator, &root]).await?;
        put(builder, &operator, load, folder).await?;
        for (image, program) in [(&self.stand_in, "fake-moneygo"), (&self.consumer, "token-consumer")] {
            let context = folder.join(program);
            fs::create_dir(&context)?;
            copy(&target.join("debug").join(program), &context.join("program"))?;
            let file = checkout().join("tests/program.Dockerfile").display().to_string();
            builder.run(&["build", "--file", &file, "--tag", image, &context.display().to_string()]).await?;
            put(builder, image, load, folder).await?;
        }
        Ok(())
    }
}

/// Compiles all three, for this machine's architecture, and returns the folder of the target's profiles.
async fn compile() -> anyhow::Result<PathBuf> {
    ensure!(cfg!(target_os = "linux"), "the images are built of binaries that are compiled here, and this is no Linux");
    let target = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    for arguments in [
        // As docs/install.md has it.
        &["--release", "--package", "moneygo-operator", "--bin", "moneygo-operator"][..],
        &["--package", "fake-moneygo", "--package", "token-consumer", "--bins"],
    ] {
        let mut cargo = Command::from(terminal::cargo(checkout()));
        cargo.args(["build", "--locked", "--target", &target]).args(arguments);
        cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
        let status = command::shown(&mut cargo, LIMIT).await?;
        ensure!(status.success(), "they do not compile: see above");
    }
    let folder = env::var_os("CARGO_TARGET_DIR").map_or_else(|| checkout().join("target"), PathBuf::from);
    Ok(folder.join(target))
}

/// What takes the place of the Dockerfile's stage "compile".
async fn prebuilt(target: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
    let context = folder.join("prebuilt");
    let out = context.join("out");
    fs::create_dir_all(&out)?;
    let binary = target.join("release/moneygo-operator");
    copy(&binary, &out.join("moneygo-operator"))?;
    copy(Path::new(AUTHORITIES), &out.join("ca-certificates.crt"))?;
    let bytes = fs::metadata(&binary)?.len() + fs::metadata(AUTHORITIES)?.len();
    let linked = printed(Command::new("ldd").arg(&binary), LIMIT).await?;
    ensure!(linked.contains("statically linked"), "{} needs shared libraries: {linked}", binary.display());
    println!("    the operator: {}, {:.1} MiB with the certificates", linked.trim(), mebibytes(bytes));
    Ok(context)
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

/// A number of bytes in MiB.
#[expect(clippy::cast_precision_loss, reason = "it is shown with one decimal")]
pub fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}

/// Saves the image, has the command load it, and leaves nothing of it here.
async fn put(builder: Builder, image: &str, load: &str, folder: &Path) -> anyhow::Result<()> {
    let archive = folder.join("image.tar");
    let saved = builder.save(image, &archive).await;
    builder.run(&["rmi", image]).await?;
    saved?;
    let mut loading = command::shell(load, &archive.display().to_string());
    printed(&mut loading, LIMIT).await.with_context(|| format!("cannot load {image}"))?;
    fs::remove_file(&archive)?;
    println!("    {image}");
    Ok(())
}
