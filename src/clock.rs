//! The clocks, read here and nowhere else: all that decides is given the time. Timers follow tokio's, which is monotonic.

use std::time::Duration;

use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

/// The clocks beside tokio's.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    wall: fn() -> Timestamp,
    boot: fn() -> Duration,
}

impl Clock {
    /// The machine's.
    pub const SYSTEM: Self = Self::new(wall, boot);

    /// `wall` is the time of day, which may be set; `boot` goes on while the machine is suspended, from any start.
    #[must_use]
    pub const fn new(wall: fn() -> Timestamp, boot: fn() -> Duration) -> Self {
        Self { wall, boot }
    }

    /// The time of day.
    #[must_use]
    pub fn now(self) -> Timestamp {
        (self.wall)()
    }

    /// A point on the two clocks that no one sets.
    #[must_use]
    pub fn moment(self) -> Moment {
        Moment { monotonic: Instant::now(), boot: (self.boot)() }
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the one place that reads it")]
fn wall() -> Timestamp {
    Timestamp::now()
}

fn boot() -> Duration {
    let boot = clock_gettime(ClockId::Boottime);
    let secs = u64::try_from(boot.tv_sec).unwrap_or_default();
    Duration::new(secs, u32::try_from(boot.tv_nsec).unwrap_or_default())
}

/// A point on the two clocks that no one sets: one stops while the machine is suspended, the other does not.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// On the clock that timers follow.
    pub monotonic: Instant,
    /// On the clock that goes on while the machine is suspended.
    pub boot: Duration,
}

impl Moment {
    /// The longer of what the two clocks say.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        let monotonic = self.monotonic.saturating_duration_since(earlier.monotonic);
        monotonic.max(self.boot.saturating_sub(earlier.boot))
    }
}
