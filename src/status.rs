//! An outcome → the status. Pure: two equal reports give the same status, so that nothing is written where nothing
//! changed.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::ObjectMeta;
use kube::core::DynamicObject;
use serde_json::{Value, json};

use crate::crd::{ConditionType, MoneyGoCredential, MoneyGoCredentialStatus, ObservedCredentials, Reason};
use crate::schedule;
use crate::secret::Version;

/// A condition's `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// `True`.
    True,
    /// `False`.
    False,
    /// `Unknown`.
    Unknown,
}

impl State {
    /// Every status.
    pub const ALL: [Self; 3] = [Self::True, Self::False, Self::Unknown];

    /// The status of that name.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }

    /// The condition's `status`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// What a condition says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Its status.
    pub state: State,
    /// Its reason.
    pub reason: Reason,
    /// For people: fixed text, names of objects, an HTTP status and an OAuth error code at most.
    pub message: String,
}

impl Verdict {
    /// A verdict.
    #[must_use]
    pub fn new(state: State, reason: Reason, message: impl Into<String>) -> Self {
        Self { state, reason, message: message.into() }
    }
}

/// How attempts have failed since the last success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What kind of failure the last was.
    pub reason: Reason,
    /// The same, for people.
    pub message: String,
    /// When it was.
    pub at: Timestamp,
    /// How many there were in a row.
    pub attempts: i32,
    /// When the next attempt is made.
    pub next_attempt_at: Timestamp,
}

impl Failure {
    /// The failure that a status tells of.
    #[must_use]
    pub fn in_status(status: &MoneyGoCredentialStatus) -> Option<Self> {
        let attempts = status.failed_attempts.filter(|attempts| *attempts > 0)?;
        let refreshed = condition(status, ConditionType::Refreshed)
            .filter(|refreshed| refreshed.status == State::False.as_str())?;
        let reason = Reason::of(&refreshed.reason)?;
        let at = status.last_failure_time?;
        let next_attempt_at = status.next_attempt_at.unwrap_or(at);
        Some(Self { reason, message: refreshed.message.clone(), at, attempts, next_attempt_at })
    }

    /// Whether it is too early for another attempt.
    #[must_use]
    pub fn holds_back(&self, now: Timestamp) -> bool {
        self.next_attempt_at > now
    }

    /// Whether something was attempted, and not only kept from being so.
    #[must_use]
    pub fn is_of_an_attempt(&self) -> bool {
        self.reason != Reason::SecretsUnavailable
    }

    /// Whether it was the API server that refused the write of the target.
    #[must_use]
    pub fn is_of_the_write(&self) -> bool {
        self.reason == Reason::TargetForbidden
    }

    /// How long was waited after this one, where one for `reason` is of its kind, and is waited for twice as long. `status` is what was told then, and
    /// `ended_at` when the token ends that was there: what was tried in haste, for its sake, counts for half of the time since it began to fail,
    /// as waits that double would.
    #[must_use]
    pub fn wait_before(
        &self,
        reason: Reason,
        status: &MoneyGoCredentialStatus,
        ended_at: Option<Timestamp>,
    ) -> Option<SignedDuration> {
        let is_alike = kind_of(self.reason) == kind_of(reason);
        if !self.is_of_an_attempt() || !is_alike {
            return None;
        }
        let hurried = ended_at.is_some_and(|at| self.at < at);
        let lasted = failing_since(status).filter(|_| hurried).map(|since| self.next_attempt_at.duration_since(since));
        let wait = self.next_attempt_at.duration_since(self.at);
        Some(lasted.map_or(wait, |lasted| wait.max(lasted / 2)))
    }

    /// With times that people can read.
    #[must_use]
    pub fn in_milliseconds(self) -> Self {
        let (at, next_attempt_at) = (schedule::floor_millis(self.at), schedule::floor_millis(self.next_attempt_at));
        Self { at, next_attempt_at, ..self }
    }
}

fn failing_since(status: &MoneyGoCredentialStatus) -> Option<Timestamp> {
    let refreshed = condition(status, ConditionType::Refreshed)?;
    (refreshed.status == State::False.as_str()).then_some(refreshed.last_transition_time.0)
}

/// What says nothing of one another: how long to wait for a person says nothing of how long to wait for an endpoint.
#[derive(PartialEq)]
enum Kind {
    Refused,
    Failed,
    Unwritten,
}

fn kind_of(reason: Reason) -> Kind {
    match reason {
        Reason::InvalidClient | Reason::RequestRejected => Kind::Refused,
        Reason::TargetForbidden => Kind::Unwritten,
        _ => Kind::Failed,
    }
}

/// A status's condition of a type.
#[must_use]
pub fn condition(status: &MoneyGoCredentialStatus, kind: ConditionType) -> Option<&Condition> {
    status.conditions.iter().find(|condition| condition.type_ == kind.as_str())
}

/// Whether a status says that the target holds a valid token.
#[must_use]
pub fn says_ready(status: &MoneyGoCredentialStatus) -> bool {
    is_true(status, ConditionType::Ready)
}

/// Whether a status says that the last request gave a token.
#[must_use]
pub fn says_refreshed(status: &MoneyGoCredentialStatus) -> bool {
    is_true(status, ConditionType::Refreshed)
}

fn is_true(status: &MoneyGoCredentialStatus, kind: ConditionType) -> bool {
    condition(status, kind).is_some_and(|found| found.status == State::True.as_str())
}

/// Whether a status says that something fails: `Refreshed` is False, or the token has expired.
#[must_use]
pub fn is_failing(status: &MoneyGoCredentialStatus) -> bool {
    let is_false = |kind| condition(status, kind).filter(|found| found.status == State::False.as_str());
    is_false(ConditionType::Refreshed).is_some()
        || is_false(ConditionType::Ready).is_some_and(|ready| ready.reason == Reason::TokenExpired.as_str())
}

/// The same, or that what had failed is being tried again with something else, while the token lives.
#[must_use]
pub fn was_failing(status: &MoneyGoCredentialStatus) -> bool {
    let is_pending = condition(status, ConditionType::Refreshed).is_some_and(|refreshed| {
        refreshed.status == State::Unknown.as_str() && refreshed.reason == Reason::Pending.as_str()
    });
    is_failing(status) || (is_pending && says_ready(status))
}

/// The condition that tells best what is new in a status: of `Refreshed` and `Ready`, one that says something else than before, that the
/// token has expired before anything else, and one that is False rather than another. `None` where both say the same as before.
#[must_use]
pub fn change<'a>(before: &MoneyGoCredentialStatus, after: &'a MoneyGoCredentialStatus) -> Option<&'a Condition> {
    let is_new = |now: &&Condition, kind| {
        condition(before, kind).is_none_or(|earlier| (&earlier.status, &earlier.reason) != (&now.status, &now.reason))
    };
    let [refreshed, ready] = [ConditionType::Refreshed, ConditionType::Ready]
        .map(|kind| condition(after, kind).filter(|now| is_new(now, kind)));
    let is_false = |one: &&Condition| one.status == State::False.as_str();
    let has_expired = |one: &&Condition| one.reason == Reason::TokenExpired.as_str();
    ready
        .filter(has_expired)
        .or_else(|| refreshed.filter(is_false))
        .or_else(|| ready.filter(is_false))
        .or(refreshed)
        .or(ready)
}

/// How things stand with one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The generation that all of this is about.
    pub generation: Option<i64>,
    /// The Secret that holds the token.
    pub target_name: Option<String>,
    /// When its token was issued. Kept when the token is lost, which tells a lost one from none.
    pub issued_at: Option<Timestamp>,
    /// When it expires.
    pub expires_at: Option<Timestamp>,
    /// When the next is asked for.
    pub refresh_at: Option<Timestamp>,
    /// How the last attempts failed.
    pub failure: Option<Failure>,
    /// The credentials that were looked at last.
    pub credentials: Option<Version>,
    /// The refresh request that was answered last.
    pub refresh_handled: Option<String>,
    /// The target holds our token, and it has not expired.
    pub ready: Verdict,
    /// How the last attempt went.
    pub refreshed: Verdict,
    /// Nothing but a change of the spec, the client or the target can help.
    pub stalled: Verdict,
}

impl Report {
    /// The status that says this. A condition's `lastTransitionTime` moves with its status alone.
    #[must_use]
    pub fn status(&self, before: &MoneyGoCredentialStatus, now: Timestamp) -> MoneyGoCredentialStatus {
        let failure = self.failure.as_ref();
        let condition = |kind, verdict| self.condition(before, kind, verdict, now);
        let own = [
            condition(ConditionType::Ready, &self.ready),
            condition(ConditionType::Refreshed, &self.refreshed),
            condition(ConditionType::Stalled, &self.stalled),
        ];
        // The list is one for all who have something to say, each with types of its own, in whatever order.
        let mut conditions = before.conditions.clone();
        for own in own {
            match conditions.iter_mut().find(|said| said.type_ == own.type_) {
                Some(said) => *said = own,
                None => conditions.push(own),
            }
        }
        MoneyGoCredentialStatus {
            observed_generation: self.generation,
            target_name: self.target_name.clone(),
            issued_at: self.issued_at,
            expires_at: self.expires_at,
            refresh_at: self.refresh_at,
            last_failure_time: failure.map(|failure| failure.at),
            failed_attempts: failure.map(|failure| failure.attempts),
            next_attempt_at: failure.map(|failure| failure.next_attempt_at),
            observed_credentials: self.credentials.as_ref().map(|version| ObservedCredentials {
                uid: version.uid.clone(),
                resource_version: version.resource_version.clone(),
            }),
            last_handled_refresh: self.refresh_handled.clone(),
            conditions,
        }
    }

    fn condition(
        &self,
        before: &MoneyGoCredentialStatus,
        kind: ConditionType,
        verdict: &Verdict,
        now: Timestamp,
    ) -> Condition {
        let stood = condition(before, kind).filter(|earlier| earlier.status == verdict.state.as_str());
        // A condition's times are whole seconds on the wire: what is written has to be what is read back.
        let whole_seconds = Timestamp::from_second(now.as_second()).unwrap_or(now);
        let since = stood.map_or(Time(whole_seconds), |earlier| earlier.last_transition_time.clone());
        new_condition(kind, verdict, self.generation, since)
    }
}

/// The object with that status, to be written in place of that version and no other. All the rest the API server leaves as it is stored; but what
/// admits the write may look at it.
#[must_use]
pub fn with_status(object: MoneyGoCredential, version: &Version, wanted: MoneyGoCredentialStatus) -> MoneyGoCredential {
    let Version { uid, resource_version } = version.clone();
    let metadata = ObjectMeta { uid: Some(uid), resource_version: Some(resource_version), ..object.metadata };
    MoneyGoCredential { metadata, status: Some(wanted), ..object }
}

/// What `Refreshed` says where Money-Go gave the token that was there already.
pub const GIVEN_AGAIN: &str =
    "the last request gave the token that was there already; another is asked for halfway to its end, and after it";

/// What is said of an object that cannot be read.
pub const UNREADABLE: &str = "the object cannot be read as a MoneyGoCredential of this version: look at its spec beside `kubectl explain moneygocredential.spec`, and apply it again";

/// An object that cannot be read, with a status that says so, to be written in place of the version that was read. What else its status
/// holds stays, for what that is is unknown.
#[must_use]
pub fn unreadable(mut object: DynamicObject, now: Timestamp) -> DynamicObject {
    let generation = object.metadata.generation;
    let verdict = |state| Verdict::new(state, Reason::InvalidSpec, UNREADABLE);
    let said = [
        (ConditionType::Ready, State::False),
        (ConditionType::Refreshed, State::False),
        (ConditionType::Stalled, State::True),
    ];
    let whole_seconds = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let own = said.map(|(kind, state)| new_condition(kind, &verdict(state), generation, Time(whole_seconds)));
    let told = object.data.pointer("/status/conditions").and_then(Value::as_array);
    let is_ours = |told: &Value| own.iter().any(|own| told["type"] == *own.type_);
    let others = told.into_iter().flatten().filter(|told| told["type"].is_string() && !is_ours(told)).cloned();
    let conditions: Vec<Value> = own.iter().map(|own| json!(own)).chain(others).collect();
    let mut status = object.data.get("status").and_then(Value::as_object).cloned().unwrap_or_default();
    status.insert("observedGeneration".to_owned(), json!(generation));
    status.insert("conditions".to_owned(), json!(conditions));
    if let Value::Object(fields) = &mut object.data {
        fields.insert("status".to_owned(), Value::Object(status));
    }
    object.metadata.managed_fields = None;
    object
}

/// Whether a status of any shape tells that its object cannot be read, for this generation.
#[must_use]
pub fn says_unreadable(status: &Value, generation: Option<i64>) -> bool {
    let conditions = status.get("conditions").and_then(Value::as_array);
    let says = |condition: &Value| {
        condition.get("type").and_then(Value::as_str) == Some(ConditionType::Ready.as_str())
            && condition.get("message").and_then(Value::as_str) == Some(UNREADABLE)
            && condition.get("observedGeneration").and_then(Value::as_i64) == generation
    };
    conditions.into_iter().flatten().any(says)
}

fn new_condition(kind: ConditionType, verdict: &Verdict, generation: Option<i64>, since: Time) -> Condition {
    Condition {
        type_: kind.as_str().to_owned(),
        status: verdict.state.as_str().to_owned(),
        reason: verdict.reason.as_str().to_owned(),
        message: verdict.message.clone(),
        observed_generation: generation,
        last_transition_time: since,
    }
}

#[cfg(test)]
mod tests;
