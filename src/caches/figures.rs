//! What the metrics tell of an object: plain numbers, so that nothing is unpacked when they are asked for.

use std::num::NonZeroU32;

use jiff::Timestamp;

use crate::crd::{ConditionType, MoneyGoCredentialStatus, Reason};
use crate::status::{self, State};

/// What the metrics tell of an object. It is kept for each: 20 bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    issued_at: Option<NonZeroU32>,
    expires_at: Option<NonZeroU32>,
    refresh_at: Option<NonZeroU32>,
    states: [Option<State>; ConditionType::ALL.len()],
    reasons: [Option<Reason>; ConditionType::ALL.len()],
    is_suspended: bool,
}

impl Figures {
    /// Those of an object with this status.
    #[must_use]
    pub fn of(status: &MoneyGoCredentialStatus, is_suspended: bool) -> Self {
        let found = |kind: &ConditionType| status::condition(status, *kind);
        let kinds: [ConditionType; ConditionType::ALL.len()] =
            [ConditionType::Ready, ConditionType::Refreshed, ConditionType::Stalled];
        Self {
            // It is kept where the token is gone.
            issued_at: seconds(status.issued_at.filter(|_| status.expires_at.is_some())),
            expires_at: seconds(status.expires_at),
            // None is asked for while it is suspended.
            refresh_at: seconds(status.refresh_at).filter(|_| !is_suspended),
            states: kinds.each_ref().map(|kind| State::of(&found(kind)?.status)),
            reasons: kinds.each_ref().map(|kind| Reason::of(&found(kind)?.reason)),
            is_suspended,
        }
    }

    /// Those of an object that cannot be read.
    #[must_use]
    pub fn unreadable() -> Self {
        Self {
            states: [Some(State::False), Some(State::False), Some(State::True)],
            reasons: [Some(Reason::InvalidSpec); ConditionType::ALL.len()],
            ..Self::default()
        }
    }

    /// When the token was issued, in Unix seconds.
    #[must_use]
    pub fn issued_at(&self) -> Option<u32> {
        self.issued_at.map(NonZeroU32::get)
    }

    /// When the token expires, in Unix seconds.
    #[must_use]
    pub fn expires_at(&self) -> Option<u32> {
        self.expires_at.map(NonZeroU32::get)
    }

    /// Whether the object is said to be ready, and its token to have ended by then.
    #[must_use]
    pub fn is_ready_past(&self, moment: Timestamp) -> bool {
        let has_ended = self.expires_at().is_some_and(|at| i64::from(at) < moment.as_second());
        let is_ready = |(kind, state, _)| (kind, state) == (ConditionType::Ready, State::True);
        has_ended && self.conditions().any(is_ready)
    }

    /// Whether the next token may have to be asked for by then: nobody knows when of an object that says nothing of one.
    #[must_use]
    pub fn may_be_due(&self, moment: Timestamp) -> bool {
        !self.is_suspended && self.refresh_at().is_none_or(|at| i64::from(at) <= moment.as_second())
    }

    /// When the next token is asked for, in Unix seconds; not while the object is suspended.
    #[must_use]
    pub fn refresh_at(&self) -> Option<u32> {
        self.refresh_at.map(NonZeroU32::get)
    }

    /// Whether `spec.suspend` is true. `None` before the object has a status.
    #[must_use]
    pub fn is_suspended(&self) -> Option<bool> {
        self.states.iter().any(Option::is_some).then_some(self.is_suspended)
    }

    /// Each condition that the object has: its type, its status, and its reason where that is one of ours.
    pub fn conditions(&self) -> impl Iterator<Item = (ConditionType, State, Option<Reason>)> {
        let all = ConditionType::ALL.iter().zip(self.states).zip(self.reasons);
        all.filter_map(|((kind, state), reason)| Some((*kind, state?, reason)))
    }
}

/// Whole seconds. `None` for what 32 bits do not reach (1970, and from 2106 on).
fn seconds(at: Option<Timestamp>) -> Option<NonZeroU32> {
    NonZeroU32::new(u32::try_from(at?.as_second()).ok()?)
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use serde_json::json;

    use super::*;

    fn status() -> MoneyGoCredentialStatus {
        let condition = |kind: &str, status: &str, reason: &str| json!({"type": kind, "status": status, "reason": reason, "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        serde_json::from_value(json!({
            "issuedAt": "2026-01-01T00:00:00.9Z", "expiresAt": "2026-01-31T00:00:00Z", "refreshAt": "2026-01-21T00:00:00Z",
            "conditions": [condition("Ready", "True", "TokenValid"), condition("Refreshed", "Unknown", "Succeeded"), condition("Stalled", "False", "OfAnotherRelease")],
        }))
        .unwrap()
    }

    #[test]
    fn they_are_of_the_status_and_small() {
        let figures = Figures::of(&status(), false);
        let times = (figures.issued_at(), figures.expires_at(), figures.refresh_at());
        assert_eq!(times, (Some(1_767_225_600), Some(1_769_817_600), Some(1_768_953_600)));
        let conditions: Vec<_> = figures.conditions().collect();
        assert_eq!(
            conditions,
            [
                (ConditionType::Ready, State::True, Some(Reason::TokenValid)),
                (ConditionType::Refreshed, State::Unknown, Some(Reason::Succeeded)),
                (ConditionType::Stalled, State::False, None),
            ]
        );
        let expires_at = Timestamp::from_second(1_769_817_600).unwrap();
        assert!(!figures.is_ready_past(expires_at) && figures.is_ready_past(expires_at + SignedDuration::from_secs(1)));
        assert!(!Figures::unreadable().is_ready_past(expires_at + SignedDuration::from_secs(1)), "it is not ready");
        assert!(size_of::<Figures>() <= 20, "{} bytes, for each object", size_of::<Figures>());
        assert_eq!(Figures::of(&MoneyGoCredentialStatus::default(), false), Figures::default());
    }

    #[test]
    fn a_suspended_object_has_no_refresh_ahead() {
        let figures = Figures::of(&status(), true);
        assert_eq!((figures.refresh_at(), figures.expires_at()), (None, Some(1_769_817_600)));
        assert_eq!(figures.is_suspended(), Some(true));
        assert_eq!(Figures::of(&MoneyGoCredentialStatus::default(), true).is_suspended(), None, "it has no status yet");
    }
}
