//! What a seed decides: the world ([`Setting`]) and what goes wrong in it ([`Disturbance`]).

use std::fmt;

use crate::random::Random;
use crate::store::Kind;
use crate::time::{DAY, HOUR, MINUTE, Millis, NODES, SECOND};

/// What a new grant does to the tokens before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Nothing.
    Independent,
    /// It revokes them.
    RevokesLast,
    /// There is none while one lives: it is given again.
    SameAgain,
    /// At most so many live: the oldest is revoked.
    AtMost(usize),
}

/// When a token is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renew {
    /// `spec.refresh` is unset.
    Unset,
    /// `renewBeforePercentage`.
    Percent(u64),
    /// `renewBefore`, in seconds.
    Before(u64),
}

impl Renew {
    /// The earliest and the latest age at which a token of that lifetime is due, by the API's documentation.
    #[must_use]
    pub fn due_at_age(self, lifetime: Millis) -> (Millis, Millis) {
        let latest = match self {
            Self::Unset => lifetime - lifetime / 3,
            Self::Percent(percent) => lifetime - lifetime * percent / 100,
            Self::Before(secs) => lifetime - (secs * SECOND).min(lifetime * 9 / 10),
        };
        ((latest - latest / 10).saturating_sub(SECOND), latest)
    }
}

/// One `MoneyGoCredential` of a run.
#[derive(Debug, Clone, Copy)]
pub struct ObjectSetting {
    /// When its tokens are replaced at first.
    pub renew: Renew,
    /// `deletionPolicy: Retain`.
    pub retain: bool,
    /// `authorizationKey` and `expiresAtKey` are set.
    pub more_keys: bool,
    /// Its target is there and somebody else's, and stays so.
    pub foreign: bool,
}

/// A world without faults.
#[derive(Debug, Clone)]
pub struct Setting {
    /// What it is made of.
    pub seed: u64,
    /// Replicas.
    pub replicas: usize,
    /// The objects.
    pub objects: Vec<ObjectSetting>,
    /// The provider's.
    pub mode: Mode,
    /// Of a token.
    pub lifetime: Millis,
    /// Of the Lease, in seconds.
    pub lease_secs: u64,
    /// The slowest answer of the API server, and event of a watch.
    pub api_delay: Millis,
    /// The slowest answer of Money-Go.
    pub token_delay: Millis,
    /// Token requests a second.
    pub rate: u32,
    /// The operator watches the namespace by its name.
    pub named_namespace: bool,
    /// The key of the digests is there before the operator is.
    pub digest_key: bool,
    /// Nodes are run in steps of this length.
    pub step: Millis,
    /// Until the last fault begins.
    pub faults_until: Millis,
}

impl Setting {
    /// What a seed makes.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut random = Random::new(seed, "setting");
        let scale = random.below(1000);
        let lifetime = match scale {
            0..=649 => random.between(20, 90) * SECOND,
            650..=959 => random.magnitude(90, 3600) * SECOND,
            // A run of these takes as long as a hundred of the others.
            960..=997 => random.magnitude(3600, 86_400) * SECOND,
            _ => random.magnitude(86_400, 30 * 86_400) * SECOND,
        };
        let replicas = if random.percent(60) { NODES } else { 1 };
        let lease_secs = (lifetime / SECOND / 20).clamp(random.pick(15, &[15, 15, 6]), random.pick(15, &[30, 60]));
        // Weeks of a Lease that is renewed every other second would be nearly all that is simulated.
        let lease_secs = lease_secs.max(lifetime / SECOND / 1440);
        let count = random.pick(1, &[1, 2, 2, 3, 5]);
        let objects = (0..count).map(|_| object(&mut random, lifetime)).collect();
        let mode = match random.below(100) {
            0..=39 => Mode::Independent,
            40..=69 => Mode::RevokesLast,
            70..=84 => Mode::SameAgain,
            _ => Mode::AtMost(usize::try_from(random.between(1, 3)).unwrap_or(1)),
        };
        let step = (lifetime / 200).clamp(50, 10 * SECOND);
        Self {
            seed,
            replicas,
            objects,
            mode,
            lifetime,
            lease_secs,
            api_delay: random.pick(5, &[20, 50, 200]),
            token_delay: random.pick(50, &[200, 500, 2000]),
            rate: 20,
            named_namespace: random.percent(20),
            digest_key: random.percent(80),
            step: if replicas > 1 { step.min(lease_secs * SECOND / 20) } else { step },
            faults_until: (lifetime * random.between(10, 35) / 10).max(30 * SECOND),
        }
    }
}

fn object(random: &mut Random, lifetime: Millis) -> ObjectSetting {
    let renew = match random.below(10) {
        0..=5 => Renew::Unset,
        6..=7 => Renew::Percent(random.between(25, 90)),
        _ => Renew::Before(random.between(lifetime / 4000, lifetime / 2000).max(8)),
    };
    ObjectSetting { renew, retain: random.percent(25), more_keys: random.percent(40), foreign: random.percent(6) }
}

/// How a server is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Away {
    /// No connection.
    Refused,
    /// Nothing comes back.
    Hangs,
    /// This status.
    Status(u16),
    /// What was asked for is done, and the answer lost.
    AnswersLost,
}

/// How `Retry-After` is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryAfter {
    /// Not at all.
    Missing,
    /// So many seconds.
    Seconds(u64),
    /// The date so many seconds ahead.
    Date(u64),
    /// Something that is neither.
    Nonsense,
}

/// The moment of a request at which a node is struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It is not sent.
    Before,
    /// It is carried out, and the answer does not come.
    Committed,
    /// The answer has come.
    After,
}

/// When a node is struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// At once.
    Now,
    /// At its so-many-th request from then on.
    Request(u64, Phase),
    /// At its so-many-th token request from then on.
    Grant(u64, Phase),
    /// At its so-many-th write of a Secret from then on.
    Write(u64, Phase),
}

/// What happens to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blow {
    /// It dies, and is started again.
    Crash,
    /// It is asked to stop, and started again.
    Stop,
    /// Its process does not run for a while.
    Freeze,
    /// Its machine does not run for a while: the monotonic clock stands still.
    Suspend,
}

/// What a person does to an object's spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edit {
    /// Another scope.
    Scope,
    /// Another key for the token.
    TokenKey,
    /// `authorizationKey` set, or taken away.
    AuthorizationKey,
    /// Labels for the target.
    Labels,
    /// `renewBeforePercentage`.
    Percent(u64),
}

/// What goes wrong, or what a person does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// The API server is away, for one node or for all.
    ApiAway(Option<usize>, Away),
    /// So many of a hundred requests end like that.
    ApiFlaky(u64, Away),
    /// Every answer takes up to so long.
    ApiSlow(Millis),
    /// All watches of a kind end, with 410 or without a word.
    WatchCut(Kind, bool),
    /// The watches of a kind show nothing new, then what they missed, or end with 410.
    WatchBehind(Kind, bool),
    /// Events of a kind come that much later.
    WatchSlow(Kind, Millis),
    /// Money-Go is away.
    EndpointAway(Away),
    /// Every token request takes that long.
    EndpointSlow(Millis),
    /// 429.
    RateLimited(RetryAfter),
    /// 200 with something that is no answer.
    BadAnswers,
    /// 401 `invalid_client` for everyone, and a new secret at the end.
    InvalidClient(usize),
    /// The next answers are lost, after the grant.
    GrantsLost(u64),
    /// A node is struck.
    Strike(usize, Blow, Trigger),
    /// A node's wall clock is wrong by so much.
    ClockWrong(usize, i64),
    /// The target is deleted.
    TargetDeleted(usize),
    /// The token in the target is overwritten.
    TokenEdited(usize),
    /// The target loses our annotations.
    AnnotationsStripped(usize),
    /// The target's expires-at is put into the year 3000.
    ExpiryEdited(usize),
    /// The target loses its labels.
    LabelsStripped(usize),
    /// `refresh-requested`.
    RefreshRequested(usize),
    /// The spec is edited.
    SpecEdited(usize, Edit),
    /// `suspend: true`.
    Suspended(usize),
    /// The credentials Secret is away.
    CredentialsGone(usize),
    /// The client secret is rotated.
    CredentialsRotated(usize),
    /// A wrong client secret is set, and then a right one.
    CredentialsWrong(usize),
    /// A label of the credentials Secret is edited.
    CredentialsTouched(usize),
    /// The status is lost.
    StatusCleared(usize),
    /// The object is deleted, and made again.
    Recreated(usize),
    /// Somebody else's Secret stands in the target's place for a while.
    TargetTaken(usize),
}

/// Something that happens at a moment, and for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disturbance {
    /// When it begins.
    pub at: Millis,
    /// Until it is undone. 0 where there is nothing to undo.
    pub lasts: Millis,
    /// What happens.
    pub what: What,
}

impl fmt::Display for Disturbance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {} for {}: {:?}", Time(self.at), Time(self.lasts), self.what)
    }
}

/// A time or a length, for people.
pub struct Time(pub Millis);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0;
        if ms >= DAY {
            write!(f, "{}d", ms / DAY)?;
        }
        if ms >= HOUR {
            write!(f, "{}h", ms % DAY / HOUR)?;
        }
        if ms >= MINUTE {
            write!(f, "{}m", ms % HOUR / MINUTE)?;
        }
        write!(f, "{}.{:03}s", ms % MINUTE / SECOND, ms % SECOND)
    }
}

/// The disturbances of a seed.
#[must_use]
pub fn disturbances(setting: &Setting) -> Vec<Disturbance> {
    let mut random = Random::new(setting.seed, "disturbances");
    let count = random.magnitude(1, 12);
    let mut all: Vec<_> = (0..count).flat_map(|_| draw(&mut random, setting)).collect();
    all.sort_by_key(|one| one.at);
    all
}

fn draw(random: &mut Random, setting: &Setting) -> Vec<Disturbance> {
    let at = moment(random, setting);
    let object = usize::try_from(random.below(setting.objects.len() as u64)).unwrap_or(0);
    let one = |lasts, what| vec![Disturbance { at, lasts, what }];
    match random.below(100) {
        0..=34 => strikes(random, setting, at),
        35..=49 => {
            let (lasts, what) = of_api(random, setting);
            one(lasts, what)
        }
        50..=57 => {
            let (lasts, what) = of_watches(random, setting);
            one(lasts, what)
        }
        58..=74 => {
            let (lasts, what) = of_endpoint(random, setting, object);
            one(lasts, what)
        }
        75..=78 => {
            let far = random.magnitude(3 * setting.lifetime, 366 * DAY).max(3 * setting.lifetime);
            let by = i64::try_from(far).unwrap_or(i64::MAX) * random.pick(1, &[-1]);
            one(length(random, setting), What::ClockWrong(node(random, setting), by))
        }
        _ => {
            let (lasts, what) = of_people(random, setting, object);
            one(lasts, what)
        }
    }
}

/// Half of them about when something is due.
fn moment(random: &mut Random, setting: &Setting) -> Millis {
    if random.percent(50) {
        return random.between(SECOND, setting.faults_until);
    }
    let renew = setting.objects.first().map_or(Renew::Unset, |object| object.renew);
    let (early, late) = renew.due_at_age(setting.lifetime);
    let due = random.between(early, late + 2 * SECOND) + random.below(3) * late;
    due.clamp(SECOND, setting.faults_until.max(2 * SECOND))
}

fn length(random: &mut Random, setting: &Setting) -> Millis {
    random.magnitude(200, (setting.lifetime * 3 / 2).min(40 * DAY))
}

fn node(random: &mut Random, setting: &Setting) -> usize {
    usize::try_from(random.below(setting.replicas as u64)).unwrap_or(0)
}

/// Often a pair: the second strikes the same or the other node soon after.
fn strikes(random: &mut Random, setting: &Setting, at: Millis) -> Vec<Disturbance> {
    let first = strike(random, setting, at);
    let mut strikes = vec![first];
    if random.percent(40) {
        let later = at + if random.percent(50) { first.lasts } else { 0 } + random.magnitude(10, 20 * SECOND);
        strikes.push(strike(random, setting, later));
    }
    strikes
}

fn strike(random: &mut Random, setting: &Setting, at: Millis) -> Disturbance {
    let phase = random.pick(Phase::Before, &[Phase::Committed, Phase::After]);
    let trigger = match random.below(10) {
        0..=1 => Trigger::Now,
        2..=5 => Trigger::Request(random.between(1, 12), phase),
        6..=7 => Trigger::Grant(random.between(1, 2), phase),
        _ => Trigger::Write(random.between(1, 2), phase),
    };
    let blow = match random.below(10) {
        0..=4 => Blow::Crash,
        5 => Blow::Stop,
        6..=8 => Blow::Freeze,
        _ => Blow::Suspend,
    };
    let longest = (setting.lease_secs * 3 * SECOND).max(setting.lifetime / 2);
    Disturbance { at, lasts: random.magnitude(50, longest), what: What::Strike(node(random, setting), blow, trigger) }
}

fn away(random: &mut Random) -> Away {
    random.pick(Away::Refused, &[Away::Hangs, Away::Status(500), Away::Status(503), Away::AnswersLost])
}

fn of_api(random: &mut Random, setting: &Setting) -> (Millis, What) {
    let lasts = length(random, setting);
    let how = away(random);
    let what = match random.below(10) {
        0..=2 => What::ApiAway(None, how),
        3..=5 => What::ApiAway(Some(node(random, setting)), how),
        6..=8 => {
            let refusal = if setting.lifetime < 2 * MINUTE { 500 } else { 403 };
            let how = random
                .pick(Away::Refused, &[Away::Status(refusal), Away::Status(409), Away::Status(429), Away::AnswersLost]);
            What::ApiFlaky(random.between(10, 60), how)
        }
        _ => What::ApiSlow(random.magnitude(500, 15 * SECOND)),
    };
    (lasts, what)
}

fn of_watches(random: &mut Random, setting: &Setting) -> (Millis, What) {
    let kind = random.pick(Kind::Secret, &[Kind::Credential, Kind::Secret, Kind::Namespace]);
    let gone = random.percent(50);
    match random.below(3) {
        0 => (0, What::WatchCut(kind, gone)),
        1 => (length(random, setting).min(150 * SECOND), What::WatchBehind(kind, gone)),
        _ => (length(random, setting), What::WatchSlow(kind, random.magnitude(100, 10 * SECOND))),
    }
}

fn of_endpoint(random: &mut Random, setting: &Setting, object: usize) -> (Millis, What) {
    let lasts = length(random, setting);
    // Waits of an hour are for tokens that live for hours, or a run would be nothing but waiting.
    let longest_wait = (setting.lifetime / SECOND * 2).min(4000);
    let what =
        match random.below(12) {
            5..=7 if setting.lifetime < 2 * MINUTE && random.percent(80) => {
                let secs = random.magnitude(1, longest_wait);
                What::RateLimited(random.pick(RetryAfter::Seconds(secs), &[RetryAfter::Date(secs)]))
            }
            0..=3 => What::EndpointAway(away(random)),
            4 => What::EndpointSlow(random.magnitude(500, 9 * SECOND)),
            5..=6 => {
                let secs = random.magnitude(1, longest_wait);
                What::RateLimited(random.pick(
                    RetryAfter::Missing,
                    &[RetryAfter::Seconds(secs), RetryAfter::Date(secs), RetryAfter::Nonsense],
                ))
            }
            7 => What::BadAnswers,
            8..=9 => What::InvalidClient(object),
            _ => return (0, What::GrantsLost(random.between(1, 3))),
        };
    (lasts, what)
}

fn of_people(random: &mut Random, setting: &Setting, object: usize) -> (Millis, What) {
    let lasts = length(random, setting);
    match random.below(20) {
        0..=1 => (0, What::TargetDeleted(object)),
        2..=3 => (0, What::TokenEdited(object)),
        4 => (0, What::AnnotationsStripped(object)),
        5 => (0, What::ExpiryEdited(object)),
        6 => (0, What::LabelsStripped(object)),
        7..=8 => (0, What::RefreshRequested(object)),
        9..=11 => {
            let percent = Edit::Percent(random.between(25, 90));
            (
                0,
                What::SpecEdited(
                    object,
                    random.pick(Edit::Scope, &[Edit::TokenKey, Edit::AuthorizationKey, Edit::Labels, percent]),
                ),
            )
        }
        12 => (lasts, What::Suspended(object)),
        13 => (lasts, What::CredentialsGone(object)),
        14 => (0, What::CredentialsRotated(object)),
        15 => (lasts, What::CredentialsWrong(object)),
        16 => (0, What::CredentialsTouched(object)),
        17 => (0, What::StatusCleared(object)),
        18 => (random.magnitude(1, 5 * SECOND), What::Recreated(object)),
        _ => (lasts, What::TargetTaken(object)),
    }
}
