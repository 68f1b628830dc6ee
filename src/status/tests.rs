use jiff::SignedDuration;

use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn now() -> Timestamp {
    at("2026-01-01T00:00:00.75Z")
}

fn well() -> Report {
    Report {
        generation: Some(3),
        target_name: Some("token".into()),
        issued_at: Some(at("2026-01-01T00:00:00.123Z")),
        expires_at: Some(at("2026-01-01T01:00:00Z")),
        refresh_at: Some(at("2026-01-01T00:40:00Z")),
        failure: None,
        credentials: Some(Version { uid: "u".into(), resource_version: "7".into() }),
        refresh_handled: Some("r1".into()),
        ready: Verdict::new(State::True, Reason::TokenValid, "valid"),
        refreshed: Verdict::new(State::True, Reason::Succeeded, "came"),
        stalled: Verdict::new(State::False, Reason::AsExpected, "no"),
    }
}

fn failing() -> Report {
    let failure = Failure {
        reason: Reason::RateLimited,
        message: "fewer".into(),
        at: at("2026-01-01T00:30:00Z"),
        attempts: 2,
        next_attempt_at: at("2026-01-01T00:31:00Z"),
    };
    Report {
        refreshed: Verdict::new(State::False, failure.reason, failure.message.clone()),
        failure: Some(failure),
        ..well()
    }
}

fn blank() -> MoneyGoCredentialStatus {
    MoneyGoCredentialStatus::default()
}

#[test]
fn every_condition_is_there_with_the_generation_that_it_is_about() {
    let status = well().status(&blank(), now());
    let told: Vec<_> = status
        .conditions
        .iter()
        .map(|one| (one.type_.as_str(), one.status.as_str(), one.reason.as_str(), one.observed_generation))
        .collect();
    let expected = [
        ("Ready", "True", "TokenValid", Some(3)),
        ("Refreshed", "True", "Succeeded", Some(3)),
        ("Stalled", "False", "AsExpected", Some(3)),
    ];
    assert_eq!(told, expected);
    assert_eq!(status.observed_generation, Some(3));
    let unknown = Report { refreshed: Verdict::new(State::Unknown, Reason::Suspended, ""), ..well() };
    assert_eq!(condition(&unknown.status(&blank(), now()), ConditionType::Refreshed).unwrap().status, "Unknown");
}

#[test]
fn the_conditions_of_others_stay() {
    let mut before = well().status(&blank(), now());
    let theirs = Condition { type_: "Audited".to_owned(), ..before.conditions[0].clone() };
    before.conditions.insert(0, theirs.clone());
    let after = failing().status(&before, now());
    let types: Vec<_> = after.conditions.iter().map(|one| one.type_.as_str()).collect();
    assert_eq!(types, ["Audited", "Ready", "Refreshed", "Stalled"]);
    assert_eq!(after.conditions[0], theirs);
    assert_eq!(failing().status(&after, now()).conditions, after.conditions);
}

#[test]
fn a_transition_is_a_change_of_the_status_and_of_nothing_else() {
    let later = now() + SignedDuration::from_mins(1);
    let first = well().status(&blank(), now());
    let since =
        |status: &MoneyGoCredentialStatus| condition(status, ConditionType::Ready).unwrap().last_transition_time.0;
    assert_eq!(since(&first), at("2026-01-01T00:00:00Z"), "whole seconds, as they are read back");
    let same = [
        ("nothing", well()),
        ("generation", Report { generation: Some(4), ..well() }),
        ("reason", Report { ready: Verdict::new(State::True, Reason::Pending, "valid"), ..well() }),
        ("message", Report { ready: Verdict::new(State::True, Reason::TokenValid, "another"), ..well() }),
    ];
    for (name, report) in same {
        assert_eq!(since(&report.status(&first, later)), since(&first), "{name}");
    }
    let lost = Report { ready: Verdict::new(State::False, Reason::TokenExpired, "gone"), ..well() };
    let second = lost.status(&first, later);
    assert_eq!(since(&second), at("2026-01-01T00:01:00Z"));
    assert_eq!(condition(&second, ConditionType::Stalled).unwrap().last_transition_time.0, since(&first));
}

#[test]
fn the_same_report_gives_the_same_status_also_after_the_api_server_had_it() {
    for report in [well(), failing()] {
        let first = report.status(&blank(), now());
        assert_eq!(report.status(&first, now() + SignedDuration::from_mins(1)), first);
        let read: MoneyGoCredentialStatus = serde_json::from_str(&serde_json::to_string(&first).unwrap()).unwrap();
        assert_eq!(read, first);
    }
}

#[test]
fn a_failure_is_read_back_from_the_status_and_a_success_clears_it() {
    let status = failing().status(&blank(), now());
    assert_eq!(Failure::in_status(&status), failing().failure);
    assert_eq!(Failure::in_status(&well().status(&status, now())), None);
    assert_eq!(Failure::in_status(&blank()), None);
}

type Spoil = fn(&mut MoneyGoCredentialStatus);

#[test]
fn what_is_not_whole_is_no_failure() {
    let whole = || failing().status(&blank(), now());
    let spoilt: [(&str, Spoil); 5] = [
        ("none", |status| status.failed_attempts = Some(0)),
        ("negative", |status| status.failed_attempts = Some(-1)),
        ("no time", |status| status.last_failure_time = None),
        ("no condition", |status| status.conditions.clear()),
        ("a reason of another version", |status| status.conditions[1].reason = "Nonsense".into()),
    ];
    for (name, spoil) in spoilt {
        let mut status = whole();
        spoil(&mut status);
        assert_eq!(Failure::in_status(&status), None, "{name}");
    }
    let mut status = whole();
    status.next_attempt_at = None;
    assert_eq!(Failure::in_status(&status).unwrap().next_attempt_at, at("2026-01-01T00:30:00Z"), "at once");
}

#[test]
fn times_of_a_failure_are_whole_milliseconds() {
    let fine = at("2026-01-01T00:30:00.123456789Z");
    let failure = Failure { at: fine, next_attempt_at: fine, ..failing().failure.unwrap() }.in_milliseconds();
    assert_eq!((failure.at, failure.next_attempt_at), (at("2026-01-01T00:30:00.123Z"), at("2026-01-01T00:30:00.123Z")));
}

fn object(status: Option<MoneyGoCredentialStatus>) -> MoneyGoCredential {
    let object = json!({
        "apiVersion": "money-go.com/v1alpha1", "kind": "MoneyGoCredential",
        "metadata": {"name": "payments", "namespace": "shop", "uid": "seen", "resourceVersion": "7"},
        "spec": {"credentialsRef": {"name": "payments-client"}},
    });
    MoneyGoCredential { status, ..serde_json::from_value(object).unwrap() }
}

#[test]
fn any_status_is_replaced_by_the_wanted_one_and_on_condition() {
    let version = Version { uid: "u".into(), resource_version: "9".into() };
    let all = [blank(), well().status(&blank(), now()), failing().status(&blank(), now())];
    for before in all.clone().map(Some).into_iter().chain([None]) {
        for wanted in &all {
            let written = serde_json::to_value(with_status(object(before.clone()), &version, wanted.clone())).unwrap();
            let metadata = json!({"name": "payments", "namespace": "shop", "uid": "u", "resourceVersion": "9"});
            assert_eq!(written["metadata"], metadata);
            assert_eq!(written["apiVersion"], "money-go.com/v1alpha1");
            assert_eq!(written["kind"], "MoneyGoCredential");
            assert_eq!(
                written["spec"],
                json!({"credentialsRef": {"name": "payments-client"}}),
                "an admission webhook may look"
            );
            assert_eq!(written["status"], serde_json::to_value(wanted).unwrap());
        }
    }
}

#[test]
fn an_object_that_cannot_be_read_is_told_once_for_each_generation() {
    let read = json!({
        "apiVersion": "money-go.com/v1alpha1", "kind": "MoneyGoCredential",
        "metadata": {"name": "old", "uid": "u", "resourceVersion": "9", "generation": 3, "labels": {"a": "b"}, "managedFields": [{"manager": "m"}]},
        "spec": {"of": "another schema"},
        "status": {"targetName": "old", "observedGeneration": 1, "conditions": "of another, too"},
    });
    let told = serde_json::to_value(unreadable(serde_json::from_value(read).unwrap(), now())).unwrap();
    assert_eq!(
        told["metadata"],
        json!({"name": "old", "uid": "u", "resourceVersion": "9", "generation": 3, "labels": {"a": "b"}})
    );
    assert_eq!((&told["kind"], &told["spec"]), (&json!("MoneyGoCredential"), &json!({"of": "another schema"})));
    let status = &told["status"];
    assert_eq!((&status["targetName"], &status["observedGeneration"]), (&json!("old"), &json!(3)));
    assert!(says_unreadable(status, Some(3)));
    assert!(!says_unreadable(status, Some(4)), "an edited object is judged anew");
    let mut without_ready = status.clone();
    without_ready["conditions"].as_array_mut().unwrap().retain(|one| one["type"] != "Ready");
    assert!(!says_unreadable(&without_ready, Some(3)), "Ready is what people look at");
    let read: MoneyGoCredentialStatus = serde_json::from_value(status.clone()).unwrap();
    let told: Vec<_> = read.conditions.iter().map(|one| (one.type_.as_str(), one.status.as_str())).collect();
    assert_eq!(told, [("Ready", "False"), ("Refreshed", "False"), ("Stalled", "True")]);
    assert!(read.conditions.iter().all(|one| one.reason == "InvalidSpec" && one.observed_generation == Some(3)));
    let theirs = json!({"type": "Audited", "status": "True"});
    let again = json!({"apiVersion": "v1", "kind": "K", "metadata": {}, "status": {"conditions": [theirs, {"type": "Ready"}, 7]}});
    let again = serde_json::to_value(unreadable(serde_json::from_value(again).unwrap(), now())).unwrap();
    assert_eq!(again["status"]["conditions"].as_array().unwrap().len(), 4);
    assert_eq!(again["status"]["conditions"][3], theirs, "what others say stays");
    for other in
        [json!(null), json!({}), json!({"conditions": "x"}), json!({"conditions": [1, {"type": "Ready"}]}), json!([])]
    {
        assert!(!says_unreadable(&other, Some(3)), "{other}");
    }
    assert!(!says_unreadable(&serde_json::to_value(well().status(&blank(), now())).unwrap(), Some(3)));
}

fn says(ready: (State, Reason), refreshed: (State, Reason)) -> MoneyGoCredentialStatus {
    let verdict = |(state, reason)| Verdict::new(state, reason, "m");
    Report { ready: verdict(ready), refreshed: verdict(refreshed), ..well() }.status(&blank(), now())
}

const VALID: (State, Reason) = (State::True, Reason::TokenValid);
const SUCCEEDED: (State, Reason) = (State::True, Reason::Succeeded);
const EXPIRED: (State, Reason) = (State::False, Reason::TokenExpired);
const LIMITED: (State, Reason) = (State::False, Reason::RateLimited);

#[test]
fn what_fails_is_a_refresh_or_that_the_token_has_expired() {
    assert!(!is_failing(&blank()));
    assert!(!is_failing(&says(VALID, SUCCEEDED)));
    assert!(!is_failing(&says((State::False, Reason::Pending), (State::Unknown, Reason::Pending))));
    assert!(!is_failing(&says((State::True, Reason::TokenExpired), SUCCEEDED)));
    assert!(is_failing(&says(VALID, LIMITED)));
    assert!(is_failing(&says(EXPIRED, SUCCEEDED)));
}

#[test]
fn the_change_is_what_says_something_else_and_rather_what_is_false() {
    let change = |before: &MoneyGoCredentialStatus, after: &MoneyGoCredentialStatus| {
        change(before, after).map(|one| (one.type_.clone(), one.reason.clone()))
    };
    let (good, limited) = (says(VALID, SUCCEEDED), says(VALID, LIMITED));
    let is = |kind: &str, reason: &str| Some((kind.to_owned(), reason.to_owned()));
    assert_eq!(change(&good, &good), None);
    assert_eq!(change(&blank(), &good), is("Refreshed", "Succeeded"));
    assert_eq!(change(&good, &limited), is("Refreshed", "RateLimited"));
    assert_eq!(change(&limited, &good), is("Refreshed", "Succeeded"));
    assert_eq!(change(&limited, &says(EXPIRED, LIMITED)), is("Ready", "TokenExpired"));
    assert_eq!(change(&good, &says(EXPIRED, LIMITED)), is("Ready", "TokenExpired"), "which is worse than why");
    assert_eq!(change(&limited, &says(EXPIRED, SUCCEEDED)), is("Ready", "TokenExpired"), "what is False, rather");
    assert_eq!(change(&says(EXPIRED, SUCCEEDED), &good), is("Ready", "TokenValid"));
    let another = says(VALID, (State::False, Reason::BadResponse));
    assert_eq!(change(&limited, &another), is("Refreshed", "BadResponse"), "the same status, for another reason");
    let another = says(VALID, (State::Unknown, Reason::RateLimited));
    assert_eq!(change(&limited, &another), is("Refreshed", "RateLimited"), "another status for the same reason");
    let suspended = says((State::False, Reason::Suspended), (State::Unknown, Reason::Suspended));
    assert_eq!(change(&blank(), &suspended), is("Ready", "Suspended"), "what is False, whatever it is");
}

#[test]
fn a_state_is_known_by_its_name() {
    for state in State::ALL {
        assert_eq!(State::of(state.as_str()), Some(state));
    }
    assert_eq!(State::of("true"), None);
}
