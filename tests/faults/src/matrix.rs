//! Every request of a reconcile, every way in which it can fail, in every state of an object; and the same for every event of
//! every watch.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use futures::StreamExt as _;
use serde_json::Value;

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
        let injection = match (*point, point.starts_with("event ")) {
            ("none", _) => Injection::None,
            (_, true) if point.starts_with("event ") && fault.parse::<StreamFault>().is_ok() => {
                Injection::Event(point.parse()?, fault.parse()?)
            }
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

/// Plays one run to its end, and checks what holds whatever was injected.
async fn play(world: &World, plot: &Plot, reference: Option<&Reference>) -> anyhow::Result<Outcome> {
    let scenario = plot.scenario;
    let live = plot.live && scenario.may_be_live();
    let cell = scenario.prepare(world, Provider::Revoking, live).await?;
    let before = cell.grants(NAME).len();
    let interposer = Interposer::new(world.admin.clone());
    if !live {
        scenario.change(&cell).await?;
    }
    if scenario.ends_in_flight() {
        arrange_end(&cell, &interposer);
    }
    if !live {
        arm(&interposer, &plot.injection);
    }
    let mut replica = Replica::start(interposer.clone(), cell.config())?;
    if live {
        if !scenario.ends_in_flight() {
            cell.settle(&replica, QUIET, LIMIT, |_| Ok(())).await.context("at rest")?;
            interposer.restart_count();
        }
        arm(&interposer, &plot.injection);
        scenario.change(&cell).await?;
    }
    if let Injection::Request(_, Fault::Crash(_)) = plot.injection {
        replica = crash_and_start_again(&cell, replica, scenario).await?;
    }
    let quiet = match &plot.injection {
        Injection::None | Injection::Request(_, Fault::Lose | Fault::Answer(_)) => LONG_QUIET,
        _ => QUIET,
    };
    let holds = |scene: &Scene| {
        scenario.check(scene)?;
        // What is about to be done again after a pause leaves no trace but this.
        if !scenario.ends_in_flight() && cell.grants(NAME).len() < before + scenario.expected().grants {
            return Err("a grant is missing".to_owned());
        }
        if let Some(reference) = reference
            && let Some(difference) = difference(&reference.picture, &cell.picture(scene, NAME))
        {
            return Err(difference);
        }
        if scenario.ends_in_flight() || scenario.is_foreign() { Ok(()) } else { cell.check_alive(scene, TARGET) }
    };
    cell.settle(&replica, quiet, LIMIT, holds).await?;
    let requests = interposer.seen().into_iter().map(|seen| (seen.point, seen.status)).collect();
    let (events, reached) = (interposer.events(), interposer.hits() > 0);
    replica.crash().await;
    let scene = cell.scene();
    let stored = cell.stored(&scene, TARGET);
    let grants = &cell.grants(NAME)[before..];
    let orphans = grants.iter().filter(|grant| !stored.contains(&grant.token)).count();
    if scenario.is_foreign() {
        ensure!(stored.iter().eq(["kept"]), "a foreign Secret was touched");
    }
    if !scenario.is_foreign() {
        cell.check_history(&scene, NAME, TARGET)?;
    }
    let picture = cell.picture(&scene, NAME);
    Ok(Outcome { picture, requests, events, grants: grants.len(), orphans, reached })
}

/// The object is deleted once its token was granted, before the answer arrives.
fn arrange_end(cell: &Cell<'_>, interposer: &Interposer) {
    let (scenes, namespace) = (cell.world.scenes.clone(), cell.namespace.clone());
    let admin = cell.world.admin.clone();
    interposer.intervene(Point::new(TOKEN, 0), Moment::Unanswered, async move {
        let deleted = delete(admin, &namespace, scenes).await;
        if let Err(error) = deleted {
            tracing::warn!("{error:#}");
        }
    });
}

async fn delete(admin: kube::Client, namespace: &str, scenes: crate::world::Scenes) -> anyhow::Result<()> {
    let resource = kube::core::ApiResource::erase::<moneygo_operator::crd::MoneyGoCredential>(&());
    let api: kube::Api<kube::api::DynamicObject> = kube::Api::namespaced_with(admin, namespace, &resource);
    api.delete(NAME, &kube::api::DeleteParams::default()).await?;
    let mut scene = scenes.of(namespace);
    tokio::time::timeout(LIMIT, scene.wait_for(|scene| !scene.objects.contains_key(NAME))).await??;
    // The operator's watch is another one.
    tokio::time::sleep(Duration::from_millis(50)).await;
    Ok(())
}

fn arm(interposer: &Interposer, injection: &Injection) {
    match injection {
        Injection::None => {}
        Injection::Request(at, fault) => interposer.inject(at.clone(), *fault),
        Injection::Event(at, fault) => interposer.inject_in_stream(at.clone(), *fault),
    }
}

async fn crash_and_start_again(cell: &Cell<'_>, replica: Replica, scenario: Scenario) -> anyhow::Result<Replica> {
    let interposer = replica.interposer.clone();
    ensure!(interposer.hit(LIMIT).await, "the request is never made");
    let crashed = tokio::time::timeout(LIMIT, interposer.killed().cancelled_owned()).await;
    crashed.context("the operator does not crash")?;
    replica.crash().await;
    ensure!(interposer.drained(LIMIT).await, "a request goes on for ever");
    if scenario.ends_in_flight() && cell.scene().objects.contains_key(NAME) {
        cell.delete(NAME).await?;
    }
    Replica::start(Interposer::new(cell.world.admin.clone()), cell.config())
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
        ensure!(outcome.orphans == usize::from(scenario == Scenario::DeletedInFlight), "{plot}: {} orphans", outcome.orphans);
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

/// How many grants may be lost: a token in flight, at the very fault.
fn orphans_allowed(plot: &Plot) -> usize {
    let is_fatal = match &plot.injection {
        Injection::Request(_, Fault::Crash(_)) => true,
        Injection::Request(point, Fault::Lose) => point.what == TOKEN,
        _ => false,
    };
    usize::from(is_fatal || plot.scenario.ends_in_flight())
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
    ensure!(useful <= reference.grants, "{useful} grants were stored in place of {}", reference.grants);
    ensure!(
        plot.scenario.ends_in_flight() || useful == reference.grants,
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
                let reference = std::sync::Arc::new(reference);
                let cells = if live { reference.event_plots(scenario) } else { reference.request_plots(scenario) };
                plots.extend(cells.into_iter().map(|plot| (plot, std::sync::Arc::clone(&reference))));
            }
            Err(error) => {
                let plot = Plot { scenario, injection: Injection::None, live };
                tally.violation(&plot.to_string(), &format!("{error:#}"));
            }
        }
    }
    tally.note(format!("{} cells in all", plots.len()));
    let chosen = plots.into_iter().enumerate().filter(|(index, _)| (*index as u64 + share.seed).is_multiple_of(share.one_of as u64));
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
