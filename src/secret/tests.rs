use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::FieldsV1;
use serde_json::{Value, json};

use super::*;
use crate::schedule::Renew;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn life() -> Life {
    Life::new(at("2026-01-01T00:00:00Z"), Duration::from_hours(1))
}

fn owner() -> Owner {
    Owner { namespace: "shop".into(), name: "payments".into(), uid: "uid-1".into() }
}

fn key() -> DigestKey {
    DigestKey::new(&[7; 32]).unwrap()
}

fn spec() -> Resolved {
    Resolved {
        credentials: "client".into(),
        client_id_key: "client_id".into(),
        client_secret_key: "client_secret".into(),
        scope: "api".into(),
        target: "payments".into(),
        access_token_key: "access_token".into(),
        authorization_key: None,
        expires_at_key: None,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        deletion_policy: DeletionPolicy::Delete,
        renew: Renew::ThirdLeft,
        suspend: false,
    }
}

fn issue() -> Issue {
    Issue {
        life: life(),
        scope: "api".into(),
        refresh_handled: Some("r1".into()),
        credentials: Version { uid: "c".into(), resource_version: "5".into() },
        credentials_digest: Some(key().of_credentials("id", "secret")),
    }
}

fn strings(value: Value) -> BTreeMap<String, String> {
    serde_json::from_value(value).unwrap()
}

fn composed(live: Option<&Secret>, spec: &Resolved) -> Secret {
    let issue = issue();
    let content = Content { token: "the-token", issue: &issue };
    compose(live, &owner(), spec, content, Some(&key()), Ownership::AsWanted)
}

fn text(secret: &Secret, key: &str) -> Option<String> {
    let value = secret.data.as_ref()?.get(key)?;
    Some(String::from_utf8(value.0.clone()).unwrap())
}

/// As the API server shows it after we wrote it.
fn sealed(mut secret: Secret, writers: &[(&str, &[&str])]) -> Secret {
    let entry = |(manager, keys): &(&str, &[&str])| {
        let fields: serde_json::Map<String, Value> = keys.iter().map(|key| (format!("f:{key}"), json!({}))).collect();
        ManagedFieldsEntry {
            manager: Some((*manager).to_owned()),
            fields_v1: Some(FieldsV1(json!({ "f:data": fields, "f:type": {} }))),
            ..ManagedFieldsEntry::default()
        }
    };
    secret.metadata.managed_fields = Some(writers.iter().map(entry).collect());
    secret
}

fn reference(kind: &str, uid: &str, controller: Option<bool>) -> OwnerReference {
    let api_version = if kind == "MoneyGoCredential" { "money-go.com/v1alpha1" } else { "apps/v1" };
    OwnerReference {
        api_version: api_version.into(),
        kind: kind.into(),
        name: format!("name-of-{uid}"),
        uid: uid.into(),
        controller,
        block_owner_deletion: None,
    }
}

const BOTH: Digests = Digests { token: true, credentials: true };

/// Every combination of what a spec can ask of the target.
fn specs() -> Vec<Resolved> {
    let mut all = Vec::new();
    for bits in 0..64_u32 {
        let bit = |n: u32| bits >> n & 1 == 1;
        all.push(Resolved {
            access_token_key: if bit(0) { "token" } else { "access_token" }.into(),
            authorization_key: bit(1).then(|| "authorization".into()),
            expires_at_key: bit(2).then(|| "expires".into()),
            labels: if bit(3) {
                strings(json!({"team": "a", "app.kubernetes.io/instance": "x"}))
            } else {
                BTreeMap::new()
            },
            annotations: if bit(4) { strings(json!({"reloader": "true"})) } else { BTreeMap::new() },
            deletion_policy: if bit(5) { DeletionPolicy::Retain } else { DeletionPolicy::Delete },
            ..spec()
        });
    }
    all
}

#[test]
fn what_is_composed_is_dressed_and_composing_it_again_changes_nothing() {
    for spec in specs() {
        let first = composed(None, &spec);
        let facts = Facts::of(&first.metadata);
        assert!(is_dressed(&facts, &owner(), &spec, life(), BOTH, false), "{spec:?}");
        assert_eq!(composed(Some(&first), &spec), first, "{spec:?}");
        assert_eq!(facts.marks.life, Some(life()));
        assert_eq!(facts.marks.credentials, Some(issue().credentials));
        assert_eq!(stored_token(&first, &facts, &spec), Some("the-token"));
    }
}

#[test]
fn what_is_there_is_the_same_only_with_all_that_we_write() {
    let wanted = composed(None, &spec());
    let mut read = wanted.clone();
    read.metadata.resource_version = Some("9".into());
    assert!(is_same(&read, &wanted));
    let changes: [fn(&mut Secret); 4] = [
        |secret| secret.data = None,
        |secret| secret.metadata.labels = None,
        |secret| secret.metadata.annotations = None,
        |secret| secret.metadata.owner_references = None,
    ];
    for (place, change) in changes.into_iter().enumerate() {
        let mut live = wanted.clone();
        change(&mut live);
        assert!(!is_same(&live, &wanted), "change {place}");
    }
}

#[test]
fn from_any_spec_to_any_other_nothing_of_the_former_stays_and_nothing_of_others_goes() {
    let all = specs();
    for (n, from) in all.iter().enumerate().step_by(3) {
        for to in all.iter().skip(n % 5).step_by(5) {
            let mut before = composed(None, from);
            before.data.get_or_insert_default().insert("theirs".into(), ByteString(b"kept".to_vec()));
            before.metadata.labels.get_or_insert_default().insert("their-label".into(), "kept".into());
            before.metadata.annotations.get_or_insert_default().insert("their-annotation".into(), "kept".into());
            before.metadata.owner_references.get_or_insert_default().push(reference("ConfigMap", "other", None));
            let after = composed(Some(&before), to);
            let mut clean = composed(None, to);
            clean.data.get_or_insert_default().insert("theirs".into(), ByteString(b"kept".to_vec()));
            clean.metadata.labels.get_or_insert_default().insert("their-label".into(), "kept".into());
            clean.metadata.annotations.get_or_insert_default().insert("their-annotation".into(), "kept".into());
            assert_eq!(after.data, clean.data, "{from:?} → {to:?}");
            assert_eq!(after.metadata.labels, clean.metadata.labels, "{from:?} → {to:?}");
            assert_eq!(after.metadata.annotations, clean.metadata.annotations, "{from:?} → {to:?}");
            let owners = after.metadata.owner_references.clone().unwrap_or_default();
            assert!(owners.contains(&reference("ConfigMap", "other", None)), "{from:?} → {to:?}");
            assert_eq!(owners.len(), 1 + usize::from(to.deletion_policy == DeletionPolicy::Delete));
            assert!(is_dressed(&Facts::of(&after.metadata), &owner(), to, life(), BOTH, false), "{from:?} → {to:?}");
        }
    }
}

#[test]
fn the_target_carries_what_its_object_asks_for() {
    let spec = Resolved {
        authorization_key: Some("header".into()),
        expires_at_key: Some("until".into()),
        labels: strings(json!({"team": "a"})),
        ..spec()
    };
    let secret = composed(None, &spec);
    assert_eq!(text(&secret, "access_token").as_deref(), Some("the-token"));
    assert_eq!(text(&secret, "header").as_deref(), Some("Bearer the-token"));
    assert_eq!(text(&secret, "until").as_deref(), Some("2026-01-01T01:00:00Z"));
    assert_eq!(secret.type_.as_deref(), Some("Opaque"));
    assert_eq!(
        (secret.metadata.name.as_deref(), secret.metadata.namespace.as_deref()),
        (Some("payments"), Some("shop"))
    );
    let labels = secret.metadata.labels.unwrap();
    assert_eq!(labels["app.kubernetes.io/managed-by"], "moneygo-operator");
    assert_eq!(labels["app.kubernetes.io/name"], "moneygo-token");
    assert_eq!(labels["team"], "a");
    let owners = secret.metadata.owner_references.unwrap();
    assert_eq!(owners.len(), 1);
    assert_eq!((owners[0].controller, owners[0].block_owner_deletion), (Some(true), None));
    let annotations = secret.metadata.annotations.unwrap();
    assert_eq!(annotations[annotation::ADOPT], "payments");
    let shown = format!("{annotations:?}");
    assert!(!shown.contains("the-token") && !shown.contains("\"secret\""), "{shown}");
}

#[test]
fn metadata_that_lacks_anything_is_not_dressed() {
    let spec =
        Resolved { labels: strings(json!({"team": "a"})), annotations: strings(json!({"reloader": "true"})), ..spec() };
    let whole = composed(None, &spec);
    let dressed = |secret: &Secret, digests, refused| {
        is_dressed(&Facts::of(&secret.metadata), &owner(), &spec, life(), digests, refused)
    };
    assert!(dressed(&whole, BOTH, false));
    let optional = [annotation::REFRESH_HANDLED];
    for key in whole.metadata.annotations.clone().unwrap().into_keys() {
        let mut lacking = whole.clone();
        lacking.metadata.annotations.as_mut().unwrap().remove(&key);
        assert_eq!(dressed(&lacking, BOTH, false), optional.contains(&key.as_str()), "{key}");
    }
    for key in whole.metadata.labels.clone().unwrap().into_keys() {
        let mut edited = whole.clone();
        edited.metadata.labels.as_mut().unwrap().insert(key.clone(), "edited".into());
        assert!(!dressed(&edited, BOTH, false), "{key}");
    }
    let mut ownerless = whole.clone();
    ownerless.metadata.owner_references = None;
    assert!(!dressed(&ownerless, BOTH, false));
    assert!(dressed(&ownerless, BOTH, true), "an owner that may not be changed is left");
    let mut undigested = whole;
    let annotations = undigested.metadata.annotations.as_mut().unwrap();
    annotations.remove(annotation::TOKEN_HMAC);
    annotations.remove(annotation::CREDENTIALS_HMAC);
    assert!(dressed(&undigested, Digests { token: false, credentials: false }, false), "without a key there are none");
}

#[test]
fn an_owner_is_left_as_found_where_it_may_not_be_changed() {
    let mut live = composed(None, &spec());
    live.metadata.owner_references = Some(vec![reference("ConfigMap", "other", None)]);
    let issue = issue();
    let content = Content { token: "t", issue: &issue };
    let written = compose(Some(&live), &owner(), &spec(), content, None, Ownership::AsFound);
    assert_eq!(written.metadata.owner_references, live.metadata.owner_references);
    assert!(!written.metadata.annotations.unwrap().contains_key(annotation::TOKEN_HMAC), "no key, no digest");
}

#[test]
fn a_dead_object_of_ours_is_replaced_as_controller_and_others_stay() {
    let mut live = composed(None, &spec());
    let found = vec![
        reference("ConfigMap", "a", None),
        reference("MoneyGoCredential", "dead", Some(true)),
        reference("MoneyGoCredential", "aside", None),
    ];
    live.metadata.owner_references = Some(found);
    let uids = |secret: &Secret| -> Vec<String> {
        secret.metadata.owner_references.iter().flatten().map(|one| one.uid.clone()).collect()
    };
    assert_eq!(uids(&composed(Some(&live), &spec())), ["a", "aside", "uid-1"]);
    let retain = Resolved { deletion_policy: DeletionPolicy::Retain, ..spec() };
    assert_eq!(uids(&composed(Some(&live), &retain)), ["a", "aside"]);
    let last = Secret { metadata: ObjectMeta::default(), ..Secret::default() };
    assert_eq!(composed(Some(&last), &retain).metadata.owner_references, None);
}

#[test]
fn what_is_written_is_conditional_on_what_was_read() {
    let mut live = composed(None, &spec());
    (live.metadata.uid, live.metadata.resource_version) = (Some("u".into()), Some("9".into()));
    let written = composed(Some(&sealed(live, &[("x", &["a"])])), &spec());
    assert_eq!(Version::of(&written.metadata), Version { uid: "u".into(), resource_version: "9".into() });
    assert_eq!(written.metadata.managed_fields, None);
}

// ---- Whose a Secret is -----------------------------------------------------------------------------------------------

fn facts(adopt: Option<&str>, owners: Vec<OwnerReference>) -> Facts {
    Facts::of(&ObjectMeta {
        annotations: adopt.map(|name| strings(json!({ "money-go.com/adopt": name }))),
        owner_references: Some(owners),
        ..ObjectMeta::default()
    })
}

#[test]
fn a_secret_is_ours_only_if_we_own_it_or_it_says_so_and_nobody_else_controls_it() {
    let ours = || reference("MoneyGoCredential", "uid-1", Some(true));
    let dead = || reference("MoneyGoCredential", "dead", Some(true));
    let live = || reference("MoneyGoCredential", "live", Some(true));
    let deployment = || reference("Deployment", "d", Some(true));
    let cases = [
        ("says nothing", None, vec![], false),
        ("names us", Some("payments"), vec![], true),
        ("names another", Some("other"), vec![], false),
        ("names us with a capital", Some("Payments"), vec![], false),
        ("names nobody", Some(""), vec![], false),
        ("ours", None, vec![ours()], true),
        ("ours, though it names another", Some("other"), vec![ours()], true),
        ("a live one's", None, vec![live()], false),
        ("a live one's, though it names us", Some("payments"), vec![live()], false),
        ("a dead one's", None, vec![dead()], false),
        ("a dead one's, and it names us", Some("payments"), vec![dead()], true),
        ("a Deployment's, though it names us", Some("payments"), vec![deployment()], false),
        ("owned, not controlled, and names us", Some("payments"), vec![reference("Deployment", "d", None)], true),
        ("owned by us, not controlled", None, vec![reference("MoneyGoCredential", "uid-1", None)], false),
    ];
    for (name, adopt, owners, expected) in cases {
        let claimed = claim(&facts(adopt, owners), &owner(), |uid| uid == "live" || uid == "uid-1");
        assert_eq!(claimed == Claim::Ours, expected, "{name}");
    }
}

#[test]
fn a_kind_of_that_name_in_another_group_is_none_of_ours() {
    let mut stranger = reference("MoneyGoCredential", "x", Some(true));
    for api_version in ["money-go.company/v1", "v1", "x.money-go.com/v1"] {
        stranger.api_version = api_version.into();
        assert_eq!(facts(None, vec![stranger.clone()]).owning_credential(), None, "{api_version}");
    }
    stranger.api_version = "money-go.com/v1".into();
    assert_eq!(facts(None, vec![stranger]).owning_credential(), Some("x"), "another version is");
}

#[test]
fn of_several_objects_the_owner_then_the_named_then_the_older_then_the_lower_uid_wins() {
    let one = |name: &str, uid: &str, created: Option<&str>, sound| Contender {
        name: name.into(),
        uid: uid.into(),
        created: created.map(at),
        sound,
    };
    let (early, late) = (Some("2026-01-01T00:00:00Z"), Some("2026-01-02T00:00:00Z"));
    let all = [
        one("a", "3", late, true),
        one("b", "2", early, true),
        one("c", "1", early, true),
        one("d", "0", early, false),
    ];
    let wins =
        |contenders: &[Contender], target: Option<&Facts>| winner(contenders, target).map(|one| one.name.clone());
    assert_eq!(wins(&all, None).as_deref(), Some("c"));
    assert_eq!(wins(&all[..2], None).as_deref(), Some("b"));
    assert_eq!(wins(&all, Some(&facts(Some("a"), vec![]))).as_deref(), Some("a"));
    let owned = |uid| facts(Some("a"), vec![reference("MoneyGoCredential", uid, Some(true))]);
    assert_eq!(wins(&all, Some(&owned("2"))).as_deref(), Some("b"));
    assert_eq!(wins(&all, Some(&owned("gone"))).as_deref(), Some("a"), "an owner that is not there does not count");
    assert_eq!(wins(&all, Some(&owned("0"))).as_deref(), Some("d"), "a broken spec does not lose what it owns");
    assert_eq!(wins(&all[3..], None), None, "one that cannot work stops itself and no other");
    assert_eq!(wins(&[], None), None);
}

// ---- What metadata tells ---------------------------------------------------------------------------------------------

#[test]
fn of_a_secret_that_has_nothing_to_do_with_us_nothing_is_kept() {
    let meta = ObjectMeta {
        uid: Some("u".into()),
        resource_version: Some("7".into()),
        labels: Some(strings(json!({"a": "b"}))),
        annotations: Some(strings(json!({"c": "a long one"}))),
        ..ObjectMeta::default()
    };
    let facts = Facts::of(&meta);
    assert!(facts.labels.is_empty() && facts.annotations.is_empty());
    assert_eq!(facts.version, Version { uid: "u".into(), resource_version: "7".into() });
    assert_eq!((facts.marks, facts.seal), (Marks::default(), Seal::Unknown));
}

#[test]
fn annotations_of_any_shape_are_read_without_trust() {
    for bad in ["", "soon", "{", "[]", "null", "\u{0}", "9999999999999999999", "2026-13-01T00:00:00Z"] {
        let keys = annotation::ALL.iter().map(|(key, ..)| ((*key).to_owned(), bad.to_owned()));
        let meta = ObjectMeta { annotations: Some(keys.collect()), ..ObjectMeta::default() };
        let facts = Facts::of(&meta);
        assert_eq!((facts.marks.life, facts.marks.refresh_at, facts.marks.applied), (None, None, None), "{bad}");
    }
}

/// What the watch keeps of the metadata is all that is ever looked at.
#[test]
fn the_same_is_seen_in_what_the_watch_keeps() {
    let mut secret =
        sealed(composed(None, &spec()), &[(FIELD_MANAGER, &["access_token", "auth"]), ("helm", &["theirs"])]);
    let metadata = &mut secret.metadata;
    metadata.uid = Some("uid".to_owned());
    metadata.resource_version = Some("7".to_owned());
    metadata.managed_fields.as_mut().unwrap().push(ManagedFieldsEntry::default());
    let seen = |metadata: &ObjectMeta| {
        let watched: SecretMeta = serde_json::from_value(json!({ "metadata": metadata })).unwrap();
        let facts = Facts::of(watched.meta());
        assert_eq!(facts, Facts::of(metadata));
        facts.seal
    };
    assert_eq!(seen(&secret.metadata), Seal::Intact);
    secret.metadata.managed_fields = Some(vec![ManagedFieldsEntry::default()]);
    assert_eq!(seen(&secret.metadata), Seal::Broken(None));
    secret.metadata.managed_fields = None;
    assert_eq!(seen(&secret.metadata), Seal::Unknown);
    assert_eq!(seen(&ObjectMeta::default()), Seal::Unknown);
}

#[test]
fn managed_fields_tell_who_wrote_the_data_last() {
    let spec = Resolved { authorization_key: Some("auth".into()), ..spec() };
    let secret = composed(None, &spec);
    let seal = |writers: &[(&str, &[&str])]| Facts::of(&sealed(secret.clone(), writers).metadata).seal;
    let broken = |manager: Option<&str>| Seal::Broken(manager.map(ToOwned::to_owned));
    assert_eq!(seal(&[(FIELD_MANAGER, &["access_token", "auth"])]), Seal::Intact);
    assert_eq!(seal(&[(FIELD_MANAGER, &["access_token", "auth"]), ("helm", &["theirs"])]), Seal::Intact);
    assert_eq!(seal(&[(FIELD_MANAGER, &["auth"]), ("helm", &["access_token"])]), broken(Some("helm")));
    assert_eq!(seal(&[(FIELD_MANAGER, &["access_token"]), ("helm", &["auth"])]), broken(Some("helm")));
    assert_eq!(seal(&[(FIELD_MANAGER, &["auth"])]), broken(None), "taken away");
    assert_eq!(seal(&[]), Seal::Unknown);
    assert_eq!(Facts::of(&secret.metadata).seal, Seal::Unknown, "no managedFields");
    let with_string = |key: &str| {
        let mut secret = sealed(secret.clone(), &[(FIELD_MANAGER, &["access_token", "auth"])]);
        let fields = json!({ "f:stringData": { format!("f:{key}"): {} } });
        let applied = ManagedFieldsEntry {
            manager: Some("kubectl".into()),
            fields_v1: Some(FieldsV1(fields)),
            ..Default::default()
        };
        secret.metadata.managed_fields.as_mut().unwrap().push(applied);
        let watched: SecretMeta = serde_json::from_value(json!({ "metadata": secret.metadata })).unwrap();
        assert_eq!(Facts::of(watched.meta()), Facts::of(&secret.metadata));
        Facts::of(&secret.metadata).seal
    };
    assert_eq!(["access_token", "auth", "theirs"].map(with_string), [Seal::Unknown, Seal::Unknown, Seal::Intact]);
    let mut unmarked = sealed(secret.clone(), &[(FIELD_MANAGER, &["access_token", "auth"])]);
    unmarked.metadata.annotations.as_mut().unwrap().remove(annotation::APPLIED);
    assert_eq!(Facts::of(&unmarked.metadata).seal, Seal::Unknown, "nobody knows which keys are ours");
}

#[test]
fn versions_are_compared_as_numbers_and_what_is_none_is_not_newer() {
    let version = |text: &str| Version { uid: "u".into(), resource_version: text.into() };
    assert!(version("10").is_newer_than(&version("9")));
    for (one, other) in [("9", "10"), ("9", "9"), ("a", "9"), ("9", "a"), ("", ""), ("18446744073709551616", "1")] {
        assert!(!version(one).is_newer_than(&version(other)), "{one} {other}");
    }
}

// ---- What the data tells ---------------------------------------------------------------------------------------------

fn looked(secret: &Secret, remembered: Option<Life>, key: Option<&DigestKey>) -> Found {
    inspect(secret, &Facts::of(&secret.metadata), &spec(), remembered, key)
}

fn without(mut secret: Secret, keys: &[&str]) -> Secret {
    secret.metadata.annotations.as_mut().unwrap().retain(|key, _| !keys.contains(&key.as_str()));
    secret
}

fn with_annotation(mut secret: Secret, key: &str, value: &str) -> Secret {
    secret.metadata.annotations.get_or_insert_default().insert(key.into(), value.into());
    secret
}

fn with_token(mut secret: Secret, token: &[u8]) -> Secret {
    secret.data.get_or_insert_default().insert("access_token".into(), ByteString(token.to_vec()));
    secret
}

#[test]
fn what_a_look_at_the_data_tells() {
    let (ours, later) = (key(), Life { expires_at: at("2026-01-01T02:00:00Z"), ..life() });
    let other = DigestKey::new(&[9; 32]).unwrap();
    let whole = || sealed(composed(None, &spec()), &[(FIELD_MANAGER, &["access_token"])]);
    let unsealed = || composed(None, &spec());
    let overwritten = || sealed(composed(None, &spec()), &[("evil", &["access_token"])]);
    let bare = || {
        let mut secret = whole();
        secret.metadata.annotations = None;
        secret
    };
    let (expiry, digest) = (annotation::EXPIRES_AT, annotation::TOKEN_HMAC);
    let year_3000 = || with_annotation(whole(), expiry, "3000-01-01T00:00:00Z");
    let earlier = || with_annotation(whole(), expiry, "2026-01-01T00:30:00Z");
    let half = Life { expires_at: at("2026-01-01T00:30:00Z"), ..life() };
    let good = Found::Token(life());
    let cases = vec![
        ("whole, with the key", whole(), None, Some(&ours), good.clone()),
        ("whole, without", whole(), None, None, good.clone()),
        ("whole, with another key", whole(), None, Some(&other), good.clone()),
        ("managedFields reset, with the key", unsealed(), None, Some(&ours), good.clone()),
        ("managedFields reset, without", unsealed(), None, None, good.clone()),
        ("rewritten as it was, with the key", overwritten(), None, Some(&ours), good.clone()),
        ("rewritten, without a key", overwritten(), None, None, Found::Altered),
        ("the token edited", with_token(whole(), b"x"), Some(life()), Some(&ours), Found::Altered),
        ("the token edited, without a key", with_token(overwritten(), b"x"), Some(life()), None, Found::Altered),
        ("not UTF-8", with_token(whole(), b"\xff"), None, Some(&ours), Found::Altered),
        ("empty", with_token(whole(), b""), None, Some(&ours), Found::Altered),
        (
            "no token at all, as ours",
            with_token(without(whole(), &[digest]), b"x\n"),
            Some(life()),
            Some(&ours),
            Found::Altered,
        ),
        ("no token at all, without a key", with_token(whole(), b" x"), Some(life()), None, Found::Altered),
        ("the expiry edited, remembered", year_3000(), Some(life()), Some(&ours), good.clone()),
        ("the expiry edited, not remembered", year_3000(), None, Some(&ours), Found::Altered),
        ("the expiry edited, remembered, no key", year_3000(), Some(life()), None, good.clone()),
        ("the expiry edited, nothing known", year_3000(), None, None, Found::Altered),
        ("an earlier expiry, remembered", earlier(), Some(life()), Some(&ours), good.clone()),
        ("of two accounts the earlier, no key", earlier(), Some(life()), None, Found::Token(half)),
        ("of two accounts the earlier, no key", whole(), Some(later), None, good.clone()),
        ("the status is edited", whole(), Some(later), Some(&ours), good.clone()),
        ("the digest stripped", without(whole(), &[digest]), Some(life()), Some(&ours), good.clone()),
        ("the digest edited", with_annotation(whole(), digest, "x"), Some(life()), Some(&ours), good.clone()),
        ("all stripped, ours by managedFields", bare(), Some(life()), Some(&ours), good.clone()),
        ("all stripped, no memory", bare(), None, Some(&ours), Found::Nothing),
        (
            "another's Secret that names us",
            with_annotation(with_token(Secret::default(), b"x"), annotation::ADOPT, "payments"),
            None,
            Some(&ours),
            Found::Nothing,
        ),
        ("another's, with a status", with_token(Secret::default(), b"x"), Some(life()), Some(&ours), Found::Altered),
        ("no data", Secret::default(), None, Some(&ours), Found::Nothing),
        ("no data, and it was ours", Secret { data: None, ..whole() }, None, Some(&ours), Found::Altered),
        ("marked as ours, no deadlines", without(whole(), &[expiry]), None, Some(&ours), Found::Altered),
    ];
    for (name, secret, remembered, key, expected) in cases {
        assert_eq!(looked(&secret, remembered, key), expected, "{name}");
    }
    for stripped in [annotation::APPLIED, digest] {
        let emptied = Secret { data: None, ..without(whole(), &[stripped]) };
        assert_eq!(looked(&emptied, None, Some(&ours)), Found::Altered, "no data, {stripped} stripped: it was ours");
    }
}

#[test]
fn of_two_accounts_that_are_alike_the_secrets_own_counts_which_knows_whether_the_token_was_repeated() {
    let repeated = Life { repeated: Some(life().expires_at), ..life() };
    let issue = Issue { life: repeated, ..issue() };
    let content = Content { token: "t", issue: &issue };
    let secret = compose(None, &owner(), &spec(), content, None, Ownership::AsWanted);
    assert_eq!(looked(&secret, Some(life()), None), Found::Token(repeated));
}

#[test]
fn a_refresh_request_that_would_leave_no_room_is_not_marked() {
    for (length, is_marked) in [(LONGEST_REQUEST, true), (LONGEST_REQUEST + 1, false)] {
        let issue = Issue { refresh_handled: Some("x".repeat(length)), ..issue() };
        let content = Content { token: "t", issue: &issue };
        let secret = compose(None, &owner(), &spec(), content, Some(&key()), Ownership::AsWanted);
        assert_eq!(Facts::of(&secret.metadata).marks.refresh_handled.is_some(), is_marked, "{length}");
    }
}

#[test]
fn the_keys_beside_the_token_are_looked_at_where_they_are_asked_for_and_there_is_a_token() {
    let with_keys = || Resolved {
        authorization_key: Some("authorization".into()),
        expires_at_key: Some("expires".into()),
        ..spec()
    };
    let whole = composed(None, &with_keys());
    let judge =
        |secret: &Secret, spec: &Resolved, found| is_complete(secret, &Facts::of(&secret.metadata), spec, found);
    let token = Found::Token(life());
    assert!(judge(&whole, &with_keys(), &token));
    assert!(judge(&composed(None, &spec()), &spec(), &token), "none is asked for");
    for key in ["authorization", "expires"] {
        for value in [None, Some(ByteString(b"x".to_vec()))] {
            let mut edited = whole.clone();
            let data = edited.data.as_mut().unwrap();
            data.remove(key);
            data.extend(value.map(|value| (key.to_owned(), value)));
            assert!(!judge(&edited, &with_keys(), &token), "{key}");
            assert!(judge(&edited, &with_keys(), &Found::Altered), "{key}: there is no token to go with it");
            assert!(judge(&edited, &spec(), &token), "{key} is somebody else's");
        }
    }
}

#[test]
fn the_digest_proves_whether_the_provider_repeated_the_token() {
    let expires_at = life().expires_at;
    let [new, until_its_end, seems_prolonged] = life().as_noted_nowhere();
    assert_eq!((new.repeated, until_its_end.repeated), (None, Some(expires_at)));
    assert!(seems_prolonged.repeated < Some(expires_at));
    for repeated in [until_its_end, seems_prolonged] {
        let issue = Issue { life: repeated, ..issue() };
        let content = Content { token: "t", issue: &issue };
        let secret = compose(None, &owner(), &spec(), content, Some(&key()), Ownership::AsWanted);
        let marked = secret.metadata.annotations.as_ref().unwrap()[annotation::SAME_TOKEN].clone();
        assert_eq!(Some(marked), repeated.repeated.map(|known_end| known_end.to_string()));
        let stripped = without(secret.clone(), &[annotation::SAME_TOKEN]);
        assert_eq!(looked(&stripped, None, Some(&key())), Found::Token(repeated));
        for edited in ["true", "1970-01-01T00:00:00Z", "3000-01-01T00:00:00Z"] {
            let edited = with_annotation(secret.clone(), annotation::SAME_TOKEN, edited);
            assert_eq!(looked(&edited, None, Some(&key())), Found::Token(repeated), "{repeated:?}");
        }
    }
}

#[test]
fn the_token_is_found_under_the_key_that_it_was_written_to() {
    let secret = composed(None, &spec());
    let renamed = Resolved { access_token_key: "token".into(), ..spec() };
    assert_eq!(stored_token(&secret, &Facts::of(&secret.metadata), &renamed), Some("the-token"));
    let after = composed(Some(&secret), &renamed);
    assert_eq!((text(&after, "access_token"), text(&after, "token").as_deref()), (None, Some("the-token")));
}

// ---- Credentials -----------------------------------------------------------------------------------------------------

#[test]
fn credentials_are_read_or_what_is_wrong_with_them_is_told() {
    use CredentialsProblem::{Incomplete, Malformed};
    let read = |pairs: &[(&str, &[u8])]| {
        let data = pairs.iter().map(|(key, value)| ((*key).to_owned(), ByteString(value.to_vec()))).collect();
        let secret = Secret { data: Some(data), ..Secret::default() };
        read_credentials(&secret, &spec()).map(|(id, secret)| (id.to_owned(), secret.to_owned()))
    };
    let with_secret = |value: &[u8]| read(&[("client_id", b"id"), ("client_secret", value)]);
    let good = |secret: &str| Ok(("id".to_owned(), secret.to_owned()));
    assert_eq!(with_secret(b"secret"), good("secret"));
    assert_eq!(with_secret(b"inner space"), good("inner space"));
    assert_eq!(with_secret("pässwörd".as_bytes()), good("pässwörd"));
    let malformed: [&[u8]; 11] = [
        b" ",
        b"secret\n",
        b"secret\r\n",
        b" secret",
        b"secret ",
        b"\tsecret",
        b"sec\xffret",
        b"\xef\xbb\xbfsecret",
        "secret\u{a0}".as_bytes(),
        "secret\u{2028}".as_bytes(),
        b"\xff\xfes\0e\0",
    ];
    for value in malformed {
        assert_eq!(with_secret(value), Err(Malformed), "{value:?}");
        assert_eq!(read(&[("client_id", value), ("client_secret", b"s")]), Err(Malformed), "{value:?}");
    }
    assert_eq!(with_secret(b""), Err(Incomplete));
    assert_eq!(read(&[("client_id", b""), ("client_secret", b"s")]), Err(Incomplete));
    assert_eq!(read(&[]), Err(Incomplete));
    assert_eq!(read(&[("client_id", b"id")]), Err(Incomplete));
    assert_eq!(read(&[("client_secret", b"s")]), Err(Incomplete));
    assert_eq!(read(&[("client_id", b"id "), ("CLIENT_SECRET", b"s")]), Err(Incomplete));
    assert_eq!(read_credentials(&Secret::default(), &spec()), Err(Incomplete));
}

#[test]
fn a_key_that_was_renamed_goes_though_its_record_was_stripped() {
    let mut secret = sealed(composed(None, &spec()), &[(FIELD_MANAGER, &["access_token"]), ("someone", &["theirs"])]);
    secret.data.get_or_insert_default().insert("theirs".into(), ByteString(b"x".to_vec()));
    secret.metadata.annotations = None;
    let after = composed(Some(&secret), &Resolved { access_token_key: "token".into(), ..spec() });
    assert_eq!(after.data.unwrap().into_keys().collect::<Vec<_>>(), ["theirs", "token"]);
}

#[test]
fn what_others_wrote_into_an_owner_moves_no_cursor_and_fills_no_status() {
    let owner =
        |kind: &str, name: &str| OwnerReference { kind: kind.into(), name: name.into(), ..OwnerReference::default() };
    assert_eq!(in_words(&owner("Deployment", "shop")), "Deployment \"shop\"");
    assert_eq!(in_words(&owner("A\u{1b}[2J", "b\r\nc\u{9b}")), "A[2J \"bc\"");
    assert!(in_words(&owner(&"k".repeat(1 << 20), &"\u{e9}".repeat(1 << 20))).len() < 1024);
}
