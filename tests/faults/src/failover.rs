//! Two replicas, of which the leader is stopped or cut off at a request of a reconcile, and let go when the other has taken over.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use futures::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use moneygo_operator::clock::Clock;
use moneygo_operator::crd::annotation;
use serde_json::json;

use crate::cell::{Cell, is_ready};
use crate::interposer::{Cut, Fault, Interposer, Moment, Point, TOKEN};
use crate::random::Draws;
use crate::replica::{Config, Replica};
use crate::tally::Tally;
use crate::world::{Provider, World};

const LIMIT: Duration = Duration::from_mins(1);
/// Within which every Secret must hold a living token again, for good.
const ALIVE_WITHIN: Duration = Duration::from_secs(10);
const QUIET: Duration = Duration::from_millis(300);
const POLL: Duration = Duration::from_millis(20);
/// The tokens of objects that are in flight, of which a failover may lose two each.
const ORPHANS: usize = 2;
/// By how much the clocks of two machines differ, where they do: no order of issue can be read from them.
const SKEW: Duration = Duration::from_secs(7);
/// Of the lease: the shortest that the operator takes.
const LEASE: Duration = Duration::from_secs(3);
/// How many rounds a pair plays before it is replaced.
const ROUNDS_OF_A_PAIR: usize = 10;

/// Why a token is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Trigger {
    New,
    Due,
    Requested,
    Lost,
}

/// A request of a reconcile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Place {
    Credentials,
    Target,
    Namespace,
    Token,
    Write,
    Status,
    Event,
}

/// One failover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Round {
    provider: Provider,
    trigger: Trigger,
    place: Place,
    fault: Fault,
    /// The old leader is let go only once the new one has done its work.
    late: bool,
    objects: usize,
    clocks: Clocks,
}

/// How the second replica's clock stands to the first's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Clocks {
    Same,
    Ahead,
    Behind,
}

const CLOCKS: [Clocks; 4] = [Clocks::Same, Clocks::Ahead, Clocks::Same, Clocks::Behind];

impl Clocks {
    fn of_the_second(self) -> Clock {
        match self {
            Self::Same => Clock::SYSTEM,
            Self::Ahead => Clock::new(|| off_by(SignedDuration::from_secs(7)), boot),
            Self::Behind => Clock::new(|| off_by(SignedDuration::from_secs(-7)), boot),
        }
    }
}

const TRIGGERS: [Trigger; 4] = [Trigger::New, Trigger::Due, Trigger::Requested, Trigger::Lost];
const PLACES: [Place; 7] =
    [Place::Credentials, Place::Target, Place::Namespace, Place::Token, Place::Write, Place::Status, Place::Event];
const FAULTS: [Fault; 7] = [
    Fault::Freeze(Moment::Before),
    Fault::Freeze(Moment::Unanswered),
    Fault::Partition(Cut::Silent, Moment::Before),
    Fault::Partition(Cut::Refused, Moment::Before),
    Fault::Partition(Cut::Silent, Moment::Unanswered),
    Fault::Partition(Cut::Refused, Moment::Unanswered),
    Fault::Partition(Cut::Refused, Moment::After),
];

impl Round {
    /// The round of a number: all of them are passed in turn, and what else there is is drawn.
    #[must_use]
    pub fn numbered(provider: Provider, clocks: Clocks, number: usize, seed: u64) -> Self {
        let mut draws = Draws::new(seed.wrapping_mul(1_000_003).wrapping_add(number as u64));
        let (places, faults) = (PLACES.len(), FAULTS.len());
        Self {
            provider,
            place: PLACES[number % places],
            fault: FAULTS[number / places % faults],
            trigger: draws.one_of(&TRIGGERS),
            late: draws.below(2) == 0,
            objects: 1 + draws.below(3),
            clocks,
        }
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { provider, trigger, place, fault, late, objects, clocks } = self;
        let when = if *late { "late" } else { "early" };
        write!(f, "failovers:{provider}:{trigger:?}:{place:?}:{fault}:{when}:{objects}:{clocks:?}")
    }
}

impl FromStr for Round {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let ["failovers", provider, trigger, place, fault, when, objects, clocks] = parts.as_slice() else {
            bail!("a failover is failovers:PROVIDER:TRIGGER:PLACE:FAULT:WHEN:OBJECTS:CLOCKS")
        };
        let trigger = TRIGGERS.into_iter().find(|one| format!("{one:?}") == *trigger).context("no such trigger")?;
        let place = PLACES.into_iter().find(|one| format!("{one:?}") == *place).context("no such place")?;
        Ok(Self {
            provider: provider.parse()?,
            trigger,
            place,
            fault: fault.parse()?,
            late: *when == "late",
            objects: objects.parse()?,
            clocks: CLOCKS.into_iter().find(|one| format!("{one:?}") == *clocks).context("no such clocks")?,
        })
    }
}

impl Place {
    fn is(self, point: &Point, names: &[String]) -> bool {
        let what = point.what.as_str();
        let any = |of: &dyn Fn(&str) -> String| names.iter().any(|name| what == of(name));
        match self {
            Self::Credentials => any(&|name| format!("get secrets/{name}-client")),
            Self::Target => any(&|name| format!("get secrets/{name}")),
            Self::Namespace => what == "get namespaces",
            Self::Token => what == TOKEN,
            Self::Write => what == "post secrets" || any(&|name| format!("put secrets/{name}")),
            Self::Status => any(&|name| format!("put moneygocredentials/{name}/status")),
            Self::Event => what == "post events",
        }
    }
}

/// What a failover came to.
#[derive(Debug, Default)]
struct Outcome {
    happened: bool,
    orphans: usize,
    most_orphans: usize,
    alive: Duration,
    settled: Duration,
}

/// Two replicas in a namespace of their own.
struct Pair<'w> {
    cell: Cell<'w>,
    replicas: Vec<Replica>,
    rounds: usize,
}

const ON: &str = "faults=on";
const OFF: &str = "faults=off";

impl<'w> Pair<'w> {
    async fn open(world: &'w World, provider: Provider, clocks: Clocks) -> anyhow::Result<Self> {
        let cell = Cell::open(world, provider).await?;
        let mut replicas = Vec::new();
        for (identity, clock) in [("one", Clock::SYSTEM), ("two", clocks.of_the_second())] {
            let config = Config {
                clock,
                candidate: Some(identity.to_owned()),
                label_selector: Some(ON.to_owned()),
                lease: LEASE,
                ..cell.config()
            };
            replicas.push(Replica::start(Interposer::new(world.admin.clone()), config)?);
        }
        Ok(Self { cell, replicas, rounds: 0 })
    }

    /// The leader, and the other.
    async fn roles(&self) -> anyhow::Result<(&Replica, &Replica)> {
        let started = Instant::now();
        loop {
            let [one, two] = self.replicas.as_slice() else { bail!("a pair is two") };
            match (one.is_leader(), two.is_leader()) {
                (true, false) => return Ok((one, two)),
                (false, true) => return Ok((two, one)),
                _ => {}
            }
            ensure!(started.elapsed() < LIMIT, "nobody leads");
            tokio::time::sleep(POLL).await;
        }
    }

    async fn play(&mut self, round: &Round) -> anyhow::Result<Outcome> {
        self.rounds += 1;
        let names: Vec<String> = (0..round.objects).map(|index| format!("r{}-{index}", self.rounds)).collect();
        self.prepare(round.trigger, &names).await?;
        let (leader, other) = self.roles().await?;
        let before: Vec<usize> = names.iter().map(|name| self.cell.grants(name).len()).collect();
        let hits = leader.interposer.hits();
        let (place, at, first) = (round.place, names.clone(), AtomicBool::new(true));
        let applies = move |point: &Point| place.is(point, &at) && first.swap(false, Ordering::Relaxed);
        leader.interposer.inject_where(applies, round.fault);
        for name in &names {
            self.pull(round.trigger, name).await?;
        }
        let started = Instant::now();
        while leader.interposer.hits() == hits && started.elapsed() < Duration::from_secs(8) {
            tokio::time::sleep(POLL / 4).await;
        }
        let hit = leader.interposer.hits() > hits;
        let happened = hit && taken_over(other).await;
        if happened && round.late {
            let _ = self.settled(&[other], &names, Duration::from_secs(3)).await;
        }
        leader.interposer.disarm();
        leader.interposer.release();
        let released = Instant::now();
        let last_dead = self.settled(&[leader, other], &names, LIMIT).await?;
        let settled = released.elapsed().saturating_sub(QUIET);
        let alive = last_dead.map(|at| at.saturating_duration_since(released)).unwrap_or_default();
        let scene = self.cell.scene();
        let mut result = Outcome { happened, alive, settled, ..Outcome::default() };
        for (name, before) in names.iter().zip(before) {
            let stored = self.cell.stored(&scene, name);
            let issued: BTreeSet<String> =
                self.cell.grants(name).into_iter().skip(before).map(|one| one.token).collect();
            let orphans = issued.difference(&stored).count();
            ensure!(orphans <= ORPHANS, "{orphans} tokens of {name} were lost");
            result.orphans += orphans;
            result.most_orphans = result.most_orphans.max(orphans);
        }
        ensure!(alive <= ALIVE_WITHIN, "a Secret held a dead token {alive:?} after the old leader was let go");
        Ok(result)
    }

    async fn prepare(&self, trigger: Trigger, names: &[String]) -> anyhow::Result<()> {
        let label = match trigger {
            Trigger::New => return Ok(()),
            Trigger::Due => "off",
            Trigger::Requested | Trigger::Lost => "on",
        };
        for name in names {
            self.cell.subscribe(name, &json!({}), json!({"faults": label})).await?;
        }
        if trigger == Trigger::Due {
            return self.cell.set_up(Clock::new(twenty_five_days_ago, boot), Some(OFF)).await;
        }
        let replicas: Vec<&Replica> = self.replicas.iter().collect();
        self.settled(&replicas, names, LIMIT).await?;
        for name in names {
            let grants = self.cell.grants(name).len();
            ensure!(grants == 1, "{grants} grants for {name}, though nobody was replaced");
        }
        Ok(())
    }

    async fn pull(&self, trigger: Trigger, name: &str) -> anyhow::Result<()> {
        match trigger {
            Trigger::New => self.cell.subscribe(name, &json!({}), json!({"faults": "on"})).await,
            Trigger::Due => self.cell.patch(name, json!({"metadata": {"labels": {"faults": "on"}}})).await,
            Trigger::Requested => {
                let asked = json!({"metadata": {"annotations": {annotation::REFRESH_REQUESTED: "now"}}});
                self.cell.patch(name, asked).await
            }
            Trigger::Lost => self.cell.delete_secret(name).await,
        }
    }

    /// Waits until every object is Ready with a living token, its Secret is newer than what was asked of it, and nobody
    /// does anything more. Returns when a Secret was last seen without a living token.
    async fn settled(
        &self,
        replicas: &[&Replica],
        names: &[String],
        limit: Duration,
    ) -> anyhow::Result<Option<Instant>> {
        let started = Instant::now();
        let mut last_dead = None;
        loop {
            let scene = self.cell.scene();
            if names.iter().any(|name| self.cell.check_alive(&scene, name).is_err()) {
                last_dead = Some(Instant::now());
            }
            let quiet = replicas.iter().all(|one| one.interposer.quiet().is_some_and(|quiet| quiet > QUIET));
            let verdict = if quiet { self.is_right(names) } else { Err("not quiet".to_owned()) };
            match verdict {
                Ok(()) => return Ok(last_dead),
                Err(why) if started.elapsed() > limit => bail!("not settled within {limit:?}: {why}"),
                Err(_) => tokio::time::sleep(POLL).await,
            }
        }
    }

    fn is_right(&self, names: &[String]) -> Result<(), String> {
        let scene = self.cell.scene();
        for name in names {
            let object = scene.objects.get(name).ok_or("no object")?;
            if !is_ready(object) {
                return Err(format!("{name} is not Ready"));
            }
            let asked = object.metadata.annotations.as_ref().and_then(|all| all.get(annotation::REFRESH_REQUESTED));
            if asked.is_some_and(|asked| object.data["status"]["lastHandledRefresh"] != asked.as_str()) {
                return Err(format!("the request of {name} is not answered"));
            }
            self.cell.check_alive(&scene, name).map_err(|why| format!("{name}: {why}"))?;
            self.cell.check_history(&scene, name, name, SKEW)?;
        }
        Ok(())
    }
}

/// Waits until the lease has run out and the other has it.
async fn taken_over(other: &Replica) -> bool {
    let started = Instant::now();
    while !other.is_leader() {
        if started.elapsed() > LIMIT {
            return false;
        }
        tokio::time::sleep(POLL).await;
    }
    true
}

fn off_by(time: SignedDuration) -> Timestamp {
    let now = Clock::SYSTEM.now();
    now.saturating_add(time).unwrap_or(now)
}

fn twenty_five_days_ago() -> Timestamp {
    off_by(SignedDuration::from_hours(-24 * 25))
}

fn boot() -> Duration {
    Clock::SYSTEM.moment().boot
}

#[derive(Default)]
struct Sum {
    tally: Tally,
    failovers: usize,
    orphans: usize,
    most_orphans: usize,
    alive: Duration,
    longest: Duration,
}

/// Plays failovers, with several pairs at once.
///
/// # Errors
/// Where a pair cannot be set up.
pub async fn run(world: &World, rounds: usize, pairs: usize, seed: u64) -> anyhow::Result<Tally> {
    let started = Instant::now();
    let batches = rounds.div_ceil(ROUNDS_OF_A_PAIR.min(rounds.div_ceil(pairs)));
    let of_a_batch = rounds.div_ceil(batches);
    let results: Vec<_> = futures::stream::iter(0..batches)
        .map(|batch| async move {
            let provider = Provider::ALL[batch % Provider::ALL.len()];
            let clocks = CLOCKS[batch / Provider::ALL.len() % CLOCKS.len()];
            let numbers = (0..of_a_batch).map(move |index| (batch / Provider::ALL.len()) * of_a_batch + index);
            let rounds: Vec<Round> = numbers.map(|number| Round::numbered(provider, clocks, number, seed)).collect();
            play_batch(world, provider, clocks, &rounds).await
        })
        .buffer_unordered(pairs)
        .collect()
        .await;
    let mut sum = Sum { tally: Tally::new("failovers"), ..Sum::default() };
    for (round, result) in results.into_iter().flatten() {
        sum.add(&round, result);
    }
    sum.tally.note(format!("{} leaders replaced", sum.failovers));
    sum.tally.note(format!("{} tokens lost, {} at most of an object", sum.orphans, sum.most_orphans));
    sum.tally.note(format!("a living token for good after {:.1} s at most", sum.alive.as_secs_f64()));
    sum.tally.note(format!("settled after {:.1} s at most", sum.longest.as_secs_f64()));
    sum.tally.took(started.elapsed());
    Ok(sum.tally)
}

impl Sum {
    fn add(&mut self, round: &Round, result: anyhow::Result<Outcome>) {
        self.tally.count();
        match result {
            Ok(result) => {
                self.failovers += usize::from(result.happened);
                self.orphans += result.orphans;
                self.most_orphans = self.most_orphans.max(result.most_orphans);
                self.alive = self.alive.max(result.alive);
                self.longest = self.longest.max(result.settled);
            }
            Err(error) => self.tally.violation(&round.to_string(), &format!("{error:#}")),
        }
    }
}

async fn play_batch(
    world: &World,
    provider: Provider,
    clocks: Clocks,
    rounds: &[Round],
) -> Vec<(Round, anyhow::Result<Outcome>)> {
    let mut results = Vec::new();
    let mut pair = None;
    for round in rounds {
        let result = async {
            if pair.is_none() {
                pair = Some(Pair::open(world, provider, clocks).await?);
            }
            pair.as_mut().context("a pair")?.play(round).await
        };
        let result = result.await;
        if result.is_err() {
            // What went wrong once says nothing about the next round: that one gets a pair of its own.
            pair = None;
        }
        results.push((*round, result));
    }
    results
}

/// Plays one failover again.
///
/// # Errors
/// What is wrong.
pub async fn replay(world: &World, round: &Round) -> anyhow::Result<()> {
    let result = Pair::open(world, round.provider, round.clocks).await?.play(round).await?;
    println!("{result:?}");
    Ok(())
}
