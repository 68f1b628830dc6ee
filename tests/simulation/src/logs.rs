//! The operator's log lines: looked through for secrets, and put into the trace.

use std::cell::RefCell;
use std::fmt::Write as _;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

use crate::oracle::tells_a_secret;
use crate::time::Millis;
use crate::world::World;

thread_local! {
    static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Takes what the operator logs on this thread.
#[derive(Debug)]
pub struct Logs;

impl Subscriber for Logs {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::DEBUG && metadata.target().starts_with("moneygo_operator")
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(format!("{}", event.metadata().level()));
        event.record(&mut line);
        LINES.with_borrow_mut(|lines| lines.push(line.0));
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a String cannot fail.
        let _ = write!(self.0, " {}={value:?}", field.name());
    }
}

/// For a new run on this thread.
pub fn reset(_traced: bool) {
    LINES.with_borrow_mut(Vec::clear);
}

/// Looks through what was logged since the last call.
pub fn drain(world: &mut World, now: Millis) {
    for line in LINES.take() {
        if tells_a_secret(&line) {
            world.violate("no secret in a log", now, line.clone());
        }
        world.note(now, || format!("  log: {line}"));
    }
}
