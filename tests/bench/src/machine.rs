//! Where it was measured.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use moneygo_controlplane::Release;
use serde::{Deserialize, Serialize};

/// A machine, and what was run on it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// How many cores there are.
    pub cores: usize,
    /// Memory in KiB.
    pub memory_kib: u64,
    /// The kernel's version.
    pub kernel: String,
    /// The load of the last minute, as the bench began: what is not 0 was somebody else's.
    pub load: f64,
    /// The version of the servers.
    pub kubernetes: String,
    /// What the operator says of itself.
    pub operator: String,
    /// The operator's program, in bytes.
    pub binary_bytes: u64,
}

impl Machine {
    /// This one.
    ///
    /// # Errors
    /// If the operator cannot be run.
    pub fn look(operator: &Path) -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let version = Command::new(operator).arg("--version").output().context("the operator cannot be run")?;
        Ok(Self {
            processor: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "not told".to_owned()),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_kib: field(&read("/proc/meminfo"), "MemTotal")
                .and_then(|total| total.split_whitespace().next()?.parse().ok())
                .unwrap_or_default(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: read("/proc/loadavg").split_whitespace().next().and_then(|load| load.parse().ok()).unwrap_or(0.0),
            kubernetes: Release::chosen()?.version.to_owned(),
            operator: String::from_utf8_lossy(&version.stdout).trim().to_owned(),
            binary_bytes: fs::metadata(operator)?.len(),
        })
    }
}

fn field(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim_start_matches([' ', '\t', ':']).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found() {
        assert_eq!(field("processor\t: 0\nmodel name\t: A: B\n", "model name").as_deref(), Some("A: B"));
        assert_eq!(field("MemTotal:       24683520 kB\n", "MemTotal").as_deref(), Some("24683520 kB"));
        assert_eq!(field("", "model name"), None);
    }
}
