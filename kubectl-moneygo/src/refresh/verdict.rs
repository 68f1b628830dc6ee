//! What came of a refresh, judged from the object alone. Pure.

use std::time::Duration;

use jiff::Timestamp;
use moneygo_operator::crd::{ConditionType, MoneyGoCredential, MoneyGoCredentialStatus, Reason};
use moneygo_operator::status::{GIVEN_AGAIN, condition};

use crate::words;

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// There is a token for it: another, or once more the one that was there.
    Refreshed { is_new: bool, expires_at: Option<Timestamp>, refresh_at: Option<Timestamp> },
    /// The attempt failed, or none can be made.
    Failed { reason: String, message: String, next_attempt_at: Option<Timestamp> },
    /// The annotation could not be set.
    Refused { message: String },
    /// `spec.suspend` is true: nobody asks.
    Suspended,
    /// It was deleted meanwhile.
    Gone,
    /// Nobody has answered in time. What the object says of the last attempt, if that failed.
    Unanswered { waited: Duration, says: Option<String> },
}

/// For these no request is made, so that no attempt can tell of them.
const OBSTACLES: [Reason; 7] = [
    Reason::CredentialsNotFound,
    Reason::CredentialsIncomplete,
    Reason::CredentialsMalformed,
    Reason::TargetConflict,
    Reason::TargetImmutable,
    Reason::TargetOverwritten,
    Reason::InvalidSpec,
];

/// What the object, as it is now, tells of a request; `before` is what it was as the request was made. `None`: nothing yet. What was in the way
/// before, and may have been taken out of it just now, is no answer to who is `patient`: of that nothing is said until a token is there.
#[must_use]
pub fn judge(before: &MoneyGoCredential, request: &str, now: &MoneyGoCredential, patient: bool) -> Option<Outcome> {
    let status = now.status.as_ref();
    if status.and_then(|status| status.last_handled_refresh.as_deref()) == Some(request) {
        let (expires_at, refresh_at) = status.map_or((None, None), |status| (status.expires_at, status.refresh_at));
        // Two tokens of one second end together.
        let refreshed = status.and_then(|status| condition(status, ConditionType::Refreshed));
        let is_new = refreshed.is_none_or(|refreshed| refreshed.message != GIVEN_AGAIN);
        return Some(Outcome::Refreshed { is_new, expires_at, refresh_at });
    }
    if now.metadata.deletion_timestamp.is_some() || now.metadata.uid != before.metadata.uid {
        return Some(Outcome::Gone);
    }
    if now.spec.suspend == Some(true) {
        return Some(Outcome::Suspended);
    }
    let status = status?;
    let failed = failure(status)?;
    let attempt = |status: Option<&MoneyGoCredentialStatus>| status.and_then(|status| status.last_failure_time);
    let is_new = attempt(Some(status)).is_some() && attempt(Some(status)) != attempt(before.status.as_ref());
    let stands = status.observed_generation == now.metadata.generation
        && Reason::of(&failed.0).is_some_and(|reason| OBSTACLES.contains(&reason));
    let stood_before = before.status.as_ref().and_then(failure).is_some_and(|(reason, _)| reason == failed.0);
    let stands = stands && !(patient && stood_before);
    let (reason, message) = failed;
    (is_new || stands).then_some(Outcome::Failed { reason, message, next_attempt_at: status.next_attempt_at })
}

fn failure(status: &MoneyGoCredentialStatus) -> Option<(String, String)> {
    let refreshed = condition(status, ConditionType::Refreshed).filter(|refreshed| refreshed.status == "False")?;
    Some((refreshed.reason.clone(), refreshed.message.clone()))
}

impl Outcome {
    /// That of an object that nobody answered for.
    #[must_use]
    pub fn unanswered(last: Option<&MoneyGoCredentialStatus>, waited: Duration) -> Self {
        let says = last.and_then(failure).map(|(reason, message)| format!("{reason}: {message}"));
        Self::Unanswered { waited, says }
    }

    /// Whether it is what was asked for.
    #[must_use]
    pub fn is_good(&self) -> bool {
        matches!(self, Self::Refreshed { .. })
    }

    /// For people, with what to do.
    #[must_use]
    pub fn words(&self, now: Timestamp) -> String {
        match self {
            Self::Refreshed { is_new, expires_at, refresh_at } => {
                let at = |what: &str, at: &Option<Timestamp>| {
                    at.map_or_else(String::new, |at| format!(", {what} {} ({at})", words::from_now(at, now)))
                };
                let token = if *is_new { "new token" } else { "Money-Go gave the token that was there already" };
                format!("{token}{}{}", at("expires", expires_at), at("refreshed", refresh_at))
            }
            Self::Failed { reason, message, next_attempt_at } => {
                let next = next_attempt_at.filter(|at| *at > now);
                let again = next.map_or_else(String::new, |at| format!(" (tried again {})", words::from_now(at, now)));
                format!("{reason}: {message}{again}")
            }
            Self::Refused { message } => message.clone(),
            Self::Suspended => "is suspended, no token is asked for: kubectl moneygo resume".to_owned(),
            Self::Gone => "was deleted".to_owned(),
            Self::Unanswered { waited, says } => {
                let says = says.as_deref().map_or_else(String::new, |says| format!("; it says {says}"));
                let waited = words::length_of(*waited);
                format!(
                    "no answer within {waited}{says}: is an operator running, or is the endpoint down, or the queue before it long? kubectl \
                     moneygo doctor tells"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "a table of literals reads better")]
    fn object(suspend: bool, status: Value) -> MoneyGoCredential {
        serde_json::from_value(json!({
            "apiVersion": "money-go.com/v1alpha1", "kind": "MoneyGoCredential",
            "metadata": {"name": "a", "namespace": "n", "uid": "u", "generation": 2},
            "spec": {"credentialsRef": {"name": "c"}, "suspend": suspend}, "status": status,
        }))
        .unwrap()
    }

    fn failing(reason: &str, at: Option<&str>, generation: i64) -> Value {
        json!({"observedGeneration": generation, "lastFailureTime": at, "lastHandledRefresh": "old", "conditions": [
            {"type": "Refreshed", "status": "False", "reason": reason, "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"},
        ]})
    }

    #[test]
    fn what_is_judged() {
        const EARLY: Option<&str> = Some("2026-01-01T00:00:00Z");
        const LATE: Option<&str> = Some("2026-01-01T00:01:00Z");
        let failed = |reason: &str| {
            Some(Outcome::Failed { reason: reason.to_owned(), message: "m".to_owned(), next_attempt_at: None })
        };
        let before = object(false, failing("InvalidClient", EARLY, 2));
        let judge_as = |now: &MoneyGoCredential, patient| super::judge(&before, "new", now, patient);
        let judge = |now: &MoneyGoCredential| judge_as(now, true);

        assert_eq!(judge(&before), None, "the old failure is no answer");
        assert_eq!(judge(&object(false, failing("InvalidClient", LATE, 2))), failed("InvalidClient"));
        assert_eq!(judge(&object(false, failing("RateLimited", LATE, 2))), failed("RateLimited"));
        assert_eq!(judge(&object(false, failing("TargetConflict", None, 2))), failed("TargetConflict"));
        assert_eq!(judge(&object(false, failing("TargetConflict", None, 1))), None, "said of an older spec");
        assert_eq!(judge(&object(false, failing("EndpointUnavailable", None, 2))), None, "an outage ends");
        assert_eq!(judge(&object(true, json!({}))), Some(Outcome::Suspended));
        let done = object(false, json!({"lastHandledRefresh": "new"}));
        assert_eq!(judge(&done), Some(Outcome::Refreshed { is_new: true, expires_at: None, refresh_at: None }));
        let given = |message: &str| {
            let refreshed = json!({"type": "Refreshed", "status": "True", "reason": "Succeeded", "message": message, "lastTransitionTime": EARLY});
            let status =
                json!({"lastHandledRefresh": "new", "expiresAt": "2026-03-01T00:00:00Z", "conditions": [refreshed]});
            let outcome = super::judge(&object(false, status.clone()), "new", &object(false, status), true);
            outcome.unwrap().words("2026-02-01T00:00:00Z".parse().unwrap())
        };
        let another = given("the last request gave a token");
        assert!(another.starts_with("new token, expires"), "it was issued in the same second: {another}");
        let again = given(GIVEN_AGAIN);
        assert!(again.starts_with("Money-Go gave the token that was there already, expires"), "{again}");
        let blocked = object(false, failing("CredentialsNotFound", None, 2));
        let after = |before: &MoneyGoCredential, patient| super::judge(before, "new", &blocked, patient);
        assert_eq!(after(&before, true), failed("CredentialsNotFound"), "it is new");
        assert_eq!(after(&blocked, true), None, "it may have been taken away just now");
        assert_eq!(after(&blocked, false), failed("CredentialsNotFound"), "it stays");
        assert_eq!(judge_as(&before, false), None, "nor is the old failure after a while");
        let mut anew = object(false, json!({}));
        anew.metadata.uid = Some("v".to_owned());
        assert_eq!(judge(&anew), Some(Outcome::Gone));
    }
}
