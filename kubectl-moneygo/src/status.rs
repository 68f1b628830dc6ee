//! The command `status`.

use std::io::Write as _;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::args::{ClusterArgs, Output, StatusArgs};
use crate::cluster::{self, Cluster};
use crate::life::{Life, State};
use crate::terminal::{Cell, Colour, Look, columns, harmless, tell};
use crate::{Verdict, words};

/// Shows the objects.
pub async fn run(args: &ClusterArgs, wanted: &StatusArgs) -> anyhow::Result<Verdict> {
    let cluster = Cluster::connect(args).await?;
    let objects = cluster.find(wanted.name.as_deref(), wanted.selector.as_deref()).await?;
    let now = cluster::now();
    let lives: Vec<_> = objects.iter().map(|object| Life::of(object, now)).collect();
    match wanted.output {
        Some(Output::Json) => show(&(serde_json::to_string_pretty(&in_json(&lives, now))? + "\n"))?,
        Some(Output::Yaml) => show(&serde_yaml::to_string(&in_json(&lives, now))?)?,
        _ if lives.is_empty() => {
            let place = if cluster.everywhere {
                "any namespace".to_owned()
            } else {
                format!("namespace {}", cluster.namespace)
            };
            tell("", &format!("There is no MoneyGoCredential in {place}."));
        }
        form => {
            let view =
                View { everywhere: cluster.everywhere, wide: form == Some(Output::Wide), look: Look::of_stdout() };
            show(&view.text(&lives, now))?;
        }
    }
    let well = lives.iter().all(|life| life.valid || life.state == State::Deleting);
    Ok(if well { Verdict::Well } else { Verdict::Unwell })
}

/// The same for what has a verdict: where nobody reads it any more, the exit code still tells.
pub fn show(text: &str) -> anyhow::Result<()> {
    match print(text) {
        Err(error) if is_broken_pipe(&error) => Ok(()),
        printed => printed,
    }
}

/// Whether whoever read a pipe is gone.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// To standard output, which may be a pipe that nobody reads.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut output = std::io::stdout().lock();
    output.write_all(text.as_bytes())?;
    Ok(output.flush()?)
}

fn in_json(lives: &[Life], now: Timestamp) -> Value {
    json!({ "now": now, "tokens": lives })
}

struct View {
    everywhere: bool,
    wide: bool,
    look: Look,
}

impl View {
    fn text(&self, lives: &[Life], now: Timestamp) -> String {
        let rows: Vec<_> = std::iter::once(self.head()).chain(lives.iter().map(|life| self.row(life, now))).collect();
        let mut text = columns(&rows);
        for life in lives.iter().filter(|life| !life.message.is_empty() && needs_words(life.state)) {
            let name = words::name(&life.namespace, &life.name, self.everywhere);
            let name = self.look.paint(Colour::Strong, &name);
            text.extend([
                "\n",
                &name,
                ": ",
                &harmless(&life.reason),
                ": ",
                &harmless(&life.message),
                &next_attempt(life, now),
            ]);
        }
        if text.ends_with('\n') { text } else { text + "\n" }
    }

    fn head(&self) -> Vec<Cell> {
        let bar = self.look.either("ISSUED▸NOW┊REFRESH▸EXPIRY", "ISSUED>NOW|REFRESH>EXPIRY");
        let namespace = self.everywhere.then_some("NAMESPACE");
        let mut titles: Vec<_> = namespace.into_iter().collect();
        titles.extend(["NAME", bar, "LEFT", "REFRESH", "READY", "STATE", "REASON"]);
        if self.wide {
            titles.extend(["SECRET", "ISSUED", "REFRESH-AT", "EXPIRES", "REFRESHED", "FAILED", "NEXT-ATTEMPT"]);
        }
        titles.into_iter().map(Cell::plain).collect()
    }

    fn row(&self, life: &Life, now: Timestamp) -> Vec<Cell> {
        let colour = colour(life.state);
        let painted = |text: &str| Cell::painted(self.look, colour, text);
        let bar = life.bar(now, self.look).unwrap_or_else(|| "-".to_owned());
        let left = life.expires_at.map_or("-".to_owned(), |at| left(at, now));
        let refresh = life.refresh_at.filter(|_| !life.suspended).map(|at| words::from_now(at, now));
        let mut row: Vec<_> = self.everywhere.then(|| Cell::plain(&life.namespace)).into_iter().collect();
        row.extend([
            Cell::plain(&life.name),
            painted(&bar),
            Cell::plain(left),
            Cell::plain(refresh.unwrap_or_else(|| "-".to_owned())),
            painted(&life.ready),
            painted(&format!("{:?}", life.state)),
            Cell::plain(or_dash(&life.reason)),
        ]);
        if self.wide {
            let time = |at: Option<Timestamp>| Cell::plain(at.map_or("-".to_owned(), |at| at.to_string()));
            row.extend([
                Cell::plain(&life.secret),
                time(life.issued_at),
                time(life.refresh_at),
                time(life.expires_at),
                Cell::plain(or_dash(&life.refreshed)),
                Cell::plain(life.failed_attempts.to_string()),
                time(life.next_attempt_at),
            ]);
        }
        row
    }
}

fn left(at: Timestamp, now: Timestamp) -> String {
    if at > now { words::length(at.duration_since(now)) } else { format!("ended {}", words::from_now(at, now)) }
}

fn next_attempt(life: &Life, now: Timestamp) -> String {
    let attempt = life.next_attempt_at.filter(|at| *at > now);
    attempt.map_or_else(String::new, |at| format!(" (tried again {})", words::from_now(at, now)))
}

fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

fn needs_words(state: State) -> bool {
    !matches!(state, State::Healthy | State::Suspended | State::Deleting)
}

fn colour(state: State) -> Colour {
    match state {
        State::Healthy => Colour::Good,
        State::Failing | State::Overdue | State::Pending => Colour::Doubtful,
        State::NotReady | State::Expired | State::Unseen => Colour::Bad,
        State::Suspended | State::Deleting => Colour::Faint,
    }
}
