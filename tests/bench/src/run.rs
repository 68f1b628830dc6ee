//! Carries a plan out. One filled world serves for as much as possible; each filling has a control plane of its own, so that etcd is as large for all.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use jiff::Timestamp;

use crate::fill::{Filling, fill};
use crate::machine::Machine;
use crate::peer::Peer;
use crate::plan::Plan;
use crate::reactions::{Change, answered};
use crate::results::{Reactions, Results};
use crate::subject::{Subject, Who};
use crate::world::{Rights, World};
use crate::{burst, failover, idle, latency, memory, restart};

/// A run under way.
pub struct Run<'a> {
    plan: Plan,
    operator: &'a Path,
    began: Instant,
    /// What was found so far.
    pub results: Results,
}

/// What is measured in a world that the operator has filled.
#[derive(Clone, Copy)]
enum Then {
    Nothing,
    /// In the main world, as of the peer.
    Restarts,
    Everything,
}

impl<'a> Run<'a> {
    /// Begins one.
    ///
    /// # Errors
    /// If the operator cannot be run.
    pub fn new(plan: Plan, operator: &'a Path) -> Result<Self> {
        let results = Results {
            plan: plan.name.to_owned(),
            began: Timestamp::now(),
            machine: Machine::look(operator)?,
            sizes: (plan.small, plan.main),
            concurrency: plan.concurrencies.last().copied().unwrap_or(1),
            ..Results::default()
        };
        Ok(Self { plan, operator, began: Instant::now(), results })
    }

    /// Measures everything. What fails is noted, and the rest goes on.
    pub async fn all(&mut self) {
        let found = self.best_concurrency().await;
        self.note("the floor's best concurrency", found);
        let found = self.starts().await;
        self.note("starts without objects", found);
        for (objects, repeats) in self.plan.fillings {
            for repeat in 0..*repeats {
                let what = format!("filling {objects}, {} of {repeats}", repeat + 1);
                let then = if repeat + 1 == *repeats { Then::Everything } else { Then::Nothing };
                self.both_fill(&what, *objects, then).await;
            }
        }
        self.results.seconds = self.began.elapsed().as_secs_f64();
    }

    /// Measures fillings and restarts alone, of the floor, the operator and the peer in turns.
    pub async fn beside(&mut self, peer: &Peer) {
        let found = self.best_concurrency().await;
        self.note("the floor's best concurrency", found);
        for (objects, repeats) in self.plan.fillings {
            for repeat in 0..*repeats {
                let what = format!("filling {objects}, {} of {repeats}", repeat + 1);
                self.both_fill(&what, *objects, Then::Restarts).await;
                let found = self.peer_fills(peer, *objects).await;
                self.note(&format!("{what}, the peer"), found);
            }
        }
        self.results.seconds = self.began.elapsed().as_secs_f64();
    }

    fn note(&mut self, what: &str, found: Result<()>) {
        if let Err(error) = found {
            self.say(&format!("{what}: NOT MEASURED: {error:#}"));
            self.results.missing.push(format!("{what}: {error:#}"));
        }
    }

    fn say(&self, what: &str) {
        let secs = self.began.elapsed().as_secs();
        println!("[{:>2}:{:02}] {what}", secs / 60, secs % 60);
    }

    fn floor(&self, mend: bool) -> Who<'static> {
        Who::Floor { concurrency: self.results.concurrency, mend }
    }

    fn open(&self) -> Who<'a> {
        Who::open(self.operator, self.results.concurrency)
    }

    async fn best_concurrency(&mut self) -> Result<()> {
        for concurrency in self.plan.concurrencies {
            let world = populated(self.plan.trial).await?;
            let who = Who::Floor { concurrency: *concurrency, mend: false };
            let (_subject, filling) = fill(&world, &who, self.plan.trial, self.plan.settle / 4).await?;
            self.say(&format!("the floor with {concurrency} at once: {:.0} tokens a second", filling.rate()));
            self.results.concurrencies.insert(*concurrency, filling.rate());
            world.end().await?;
        }
        let best = self.results.concurrencies.iter().max_by(|a, b| a.1.total_cmp(b.1));
        self.results.concurrency = *best.context("no concurrency was tried")?.0;
        Ok(())
    }

    async fn starts(&mut self) -> Result<()> {
        let world = World::start(Rights::Documented).await?;
        for _ in 0..self.plan.starts {
            let empty = memory::empty(&world, &self.open(), self.plan.settle).await?;
            self.say(&format!("without objects: ready in {:.0} ms", empty.ready_millis));
            self.results.empty.push(empty);
        }
        world.end().await
    }

    async fn filled(&self, name: &str, who: &Who<'_>, objects: usize) -> Result<(World, Subject, Filling)> {
        self.say(&format!("filling {objects}: {name}"));
        let world = populated(objects).await?;
        let (subject, filling) = fill(&world, who, objects, self.plan.settle).await?;
        self.say(&format!("  {:.0} tokens a second", filling.rate()));
        Ok((world, subject, filling))
    }

    async fn floor_fills(&mut self, objects: usize) -> Result<()> {
        let (world, subject, filling) = self.filled("the floor", &self.floor(false), objects).await?;
        self.results.fillings.entry(objects).or_default().floor.push(filling);
        subject.kill()?;
        world.end().await
    }

    async fn operator_fills(&mut self, objects: usize, then: Then) -> Result<()> {
        let (world, subject, filling) = self.filled("the operator", &self.open(), objects).await?;
        self.results.fillings.entry(objects).or_default().operator.push(filling);
        match then {
            Then::Everything if objects == self.plan.small => self.in_small_world(&world, subject).await,
            Then::Everything if objects == self.plan.main => self.in_main_world(&world, subject).await,
            Then::Restarts if objects == self.plan.main => {
                subject.stop().await?;
                self.restarts(&world).await?;
            }
            _ => {}
        }
        world.end().await
    }

    async fn both_fill(&mut self, what: &str, objects: usize, then: Then) {
        let found = self.floor_fills(objects).await;
        self.note(&format!("{what}, the floor"), found);
        let found = self.operator_fills(objects, then).await;
        self.note(what, found);
    }

    async fn peer_fills(&mut self, peer: &Peer, objects: usize) -> Result<()> {
        self.say(&format!("filling {objects}: the peer"));
        let restarts = if objects == self.plan.main { self.plan.rounds } else { 0 };
        let (filling, restarted) = peer.fill(objects, self.results.concurrency, restarts).await?;
        self.say(&format!("  {:.0} tokens a second, {} requests for tokens", filling.rate(), filling.grants));
        for start in &restarted {
            self.say(&format!("  a restart: steady after {:.0} ms", start.steady_millis));
        }
        self.results.peer.entry(objects).or_default().push(filling);
        self.results.peer_restarts.extend(restarted);
        Ok(())
    }

    async fn in_small_world(&mut self, world: &World, subject: Subject) {
        let found = self.reactions(world, self.plan.small).await;
        self.note("reactions", found);
        let found = subject.stop().await;
        self.note("a stop", found);
        let found = self.floor_reactions(world, self.plan.small).await;
        self.note("reactions of the floor", found);
        self.say(&format!("{} foreign Secrets, small and large", self.plan.foreign));
        let found = memory::foreign(world, &self.open(), self.plan.foreign, self.plan.settle).await;
        let found = found.map(|foreign| self.results.foreign = foreign);
        self.note("foreign Secrets", found);
    }

    async fn in_main_world(&mut self, world: &World, subject: Subject) {
        let found = self.idling(world, &subject).await;
        self.note("idling", found);
        let found = self.reactions(world, self.plan.main).await;
        self.note("reactions", found);
        let found = subject.stop().await;
        self.note("a stop", found);
        let found = self.floor_reactions(world, self.plan.main).await;
        self.note("reactions of the floor", found);
        let found = self.one_by_one(world).await;
        self.note("from manifest to Secret", found);
        let found = self.restarts(world).await;
        self.note("restarts", found);
        let found = self.failovers(world).await;
        self.note("failovers", found);
        let found = self.burst(world).await;
        self.note("all due at once", found);
    }

    async fn idling(&mut self, world: &World, subject: &Subject) -> Result<()> {
        world.rest().await?;
        for _ in 0..self.plan.rounds {
            self.say(&format!("idling for {} s", self.plan.idle.as_secs()));
            self.results.idling.push(idle::idle(world, subject, self.plan.idle).await?);
        }
        Ok(())
    }

    async fn reactions(&mut self, world: &World, objects: usize) -> Result<()> {
        for change in Change::ALL {
            self.say(&format!("beside {objects}: {}", change.words()));
            for round in 0..self.plan.rounds {
                let count = if change == Change::TargetDeleted { self.plan.deleted } else { self.plan.changes };
                let namespace = format!("{}-{round}", change.words().replace(' ', "-"));
                let latencies = answered(world, &namespace, change, count).await.context(change.words())?;
                self.reactions_to(change, objects).rounds.operator.push(latencies);
            }
        }
        Ok(())
    }

    async fn floor_reactions(&mut self, world: &World, objects: usize) -> Result<()> {
        self.say(&format!("beside {objects}: target deleted, the floor"));
        let _subject = Subject::start(world, &self.floor(true))?;
        world.rest().await?;
        for round in 0..self.plan.rounds {
            let namespace = format!("floor-deleted-{round}");
            let latencies = answered(world, &namespace, Change::TargetDeleted, self.plan.deleted).await?;
            self.reactions_to(Change::TargetDeleted, objects).rounds.floor.push(latencies);
        }
        Ok(())
    }

    fn reactions_to(&mut self, change: Change, objects: usize) -> &mut Reactions {
        let all = &mut self.results.reactions;
        let known = all.iter().position(|other| other.change == change && other.objects == objects);
        let index = known.unwrap_or_else(|| {
            all.push(Reactions { change, objects, rounds: crate::results::Pair::default() });
            all.len() - 1
        });
        &mut all[index]
    }

    async fn one_by_one(&mut self, world: &World) -> Result<()> {
        for round in 0..self.plan.rounds {
            self.say("from manifest to Secret, the floor and the operator");
            let floor = Subject::start(world, &self.floor(false))?;
            world.rest().await?;
            let latencies = latency::one_by_one(world, &format!("floor-{round}"), self.plan.one_by_one).await?;
            self.results.one_by_one.floor.push(latencies);
            floor.kill()?;
            let mut operator = Subject::start(world, &self.open())?;
            operator.ready().await?;
            world.rest().await?;
            let latencies = latency::one_by_one(world, &format!("operator-{round}"), self.plan.one_by_one).await?;
            self.results.one_by_one.operator.push(latencies);
            operator.stop().await?;
        }
        Ok(())
    }

    async fn restarts(&mut self, world: &World) -> Result<()> {
        for round in 0..self.plan.rounds {
            // In turns: lists of this size make the API server collect its garbage every second time.
            if round % 2 == 0 {
                self.bare_lists(world).await?;
            }
            let (subject, found) = restart::restart(world, &self.open()).await?;
            let (ready, steady) = (found.ready_millis, found.whole.steady_millis);
            self.say(&format!("a restart: ready in {ready:.0} ms, steady after {steady:.0}"));
            self.results.restarts.push(found);
            subject.stop().await?;
            if round % 2 == 1 {
                self.bare_lists(world).await?;
            }
        }
        Ok(())
    }

    async fn bare_lists(&mut self, world: &World) -> Result<()> {
        let millis = restart::bare_lists(world).await?;
        self.say(&format!("the same lists for a bare client: {millis:.0} ms"));
        self.results.bare_lists.push(millis);
        Ok(())
    }

    async fn failovers(&mut self, world: &World) -> Result<()> {
        self.say("failovers, by SIGKILL and by SIGTERM");
        let mut leader = Subject::start(world, &self.open())?;
        leader.ready().await?;
        let (leader, found) = failover::play(world, &self.open(), leader, self.plan.rounds).await?;
        self.results.failovers = Some(found);
        leader.stop().await
    }

    async fn burst(&mut self, world: &World) -> Result<()> {
        let (objects, rate, concurrency) = (self.plan.main, self.plan.burst_rate, self.results.concurrency);
        self.say(&format!("{objects} due at once, {rate} a second, an endpoint that takes 200 ms"));
        let who = Who::limited(self.operator, rate, concurrency);
        self.results.burst = Some(burst::burst(world, &who, 0..objects, rate, concurrency).await?);
        Ok(())
    }
}

async fn populated(objects: usize) -> Result<World> {
    let world = World::start(Rights::Documented).await?;
    world.populate(0..objects).await?;
    Ok(world)
}
