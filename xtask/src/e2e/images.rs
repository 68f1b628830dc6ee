//! The images of the operator, of the stand-in and of the consumer, and how they come into the cluster.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, ensure};
use clap::ValueEnum;
use moneygo_controlplane::Leash;
use tokio::{process::Command, task::spawn_blocking};

use super::command::{self, printed};
use crate::{checkout, release, terminal, tools};

/// How long a step may take.
const LIMIT: Duration = Duration::from_mins(20);
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
        let context = spawn_blocking(release::write).await??;
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

/// Compiles what stands beside the operator, for this machine's architecture. Returns the folder of the target's profiles.
async fn compile() -> anyhow::Result<PathBuf> {
    ensure!(cfg!(target_os = "linux"), "the images are built of binaries that are compiled here, and this is no Linux");
    let target = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    let mut cargo = Command::from(terminal::cargo(checkout()));
    cargo.args(["build", "--locked", "--target", &target]);
    cargo.args(["--package", "fake-moneygo", "--package", "token-consumer", "--bins"]);
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
    let status = command::shown(&mut cargo, LIMIT).await?;
    ensure!(status.success(), "they do not compile: see above");
    Ok(terminal::target_folder().join(target))
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
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
