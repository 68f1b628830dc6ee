//! Times and durations in words.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// A duration without its sign, in its largest unit or two: `29 d`, `6 h 20 min`, `40 s`.
#[must_use]
pub fn length(duration: SignedDuration) -> String {
    let secs = duration.as_secs().unsigned_abs();
    let (days, hours, minutes) = (secs / 86_400, secs / 3600, secs / 60);
    match secs {
        _ if days >= 10 => format!("{days} d"),
        _ if days >= 1 => two(days, "d", hours % 24, "h"),
        _ if hours >= 1 => two(hours, "h", minutes % 60, "min"),
        _ if minutes >= 10 => format!("{minutes} min"),
        _ if minutes >= 1 => two(minutes, "min", secs % 60, "s"),
        _ => format!("{secs} s"),
    }
}

/// The same of a wait or a lifetime.
#[must_use]
pub fn length_of(duration: Duration) -> String {
    length(SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX))
}

/// An object's name, with its namespace where objects of several are shown.
#[must_use]
pub fn name(namespace: &str, name: &str, everywhere: bool) -> String {
    if everywhere { format!("{namespace}/{name}") } else { name.to_owned() }
}

fn two(large: u64, large_unit: &str, small: u64, small_unit: &str) -> String {
    if small == 0 { format!("{large} {large_unit}") } else { format!("{large} {large_unit} {small} {small_unit}") }
}

/// When something is or was, seen from now: `in 9 d`, `3 min ago`.
#[must_use]
pub fn from_now(at: Timestamp, now: Timestamp) -> String {
    let distance = at.duration_since(now);
    if distance.is_negative() { format!("{} ago", length(distance)) } else { format!("in {}", length(distance)) }
}

/// `1 object`, `3 objects`.
#[must_use]
pub fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths() {
        for (secs, expected) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (61, "1 min 1 s"),
            (600, "10 min"),
            (3599, "59 min"),
            (3600, "1 h"),
            (22_800, "6 h 20 min"),
            (86_400, "1 d"),
            (90_000, "1 d 1 h"),
            (864_000 + 3600, "10 d"),
            (-61, "1 min 1 s"),
        ] {
            assert_eq!(length(SignedDuration::from_secs(secs)), expected);
        }
    }

    #[test]
    fn seen_from_now() {
        let at = |secs| Timestamp::from_second(secs).unwrap();
        assert_eq!(from_now(at(160), at(100)), "in 1 min");
        assert_eq!(from_now(at(97), at(100)), "3 s ago");
        assert_eq!((count(1, "object"), count(2, "object")), ("1 object".to_owned(), "2 objects".to_owned()));
    }
}
