//! A replica: the operator's own code on a runtime of its own, whose clock is simulated. Dropping the runtime is a crash: not
//! a line of the operator's runs after it. A runtime that is not driven is a process that is frozen.

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use moneygo_operator::controller::{self, Settings};
use moneygo_operator::events::{self, Notices};
use moneygo_operator::grants::{Grants, Limits};
use moneygo_operator::lease::{self, LeaseConfig};
use moneygo_operator::telemetry::{Metrics, Probes};
use moneygo_operator::token::{TokenClient, TokenClientConfig};
use tokio::runtime::Runtime;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use crate::schedule::Blow;
use crate::time::{self, Millis, NODES, SECOND};
use crate::wire::{self, MoneyGo};
use crate::world::{NAMESPACE, OWN_NAMESPACE, Shared, lock};

const CONCURRENCY: NonZeroU16 = NonZeroU16::new(16).unwrap();
const TOKEN_TIMEOUT: Duration = Duration::from_secs(10);
/// A process that was asked to stop is killed after this long, as a Pod is.
const GRACE: Millis = 6 * SECOND;

enum State {
    Up,
    Down { until: Millis },
    Stopping { killed_at: Millis, until: Millis },
    Frozen { until: Millis },
    Suspended { until: Millis },
}

/// A replica on a node.
pub struct Node {
    world: Shared,
    index: usize,
    starts: u64,
    client: TokenClient,
    runtime: Option<Runtime>,
    shutdown: CancellationToken,
    state: State,
}

/// One token client for each node of this thread: making one is slow, and its network is never used.
///
/// # Errors
/// Where none can be made.
pub fn token_clients() -> anyhow::Result<Vec<TokenClient>> {
    let config = TokenClientConfig {
        url: "http://127.0.0.1:9/token".to_owned(),
        allow_insecure: false,
        ca_file: None,
        timeout: TOKEN_TIMEOUT,
    };
    (0..NODES).map(|node| Ok(TokenClient::new(&config, time::clocks(node))?)).collect()
}

impl Node {
    /// A replica that is started by the first call of [`Self::run_until`].
    #[must_use]
    pub fn new(world: Shared, index: usize, client: TokenClient) -> Self {
        let state = State::Down { until: 0 };
        Self { world, index, starts: 0, client, runtime: None, shutdown: CancellationToken::new(), state }
    }

    fn start(&mut self, at: Millis) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .context("no runtime")?;
        self.starts += 1;
        self.shutdown = CancellationToken::new();
        let mut world = lock(&self.world);
        world.forget_reads(self.index);
        world.note(at, || format!("node {}: started", self.index));
        if let Some(state) = world.nodes.get_mut(self.index) {
            state.is_up = true;
        }
        let identity = format!("node{}-{}", self.index, self.starts);
        let (lease_secs, rate) = (world.setting.lease_secs, world.setting.rate);
        let namespaces = if world.setting.named_namespace { vec![NAMESPACE.to_owned()] } else { Vec::new() };
        drop(world);

        let (shared, index, token_client) = (self.world.clone(), self.index, self.client.clone());
        let shutdown = self.shutdown.clone();
        let lease = LeaseConfig::new(OWN_NAMESPACE, "moneygo-operator", identity, Duration::from_secs(lease_secs))?;
        runtime.block_on(async move {
            time::start(index, at);
            let clock = time::clocks(index);
            let client = wire::client(&shared, index);
            let layered = token_client.layered(&MoneyGo { world: shared, node: index });
            let limits = Limits { between: Duration::from_secs(1) / rate, concurrency: CONCURRENCY };
            let (ends, in_step) = (CancellationToken::new(), CancellationToken::new());
            let (leadership, election) = lease::elect(client.clone(), lease, clock);
            let electing = tokio::spawn(election.run_after(in_step.clone().cancelled_owned(), ends.clone()));
            let (notices, to_publish) = Notices::new();
            tokio::spawn(events::publish(client.clone(), to_publish));
            let settings = Settings {
                client,
                clock,
                namespaces,
                label_selector: None,
                own_namespace: Some(OWN_NAMESPACE.to_owned()),
                grants: Grants::new(layered, limits, clock),
                leadership,
                metrics: Arc::new(Metrics::new()),
                probes: Arc::new(Probes::default()),
                notices,
                in_step,
            };
            tokio::spawn(async move {
                controller::run(settings, shutdown).await;
                ends.cancel();
                let _ = electing.await;
            });
        });
        self.runtime = Some(runtime);
        self.state = State::Up;
        Ok(())
    }

    /// Runs the replica up to a moment, through all that strikes it on the way.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn run_until(&mut self, at: Millis) -> anyhow::Result<()> {
        loop {
            match self.state {
                State::Up => {
                    if self.drive(at) {
                        return Ok(());
                    }
                }
                State::Down { until } if until < at => self.start(until)?,
                State::Stopping { killed_at, until } => {
                    let is_there = self.drive(killed_at.min(at));
                    if is_there && killed_at >= at {
                        return Ok(());
                    }
                    if is_there {
                        self.kill(until.max(killed_at));
                    }
                }
                State::Frozen { until } if until < at => self.thaw(until),
                State::Suspended { until } if until < at => self.wake(until),
                State::Down { .. } | State::Frozen { .. } | State::Suspended { .. } => return Ok(()),
            }
        }
    }

    /// Whether it got there.
    fn drive(&mut self, at: Millis) -> bool {
        let Some(runtime) = &self.runtime else { return true };
        let index = self.index;
        let struck = lock(&self.world).nodes.get(index).map(|state| Arc::clone(&state.struck));
        let Some(struck) = struck else { return true };
        let stopped_at = runtime.block_on(async move {
            tokio::select! {
                biased;
                () = struck.notified() => Some(time::now(index)),
                () = sleep_until(time::instant(index, at)) => None,
            }
        });
        let Some(now) = stopped_at else { return true };
        let blow = lock(&self.world).nodes.get(index).and_then(|state| state.blow);
        if let Some((blow, lasts)) = blow {
            self.suffer(blow, lasts, now);
        }
        false
    }

    fn suffer(&mut self, blow: Blow, lasts: Millis, now: Millis) {
        let until = now + lasts;
        match blow {
            _ if matches!(self.state, State::Stopping { .. }) => self.kill(until),
            Blow::Crash => self.kill(until),
            Blow::Stop => {
                self.recover();
                self.shutdown.cancel();
                self.state = State::Stopping { killed_at: now + GRACE, until };
            }
            Blow::Freeze => self.state = State::Frozen { until },
            Blow::Suspend => self.state = State::Suspended { until },
        }
    }

    fn kill(&mut self, until: Millis) {
        self.runtime = None;
        self.recover();
        if let Some(state) = lock(&self.world).nodes.get_mut(self.index) {
            state.is_up = false;
        }
        self.state = State::Down { until };
    }

    /// What struck it is over.
    fn recover(&self) {
        let mut world = lock(&self.world);
        if let Some(state) = world.nodes.get_mut(self.index) {
            state.blow = None;
        }
        world.pulse.notify_waiters();
    }

    fn thaw(&mut self, at: Millis) {
        self.recover();
        let index = self.index;
        if let Some(runtime) = &self.runtime {
            runtime.block_on(async {
                let lag = at.saturating_sub(time::now(index));
                tokio::time::advance(Duration::from_millis(lag)).await;
            });
        }
        self.state = State::Up;
    }

    fn wake(&mut self, at: Millis) {
        self.recover();
        let index = self.index;
        if let Some(runtime) = &self.runtime {
            let now = runtime.block_on(async { time::now(index) });
            time::suspend(index, at.saturating_sub(now));
        }
        self.state = State::Up;
    }
}
