//! How far the model goes: which provider, whose clock, and how much may go wrong.

use std::fmt;

use jiff::{SignedDuration, Timestamp};

/// How long every token lives: from here on deadlines are whole seconds, as those of most tokens.
pub const LIFETIME_SECS: i64 = 60;

/// What Money-Go does with the tokens that it gave before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    /// Leaves them alone.
    Independent,
    /// Revokes the last one.
    Revoking,
    /// Gives the last one again, as long as it lives.
    Repeating,
    /// Leaves one alive beside the new one.
    TwoAlive,
}

impl Provider {
    /// Every provider.
    pub const ALL: [Self; 4] = [Self::Independent, Self::Revoking, Self::Repeating, Self::TwoAlive];
}

/// How often each thing that nobody has to do may still be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Allowed {
    /// A replica crashes, and starts again with nothing in memory.
    pub crashes: u8,
    /// A replica is cut off from the API server, until it is let go: what it asks for fails, or is done and not answered.
    pub cuts: u8,
    /// The lease goes to the other replica, whatever the first is about to do.
    pub handovers: u8,
    /// A person deletes the target.
    pub deletions: u8,
    /// A person puts back the first Secret that the target ever was.
    pub restores: u8,
    /// A person asks for a refresh.
    pub requests: u8,
    /// A person changes the scope.
    pub scopes: u8,
    /// Money-Go answers 503.
    pub refusals: u8,
    /// Money-Go's answer is lost on its way, and the token with it.
    pub losses: u8,
}

/// One model to be explored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// What Money-Go does.
    pub provider: Provider,
    /// One or two.
    pub replicas: usize,
    /// The moments between which time jumps, in seconds from the start.
    pub moments: &'static [i64],
    /// By how much the second replica's clock is ahead of the first's.
    pub ahead_secs: i64,
    /// What may go wrong.
    pub allowed: Allowed,
}

impl Setting {
    /// The start of everything.
    #[must_use]
    pub fn start() -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_hours(24 * 365 * 56)
    }
}

/// Until a token is due, and until it has expired.
const UNTIL_EXPIRED: &[i64] = &[0, 45, 70];
const UNTIL_DUE: &[i64] = &[0, 45];
const AT_ONCE: &[i64] = &[0];

const NOTHING: Allowed = Allowed {
    crashes: 0,
    cuts: 0,
    handovers: 0,
    deletions: 0,
    restores: 0,
    requests: 0,
    scopes: 0,
    refusals: 0,
    losses: 0,
};

/// What goes wrong, how many replicas there are, until when, and how far ahead the second's clock is.
type Story = (Allowed, usize, &'static [i64], i64);

/// Those of which CI looks at every state.
const SMALL: [Story; 12] = [
    (Allowed { scopes: 1, ..NOTHING }, 1, UNTIL_EXPIRED, 0),
    (Allowed { requests: 1, restores: 1, ..NOTHING }, 1, UNTIL_DUE, 0),
    (Allowed { crashes: 1, restores: 1, ..NOTHING }, 1, UNTIL_EXPIRED, 0),
    (Allowed { requests: 1, losses: 1, ..NOTHING }, 1, UNTIL_EXPIRED, 0),
    (Allowed { deletions: 1, refusals: 1, ..NOTHING }, 1, UNTIL_EXPIRED, 0),
    (Allowed { cuts: 1, ..NOTHING }, 1, UNTIL_EXPIRED, 0),
    (Allowed { crashes: 1, ..NOTHING }, 2, UNTIL_DUE, 0),
    (Allowed { cuts: 1, ..NOTHING }, 2, UNTIL_DUE, 0),
    (Allowed { handovers: 1, ..NOTHING }, 2, AT_ONCE, 5),
    (Allowed { handovers: 1, ..NOTHING }, 2, AT_ONCE, -5),
    (Allowed { handovers: 1, losses: 1, ..NOTHING }, 2, AT_ONCE, 0),
    (Allowed { restores: 1, handovers: 1, ..NOTHING }, 2, AT_ONCE, 0),
];

/// Those that take a minute or two.
const LARGE: [Story; 13] = [
    (Allowed { crashes: 1, deletions: 1, ..NOTHING }, 1, UNTIL_EXPIRED, 0),
    (Allowed { crashes: 1, cuts: 1, ..NOTHING }, 1, UNTIL_EXPIRED, 0),
    (Allowed { cuts: 1, scopes: 1, ..NOTHING }, 1, UNTIL_EXPIRED, 0),
    (Allowed { cuts: 1, requests: 1, ..NOTHING }, 1, UNTIL_EXPIRED, 0),
    (Allowed { crashes: 1, handovers: 1, ..NOTHING }, 2, AT_ONCE, 0),
    (Allowed { crashes: 1, handovers: 1, ..NOTHING }, 2, AT_ONCE, 5),
    (Allowed { crashes: 1, handovers: 1, ..NOTHING }, 2, AT_ONCE, -5),
    (Allowed { cuts: 1, handovers: 1, ..NOTHING }, 2, AT_ONCE, 0),
    (Allowed { handovers: 2, ..NOTHING }, 2, AT_ONCE, 0),
    (Allowed { deletions: 1, handovers: 1, ..NOTHING }, 2, AT_ONCE, 0),
    (Allowed { requests: 1, handovers: 1, ..NOTHING }, 2, AT_ONCE, 0),
    (Allowed { handovers: 1, ..NOTHING }, 2, UNTIL_DUE, 0),
    (Allowed { crashes: 1, cuts: 1, handovers: 1, ..NOTHING }, 2, AT_ONCE, 0),
];

/// Those that take a quarter of an hour for each provider.
const LONG: [Story; 2] = [
    (Allowed { cuts: 1, handovers: 1, ..NOTHING }, 2, UNTIL_DUE, 0),
    (Allowed { crashes: 1, handovers: 1, ..NOTHING }, 2, UNTIL_DUE, 0),
];

impl Setting {
    /// Those of which CI looks at every state.
    pub fn small() -> impl Iterator<Item = Self> {
        of_stories(&SMALL)
    }

    /// Those that take minutes.
    pub fn large() -> impl Iterator<Item = Self> {
        of_stories(&LARGE)
    }

    /// Those that take an hour.
    pub fn long() -> impl Iterator<Item = Self> {
        of_stories(&LONG)
    }
}

fn of_stories(stories: &'static [Story]) -> impl Iterator<Item = Setting> {
    stories.iter().flat_map(|&(allowed, replicas, moments, ahead_secs)| {
        // What the last token's end means to one replica alone, the strictest provider shows.
        let providers =
            if replicas == 1 { [Provider::Revoking, Provider::Repeating].as_slice() } else { &Provider::ALL };
        providers.iter().map(move |&provider| Setting { provider, replicas, moments, ahead_secs, allowed })
    })
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Allowed { crashes, cuts, handovers, deletions, restores, requests, scopes, refusals, losses } =
            self.allowed;
        let counts = [
            (crashes, "crash"),
            (cuts, "cut"),
            (handovers, "handover"),
            (deletions, "deletion"),
            (restores, "restore"),
            (requests, "request"),
            (scopes, "scope"),
            (refusals, "refusal"),
            (losses, "loss"),
        ];
        let allowed = counts.iter().flat_map(|(count, name)| std::iter::repeat_n(*name, usize::from(*count)));
        let allowed: Vec<_> = allowed.collect();
        let last = self.moments.last().copied().unwrap_or_default();
        write!(f, "{:?}:{}:{last}s:{:+}s:{}", self.provider, self.replicas, self.ahead_secs, allowed.join("+"))
    }
}
