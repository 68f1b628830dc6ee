//! Everything is due at once, and the limiter and a slow endpoint stand in the way.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use fake_moneygo::{Request, Script};
use serde::{Deserialize, Serialize};

use crate::stats::real;
use crate::subject::{Subject, Who};
use crate::world::World;

/// How long the endpoint takes for an answer.
const LATENCY: Duration = Duration::from_millis(200);
/// Beyond what the limiter needs for all.
const GRACE: Duration = Duration::from_mins(2);

/// What was found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Burst {
    /// Objects that were due.
    pub objects: usize,
    /// Requests a second, at most, by the limiter.
    pub rate: usize,
    /// Requests at once, at most, by the limiter.
    pub concurrency: usize,
    /// From the first request for a token to the last.
    pub seconds: f64,
    /// The most requests in any second.
    pub most_in_a_second: usize,
    /// The most requests under way at once, as the endpoint saw it.
    pub most_at_once: usize,
    /// Requests in all.
    pub requests: usize,
    /// The longest time without a request while some were due, in milliseconds.
    pub longest_pause_millis: f64,
    /// CPU, in milliseconds a token.
    pub cpu_millis: f64,
    /// The most that was resident, in bytes.
    pub peak_bytes: u64,
}

/// Asks for a refresh of every object while nobody is there, and starts the operator then.
///
/// # Errors
/// If they are not all served in time.
pub async fn burst(
    world: &World,
    who: &Who<'_>,
    objects: Range<usize>,
    rate: usize,
    concurrency: usize,
) -> Result<Burst> {
    let count = objects.len();
    world.request_refreshes(objects, "burst").await?;
    world.rest().await?;
    world.moneygo.script_all(Script::endpoint().delay(LATENCY).forever());
    let (before, mut tail) = (world.moneygo.request_count(), world.tail()?);
    let subject = Subject::start(world, who)?;
    let limit = Duration::from_secs_f64(real(count) / real(rate)) * 2 + GRACE;
    let served = tail.until("update moneygocredentials/status", count as u64, limit).await;
    world.moneygo.clear_scripts();
    served.with_context(|| subject.last_words())?;
    let usage = subject.usage()?;
    subject.stop().await?;
    let requests = world.moneygo.requests().split_off(before);
    let arrivals: Vec<SystemTime> = requests.iter().map(|request| request.received_at).collect();
    Ok(Burst {
        objects: count,
        rate,
        concurrency,
        seconds: between(arrivals.first(), arrivals.last()),
        most_in_a_second: most_within(&arrivals, Duration::from_secs(1)),
        most_at_once: most_at_once(&requests),
        requests: requests.len(),
        longest_pause_millis: longest_pause(&arrivals),
        cpu_millis: usage.cpu.as_secs_f64() * 1000.0 / real(count),
        peak_bytes: usage.peak,
    })
}

fn between(from: Option<&SystemTime>, to: Option<&SystemTime>) -> f64 {
    let span = from.zip(to).and_then(|(from, to)| to.duration_since(*from).ok());
    span.unwrap_or_default().as_secs_f64()
}

fn longest_pause(arrivals: &[SystemTime]) -> f64 {
    arrivals.windows(2).map(|two| between(two.first(), two.last()) * 1000.0).fold(0.0, f64::max)
}

fn most_within(arrivals: &[SystemTime], span: Duration) -> usize {
    let (mut within, mut most) = (VecDeque::new(), 0);
    for at in arrivals {
        within.push_back(*at);
        while within.front().is_some_and(|first| *first + span <= *at) {
            within.pop_front();
        }
        most = most.max(within.len());
    }
    most
}

fn most_at_once(requests: &[Request]) -> usize {
    let begun = requests.iter().map(|request| (request.received_at, 1));
    let ended = requests.iter().filter_map(|request| request.answered_at).map(|at| (at, -1));
    let mut changes: Vec<(SystemTime, isize)> = begun.chain(ended).collect();
    changes.sort_unstable();
    let (mut now, mut most) = (0_isize, 0);
    for (_, change) in changes {
        now += change;
        most = most.max(now);
    }
    most.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_are_counted_in_any_second() {
        let at = |millis| SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
        let arrivals = [0, 900, 950, 1000, 1899, 5000].map(at);
        assert_eq!(most_within(&arrivals, Duration::from_secs(1)), 4);
        assert!((longest_pause(&arrivals) - 3101.0).abs() < 1e-6);
        assert_eq!(most_within(&[], Duration::from_secs(1)), 0);
    }
}
