//! Making a process stand still.

use std::fs;
use std::io::{Error, ErrorKind, Result};
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const LIMIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(2);

/// Sends SIGSTOP, and returns once every thread stands still: the signal reaches them one by one. Blocks for that long.
/// SIGCONT lets it go on. Where there is no `/proc`, nothing is waited for.
///
/// # Errors
/// If the process is gone, or does not stand still within 5 s.
pub fn halt(process: &Child) -> Result<()> {
    let pid = Pid::from_child(process);
    kill_process(pid, Signal::STOP)?;
    let started = Instant::now();
    while !stands_still(pid) {
        if started.elapsed() > LIMIT {
            return Err(Error::new(ErrorKind::TimedOut, "it does not stand still"));
        }
        thread::sleep(POLL);
    }
    Ok(())
}

fn stands_still(process: Pid) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{}/task", process.as_raw_nonzero())) else { return true };
    threads.flatten().all(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // The state follows the name, which is in brackets and may hold some.
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['T', 'Z', 'X']))
    })
}
