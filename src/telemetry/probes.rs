//! Whether the process is ready, and alive.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// How long the heart may be silent before `/healthz` fails.
pub const HEARTBEAT_LIMIT: Duration = Duration::from_mins(1);

/// What the probes answer. Not ready, and alive, when made.
#[derive(Debug)]
pub struct Probes {
    ready: AtomicBool,
    made: Instant,
    /// Milliseconds from `made` to the last beat, on the monotonic clock: suspension is no death.
    last_beat_millis: AtomicU64,
}

impl Default for Probes {
    fn default() -> Self {
        Self { ready: AtomicBool::new(false), made: Instant::now(), last_beat_millis: AtomicU64::new(0) }
    }
}

impl Probes {
    /// What `/readyz` answers from here on.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    /// The controller's loop is alive. To be called every 10 s or so; see [`HEARTBEAT_LIMIT`].
    pub fn beat(&self) {
        let millis = u64::try_from(self.made.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_beat_millis.store(millis, Ordering::Relaxed);
    }

    pub(super) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    pub(super) fn is_alive(&self) -> bool {
        let last_beat = Duration::from_millis(self.last_beat_millis.load(Ordering::Relaxed));
        self.made.elapsed().saturating_sub(last_beat) < HEARTBEAT_LIMIT
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time;

    #[tokio::test(start_paused = true)]
    async fn the_heart_must_beat() {
        let probes = Probes::default();
        time::advance(Duration::from_secs(59)).await;
        assert!(probes.is_alive());
        probes.beat();
        time::advance(Duration::from_secs(59)).await;
        assert!(probes.is_alive());
        time::advance(Duration::from_secs(1)).await;
        assert!(!probes.is_alive());
        probes.beat();
        assert!(probes.is_alive());
    }
}
