//! An object → how its token stands, and the bar that shows it. Pure: the time is given.

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt as _;
use moneygo_operator::crd::{ConditionType, MoneyGoCredential, MoneyGoCredentialStatus, Reason};
use moneygo_operator::status::condition;
use serde::Serialize;

use crate::terminal::Look;

/// How wide a bar is, in characters.
pub const BAR_WIDTH: usize = 25;
/// So much later than it was due, a refresh is overdue, whatever the token's lifetime.
const OVERDUE_LEAST: SignedDuration = SignedDuration::from_secs(10);

/// How a token stands, in one word. The worst that applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum State {
    /// There is a valid token, and nothing is wrong.
    Healthy,
    /// There is a valid token; the last attempt to replace it failed.
    Failing,
    /// There is a valid token; it should have been replaced by now.
    Overdue,
    /// No new token is asked for. There may be a valid one.
    Suspended,
    /// There is no token yet, and no attempt has failed.
    Pending,
    /// There is no valid token, and the reason says why.
    NotReady,
    /// The token has expired.
    Expired,
    /// No operator has looked at the object.
    Unseen,
    /// It is being deleted.
    Deleting,
}

/// What is shown of one object.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Life {
    pub namespace: String,
    pub name: String,
    pub state: State,
    /// Whether the Secret holds a token that has not expired, by the operator's word and this machine's clock.
    pub valid: bool,
    /// The Secret with the token.
    pub secret: String,
    /// The condition Ready.
    pub ready: String,
    /// Why: of Ready, and where Ready is True and the last attempt failed, of Refreshed.
    pub reason: String,
    /// For people.
    pub message: String,
    /// The reason of the condition Refreshed.
    pub refreshed: String,
    pub suspended: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issued_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refresh_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// From issue to expiry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifetime_secs: Option<i64>,
    /// From now to expiry; below zero where it has expired.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_secs: Option<i64>,
    /// From now to the refresh; below zero where it was due.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refresh_in_secs: Option<i64>,
    pub failed_attempts: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<Timestamp>,
}

impl Life {
    /// What an object tells at `now`.
    #[must_use]
    pub fn of(object: &MoneyGoCredential, now: Timestamp) -> Self {
        let status = object.status.clone().unwrap_or_default();
        let of = |kind| condition(&status, kind);
        let (ready, refreshed) = (of(ConditionType::Ready), of(ConditionType::Refreshed));
        let fails = refreshed.filter(|refreshed| refreshed.status == "False");
        let told = match ready {
            Some(ready) if ready.status == "True" => fails.or(Some(ready)),
            ready => ready,
        };
        let valid = ready.is_some_and(|ready| ready.status == "True") && status.expires_at.is_some_and(|at| at > now);
        let secs = |at: Option<Timestamp>| at.map(|at| at.duration_since(now).as_secs());
        let lifetime = status.issued_at.zip(status.expires_at).map(|(from, to)| whole_secs(to.duration_since(from)));
        Self {
            namespace: object.namespace().unwrap_or_default(),
            name: object.name_any(),
            state: state(object, &status, valid, now),
            valid,
            secret: object.target_name().to_owned(),
            ready: ready.map_or("Unknown", |ready| &ready.status).to_owned(),
            reason: told.map(|told| told.reason.clone()).unwrap_or_default(),
            message: told.map(|told| told.message.clone()).unwrap_or_default(),
            refreshed: refreshed.map(|refreshed| refreshed.reason.clone()).unwrap_or_default(),
            suspended: object.spec.suspend.unwrap_or_default(),
            issued_at: status.issued_at,
            refresh_at: status.refresh_at,
            expires_at: status.expires_at,
            lifetime_secs: lifetime.filter(|_| status.expires_at.is_some()),
            left_secs: secs(status.expires_at),
            refresh_in_secs: secs(status.refresh_at),
            failed_attempts: status.failed_attempts.unwrap_or_default(),
            next_attempt_at: status.next_attempt_at,
        }
    }

    /// The token's life from issue to expiry as a line: `━` lived, `▸` now, `─` until the refresh (`┊`), `·` until the expiry.
    /// `None` where there is no token.
    #[must_use]
    pub fn bar(&self, now: Timestamp, look: Look) -> Option<String> {
        let (issued, expires) = self.issued_at.zip(self.expires_at).filter(|(issued, expires)| issued < expires)?;
        let place = |at: Timestamp| place(at, issued, expires);
        let (now, refresh) = (place(now), self.refresh_at.map(place));
        let (lived, head, ahead, mark, late) = look.either(('━', '▸', '─', '┊', '·'), ('=', '>', '-', '|', '.'));
        let character = |at: usize| match at {
            _ if at == now => head,
            _ if Some(at) == refresh => mark,
            _ if at < now => lived,
            _ if refresh.is_some_and(|refresh| at > refresh) => late,
            _ => ahead,
        };
        Some((0..BAR_WIDTH).map(character).collect())
    }
}

/// Rounded: deadlines are rounded down to seconds, and so seem to be half a second apart from what the answer stated.
fn whole_secs(duration: SignedDuration) -> i64 {
    (duration + SignedDuration::from_millis(500)).as_secs()
}

/// Which character of the bar a moment falls on.
fn place(at: Timestamp, issued: Timestamp, expires: Timestamp) -> usize {
    let (lived, whole) =
        (at.duration_since(issued).as_millis().max(0), expires.duration_since(issued).as_millis().max(1));
    let last = BAR_WIDTH - 1;
    usize::try_from(lived * last as i128 / whole).unwrap_or(last).min(last)
}

fn state(object: &MoneyGoCredential, status: &MoneyGoCredentialStatus, valid: bool, now: Timestamp) -> State {
    let ready = condition(status, ConditionType::Ready);
    let refreshed = condition(status, ConditionType::Refreshed);
    let fails = refreshed.is_some_and(|refreshed| refreshed.status == "False");
    if object.metadata.deletion_timestamp.is_some() {
        return State::Deleting;
    }
    if ready.is_none() {
        return State::Unseen;
    }
    if status.expires_at.is_some_and(|at| at <= now) {
        return State::Expired;
    }
    if object.spec.suspend == Some(true) {
        return State::Suspended;
    }
    match (valid, fails) {
        (true, _) if is_overdue(status, now) => State::Overdue,
        (true, true) => State::Failing,
        (true, false) => State::Healthy,
        (false, _) if ready.is_some_and(|ready| ready.reason == Reason::Pending.as_str()) => State::Pending,
        (false, _) => State::NotReady,
    }
}

/// Whether the token should have been replaced by now: a tenth of the time between refresh and expiry is left for it.
#[must_use]
pub fn is_overdue(status: &MoneyGoCredentialStatus, now: Timestamp) -> bool {
    let Some((refresh, expires)) = status.refresh_at.zip(status.expires_at) else { return false };
    let grace = (expires.duration_since(refresh) / 10).max(OVERDUE_LEAST);
    now.duration_since(refresh) > grace
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const UTF8: Look = Look { colour: false, utf8: true };
    const ASCII: Look = Look { colour: false, utf8: false };

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + secs).unwrap()
    }

    /// A token of 240 s that is to be replaced after 160.
    fn object(ready: (&str, &str), refreshed: (&str, &str)) -> MoneyGoCredential {
        let condition = |kind: &str, (status, reason): (&str, &str)| {
            json!({"type": kind, "status": status, "reason": reason, "message": format!("{kind} says"),
                "lastTransitionTime": "2026-01-01T00:00:00Z"})
        };
        serde_json::from_value(json!({
            "apiVersion": "money-go.com/v1alpha1", "kind": "MoneyGoCredential",
            "metadata": {"name": "a", "namespace": "n"}, "spec": {"credentialsRef": {"name": "c"}},
            "status": {
                "issuedAt": at(0), "refreshAt": at(160), "expiresAt": at(240),
                "conditions": [condition("Ready", ready), condition("Refreshed", refreshed)],
            },
        }))
        .unwrap()
    }

    #[test]
    fn states() {
        let good = object(("True", "TokenValid"), ("True", "Succeeded"));
        let failing = object(("True", "TokenValid"), ("False", "InvalidClient"));
        let rejected = object(("False", "InvalidClient"), ("False", "InvalidClient"));
        assert_eq!(Life::of(&good, at(0)).state, State::Healthy);
        assert_eq!(Life::of(&good, at(170)).state, State::Healthy);
        assert_eq!(Life::of(&good, at(171)).state, State::Overdue);
        assert_eq!(Life::of(&good, at(240)).state, State::Expired);
        assert!(Life::of(&good, at(239)).valid && !Life::of(&good, at(240)).valid);
        assert_eq!(Life::of(&failing, at(0)).state, State::Failing);
        assert_eq!(Life::of(&failing, at(0)).reason, "InvalidClient");
        assert_eq!(Life::of(&failing, at(0)).message, "Refreshed says");
        assert_eq!(Life::of(&rejected, at(0)).state, State::NotReady);
        assert_eq!(Life::of(&object(("False", "Pending"), ("Unknown", "Pending")), at(0)).state, State::Pending);

        let mut suspended = good.clone();
        suspended.spec.suspend = Some(true);
        assert_eq!(Life::of(&suspended, at(200)).state, State::Suspended);
        let mut unseen = good.clone();
        unseen.status = None;
        assert_eq!(Life::of(&unseen, at(0)).state, State::Unseen);
        let mut ending = good;
        ending.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(0)));
        assert_eq!(Life::of(&ending, at(0)).state, State::Deleting);
    }

    #[test]
    fn bars() {
        let object = object(("True", "TokenValid"), ("True", "Succeeded"));
        let bar = |secs, look| Life::of(&object, at(secs)).bar(at(secs), look).unwrap();
        assert_eq!(bar(0, UTF8), "▸───────────────┊········");
        assert_eq!(bar(80, UTF8), "━━━━━━━━▸───────┊········");
        assert_eq!(bar(160, UTF8), "━━━━━━━━━━━━━━━━▸········");
        assert_eq!(bar(200, UTF8), "━━━━━━━━━━━━━━━━┊━━━▸····");
        assert_eq!(bar(9999, UTF8), "━━━━━━━━━━━━━━━━┊━━━━━━━▸");
        assert_eq!(bar(-50, ASCII), ">---------------|........");
        assert_eq!(bar(80, ASCII), "========>-------|........");
        assert!(Life::of(&MoneyGoCredential::new("a", object.spec.clone()), at(0)).bar(at(0), ASCII).is_none());
    }
}
