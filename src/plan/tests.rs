use std::collections::BTreeMap;
use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry, ObjectMeta, OwnerReference};
use serde_json::json;

use super::*;
use crate::crd::{DeletionPolicy, annotation};
use crate::digest::DigestKey;
use crate::schedule::{Allowance, Backoff, Renew, add};
use crate::secret::{Claim, Content, FIELD_MANAGER, Ownership};
use crate::status::condition;

mod anything;
mod world;

use world::{Answer, MOST_PASSES, World, data, rejected, resolved, scene};

const HOUR_SECS: u64 = 3600;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn start() -> Timestamp {
    at("2026-01-01T00:00:00Z")
}

fn secs(secs: i64) -> SignedDuration {
    SignedDuration::from_secs(secs)
}

// ---- Promise 2: one grant a token's life -----------------------------------------------------------------------------

#[test]
fn a_new_object_gets_one_token_after_a_look_and_then_rests_until_its_refresh_time() {
    let mut world = World::new();
    assert_eq!(plan(&world.observe(false)), Plan::LookToMint);
    assert_eq!(plan(&world.observe(true)), Plan::Mint(Cause::First));
    world.settle();
    assert_eq!((world.grants.clone(), world.writes), (vec![Cause::First], 1));
    world.assert_well();
    let life = world.facts().unwrap().marks.life.unwrap();
    let refresh_at = life.refresh_at(Renew::ThirdLeft, "uid-1");
    assert_eq!(world.status.issued_at, Some(start()));
    assert_eq!(world.status.expires_at, Some(add(start(), secs(3600))));
    assert_eq!((world.status.refresh_at, world.again_at), (Some(refresh_at), Some(refresh_at)));
    assert_eq!(world.status.target_name.as_deref(), Some("token"));
    assert_eq!(world.status.observed_generation, Some(1));
}

#[test]
fn in_steady_state_and_after_a_restart_nothing_is_read_asked_for_or_written() {
    let mut world = scene();
    for restarts in [false, true] {
        if restarts {
            world.restart();
        }
        world.settle();
        assert_eq!((world.looks, world.grants.len(), world.writes, world.status_writes), (0, 0, 0, 0));
    }
}

type Disturb = fn(&mut World);
type Change = (&'static str, Disturb);

#[test]
fn what_calls_for_a_new_token_gets_exactly_one() {
    let cases: [(&str, Disturb, Cause); 15] = [
        ("due", |w| w.advance(1900), Cause::Due),
        ("expired", |w| w.advance(5000), Cause::Due),
        ("clock set back by more than a tenth", |w| w.advance(-600 - 361), Cause::Due),
        ("another scope", |w| w.respec(|spec| spec.scope = "read".into()), Cause::ScopeChanged),
        ("a request", |w| w.refresh_requested = Some("now".into()), Cause::Requested),
        ("an empty request", |w| w.refresh_requested = Some(String::new()), Cause::Requested),
        ("another secret", |w| w.set_credentials("id", "other"), Cause::CredentialsChanged),
        ("another client", |w| w.set_credentials("other", "secret"), Cause::CredentialsChanged),
        ("the target is deleted", World::delete_target, Cause::Lost),
        (
            "the token is edited",
            |w| w.edit_target("kubectl", |s| s.data = Some(data([("access_token", b"mine")]))),
            Cause::Lost,
        ),
        ("the token is removed", |w| w.edit_target("kubectl", |s| s.data = None), Cause::Lost),
        (
            "the token is emptied",
            |w| w.edit_target("kubectl", |s| s.data = Some(data([("access_token", b"")]))),
            Cause::Lost,
        ),
        (
            "the token is edited and the token's digest and deadlines, too",
            |w| {
                w.edit_target("kubectl", |s| s.data = Some(data([("access_token", b"mine")])));
                w.annotate(annotation::TOKEN_HMAC, None);
            },
            Cause::Lost,
        ),
        (
            "the spec names other keys of the credentials, which hold another client",
            |w| {
                w.put_credentials(data([("client_id", b"id"), ("client_secret", b"secret"), ("b", b"other")]));
                w.settle();
                w.respec(|spec| spec.client_secret_key = "b".into());
                w.set_credentials("x", "y");
                w.put_credentials(data([("client_id", b"id"), ("client_secret", b"secret"), ("b", b"other")]));
            },
            Cause::CredentialsChanged,
        ),
        ("renewBefore makes it due", |w| w.respec(|spec| spec.renew = Renew::PercentLeft(90)), Cause::Due),
    ];
    for (name, change, cause) in cases {
        for restarts in [false, true] {
            let mut world = scene();
            change(&mut world);
            if restarts {
                world.restart();
            }
            world.forget_the_past();
            world.settle();
            assert_eq!(world.grants, [cause], "{name}, restarts: {restarts}");
            // A refresh time that has passed is put right before the token is replaced.
            let mends = usize::from(name.starts_with("renewBefore"));
            assert_eq!(world.writes, 1 + mends, "{name}: one write carries everything");
            world.assert_well();
            assert_eq!(world.status.last_handled_refresh, world.refresh_requested, "{name}");
            world.restart();
            world.settle();
            assert_eq!(world.grants.len(), 1, "{name}: again at a restart");
        }
    }
}

#[test]
fn other_keys_of_the_same_credentials_secret_that_hold_another_client_are_noticed() {
    let mut world = World::new();
    world.put_credentials(data([("client_id", b"id"), ("client_secret", b"secret"), ("b", b"other")]));
    world.settle();
    world.advance(600);
    world.settle();
    world.forget_the_past();
    world.respec(|spec| spec.client_secret_key = "b".into());
    world.settle();
    assert_eq!(world.grants, [Cause::CredentialsChanged]);
}

#[test]
fn what_calls_for_no_token_gets_none() {
    let cases: [Change; 25] = [
        ("nothing", |_| {}),
        ("clock set back by less than a tenth", |w| w.advance(-600 - 359)),
        ("a label on the credentials", |w| w.set_credentials("id", "secret")),
        ("the credentials are made anew, as they were", |w| {
            w.credentials = None;
            w.set_credentials("id", "secret");
            w.credentials.as_mut().unwrap().metadata.uid = Some("another".into());
        }),
        ("a label is lost", |w| w.edit_target("kubectl", |s| s.metadata.labels = None)),
        ("the owner is lost", |w| w.edit_target("kubectl", |s| s.metadata.owner_references = None)),
        ("a key is renamed", |w| w.respec(|spec| spec.authorization_key = Some("bearer".into()))),
        ("a label is asked for", |w| w.respec(|spec| drop(spec.labels.insert("team".into(), "a".into())))),
        ("Retain", |w| w.respec(|spec| spec.deletion_policy = DeletionPolicy::Retain)),
        ("renewBefore", |w| w.respec(|spec| spec.renew = Renew::PercentLeft(10))),
        ("the status is wiped", |w| w.status = MoneyGoCredentialStatus::default()),
        ("status.expiresAt is edited", |w| w.status.expires_at = Some(at("3000-01-01T00:00:00Z"))),
        ("status.refreshAt is edited", |w| w.status.refresh_at = Some(at("2020-01-01T00:00:00Z"))),
        ("status.issuedAt is edited into the past", |w| w.status.issued_at = Some(at("2020-01-01T00:00:00Z"))),
        ("status.issuedAt is edited into the future", |w| w.status.issued_at = Some(at("2030-01-01T00:00:00Z"))),
        ("expires-at is edited", |w| w.annotate(annotation::EXPIRES_AT, Some("3000-01-01T00:00:00Z"))),
        ("expires-at is edited a little", |w| w.annotate(annotation::EXPIRES_AT, Some("2026-01-01T00:50:00Z"))),
        ("issued-at is edited", |w| w.annotate(annotation::ISSUED_AT, Some("2020-01-01T00:00:00Z"))),
        ("expires-at is no time", |w| w.annotate(annotation::EXPIRES_AT, Some("soon"))),
        ("same-token is forged", |w| w.annotate(annotation::SAME_TOKEN, Some("true"))),
        ("same-token is forged with a time", |w| w.annotate(annotation::SAME_TOKEN, Some("2026-01-01T00:30:00Z"))),
        ("all annotations are stripped", |w| w.edit_target("kubectl", |s| s.metadata.annotations = None)),
        ("the digests' key is lost", |w| w.key = None),
        ("the digests' key is another one", |w| w.key = DigestKey::new(&[9; 32])),
        ("managedFields are reset", |w| {
            w.writers = None;
            w.edit_target("kubectl", |_| {});
        }),
    ];
    for (name, change) in cases {
        for restarts in [false, true] {
            let mut world = scene();
            let token = world.token();
            change(&mut world);
            if restarts {
                world.restart();
            }
            world.forget_the_past();
            world.settle();
            assert_eq!(world.grants, [], "{name}, restarts: {restarts}");
            assert_eq!(world.token(), token, "{name}");
            world.assert_well();
            assert_eq!(world.status.issued_at, Some(start()), "{name}");
            assert_eq!(world.status.expires_at, Some(add(start(), secs(3600))), "{name}");
            assert_eq!(world.status.refresh_at, world.facts().unwrap().marks.refresh_at, "{name}");
            assert!(world.writes <= 1, "{name}: {} writes", world.writes);
        }
    }
}

/// What is changed in an observation, and whether something still holds.
type Case<'a> = (&'a str, bool, &'a dyn Fn(&mut Observed));

#[test]
fn annotations_are_believed_unread_where_the_status_or_the_spec_says_the_same() {
    let base = scene().observe(false);
    let life = base.target.facts().and_then(|facts| facts.marks.life).unwrap();
    let another = Some(add(life.expires_at, secs(-7)));
    let respec = |o: &mut Observed| o.spec.as_mut().unwrap().renew = Renew::PercentLeft(10);
    let cases: [Case; 7] = [
        ("as they were", true, &|_| {}),
        ("the spec wants another refresh time, which is not written yet", true, &respec),
        ("the status does not know the refresh time yet", true, &|o| o.status.refresh_at = another),
        ("nobody says the same refresh time", false, &|o| {
            respec(o);
            o.status.refresh_at = another;
        }),
        ("another issue", false, &|o| o.status.issued_at = another),
        ("another expiry", false, &|o| o.status.expires_at = another),
        ("someone wrote the data", false, &|o| {
            let Target::Seen { trusted, .. } = &mut o.target else { panic!("it was read") };
            *trusted = false;
        }),
    ];
    for (name, expected, change) in cases {
        let mut o = base.clone();
        change(&mut o);
        let wanted = if expected { Token::Good(life) } else { Token::Unclear };
        assert_eq!(token(&o, o.spec.as_ref().unwrap()), wanted, "{name}");
    }
}

#[test]
fn each_of_our_annotations_is_put_back_without_a_grant() {
    let all = scene();
    let ours: Vec<_> = all.target.as_ref().unwrap().metadata.annotations.clone().unwrap().into_keys().collect();
    assert!(ours.len() >= 9, "{ours:?}");
    // Without it the Secret does not say whose it is, but its owner does.
    for key in ours {
        for value in [None, Some("edited")] {
            if value.is_some() && key == annotation::SCOPE {
                // It says that the token is for another scope, and that is believed.
                continue;
            }
            let mut world = scene();
            let before = world.target.clone().unwrap();
            world.annotate(&key, value);
            world.settle();
            assert_eq!(world.grants, [], "{key} {value:?}");
            world.assert_well();
            let after = world.target.clone().unwrap();
            assert_eq!(after.data, before.data, "{key} {value:?}");
            // A digest of credentials and what a request was answered with are not to be known again from elsewhere,
            // where they were replaced and not removed.
            if value.is_none() {
                assert_eq!(after.metadata.annotations, before.metadata.annotations, "{key}");
            }
        }
    }
}

#[test]
fn a_request_that_was_answered_is_answered_whoever_remembers_it() {
    for (forgets_status, strips_annotation) in [(false, false), (true, false), (false, true)] {
        let mut world = scene();
        world.refresh_requested = Some("r1".into());
        world.settle();
        assert_eq!(world.grants, [Cause::Requested]);
        if forgets_status {
            world.status.last_handled_refresh = None;
        }
        if strips_annotation {
            world.annotate(annotation::REFRESH_HANDLED, None);
        }
        world.restart();
        world.settle();
        assert_eq!(world.grants.len(), 1, "{forgets_status} {strips_annotation}");
        assert_eq!(world.status.last_handled_refresh.as_deref(), Some("r1"));
        let marked = world.facts().unwrap().marks.refresh_handled;
        assert!(strips_annotation || marked.as_deref() == Some("r1"));
        world.refresh_requested = Some("r2".into());
        world.settle();
        assert_eq!(world.grants.len(), 2, "anything new mints once more");
        world.refresh_requested = None;
        world.settle();
        assert_eq!(world.grants.len(), 2, "a request taken back is none");
    }
}

#[test]
fn the_request_that_was_answered_last_is_told_also_once_nothing_is_asked_for() {
    let cases = [
        (None, Some("r1"), None, Some("r1")),
        (None, None, Some("r1"), Some("r1")),
        (None, Some("r2"), Some("r1"), Some("r2")),
        (Some("r1"), Some("r2"), Some("r1"), Some("r1")),
        (Some("r2"), Some("r2"), Some("r1"), Some("r2")),
        (Some("r3"), Some("r2"), Some("r1"), Some("r2")),
        (None, None, None, None),
    ];
    for (asked, told, marked, expected) in cases {
        let mut o = scene().observe(true);
        o.refresh_requested = asked.map(ToOwned::to_owned);
        o.status.last_handled_refresh = told.map(ToOwned::to_owned);
        let Target::Read { facts, .. } = &mut o.target else { panic!("it was read") };
        facts.marks.refresh_handled = marked.map(ToOwned::to_owned);
        assert_eq!(handled_refresh(&o).as_deref(), expected, "{asked:?} {told:?} {marked:?}");
    }
}

#[track_caller]
fn assert_that_a_crash_before_the_status_costs_nothing(mut world: World) {
    world.advance(2000);
    world.crashes = true;
    for _ in 0..MOST_PASSES {
        if world.grants.is_empty() || world.held.is_some() {
            assert!(world.pass());
        }
    }
    assert!(world.held.is_none(), "it never writes");
    world.crashes = false;
    world.restart();
    world.settle();
    assert_eq!(world.grants, [Cause::Due]);
    assert_eq!(world.status.issued_at, Some(add(start(), secs(2600))));
    assert_eq!(world.status.expires_at, Some(add(start(), secs(6200))));
    world.assert_well();
}

#[test]
fn a_later_issue_than_the_status_remembers_is_our_own_write_whose_status_was_lost() {
    assert_that_a_crash_before_the_status_costs_nothing(scene());
}

#[test]
fn so_it_is_without_digests() {
    let mut world = World::new();
    world.key = None;
    world.settle();
    world.advance(600);
    world.settle();
    world.forget_the_past();
    assert_that_a_crash_before_the_status_costs_nothing(world);
}

#[test]
fn an_older_secret_that_is_restored_over_a_newer_one_is_a_lost_token() {
    let mut world = scene();
    let old = world.target.clone().unwrap();
    world.advance(2000);
    world.settle();
    world.forget_the_past();
    world.put_target("velero", old);
    world.settle();
    assert_eq!(world.grants, [Cause::Lost]);
    world.assert_well();
}

#[test]
fn a_secret_that_stayed_goes_on_with_its_token_under_a_new_object_of_the_name() {
    for policy in [DeletionPolicy::Delete, DeletionPolicy::Retain] {
        for has_key in [true, false] {
            let mut world = scene();
            world.respec(|spec| spec.deletion_policy = policy);
            world.settle();
            world.forget_the_past();
            let token = world.token();
            (world.owner.uid, world.live_uids) = ("uid-2".into(), vec!["uid-2".into()]);
            world.status = MoneyGoCredentialStatus::default();
            world.generation = 1;
            if !has_key {
                world.key = None;
            }
            world.restart();
            world.settle();
            assert_eq!((world.grants.clone(), world.token()), (vec![], token), "{policy:?} key: {has_key}");
            world.assert_well();
            let owner = world.facts().unwrap().owning_credential().map(ToOwned::to_owned);
            assert_eq!(owner.is_some(), policy == DeletionPolicy::Delete);
        }
    }
}

#[test]
fn a_foreign_secret_that_names_us_is_taken_over_with_one_grant() {
    let mut world = World::new();
    let secret = Secret {
        metadata: ObjectMeta { name: Some("token".into()), ..ObjectMeta::default() },
        data: Some(data([("access_token", b"someone's"), ("theirs", b"x")])),
        ..Secret::default()
    };
    world.put_target("helm", secret);
    world.settle();
    world.assert_conditions(("False", "TargetConflict"), ("False", "TargetConflict"), "True");
    assert_eq!((world.grants.len(), world.writes), (0, 1));
    world.annotate(annotation::ADOPT, Some("token"));
    world.settle();
    assert_eq!(world.grants, [Cause::First]);
    world.assert_well();
    let target = world.target.unwrap();
    assert_eq!(target.data.unwrap()["theirs"].0, b"x");
}

// ---- Credentials -----------------------------------------------------------------------------------------------------

fn without_credentials(world: &mut World) {
    world.credentials = None;
}

fn incomplete(world: &mut World) {
    world.put_credentials(data([("client_id", b"id")]));
}

fn malformed(world: &mut World) {
    world.set_credentials("id", "secret\n");
}

#[test]
fn bad_credentials_are_named_and_remembered_and_no_token_is_asked_for_with_them() {
    let cases: [(Disturb, &str, &str); 3] = [
        (without_credentials, "CredentialsNotFound", "False"),
        (incomplete, "CredentialsIncomplete", "False"),
        (malformed, "CredentialsMalformed", "True"),
    ];
    for (spoil, reason, stalled) in cases {
        let mut world = World::new();
        spoil(&mut world);
        world.settle();
        world.assert_conditions(("False", reason), ("False", reason), stalled);
        assert_eq!((world.grants.len(), world.writes), (0, 0), "{reason}");
        world.restart();
        world.looks = 0;
        world.settle();
        assert_eq!(world.looks, 0, "{reason}: what is known of this version is not read again");
        world.set_credentials("id", "secret");
        world.settle();
        assert_eq!(world.grants, [Cause::First], "{reason}: corrected");
        world.assert_well();

        let mut living = scene();
        spoil(&mut living);
        living.settle();
        living.assert_conditions(("True", "TokenValid"), ("False", reason), "False");
        living.advance(2000);
        living.settle();
        living.assert_conditions(("True", "TokenValid"), ("False", reason), "False");
        living.advance(1000);
        living.settle();
        living.assert_conditions(("False", "TokenExpired"), ("False", reason), stalled);
        assert_eq!((living.grants.len(), living.writes), (0, 0), "{reason}");
        living.set_credentials("id", "secret");
        living.settle();
        assert_eq!(living.grants, [Cause::Due], "{reason}: corrected");
        living.assert_well();
    }
}

#[test]
fn nobody_is_told_that_credentials_are_missing_without_a_look_and_it_takes_one() {
    let mut world = World::new();
    let mut unseen = world.observe(false);
    unseen.credentials = Credentials::Missing;
    assert_eq!(plan(&unseen), Plan::Look, "the Secrets' watch may be behind the objects'");
    let mut suspended = unseen.clone();
    suspended.spec.as_mut().unwrap().suspend = true;
    assert_eq!(plan(&suspended), Plan::Look, "whether or not one is to be asked for");
    let mut living = scene().observe(false);
    living.credentials = Credentials::Missing;
    assert_eq!(plan(&living), Plan::Look, "or another Secret is named, which was made just before");
    unseen = world.observe(true);
    assert_eq!(plan(&unseen), Plan::Mint(Cause::First), "it was");
    without_credentials(&mut world);
    world.settle();
    assert_eq!((world.looks, world.condition(ConditionType::Refreshed)), (1, ("False", "CredentialsNotFound")));
    world.respec(|spec| spec.scope = "read".into());
    world.settle();
    assert_eq!(world.looks, 1, "what was told is not looked at again");
}

#[test]
fn a_spec_that_names_the_right_key_of_incomplete_credentials_mends_them() {
    let mut world = World::new();
    world.put_credentials(data([("client_id", b"id"), ("password", b"secret")]));
    world.settle();
    assert_eq!(world.condition(ConditionType::Ready), ("False", "CredentialsIncomplete"));
    world.respec(|spec| spec.client_secret_key = "password".into());
    world.settle();
    world.assert_well();
}

#[test]
fn whether_credentials_changed_is_told_by_their_content_and_without_a_digest_by_their_version() {
    let known = |world: &World| Version::of(&world.credentials.as_ref().unwrap().metadata);
    let other = Version { uid: "credentials-uid".into(), resource_version: "999".into() };
    let cases = [
        (true, Match::Same, false),
        (true, Match::Different, true),
        (true, Match::Unknown, false),
        (false, Match::Same, false),
        (false, Match::Different, true),
        (false, Match::Unknown, true),
    ];
    for (is_known, content, mints) in cases {
        let world = scene();
        let version = if is_known { known(&world) } else { other.clone() };
        let mut o = world.observe(false);
        o.credentials = Credentials::Seen(version.clone());
        assert_eq!(plan(&o) == Plan::Look, !is_known, "an unknown version is looked at, a known one is not");
        let mut o = world.observe(true);
        o.credentials = Credentials::Read { version, content: Ok(content) };
        let minted = plan(&o) == Plan::Mint(Cause::CredentialsChanged);
        assert_eq!(minted, mints, "known: {is_known}, {content:?}");
    }
}

#[test]
fn without_a_mark_and_a_digest_the_version_that_the_status_remembers_counts() {
    let mut o = scene().observe(true);
    let known = o.credentials.version().cloned().unwrap();
    let Target::Read { facts, .. } = &mut o.target else { panic!("it was read") };
    facts.marks.credentials = None;
    assert!(!is_other_client(&o, &known, Ok(Match::Unknown)));
    assert!(is_other_client(&o, &Version::default(), Ok(Match::Unknown)));
}

#[test]
fn credentials_that_were_only_seen_are_not_remembered_in_place_of_those_that_were_looked_at() {
    let mut o = scene().observe(false);
    let known = o.credentials.version().cloned();
    o.credentials = Credentials::Seen(Version::default());
    assert_eq!(examined(&o, None), known);
    o.status.failed_attempts = Some(1);
    assert_eq!(examined(&o, None), None, "nor those with which an attempt failed that is over");
}

#[test]
fn a_problem_of_credentials_that_a_status_names_beside_failed_attempts_is_not_said_once_and_then_unsaid() {
    let mut world = World::new();
    incomplete(&mut world);
    world.settle();
    // Nobody but someone who edits the status writes this: with such credentials nothing was attempted.
    world.status.failed_attempts = Some(2);
    let o = world.observe(false);
    let first = accounted(&o).status(&o.status, o.now);
    let again = Observed { status: first.clone(), ..o };
    assert_eq!(accounted(&again).status(&first, again.now).conditions, first.conditions);
    world.settle();
    world.assert_conditions(("False", "CredentialsIncomplete"), ("False", "CredentialsIncomplete"), "False");
}

#[test]
fn a_refused_write_of_a_token_that_has_expired_since_is_not_told_in_place_of_bad_or_missing_credentials() {
    let cases: [(Disturb, Reason); 2] =
        [(incomplete, Reason::CredentialsIncomplete), (without_credentials, Reason::CredentialsNotFound)];
    for (spoil, reason) in cases {
        let mut world = scene();
        world.advance(5000);
        spoil(&mut world);
        let observe = |live| {
            let mut o = world.observe(live);
            o.failure = Some(a_failure(Reason::TargetForbidden, o.now));
            o
        };
        assert!(matches!(plan(&observe(false)), Plan::Look | Plan::LookToMint), "{reason:?}");
        let o = observe(true);
        let Plan::Rest(report, _) = plan(&o) else { panic!("{reason:?}: nothing is asked for with such credentials") };
        assert_eq!((report.failure, report.refreshed.reason), (None, reason));
    }
}

#[test]
fn a_digest_of_credentials_is_made_anew_only_of_those_that_the_token_was_asked_for_with() {
    let base = scene().observe(true);
    let version = base.credentials.version().cloned().unwrap();
    let other = Version { uid: version.uid.clone(), resource_version: "999".into() };
    let read = |version: &Version, content| Credentials::Read { version: version.clone(), content };
    let same = || read(&version, Ok(Match::Same));
    let unmarked = |o: &mut Observed| {
        let Target::Read { facts, .. } = &mut o.target else { panic!("it was read") };
        facts.marks.credentials = None;
    };
    let cases: [Case; 7] = [
        ("as they were", true, &|o| o.credentials = same()),
        ("the target alone knows them", true, &|o| o.status.observed_credentials = None),
        ("the status alone knows them", true, &unmarked),
        ("another version", false, &|o| o.credentials = read(&other, Ok(Match::Unknown))),
        ("an attempt with them failed", false, &|o| o.status.failed_attempts = Some(1)),
        ("they are malformed", false, &|o| o.credentials = read(&version, Err(CredentialsProblem::Malformed))),
        ("they are gone, and nobody knows them", false, &|o| {
            unmarked(o);
            (o.credentials, o.status.observed_credentials) = (Credentials::Missing, None);
        }),
    ];
    for (name, expected, change) in cases {
        let mut o = base.clone();
        change(&mut o);
        assert_eq!(is_restampable(&o), expected, "{name}");
    }
}

/// The keys may be others; and the status is about to say that it is of the new spec.
#[test]
fn credentials_that_were_not_looked_at_under_a_new_spec_are_looked_at_again() {
    let mut o = scene().observe(true);
    let version = o.credentials.version().cloned().unwrap();
    o.credentials = Credentials::Seen(version.clone());
    let examined = |o: &Observed| match account_while_asking(o) {
        Plan::Rest(report, _) => report.credentials,
        plan => panic!("{plan:?}"),
    };
    assert_eq!(examined(&o), Some(version));
    o.generation = o.generation.map(|generation| generation + 1);
    assert_eq!(examined(&o), None);
}

#[test]
fn a_rotated_secret_that_is_refused_is_tried_again_at_its_time_and_leaves_the_token_alone() {
    let mut world = rejected();
    let token = world.token();
    world.assert_conditions(("True", "TokenValid"), ("False", "InvalidClient"), "False");
    assert_eq!(world.status.failed_attempts, Some(1));
    let next = world.status.next_attempt_at.unwrap();
    assert_eq!(world.again_at, Some(next));
    world.restart();
    world.looks = 0;
    world.settle();
    assert_eq!((world.looks, world.writes), (0, 0), "nothing before its time, nor after a restart");
    world.now = next;
    world.settle();
    assert_eq!(world.status.failed_attempts, Some(2));
    assert_eq!(world.token(), token);
    world.now = world.status.next_attempt_at.unwrap();
    world.answer = Answer::New(HOUR_SECS);
    world.settle();
    assert_eq!(world.grants.len(), 1);
    assert_eq!(world.status.failed_attempts, None);
    world.assert_well();
}

#[test]
fn what_was_tried_in_haste_makes_no_later_wait_longer() {
    let mut world = scene();
    let (ends, refresh_at) = (world.status.expires_at.unwrap(), world.status.refresh_at.unwrap());
    (world.answer, world.now) = (Answer::Rejected, refresh_at);
    let mut waits = Vec::new();
    while waits.iter().filter(|(at, _)| *at >= ends).count() < 2 {
        world.pass_until_one_fails();
        let next = world.status.next_attempt_at.unwrap();
        waits.push((world.now, next.duration_since(world.now).as_secs()));
        world.now = next;
    }
    let [.., (_, first), (_, second)] = waits[..] else { panic!("it failed more than once: {waits:?}") };
    // It had been refused for twenty minutes by then.
    assert!((1200..=1440).contains(&first) && (2400..=2880).contains(&second), "{waits:?}");
    // Another kind of failure begins anew, too.
    world.answer = Answer::Unavailable;
    world.pass_until_one_fails();
    let wait = world.status.next_attempt_at.unwrap().duration_since(world.now);
    assert!(wait <= secs(6), "{wait:?}");
}

#[test]
fn with_a_broken_spec_only_what_is_still_ours_counts_as_a_token() {
    let mut world = scene();
    world.spec = Err(SpecProblem::Scope);
    let o = world.observe(false);
    let ready = |o: &Observed| {
        let Plan::Rest(report, _) = account(o) else { panic!("it rests") };
        report.ready.reason
    };
    assert_eq!(ready(&o), Reason::TokenValid);
    assert_eq!(ready(&Observed { claimed: false, ..o.clone() }), Reason::InvalidSpec, "another's Secret is there");
    let Target::Seen { facts, trusted } = o.target.clone() else { panic!("it was seen") };
    let mut edited = facts;
    edited.seal = Seal::Broken(None);
    assert_eq!(ready(&Observed { target: Target::Seen { facts: edited, trusted }, ..o }), Reason::InvalidSpec);
}

#[test]
fn what_failed_is_over_when_a_token_has_come_and_not_when_another_is_asked_for() {
    let says = |plan: &Plan| {
        let Plan::Rest(report, _) = plan else { panic!("it rests: {plan:?}") };
        (report.ready.reason, (report.refreshed.state, report.refreshed.reason), report.stalled.state)
    };
    let pending = (State::Unknown, Reason::Pending);

    // The secret is another again, and the allowance for that is spent.
    let o = rejected().observe(true);
    let content = Ok(Match::Different);
    let credentials = Credentials::Read { version: Version::default(), content };
    let held_back = Observed { credentials, failure: None, changed_at: add(o.now, secs(5)), ..o };
    assert_eq!(says(&plan(&held_back)), (Reason::TokenValid, pending, State::False));
    // Someone put the right one back: nothing is asked for.
    let credentials = Credentials::Read { version: Version::default(), content: Ok(Match::Same) };
    let put_back = Observed { credentials, ..held_back };
    assert_eq!(says(&plan(&put_back)), (Reason::TokenValid, (State::True, Reason::Succeeded), State::False));

    let mut world = scene();
    let living = world.observe(true);
    let succeeded = (State::True, Reason::Succeeded);
    assert_eq!(says(&account_while_asking(&living)).1, succeeded, "a refresh that waits its turn is no news");
    world.advance(5000);
    let ended = world.observe(true);
    assert_eq!(says(&account_while_asking(&ended)), (Reason::TokenExpired, pending, State::False));
    let outage = Observed { outage: true, ..ended };
    assert_eq!(says(&account_while_asking(&outage)).1, (State::False, Reason::EndpointUnavailable));
}

#[test]
fn a_rotated_secret_that_is_refused_is_not_forgotten_for_a_change_of_the_spec() {
    let mut world = rejected();
    world.answer = Answer::New(HOUR_SECS);
    world.respec(|spec| drop(spec.labels.insert("team".into(), "a".into())));
    world.settle();
    assert_eq!(world.grants, [Cause::CredentialsChanged], "a changed spec retries at once");
    world.assert_well();
}

#[test]
fn a_rotated_secret_that_is_refused_is_not_forgotten_while_the_allowance_is_spent() {
    let mut world = rejected();
    world.answer = Answer::New(HOUR_SECS);
    for _ in 0..3 {
        if world.changes.available_at(world.now) <= world.now {
            world.changes.take(world.now);
        }
    }
    assert!(world.changes.available_at(world.now) > world.now);
    world.respec(|spec| drop(spec.labels.insert("team".into(), "a".into())));
    world.settle();
    world.now = world.changes.available_at(world.now);
    world.settle();
    assert_eq!(world.grants, [Cause::CredentialsChanged]);
}

#[test]
fn a_rotated_secret_that_is_refused_is_not_forgotten_while_suspended() {
    let mut world = rejected();
    world.answer = Answer::New(HOUR_SECS);
    world.respec(|spec| spec.suspend = true);
    world.settle();
    assert_eq!(world.grants, []);
    world.respec(|spec| spec.suspend = false);
    world.settle();
    assert_eq!(world.grants, [Cause::CredentialsChanged]);
}

#[test]
fn a_rotated_secret_that_was_refused_before_it_was_malformed_is_not_forgotten() {
    let mut world = rejected();
    world.answer = Answer::New(HOUR_SECS);
    malformed(&mut world);
    world.settle();
    world.set_credentials("id", "rotated");
    world.settle();
    assert_eq!(world.grants, [Cause::CredentialsChanged]);
}

#[test]
fn a_rotation_that_is_reverted_needs_no_token_and_clears_the_failure() {
    let mut world = rejected();
    world.answer = Answer::New(HOUR_SECS);
    world.set_credentials("id", "secret");
    world.settle();
    assert_eq!(world.grants, []);
    assert_eq!((world.status.failed_attempts, world.status.next_attempt_at), (None, None));
    world.assert_well();
}

#[test]
fn without_digests_a_rotation_that_is_refused_is_tried_again_all_the_same() {
    let mut world = World::new();
    world.key = None;
    world.settle();
    world.forget_the_past();
    world.set_credentials("id", "rotated");
    world.answer = Answer::Rejected;
    world.pass_until_one_fails();
    world.settle();
    assert_eq!(world.status.failed_attempts, Some(1));
    world.answer = Answer::New(HOUR_SECS);
    world.now = world.status.next_attempt_at.unwrap();
    world.settle();
    assert_eq!(world.grants.len(), 1);
    world.assert_well();
}

#[test]
fn without_digests_a_rotation_that_is_held_back_by_a_suspension_is_not_forgotten() {
    let mut world = World::new();
    world.key = None;
    world.settle();
    world.forget_the_past();
    world.respec(|spec| spec.suspend = true);
    world.set_credentials("id", "rotated");
    world.settle();
    world.respec(|spec| spec.suspend = false);
    world.settle();
    assert_eq!(world.grants, [Cause::CredentialsChanged]);
}

#[test]
fn a_refused_write_backs_off_while_suspended_too() {
    let mut world = holding();
    world.refuses_writes = true;
    world.respec(|spec| spec.suspend = true);
    world.pass();
    world.settle();
    assert_eq!(world.status.failed_attempts, Some(1));
}

// ---- The allowances --------------------------------------------------------------------------------------------------

#[test]
fn a_change_that_the_allowance_holds_back_is_made_up_for_as_soon_as_it_can() {
    let cases: [(Change, Cause); 4] = [
        (("scope", |w| w.respec(|spec| spec.scope = "read".into())), Cause::ScopeChanged),
        (("request", |w| w.refresh_requested = Some("now".into())), Cause::Requested),
        (("credentials", |w| w.set_credentials("id", "other")), Cause::CredentialsChanged),
        (("deleted", World::delete_target), Cause::Lost),
    ];
    for ((name, change), cause) in cases {
        let mut world = scene();
        for _ in 0..3 {
            world.changes.take(world.now);
            world.replacements.take(world.now);
        }
        change(&mut world);
        world.settle();
        assert_eq!(world.grants, [], "{name}");
        let free_at = add(world.now, secs(10));
        assert_eq!(world.again_at, Some(free_at), "{name}");
        world.now = free_at;
        world.settle();
        assert_eq!(world.grants, [cause], "{name}");
    }
}

#[test]
fn a_target_that_someone_keeps_overwriting_backs_off_and_names_the_manager() {
    let mut world = scene();
    for _ in 0..6 {
        if world.target.is_some() {
            world.edit_target("evil-operator", |secret| secret.data = Some(data([("access_token", b"x")])));
        }
        world.settle();
    }
    assert_eq!(world.grants, [Cause::Lost; 3]);
    world.assert_conditions(("False", "TargetOverwritten"), ("False", "TargetOverwritten"), "False");
    let ready = condition(&world.status, ConditionType::Ready).unwrap();
    assert!(ready.message.contains("\"evil-operator\""), "{}", ready.message);
    world.now = world.again_at.unwrap();
    world.settle();
    assert_eq!(world.grants.len(), 4);
    world.assert_well();
}

#[test]
fn a_persons_change_is_not_held_up_by_someone_who_overwrites_the_target() {
    let mut world = scene();
    for _ in 0..3 {
        world.replacements.take(world.now);
    }
    world.refresh_requested = Some("now".into());
    world.settle();
    assert_eq!(world.grants, [Cause::Requested]);
}

#[test]
fn a_refresh_that_is_due_needs_no_allowance_nor_does_the_first_token() {
    for mut world in [scene(), World::new()] {
        for _ in 0..5 {
            world.changes.take(world.now);
            world.replacements.take(world.now);
        }
        world.advance(2000);
        for _ in 0..20 {
            world.changes.take(world.now);
            world.replacements.take(world.now);
        }
        world.settle();
        assert_eq!(world.grants.len(), 1);
        assert_eq!(world.grants[0].allowance(), Allowed::Always);
    }
}

#[test]
fn mends_have_an_allowance_of_their_own_and_what_it_holds_back_is_made_up_for() {
    let mut world = scene();
    for _ in 0..10 {
        world.mends.take(world.now);
    }
    world.edit_target("kubectl", |secret| secret.metadata.labels = None);
    world.forget_the_past();
    world.settle();
    assert_eq!(world.writes, 0);
    world.now = world.again_at.unwrap();
    world.settle();
    assert_eq!((world.writes, world.grants.len()), (1, 0));
}

// ---- Suspension ------------------------------------------------------------------------------------------------------

#[test]
fn while_suspended_no_token_is_asked_for_and_the_target_is_still_kept_in_shape() {
    let changes: [Change; 6] = [
        ("due", |w| w.advance(2000)),
        ("expired", |w| w.advance(5000)),
        ("scope", |w| w.respec(|spec| spec.scope = "read".into())),
        ("request", |w| w.refresh_requested = Some("now".into())),
        ("credentials", |w| w.set_credentials("id", "other")),
        ("deleted", World::delete_target),
    ];
    for (name, change) in changes {
        let mut world = scene();
        world.respec(|spec| spec.suspend = true);
        world.settle();
        world.assert_conditions(("True", "TokenValid"), ("Unknown", "Suspended"), "False");
        change(&mut world);
        world.settle();
        assert_eq!(world.grants, [], "{name}");
        assert_eq!(world.condition(ConditionType::Refreshed), ("Unknown", "Suspended"), "{name}");
        let ready = world.condition(ConditionType::Ready);
        match name {
            "expired" => assert_eq!(ready, ("False", "TokenExpired")),
            "deleted" => assert_eq!(ready, ("False", "Suspended")),
            _ => assert_eq!(ready, ("True", "TokenValid"), "{name}"),
        }
        world.respec(|spec| spec.suspend = false);
        world.settle();
        assert_eq!(world.grants.len(), 1, "{name}: resumed");
        world.assert_well();
    }
    let mut world = scene();
    world.respec(|spec| spec.suspend = true);
    world.edit_target("kubectl", |secret| secret.metadata.labels = None);
    world.settle();
    assert!(world.target.as_ref().unwrap().metadata.labels.is_some(), "mended while suspended");
    world.respec(|spec| spec.suspend = false);
    world.settle();
    assert_eq!(world.grants, [], "lifting it mints nothing where the token is intact");
}

#[test]
fn a_token_whose_age_nobody_knows_is_not_called_valid() {
    let mut world = scene();
    world.respec(|spec| spec.suspend = true);
    world.settle();
    world.advance(-600 - 361);
    world.settle();
    world.assert_conditions(("Unknown", "Pending"), ("Unknown", "Suspended"), "False");
}

#[test]
fn a_new_object_that_is_suspended_waits_without_a_token() {
    let mut world = World::new();
    world.respec(|spec| spec.suspend = true);
    world.settle();
    world.assert_conditions(("False", "Suspended"), ("Unknown", "Suspended"), "False");
    assert_eq!((world.grants.len(), world.writes), (0, 0));
}

// ---- Promise 5: what is not ours, or cannot be written --------------------------------------------------------------

#[test]
fn what_cannot_be_written_is_not_touched_and_no_token_is_asked_for() {
    let obstacles: [(&str, Disturb, &str); 6] = [
        ("a rival", |w| w.rival = Some("other".into()), "TargetConflict"),
        (
            "owned by a controller of another kind",
            |w| {
                w.edit_target("helm", |secret| {
                    secret.metadata.owner_references = Some(vec![OwnerReference {
                        api_version: "apps/v1".into(),
                        kind: "Deployment".into(),
                        name: "d".into(),
                        uid: "d".into(),
                        controller: Some(true),
                        ..OwnerReference::default()
                    }]);
                });
            },
            "TargetConflict",
        ),
        (
            "says nothing of us",
            |w| w.edit_target("helm", |s| (s.metadata.owner_references, s.metadata.annotations) = (None, None)),
            "TargetConflict",
        ),
        ("the target's name changed", |w| w.respec(|spec| spec.target = "other".into()), "TargetImmutable"),
        (
            "the spec is broken",
            |w| {
                w.spec = Err(SpecProblem::Scope);
                w.generation += 1;
            },
            "InvalidSpec",
        ),
        (
            "another name, and nothing there",
            |w| {
                w.respec(|spec| spec.target = "other".into());
                w.delete_target();
            },
            "TargetImmutable",
        ),
    ];
    for (name, raise, reason) in obstacles {
        for due in [false, true] {
            let mut world = scene();
            raise(&mut world);
            world.forget_the_past();
            let before = world.target.clone();
            if due {
                world.advance(2000);
            }
            world.refresh_requested = Some("now".into());
            world.settle();
            assert_eq!((world.grants.len(), world.writes, world.looks), (0, 0, 0), "{name}");
            assert_eq!(world.target, before, "{name}");
            assert_eq!(world.condition(ConditionType::Refreshed), ("False", reason), "{name}");
            let is_spec = reason == "InvalidSpec";
            let (ready, stalled) =
                if is_spec { (("True", "TokenValid"), "False") } else { (("False", reason), "True") };
            assert_eq!(world.condition(ConditionType::Ready), ready, "{name}");
            assert_eq!(world.condition(ConditionType::Stalled).0, stalled, "{name}");
        }
    }
}

#[test]
fn a_broken_spec_without_a_token_is_stalled_and_with_one_flips_when_it_expires() {
    let mut world = World::new();
    world.spec = Err(SpecProblem::Scope);
    world.settle();
    world.assert_conditions(("False", "InvalidSpec"), ("False", "InvalidSpec"), "True");
    assert_eq!(world.again_at, None);
}

#[test]
fn when_the_rival_goes_the_next_takes_over() {
    let mut world = World::new();
    world.rival = Some("other".into());
    world.settle();
    assert_eq!(world.grants, []);
    let message = &condition(&world.status, ConditionType::Ready).unwrap().message;
    assert!(message.contains("\"other\""), "{message}");
    world.rival = None;
    world.settle();
    assert_eq!(world.grants, [Cause::First]);
    world.assert_well();
}

#[test]
fn an_immutable_target_is_told_and_no_token_is_asked_for_that_could_not_be_written() {
    let mut world = scene();
    world.edit_target("kubectl", |secret| secret.immutable = Some(true));
    world.forget_the_past();
    world.advance(2000);
    world.settle();
    world.assert_conditions(("True", "TokenValid"), ("False", "TargetImmutable"), "False");
    world.advance(2000);
    world.settle();
    world.assert_conditions(("False", "TokenExpired"), ("False", "TargetImmutable"), "True");
    assert_eq!((world.grants.len(), world.writes), (0, 0));
    world.delete_target();
    world.settle();
    assert_eq!(world.grants, [Cause::Lost]);
    world.assert_well();
}

#[test]
fn that_a_target_is_immutable_is_told_until_it_is_no_more_whoever_looks() {
    let mut world = scene();
    world.edit_target("kubectl", |secret| secret.immutable = Some(true));
    world.settle();
    world.assert_conditions(("True", "TokenValid"), ("False", "TargetImmutable"), "False");
    world.restart();
    world.settle();
    world.assert_conditions(("True", "TokenValid"), ("False", "TargetImmutable"), "False");
    world.set_credentials("id", "secret");
    world.settle();
    world.assert_conditions(("True", "TokenValid"), ("False", "TargetImmutable"), "False");
    world.delete_target();
    world.settle();
    world.assert_well();

    // Where an attempt had failed before, too.
    let mut world = rejected();
    world.edit_target("kubectl", |secret| secret.immutable = Some(true));
    world.settle();
    world.assert_conditions(("True", "TokenValid"), ("False", "TargetImmutable"), "False");
}

#[test]
fn an_immutable_secret_that_names_us_and_holds_no_token_of_ours_is_told_of() {
    let mut world = World::new();
    let metadata = ObjectMeta {
        annotations: Some(BTreeMap::from([(annotation::ADOPT.to_owned(), "token".to_owned())])),
        ..ObjectMeta::default()
    };
    world.put_target("helm", Secret { metadata, immutable: Some(true), ..Secret::default() });
    world.settle();
    world.assert_conditions(("False", "TargetImmutable"), ("False", "TargetImmutable"), "True");
}

#[test]
fn an_owner_that_may_not_be_changed_is_left_and_nothing_is_written_again_for_it() {
    let mut world = scene();
    world.owner_refused = true;
    world.edit_target("kubectl", |secret| secret.metadata.owner_references = None);
    world.forget_the_past();
    world.settle();
    assert_eq!((world.writes, world.grants.len()), (0, 0));
    world.owner_refused = false;
    world.settle();
    assert_eq!(world.writes, 1);
}

// ---- Promise 3: a token that was issued is not lost ------------------------------------------------------------------

/// A healthy object whose refresh has just been answered, and not been written.
fn holding() -> World {
    let mut world = scene();
    world.advance(2000);
    assert!(world.pass());
    assert!(world.held.is_some());
    world.forget_the_past();
    world
}

#[track_caller]
fn assert_stored(world: &mut World) {
    let (token, ..) = world.held.clone().unwrap();
    world.settle();
    assert_eq!((world.token(), world.grants.len(), world.writes), (Some(token), 0, 1));
    assert!(world.held.is_none());
}

#[test]
fn a_held_token_is_written_after_a_look_and_without_another_grant() {
    let mut world = holding();
    assert_eq!(plan(&world.observe(false)), Plan::Look);
    assert_eq!(plan(&world.observe(true)), Plan::Store);
    assert_stored(&mut world);
    world.assert_well();
}

#[test]
fn a_held_token_is_written_whatever_else_has_changed() {
    let changes: [Change; 9] = [
        ("no longer leading", |w| w.leading = false),
        ("suspended", |w| w.respec(|spec| spec.suspend = true)),
        ("credentials gone", |w| w.credentials = None),
        ("target deleted", World::delete_target),
        ("label edited", |w| w.edit_target("kubectl", |s| s.metadata.labels = None)),
        ("another request", |w| w.refresh_requested = Some("later".into())),
        ("allowances spent", |w| {
            for _ in 0..4 {
                w.changes.take(w.now);
                w.replacements.take(w.now);
                w.mends.take(w.now);
            }
        }),
        ("outage", |w| w.outage = true),
        ("status wiped", |w| w.status = MoneyGoCredentialStatus::default()),
    ];
    for (name, change) in changes {
        let mut world = holding();
        change(&mut world);
        let (token, ..) = world.held.clone().unwrap();
        world.pass();
        assert_eq!(world.token(), Some(token), "{name}");
        assert_eq!(world.grants, [], "{name}");
        assert!(world.held.is_none(), "{name}");
    }
}

#[test]
fn a_held_token_that_is_in_the_target_already_is_only_recorded() {
    let mut world = holding();
    let (token, issue, _) = world.held.clone().unwrap();
    world.write(&token, &issue);
    world.forget_the_past();
    assert_eq!(plan(&world.observe(true)), Plan::Store, "what is recorded of it is this request's");
    world.settle();
    assert_eq!((world.token(), world.grants.len()), (Some(token), 0));
    assert!(world.held.is_none());
    world.assert_well();
}

#[test]
fn a_held_token_that_another_replica_was_given_later_and_wrote_is_left_as_it_is() {
    let mut world = holding();
    let (token, mut issue, _) = world.held.clone().unwrap();
    let repeated = Some(issue.life.expires_at);
    issue.life = Life { issued_at: add(issue.life.issued_at, secs(5)), repeated, ..issue.life };
    world.write(&token, &issue);
    world.status.issued_at = Some(issue.life.issued_at);
    world.forget_the_past();
    world.advance(6);
    assert_eq!(plan(&world.observe(true)), Plan::Forget);
    world.settle();
    assert_eq!((world.token(), world.grants.len()), (Some(token), 0));
    assert!(world.held.is_none());
    world.assert_well();
}

#[test]
fn two_replicas_tokens_are_settled_by_one_more_grant() {
    let mut world = holding();
    let mine = world.held.clone().unwrap();
    let mut issue = mine.1.clone();
    issue.life = Life::new(add(world.now, secs(1)), Duration::from_secs(HOUR_SECS));
    world.write("theirs", &issue);
    world.forget_the_past();
    world.advance(2);
    assert_eq!(plan(&world.observe(true)), Plan::Mint(Cause::Settle));
    world.settle();
    assert_eq!(world.grants, [Cause::Settle]);
    assert_ne!(world.token().as_deref(), Some("theirs"));
    assert_ne!(world.token(), Some(mine.0));
    assert!(world.held.is_none());
    world.assert_well();
}

#[test]
fn a_first_token_that_another_replica_wrote_before_us_is_settled_too() {
    let mut world = World::new();
    world.pass();
    let (_, mut issue, replaces) = world.held.clone().unwrap();
    assert_eq!(replaces, None);
    issue.life = Life::new(add(world.now, secs(1)), Duration::from_secs(HOUR_SECS));
    world.write("theirs", &issue);
    world.advance(2);
    world.forget_the_past();
    world.settle();
    assert_eq!(world.grants, [Cause::Settle]);
}

#[test]
fn a_held_token_that_has_expired_is_forgotten_and_another_is_asked_for() {
    let mut world = holding();
    world.advance(3601);
    assert_eq!(plan(&world.observe(false)), Plan::Forget);
    world.settle();
    assert_eq!(world.grants, [Cause::Due]);
    let mut standby = holding();
    standby.leading = false;
    standby.advance(3601);
    standby.settle();
    assert_eq!((standby.grants.len(), standby.held.is_none()), (0, true));
}

#[test]
fn a_held_token_waits_while_the_target_is_not_ours_or_the_spec_is_broken() {
    let obstacles: [Change; 4] = [
        ("foreign", |w| {
            w.edit_target("helm", |s| (s.metadata.owner_references, s.metadata.annotations) = (None, None));
        }),
        ("rival", |w| w.rival = Some("other".into())),
        ("renamed", |w| w.respec(|spec| spec.target = "other".into())),
        ("broken spec", |w| w.spec = Err(SpecProblem::Scope)),
    ];
    for (name, raise) in obstacles {
        let mut world = holding();
        raise(&mut world);
        world.forget_the_past();
        for live in [false, true] {
            assert!(matches!(plan(&world.observe(live)), Plan::Rest(..)), "{name}");
        }
        assert_eq!((world.writes, world.held.is_some()), (0, true), "{name}");
    }
}

#[test]
fn a_write_that_is_refused_is_tried_again_with_the_same_token_and_not_before_its_time() {
    let mut world = holding();
    let (token, ..) = world.held.clone().unwrap();
    world.refuses_writes = true;
    world.pass();
    assert_eq!(world.condition(ConditionType::Refreshed), ("False", "TargetForbidden"));
    assert_eq!(world.condition(ConditionType::Ready), ("True", "TokenValid"));
    world.settle();
    assert_eq!(world.status.failed_attempts, Some(1));
    world.refuses_writes = false;
    world.now = world.again_at.unwrap();
    world.settle();
    assert_eq!((world.token(), world.grants.len()), (Some(token), 0));
    world.assert_well();
}

#[test]
fn a_write_that_was_refused_is_tried_once_more_as_the_process_stops() {
    let mut world = holding();
    let (token, ..) = world.held.clone().unwrap();
    world.refuses_writes = true;
    world.pass();
    (world.refuses_writes, world.stopping) = (false, true);
    world.settle();
    assert_eq!((world.token(), world.grants.len()), (Some(token), 0));
}

#[test]
fn a_change_of_the_target_lets_a_refused_write_be_tried_at_once() {
    let mut world = holding();
    let (token, ..) = world.held.clone().unwrap();
    world.refuses_writes = true;
    world.pass();
    world.refuses_writes = false;
    world.edit_target("kubectl", |secret| secret.immutable = None);
    world.settle();
    assert_eq!((world.token(), world.grants.len()), (Some(token), 0));
}

#[test]
fn while_a_write_is_refused_a_living_token_is_told_of_whatever_changes() {
    let changes: [Change; 2] = [
        ("another refresh time", |w| w.respec(|spec| spec.renew = Renew::PercentLeft(50))),
        ("another key", |w| w.respec(|spec| spec.authorization_key = Some("authorization".into()))),
    ];
    for (name, change) in changes {
        let mut world = holding();
        world.refuses_writes = true;
        world.pass();
        change(&mut world);
        for _ in 0..4 {
            world.pass();
            assert_eq!(world.condition(ConditionType::Ready), ("True", "TokenValid"), "{name}");
            assert_eq!(world.condition(ConditionType::Refreshed), ("False", "TargetForbidden"), "{name}");
        }
        assert_eq!(world.status.failed_attempts, Some(1), "{name}: tried once, for the change");
        assert!(world.status.expires_at.is_some() && world.held.is_some(), "{name}");
    }
}

#[test]
fn what_is_held_for_a_target_that_became_immutable_is_written_once_that_is_deleted() {
    let mut world = holding();
    let (token, ..) = world.held.clone().unwrap();
    world.edit_target("kubectl", |secret| secret.immutable = Some(true));
    world.forget_the_past();
    world.settle();
    assert_eq!(world.condition(ConditionType::Ready), ("True", "TokenValid"));
    assert_eq!(world.condition(ConditionType::Refreshed), ("False", "TargetImmutable"));
    assert_eq!((world.writes, world.held.is_some()), (0, true), "no write could succeed");
    world.delete_target();
    world.settle();
    assert_eq!((world.token(), world.grants.len()), (Some(token), 0));
    world.assert_well();
}

#[test]
fn a_refused_mend_is_not_tried_before_its_time() {
    let mut world = scene();
    world.edit_target("helm", |secret| secret.metadata.labels = None);
    world.forget_the_past();
    world.refuses_writes = true;
    world.pass();
    assert_eq!(world.condition(ConditionType::Refreshed), ("False", "TargetForbidden"));
    world.settle();
    assert_eq!(world.status.failed_attempts, Some(1));
    world.refuses_writes = false;
    world.now = world.again_at.unwrap();
    world.settle();
    assert_eq!((world.grants.len(), world.writes), (0, 1));
    world.assert_well();
}

fn a_failure(reason: Reason, next_attempt_at: Timestamp) -> Failure {
    Failure { reason, message: "as told".into(), at: start(), attempts: 1, next_attempt_at }
}

#[track_caller]
fn accounted(o: &Observed) -> Report {
    let Plan::Rest(report, _) = account(o) else { panic!("an account is a rest") };
    *report
}

#[test]
fn only_a_write_that_was_refused_holds_back_a_held_token_and_is_told_while_suspended() {
    let mut held = holding().observe(true);
    let mut suspended = scene();
    suspended.respec(|spec| spec.suspend = true);
    let mut suspended = suspended.observe(true);
    let cases = [
        (Reason::TargetForbidden, false, (State::False, Reason::TargetForbidden)),
        (Reason::InvalidClient, true, (State::Unknown, Reason::Suspended)),
    ];
    for (reason, is_written, told) in cases {
        held.failure = Some(a_failure(reason, add(held.now, secs(60))));
        assert_eq!(plan(&held) == Plan::Store, is_written, "{reason:?}");
        suspended.failure = Some(a_failure(reason, add(suspended.now, secs(60))));
        let report = accounted(&suspended);
        assert_eq!((report.refreshed.state, report.refreshed.reason), told);
        assert_eq!(report.failure.is_none(), is_written, "{reason:?}: attempts end, but not of the write");
        let rival = Observed { rival: Some("other".into()), failure: held.failure.clone(), ..scene().observe(true) };
        let report = accounted(&rival);
        assert_eq!(report.failure, None, "{reason:?}: nothing is tried with a target that is not ours");
        assert_eq!((report.expires_at, report.refresh_at), (None, None), "nor is it known what it holds");
    }
}

// ---- What is not known of a token, and Secrets that are out of reach -------------------------------------------------

#[test]
fn keys_beside_the_token_are_put_back_without_a_grant_whenever_they_were_edited() {
    for restarts in [false, true] {
        let mut world = scene();
        world.respec(|spec| {
            (spec.authorization_key, spec.expires_at_key) = (Some("authorization".into()), Some("expires".into()));
        });
        world.settle();
        let wanted = world.target.clone().unwrap().data;
        for (key, value) in [("authorization", None), ("authorization", Some("Bearer x")), ("expires", None)] {
            world.advance(60);
            world.edit_target("kubectl", |secret| {
                let data = secret.data.get_or_insert_default();
                data.remove(key);
                data.extend(value.map(|value| (key.to_owned(), ByteString(value.into()))));
            });
            if restarts {
                world.restart();
            }
            world.settle();
            assert_eq!(world.target.clone().unwrap().data, wanted, "{key}, {value:?}");
        }
        assert_eq!(world.grants, []);
        world.assert_well();
    }
}

#[test]
fn an_incomplete_target_is_made_up_for_as_soon_as_the_allowance_of_mends_lets_it() {
    let mut world = scene();
    world.respec(|spec| spec.authorization_key = Some("authorization".into()));
    world.settle();
    for _ in 0..20 {
        world.edit_target("kubectl", |secret| drop(secret.data.get_or_insert_default().remove("authorization")));
        world.settle();
    }
    assert!(!world.target.clone().unwrap().data.unwrap().contains_key("authorization"), "it is not mended for ever");
    world.now = world.again_at.unwrap();
    world.settle();
    assert!(world.target.clone().unwrap().data.unwrap().contains_key("authorization"));
    assert_eq!(world.grants, []);
}

#[test]
fn what_a_token_was_asked_for_with_is_not_made_up_while_a_change_is_unanswered() {
    let strip = |world: &mut World| world.edit_target("kubectl", |secret| secret.metadata.annotations = None);
    let mut world = rejected();
    strip(&mut world);
    world.settle();
    assert_eq!((world.condition(ConditionType::Refreshed), world.grants.len()), (("False", "InvalidClient"), 0));
    world.answer = Answer::New(HOUR_SECS);
    world.now = world.status.next_attempt_at.unwrap();
    world.settle();
    assert_eq!(world.grants.len(), 1, "the rotated client is tried again");
    world.assert_well();

    let mut world = scene();
    world.respec(|spec| (spec.suspend, spec.scope) = (true, "other".into()));
    world.settle();
    strip(&mut world);
    world.settle();
    assert_eq!(world.grants, []);
    world.respec(|spec| spec.suspend = false);
    world.settle();
    assert_eq!(world.grants.len(), 1, "no token was asked for with that scope");
    world.assert_well();

    // While it waits for its turn nothing has come of it either.
    let mut world = scene();
    world.respec(|spec| spec.scope = "other".into());
    let waiting = world.observe(true);
    assert_eq!(plan(&waiting), Plan::Mint(Cause::ScopeChanged));
    let Plan::Rest(report, _) = account_while_asking(&waiting) else { panic!("it waits") };
    world.status = report.status(&world.status, world.now);
    assert_eq!(world.condition(ConditionType::Refreshed), ("Unknown", "Pending"));
    strip(&mut world);
    world.settle();
    assert_eq!(world.grants.len(), 1, "no token was asked for with that scope");
    world.assert_well();
}

#[test]
fn a_change_is_not_forgotten_while_what_was_stripped_cannot_be_put_back() {
    let strip = |world: &mut World| world.edit_target("kubectl", |secret| secret.metadata.annotations = None);
    let changes: [Change; 2] = [
        ("another scope", |w| w.respec(|spec| spec.scope = "other".into())),
        ("another client", |w| w.set_credentials("id", "other")),
    ];
    for (name, change) in changes {
        // Its write is refused.
        let mut world = scene();
        strip(&mut world);
        world.refuses_writes = true;
        world.settle();
        assert_eq!(world.condition(ConditionType::Refreshed), ("False", "TargetForbidden"), "{name}");
        change(&mut world);
        world.settle();
        world.refuses_writes = false;
        while let Some(at) = world.again_at.filter(|at| *at < add(start(), secs(1700))) {
            world.now = at;
            world.settle();
        }
        assert_eq!(world.grants.len(), 1, "{name}, refused");
        world.assert_well();

        // It has to wait, because someone strips it again and again.
        let mut world = scene();
        strip(&mut world);
        for _ in 0..10 {
            world.mends.take(world.now);
        }
        assert!(matches!(plan(&world.observe(true)), Plan::Rest(..)), "{name}");
        change(&mut world);
        world.settle();
        assert_eq!(world.grants.len(), 1, "{name}, waiting");
        world.advance(300);
        world.settle();
        assert_eq!(world.grants.len(), 1, "{name}, waiting");
        world.assert_well();
    }
}

#[test]
fn a_token_that_was_written_and_never_told_of_is_lost_with_its_secret() {
    let mut world = World::new();
    assert_eq!(plan(&world.observe(true)), Plan::Mint(Cause::First));
    let written = |world: &World| Observed { has_written: true, ..world.observe(true) };
    assert_eq!(plan(&written(&world)), Plan::Mint(Cause::Lost), "from the allowance");
    for _ in 0..3 {
        world.replacements.take(world.now);
    }
    assert!(matches!(plan(&written(&world)), Plan::Rest(..)));
}

#[test]
fn without_the_secrets_it_is_told_what_is_no_longer_so_and_nothing_that_nobody_knows() {
    let failure = || a_failure(Reason::SecretsUnavailable, start());
    let told = |o: &Observed| {
        account_without_secrets(o, failure()).map(|report| (report.ready.reason, report.refreshed.reason))
    };
    let living = scene().observe(false);
    assert_eq!(told(&living), None, "the token lives");

    let mut world = scene();
    world.advance(5000);
    let ended = world.observe(false);
    assert_eq!(told(&ended), Some((Reason::TokenExpired, Reason::SecretsUnavailable)));
    let known = Observed { failure: Some(a_failure(Reason::EndpointUnavailable, start())), ..ended.clone() };
    assert_eq!(told(&known), Some((Reason::TokenExpired, Reason::EndpointUnavailable)), "how the last attempt went");

    let gone = Observed { target: Target::Missing, ..living.clone() };
    assert_eq!(told(&gone), Some((Reason::SecretsUnavailable, Reason::SecretsUnavailable)));
    let new = World::new().observe(false);
    assert_eq!(told(&new), Some((Reason::SecretsUnavailable, Reason::SecretsUnavailable)));

    let unfinished = Observed {
        status: MoneyGoCredentialStatus { issued_at: Some(at("2020-01-01T00:00:00Z")), ..ended.status.clone() },
        ..living.clone()
    };
    assert_eq!(told(&unfinished), None, "a later token was written, and not told of yet");
    let absent = Observed { credentials: Credentials::Missing, ..new.clone() };
    let report = account_without_secrets(&absent, failure()).unwrap();
    assert_eq!((report.refreshed.reason, report.failure), (Reason::CredentialsNotFound, None), "no attempt was made");
    let outage = Observed { outage: true, ..ended.clone() };
    assert_eq!(told(&outage), Some((Reason::TokenExpired, Reason::EndpointUnavailable)));

    let untrusted = |o: &Observed| {
        let Target::Seen { facts, .. } = o.target.clone() else { panic!("it was seen") };
        Observed { target: Target::Seen { facts, trusted: false }, ..o.clone() }
    };
    assert_eq!(told(&untrusted(&living)), None, "it may still hold what the status says");
    assert!(told(&untrusted(&ended)).is_some(), "what the status told of has ended");
}

// ---- Ending, and standing by -----------------------------------------------------------------------------------------

#[test]
fn what_is_ending_is_neither_minted_for_nor_written() {
    let changes: [Change; 5] = [
        ("nothing", |_| {}),
        ("due", |w| w.advance(2000)),
        ("deleted", World::delete_target),
        ("label", |w| w.edit_target("kubectl", |s| s.metadata.labels = None)),
        ("request", |w| w.refresh_requested = Some("now".into())),
    ];
    for (name, change) in changes {
        for policy in [DeletionPolicy::Delete, DeletionPolicy::Retain] {
            let mut world = scene();
            world.respec(|spec| spec.deletion_policy = policy);
            world.ending = true;
            change(&mut world);
            for live in [false, true] {
                assert_eq!(plan(&world.observe(live)), Plan::Stand, "{name} {policy:?}");
            }
        }
    }
    let mut broken = scene();
    (broken.ending, broken.spec) = (true, Err(SpecProblem::Scope));
    assert_eq!(plan(&broken.observe(false)), Plan::Stand);
}

#[test]
fn a_late_answer_goes_only_to_a_retained_target_that_is_there() {
    let retain = |world: &mut World| world.spec().deletion_policy = DeletionPolicy::Retain;
    let mut world = holding();
    world.ending = true;
    assert_eq!(plan(&world.observe(false)), Plan::Look);
    assert_eq!(plan(&world.observe(true)), Plan::Forget, "Delete: the target goes, too");

    let mut world = holding();
    retain(&mut world);
    world.ending = true;
    assert_eq!(plan(&world.observe(false)), Plan::Look);
    assert_eq!(plan(&world.observe(true)), Plan::Store);
    let (token, ..) = world.held.clone().unwrap();
    world.settle();
    assert_eq!((world.token(), world.status_writes), (Some(token), 0), "the status is not written");

    let mut orphaned = holding();
    orphaned.ending = true;
    orphaned.edit_target("kubectl", |s| s.metadata.owner_references = None);
    let o = orphaned.observe(true);
    assert_eq!(
        (plan(&o), is_orphaned(&o)),
        (Plan::Store, true),
        "--cascade=orphan: it stays, and names the object still"
    );

    let mut gone = holding();
    retain(&mut gone);
    (gone.ending, gone.target) = (true, None);
    assert_eq!(plan(&gone.observe(true)), Plan::Forget, "no first write");

    let mut foreign = holding();
    retain(&mut foreign);
    foreign.ending = true;
    foreign.edit_target("helm", |s| (s.metadata.owner_references, s.metadata.annotations) = (None, None));
    assert_eq!(plan(&foreign.observe(true)), Plan::Forget);

    let mut late = holding();
    retain(&mut late);
    late.ending = true;
    late.advance(3601);
    assert_eq!(plan(&late.observe(true)), Plan::Forget);

    let mut broken = holding();
    (broken.ending, broken.spec) = (true, Err(SpecProblem::Scope));
    // Whatever else is held: with a spec that cannot be read nobody knows whether the target outlives it.
    let mut o = broken.observe(true);
    o.held = holding().observe(true).held;
    assert_eq!(plan(&o), Plan::Forget);
}

#[test]
fn a_replica_that_does_not_lead_stands_by() {
    for mut world in [World::new(), scene(), rejected()] {
        world.leading = false;
        world.advance(5000);
        for live in [false, true] {
            assert_eq!(plan(&world.observe(live)), Plan::Stand);
        }
    }
}

// ---- Failures --------------------------------------------------------------------------------------------------------

#[test]
fn a_failure_stands_until_its_time_or_until_something_changes_that_may_mend_it() {
    let mut world = World::new();
    world.answer = Answer::Rejected;
    world.pass_until_one_fails();
    world.settle();
    world.assert_conditions(("False", "InvalidClient"), ("False", "InvalidClient"), "True");
    let o = world.observe(false);
    assert!(o.failure.is_some());
    let judged = |o: &Observed, past: Past<'_>| {
        let mut o = o.clone();
        judge_failure(&mut o, &past);
        (o.failure, o.hurried)
    };
    let standing = |o: &Observed, past| judged(o, past).0;
    let none = Past::default();
    assert!(standing(&o, Past { changed: true, ..none }).is_none(), "the request or the target is another");
    let generation = Observed { generation: Some(2), ..o.clone() };
    assert!(standing(&generation, none).is_none(), "the spec is another");
    let credentials = Observed { credentials: Credentials::Seen(Version::default()), ..o.clone() };
    assert!(standing(&credentials, none).is_none(), "the credentials are others");
    let failed_at = o.failure.as_ref().map(|failure| failure.at);
    let same_client = Past { attempted_at: failed_at, same_client: true, ..none };
    assert!(standing(&credentials, same_client).is_some(), "all but what it was made with");
    let earlier = Past { attempted_at: failed_at.map(|at| add(at, secs(-1))), ..same_client };
    assert!(standing(&credentials, earlier).is_none(), "what another attempt was made with");
    let next_attempt_at = o.failure.as_ref().map(|failure| failure.next_attempt_at);
    assert_eq!(judged(&credentials, none).1, next_attempt_at);
    assert_eq!(judged(&o, none).1, None, "it stands");
    let known = Past { hurried: next_attempt_at, ..none };
    let due = Observed { now: add(o.now, secs(7 * 3600)), ..credentials.clone() };
    assert_eq!(judged(&due, known).1, None, "the next attempt would be due");
    let well = Observed { status: scene().status, ..credentials };
    assert_eq!(judged(&well, known), (None, None), "another replica had a token since");
    let missing = Observed { credentials: Credentials::Missing, ..o.clone() };
    assert!(standing(&missing, none).is_some(), "credentials that are gone mend nothing");
    let healed = Observed { status: MoneyGoCredentialStatus::default(), ..o.clone() };
    assert!(standing(&healed, none).is_none());
    let later = Observed { now: add(o.now, secs(60)), ..o.clone() };
    assert_eq!(standing(&later, none), o.failure, "time alone changes nothing");
}

/// Without a token, with the client refused a moment ago.
fn refused_at_first() -> World {
    let mut world = World::new();
    world.answer = Answer::Rejected;
    world.settle();
    assert_eq!(world.requests, 1);
    world.forget_the_past();
    world
}

#[test]
fn a_refused_client_is_asked_for_again_for_what_changes_and_not_for_what_only_seems_to() {
    let mut world = refused_at_first();
    let next_attempt_at = world.status.next_attempt_at;
    for _ in 0..5 {
        // A label of the Secret, say.
        world.set_credentials("id", "secret");
        world.settle();
        world.advance(20);
    }
    assert_eq!((world.requests, world.status.next_attempt_at), (0, next_attempt_at));
    world.set_credentials("id", "corrected");
    world.answer = Answer::New(HOUR_SECS);
    world.settle();
    assert_eq!(world.grants, [Cause::First]);
    world.assert_well();
}

#[test]
fn a_refused_client_whose_object_rests_is_not_looked_at_each_time() {
    let mut world = refused_at_first();
    world.respec(|spec| spec.suspend = true);
    world.settle();
    world.looks = 0;
    world.settle();
    world.advance(60);
    world.settle();
    assert_eq!((world.looks, world.requests), (0, 0));
}

#[test]
fn a_change_makes_no_attempt_later_than_it_would_have_been() {
    let o = refused_at_first().observe(false);
    let (soon, later) = (add(o.now, secs(3)), add(o.now, secs(9)));
    let hurried = Observed { failure: None, hurried: Some(soon), changed_at: later, ..o };
    let Plan::Rest(_, again_at) = plan_grant(&hurried, hurried.spec.as_ref().unwrap(), Cause::First) else {
        panic!("it is held back");
    };
    assert_eq!(again_at, Some(soon));
    let due = Observed { now: soon, ..hurried.clone() };
    assert_eq!(plan_grant(&due, due.spec.as_ref().unwrap(), Cause::First), Plan::LookToMint);
    assert_eq!(allowances(&hurried, Cause::First), [Allowed::Always, Allowed::AsChange]);
    assert_eq!(allowances(&due, Cause::First), [Allowed::Always; 2]);
    let outage = Observed { outage: true, ..hurried };
    assert_eq!(allowances(&outage, Cause::First), [Allowed::Always; 2], "one asks for all");
}

#[test]
fn changes_one_after_the_other_make_three_attempts_that_fail_and_then_one_in_ten_seconds() {
    let changes: [fn(&mut World, usize); 3] = [
        |world, number| world.set_credentials("id", &format!("wrong {number}")),
        |world, number| world.refresh_requested = Some(format!("request {number}")),
        |world, number| world.respec(|spec| spec.scope = format!("scope-{number}")),
    ];
    for change in changes {
        let mut world = refused_at_first();
        for number in 0..40 {
            change(&mut world, number);
            world.settle();
            world.advance(1);
        }
        assert!((3..=7).contains(&world.requests), "{} requests", world.requests);
    }
}

#[test]
fn a_failure_is_over_once_a_token_is_there_that_the_status_does_not_know_of() {
    let mut world = scene();
    world.answer = Answer::Rejected;
    world.advance(2000);
    world.pass_until_one_fails();
    world.answer = Answer::New(HOUR_SECS);
    world.advance(600);
    let failing = world.status.clone();
    assert!(failing.failed_attempts.is_some());
    world.settle();
    world.assert_well();
    // Whoever wrote the Secret died before it wrote the status.
    world.restart();
    world.status = failing;
    world.forget_the_past();
    assert_eq!(world.observe(false).failure, None, "whatever its time");
    world.settle();
    assert_eq!(world.grants, []);
    world.assert_well();
}

#[test]
fn a_failure_that_the_status_does_not_tell_of_yet_stands_like_any_other() {
    let mut world = World::new();
    world.answer = Answer::Rejected;
    world.pass_until_one_fails();
    world.settle();
    let o = world.observe(false);
    let told = o.failure.clone().unwrap();
    let o = Observed { now: add(told.at, secs(301)), ..o };
    let second = Failure { at: add(told.at, secs(300)), attempts: 2, ..told.clone() };
    let untold =
        Failed { failure: second.clone(), generation: o.generation, credentials: o.credentials.version().cloned() };
    let judged = |o: &Observed, past: Past<'_>| {
        let mut o = o.clone();
        judge_failure(&mut o, &past);
        o.failure.map(|failure| failure.attempts)
    };
    let standing = |o: &Observed, untold: &Failed| judged(o, Past { untold: Some(untold), ..Past::default() });
    assert_eq!(standing(&o, &untold), Some(2), "the later one counts");
    let away = Failure { reason: Reason::EndpointUnavailable, ..told.clone() };
    let since = |at, failure: Failure| {
        let untold = Failed { failure, ..untold.clone() };
        judged(&o, Past { untold: Some(&untold), recovered_at: Some(at), ..Past::default() })
    };
    let back_at = add(told.at, secs(299));
    assert_eq!(since(back_at, Failure { at: second.at, attempts: 2, ..away.clone() }), Some(2), "it failed after that");
    let at_once = add(told.at, secs(300) + SignedDuration::from_millis(1));
    assert_eq!(since(at_once, second.clone()), Some(2), "it was no failure of the endpoint's");
    assert_eq!(
        since(at_once, Failure { at: second.at, attempts: 2, ..away.clone() }),
        None,
        "the endpoint is back since"
    );
    assert_eq!(since(add(o.now, secs(1)), Failure { at: second.at, attempts: 2, ..away }), Some(2), "by a clock ahead");
    let older = Failed { failure: Failure { at: add(told.at, secs(-1)), ..second }, ..untold.clone() };
    assert_eq!(standing(&o, &older), Some(told.attempts));
    let silent = Observed { status: MoneyGoCredentialStatus::default(), ..o.clone() };
    assert_eq!(standing(&silent, &untold), Some(2), "nothing could be told at all");
    let corrected = Observed { credentials: Credentials::Seen(Version::default()), ..silent.clone() };
    assert_eq!(standing(&corrected, &untold), None, "the credentials are others");
    let issued_at = Some(add(untold.failure.at, secs(1)));
    let served =
        Observed { status: MoneyGoCredentialStatus { issued_at, ..MoneyGoCredentialStatus::default() }, ..silent };
    assert_eq!(standing(&served, &untold), None, "another replica had a token since");
}

#[test]
fn a_failure_with_nothing_left_to_try_is_over_as_its_time_comes() {
    let mut world = scene();
    let told = |world: &World, next_in_secs: i64| {
        let o = world.observe(true);
        let next_attempt_at = add(o.now, secs(next_in_secs));
        let (reason, message) = (Reason::EndpointUnavailable, "away".to_owned());
        let failure = Failure { reason, message, at: add(o.now, secs(-60)), attempts: 3, next_attempt_at };
        let hour = add(o.now, secs(3600));
        let Plan::Rest(report, _) = plan(&Observed { failure: Some(failure), mend_at: hour, ..o }) else {
            panic!("there is nothing to do")
        };
        report.failure.is_some()
    };
    assert!(told(&world, 1), "it is not time yet");
    assert!(!told(&world, -1));
    world.edit_target("evil", |secret| secret.metadata.labels = None);
    assert!(told(&world, -1), "a label is to be put back still");
}

#[test]
fn a_failure_that_is_told_late_is_told_with_the_credentials_that_it_was_met_with() {
    let mut world = World::new();
    world.answer = Answer::Rejected;
    world.pass_until_one_fails();
    // The status was not taken: what is known of the attempt is in memory alone, and nothing is read again for it.
    let o = world.observe(false);
    let version = Version { uid: "c".into(), resource_version: "7".into() };
    let o = Observed {
        credentials: Credentials::Seen(version.clone()),
        status: MoneyGoCredentialStatus::default(),
        failure: o.failure,
        ..world.observe(false)
    };
    let Plan::Rest(report, _) = account(&o) else { panic!("an account is a rest") };
    assert_eq!(report.credentials, Some(version), "or their correction is no news");
}

#[test]
fn a_failure_is_over_where_its_time_has_come_and_a_look_shows_nothing_to_try() {
    for (live, after_secs, stands) in
        [(true, -1, false), (true, 0, false), (true, 1, true), (false, -1, true), (false, 0, true), (false, 1, true)]
    {
        let mut o = scene().observe(live);
        o.failure = Some(a_failure(Reason::InvalidClient, add(o.now, secs(after_secs))));
        let Plan::Rest(report, _) = plan(&o) else { panic!("there is something to do") };
        assert_eq!(report.failure.is_some(), stands, "live: {live}, its time is in {after_secs} s");
    }
}

#[test]
fn each_change_that_may_mend_a_failure_makes_an_attempt_at_once() {
    let changes: [Change; 3] = [
        ("credentials", |w| w.set_credentials("id", "right")),
        ("spec", |w| w.respec(|spec| spec.scope = "read".into())),
        ("request", |w| w.refresh_requested = Some("now".into())),
    ];
    for (name, change) in changes {
        for has_token in [false, true] {
            let mut world = if has_token { rejected() } else { World::new() };
            world.answer = Answer::Rejected;
            world.pass_until_one_fails();
            world.settle();
            world.forget_the_past();
            world.answer = Answer::New(HOUR_SECS);
            change(&mut world);
            world.settle();
            assert_eq!(world.grants.len(), 1, "{name}, token: {has_token}");
            world.assert_well();
        }
    }
}

#[test]
fn a_next_attempt_that_was_edited_far_away_stops_nothing() {
    let mut world = rejected();
    world.answer = Answer::New(HOUR_SECS);
    world.status.next_attempt_at = Some(at("3000-01-01T00:00:00Z"));
    world.settle();
    assert_eq!(world.grants.len(), 1);
    world.assert_well();
}

#[test]
fn what_failed_by_a_clock_that_was_hours_ahead_is_tried_again_once_the_clock_is_right() {
    let mut world = rejected();
    world.answer = Answer::New(HOUR_SECS);
    let ahead = |at: Option<Timestamp>| at.map(|at| at + SignedDuration::from_hours(4));
    world.status.last_failure_time = ahead(world.status.last_failure_time);
    world.status.next_attempt_at = ahead(world.status.next_attempt_at);
    world.settle();
    assert_eq!(world.grants.len(), 1);
    world.assert_well();
}

#[test]
fn failures_in_a_row_are_counted_and_ready_stays_true_until_the_token_ends() {
    let mut world = scene();
    world.answer = Answer::Unavailable;
    world.advance(2000);
    let token = world.token();
    let expires_at = world.status.expires_at.unwrap();
    let mut attempts = 0;
    while world.now < expires_at {
        world.pass_until_one_fails();
        attempts += 1;
        assert!(attempts < 100, "it does not come nearer to the end");
        assert_eq!(world.status.failed_attempts, Some(attempts));
        world.settle();
        assert_eq!(world.condition(ConditionType::Ready), ("True", "TokenValid"));
        let next = world.again_at.unwrap();
        let half = expires_at.duration_since(world.now) / 2;
        assert!(next > world.now && next.duration_since(world.now) <= half.max(secs(1)), "{next}");
        world.now = next;
    }
    assert!(attempts > 5);
    world.settle_failing();
    world.assert_conditions(("False", "TokenExpired"), ("False", "EndpointUnavailable"), "False");
    assert_eq!((world.token(), world.writes), (token, 0), "the last good token is left alone");
    world.answer = Answer::New(HOUR_SECS);
    world.now = world.status.next_attempt_at.unwrap();
    world.settle();
    assert_eq!(world.status.last_failure_time, None);
    world.assert_well();
}

#[test]
fn an_outage_is_told_only_where_there_is_no_token() {
    let mut world = World::new();
    world.outage = true;
    let Plan::Rest(report, _) = account(&world.observe(false)) else { panic!("an account is a rest") };
    assert_eq!(report.ready.reason, Reason::EndpointUnavailable);
    assert_eq!((report.refreshed.state, report.refreshed.reason), (State::False, Reason::EndpointUnavailable));
    let mut world = scene();
    world.outage = true;
    world.settle();
    world.assert_well();
    world.advance(5000);
    let Plan::Rest(report, _) = account(&world.observe(false)) else { panic!("an account is a rest") };
    assert_eq!((report.ready.state, report.ready.reason), (State::False, Reason::TokenExpired));
    assert_eq!((report.refreshed.state, report.refreshed.reason), (State::False, Reason::EndpointUnavailable));
}

#[test]
fn an_object_that_waits_for_leave_is_pending() {
    let Plan::Rest(report, _) = account(&World::new().observe(false)) else { panic!("an account is a rest") };
    assert_eq!((report.ready.state, report.ready.reason), (State::False, Reason::Pending));
    assert_eq!((report.refreshed.state, report.refreshed.reason), (State::Unknown, Reason::Pending));
    assert_eq!(report.stalled.state, State::False);
    let mut world = scene();
    world.delete_target();
    let Plan::Rest(report, _) = account(&world.observe(false)) else { panic!("an account is a rest") };
    assert_eq!(report.ready.reason, Reason::Pending, "lost, and nobody is to blame for it yet");
}

#[test]
fn what_a_success_says_of_the_next_refresh() {
    let message = |world: &World| condition(&world.status, ConditionType::Refreshed).unwrap().message.clone();
    let mut world = scene();
    world.respec(|spec| spec.renew = Renew::Before(Duration::from_hours(2)));
    world.settle();
    assert!(message(&world).contains("nine tenths"), "{}", message(&world));

    let mut world = scene();
    let (token, mut issue) = (world.token().unwrap(), an_issue());
    issue.life = repeated(Life::new(world.now, Duration::from_mins(50)));
    world.write(&token, &issue);
    world.settle();
    assert!(message(&world).contains("halfway"), "{}", message(&world));
    assert_eq!(world.status.refresh_at, Some(add(world.now, secs(1500))));
    assert_eq!(world.grants, []);

    let mut world = scene();
    assert_eq!(message(&world), "the last request gave a token");
    world.spec().renew = Renew::Before(Duration::from_hours(2));
    let life = Life::new(start(), Duration::from_secs(HOUR_SECS));
    let said = succeeded(&world.observe(true), repeated(life));
    assert!(said.contains("halfway"), "what is cut does not matter for it: {said}");
}

fn repeated(life: Life) -> Life {
    Life { repeated: Some(life.expires_at), ..life }
}

fn an_issue() -> Issue {
    let key = DigestKey::new(&[7; 32]).unwrap();
    let world = World::new();
    Issue {
        life: Life::new(start(), Duration::from_secs(HOUR_SECS)),
        scope: "api".into(),
        refresh_handled: None,
        credentials: Version::of(&world.credentials.unwrap().metadata),
        credentials_digest: Some(key.of_credentials("id", "secret")),
    }
}

#[test]
fn the_most_urgent_is_what_ends_first_and_a_new_object_counts_from_its_creation() {
    let new = World::new().observe(false);
    assert_eq!(urgency(&new), Urgency::New(start()));
    assert_eq!(urgency(&Observed { created: None, ..new.clone() }), Urgency::New(new.now));
    let mut world = scene();
    assert_eq!(urgency(&world.observe(false)), Urgency::Ends(add(start(), secs(3600))));
    let Target::Read { facts, .. } = world.observe(true).target else { panic!("it was read") };
    let target = Target::Read { facts, found: Found::Altered, complete: true, immutable: false };
    let lost = Observed { target, ..world.observe(true) };
    assert_eq!(urgency(&lost), Urgency::New(start()), "what its annotations tell of is gone");
    world.annotate(annotation::EXPIRES_AT, Some("3000-01-01T00:00:00Z"));
    assert_eq!(urgency(&world.observe(false)), Urgency::New(start()), "no lifetime above the cap is believed");
}

#[test]
fn every_cause_has_a_name_and_an_allowance() {
    let causes = [
        (Cause::First, Allowed::Always),
        (Cause::Due, Allowed::Always),
        (Cause::Retry, Allowed::Always),
        (Cause::Lost, Allowed::AsReplacement),
        (Cause::Settle, Allowed::AsReplacement),
        (Cause::ScopeChanged, Allowed::AsChange),
        (Cause::CredentialsChanged, Allowed::AsChange),
        (Cause::Requested, Allowed::AsChange),
    ];
    for (cause, allowed) in causes {
        assert_eq!((cause.as_str(), cause.allowance()), (format!("{cause:?}").as_str(), allowed));
    }
}

// ---- What is told of a target that was there before ------------------------------------------------------------------

/// An object that was made after its target got its token, and knows nothing of it.
fn resuming() -> Observed {
    let world = scene();
    let created = Some(add(start(), secs(60)));
    Observed { created, status: MoneyGoCredentialStatus::default(), ..world.observe(true) }
}

#[test]
fn a_token_from_before_the_object_is_resumed() {
    let o = resuming();
    assert!(resumes(&o) && adopts(&o));
    let issued_at = o.target.facts().unwrap().marks.life.unwrap().issued_at;
    assert!(!resumes(&Observed { created: Some(issued_at), ..o.clone() }), "it was issued for this object");
    assert!(!resumes(&Observed { created: None, ..o.clone() }));
    assert!(!resumes(&Observed { claimed: false, ..o.clone() }), "it is not ours");
    assert!(!resumes(&Observed { target: Target::Missing, ..o.clone() }));
    let status = MoneyGoCredentialStatus { issued_at: Some(issued_at), ..o.status.clone() };
    assert!(!resumes(&Observed { status, ..o }), "the object knows of it, and so did those who were told");
}

#[test]
fn a_secret_that_was_anothers_is_adopted_by_the_first_token() {
    let mut world = World::new();
    world.put_target("helm", Secret::default());
    let foreign = world.observe(true);
    assert!(!adopts(&Observed { claimed: false, ..foreign.clone() }));
    assert!(adopts(&Observed { claimed: true, ..foreign }) && !resumes(&world.observe(true)));
    assert!(!adopts(&World::new().observe(true)), "there is none");
    let mut world = scene();
    assert!(!adopts(&world.observe(true)), "it is ours already");
    world.annotate(annotation::ISSUED_AT, None);
    assert!(!adopts(&world.observe(true)), "we own it, whatever is written on it");
}
