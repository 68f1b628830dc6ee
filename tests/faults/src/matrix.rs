//! Every request of a reconcile, every way in which it can fail, in every state of an object; and the same for every event of
//! every watch.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use futures::StreamExt as _;
use serde_json::Value;
use tokio::sync::oneshot;

use crate::cell::{Cell, QUIET, difference};
use crate::interposer::{Fault, Interposer, Moment, Point, TOKEN};
use crate::replica::Replica;
use crate::scenario::{NAME, Scenario, TARGET};
use crate::stream::StreamFault;
use crate::tally::Tally;
use crate::world::{Provider, Scene, World};

/// For what should take less than a second; an endpoint that failed is asked again after five, and a machine may be busy.
const LIMIT: Duration = Duration::from_secs(45);
/// Where something may come late: without a fault, and before the operator tries again what failed.
const LONG_QUIET: Duration = Duration::from_millis(600);

/// Without a request for this long, the one at which to crash is not made.
const UNREACHED: Duration = Duration::from_secs(3);

/// What is injected into a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Injection {
    /// Nothing.
    None,
    /// A fault of a request.
    Request(Point, Fault),
    /// A fault of an event.
    Event(Point, StreamFault),
}

/// One cell of the matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plot {
    /// The state.
    pub scenario: Scenario,
    /// What is injected.
    pub injection: Injection,
    /// The change is made while the operator runs, not before it starts.
    pub live: bool,
}

impl Plot {
    fn is_live(&self) -> bool {
        self.live && self.scenario.may_be_live()
    }
}

impl std::fmt::Display for Plot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if self.live { "events" } else { "matrix" };
        write!(f, "{kind}:{}:", self.scenario)?;
        match &self.injection {
            Injection::None => f.write_str("none:none"),
            Injection::Request(point, fault) => write!(f, "{point}:{fault}"),
            Injection::Event(point, fault) => write!(f, "{point}:{fault}"),
        }
    }
}

impl std::str::FromStr for Plot {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let [kind, scenario, point, fault] = parts.as_slice() else { bail!("a cell is KIND:STATE:POINT:FAULT") };
        let injection = match *point {
            "none" => Injection::None,
            of_a_watch if of_a_watch.starts_with("event ") => Injection::Event(point.parse()?, fault.parse()?),
            _ => Injection::Request(point.parse()?, fault.parse()?),
        };
        Ok(Self { scenario: scenario.parse()?, injection, live: *kind == "events" })
    }
}

/// How a run went where nothing failed.
pub struct Reference {
    picture: Value,
    requests: Vec<(Point, Option<u16>)>,
    events: Vec<Point>,
    grants: usize,
}

struct Outcome {
    picture: Value,
    requests: Vec<(Point, Option<u16>)>,
    events: Vec<Point>,
    grants: usize,
    orphans: usize,
    reached: bool,
}

/// A run under way.
struct Run<'r> {
    cell: Cell<'r>,
    plot: &'r Plot,
    reference: Option<&'r Reference>,
    /// Grants of the time before.
    before: usize,
    interruption: Interruption,
}

impl Run<'_> {
    /// Starts the operator, with what is injected, and makes the change.
    async fn begin(&self, interposer: &Interposer) -> anyhow::Result<Replica> {
        let (cell, scenario) = (&self.cell, self.plot.scenario);
        if !self.plot.is_live() {
            scenario.change(cell).await?;
            arm(interposer, &self.plot.injection);
            return Replica::start(interposer.clone(), cell.config());
        }
        let replica = Replica::start(interposer.clone(), cell.config())?;
        if scenario.interrupted_at().is_none() {
            cell.settle(&replica, QUIET, LIMIT, |_| Ok(())).await.context("at rest")?;
            interposer.restart_count();
        }
        arm(interposer, &self.plot.injection);
        scenario.change(cell).await?;
        Ok(replica)
    }

    /// Crashes the operator, where that is injected, and waits until nothing more is to be done.
    async fn finish(&self, mut replica: Replica) -> anyhow::Result<Replica> {
        if let Injection::Request(_, Fault::Crash(_)) = self.plot.injection {
            replica = crash_and_start_again(&self.cell, replica, self.plot.scenario, &self.interruption).await?;
        }
        let quiet = match &self.plot.injection {
            Injection::None | Injection::Request(_, Fault::Lose | Fault::Answer(_)) => LONG_QUIET,
            _ => QUIET,
        };
        self.cell.settle(&replica, quiet, LIMIT, |scene| self.check(scene)).await?;
        Ok(replica)
    }

    /// What must hold in the end, whatever was injected.
    fn check(&self, scene: &Scene) -> Result<(), String> {
        let (cell, scenario) = (&self.cell, self.plot.scenario);
        scenario.check(scene)?;
        // What is about to be done again after a pause leaves no trace but this.
        if !scenario.is_cut_short() && cell.grants(NAME).len() < self.before + scenario.expected().grants {
            return Err("a grant is missing".to_owned());
        }
        if let Some(reference) = self.reference
            && let Some(difference) = difference(&reference.picture, &cell.picture(scene, NAME))
        {
            return Err(difference);
        }
        if scenario != Scenario::Conflicting {
            cell.check_history(scene, NAME, TARGET, Duration::ZERO)?;
        }
        if scenario.is_cut_short() || scenario.is_foreign() { Ok(()) } else { cell.check_alive(scene, TARGET) }
    }
}

/// Plays one run to its end.
async fn play(world: &World, plot: &Plot, reference: Option<&Reference>) -> anyhow::Result<Outcome> {
    let scenario = plot.scenario;
    let cell = scenario.prepare(world, Provider::Revoking, plot.is_live()).await?;
    let before = cell.grants(NAME).len();
    let run = Run { cell, plot, reference, before, interruption: Interruption::default() };
    let interposer = Interposer::new(world.admin.clone());
    let interrupting = run.interruption.arrange(&run.cell, &interposer, scenario);
    let replica = tokio::select! {
        ended = async { run.finish(run.begin(&interposer).await?).await } => ended?,
        failed = interrupting => { failed?; bail!("an interruption does not end a run") }
    };
    let requests = interposer.seen().into_iter().map(|seen| (seen.point, seen.status)).collect();
    let (events, reached) = (interposer.events(), interposer.hits() > 0);
    replica.crash().await;
    let scene = run.cell.scene();
    let stored = run.cell.stored(&scene, TARGET);
    ensure!(scenario != Scenario::Conflicting || stored.iter().eq(["kept"]), "a foreign Secret was touched");
    let issued = run.cell.grants(NAME).split_off(before);
    let orphans = issued.iter().filter(|grant| !stored.contains(&grant.token)).count();
    let picture = run.cell.picture(&scene, NAME);
    run.cell.close();
    Ok(Outcome { picture, requests, events, grants: issued.len(), orphans, reached })
}

/// What happens behind the operator's back, once.
#[derive(Default)]
struct Interruption(Arc<AtomicBool>);

impl Interruption {
    /// At its request. What comes back is to be polled beside the run: the request waits for it.
    fn arrange<'c>(
        &self,
        cell: &'c Cell<'_>,
        interposer: &Interposer,
        scenario: Scenario,
    ) -> impl Future<Output = anyhow::Result<()>> + use<'c> {
        let (ask, asked) = oneshot::channel::<()>();
        let (tell, told) = oneshot::channel::<()>();
        if let Some((at, moment)) = scenario.interrupted_at() {
            interposer.intervene(at, moment, async move {
                let _ = ask.send(());
                let _ = told.await;
            });
        }
        let done = Arc::clone(&self.0);
        async move {
            if asked.await.is_err() {
                return std::future::pending().await;
            }
            if !done.swap(true, Ordering::SeqCst) {
                scenario.interrupt(cell).await?;
            }
            let _ = tell.send(());
            std::future::pending().await
        }
    }

    /// Where the request was never sent.
    async fn make_up_for(&self, cell: &Cell<'_>, scenario: Scenario) -> anyhow::Result<()> {
        if scenario.interrupted_at().is_some() && !self.0.swap(true, Ordering::SeqCst) {
            scenario.interrupt(cell).await?;
        }
        Ok(())
    }
}

fn arm(interposer: &Interposer, injection: &Injection) {
    match injection {
        Injection::None => {}
        Injection::Request(at, fault) => interposer.inject(at.clone(), *fault),
        Injection::Event(at, fault) => interposer.inject_in_stream(at.clone(), *fault),
    }
}

async fn crash_and_start_again(
    cell: &Cell<'_>,
    replica: Replica,
    scenario: Scenario,
    interruption: &Interruption,
) -> anyhow::Result<Replica> {
    let interposer = replica.interposer.clone();
    if !is_hit(&replica).await? {
        // Whether a request is made can hang on a uid: by it, refresh times are spread.
        return Ok(replica);
    }
    let crashed = tokio::time::timeout(LIMIT, interposer.killed().cancelled_owned()).await;
    crashed.context("the operator does not crash")?;
    replica.crash().await;
    ensure!(interposer.drained(LIMIT).await, "a request goes on for ever");
    interruption.make_up_for(cell, scenario).await?;
    Replica::start(Interposer::new(cell.world.admin.clone()), cell.config())
}

/// Waits until the fault was injected. Not where the operator has nothing more to do.
async fn is_hit(replica: &Replica) -> anyhow::Result<bool> {
    let interposer = &replica.interposer;
    let started = std::time::Instant::now();
    while !interposer.hit(Duration::from_millis(100)).await {
        if replica.reconciles() > 0 && interposer.quiet().is_some_and(|quiet| quiet > UNREACHED) {
            return Ok(false);
        }
        ensure!(started.elapsed() < LIMIT, "the operator neither gets to the request nor ends");
    }
    Ok(true)
}

impl Reference {
    /// Plays the scenario without a fault.
    ///
    /// # Errors
    /// Where even that goes wrong.
    pub async fn of(world: &World, scenario: Scenario, live: bool) -> anyhow::Result<Self> {
        let plot = Plot { scenario, injection: Injection::None, live };
        let outcome = play(world, &plot, None).await.with_context(|| plot.to_string())?;
        let expected = scenario.expected();
        ensure!(outcome.grants == expected.grants, "{plot}: {} grants, not {}", outcome.grants, expected.grants);
        let lost = usize::from(matches!(scenario, Scenario::DeletedInFlight | Scenario::Usurped));
        ensure!(outcome.orphans == lost, "{plot}: {} orphans", outcome.orphans);
        let Outcome { picture, requests, events, grants, .. } = outcome;
        Ok(Self { picture, requests, events, grants })
    }

    /// The requests that were made.
    #[must_use]
    pub fn requests(&self) -> &[(Point, Option<u16>)] {
        &self.requests
    }

    /// Every fault of every request.
    fn request_plots(&self, scenario: Scenario) -> Vec<Plot> {
        let points: BTreeSet<&Point> = self.requests.iter().map(|(point, _)| point).collect();
        let cells = points.into_iter().flat_map(|point| faults_of(point).into_iter().map(move |fault| (point, fault)));
        cells
            .map(|(point, fault)| Plot { scenario, injection: Injection::Request(point.clone(), fault), live: false })
            .collect()
    }

    /// Every fault of every event.
    fn event_plots(&self, scenario: Scenario) -> Vec<Plot> {
        let points: BTreeSet<&Point> = self.events.iter().collect();
        let cells = points.into_iter().flat_map(|point| StreamFault::ALL.map(|fault| (point, fault)));
        cells
            .map(|(point, fault)| Plot { scenario, injection: Injection::Event(point.clone(), fault), live: true })
            .collect()
    }
}

fn faults_of(point: &Point) -> Vec<Fault> {
    let mut faults = vec![
        Fault::Crash(Moment::Before),
        Fault::Crash(Moment::Unanswered),
        Fault::Crash(Moment::After),
        Fault::Lose,
        Fault::Hold(Duration::from_millis(300)),
    ];
    if point.what == TOKEN {
        faults.push(Fault::Late(Duration::from_millis(1500)));
    }
    let refusals: &[u16] = match point.what.split(' ').next() {
        _ if point.what == TOKEN => &[503],
        Some("get") => &[500],
        _ => &[409, 500],
    };
    faults.extend(refusals.iter().map(|status| Fault::Answer(*status)));
    faults
}

/// How many grants may be lost: a token in flight at the very fault, and one that has no place to go.
fn orphans_allowed(plot: &Plot) -> usize {
    let is_fatal = match &plot.injection {
        Injection::Request(_, Fault::Crash(_)) => true,
        Injection::Request(point, Fault::Lose) => point.what == TOKEN,
        _ => false,
    };
    usize::from(is_fatal) + usize::from(plot.scenario.is_cut_short())
}

/// Plays a cell, and judges it. Whether its point was reached.
///
/// # Errors
/// What is wrong.
async fn judge(world: &World, plot: &Plot, reference: &Reference) -> anyhow::Result<bool> {
    let outcome = play(world, plot, Some(reference)).await?;
    let allowed = orphans_allowed(plot);
    ensure!(outcome.orphans <= allowed, "{} tokens were lost, {allowed} may be", outcome.orphans);
    let useful = outcome.grants - outcome.orphans;
    // The Secret of an object that is gone is collected; until the operator can know why, it is a token that was lost, of which
    // the allowance has three.
    let is_unseen = plot.scenario == Scenario::DeletedInFlight && matches!(plot.injection, Injection::Event(..));
    let most = reference.grants + if is_unseen { 3 } else { 0 };
    ensure!(useful <= most, "{useful} grants were stored in place of {}", reference.grants);
    ensure!(
        plot.scenario.is_cut_short() || useful == reference.grants,
        "{useful} grants were stored in place of {}",
        reference.grants
    );
    Ok(outcome.reached)
}

/// Which part of the matrix is played.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    /// How many cells at the same time.
    pub parallel: usize,
    /// One of how many cells, chosen by the seed.
    pub one_of: usize,
    /// What it is chosen by.
    pub seed: u64,
    /// After how many violations the rest is not run any more.
    pub stop_after: usize,
}

/// Plays requests or events of every scenario.
///
/// # Errors
/// Where a run without a fault fails already.
pub async fn run(world: &World, live: bool, share: Share) -> anyhow::Result<Tally> {
    let started = std::time::Instant::now();
    let mut tally = Tally::new(if live { "events" } else { "matrix" });
    let references: Vec<(Scenario, anyhow::Result<Reference>)> = futures::stream::iter(Scenario::ALL)
        .map(|scenario| async move { (scenario, Reference::of(world, scenario, live).await) })
        .buffered(share.parallel)
        .collect()
        .await;
    let mut plots = Vec::new();
    for (scenario, reference) in references {
        match reference {
            Ok(reference) => {
                let reference = Arc::new(reference);
                let cells = if live { reference.event_plots(scenario) } else { reference.request_plots(scenario) };
                plots.extend(cells.into_iter().map(|plot| (plot, Arc::clone(&reference))));
            }
            Err(error) => {
                let plot = Plot { scenario, injection: Injection::None, live };
                tally.violation(&plot.to_string(), &format!("{error:#}"));
            }
        }
    }
    tally.note(format!("{} cells in all", plots.len()));
    let chosen = plots
        .into_iter()
        .enumerate()
        .filter(|(index, _)| (*index as u64 + share.seed).is_multiple_of(share.one_of as u64));
    let mut results = futures::stream::iter(chosen)
        .map(|(_, (plot, reference))| async move { (judge(world, &plot, &reference).await, plot) })
        .buffer_unordered(share.parallel);
    let mut unreached = 0;
    while let Some((result, plot)) = results.next().await {
        tally.count();
        match result {
            Ok(reached) => unreached += usize::from(!reached),
            Err(error) => tally.violation(&plot.to_string(), &format!("{error:#}")),
        }
        if tally.violations() >= share.stop_after {
            tally.note("stopped early".to_owned());
            break;
        }
    }
    tally.note(format!("{unreached} points not reached"));
    tally.took(started.elapsed());
    Ok(tally)
}

/// Plays one cell again.
///
/// # Errors
/// What is wrong.
pub async fn replay(world: &World, plot: &Plot) -> anyhow::Result<()> {
    let reference = Reference::of(world, plot.scenario, plot.live).await?;
    for (point, status) in reference.requests() {
        println!("  without a fault: {point} {}", status.map_or_else(|| "-".to_owned(), |status| status.to_string()));
    }
    let reached = judge(world, plot, &reference).await?;
    ensure!(reached || plot.injection == Injection::None, "the point was not reached");
    Ok(())
}
