//! When to refresh and when to retry. Pure arithmetic: no clock is read here, and nothing is drawn at random: what
//! looks like jitter is derived from the object's uid, so that every look gives the same answer.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// The longest lifetime that is believed, of an answer or of an annotation. An edit to the year 3000 stops no refresh.
pub const MAX_LIFETIME: SignedDuration = SignedDuration::from_hours(366 * 24);

/// No two planned grants of one object are closer together than this.
pub const MIN_GRANT_INTERVAL: SignedDuration = SignedDuration::from_secs(1);

/// From this lifetime on, deadlines are whole seconds, which people read more easily. Shorter ones keep milliseconds.
const WHOLE_SECONDS_FROM: SignedDuration = SignedDuration::from_secs(60);

/// A failed attempt may wait this long at most, where only a person can mend it: a later `nextAttemptAt` was not written by us.
pub const LONGEST_RETRY: SignedDuration = SignedDuration::from_hours(6);

/// The longest `Retry-After` that is obeyed.
pub const MAX_RETRY_AFTER: SignedDuration = SignedDuration::from_hours(1);

/// The same for all other failures: nothing makes them wait for longer than a `Retry-After`, which may have been noted by another clock.
pub const LONGEST_RETRY_AFTER: SignedDuration =
    SignedDuration::from_secs(MAX_RETRY_AFTER.as_secs() + CLOCKS_DIFFER.as_secs());

/// How much later than it is known to a token may end that is not prolonged: most answers come sooner, and clocks drift by less in a month.
const LATEST_END: SignedDuration = SignedDuration::from_secs(12);

/// For a request for a token and the write of what it answers.
const WAY_OF_AN_ANSWER: SignedDuration = SignedDuration::from_secs(10);

/// How long a mend that did not hold is waited with: at first, and at most.
const SHORTEST_UNDONE: SignedDuration = SignedDuration::from_secs(10);
const LONGEST_UNDONE: SignedDuration = SignedDuration::from_mins(10);

/// By how much the clocks of two replicas may differ: what seems to have happened later than that from now on was recorded
/// with a clock that was wrong.
const CLOCKS_DIFFER: SignedDuration = SignedDuration::from_mins(1);

/// How long before its expiry a token is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renew {
    /// When a third of the lifetime is left: ten days of thirty.
    ThirdLeft,
    /// When this much of the lifetime is left, in percent (5 to 90).
    PercentLeft(u8),
    /// This long before expiry. Cut to nine tenths of a lifetime that cannot hold it.
    Before(Duration),
}

/// How urgent a new token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// There is none so far: since when the object is there.
    New(Timestamp),
    /// When the token that is there ends, or ended.
    Ends(Timestamp),
}

impl Urgency {
    /// By which those that wait are ordered.
    #[must_use]
    pub fn at(self) -> Timestamp {
        let (Self::New(at) | Self::Ends(at)) = self;
        at
    }
}

impl From<Timestamp> for Urgency {
    fn from(ends: Timestamp) -> Self {
        Self::Ends(ends)
    }
}

/// The life of one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// Just before the request for it was sent.
    pub issued_at: Timestamp,
    /// `issued_at` plus the lifetime that the answer gave.
    pub expires_at: Timestamp,
    /// The provider gave the token that it had given before: the end that was known of it then. The next one is asked for halfway to that,
    /// not by [`Renew`].
    pub repeated: Option<Timestamp>,
}

impl Life {
    /// The life of a token asked for at `asked_at` that lives for `lifetime`, both rounded so that it never seems longer
    /// than it is.
    #[must_use]
    pub fn new(asked_at: Timestamp, lifetime: Duration) -> Self {
        let lifetime = SignedDuration::try_from(lifetime).unwrap_or(MAX_LIFETIME).min(MAX_LIFETIME);
        let expires_at = add(asked_at, lifetime);
        Self { issued_at: floor_millis(asked_at), expires_at: round_down(expires_at, lifetime), repeated: None }
    }

    /// What this life becomes where the provider answered with the token that is there already; `earlier` is the life that was known.
    ///
    /// That the token lives for longer than was known is believed once it was given after that end. Before it, an answer with the whole lifetime may tell
    /// of a token that is prolonged, or of one whose first lifetime is only repeated, by the provider or a cache before it, or is only assumed: nothing tells
    /// these apart. Until then the token is asked for as if it ended when it was first known to, and counts as ended a little after that.
    ///
    /// The provider's whole seconds may seem to prolong a token by up to one second: that is no prolongation.
    #[must_use]
    pub fn of_repeated(self, earlier: Life) -> Self {
        let known_end = earlier.repeated.unwrap_or(earlier.expires_at);
        let off_by = self.expires_at.duration_since(known_end);
        if off_by <= SignedDuration::from_secs(1) {
            let is_rounding = off_by >= -SignedDuration::from_secs(1);
            let expires_at = if is_rounding { known_end } else { self.expires_at };
            return Self { expires_at, repeated: Some(expires_at), ..self };
        }
        let late = self.latest_end();
        if self.issued_at >= add(known_end, late) {
            return self;
        }
        // By then it was asked for later than that: it is asked for ever less often, after twice as long each time.
        let counts_until = add(known_end, late * 2 + WAY_OF_AN_ANSWER);
        Self { expires_at: self.expires_at.min(counts_until), repeated: Some(known_end), ..self }
    }

    /// What this life may be where it is noted nowhere whether the token was repeated: new, as it is given again until its end, or as one that seems
    /// prolonged and is not of the shortest.
    #[must_use]
    pub fn as_noted_nowhere(self) -> [Self; 3] {
        let known_end = add(self.expires_at, -(LATEST_END * 2 + WAY_OF_AN_ANSWER));
        [None, Some(self.expires_at), Some(known_end)].map(|repeated| Self { repeated, ..self })
    }

    /// How much later than the end that is known of it a token may end that is not prolonged: it may have been issued as late as its answer came.
    fn latest_end(self) -> SignedDuration {
        (self.lifetime() / 4).clamp(MIN_GRANT_INTERVAL, LATEST_END)
    }

    /// From issue to expiry. Never negative.
    #[must_use]
    pub fn lifetime(self) -> SignedDuration {
        self.expires_at.duration_since(self.issued_at).max(SignedDuration::ZERO)
    }

    /// Whether it has ended at `now`.
    #[must_use]
    pub fn is_expired(self, now: Timestamp) -> bool {
        now >= self.expires_at
    }

    /// Whether it can be a token's life at all: it ends after it begins and is not above [`MAX_LIFETIME`].
    #[must_use]
    pub fn is_credible(self) -> bool {
        self.expires_at > self.issued_at && self.expires_at.duration_since(self.issued_at) <= MAX_LIFETIME
    }

    /// Whether the wall clock stands before the issue by more than a tenth of the lifetime: then nothing is known of the
    /// token's real age, and it is refreshed now.
    #[must_use]
    pub fn is_from_the_future(self, now: Timestamp) -> bool {
        now < add(self.issued_at, -(self.lifetime() / 10))
    }

    /// When the next token is asked for. Always the same answer for the same arguments; `seed` is the object's uid, and
    /// moves the moment earlier by at most a tenth of the wait, so that tokens issued together are not refreshed
    /// together.
    #[must_use]
    pub fn refresh_at(self, renew: Renew, seed: &str) -> Timestamp {
        if let Some(known_end) = self.repeated {
            return self.asked_again_at(known_end);
        }
        let lifetime = self.lifetime();
        let wait = lifetime - renew.left_of(lifetime);
        let jitter = per_mille(wait / 10, fraction_of(seed, self.issued_at));
        let at = round_down(add(self.issued_at, wait - jitter), lifetime);
        at.max(add(self.issued_at, MIN_GRANT_INTERVAL)).min(self.expires_at)
    }

    /// Halfway to the end that is known, but not in its last second, of which a provider would say that nothing is left of it; then as long after it again as
    /// the token has outlived it.
    fn asked_again_at(self, known_end: Timestamp) -> Timestamp {
        let left = known_end.duration_since(self.issued_at);
        if !left.is_positive() {
            return add(self.issued_at, (-left).max(MIN_GRANT_INTERVAL)).min(self.expires_at);
        }
        let half = floor_millis(add(self.issued_at, (left / 2).max(MIN_GRANT_INTERVAL)));
        if known_end.duration_since(half) < MIN_GRANT_INTERVAL { known_end } else { half }
    }
}

impl Renew {
    /// How much of a lifetime is left when the next token is asked for.
    fn left_of(self, lifetime: SignedDuration) -> SignedDuration {
        match self {
            Self::ThirdLeft => lifetime / 3,
            Self::PercentLeft(percent) => per_mille(lifetime, u32::from(percent.min(90)) * 10),
            Self::Before(before) => signed(before).min(longest_before(lifetime)),
        }
    }

    /// Whether the lifetime cannot hold the `renewBefore` that was asked for, so that it is cut to nine tenths of it.
    #[must_use]
    pub fn is_cut(self, lifetime: SignedDuration) -> bool {
        matches!(self, Self::Before(before) if signed(before) > longest_before(lifetime))
    }
}

/// How a failed attempt is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backoff {
    /// Only a person can mend it (400, 401, 403): 5 minutes doubling to 6 hours.
    Rejected,
    /// The endpoint is not there: 5 seconds doubling to 30, so that recovery begins within 30 seconds of its return.
    Endpoint,
    /// Everything else: 5 seconds doubling to 10 minutes.
    Transient,
}

impl Backoff {
    fn bounds(self) -> (SignedDuration, SignedDuration) {
        match self {
            Self::Rejected => (SignedDuration::from_mins(5), LONGEST_RETRY),
            Self::Endpoint => (SignedDuration::from_secs(5), SignedDuration::from_secs(30)),
            Self::Transient => (SignedDuration::from_secs(5), SignedDuration::from_mins(10)),
        }
    }

    /// How much of the time that a living token has left a retry may wait at most: half where only a person can help, and a
    /// quarter where the endpoint may be back at any moment, so that even a short time of its being there is met.
    fn share_of_what_is_left(self, left: SignedDuration) -> SignedDuration {
        match self {
            Self::Rejected => left / 2,
            Self::Endpoint | Self::Transient => left / 4,
        }
    }

    /// The wait after a failure: twice the `earlier` one, after the failure of this kind before it, within the class's bounds, jittered by up
    /// to a fifth. A wait that the endpoint asked for makes no later one longer: `attempts` failures in a row, this one among
    /// them, double it once less than that.
    #[must_use]
    pub fn wait(self, earlier: Option<SignedDuration>, attempts: i32, seed: &str, now: Timestamp) -> SignedDuration {
        let (shortest, longest) = self.bounds();
        let doublings = doublings(shortest, earlier, attempts);
        // The jitter is added to what is at most five sixths of the longest wait, so that it stays below it, and is still
        // there once the longest is reached.
        let base = shortest.saturating_mul(1 << doublings).min(longest * 5 / 6).max(shortest);
        base + per_mille(base / 5, fraction_of(seed, now))
    }
}

/// How often the shortest wait is doubled after an earlier wait, which was jittered, and rounded to milliseconds.
fn doublings(shortest: SignedDuration, earlier: Option<SignedDuration>, attempts: i32) -> u32 {
    let millis = earlier.map_or(0, |earlier| earlier.as_millis());
    let times = millis * 11 / 10 / shortest.as_millis().max(1);
    let most = attempts.saturating_sub(1).clamp(0, 20).unsigned_abs();
    times.max(0).checked_ilog2().map_or(0, |halvings| halvings + 1).min(most)
}

/// That long before a moment.
#[must_use]
pub fn before(at: Timestamp, length: Duration) -> Timestamp {
    add(at, -signed(length))
}

/// When an attempt that failed at `now` is repeated: after the wait of its class ([`Backoff`]), but where something below says otherwise.
///
/// - `earlier`: how long was waited after the failure of this kind before it. `None` where this is the first of its kind.
/// - `attempts`: how many failed in a row, this one among them.
/// - `retry_after`: what the endpoint asked for. It is honoured (the reader of the answer caps it); zero counts as a second, doubling up to the wait
///   of the class.
/// - `expires_at`: when the token ends that is there. While it lives, the wait is at most half (a rejection) or a quarter (anything else) of what is left,
///   and at least a second. A moment that is past changes nothing.
/// - `seed`: the object's uid, for the jitter.
#[must_use]
pub fn next_attempt(
    now: Timestamp,
    backoff: Backoff,
    earlier: Option<SignedDuration>,
    attempts: i32,
    retry_after: Option<Duration>,
    expires_at: Option<Timestamp>,
    seed: &str,
) -> Timestamp {
    let wait = backoff.wait(earlier, attempts, seed, now);
    let wait = match retry_after {
        // "At once", again and again, or a date that is past by a clock that is wrong.
        Some(Duration::ZERO) => {
            wait.min(MIN_GRANT_INTERVAL.saturating_mul(1 << doublings(MIN_GRANT_INTERVAL, earlier, attempts)))
        }
        Some(asked) => return add(now, signed(asked).max(MIN_GRANT_INTERVAL)),
        None => wait,
    };
    let left = expires_at.map(|at| at.duration_since(now)).filter(SignedDuration::is_positive);
    let wait = left.map_or(wait, |left| wait.min(backoff.share_of_what_is_left(left).max(MIN_GRANT_INTERVAL)));
    add(now, wait)
}

/// How long after the last of `failures` in a row, with which the API server kept a pass from its end, there is another: 200 ms doubling to 10 s. While
/// a token lives it comes within a quarter of what is left of it (`left`), at least a second and never past its end: a longer step would find dead what could
/// have been replaced in time.
#[must_use]
pub fn next_pass(failures: u32, left: Option<Duration>) -> Duration {
    let wait = Duration::from_millis(100).saturating_mul(1 << failures.min(7)).min(Duration::from_secs(10));
    left.map_or(wait, |left| wait.min(latest_pass(left)))
}

/// The longest wait before another look at a token of whose life so much is left: see [`next_pass`].
#[must_use]
pub fn latest_pass(left: Duration) -> Duration {
    (left / 4).max(Duration::from_secs(1)).min(left)
}

/// How long it is until `at`. `None` where that is past.
#[must_use]
pub fn until(at: Timestamp, now: Timestamp) -> Option<Duration> {
    Duration::try_from(at.duration_since(now)).ok().filter(|left| !left.is_zero())
}

/// Whether a failure that was recorded at `failed_at` can have happened by now. If not, a clock was wrong then or is now, and
/// nothing that was computed from it counts.
#[must_use]
pub fn is_credible_failure(failed_at: Timestamp, now: Timestamp) -> bool {
    failed_at.duration_since(now) <= CLOCKS_DIFFER
}

/// Whether a stored `nextAttemptAt` can be our own: none that we write lies further ahead than the `longest` wait, nor is of a
/// failure that is still to come.
#[must_use]
pub fn is_credible_attempt(
    failed_at: Timestamp,
    next_attempt_at: Timestamp,
    longest: SignedDuration,
    now: Timestamp,
) -> bool {
    is_credible_failure(failed_at, now) && next_attempt_at.duration_since(now) <= longest
}

/// Mends that were answered without what they had put there: something changes it on its way, an admission webhook for one, and would again.
/// The next waits, twice as long each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Undone {
    at: Timestamp,
    wait: SignedDuration,
}

impl Undone {
    /// One more, after `earlier`, if that was not long ago.
    #[must_use]
    pub fn once_more(earlier: Option<Self>, now: Timestamp) -> Self {
        let earlier = earlier.filter(|earlier| now <= add(earlier.at, earlier.wait + LONGEST_UNDONE));
        let wait = earlier.map_or(SHORTEST_UNDONE, |earlier| (earlier.wait * 2).min(LONGEST_UNDONE));
        Self { at: now, wait }
    }

    /// The earliest moment for the next mend: `now` where it may be at once.
    #[must_use]
    pub fn next_at(self, now: Timestamp) -> Timestamp {
        // A clock that was set back would otherwise add its jump.
        if self.at <= now { add(self.at, self.wait).max(now) } else { now }
    }
}

/// A small allowance that refills: `burst` at once, then one in each `interval`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    burst: i32,
    interval: SignedDuration,
    /// When the allowance is full again. Full already where it lies in the past.
    full_at: Timestamp,
}

impl Allowance {
    /// A full allowance.
    #[must_use]
    pub const fn new(burst: i32, interval: SignedDuration) -> Self {
        Self { burst, interval, full_at: Timestamp::UNIX_EPOCH }
    }

    /// For grants that no schedule foresaw (a target deleted or edited, a changed spec, a request): three at once, then
    /// one in ten seconds.
    #[must_use]
    pub const fn of_unplanned_grants() -> Self {
        Self::new(3, SignedDuration::from_secs(10))
    }

    /// For writes that put back what someone changed: ten at once, then one in ten seconds.
    #[must_use]
    pub const fn of_mends() -> Self {
        Self::new(10, SignedDuration::from_secs(10))
    }

    /// The earliest moment at which one may be taken: `now` where one is there.
    #[must_use]
    pub fn available_at(&self, now: Timestamp) -> Timestamp {
        let one_left = add(self.full_at, -(self.interval * (self.burst - 1)));
        // A clock that was set back would otherwise keep a spent allowance empty for as long as it jumped.
        let latest = add(now, self.interval * self.burst);
        if self.full_at > latest { now } else { one_left.max(now) }
    }

    /// Takes one.
    pub fn take(&mut self, now: Timestamp) {
        let latest = add(now, self.interval * self.burst);
        let from = if self.full_at > latest { now } else { self.full_at.max(now) };
        self.full_at = add(from, self.interval);
    }
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

fn longest_before(lifetime: SignedDuration) -> SignedDuration {
    per_mille(lifetime, 900)
}

/// `duration` × `thousandths` / 1000. Exact to the nanosecond; no product overflows below a lifetime's cap.
fn per_mille(duration: SignedDuration, thousandths: u32) -> SignedDuration {
    let nanos = duration.as_nanos().saturating_mul(i128::from(thousandths)) / 1000;
    SignedDuration::try_from_nanos_i128(nanos).unwrap_or(SignedDuration::MAX)
}

/// Adds, and stays within what a timestamp can hold.
#[must_use]
pub fn add(at: Timestamp, duration: SignedDuration) -> Timestamp {
    at.saturating_add(duration).unwrap_or(at)
}

/// The same moment in whole milliseconds, no later.
#[must_use]
pub fn floor_millis(at: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(at.as_millisecond()).unwrap_or(at)
}

fn round_down(at: Timestamp, lifetime: SignedDuration) -> Timestamp {
    if lifetime < WHOLE_SECONDS_FROM {
        return floor_millis(at);
    }
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

/// A number from 0 to 999 that only these two decide (FNV-1a: stable over releases, unlike the standard hashers).
fn fraction_of(seed: &str, at: Timestamp) -> u32 {
    let moment = at.as_millisecond().to_be_bytes();
    let hash = seed
        .bytes()
        .chain(moment)
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    // The low bits of FNV mix worst.
    u32::try_from((hash >> 32) % 1000).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn life(lifetime_secs: u64) -> Life {
        Life::new(at("2026-01-01T00:00:00Z"), Duration::from_secs(lifetime_secs))
    }

    #[test]
    fn those_that_wait_are_ordered_by_when_they_came_or_their_token_ends() {
        let moment = at("2026-01-01T00:00:00Z");
        assert_eq!([Urgency::New(moment).at(), Urgency::Ends(moment).at()], [moment, moment]);
    }

    #[test]
    fn thirty_days_are_refreshed_with_a_third_left_and_up_to_a_tenth_earlier() {
        let month = life(30 * 86_400);
        for seed in 0..500 {
            let refresh = month.refresh_at(Renew::ThirdLeft, &format!("uid-{seed}"));
            let wait = refresh.duration_since(month.issued_at);
            assert!(wait <= SignedDuration::from_hours(20 * 24), "{wait}");
            assert!(wait >= SignedDuration::from_hours(18 * 24) - SignedDuration::from_secs(1), "{wait}");
        }
    }

    #[test]
    fn the_refresh_time_is_the_same_at_every_look_and_differs_between_objects() {
        let month = life(30 * 86_400);
        let of = |seed: &str| month.refresh_at(Renew::ThirdLeft, seed);
        assert_eq!(of("a"), of("a"));
        let distinct: std::collections::BTreeSet<_> = (0..100).map(|n| of(&format!("{n}"))).collect();
        assert!(distinct.len() > 50);
    }

    #[test]
    fn what_looks_like_jitter_is_the_same_in_every_release() {
        let moment = at("2026-01-01T00:00:00Z");
        let fractions = [("uid-1", 0), ("", 0), ("9f8e", 1)]
            .map(|(seed, millis)| fraction_of(seed, add(moment, SignedDuration::from_millis(millis))));
        assert_eq!(fractions, [497, 719, 588], "FNV-1a of the seed and of the moment's milliseconds");
    }

    #[test]
    fn a_renew_before_that_the_lifetime_cannot_hold_is_cut_to_nine_tenths() {
        let short = life(100);
        let before = Renew::Before(Duration::from_hours(1));
        assert!(before.is_cut(short.lifetime()));
        let wait = short.refresh_at(before, "x").duration_since(short.issued_at);
        assert!(wait <= SignedDuration::from_secs(10) && wait >= SignedDuration::from_secs(9), "{wait}");
        assert!(!Renew::Before(Duration::from_secs(90)).is_cut(short.lifetime()));
    }

    #[test]
    fn percentages_count_what_is_left() {
        let wait =
            |percent| life(1000).refresh_at(Renew::PercentLeft(percent), "x").duration_since(life(1000).issued_at);
        assert!(wait(5) > SignedDuration::from_secs(854) && wait(5) <= SignedDuration::from_secs(950));
        assert!(wait(90) >= SignedDuration::from_secs(90) && wait(90) <= SignedDuration::from_secs(100));
    }

    #[test]
    fn the_shortest_lives_are_asked_for_a_second_apart_and_never_after_expiry() {
        assert_eq!(life(1).refresh_at(Renew::ThirdLeft, "x"), life(1).expires_at);
        let two = life(2);
        assert!(two.refresh_at(Renew::PercentLeft(90), "x").duration_since(two.issued_at) >= MIN_GRANT_INTERVAL);
    }

    #[test]
    fn deadlines_round_down_and_never_seem_later() {
        let asked = at("2026-01-01T00:00:00.987654Z");
        let long = Life::new(asked, Duration::from_hours(1));
        assert_eq!(long.expires_at, at("2026-01-01T01:00:00Z"));
        let short = Life::new(asked, Duration::from_secs(12));
        assert_eq!(short.expires_at, at("2026-01-01T00:00:12.987Z"));
        assert_eq!(short.issued_at, at("2026-01-01T00:00:00.987Z"));
        let minute = Life::new(asked, Duration::from_mins(1));
        assert_eq!(minute.expires_at, at("2026-01-01T00:01:00Z"), "whole seconds from a minute on");
    }

    #[test]
    fn no_lifetime_above_the_cap_is_believed() {
        assert_eq!(Life::new(at("2026-01-01T00:00:00Z"), Duration::MAX).lifetime(), MAX_LIFETIME);
        let edited = Life { expires_at: at("3000-01-01T00:00:00Z"), ..life(60) };
        assert!(!edited.is_credible());
        assert!(!Life { expires_at: at("2025-01-01T00:00:00Z"), ..life(60) }.is_credible());
        assert!(!Life { expires_at: life(60).issued_at, ..life(60) }.is_credible(), "it never lived");
        assert!(Life::new(at("2026-01-01T00:00:00Z"), Duration::MAX).is_credible(), "the cap itself is");
    }

    #[test]
    fn a_repeated_token_is_asked_for_halfway_then_a_second_apart_then_at_expiry() {
        let first = life(40);
        let again = Life::new(at("2026-01-01T00:00:30Z"), Duration::from_secs(10)).of_repeated(first);
        assert_eq!((again.expires_at, again.repeated), (first.expires_at, Some(first.expires_at)));
        assert_eq!(again.refresh_at(Renew::ThirdLeft, "x"), at("2026-01-01T00:00:35Z"));
        let late = Life::new(at("2026-01-01T00:00:39.2Z"), Duration::from_secs(1)).of_repeated(first);
        assert_eq!(late.expires_at, first.expires_at);
        assert_eq!(late.refresh_at(Renew::ThirdLeft, "x"), first.expires_at);
        let last = Life::new(at("2026-01-01T00:00:38.1Z"), Duration::from_secs(1)).of_repeated(first);
        assert_eq!(last.refresh_at(Renew::ThirdLeft, "x"), last.expires_at, "not in its last second");
        let two = Life { repeated: Some(life(2).expires_at), ..life(2) };
        assert_eq!(two.refresh_at(Renew::ThirdLeft, "x"), at("2026-01-01T00:00:01Z"), "a whole second is left then");
    }

    #[test]
    fn a_repeated_token_may_seem_to_end_a_second_off_and_no_more() {
        let first = life(40);
        let seen = |off_by: i64| {
            let expires_at = add(first.expires_at, SignedDuration::from_millis(off_by));
            let again = Life { expires_at, ..first }.of_repeated(first);
            let off_by = |end: Timestamp| end.duration_since(first.expires_at).as_millis();
            (again.repeated.map(off_by), off_by(again.expires_at))
        };
        assert_eq!([-1001, -1000, 0, 1000].map(seen), [(Some(-1001), -1001), (Some(0), 0), (Some(0), 0), (Some(0), 0)]);
        assert_eq!(seen(1001), (Some(0), 1001), "a prolongation, which is still to be seen");
    }

    /// What comes of a provider that answers with the same token and the whole lifetime: how often it was asked until it gave another, or until the
    /// token had lived for ten lifetimes; how long after its end it was replaced at most; and whether it ever counted as ended though it lived.
    fn with_whole_lifetimes(lifetime: Duration, way: SignedDuration, prolongs: bool) -> (u32, SignedDuration, bool) {
        let issued = at("2026-01-01T00:00:00.9Z");
        // As late as its answer, which is the worst.
        let mut ends = add(add(issued, way), signed(lifetime));
        let (mut life, mut asked, mut seemed_ended) = (Life::new(issued, lifetime), 1, false);
        loop {
            let asks = life.refresh_at(Renew::ThirdLeft, "x");
            asked += 1;
            let (arrives, answered) = (add(asks, way), add(asks, way * 2));
            if arrives >= ends || answered.duration_since(issued) > signed(lifetime) * 10 {
                return (asked, answered.duration_since(ends), seemed_ended);
            }
            seemed_ended |= life.is_expired(answered);
            if prolongs {
                ends = add(arrives, signed(lifetime));
            }
            let again = Life::new(asks, lifetime).of_repeated(life);
            assert!(again.issued_at.duration_since(life.issued_at) >= MIN_GRANT_INTERVAL, "{life:?}, {again:?}");
            life = again;
        }
    }

    #[test]
    fn a_repeated_token_with_a_whole_lifetime_each_time_is_right_whether_it_is_prolonged_or_not() {
        for lifetime_secs in [20_u64, 60, 3600, 30 * 24 * 3600] {
            for way_millis in [1, 200, 1400] {
                let (lifetime, way) = (Duration::from_secs(lifetime_secs), SignedDuration::from_millis(way_millis));
                let case = format!("{lifetime_secs} s, {way_millis} ms");
                let halvings = lifetime_secs.ilog2();
                let (asked, late, _) = with_whole_lifetimes(lifetime, way, false);
                assert!(late <= SignedDuration::from_secs(2) + way * 3, "{case}: replaced after {late:?}");
                assert!(asked <= halvings + 5, "{case}: {asked} requests");
                let (asked, _, seemed_ended) = with_whole_lifetimes(lifetime, way, true);
                assert!(!seemed_ended, "{case}: it lives");
                assert!(asked <= 15 * (halvings + 7), "{case}: {asked} requests in ten lifetimes");
            }
        }
    }

    #[test]
    fn a_clock_before_the_issue_by_more_than_a_tenth_is_noticed() {
        let hour = life(3600);
        assert!(!hour.is_from_the_future(at("2025-12-31T23:55:00Z")));
        assert!(!hour.is_from_the_future(at("2025-12-31T23:54:00Z")), "a tenth is not more than a tenth");
        assert!(hour.is_from_the_future(at("2025-12-31T23:53:59Z")));
    }

    #[test]
    fn waits_double_within_their_bounds() {
        let now = at("2026-01-01T00:00:00Z");
        let millisecond = SignedDuration::from_millis(1);
        for backoff in [Backoff::Rejected, Backoff::Endpoint, Backoff::Transient] {
            let (shortest, longest) = backoff.bounds();
            for earlier in [SignedDuration::MIN, SignedDuration::ZERO, SignedDuration::MAX] {
                let wait = backoff.wait(Some(earlier), i32::MAX, "a", now);
                assert!(wait >= shortest && wait <= longest, "{backoff:?} {earlier}: {wait}");
            }
            for seed in ["a", "b", "c", "d"] {
                let mut wait = backoff.wait(None, 1, seed, now);
                for doublings in 0..12 {
                    let base = (shortest * (1 << doublings)).min(longest * 5 / 6).max(shortest);
                    assert!(wait >= base && wait <= base + base / 5, "{backoff:?} after {doublings}: {wait}");
                    // As it is read from the status.
                    wait = backoff.wait(Some(wait - millisecond), doublings + 2, seed, now);
                }
            }
            let first = backoff.wait(None, 1, "a", now);
            assert_eq!(backoff.wait(Some(shortest / 2), 9, "a", now), first, "{backoff:?}: hurried");
            let asked_for = backoff.wait(Some(SignedDuration::from_hours(1)), 2, "a", now);
            assert!(asked_for <= first * 2, "{backoff:?}: {asked_for}");
        }
    }

    #[test]
    fn a_pass_that_failed_is_repeated_soon_and_never_past_the_end_of_a_token() {
        let (millis, secs) = (Duration::from_millis, Duration::from_secs);
        assert_eq!(
            [1, 2, 6, 7, u32::MAX].map(|failures| next_pass(failures, None)),
            [200, 400, 6400, 10_000, 10_000].map(millis)
        );
        let left = |left| next_pass(9, Some(left));
        assert_eq!([60, 40, 20, 4, 3, 1].map(|left_secs| left(secs(left_secs))), [10, 10, 5, 1, 1, 1].map(secs));
        assert_eq!(left(millis(300)), millis(300));
        assert_eq!(next_pass(1, Some(secs(60))), millis(200));
    }

    #[test]
    fn a_mend_that_does_not_hold_waits_twice_as_long_each_time() {
        let start = at("2026-01-01T00:00:00Z");
        let (mut undone, mut waits) = (None, Vec::new());
        for _ in 0..8 {
            let next = Undone::once_more(undone, start);
            waits.push(next.next_at(start).duration_since(start).as_secs());
            undone = Some(next);
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 600, 600]);
        let last = undone.unwrap();
        let later = add(start, SignedDuration::from_mins(10));
        assert_eq!(last.next_at(later), later);
        let set_back = add(start, -SignedDuration::from_hours(1));
        assert_eq!(last.next_at(set_back), set_back, "no wait grows by a jump of the clock");
        let days_later = add(start, SignedDuration::from_hours(48));
        assert_eq!(
            Undone::once_more(undone, days_later),
            Undone::once_more(None, days_later),
            "that is another matter"
        );
    }

    #[test]
    fn a_retry_never_waits_longer_than_its_share_of_what_is_left() {
        let now = at("2026-01-01T00:00:00Z");
        let next = |left_secs: i64, after: Option<u64>| {
            let expiry = add(now, SignedDuration::from_secs(left_secs));
            next_attempt(now, Backoff::Rejected, None, 1, after.map(Duration::from_secs), Some(expiry), "x")
                .duration_since(now)
        };
        assert_eq!(next(20, None), SignedDuration::from_secs(10));
        assert_eq!(next(1, None), SignedDuration::from_secs(1));
        assert!(next(-5, None) >= SignedDuration::from_mins(5));
        assert_eq!(next(20, Some(60)), SignedDuration::from_secs(60));
        assert_eq!(next(20, Some(0)), SignedDuration::from_secs(1));
        let expiry = Some(add(now, SignedDuration::from_secs(8)));
        for backoff in [Backoff::Endpoint, Backoff::Transient] {
            let wait = next_attempt(now, backoff, None, 1, None, expiry, "x").duration_since(now);
            assert_eq!(wait, SignedDuration::from_secs(2));
        }
    }

    #[test]
    fn a_next_attempt_beyond_the_longest_wait_is_not_ours() {
        let now = at("2026-01-01T00:00:00Z");
        let in_five_hours = add(now, SignedDuration::from_hours(5));
        assert!(is_credible_attempt(now, in_five_hours, LONGEST_RETRY, now));
        assert!(
            !is_credible_attempt(now, in_five_hours, LONGEST_RETRY_AFTER, now),
            "no endpoint is waited for so long"
        );
        assert!(!is_credible_attempt(now, at("3000-01-01T00:00:00Z"), LONGEST_RETRY, now));
    }

    #[test]
    fn an_attempt_that_failed_by_a_clock_that_was_ahead_holds_nothing_up() {
        let now = at("2026-01-01T00:00:00Z");
        let after = |failed_secs, next_secs| {
            let [failed, next] = [failed_secs, next_secs].map(|secs| add(now, SignedDuration::from_secs(secs)));
            is_credible_attempt(failed, next, LONGEST_RETRY, now)
        };
        assert!(after(-10, 5));
        assert!(after(7, 20), "another replica's clock may be ahead by seconds");
        assert!(!after(3600, 3605), "an hour is more than that");
    }

    #[test]
    fn that_long_before_a_moment_is_earlier() {
        assert_eq!(before(at("2026-01-01T00:00:30Z"), Duration::from_secs(20)), at("2026-01-01T00:00:10Z"));
    }

    #[test]
    fn being_asked_to_retry_at_once_is_believed_less_each_time() {
        let now = at("2026-01-01T00:00:00Z");
        let next = |earlier: i64, living: Option<i64>| {
            let expiry = living.map(|secs| add(now, SignedDuration::from_secs(secs)));
            let (zero, earlier) = (Some(Duration::ZERO), Some(SignedDuration::from_secs(earlier)));
            next_attempt(now, Backoff::Transient, earlier, 99, zero, expiry, "x").duration_since(now).as_secs()
        };
        assert_eq!([0, 1, 2].map(|earlier| next(earlier, None)), [1, 2, 4]);
        assert!((5..=6).contains(&next(4, None)), "no longer than the wait of its class: {}", next(4, None));
        assert!((500..=600).contains(&next(1000, None)), "{}", next(1000, None));
        assert_eq!(next(1000, Some(40)), 10, "a quarter of what the token has left");
    }

    #[test]
    fn the_allowance_is_three_at_once_then_one_in_ten_seconds() {
        let mut allowance = Allowance::of_unplanned_grants();
        let now = at("2026-01-01T00:00:00Z");
        for _ in 0..3 {
            assert_eq!(allowance.available_at(now), now);
            allowance.take(now);
        }
        let then = allowance.available_at(now);
        assert_eq!(then, add(now, SignedDuration::from_secs(10)));
        allowance.take(then);
        assert_eq!(allowance.available_at(then), add(then, SignedDuration::from_secs(10)));
        assert_eq!(allowance.available_at(at("2020-01-01T00:00:00Z")), at("2020-01-01T00:00:00Z"));
    }

    #[test]
    fn one_that_is_taken_from_a_spent_allowance_is_owed() {
        let mut allowance = Allowance::of_unplanned_grants();
        let now = at("2026-01-01T00:00:00Z");
        for _ in 0..4 {
            allowance.take(now);
        }
        let later = add(now, SignedDuration::from_secs(10));
        assert_eq!(allowance.available_at(later), add(now, SignedDuration::from_secs(20)));
    }

    #[test]
    fn a_clock_that_was_set_back_makes_a_spent_allowance_a_full_one() {
        let mut allowance = Allowance::of_unplanned_grants();
        for _ in 0..3 {
            allowance.take(at("2026-01-01T00:00:00Z"));
        }
        let back = at("2020-01-01T00:00:00Z");
        for _ in 0..3 {
            assert_eq!(allowance.available_at(back), back);
            allowance.take(back);
        }
        assert_eq!(allowance.available_at(back), add(back, SignedDuration::from_secs(10)));
    }
}
