//! What was run, and what was wrong.

use std::fmt;
use std::time::Duration;

use crate::canary;

/// The counts of one part of the harness.
#[derive(Debug, Default)]
pub struct Tally {
    name: &'static str,
    runs: usize,
    violations: Vec<String>,
    notes: Vec<String>,
    elapsed: Duration,
}

impl Tally {
    /// Nothing yet.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Self { name, ..Self::default() }
    }

    /// One more was run.
    pub fn count(&mut self) {
        self.runs += 1;
    }

    /// Something is wrong. Printed at once, with how to see it again.
    pub fn violation(&mut self, replay: &str, what: &str) {
        println!("VIOLATION {what}\n    cargo xtask faults --replay '{replay}'");
        self.violations.push(replay.to_owned());
    }

    /// Something to be said beside the counts.
    pub fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// How long it took. Leaks that were seen meanwhile count as violations.
    pub fn took(&mut self, elapsed: Duration) {
        self.elapsed = elapsed;
        for leak in canary::leaks() {
            self.violation(self.name, &leak);
        }
    }

    /// How much was wrong.
    #[must_use]
    pub fn violations(&self) -> usize {
        self.violations.len()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secs = self.elapsed.as_secs();
        write!(
            f,
            "{}: {} run, {} violations, {} min {} s",
            self.name,
            self.runs,
            self.violations(),
            secs / 60,
            secs % 60
        )?;
        for note in &self.notes {
            write!(f, ", {note}")?;
        }
        Ok(())
    }
}
