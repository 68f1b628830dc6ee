//! Tools that cargo does not bring: installed for this project alone, so that nobody's own are replaced.

use std::{env, path::PathBuf, process::Command, time::Instant};

use anyhow::{Context, ensure};
use moneygo_controlplane::cache;

use crate::terminal;

/// A cargo subcommand of one version.
pub struct Tool {
    /// The crate, and its executable.
    pub name: &'static str,
    /// Exactly this one.
    pub version: &'static str,
    /// What it is built with in the place of its default features, which take long.
    pub features: Option<&'static str>,
}

/// Licences, bans, sources and advisories of all dependencies.
pub const CARGO_DENY: Tool = Tool { name: "cargo-deny", version: "0.20.2", features: None };
/// Builds a binary that carries the list of its dependencies. The Dockerfile names the same version.
pub const CARGO_AUDITABLE: Tool = Tool { name: "cargo-auditable", version: "0.7.7", features: None };
/// Writes the SBOM.
pub const CARGO_CYCLONEDX: Tool = Tool { name: "cargo-cyclonedx", version: "0.5.9", features: None };
/// Coverage.
pub const CARGO_LLVM_COV: Tool = Tool { name: "cargo-llvm-cov", version: "0.9.1", features: None };

/// Builds the book of docs/.
pub const MDBOOK: Tool = Tool { name: "mdbook", version: "0.5.4", features: Some("search") };
/// Finds the dead links of a folder of HTML.
pub const HYPERLINK: Tool = Tool { name: "hyperlink", version: "0.3.2", features: None };

/// Fuzzing.
pub const CARGO_FUZZ: Tool = Tool { name: "cargo-fuzz", version: "0.13.2", features: None };
/// Small changes to the code, one at a time.
pub const CARGO_MUTANTS: Tool = Tool { name: "cargo-mutants", version: "27.1.0", features: None };

impl Tool {
    /// The folder of the executable, for what cargo is to find on its own.
    pub fn folder(&self) -> anyhow::Result<PathBuf> {
        let executable = self.executable()?;
        Ok(executable.parent().map(PathBuf::from).unwrap_or_default())
    }

    /// The executable, after installing it where it is not there yet (about a minute).
    pub fn executable(&self) -> anyhow::Result<PathBuf> {
        let Self { name, version, features } = self;
        let folder = cache()?.join("tools").join(format!("{name}-{version}"));
        let executable = folder.join("bin").join(name);
        if executable.is_file() {
            return Ok(executable);
        }
        terminal::heading(&format!("Installing {name} {version}, once, in {}", folder.display()));
        let started = Instant::now();
        // Optimizing takes longer than what is checked here can win back.
        let mut install = terminal::cargo(&env::temp_dir());
        install.args(["install", "--locked", "--debug", "--version", version, name, "--root"]).arg(&folder);
        install.args(features.iter().flat_map(|features| ["--no-default-features", "--features", features]));
        // In a temporary folder of cargo's own: another's target folder may be locked by whoever started this.
        install.env_remove("CARGO_TARGET_DIR");
        let status = install.status().context("cannot run cargo")?;
        ensure!(status.success(), "cannot install {name} {version}: see above");
        println!("    done in {}", terminal::time(started.elapsed()));
        Ok(executable)
    }
}

/// Whether the command can be run with that argument.
pub fn is_found(command: &str, argument: &str) -> bool {
    Command::new(command).arg(argument).output().is_ok_and(|output| output.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dockerfile_has_the_same_options_of_the_allocator() {
        let name = "JEMALLOC_SYS_WITH_MALLOC_CONF";
        let config = include_str!("../../.cargo/config.toml");
        let wanted = config.lines().find_map(|line| line.strip_prefix(name)?.split('"').nth(1)).unwrap();
        assert!(include_str!("../../Dockerfile").contains(&format!("\"{name}={wanted}\"")));
    }

    #[test]
    fn the_dockerfile_names_the_same_version() {
        let wanted = format!("--version {} {}\n", CARGO_AUDITABLE.version, CARGO_AUDITABLE.name);
        assert!(include_str!("../../Dockerfile").contains(&wanted));
    }
}
