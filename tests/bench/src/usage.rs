//! What a process uses.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// The kernel counts a process's time in these (`USER_HZ`, the same on every Linux).
const TICK: Duration = Duration::from_millis(10);
const KIB: u64 = 1024;

/// What a process has used so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Time on a CPU, in user and kernel mode.
    pub cpu: Duration,
    /// Bytes of memory that are its own or shared, now.
    pub resident: u64,
    /// The most that was resident at once.
    pub peak: u64,
}

/// Looks at a process.
///
/// # Errors
/// If it is gone.
pub fn of(pid: u32) -> Result<Usage> {
    let read =
        |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).context("a process that was measured is gone");
    let (stat, status) = (read("stat")?, read("status")?);
    // The name, in parentheses, may hold anything; user and system time are the 12th and 13th field behind it.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks =
        |index: usize| fields.get(index).and_then(|field| field.parse::<u32>().ok()).context("no time in /proc");
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).context("no memory in /proc")
    };
    Ok(Usage { cpu: TICK * (ticks(11)? + ticks(12)?), resident: kib("VmRSS:")? * KIB, peak: kib("VmHWM:")? * KIB })
}
