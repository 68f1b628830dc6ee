use std::time::Duration;

use super::*;
use crate::schedule::Life;

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("shop", name)
}

fn held() -> HeldToken {
    let issue = Issue {
        life: Life::new(Timestamp::UNIX_EPOCH, Duration::from_mins(1)),
        scope: "api".into(),
        refresh_handled: None,
        credentials: Version::default(),
        credentials_digest: None,
    };
    HeldToken { token: AccessToken::new("canary".into()).unwrap(), issue, replaces: None }
}

fn version(number: &str) -> Version {
    Version { uid: "u".into(), resource_version: number.into() }
}

#[test]
fn an_object_is_remembered_by_its_uid() {
    let memories = Memories::default();
    memories.with(&key("a"), "1", |memory| memory.api_failures = 3);
    assert_eq!(memories.with(&key("a"), "1", |memory| memory.api_failures), 3);
    assert_eq!(memories.with(&key("b"), "1", |memory| memory.api_failures), 0);
    assert_eq!(memories.with(&key("a"), "2", |memory| memory.api_failures), 0, "made anew under its name");
}

#[test]
fn a_new_memory_has_full_allowances() {
    let memory = Memory::new("1");
    let now = Timestamp::UNIX_EPOCH;
    for allowance in [memory.replacements, memory.changes, memory.mends] {
        assert_eq!(allowance.available_at(now), now);
    }
    assert_eq!((memory.status, memory.attempt), (None, None));
}

#[test]
fn a_mend_that_did_not_hold_delays_its_like_and_no_other() {
    let mut memory = Memory::new("1");
    let (now, target) = (Timestamp::UNIX_EPOCH, version("7"));
    let pace = Undone::once_more(None, now);
    memory.undone = Some(Box::new(UndoneMend { pace, generation: Some(1), target: target.clone() }));
    assert_eq!(memory.mend_at(Some(1), Some(&target), now), pace.next_at(now));
    assert!(pace.next_at(now) > now);
    assert_eq!(memory.mend_at(Some(2), Some(&target), now), now, "another spec");
    assert_eq!(memory.mend_at(Some(1), Some(&version("8")), now), now, "somebody changed the target since");
    assert_eq!(memory.mend_at(Some(1), None, now), now);
}

#[test]
fn what_another_replica_tried_since_is_not_what_is_remembered() {
    let mut memory = Memory::new("1");
    let (first, second) = (Timestamp::UNIX_EPOCH, Timestamp::from_second(60).unwrap());
    let failing = |at| MoneyGoCredentialStatus {
        failed_attempts: Some(1),
        last_failure_time: Some(at),
        ..MoneyGoCredentialStatus::default()
    };
    assert_eq!(memory.unknown_attempt(&failing(first)), Some(first));
    memory.attempt = Some(Attempt { at: first, refresh_requested: None, target: None, client: None });
    assert_eq!(memory.unknown_attempt(&failing(first)), None, "it is known");
    assert_eq!(memory.unknown_attempt(&failing(second)), Some(second));
    memory.attempt = Some(Attempt { at: second, refresh_requested: None, target: None, client: None });
    assert_eq!(memory.unknown_attempt(&failing(first)), None, "a later one of our own, which is not told of yet");
    assert_eq!(memory.unknown_attempt(&MoneyGoCredentialStatus::default()), None);
}

#[test]
fn what_is_gone_is_forgotten_but_not_in_the_middle_of_its_pass() {
    let memories = Memories::default();
    memories.with(&key("a"), "1", |memory| memory.api_failures = 1);
    memories.with(&key("b"), "1", |memory| (memory.held, memory.passing) = (Some(held()), true));
    assert_eq!(memories.holding(), [key("b")]);
    for name in ["a", "b", "c"] {
        assert!(!memories.forget(&key(name)), "{name}: no token is lost");
    }
    assert_eq!(memories.with(&key("a"), "1", |memory| memory.api_failures), 0);
    assert_eq!(memories.holding(), [key("b")]);
    memories.with(&key("b"), "1", |memory| memory.passing = false);
    assert!(memories.forget(&key("b")), "nobody will call it again");
    assert_eq!(memories.holding(), []);
}

#[test]
fn our_own_status_is_known_by_its_version() {
    let memories = Memories::default();
    assert!(!memories.wrote_status(&key("a"), &version("1")));
    memories.with(&key("a"), "u", |memory| memory.status = Some((version("2"), MoneyGoCredentialStatus::default())));
    assert!(memories.wrote_status(&key("a"), &version("2")));
    assert!(!memories.wrote_status(&key("a"), &version("3")));
    assert!(!memories.wrote_status(&key("b"), &version("2")));
}

#[test]
fn a_held_token_is_never_shown() {
    let mut memory = Memory::new("1");
    memory.held = Some(held());
    assert!(!format!("{memory:?}").contains("canary"));
}

#[test]
fn what_the_watch_has_shown_and_what_is_blank_is_forgotten() {
    let memories = Memories::default();
    let count = || memories.0.lock().unwrap().latest.len();
    assert_eq!(memories.of(&key("a"), "1").api_failures, 0);
    assert_eq!(count(), 0, "to look keeps nothing");
    memories.with(&key("a"), "1", |memory| memory.status = Some((version("7"), MoneyGoCredentialStatus::default())));
    memories.shown(&key("a"), &version("6"));
    assert!(memories.wrote_status(&key("a"), &version("7")), "the watch is behind");
    memories.shown(&key("a"), &version("7"));
    assert_eq!(count(), 0);
    memories.with(&key("a"), "1", |memory| memory.mends.take(Timestamp::UNIX_EPOCH));
    memories.with(&key("b"), "1", |memory| memory.held = Some(held()));
    memories.with(&key("c"), "1", |memory| memory.passing = true);
    for name in ["a", "b", "c"] {
        memories.shown(&key(name), &version("9"));
    }
    assert_eq!(count(), 3, "an allowance that was used, a token, a pass");
}

/// The token of one that is gone is written beside whatever becomes of the one that was made anew.
#[test]
fn what_is_held_for_one_that_is_gone_outlives_the_next_of_its_name() {
    let (memories, a) = (Memories::default(), key("a"));
    let credential = |uid: &str| {
        let mut credential = MoneyGoCredential::new("a", crate::crd::MoneyGoCredentialSpec::default());
        credential.metadata.uid = Some(uid.to_owned());
        credential
    };
    memories.with(&a, "1", |memory| memory.held = Some(held()));
    assert!(memories.leave(&a, &credential("1")) && !memories.leave(&a, &credential("2")));
    let left = || memories.left(&a).and_then(|left| left.metadata.uid);
    for uid in ["2", "3"] {
        assert!(memories.of(&a, uid).held.is_none(), "it is not the next one's");
        memories.with(&a, uid, |memory| memory.api_failures = 4);
        assert_eq!(memories.of(&a, uid).api_failures, 4);
        assert_eq!((left().as_deref(), memories.of(&a, "1").held.is_some()), (Some("1"), true), "{uid}");
        assert_eq!(memories.holding(), std::slice::from_ref(&a));
        assert!(!memories.forget(&a), "the next one goes, and takes nothing along");
    }
    assert!(!memories.settle(&a, "1") && memories.is_holding(&a));
    memories.with(&a, "1", |memory| (memory.held, memory.left) = (None, None));
    assert!(memories.settle(&a, "1") && !memories.is_holding(&a) && left().is_none());
    assert!(memories.0.lock().unwrap().outlived.is_empty());
}

#[test]
fn a_call_during_a_pass_is_put_off_to_its_end() {
    let memories = Memories::default();
    assert!(!memories.defer_call(&key("a")));
    memories.with(&key("a"), "1", |memory| memory.passing = true);
    assert!(memories.defer_call(&key("a")));
    assert!(memories.with(&key("a"), "1", |memory| memory.called));
}
