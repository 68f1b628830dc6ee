//! What is to be done for one object: [`plan`] maps what was observed to one [`Plan`].
//!
//! No `async`, no client, no clock: the same observation at the same moment gives the same plan. Carrying a plan out makes
//! no choice of its own.

use jiff::Timestamp;

use crate::crd::{ConditionType, DeletionPolicy, MoneyGoCredentialStatus, Reason, Resolved, SpecProblem};
use crate::digest::Match;
use crate::schedule::{self, Life, Urgency};
use crate::secret::{self, CredentialsProblem, Digests, Facts, Found, Issue, Owner, Seal, Version};
use crate::status::{self, Failure, Report, State, Verdict};

/// What is recorded where the scope that a token was asked for with is unknown. No spec can have it, so that a new token follows.
const UNKNOWN_SCOPE: &str = "";
const OUTAGE: &str = "the token endpoint is down for everyone; a token is asked for as soon as it is back";

/// All that a plan is made of.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is an observation of its own; none excludes another")]
pub struct Observed {
    /// The moment for which the plan is made.
    pub now: Timestamp,
    /// The object's name and uid.
    pub owner: Owner,
    /// The object's version that this was seen of.
    pub version: Version,
    /// `metadata.generation`.
    pub generation: Option<i64>,
    /// `metadata.creationTimestamp`.
    pub created: Option<Timestamp>,
    /// It or its namespace is being deleted, or it is gone.
    pub ending: bool,
    /// The spec with its defaults, or why it cannot be worked with.
    pub spec: Result<Resolved, SpecProblem>,
    /// `money-go.com/refresh-requested` on the object.
    pub refresh_requested: Option<String>,
    /// The status as it stands.
    pub status: MoneyGoCredentialStatus,
    /// How the last attempt failed, unless something changed since that may mend it.
    pub failure: Option<Failure>,
    /// When the next attempt would be due, where something did that ends the wait for it.
    pub hurried: Option<Timestamp>,
    /// That something is no more than another version of the credentials Secret: a look may show that the client is the same.
    pub may_stand: bool,
    /// This replica may start grants.
    pub leading: bool,
    /// Another object with the same target that comes first.
    pub rival: Option<String>,
    /// What both Secrets show was read for this plan, and is not from a watch.
    pub live: bool,
    /// The credentials Secret.
    pub credentials: Credentials,
    /// The target Secret.
    pub target: Target,
    /// Whose the target is: true where it is not there.
    pub claimed: bool,
    /// A token that was issued and is not written yet.
    pub held: Option<Held>,
    /// This process wrote a token that the status does not tell of yet.
    pub has_written: bool,
    /// When the next grant for a token that someone else took away is allowed.
    pub replaced_at: Timestamp,
    /// When the next grant for a change that a person made is allowed.
    pub changed_at: Timestamp,
    /// When the next mend is allowed.
    pub mend_at: Timestamp,
    /// There is a key to make digests with.
    pub digests: bool,
    /// The API server refused to change the target's owner a while ago.
    pub owner_refused: bool,
    /// The endpoint is down for everyone.
    pub outage: bool,
    /// The process stops: a token that is held is written now, or lost.
    pub stopping: bool,
}

/// The credentials Secret, as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// There is none of that name.
    Missing,
    /// Its version, from the watch.
    Seen(Version),
    /// Read for this plan.
    Read {
        /// Its version.
        version: Version,
        /// How its client id and secret compare to those that the target's token was asked for with.
        content: Result<Match, CredentialsProblem>,
    },
}

impl Credentials {
    /// Its version, where it is there.
    #[must_use]
    pub fn version(&self) -> Option<&Version> {
        match self {
            Self::Missing => None,
            Self::Seen(version) | Self::Read { version, .. } => Some(version),
        }
    }
}

/// The target Secret, as it was seen.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// There is none of that name.
    Missing,
    /// Its metadata, from the watch. `trusted`: nobody touched the data since we wrote or read it.
    Seen {
        /// What its metadata tells.
        facts: Box<Facts>,
        /// Whether that may be believed without a look at the data.
        trusted: bool,
    },
    /// Read for this plan.
    Read {
        /// What its metadata tells.
        facts: Box<Facts>,
        /// What its data holds.
        found: Found,
        /// The keys beside the token's hold what they should.
        complete: bool,
        /// Its data cannot be changed: `immutable: true`.
        immutable: bool,
    },
}

impl Target {
    /// What its metadata tells, where it is there.
    #[must_use]
    pub fn facts(&self) -> Option<&Facts> {
        match self {
            Self::Missing => None,
            Self::Seen { facts, .. } | Self::Read { facts, .. } => Some(facts),
        }
    }

    /// The life of the token that was read in it.
    #[must_use]
    pub fn life(&self) -> Option<Life> {
        if let Self::Read { found: Found::Token(life), .. } = self { Some(*life) } else { None }
    }
}

/// What is known of a token that was issued and is not written yet. The token itself is not here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// What is to be recorded with it.
    pub issue: Issue,
    /// When the token was issued that the target held as this one was asked for.
    pub replaces: Option<Timestamp>,
    /// The target holds this very token.
    pub is_stored: bool,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Plan {
    /// Nothing, and nothing is to be said: another replica leads, or the object is ending.
    Stand,
    /// Nothing but to say how things stand, and to look again at a moment.
    Rest(Box<Report>, Option<Timestamp>),
    /// What the watches show does not decide it: read both Secrets, and plan again.
    Look,
    /// As [`Plan::Look`], but only with leave to ask for a token, which may have to be waited for.
    LookToMint,
    /// Ask for a token.
    Mint(Cause),
    /// Write the token that is held.
    Store,
    /// Forget the token that is held: it has expired, there is nothing left to write it to, or it is there already.
    Forget,
    /// Write what is missing beside the token that is there.
    Mend(Box<Issue>),
}

/// Why a token is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// There never was one.
    First,
    /// Its refresh time is reached, it has expired, or the clock stands before its issue.
    Due,
    /// A failed attempt is repeated.
    Retry,
    /// The token is gone: deleted, edited, or replaced by an older one.
    Lost,
    /// The scope is another one.
    ScopeChanged,
    /// The client id or secret is another one.
    CredentialsChanged,
    /// `money-go.com/refresh-requested` asks for it.
    Requested,
    /// Two replicas wrote at once, and no clock can say which token was issued last.
    Settle,
}

impl Cause {
    /// The allowance that a grant for it is taken from. Two, so that a person's change is not held up by someone who keeps
    /// overwriting the target.
    #[must_use]
    pub fn allowance(self) -> Allowed {
        match self {
            Self::First | Self::Due | Self::Retry => Allowed::Always,
            Self::Lost | Self::Settle => Allowed::AsReplacement,
            Self::ScopeChanged | Self::CredentialsChanged | Self::Requested => Allowed::AsChange,
        }
    }

    /// For logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::First => "First",
            Self::Due => "Due",
            Self::Retry => "Retry",
            Self::Lost => "Lost",
            Self::ScopeChanged => "ScopeChanged",
            Self::CredentialsChanged => "CredentialsChanged",
            Self::Requested => "Requested",
            Self::Settle => "Settle",
        }
    }
}

/// How often a grant is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowed {
    /// A schedule foresaw it.
    Always,
    /// From the allowance for tokens that someone else took away.
    AsReplacement,
    /// From the allowance for changes that a person made.
    AsChange,
}

/// The token that the target holds, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    None,
    Good(Life),
    /// It was there. With the field manager that overwrote it, where one is known.
    Lost(Option<String>),
    /// Only the data can tell.
    Unclear,
}

impl Token {
    fn life(&self) -> Option<Life> {
        if let Self::Good(life) = self { Some(*life) } else { None }
    }
}

/// What stands in the way of a working object, whatever its token.
struct Obstacle {
    reason: Reason,
    message: String,
    /// The target is not ours (or cannot be): whatever it holds is not our token.
    no_target: bool,
}

/// Maps what was observed to what is to be done.
#[must_use]
pub fn plan(o: &Observed) -> Plan {
    match decide(o) {
        Plan::Rest(report, _) if !o.live && tells_of_absence(&o.status, &report) => Plan::Look,
        Plan::Rest(report, _) if is_told_immutable(o) && report.refreshed.reason != Reason::TargetImmutable => {
            Plan::Look
        }
        // Nor is leave waited for to write what cannot be written.
        Plan::LookToMint if is_told_immutable(o) => Plan::Look,
        plan => plan,
    }
}

/// Two watches have no order: an object may be shown before the Secret that was made first. Nobody is told of what is missing
/// without a look.
fn tells_of_absence(told: &MoneyGoCredentialStatus, report: &Report) -> bool {
    let is_news = |kind, verdict: &Verdict| {
        let is_told = status::condition(told, kind).is_some_and(|told| told.reason == verdict.reason.as_str());
        verdict.reason == Reason::CredentialsNotFound && !is_told
    };
    is_news(ConditionType::Ready, &report.ready) || is_news(ConditionType::Refreshed, &report.refreshed)
}

/// That a target can be written again only a look tells: its metadata do not say whether it is immutable.
fn is_told_immutable(o: &Observed) -> bool {
    let told = status::condition(&o.status, ConditionType::Refreshed);
    let is_told = told.is_some_and(|told| told.reason == Reason::TargetImmutable.as_str());
    is_told && !o.live && o.spec.is_ok() && !o.ending
}

fn decide(o: &Observed) -> Plan {
    if o.ending {
        return plan_ending(o);
    }
    if o.held.as_ref().is_some_and(|held| held.issue.life.is_expired(o.now)) {
        return Plan::Forget;
    }
    if !o.leading && o.held.is_none() {
        return Plan::Stand;
    }
    let Ok(spec) = &o.spec else { return account(o) };
    if target_obstacle(o, spec).is_some() {
        return account(o);
    }
    match &o.held {
        // Before anything is said, too: what is there may be what nobody has looked at yet.
        Some(_) if !o.live => Plan::Look,
        Some(_) if is_write_refused(o) && !o.stopping => account(o),
        // No write can succeed, and the refusals so far were for that.
        Some(held) if is_immutable(o) && !held.is_stored => account(&Observed { failure: None, ..o.clone() }),
        Some(held) if held.is_stored && is_of_a_later_request(o, held) => Plan::Forget,
        Some(held) if held.is_stored || !is_overtaken(o, held) => Plan::Store,
        Some(_) => plan_grant(o, spec, Cause::Settle),
        None => plan_token(o, spec),
    }
}

/// The API server refused the write, and it is not time to try again.
#[must_use]
pub fn is_write_refused(o: &Observed) -> bool {
    o.failure.as_ref().is_some_and(|failure| failure.is_of_the_write() && failure.holds_back(o.now))
}

/// No grant and no first write for what is being deleted. A token that came late still goes to a target that outlives its
/// object.
fn plan_ending(o: &Observed) -> Plan {
    match &o.held {
        None => Plan::Stand,
        Some(held) if o.spec.is_err() || held.issue.life.is_expired(o.now) => Plan::Forget,
        Some(_) if !o.live => Plan::Look,
        Some(held) if (is_retained(o) || is_orphaned(o)) && o.claimed && !is_overtaken(o, held) => Plan::Store,
        Some(_) => Plan::Forget,
    }
}

fn is_retained(o: &Observed) -> bool {
    let policy = o.spec.as_ref().map(|spec| spec.deletion_policy);
    o.target != Target::Missing && policy == Ok(DeletionPolicy::Retain)
}

/// Whether the target outlives an object that is being deleted though it was to go with it: its owner was taken away (`--cascade=orphan`). To put it
/// back would have the target deleted.
#[must_use]
pub fn is_orphaned(o: &Observed) -> bool {
    o.ending && !is_retained(o) && o.target.facts().is_some_and(|facts| facts.owning_credential() != Some(&o.owner.uid))
}

/// Whether the target holds a token that was not there as the held one was asked for: another replica wrote it.
fn is_overtaken(o: &Observed, held: &Held) -> bool {
    match &o.target {
        Target::Read { found: Found::Token(life), .. } => !held.is_stored && Some(life.issued_at) != held.replaces,
        _ => false,
    }
}

/// Another replica was given the same token later, and wrote it: what is recorded of it is newer than what we would record.
fn is_of_a_later_request(o: &Observed, held: &Held) -> bool {
    o.target.life().is_some_and(|life| life.issued_at > held.issue.life.issued_at)
}

fn plan_token(o: &Observed, spec: &Resolved) -> Plan {
    let token = token(o, spec);
    if token == Token::Unclear {
        return Plan::Look;
    }
    let mend = token.life().and_then(|life| mend(o, spec, life));
    match (mend, cause(o, spec, &token)) {
        // Before anything is said, too: the marks that call for it may say something else than what was written.
        (Some(Plan::Look), _) => Plan::Look,
        (Some(mend), _) if o.mend_at <= o.now && !is_write_refused(o) => mend,
        (_, Some(Doubt::Cause(cause))) => plan_grant(o, spec, cause),
        (_, Some(Doubt::Look)) => Plan::Look,
        (Some(_), None) => account(o),
        (None, None) => account(&without_what_is_over(o)),
    }
}

/// A failure whose time to be tried again has come, where a look at both Secrets shows nothing to try, is over: someone put
/// back what was missing, or a clock is right again.
fn without_what_is_over(o: &Observed) -> Observed {
    let stands = |failure: &Failure| !o.live || failure.holds_back(o.now);
    Observed { failure: o.failure.clone().filter(stands), ..o.clone() }
}

fn plan_grant(o: &Observed, spec: &Resolved, cause: Cause) -> Plan {
    if credentials_problem(o).is_some() {
        let is_over = o.failure.as_ref().is_some_and(|failure| !failure.holds_back(o.now));
        return if is_over && !o.live { Plan::Look } else { account(&without_what_is_over(o)) };
    }
    if o.may_stand && !o.live {
        return Plan::Look;
    }
    let held_back = spec.suspend
        || is_immutable(o)
        || o.failure.as_ref().is_some_and(|failure| failure.holds_back(o.now))
        || allowed_at(o, cause) > o.now;
    if held_back {
        return account_while_asking(o);
    }
    if o.live { Plan::Mint(cause) } else { Plan::LookToMint }
}

/// While the endpoint is down one asks for all, whatever it is that changed.
fn hurried(o: &Observed) -> Option<Timestamp> {
    o.hurried.filter(|due| *due > o.now && !o.outage)
}

fn allowed_at(o: &Observed, cause: Cause) -> Timestamp {
    let of_cause = match cause.allowance() {
        Allowed::Always => o.now,
        Allowed::AsReplacement => o.replaced_at,
        Allowed::AsChange => o.changed_at,
    };
    // What comes of a change is not later than without it.
    let of_haste = hurried(o).map_or(o.now, |due| due.min(o.changed_at));
    of_cause.max(of_haste)
}

/// The allowances that a grant for it is taken from. Whoever makes one change after the other does not make an attempt that fails with each.
#[must_use]
pub fn allowances(o: &Observed, cause: Cause) -> [Allowed; 2] {
    let of_cause = cause.allowance();
    let is_another = hurried(o).is_some() && of_cause != Allowed::AsChange;
    [of_cause, if is_another { Allowed::AsChange } else { Allowed::Always }]
}

/// Whether the target was found to take no writes any more.
#[must_use]
pub fn is_immutable(o: &Observed) -> bool {
    matches!(o.target, Target::Read { immutable: true, .. })
}

/// Whether something beside the token is to be put right, and what it takes to know.
fn mend(o: &Observed, spec: &Resolved, life: Life) -> Option<Plan> {
    let facts = o.target.facts()?;
    let digests = Digests { token: o.digests, credentials: o.digests && is_restampable(o) };
    let is_complete = !matches!(o.target, Target::Read { complete: false, .. });
    if is_complete && secret::is_dressed(facts, &o.owner, spec, life, digests, o.owner_refused) {
        return None;
    }
    match &o.target {
        Target::Read { immutable: false, .. } => Some(Plan::Mend(Box::new(issue_of(o, spec, facts, life)))),
        Target::Read { .. } | Target::Missing => None,
        Target::Seen { .. } => Some(Plan::Look),
    }
}

/// Whether the target lacks something beside the token that it was just written with.
#[must_use]
pub fn is_undone(o: &Observed) -> bool {
    let Ok(spec) = &o.spec else { return false };
    token(o, spec).life().and_then(|life| mend(o, spec, life)).is_some()
}

/// Whether the credentials that are there are known to be those that the token was asked for with, so that a digest of
/// them that was stripped can be made anew.
#[must_use]
pub fn is_restampable(o: &Observed) -> bool {
    let marked = o.target.facts().and_then(|facts| facts.marks.credentials.as_ref());
    let version = o.credentials.version();
    let known = version.is_some() && (version == marked || version == observed_credentials(o).as_ref());
    known && o.status.failed_attempts.is_none() && credentials_problem(o).is_none()
}

/// What is recorded of the token that is there, with what was stripped put back from the spec and the status. While a change of them may
/// still be unanswered they tell of that, and not of this token: what it was asked for with is unknown then, and another is asked for.
fn issue_of(o: &Observed, spec: &Resolved, facts: &Facts, life: Life) -> Issue {
    let marks = &facts.marks;
    let settled = is_settled(o);
    let remembered = observed_credentials(o).filter(|_| settled);
    let scope = if settled { spec.scope.as_str() } else { UNKNOWN_SCOPE };
    Issue {
        life,
        scope: marks.scope.clone().unwrap_or_else(|| scope.to_owned()),
        refresh_handled: marks.refresh_handled.clone().or_else(|| o.status.last_handled_refresh.clone()),
        credentials: marks.credentials.clone().or(remembered).unwrap_or_default(),
        credentials_digest: marks.credentials_digest.clone(),
    }
}

/// Whether the status tells of no change that a token is still to be asked for.
fn is_settled(o: &Observed) -> bool {
    let is_observed = o.status.observed_generation.is_none() || o.status.observed_generation == o.generation;
    let refreshed = status::condition(&o.status, ConditionType::Refreshed);
    let is_well = refreshed.is_none_or(|refreshed| refreshed.status == State::True.as_str());
    is_observed && o.status.failed_attempts.is_none() && is_well
}

fn token(o: &Observed, spec: &Resolved) -> Token {
    match &o.target {
        Target::Seen { facts, trusted } => seen_token(o, spec, facts, *trusted),
        Target::Missing | Target::Read { found: Found::Nothing, .. }
            if o.status.issued_at.is_some() || o.has_written =>
        {
            Token::Lost(None)
        }
        Target::Missing | Target::Read { found: Found::Nothing, .. } => Token::None,
        Target::Read { found: Found::Altered, facts, .. } => Token::Lost(who_wrote(facts)),
        Target::Read { found: Found::Token(life), facts, .. } if is_rolled_back(o, *life) => {
            Token::Lost(who_wrote(facts))
        }
        Target::Read { found: Found::Token(life), .. } => Token::Good(*life),
    }
}

/// The annotations are believed where the status says the same and nobody else wrote the data.
fn seen_token(o: &Observed, spec: &Resolved, facts: &Facts, trusted: bool) -> Token {
    let Some(life) = facts.marks.life.filter(|life| trusted && life.is_credible()) else { return Token::Unclear };
    let is_told = o.status.issued_at == Some(life.issued_at) && o.status.expires_at == Some(life.expires_at);
    let marked = facts.marks.refresh_at;
    // Where the spec's refresh time is another, the annotations follow first, and the status with the next pass.
    let is_due_as_told = o.status.refresh_at == marked || marked == Some(life.refresh_at(spec.renew, &o.owner.uid));
    if is_told && is_due_as_told { Token::Good(life) } else { Token::Unclear }
}

/// The status remembers a later token than the one that is there: an older Secret was restored over it.
fn is_rolled_back(o: &Observed, life: Life) -> bool {
    o.status.issued_at.is_some_and(|remembered| remembered > life.issued_at && remembered <= o.now)
}

fn who_wrote(facts: &Facts) -> Option<String> {
    if let Seal::Broken(manager) = &facts.seal { manager.clone() } else { None }
}

enum Doubt {
    Cause(Cause),
    Look,
}

/// Why a token is to be asked for, if at all.
fn cause(o: &Observed, spec: &Resolved, token: &Token) -> Option<Doubt> {
    let life = match token {
        Token::None => return Some(Doubt::Cause(Cause::First)),
        Token::Lost(_) => return Some(Doubt::Cause(Cause::Lost)),
        Token::Unclear => return Some(Doubt::Look),
        Token::Good(life) => *life,
    };
    let marks = o.target.facts().map(|facts| &facts.marks);
    if o.now >= life.refresh_at(spec.renew, &o.owner.uid) || life.is_expired(o.now) || life.is_from_the_future(o.now) {
        return Some(Doubt::Cause(Cause::Due));
    }
    // Where the mark was stripped, and has not been put back since a change, nobody will know later that there was one.
    let is_of_later_than_told = o.status.issued_at.is_none_or(|told| told < life.issued_at);
    let scope = marks.and_then(|marks| marks.scope.as_ref());
    if !scope.map_or_else(|| is_settled(o) || is_of_later_than_told, |scope| *scope == spec.scope) {
        return Some(Doubt::Cause(Cause::ScopeChanged));
    }
    if o.refresh_requested.is_some() && handled_refresh(o) != o.refresh_requested {
        return Some(Doubt::Cause(Cause::Requested));
    }
    match credentials_changed(o) {
        Some(true) => Some(Doubt::Cause(Cause::CredentialsChanged)),
        None => Some(Doubt::Look),
        Some(false) if !o.live && o.status.failed_attempts.is_some() => Some(Doubt::Cause(Cause::Retry)),
        Some(false) => None,
    }
}

/// The refresh request that was answered last: the target's word counts, and the status's where it says so.
fn handled_refresh(o: &Observed) -> Option<String> {
    let marked = o.target.facts().and_then(|facts| facts.marks.refresh_handled.clone());
    let asked = o.refresh_requested.as_ref();
    if asked.is_some() && (marked.as_ref() == asked || o.status.last_handled_refresh.as_ref() == asked) {
        return o.refresh_requested.clone();
    }
    o.status.last_handled_refresh.clone().or(marked)
}

/// Whether the client id or secret is another one than the token was asked for with. `None`: only a look can tell.
fn credentials_changed(o: &Observed) -> Option<bool> {
    match &o.credentials {
        Credentials::Missing => Some(false),
        // Under another spec, the same Secret may name another client by other keys.
        Credentials::Seen(version) => {
            (is_known(o, version) && o.status.observed_generation == o.generation).then_some(false)
        }
        Credentials::Read { version, content } => Some(is_other_client(o, version, *content)),
    }
}

fn is_other_client(o: &Observed, version: &Version, content: Result<Match, CredentialsProblem>) -> bool {
    let marked = o.target.facts().and_then(|facts| facts.marks.credentials.as_ref());
    match content {
        Err(_) | Ok(Match::Same) => false,
        Ok(Match::Different) => true,
        Ok(Match::Unknown) => marked.map_or_else(|| !is_known(o, version), |marked| marked != version),
    }
}

/// Whether nothing is left to be done about this version of the credentials. A status that was lost says nothing; the
/// target's annotations do.
fn is_known(o: &Observed, version: &Version) -> bool {
    let is_lost = o.status.observed_generation.is_none();
    let marked = o.target.facts().and_then(|facts| facts.marks.credentials.as_ref()).filter(|_| is_lost);
    observed_credentials(o).as_ref().or(marked) == Some(version)
}

/// The version of the credentials that is remembered: one about which nothing is left to be done, or about which an attempt
/// failed that will be repeated. Anything else is looked at again, or a change would be forgotten.
fn examined(o: &Observed, failure: Option<&Failure>) -> Option<Version> {
    match &o.credentials {
        Credentials::Read { version, content } => {
            Some(version.clone()).filter(|_| failure.is_some() || !is_other_client(o, version, *content))
        }
        // A failure that stands was met with this very version. The status may not say so yet.
        Credentials::Seen(version) if failure.is_some() => Some(version.clone()),
        // Nor were they looked at under a spec that is new, which may name other keys.
        Credentials::Missing | Credentials::Seen(_) => observed_credentials(o)
            .filter(|_| o.status.observed_generation == o.generation)
            .filter(|_| failure.is_some() || o.status.failed_attempts.is_none()),
    }
}

fn observed_credentials(o: &Observed) -> Option<Version> {
    let seen = o.status.observed_credentials.as_ref()?;
    Some(Version { uid: seen.uid.clone(), resource_version: seen.resource_version.clone() })
}

fn remembered_problem(o: &Observed) -> Option<CredentialsProblem> {
    // Nothing is asked for with credentials that have a problem: who counts failed attempts met something else.
    let refreshed =
        status::condition(&o.status, ConditionType::Refreshed).filter(|_| o.status.failed_attempts.is_none())?;
    match Reason::of(&refreshed.reason) {
        Some(Reason::CredentialsIncomplete) => Some(CredentialsProblem::Incomplete),
        Some(Reason::CredentialsMalformed) => Some(CredentialsProblem::Malformed),
        _ => None,
    }
}

/// A problem was found in the credentials under another spec, which may have named other keys.
fn is_problem_stale(o: &Observed) -> bool {
    remembered_problem(o).is_some() && o.status.observed_generation != o.generation
}

/// What is wrong with the credentials: as just read, or as remembered of the very same version.
fn credentials_problem(o: &Observed) -> Option<(Reason, String)> {
    let problem = match &o.credentials {
        Credentials::Missing => None,
        Credentials::Read { content, .. } => Some((*content).err()?),
        Credentials::Seen(version) if observed_credentials(o).as_ref() == Some(version) && !is_problem_stale(o) => {
            Some(remembered_problem(o)?)
        }
        Credentials::Seen(_) => return None,
    };
    let Ok(spec) = &o.spec else { return None };
    let (name, id, secret) = (&spec.credentials, &spec.client_id_key, &spec.client_secret_key);
    Some(match problem {
        None => (
            Reason::CredentialsNotFound,
            format!(
                "there is no Secret \"{name}\" in this namespace: create it with the keys \"{id}\" and \"{secret}\""
            ),
        ),
        Some(CredentialsProblem::Incomplete) => (
            Reason::CredentialsIncomplete,
            format!("the Secret \"{name}\" needs both keys, \"{id}\" and \"{secret}\", with a value"),
        ),
        Some(CredentialsProblem::Malformed) => (
            Reason::CredentialsMalformed,
            format!(
                "in the Secret \"{name}\" the value of \"{id}\" or \"{secret}\" is not UTF-8, or has white space at an end (as `echo | base64` leaves; use `echo -n` or `kubectl create secret generic --from-literal`)"
            ),
        ),
    })
}

/// What makes the target one that cannot be written.
fn target_obstacle(o: &Observed, spec: &Resolved) -> Option<Obstacle> {
    let obstacle = |reason, message| Some(Obstacle { reason, message, no_target: true });
    let name = &spec.target;
    if let Some(earlier) = o.status.target_name.as_deref().filter(|earlier| earlier != name) {
        return obstacle(
            Reason::TargetImmutable,
            format!("target.name is immutable and was \"{earlier}\": set it back, or create another MoneyGoCredential"),
        );
    }
    if let Some(rival) = &o.rival {
        return obstacle(
            Reason::TargetConflict,
            format!(
                "the Secret \"{name}\" is the target of the MoneyGoCredential \"{rival}\": choose another target.name, or delete one of the two"
            ),
        );
    }
    if o.claimed {
        return None;
    }
    let controller = o.target.facts().and_then(Facts::controller);
    let message = match controller {
        Some(controller) => {
            format!("the Secret \"{name}\" belongs to the {}: choose another target.name", secret::in_words(controller))
        }
        None => format!(
            "the Secret \"{name}\" is there and is not of this MoneyGoCredential: choose another target.name, or annotate the Secret with money-go.com/adopt={}",
            o.owner.name
        ),
    };
    obstacle(Reason::TargetConflict, message)
}

/// How things stand, for an object for which nothing else is to be done now.
#[must_use]
pub fn account(o: &Observed) -> Plan {
    account_of(o, false)
}

/// How things stand while a token is being asked for, or is about to be: that what had failed is over only its coming can tell.
#[must_use]
pub fn account_while_asking(o: &Observed) -> Plan {
    account_of(o, true)
}

fn account_of(o: &Observed, asks: bool) -> Plan {
    let without;
    let o = if o.outage && o.failure.as_ref().is_some_and(|failure| !failure.is_of_an_attempt()) {
        // What keeps a token from coming now is the outage.
        without = Observed { failure: None, ..o.clone() };
        &without
    } else {
        o
    };
    let obstacle = match &o.spec {
        Ok(spec) => target_obstacle(o, spec),
        Err(problem) => Some(Obstacle { reason: Reason::InvalidSpec, message: problem.to_string(), no_target: false }),
    };
    let token = match &o.spec {
        Ok(spec) if obstacle.is_none() => token(o, spec),
        // The spec cannot be worked with, but the token that is there is what it was.
        Err(_) => remembered_life(o).map_or(Token::None, Token::Good),
        Ok(_) => Token::None,
    };
    let waits = waits(o, &token);
    let ready = ready(o, obstacle.as_ref(), &token);
    let refreshed = refreshed(o, obstacle.as_ref(), &token, asks);
    let stalled = stalled(&ready, &refreshed);
    let life = token.life();
    let failure = o.failure.clone().filter(|failure| {
        // A suspension ends attempts, but not the writing of a token that was issued before it.
        obstacle.is_none() && ((!is_suspended(o) && !is_immutable(o)) || failure.is_of_the_write())
    });
    let report = Report {
        generation: o.generation,
        target_name: o.status.target_name.clone().or_else(|| o.spec.as_ref().ok().map(|spec| spec.target.clone())),
        issued_at: life.map(|life| life.issued_at).or(o.status.issued_at),
        expires_at: life.map(|life| life.expires_at),
        refresh_at: refresh_at(o, life),
        credentials: examined(o, failure.as_ref()),
        failure,
        refresh_handled: handled_refresh(o),
        ready,
        refreshed,
        stalled,
    };
    Plan::Rest(Box::new(report), waits)
}

/// What is to be said where the Secrets could not be read, or the target not be written. Nothing while the token that is known to be
/// there lives, nor where nobody knows what is there: it may still be what the status says, or a later token that it does not tell of yet.
#[must_use]
pub fn account_without_secrets(o: &Observed, failure: Failure) -> Option<Box<Report>> {
    let is_unclear = o.spec.as_ref().is_ok_and(|spec| token(o, spec) == Token::Unclear);
    let has_ended = o.status.expires_at.is_some_and(|at| at <= o.now);
    if holds_a_later_token(o) {
        return None;
    }
    // What the credentials lack is told without an attempt, which nobody would repeat.
    let failure = o.failure.clone().or_else(|| credentials_problem(o).is_none().then_some(failure));
    let Plan::Rest(report, _) = account(&Observed { failure, ..o.clone() }) else { return None };
    (report.ready.state != State::True && (has_ended || !is_unclear)).then_some(report)
}

/// Whether the target is marked with a living token that was issued later than the one that the status tells of.
#[must_use]
pub fn holds_a_later_token(o: &Observed) -> bool {
    let marked = o.target.facts().and_then(|facts| facts.marks.life).filter(|life| !life.is_expired(o.now));
    marked.is_some_and(|life| o.status.issued_at.is_some_and(|told| told < life.issued_at))
}

/// The same before the watch has shown the Secrets: that none is seen says nothing of them, nor of whose the target is.
#[must_use]
pub fn account_before_the_secrets(o: &Observed, failure: Failure) -> Option<Box<Report>> {
    let known = observed_credentials(o);
    let credentials = Credentials::Seen(known.clone().unwrap_or_default());
    let report = account_without_secrets(&Observed { credentials, rival: None, ..o.clone() }, failure)?;
    Some(Box::new(Report { credentials: known, ..*report }))
}

fn refresh_at(o: &Observed, life: Option<Life>) -> Option<Timestamp> {
    match &o.spec {
        Ok(spec) => Some(life?.refresh_at(spec.renew, &o.owner.uid)),
        Err(_) => o.status.refresh_at,
    }
}

fn is_suspended(o: &Observed) -> bool {
    o.spec.as_ref().is_ok_and(|spec| spec.suspend)
}

fn remembered_life(o: &Observed) -> Option<Life> {
    let told = life_in_status(&o.status)?;
    let facts = o.target.facts().filter(|facts| o.claimed && !matches!(facts.seal, Seal::Broken(_)))?;
    let marked = facts.marks.life;
    let is_another = marked.is_some_and(|life| life.issued_at != told.issued_at);
    let life = Life { repeated: marked.and_then(|life| life.repeated), ..told };
    (!is_another).then_some(life).filter(|life| life.is_credible())
}

/// The life that the status remembers, for [`secret::inspect`].
#[must_use]
pub fn life_in_status(status: &MoneyGoCredentialStatus) -> Option<Life> {
    let (issued_at, expires_at) = status.issued_at.zip(status.expires_at)?;
    Some(Life { issued_at, expires_at, repeated: None })
}

/// When something changes by itself: the next of the token's deadlines, of the retry and of the allowances.
fn waits(o: &Observed, token: &Token) -> Option<Timestamp> {
    let life = token.life();
    let refresh_at = refresh_at(o, life);
    let retry_at = o.failure.as_ref().map(|failure| failure.next_attempt_at);
    let of_allowances = [o.replaced_at, o.changed_at, o.mend_at].map(Some);
    [refresh_at, retry_at, o.hurried, life.map(|life| life.expires_at)]
        .into_iter()
        .chain(of_allowances)
        .flatten()
        .filter(|at| *at > o.now)
        .min()
}

fn ready(o: &Observed, obstacle: Option<&Obstacle>, token: &Token) -> Verdict {
    match (token, obstacle) {
        (_, Some(obstacle)) if obstacle.no_target => {
            Verdict::new(State::False, obstacle.reason, obstacle.message.clone())
        }
        (Token::Good(life), _) if life.is_from_the_future(o.now) => Verdict::new(
            State::Unknown,
            Reason::Pending,
            "the token was issued by a clock that was ahead, so that nothing is known of its age; a new one is asked for",
        ),
        (Token::Good(life), _) if !life.is_expired(o.now) => {
            Verdict::new(State::True, Reason::TokenValid, "the Secret holds a token that has not expired")
        }
        (Token::Good(_), _) => Verdict::new(
            State::False,
            Reason::TokenExpired,
            "the token has expired; the condition Refreshed says why there is no new one",
        ),
        (_, Some(obstacle)) => Verdict::new(State::False, obstacle.reason, obstacle.message.clone()),
        (_, None) => absent(o, token),
    }
}

/// Why there is no token.
fn absent(o: &Observed, token: &Token) -> Verdict {
    if let Some((reason, message)) = credentials_problem(o) {
        return Verdict::new(State::False, reason, message);
    }
    if is_suspended(o) {
        return Verdict::new(
            State::False,
            Reason::Suspended,
            "there is no token, and none is asked for while spec.suspend is true",
        );
    }
    if let Some(verdict) = hindrance(o, token) {
        return verdict;
    }
    if o.outage {
        return Verdict::new(State::False, Reason::EndpointUnavailable, OUTAGE);
    }
    Verdict::new(State::False, Reason::Pending, pending(o))
}

fn pending(o: &Observed) -> &'static str {
    if o.ending { "the object is being deleted: no token is asked for" } else { "a token is being asked for" }
}

/// What keeps a token from coming, or from being written, whatever the credentials.
fn hindrance(o: &Observed, token: &Token) -> Option<Verdict> {
    if is_immutable(o) {
        return Some(Verdict::new(
            State::False,
            Reason::TargetImmutable,
            "the target Secret has `immutable: true`, so that no token can be written to it: delete it, and it is made anew",
        ));
    }
    let failed = |failure: &Failure| Verdict::new(State::False, failure.reason, failure.message.clone());
    o.failure.as_ref().map(failed).or_else(|| overwritten(o, token))
}

/// Someone keeps replacing the token, so that the allowance is spent.
fn overwritten(o: &Observed, token: &Token) -> Option<Verdict> {
    let Token::Lost(manager) = token else { return None };
    if o.replaced_at <= o.now {
        return None;
    }
    let who = manager.as_deref().map_or_else(String::new, |name| format!(" (the field manager \"{name}\")"));
    let message = format!(
        "the token in the Secret keeps being deleted or overwritten by someone else{who}: make them stop; a new one is asked for more slowly"
    );
    Some(Verdict::new(State::False, Reason::TargetOverwritten, message))
}

fn refreshed(o: &Observed, obstacle: Option<&Obstacle>, token: &Token, asks: bool) -> Verdict {
    if let Some(obstacle) = obstacle {
        return Verdict::new(State::False, obstacle.reason, obstacle.message.clone());
    }
    if let Some(failure) = o.failure.as_ref().filter(|failure| failure.is_of_the_write()) {
        return Verdict::new(State::False, failure.reason, failure.message.clone());
    }
    if is_suspended(o) {
        return Verdict::new(State::Unknown, Reason::Suspended, "no token is asked for while spec.suspend is true");
    }
    if let Some((reason, message)) = credentials_problem(o) {
        return Verdict::new(State::False, reason, message);
    }
    if let Some(verdict) = hindrance(o, token) {
        return verdict;
    }
    let pending = || Verdict::new(State::Unknown, Reason::Pending, pending(o));
    match token {
        Token::Good(life) if o.outage && life.is_expired(o.now) => {
            Verdict::new(State::False, Reason::EndpointUnavailable, OUTAGE)
        }
        Token::Good(life) if asks && (life.is_expired(o.now) || !says_refreshed_of_this(o)) => pending(),
        Token::Good(life) => Verdict::new(State::True, Reason::Succeeded, succeeded(o, *life)),
        _ if o.outage => Verdict::new(State::False, Reason::EndpointUnavailable, OUTAGE),
        _ => pending(),
    }
}

/// Of a spec that was changed since, the last attempt says nothing.
fn says_refreshed_of_this(o: &Observed) -> bool {
    status::says_refreshed(&o.status) && o.status.observed_generation == o.generation
}

fn succeeded(o: &Observed, life: Life) -> &'static str {
    match &o.spec {
        Ok(spec) if life.repeated.is_none() && spec.renew.is_cut(life.lifetime()) => {
            "the last request gave a token; its lifetime cannot hold renewBefore, which is cut to nine tenths of it"
        }
        _ if life.repeated.is_some() => status::GIVEN_AGAIN,
        _ => "the last request gave a token",
    }
}

/// kstatus: True only while Ready is False and nothing but a change of the spec, the client or the target can help.
/// Credentials that are not there yet are pending: GitOps applies them in any order.
fn stalled(ready: &Verdict, refreshed: &Verdict) -> Verdict {
    const HOPELESS: [Reason; 6] = [
        Reason::InvalidSpec,
        Reason::TargetConflict,
        Reason::TargetImmutable,
        Reason::CredentialsMalformed,
        Reason::InvalidClient,
        Reason::RequestRejected,
    ];
    if ready.state == State::False && HOPELESS.contains(&refreshed.reason) {
        return Verdict::new(State::True, refreshed.reason, refreshed.message.clone());
    }
    Verdict::new(
        State::False,
        Reason::AsExpected,
        "nothing that only a change of the spec, the client or the target could mend",
    )
}

/// Whether the target, as it was found, holds a token from before the object was there: an earlier object of its name left it.
#[must_use]
pub fn resumes(o: &Observed) -> bool {
    let life = o.target.facts().and_then(|facts| facts.marks.life);
    o.claimed
        && o.status.issued_at.is_none()
        && life.is_some_and(|life| o.created.is_some_and(|at| life.issued_at < at))
}

/// Whether a token that is written now makes the target the object's own, which it was not before.
#[must_use]
pub fn adopts(o: &Observed) -> bool {
    let is_strange = |facts: &Facts| facts.marks.life.is_none() && facts.owning_credential() != Some(&o.owner.uid);
    resumes(o) || (o.claimed && o.target.facts().is_some_and(is_strange))
}

/// How urgent a grant is: whose token is lost has none. An object that is younger than our clock says is there since now.
#[must_use]
pub fn urgency(o: &Observed) -> Urgency {
    let is_lost = o.held.is_some() || o.spec.as_ref().is_ok_and(|spec| matches!(token(o, spec), Token::Lost(_)));
    let life = o.target.facts().and_then(|facts| facts.marks.life).filter(|life| life.is_credible() && !is_lost);
    life.map_or_else(|| Urgency::New(o.created.unwrap_or(o.now).min(o.now)), |life| Urgency::Ends(life.expires_at))
}

/// An attempt that failed, and what it was made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// How it failed.
    pub failure: Failure,
    /// The object's `metadata.generation`.
    pub generation: Option<i64>,
    /// The credentials Secret.
    pub credentials: Option<Version>,
}

/// What is known of the last attempt that failed beside what the status tells, and what became other since.
#[derive(Debug, Clone, Copy, Default)]
pub struct Past<'a> {
    /// A failure that could not be told yet.
    pub untold: Option<&'a Failed>,
    /// The refresh request, or the target that could not be written, is another.
    pub changed: bool,
    /// When the attempt failed of which the client is remembered.
    pub attempted_at: Option<Timestamp>,
    /// The client's id and secret were read, and are those of that attempt.
    pub same_client: bool,
    /// [`Observed::hurried`] as it was last.
    pub hurried: Option<Timestamp>,
    /// When the endpoint came back after it had been down for everyone.
    pub recovered_at: Option<Timestamp>,
}

/// Whether the failure that the status tells of, or a later one that could not be told yet, still counts. It does not where the spec or the credentials are
/// others since, or what else is `changed`, or where it was the endpoint's, which has come back since.
pub fn judge_failure(o: &mut Observed, past: &Past<'_>) {
    let last = last_failure(o, past.untold).filter(|last| !is_over(&last.failure, o.now, past.recovered_at));
    let due = last.as_ref().map(|last| next_attempt_after(&last.failure, o.now));
    let stands = |same_client: bool| {
        last.as_ref().is_some_and(|last| {
            let is_of_client = same_client && past.attempted_at == Some(last.failure.at);
            !past.changed && last.generation == o.generation && (is_of_client || !is_of_other_version(o, last))
        })
    };
    let is_standing = stands(past.same_client);
    let is_of_a_grant = |failure: &Failure| failure.is_of_an_attempt() && !failure.is_of_the_write();
    let due_of_grant = due.filter(|_| last.as_ref().is_some_and(|last| is_of_a_grant(&last.failure)));
    let is_hurried = !is_standing && !says_refreshed_of_this(o);
    o.may_stand = !is_standing && stands(true) && due.is_some_and(|due| due > o.now);
    o.hurried = past.hurried.or(due_of_grant).filter(|due| is_hurried && *due > o.now);
    let standing = last.filter(|_| is_standing).zip(due);
    o.failure = standing.map(|(Failed { failure, .. }, next_attempt_at)| Failure { next_attempt_at, ..failure });
}

fn is_of_other_version(o: &Observed, failed: &Failed) -> bool {
    o.credentials.version().is_some_and(|version| failed.credentials.as_ref().is_some_and(|tried| tried != version))
}

fn last_failure(o: &Observed, untold: Option<&Failed>) -> Option<Failed> {
    let stored = match &o.target {
        Target::Read { found: Found::Token(life), .. } => Some(*life),
        Target::Seen { facts, trusted: true } => facts.marks.life,
        Target::Missing | Target::Seen { .. } | Target::Read { .. } => None,
    };
    // A token was written that the status does not know of: whoever wrote it died before it could say that the failure is over.
    let is_behind = stored.is_some_and(|life| o.status.issued_at.is_none_or(|told| told < life.issued_at));
    // What is told of an immutable target is no attempt's, though one may be counted beside it.
    let told = Failure::in_status(&o.status).filter(|told| !is_behind && told.reason != Reason::TargetImmutable);
    let told = told.map(|failure| Failed {
        failure,
        generation: o.status.observed_generation,
        credentials: observed_credentials(o),
    });
    // Another replica may have had a token since.
    let untold =
        untold.filter(|failed| o.status.issued_at.is_none_or(|issued_at| issued_at <= failed.failure.at)).cloned();
    let is_credible = |failed: &Failed| schedule::is_credible_failure(failed.failure.at, o.now);
    told.into_iter().chain(untold).max_by_key(|failed| (is_credible(failed), failed.failure.at))
}

/// What was noted by a clock that was ahead is no recovery from what fails now.
fn is_over(failure: &Failure, now: Timestamp, recovered_at: Option<Timestamp>) -> bool {
    failure.reason == Reason::EndpointUnavailable
        && recovered_at.is_some_and(|recovered| failure.at < recovered && recovered <= now)
}

/// At once, where what is recorded cannot be our own.
fn next_attempt_after(failure: &Failure, now: Timestamp) -> Timestamp {
    let longest = match failure.reason {
        Reason::RateLimited
        | Reason::EndpointUnavailable
        | Reason::BadResponse
        | Reason::TargetForbidden
        | Reason::SecretsUnavailable => schedule::LONGEST_RETRY_AFTER,
        // A refusal may be behind what else the status tells.
        _ => schedule::LONGEST_RETRY,
    };
    let is_credible = schedule::is_credible_attempt(failure.at, failure.next_attempt_at, longest, now);
    if is_credible { failure.next_attempt_at } else { now }
}

#[cfg(test)]
mod tests;
