//! What the process takes of its machine, by the names that the field's client libraries have for it.

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use rustix::param::clock_ticks_per_second;
use rustix::process::{Resource, getrlimit};

use super::catalogue::{
    PROCESS_CPU, PROCESS_MAX_FDS, PROCESS_MEMORY, PROCESS_OPEN_FDS, PROCESS_START, PROCESS_THREADS,
    PROCESS_VIRTUAL_MEMORY, write,
};

/// Where in `/proc/self/stat` things are, from the field after the name's bracket on: proc(5) counts two more, from 1.
const USER_TICKS: usize = 11;
const SYSTEM_TICKS: usize = 12;
const START_TICKS: usize = 19;

/// Reads `/proc`. Where there is none (macOS), or a file is not as it should be, what it would tell is left out.
#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        if let Some(secs) = cpu_secs(&stat) {
            write(&mut encoder, &PROCESS_CPU, &ConstCounter::new(secs))?;
        }
        let machine = fs::read_to_string("/proc/stat").unwrap_or_default();
        if let Some(secs) = start_secs(&stat, &machine) {
            write(&mut encoder, &PROCESS_START, &ConstGauge::new(secs))?;
        }
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        for (metric, field, unit) in [
            (&PROCESS_MEMORY, "VmRSS:", 1024),
            (&PROCESS_VIRTUAL_MEMORY, "VmSize:", 1024),
            (&PROCESS_THREADS, "Threads:", 1),
        ] {
            if let Some(value) = number_after(&status, field) {
                write(&mut encoder, metric, &ConstGauge::new(value * unit))?;
            }
        }
        // One of them is the folder that is read.
        let open = fs::read_dir("/proc/self/fd").map(|folder| folder.count().saturating_sub(1));
        if let Some(open) = open.ok().and_then(|open| i64::try_from(open).ok()) {
            write(&mut encoder, &PROCESS_OPEN_FDS, &ConstGauge::new(open))?;
        }
        let limit = getrlimit(Resource::Nofile).current.and_then(|limit| i64::try_from(limit).ok());
        limit.map_or(Ok(()), |limit| write(&mut encoder, &PROCESS_MAX_FDS, &ConstGauge::new(limit)))
    }
}

/// A field of `/proc/self/stat`. The program's name before them may hold spaces and brackets.
fn field(stat: &str, number: usize) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(number)?.parse().ok()
}

#[expect(clippy::cast_precision_loss, reason = "exact for thousands of years")]
fn cpu_secs(stat: &str) -> Option<f64> {
    Some((field(stat, USER_TICKS)? + field(stat, SYSTEM_TICKS)?) as f64 / clock_ticks_per_second() as f64)
}

#[expect(clippy::cast_precision_loss, reason = "exact for thousands of years")]
fn start_secs(stat: &str, machine: &str) -> Option<f64> {
    let booted = number_after(machine, "btime ")?;
    Some(booted as f64 + field(stat, START_TICKS)? as f64 / clock_ticks_per_second() as f64)
}

fn number_after(text: &str, start: &str) -> Option<i64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(start))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_the_program_confuses_nobody() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 95 0 0 0 250 50 0 0 20 0 4 0 1000 2 3";
        assert_eq!(clock_ticks_per_second(), 100, "on every Linux");
        assert_eq!(cpu_secs(stat), Some(3.0));
        assert_eq!(start_secs(stat, "cpu 1 2\nbtime 500\n"), Some(510.0));
        assert_eq!((cpu_secs(""), cpu_secs("7 (a) S"), start_secs(stat, "")), (None, None, None));
    }
}
