//! One run: a setting and its disturbances, from an empty cluster to the judgement.

use std::sync::{Arc, Mutex};
use std::thread;

use moneygo_operator::token::TokenClient;

use crate::logs::Logs;
use crate::node::Node;
use crate::oracle::{self, Watched};
use crate::schedule::{Disturbance, Setting, disturbances};
use crate::time::{self, Millis, SECOND};
use crate::world::{Counts, Shared, Violation, World, lock};

/// What a run came to.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The first promise that was not kept.
    pub violation: Option<Violation>,
    /// What was counted.
    pub counts: Counts,
    /// What happened, where that was wanted.
    pub trace: Vec<String>,
}

/// Runs a seed, with all of its disturbances or with those at these places of their list.
///
/// # Errors
/// Where the simulation itself cannot run.
pub fn run_seed(clients: &[TokenClient], seed: u64, keep: Option<&[usize]>, traced: bool) -> anyhow::Result<Outcome> {
    let setting = Setting::of(seed);
    let all = disturbances(&setting);
    let kept = match keep {
        None => all,
        Some(keep) => keep.iter().filter_map(|place| all.get(*place).copied()).collect(),
    };
    run(clients, setting, kept, traced)
}

/// Runs a setting with disturbances.
///
/// # Errors
/// As [`run_seed`].
pub fn run(
    clients: &[TokenClient],
    setting: Setting,
    disturbances: Vec<Disturbance>,
    traced: bool,
) -> anyhow::Result<Outcome> {
    alone(|| {
        time::reset();
        fastrand::seed(setting.seed);
        crate::logs::reset(traced);
        let mut run = Run::new(clients, setting, disturbances, traced);
        run.through_faults()?;
        run.settle()?;
        run.quiet()?;
        Ok(run.end())
    })
}

/// Does something on a thread of its own, with what the operator logs going to the simulation. A new thread gives std's hash
/// maps the order that they had in any other run (see `steady.c`).
///
/// # Errors
/// Those of `work`, and where it panics.
pub fn alone<T: Send>(work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    let logged = || tracing::subscriber::with_default(Logs, work);
    let ended = thread::scope(|scope| scope.spawn(logged).join());
    ended.unwrap_or_else(|_| Err(anyhow::anyhow!("a run panicked: see above")))
}

struct Run {
    world: Shared,
    nodes: Vec<Node>,
    watched: Vec<Watched>,
    /// When something begins or ends: the moment, its place in the list, whether it begins.
    points: Vec<(Millis, usize, bool)>,
    step: Millis,
    now: Millis,
}

impl Run {
    fn new(clients: &[TokenClient], setting: Setting, disturbances: Vec<Disturbance>, traced: bool) -> Self {
        let mut points: Vec<_> = disturbances
            .iter()
            .enumerate()
            .flat_map(|(place, one)| [(one.at, place, true), (one.at + one.lasts, place, false)])
            .collect();
        points.sort_by_key(|(at, place, begins)| (*at, !*begins, *place));
        let (replicas, step, objects) = (setting.replicas, setting.step, setting.objects.len());
        let world: Shared = Arc::new(Mutex::new(World::new(setting, disturbances, traced)));
        let nodes = clients.iter().take(replicas).enumerate();
        let nodes = nodes.map(|(index, client)| Node::new(world.clone(), index, client.clone())).collect();
        lock(&world).begin();
        Self { world, nodes, watched: vec![Watched::NEW; objects], points, step, now: 0 }
    }

    fn is_over(&self) -> bool {
        lock(&self.world).violation.is_some()
    }

    fn advance(&mut self, to: Millis) -> anyhow::Result<()> {
        for node in &mut self.nodes {
            node.run_until(to)?;
        }
        self.now = to;
        let mut world = lock(&self.world);
        crate::logs::drain(&mut world, to);
        world.collect_garbage(to);
        world.check_expectations(to);
        oracle::judge(&mut world, &mut self.watched, to);
        Ok(())
    }

    fn advance_until(&mut self, end: Millis) -> anyhow::Result<()> {
        while self.now < end && !self.is_over() {
            self.advance((self.now + self.step).min(end))?;
        }
        Ok(())
    }

    fn through_faults(&mut self) -> anyhow::Result<()> {
        for (at, place, begins) in std::mem::take(&mut self.points) {
            self.advance_until(at)?;
            let mut world = lock(&self.world);
            if begins {
                world.begin_disturbance(place, at);
            } else {
                world.end_disturbance(place, at);
            }
            world.pulse.notify_waiters();
        }
        lock(&self.world).end_faults();
        Ok(())
    }

    /// Faults that were under way may reach further than their own end.
    fn settle(&mut self) -> anyhow::Result<()> {
        loop {
            let end = {
                let world = lock(&self.world);
                world.clean_from() + oracle::patience(&world)
            };
            if self.now >= end || self.is_over() {
                break;
            }
            self.advance_until(end)?;
        }
        // A planned refresh may be under way at any moment.
        let end = self.now + oracle::patience(&lock(&self.world));
        while !self.is_over() {
            let wrong = oracle::wrong(&lock(&self.world), self.now);
            match wrong {
                None => break,
                Some(wrong) if self.now >= end => {
                    lock(&self.world).violate("in the end all is as the spec says", self.now, wrong);
                }
                Some(_) => self.advance((self.now + self.step).min(end))?,
            }
        }
        Ok(())
    }

    fn quiet(&mut self) -> anyhow::Result<()> {
        let length = {
            let mut world = lock(&self.world);
            world.begin_quiet();
            (world.setting.lifetime * 6 / 5).max(30 * SECOND)
        };
        self.advance_until(self.now + length)?;
        if !self.is_over() {
            lock(&self.world).judge_quiet(self.now, length);
        }
        Ok(())
    }

    fn end(self) -> Outcome {
        drop(self.nodes);
        let mut world = lock(&self.world);
        world.counts.simulated = self.now;
        Outcome {
            violation: world.violation.take(),
            counts: world.counts,
            trace: world.trace.take().unwrap_or_default(),
        }
    }
}
