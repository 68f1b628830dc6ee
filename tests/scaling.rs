//! The arithmetic of docs/scaling.md for a million credentials, with the operator's own schedule: half a year of refreshes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use moneygo_operator::schedule::{Life, Renew};

const OBJECTS: u32 = 1_000_000;
const LIFETIME: Duration = Duration::from_hours(30 * 24);
/// The chart's `moneyGo.requestsPerSecond`.
const PER_SECOND: usize = 20;
const MONTHS: u32 = 6;
const MINUTES_A_MONTH: usize = 30 * 24 * 60;
const MINUTES: usize = 6 * MINUTES_A_MONTH;

/// What half a year came to.
#[derive(Debug)]
struct HalfYear {
    /// Grants an object, but for the first, in thirty days.
    a_month: f64,
    /// The most that fell due in one minute, by the month.
    peaks: Vec<usize>,
    /// The longest that one waited for its turn, in minutes.
    waited: usize,
}

/// Everything is filled at the limiter's pace, and refreshed when it is due, at the same pace at most. A minute is a step.
fn half_year() -> HalfYear {
    let begin: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let (mut due, mut peaks) = (vec![Vec::new(); MINUTES], vec![0; MINUTES / MINUTES_A_MONTH]);
    let (mut grants, mut waited, mut waiting) = (0_u32, 0, std::collections::VecDeque::new());
    waiting.extend((0..OBJECTS).map(|object| (0, object)));
    for minute in 0..MINUTES {
        let falling: Vec<u32> = std::mem::take(&mut due[minute]);
        let peak = &mut peaks[minute / MINUTES_A_MONTH];
        *peak = falling.len().max(*peak);
        waiting.extend(falling.into_iter().map(|object| (minute, object)));
        for _ in 0..60 * PER_SECOND {
            let Some((since, object)) = waiting.pop_front() else { break };
            if since > 0 {
                grants += 1;
                waited = waited.max(minute - since);
            }
            let now = begin + SignedDuration::from_mins(i64::try_from(minute).unwrap());
            let next = Life::new(now, LIFETIME).refresh_at(Renew::ThirdLeft, &format!("{object:08x}-0000-4000-8000"));
            let next = usize::try_from(next.duration_since(begin).as_mins()).unwrap();
            if let Some(due) = due.get_mut(next) {
                due.push(object);
            }
        }
    }
    let a_month = f64::from(grants) / f64::from(OBJECTS) / f64::from(MONTHS);
    HalfYear { a_month, peaks, waited }
}

#[test]
fn a_million_are_refreshed_at_the_limiters_pace() {
    let found = half_year();
    println!("{found:?}");
    assert!((1.3..1.6).contains(&found.a_month), "{}: the first wait is a part of the half year", found.a_month);
    assert!(found.waited <= 5, "one waited {} minutes", found.waited);
    // They were issued within 14 hours; two days of jitter spread them from the first refresh on, and each one after it spreads them more.
    assert!(found.peaks.iter().all(|&peak| peak <= 60 * PER_SECOND), "{:?} in a minute", found.peaks);
}
