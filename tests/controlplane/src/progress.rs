//! Says on standard error what is being waited for: one line that updates itself on a terminal, else a line now and then.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

/// How often a line is printed where nothing can be overwritten.
const PLAIN_INTERVAL: Duration = Duration::from_secs(15);
/// Wide enough to say something, narrow enough not to wrap, which would break the overwriting.
const LINE_WIDTH_CHARS: usize = 79;

/// A long step and the time it takes.
pub struct Progress {
    step: String,
    started: Instant,
    printed: Option<Instant>,
    terminal: bool,
}

impl Progress {
    /// Begins a step. Prints nothing yet: a step that is over at once needs no words.
    pub fn new(step: impl Into<String>) -> Self {
        Self { step: step.into(), started: Instant::now(), printed: None, terminal: stderr().is_terminal() }
    }

    /// Shows the time that has passed and what is being done right now. Cheap enough to be called in a loop.
    pub fn show(&mut self, detail: &str) {
        if !self.terminal && self.printed.is_some_and(|at| at.elapsed() < PLAIN_INTERVAL) {
            return;
        }
        self.printed = Some(Instant::now());
        let line = format!("{} ({}) {detail}", self.step, clock(self.started.elapsed()));
        let line: String = line.chars().take(LINE_WIDTH_CHARS).collect();
        self.print(&line);
    }

    /// Ends the step with a last line, if it was ever shown.
    pub fn done(self) {
        if self.printed.is_some() {
            self.print(&format!("{}: done in {}", self.step, clock(self.started.elapsed())));
        }
    }

    // Standard error is written to directly: `eprint!` would be captured by the test harness until the test is over.
    fn print(&self, line: &str) {
        let (before, after) = if self.terminal { ("\r\x1b[2K", "") } else { ("", "\n") };
        let _ = write!(stderr(), "{before}{line}{after}");
        let _ = stderr().flush();
    }
}

impl Drop for Progress {
    /// Whatever is printed next, an error perhaps, begins on a line of its own.
    fn drop(&mut self) {
        if self.terminal && self.printed.is_some() {
            let _ = writeln!(stderr());
        }
    }
}

fn clock(elapsed: Duration) -> String {
    let secs = elapsed.as_secs();
    format!("{}:{:02}", secs / 60, secs % 60)
}
