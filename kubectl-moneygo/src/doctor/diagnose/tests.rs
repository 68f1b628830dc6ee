//! Tables: facts, with one thing wrong, and the causes that are found. What the real operator makes of such set-ups is in
//! `tests/cluster`.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use moneygo_operator::crd::MoneyGoCredential;
use serde_json::{Value, json};

use super::*;
use crate::doctor::facts::{Credentials, KeyState, Lookup, Neighbour, Right, Target};
use crate::doctor::operators::{Held, LeaseFacts, Operator};
use crate::doctor::pods::{How, Use};

fn at(secs: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + secs).unwrap()
}

fn object(name: &str) -> Value {
    let condition = |kind: &str, reason: &str| json!({"type": kind, "status": "True", "reason": reason, "message": "m", "lastTransitionTime": at(0)});
    json!({
        "apiVersion": "money-go.com/v1alpha1", "kind": "MoneyGoCredential",
        "metadata": {"name": name, "namespace": "n", "uid": format!("uid-of-{name}"), "generation": 1,
            "creationTimestamp": at(0)},
        "spec": {"credentialsRef": {"name": format!("{name}-client")}},
        "status": {
            "observedGeneration": 1, "targetName": name, "issuedAt": at(0), "refreshAt": at(2000), "expiresAt": at(3000),
            "conditions": [condition("Ready", "TokenValid"), condition("Refreshed", "Succeeded")],
        },
    })
}

fn parse(object: Value) -> MoneyGoCredential {
    serde_json::from_value(object).unwrap()
}

fn target() -> Target {
    let metadata = json!({
        "name": "a", "annotations": {
            "money-go.com/adopt": "a", "money-go.com/applied": r#"{"token":"access_token"}"#,
            "money-go.com/issued-at": at(0), "money-go.com/expires-at": at(3000),
        },
        "managedFields": [{"manager": "moneygo-operator", "fieldsV1": {"f:data": {"f:access_token": {}}}}],
    });
    Target {
        metadata: serde_json::from_value(metadata).unwrap(),
        immutable: false,
        keys: BTreeMap::from([("access_token".to_owned(), 30)]),
    }
}

fn operator() -> Operator {
    let held = Held { holder: Some("pod".to_owned()), renewed_at: Some(at(990)), duration: None };
    Operator {
        namespace: "system".to_owned(),
        name: "operator".to_owned(),
        wanted_replicas: 2,
        ready_replicas: 2,
        service_account: "sa".to_owned(),
        lease: Some(LeaseFacts { namespace: "system".to_owned(), name: "lease".to_owned(), held: Lookup::Found(held) }),
        ..Operator::default()
    }
}

fn mounted(secret: &str, how: How) -> Use {
    Use { pod: "p".to_owned(), secret: secret.to_owned(), how }
}

fn files(keys: &[&str], sub_path: bool) -> How {
    How::Files { keys: keys.iter().map(ToString::to_string).collect(), sub_path, optional: false }
}

/// Everything is well, 1000 s into a token's life of 3000.
fn healthy() -> Facts {
    let right = Right {
        account: "system/sa".to_owned(),
        verb: "get",
        resource: "secrets",
        namespace: "n".to_owned(),
        is_minor: false,
        allowed: Lookup::Found(true),
    };
    Facts {
        now: at(1000),
        clocks_differ: SignedDuration::from_secs(30),
        object: parse(object("a")),
        served_versions: Lookup::Found(vec!["v1alpha1".to_owned()]),
        namespace_ends: Lookup::Found(false),
        credentials: Lookup::Found(Credentials { id: KeyState::Good, secret: KeyState::Good, keys: Vec::new() }),
        target: Lookup::Found(target()),
        neighbours: Lookup::Found(Arc::from([])),
        uses: Lookup::Found(vec![mounted("a", files(&[], false))]),
        pods_left_out: false,
        operators: Lookup::Found(vec![operator()]),
        operator_namespace: None,
        rights: Arc::from([right]),
    }
}

fn neighbours(all: &[MoneyGoCredential]) -> Lookup<Arc<[Neighbour]>> {
    Lookup::Found(all.iter().map(Neighbour::of).collect())
}

fn forbid(facts: &mut Facts, is_minor: bool) {
    let right = facts.rights[0].clone();
    facts.rights = Arc::from([Right { is_minor, allowed: Lookup::Found(false), ..right }]);
}

fn causes(change: impl FnOnce(&mut Facts)) -> Vec<(Severity, Cause)> {
    let mut facts = healthy();
    change(&mut facts);
    let findings = diagnose(&facts);
    for finding in &findings {
        assert!(!finding.what.is_empty() && !finding.why.is_empty() && !finding.remedy.is_empty(), "{finding:?}");
    }
    findings.into_iter().map(|finding| (finding.severity, finding.cause)).collect()
}

fn status(facts: &mut Facts, patch: &Value) {
    let mut object = serde_json::to_value(&facts.object).unwrap();
    merge(&mut object, patch);
    facts.object = parse(object);
}

fn merge(into: &mut Value, patch: &Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, patch) => *into = patch.clone(),
    }
}

fn fails(facts: &mut Facts, reason: &str, ready: &str) {
    let condition = |kind: &str, status: &str| json!({"type": kind, "status": status, "reason": reason, "message": "m", "lastTransitionTime": at(0)});
    status(facts, &json!({"status": {"conditions": [condition("Ready", ready), condition("Refreshed", "False")]}}));
}

fn the_operator(facts: &mut Facts, change: impl FnOnce(&mut Operator)) {
    let mut operator = operator();
    change(&mut operator);
    facts.operators = Lookup::Found(vec![operator]);
}

use Cause as C;
use Severity::{Error, Note, Unchecked, Warning};

#[test]
fn nothing_is_found_where_all_is_well() {
    assert_eq!(causes(|_| {}), []);
}

#[test]
fn of_several_operators_one_is_to_watch_the_namespace() {
    let watching = |namespace: &str, is_shard| Operator { watched: vec![namespace.into()], is_shard, ..operator() };
    let remedy = |operators| {
        let mut facts = healthy();
        facts.operators = Lookup::Found(operators);
        diagnose(&facts).into_iter().find(|finding| finding.cause == C::NotWatched).unwrap().remedy
    };
    let namespace = healthy().object.metadata.namespace.unwrap();
    assert!(remedy(vec![watching("a", false)]).contains(&format!("--set 'watchNamespaces={{a,{namespace}}}'")));
    for several in [vec![watching("a", false), watching("b", false)], vec![watching("a", true)]] {
        let remedy = remedy(several);
        assert!(remedy.contains("of one of them") && !remedy.contains("--set"), "{remedy}");
    }
}

#[test]
fn the_operator_and_what_is_around_it() {
    assert_eq!(causes(|f| f.served_versions = Lookup::Found(vec!["v2".into()])), [(Error, C::DefinitionOld)]);
    assert_eq!(causes(|f| f.namespace_ends = Lookup::Found(true)), [(Error, C::NamespaceEnding)]);
    let ends = json!({"metadata": {"deletionTimestamp": at(0)}});
    assert_eq!(causes(|f| status(f, &ends)), [(Error, C::ObjectEnding)]);
    assert_eq!(causes(|f| f.operators = Lookup::Found(Vec::new())), [(Warning, C::OperatorMissing)]);
    assert_eq!(causes(|f| the_operator(f, |o| o.ready_replicas = 0)), [(Warning, C::OperatorNotReady)]);
    assert_eq!(causes(|f| the_operator(f, |o| o.watched = vec!["m".into()])), [(Error, C::NotWatched)]);
    assert_eq!(causes(|f| the_operator(f, |o| o.selects = Some(false))), [(Error, C::NotSelected)]);
    let nobody =
        || Some(LeaseFacts { namespace: "system".into(), name: "l".into(), held: Lookup::Found(Held::default()) });
    assert_eq!(causes(|f| the_operator(f, |o| o.lease = nobody())), [(Warning, C::NobodyLeads)]);
    assert_eq!(causes(|f| f.operators = Lookup::Found(vec![operator(), operator()])), [(Warning, C::TwoOperators)]);
    let scaled_down = || Operator { wanted_replicas: 0, ready_replicas: 0, ..operator() };
    assert_eq!(causes(|f| f.operators = Lookup::Found(vec![operator(), scaled_down()])), []);
    assert_eq!(causes(|f| f.operators = Lookup::Found(vec![scaled_down()])), [(Warning, C::OperatorNotReady)]);
    assert_eq!(causes(|f| forbid(f, false)), [(Error, C::OperatorMayNot)]);
    assert_eq!(causes(|f| forbid(f, true)), [(Warning, C::OperatorMayNot)], "tokens come without it");
    assert_eq!(causes(|f| status(f, &json!({"status": null}))), [(Error, C::NeverLookedAt)]);
    assert_eq!(causes(|f| status(f, &json!({"metadata": {"generation": 2}}))), [(Warning, C::StatusBehind)]);
    let asked = json!({"metadata": {"annotations": {"money-go.com/refresh-requested": at(0).to_string()}}});
    assert_eq!(causes(|f| status(f, &asked)), [(Warning, C::RefreshUnanswered)]);
}

#[test]
fn without_a_token_not_all_is_well() {
    let pending = |state: &str| {
        let condition = |kind: &str, state: &str| json!({"type": kind, "status": state, "reason": "Pending", "message": "m", "lastTransitionTime": at(0)});
        let conditions = [condition("Ready", state), condition("Refreshed", "Unknown")];
        json!({"status": {"issuedAt": null, "expiresAt": null, "refreshAt": null, "conditions": conditions}})
    };
    for state in ["False", "Unknown"] {
        assert_eq!(causes(|f| status(f, &pending(state))), [(Error, C::TokenPending)], "it waits for its turn");
    }
    let young = |facts: &mut Facts| {
        status(facts, &json!({"status": null}));
        facts.now = at(5);
    };
    assert_eq!(causes(young), [(Error, C::TokenPending)], "nobody has looked at it yet");
    let explained = |facts: &mut Facts| {
        status(facts, &pending("False"));
        facts.credentials = Lookup::Missing;
    };
    assert_eq!(causes(explained), [(Error, C::CredentialsNotFound)]);
    let ends = |facts: &mut Facts| {
        status(facts, &pending("False"));
        status(facts, &json!({"metadata": {"deletionTimestamp": at(0), "finalizers": ["example.com/hold"]}}));
    };
    assert!(!causes(ends).iter().any(|(_, cause)| *cause == C::TokenPending), "none is to come");
}

#[test]
fn a_label_is_set_where_one_would_do() {
    for (selector, label) in [
        ("team=payments", "team=payments"),
        ("team==payments", "KEY=VALUE"),
        ("team", "KEY=VALUE"),
        ("a=b,c=d", "KEY=VALUE"),
    ] {
        let mut facts = healthy();
        the_operator(&mut facts, |o| (o.selects, o.label_selector) = (Some(false), Some(selector.to_owned())));
        assert_eq!(diagnose(&facts)[0].remedy, format!("kubectl -n n label mgc a {label}"), "{selector}");
    }
}

/// As `kubectl annotate mgc a money-go.com/refresh-requested="$(date)"` sets it.
#[test]
fn a_refresh_request_that_is_no_time_is_given_time() {
    let fields = json!({"f:metadata": {"f:annotations": {"f:money-go.com/refresh-requested": {}}}});
    let asked = |secs: i64| {
        json!({"metadata": {
            "annotations": {"money-go.com/refresh-requested": "Fri Jan 15 08:00:00 UTC 2027"},
            "managedFields": [
                {"manager": "kubectl-annotate", "time": at(secs), "fieldsType": "FieldsV1", "fieldsV1": fields},
                {"manager": "helm", "time": at(10), "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {}}},
            ],
        }})
    };
    assert_eq!(causes(|f| status(f, &asked(950))), []);
    assert_eq!(causes(|f| status(f, &asked(930))), [(Warning, C::RefreshUnanswered)]);
    let unowned = |secs: i64| {
        let mut asked = asked(secs);
        asked["metadata"]["managedFields"][0]["fieldsV1"] = json!({"f:spec": {}});
        asked
    };
    assert_eq!(causes(|f| status(f, &unowned(950))), [], "the object was changed a moment ago");
    assert_eq!(causes(|f| status(f, &unowned(930))), [(Warning, C::RefreshUnanswered)]);
}

/// In an outage the status of an object whose token lives tells of no failure.
#[test]
fn a_refresh_that_is_late_with_no_failure_hints_at_an_outage() {
    let late = |f: &mut Facts, secs: i64| {
        f.now = at(2000 + secs);
        the_operator(f, |o| o.lease = None);
    };
    assert_eq!(causes(|f| late(f, 60)), []);
    assert_eq!(causes(|f| late(f, 61)), [(Warning, C::RefreshOverdue)]);
    let mut facts = healthy();
    late(&mut facts, 61);
    let remedy = &diagnose(&facts)[0].remedy;
    assert!(remedy.contains("EndpointDown") && remedy.contains("moneygo_token_endpoint_up"), "{remedy}");
    let fails = causes(|f| {
        late(f, 61);
        fails(f, "RateLimited", "True");
    });
    assert_eq!(fails, [(Warning, C::RateLimited)], "what failed tells enough");
}

/// The API server's clock is ahead of the leader's, or behind it, by no more than is allowed for.
#[test]
fn a_leader_is_judged_with_what_clocks_may_differ() {
    let judged = |secs: i64, differ: i64| {
        causes(|f| {
            f.now = at(990 + secs);
            f.clocks_differ = SignedDuration::from_secs(differ);
        })
    };
    assert_eq!(judged(46, 30), [(Warning, C::NobodyLeads)]);
    assert_eq!(judged(46, 300), []);
    assert_eq!(judged(316, 300), [(Warning, C::NobodyLeads)]);
}

#[test]
fn a_check_that_is_advised_looks_for_the_operator_in_the_same_place() {
    let mut facts = healthy();
    fails(&mut facts, "InvalidClient", "True");
    assert!(diagnose(&facts)[0].remedy.ends_with("kubectl moneygo check -n n a"));
    facts.operator_namespace = Some("system".to_owned());
    assert!(diagnose(&facts)[0].remedy.ends_with("kubectl moneygo check -n n a --operator-namespace system"));
}

#[test]
fn the_client() {
    let suspend = json!({"spec": {"suspend": true}});
    assert_eq!(causes(|f| status(f, &suspend)), [(Warning, C::Suspended)]);
    let invalid = json!({"spec": {"scope": " "}});
    assert_eq!(causes(|f| status(f, &invalid)), [(Error, C::InvalidSpec)]);
    assert_eq!(causes(|f| f.credentials = Lookup::Missing), [(Warning, C::CredentialsNotFound)]);
    for (state, cause) in [
        (KeyState::Missing, C::CredentialsKeyMissing),
        (KeyState::Empty, C::CredentialsEmpty),
        (KeyState::NotText, C::CredentialsNotText),
        (KeyState::ByteOrderMark, C::CredentialsNotText),
        (KeyState::WhiteSpace, C::CredentialsWhiteSpace),
    ] {
        let credentials = Credentials { id: KeyState::Good, secret: state, keys: Vec::new() };
        assert_eq!(causes(|f| f.credentials = Lookup::Found(credentials)), [(Warning, cause)]);
    }
    let same = || {
        parse({
            let mut other = object("b");
            merge(&mut other, &json!({"spec": {"credentialsRef": {"name": "a-client"}}}));
            other
        })
    };
    assert_eq!(causes(|f| f.neighbours = neighbours(&[same()])), [(Warning, C::CredentialsShared)]);
    for (reason, cause) in [
        ("InvalidClient", C::ClientRejected),
        ("RequestRejected", C::RequestRejected),
        ("RateLimited", C::RateLimited),
        ("EndpointUnavailable", C::EndpointUnavailable),
        ("BadResponse", C::BadResponse),
        ("TargetForbidden", C::TargetForbidden),
        ("SecretsUnavailable", C::SecretsUnavailable),
        ("TargetOverwritten", C::TargetOverwritten),
    ] {
        assert_eq!(causes(|f| fails(f, reason, "True")), [(Warning, cause)], "while the token lives");
        assert_eq!(causes(|f| fails(f, reason, "False")), [(Error, cause)]);
    }
}

#[test]
fn the_token() {
    let foreign = || Target { metadata: serde_json::from_value(json!({"name": "a"})).unwrap(), ..target() };
    assert_eq!(causes(|f| f.target = Lookup::Found(foreign())), [(Error, C::TargetForeign)]);
    assert_eq!(causes(|f| f.target = Lookup::Missing), [(Error, C::TargetMissing)]);
    let immutable = Target { immutable: true, ..target() };
    assert_eq!(causes(|f| f.target = Lookup::Found(immutable)), [(Warning, C::TargetImmutable)]);
    let empty = Target { keys: BTreeMap::new(), ..target() };
    assert_eq!(causes(|f| f.target = Lookup::Found(empty)), [(Error, C::TargetKeyMissing)]);
    let mut edited = target();
    edited.metadata.managed_fields.as_mut().unwrap()[0].manager = Some("vi".to_owned());
    let written = |time: &str| Some(serde_json::from_value(json!(time)).unwrap());
    let mut restored = edited.clone();
    let entries = restored.metadata.managed_fields.as_mut().unwrap();
    entries[0].time = written("2026-01-01T00:00:00Z");
    let ours = ManagedFieldsEntry {
        manager: Some("moneygo-operator".to_owned()),
        time: written("2026-01-01T00:00:01Z"),
        ..ManagedFieldsEntry::default()
    };
    entries.push(ours);
    let mut edited_since = restored.clone();
    edited_since.metadata.managed_fields.as_mut().unwrap()[0].time = written("2026-01-01T00:00:02Z");
    assert_eq!(causes(|f| f.target = Lookup::Found(edited)), [(Error, C::TargetEdited)]);
    assert_eq!(causes(|f| f.target = Lookup::Found(edited_since)), [(Error, C::TargetEdited)]);
    assert_eq!(causes(|f| f.target = Lookup::Found(restored)), [], "a restored backup whose token the operator knows");
    let renamed = json!({"status": {"targetName": "b"}});
    assert_eq!(causes(|f| status(f, &renamed)), [(Error, C::TargetRenamed)]);
    let rival = |name: &str| {
        let mut other = object(name);
        merge(&mut other, &json!({"spec": {"target": {"name": "a"}}}));
        neighbours(&[parse(other)])
    };
    assert_eq!(causes(|f| f.neighbours = rival("b")), [(Warning, C::TargetRival)], "the Secret names this object");
    assert_eq!(
        causes(|f| {
            status(f, &json!({"metadata": {"creationTimestamp": at(500)}}));
            f.target = Lookup::Missing;
            f.neighbours = rival("b");
        })[0],
        (Error, C::TargetRival),
        "the other is older"
    );
    assert_eq!(causes(|f| f.now = at(2101))[1..], [(Warning, C::RefreshOverdue)]);
    assert_eq!(causes(|f| f.now = at(3000))[1..], [(Error, C::TokenExpired)]);
}

#[test]
fn the_pods() {
    let uses = |one: Use| causes(|f| f.uses = Lookup::Found(vec![one]));
    assert_eq!(causes(|f| f.uses = Lookup::Found(Vec::new())), [(Note, C::NoPodUses)]);
    let of_very_many = |f: &mut Facts| {
        f.uses = Lookup::Found(Vec::new());
        f.pods_left_out = true;
    };
    assert_eq!(causes(of_very_many), [(Unchecked, C::Unchecked)], "one that was not looked at may use it");
    assert_eq!(uses(mounted("a", files(&["access_token"], true))), [(Warning, C::PodSubPath)]);
    assert_eq!(uses(mounted("a", How::AllVariables)), [(Warning, C::PodVariable)]);
    assert_eq!(uses(mounted("a", files(&["token"], false))), [(Error, C::PodKeyMissing)]);
    let optional = How::Files { keys: vec!["token".to_owned()], sub_path: false, optional: true };
    assert_eq!(uses(mounted("a", optional)), []);
    assert_eq!(uses(mounted("a-client", files(&[], false))), [(Warning, C::PodUsesCredentials), (Note, C::NoPodUses)]);
}

#[test]
fn what_may_not_be_seen_is_told_and_the_operators_word_taken() {
    let blind = |f: &mut Facts| {
        let no = "you have no right to it";
        f.served_versions = Lookup::Unknown(no.into());
        f.namespace_ends = Lookup::Unknown(no.into());
        f.credentials = Lookup::Unknown(no.into());
        f.target = Lookup::Unknown(no.into());
        f.neighbours = Lookup::Unknown(no.into());
        f.uses = Lookup::Unknown(no.into());
        f.operators = Lookup::Unknown(no.into());
        f.rights = Arc::from([]);
    };
    let unchecked = causes(blind);
    assert_eq!(unchecked.len(), 6);
    assert!(unchecked.iter().all(|one| *one == (Unchecked, C::Unchecked)));
    for (reason, cause) in [
        ("CredentialsNotFound", C::CredentialsNotFound),
        ("CredentialsIncomplete", C::CredentialsKeyMissing),
        ("CredentialsMalformed", C::CredentialsWhiteSpace),
        ("TargetConflict", C::TargetForeign),
        ("TargetImmutable", C::TargetImmutable),
    ] {
        let found = causes(|f| {
            blind(f);
            fails(f, reason, "False");
        });
        assert!(found.contains(&(Error, cause)), "{reason}: {found:?}");
    }
}
