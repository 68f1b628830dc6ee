use kube::core::WatchEvent;
use serde_json::{Value, json};

use super::*;
use crate::crd::MoneyGoCredential;
use crate::secret::{Claim, claim};

struct Watches {
    caches: Caches,
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("shop", name)
}

fn keys<const N: usize>(names: [&str; N]) -> Vec<ObjectKey> {
    names.into_iter().map(key).collect()
}

fn object(name: &str, credentials: &str, target: &str) -> Guarded {
    object_with(
        name,
        &format!("uid-{name}"),
        &json!({"credentialsRef": {"name": credentials}, "target": {"name": target}}),
    )
}

fn object_with(name: &str, uid: &str, spec: &Value) -> Guarded {
    serde_json::from_value(sent(name, uid, spec)).unwrap()
}

fn sent(name: &str, uid: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "money-go.com/v1alpha1",
        "kind": "MoneyGoCredential",
        "metadata": {
            "name": name, "namespace": "shop", "uid": uid, "resourceVersion": "1",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": spec,
    })
}

fn secret(name: &str, uid: &str, version: u32) -> SecretMeta {
    let metadata = json!({"name": name, "namespace": "shop", "uid": uid, "resourceVersion": version.to_string()});
    serde_json::from_value(json!({"apiVersion": "v1", "kind": "PartialObjectMetadata", "metadata": metadata})).unwrap()
}

fn namespace(name: &str, ending: bool) -> PartialObjectMeta<Namespace> {
    let mut metadata = json!({"name": name});
    if ending {
        metadata["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    serde_json::from_value(json!({"apiVersion": "v1", "kind": "PartialObjectMetadata", "metadata": metadata})).unwrap()
}

impl Watches {
    fn new() -> Self {
        Self { caches: Caches::default() }
    }

    /// Watches that have listed these.
    fn of(objects: Vec<Guarded>) -> Self {
        let mut watches = Self::new();
        watches.list(objects);
        watches
    }

    fn list(&mut self, objects: Vec<Guarded>) -> Folded {
        assert_eq!(self.fold(Event::Init), Folded::default());
        for object in objects {
            assert_eq!(self.fold(Event::InitApply(object)), Folded::default(), "told once the list is whole");
        }
        self.fold(Event::InitDone)
    }

    fn fold(&mut self, event: Event<Guarded>) -> Folded {
        self.caches.fold_object(event)
    }

    fn apply(&mut self, object: Guarded) -> Vec<ObjectKey> {
        let folded = self.fold(Event::Apply(object));
        assert_eq!(folded.gone, []);
        folded.look_at
    }

    fn list_secrets(&self, secrets: Vec<SecretMeta>) -> Vec<ObjectKey> {
        let mut look_at = self.caches.fold_secret(Event::Init);
        look_at.extend(secrets.into_iter().flat_map(|secret| self.caches.fold_secret(Event::InitApply(secret))));
        look_at.extend(self.caches.fold_secret(Event::InitDone));
        look_at
    }

    fn version(&self, name: &str) -> Option<(String, String)> {
        let version = self.caches.secret_version(&key(name))?;
        Some((version.uid, version.resource_version))
    }

    fn contenders(&self, name: &str, target: &str) -> Vec<String> {
        let owner = Owner { namespace: "shop".into(), name: name.into(), uid: format!("uid-{name}") };
        self.caches.contenders(&owner, target).into_iter().map(|one| one.name).collect()
    }
}

// ---- Objects ---------------------------------------------------------------------------------------------------------

#[test]
fn a_list_is_looked_at_once_it_is_whole_and_what_it_lacks_is_gone() {
    let mut watches = Watches::new();
    let folded = watches.list(vec![object("a", "c", "ta"), object("b", "c", "tb")]);
    assert_eq!(folded, Folded { look_at: keys(["a", "b"]), gone: vec![] });
    assert_eq!(watches.caches.keys(), keys(["a", "b"]));
    assert!(watches.caches.is_live("shop", "a", "uid-a"));
    assert!(!watches.caches.is_live("shop", "a", "uid-b") && !watches.caches.is_live("other", "a", "uid-a"));
    let folded = watches.list(vec![object("b", "c", "tb"), object("d", "c", "td")]);
    assert_eq!(folded.gone, keys(["a"]));
    assert!(folded.look_at.contains(&key("b")) && folded.look_at.contains(&key("d")));
    assert!(!watches.caches.is_live("shop", "a", "uid-a"));
    assert!(watches.caches.credential(&key("a")).is_none());
    assert!(watches.caches.credential(&key("d")).is_some());
    assert_eq!(watches.caches.keys(), keys(["b", "d"]));
}

#[test]
fn an_empty_list_forgets_all() {
    let mut watches = Watches::of(vec![object("a", "c", "t")]);
    assert_eq!(watches.list(vec![]), Folded { look_at: vec![], gone: keys(["a"]) });
    assert_eq!(watches.caches.keys(), []);
}

#[test]
fn a_list_that_breaks_off_forgets_nothing() {
    let mut watches = Watches::of(vec![object("a", "c", "ta"), object("b", "c", "tb")]);
    watches.fold(Event::Init);
    watches.fold(Event::InitApply(object("a", "c", "ta")));
    assert_eq!(watches.caches.keys(), keys(["a", "b"]));
    let folded = watches.list(vec![object("b", "c", "tb")]);
    assert_eq!(folded.gone, keys(["a"]), "the broken list counts for nothing");
}

#[test]
fn a_deletion_is_told_and_those_that_share_its_target_are_looked_at() {
    let mut watches = Watches::of(vec![object("a", "ca", "t"), object("b", "cb", "t"), object("c", "cc", "tc")]);
    let folded = watches.fold(Event::Delete(object("a", "ca", "t")));
    assert_eq!(folded, Folded { look_at: keys(["b"]), gone: keys(["a"]) });
    let folded = watches.fold(Event::Delete(object("a", "ca", "t")));
    assert_eq!(folded, Folded { look_at: vec![], gone: keys(["a"]) });
}

#[test]
fn those_whose_rival_a_relist_lacks_are_looked_at() {
    let mut watches = Watches::of(vec![object("a", "ca", "t"), object("b", "cb", "t")]);
    let folded = watches.list(vec![object("b", "cb", "t")]);
    assert_eq!(folded, Folded { look_at: keys(["b"]), gone: keys(["a"]) });
    assert_eq!(watches.contenders("b", "t"), Vec::<String>::new());
}

#[test]
fn a_new_rival_is_looked_at_with_those_it_meets_and_a_changed_status_alone_concerns_only_the_object() {
    let mut watches = Watches::of(vec![object("a", "ca", "t")]);
    assert_eq!(watches.apply(object("b", "cb", "t")), keys(["a", "b"]));
    assert_eq!(watches.apply(object("b", "cb", "t")), keys(["b"]));
    assert_eq!(watches.apply(object("b", "cb", "elsewhere")), keys(["a", "b"]), "it went");
    assert_eq!(watches.apply(object("b", "cb", "elsewhere")), keys(["b"]));
    let anew = object_with("b", "uid-new", &json!({"credentialsRef": {"name": "cb"}, "target": {"name": "elsewhere"}}));
    assert_eq!(watches.apply(anew), keys(["b"]));
    assert!(watches.caches.is_live("shop", "b", "uid-new") && !watches.caches.is_live("shop", "b", "uid-b"));
}

#[test]
fn those_that_share_the_target_of_an_edited_object_are_looked_at() {
    let edited = |generation: u32, scope: &str| -> Guarded {
        let spec = json!({"credentialsRef": {"name": "cb"}, "target": {"name": "t"}, "scope": scope});
        let mut object = sent("b", "uid-b", &spec);
        object["metadata"]["generation"] = json!(generation);
        serde_json::from_value(object).unwrap()
    };
    let mut watches = Watches::of(vec![object("a", "ca", "t"), edited(1, "read"), object("c", "cc", "tc")]);
    assert_eq!(watches.apply(edited(1, "read")), keys(["b"]), "its status, it may be");
    assert_eq!(watches.apply(edited(2, "")), keys(["a", "b"]), "it can work no more");
    assert_eq!(watches.apply(edited(2, "")), keys(["b"]));
    assert_eq!(watches.apply(edited(3, "read")), keys(["a", "b"]));
    let _ = watches.fold(Event::Delete(object("a", "ca", "t")));
    assert_eq!(watches.apply(edited(4, "write")), keys(["b"]), "alone");
}

#[test]
fn all_who_name_a_target_contend_for_it() {
    let watches = Watches::of(vec![object("a", "ca", "t"), object("b", "cb", "t"), object("c", "t", "tc")]);
    assert_eq!(watches.contenders("a", "t"), ["a", "b"], "one that has its credentials there does not");
    assert_eq!(watches.contenders("c", "tc"), Vec::<String>::new(), "alone");
    assert_eq!(watches.contenders("c", "nothing"), Vec::<String>::new());
    let owner = Owner { namespace: "other".into(), name: "a".into(), uid: "uid-a".into() };
    assert_eq!(watches.caches.contenders(&owner, "t"), [], "in another namespace");
}

#[test]
fn a_contender_that_cannot_work_is_not_sound() {
    let broken = json!({"credentialsRef": {"name": "c"}, "target": {"name": "t"}, "scope": ""});
    let mut bound = sent("bound", "uid-bound", &json!({"credentialsRef": {"name": "cb"}, "target": {"name": "t"}}));
    bound["status"] = json!({"targetName": "earlier"});
    let bound = serde_json::from_value(bound).unwrap();
    let watches = Watches::of(vec![object("a", "ca", "t"), object_with("b", "uid-b", &broken), bound]);
    let owner = Owner { namespace: "shop".into(), name: "a".into(), uid: "uid-a".into() };
    let sound: Vec<_> =
        watches.caches.contenders(&owner, "t").into_iter().map(|one| (one.name, one.uid, one.sound)).collect();
    let expected = [("a", "uid-a", true), ("b", "uid-b", false), ("bound", "uid-bound", false)];
    assert_eq!(sound, expected.map(|(name, uid, sound)| (name.to_owned(), uid.to_owned(), sound)));
}

#[test]
fn sharing_one_client_is_noticed_and_sharing_a_target_is_not_that() {
    let watches = Watches::of(vec![object("a", "c", "ta"), object("b", "c", "tb"), object("d", "other", "c")]);
    assert_eq!(watches.caches.sharing_credentials(&key("a"), "c").as_deref(), Some("b"));
    assert_eq!(watches.caches.sharing_credentials(&key("b"), "c").as_deref(), Some("a"));
    assert_eq!(watches.caches.sharing_credentials(&key("d"), "other"), None);
    assert_eq!(watches.caches.sharing_credentials(&key("a"), "nothing"), None);
}

#[test]
fn the_first_two_that_share_a_client_are_looked_at_and_of_more_the_newcomer_alone() {
    let mut watches = Watches::of(vec![object("a", "c", "ta")]);
    assert_eq!(watches.apply(object("b", "c", "tb")), keys(["a", "b"]));
    assert_eq!(watches.apply(object("d", "c", "td")), keys(["d"]));
}

#[test]
fn who_goes_is_followed_by_those_that_have_its_target_and_by_none_that_have_its_client() {
    let watches = Watches::of(vec![object("a", "c", "t"), object("b", "c", "t"), object("d", "c", "td")]);
    let folded = watches.caches.fold_object(Event::Delete(object("a", "c", "t")));
    assert_eq!((folded.look_at, folded.gone), (keys(["b"]), keys(["a"])));
}

#[test]
fn what_cannot_be_read_is_kept_and_names_nothing() {
    let broken = || object_with("broken", "uid-broken", &json!({"credentialsRef": 7}));
    assert_eq!(broken().credential(), None);
    let mut watches = Watches::of(vec![broken(), object("a", "c", "t")]);
    assert_eq!(watches.caches.keys(), keys(["a", "broken"]));
    assert!(watches.caches.is_live("shop", "broken", "uid-broken"), "its Secret is still its own");
    assert_eq!(watches.apply(object("broken", "c", "t")), keys(["a", "broken"]), "mended");
    assert_eq!(watches.apply(broken()), keys(["a", "broken"]), "and broken again");
    assert_eq!(watches.caches.fold_secret(Event::Apply(secret("t", "s", 1))), keys(["a"]));
}

// ---- Secrets ---------------------------------------------------------------------------------------------------------

#[test]
fn a_secret_calls_those_that_name_it_and_nobody_else() {
    let watches = Watches::of(vec![object("a", "c", "ta"), object("b", "c", "tb")]);
    let apply = |name, version| watches.caches.fold_secret(Event::Apply(secret(name, "s", version)));
    assert_eq!(apply("c", 1), keys(["a", "b"]));
    assert_eq!(apply("ta", 2), keys(["a"]));
    assert_eq!(apply("nobody's", 3), []);
    assert_eq!(watches.caches.fold_secret(Event::Delete(secret("tb", "s", 4))), [], "it was never there");
    assert_eq!(watches.caches.fold_secret(Event::Delete(secret("ta", "s", 5))), keys(["a"]));
    assert_eq!(watches.version("ta"), None);
}

#[test]
fn what_was_noted_before_the_watch_shows_it_is_no_news_then() {
    let watches = Watches::of(vec![object("a", "c", "t")]);
    let note = |uid, version| watches.caches.note_secret(&key("x"), "t", &Facts::of(secret("t", uid, version).meta()));
    note("s", 5);
    assert_eq!(watches.caches.fold_secret(Event::Apply(secret("t", "s", 5))), [], "our own write");
    assert_eq!(watches.caches.fold_secret(Event::Apply(secret("t", "s", 4))), [], "an earlier one, late");
    assert_eq!(watches.version("t").unwrap().1, "5");
    note("s", 3);
    assert_eq!(watches.version("t").unwrap().1, "5", "nor does a late note");
    assert_eq!(watches.caches.fold_secret(Event::Apply(secret("t", "s", 6))), keys(["a"]));
}

#[test]
fn what_one_object_notes_the_others_that_name_it_are_called_for() {
    let watches = Watches::of(vec![object("a", "c", "t"), object("b", "c", "u")]);
    watches.list_secrets(vec![secret("c", "s", 1)]);
    let note = || watches.caches.note_secret(&key("a"), "c", &Facts::of(secret("c", "s", 2).meta()));
    assert_eq!(note(), keys(["b"]), "the watch will show it as no news");
    assert_eq!(note(), []);
    assert_eq!(watches.caches.fold_secret(Event::Apply(secret("c", "s", 2))), []);
}

#[test]
fn an_answer_that_the_watch_has_overtaken_does_not_bring_a_deleted_secret_back() {
    let watches = Watches::new();
    let note = |version| watches.caches.note_secret(&key("x"), "t", &Facts::of(secret("t", "s", version).meta()));
    watches.caches.fold_secret(Event::Apply(secret("t", "s", 7)));
    watches.caches.fold_secret(Event::Delete(secret("t", "s", 9)));
    note(7);
    assert_eq!(watches.caches.secret_version(&key("t")), None);
    // Of the time after the deletion the watch says nothing yet.
    note(10);
    assert!(watches.caches.secret_version(&key("t")).is_some());
}

#[test]
fn the_late_deletion_of_an_earlier_secret_leaves_the_new_one() {
    let watches = Watches::of(vec![object("a", "c", "t")]);
    watches.caches.fold_secret(Event::Apply(secret("t", "old", 5)));
    let _ = watches.caches.note_secret(&key("x"), "t", &Facts::of(secret("t", "new", 8).meta()));
    assert_eq!(watches.caches.fold_secret(Event::Delete(secret("t", "old", 7))), []);
    assert_eq!(watches.version("t").unwrap().0, "new");
    assert_eq!(watches.caches.fold_secret(Event::Delete(secret("t", "new", 9))), keys(["a"]));
}

#[test]
fn a_relist_of_secrets_tells_what_changed_and_what_is_gone_and_nothing_else() {
    let watches = Watches::of(vec![object("a", "c", "ta"), object("b", "c", "tb")]);
    let first = watches.list_secrets(vec![secret("c", "s", 1), secret("ta", "s", 2)]);
    assert_eq!(first, keys(["a", "b", "a"]));
    assert_eq!(watches.list_secrets(vec![secret("c", "s", 1), secret("ta", "s", 2)]), []);
    assert_eq!(watches.list_secrets(vec![secret("c", "s", 1), secret("ta", "s", 3)]), keys(["a"]));
    assert_eq!(watches.list_secrets(vec![secret("ta", "s", 3)]), keys(["a", "b"]));
    assert_eq!(watches.version("c"), None);
}

#[test]
fn a_secret_that_was_written_while_a_list_was_under_way_is_not_lost_by_its_end() {
    let watches = Watches::of(vec![object("a", "c", "t")]);
    watches.list_secrets(vec![secret("c", "s", 1)]);
    watches.caches.fold_secret(Event::Init);
    watches.caches.fold_secret(Event::InitApply(secret("c", "s", 1)));
    // The list is as of before this write.
    let _ = watches.caches.note_secret(&key("x"), "t", &Facts::of(secret("t", "s", 9).meta()));
    let (written, is_trusted) = (Facts::of(secret("t", "s", 9).meta()), || {
        watches.caches.target(&key("t")).is_some_and(|(facts, look)| look.trusts(&facts))
    });
    watches.caches.note_look(&key("t"), &written.version, true);
    assert!(is_trusted());
    assert!(watches.caches.fold_secret(Event::InitDone).contains(&key("a")));
    assert_eq!(watches.version("t").map(|(_, version)| version).as_deref(), Some("9"));
    assert!(!is_trusted(), "the list may be as of after it was deleted, too: no event would tell");
    watches.list_secrets(vec![secret("c", "s", 1)]);
    assert_eq!(watches.version("t"), None, "by the next list it is settled");
}

// ---- Namespaces ------------------------------------------------------------------------------------------------------

#[test]
fn a_namespace_is_ending_from_its_deletion_timestamp_until_it_is_gone() {
    let watches = Watches::new();
    let fold = |event| watches.caches.fold_namespace(&event);
    fold(Event::Init);
    fold(Event::InitApply(namespace("a", true)));
    fold(Event::InitApply(namespace("b", false)));
    fold(Event::InitDone);
    assert!(watches.caches.is_ending("a") && !watches.caches.is_ending("b") && !watches.caches.is_ending("c"));
    fold(Event::Apply(namespace("b", true)));
    assert!(watches.caches.is_ending("b"));
    fold(Event::Delete(namespace("b", true)));
    assert!(!watches.caches.is_ending("b"));
    fold(Event::Apply(namespace("a", false)));
    assert!(!watches.caches.is_ending("a"), "made anew under its name");
}

#[test]
fn a_namespace_that_was_made_anew_while_nobody_watched_is_not_ending() {
    let watches = Watches::new();
    watches.caches.fold_namespace(&Event::Apply(namespace("a", true)));
    watches.caches.fold_namespace(&Event::Init);
    watches.caches.fold_namespace(&Event::InitApply(namespace("a", false)));
    watches.caches.fold_namespace(&Event::InitDone);
    assert!(!watches.caches.is_ending("a"));
}

#[test]
fn the_objects_of_a_namespace_that_is_there_again_are_looked_at() {
    let watches = Watches::of(vec![object("x", "c", "t")]);
    let fold = |event| watches.caches.fold_namespace(&event);
    assert_eq!(fold(Event::Apply(namespace("shop", false))), []);
    assert_eq!(fold(Event::Apply(namespace("shop", true))), []);
    assert_eq!(fold(Event::Apply(namespace("other", true))), []);
    assert_eq!(fold(Event::Delete(namespace("other", true))), []);
    assert_eq!(fold(Event::Delete(namespace("shop", true))), keys(["x"]));
}

#[test]
fn an_object_that_is_gone_no_longer_keeps_its_secret_from_its_successor() {
    let mut watches = Watches::of(vec![object("a", "c", "t")]);
    let meta = serde_json::from_value(json!({
        "annotations": {"money-go.com/adopt": "a"},
        "ownerReferences": [{
            "apiVersion": "money-go.com/v1alpha1", "kind": "MoneyGoCredential", "name": "a", "uid": "uid-a", "controller": true,
        }],
    }));
    let facts = Facts::of(&meta.unwrap());
    let heir = Owner { namespace: "shop".into(), name: "a".into(), uid: "uid-new".into() };
    let claims = |watches: &Watches| claim(&facts, &heir, |uid| watches.caches.is_live("shop", "a", uid));
    assert_eq!(claims(&watches), Claim::Foreign);
    watches.fold(Event::Delete(object("a", "c", "t")));
    assert_eq!(claims(&watches), Claim::Ours);
}

// ---- What is kept ----------------------------------------------------------------------------------------------------

fn with_status() -> Value {
    let mut sent =
        sent("payments", "3b0c4d0e-5f9e-4f7e-8f55-6a1d0f6e2b11", &json!({"credentialsRef": {"name": "client"}}));
    let condition = |kind, reason, message| {
        json!({
            "type": kind, "status": "True", "reason": reason, "message": message, "observedGeneration": 1,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        })
    };
    sent["metadata"]["annotations"] = json!({"money-go.com/refresh-requested": "now", "other": "x".repeat(5000)});
    sent["metadata"]["labels"] = json!({"team": "billing"});
    sent["metadata"]["managedFields"] = json!([{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}]);
    sent["status"] = json!({
        "observedGeneration": 1, "targetName": "payments", "issuedAt": "2026-01-01T00:00:00.123Z",
        "expiresAt": "2026-01-31T00:00:00Z", "refreshAt": "2026-01-20T10:11:12Z",
        "observedCredentials": {"uid": "9b0c4d0e-5f9e-4f7e-8f55-6a1d0f6e2b12", "resourceVersion": "12345"},
        "conditions": [
            condition("Ready", "TokenValid", "the Secret holds a token that has not expired"),
            condition("Refreshed", "Succeeded", "the last request gave a token"),
            condition("Stalled", "AsExpected", "nothing that only a change of the spec, the client or the target could mend"),
        ],
    });
    sent
}

#[test]
fn an_object_is_kept_small_and_what_is_looked_at_comes_back() {
    let guarded: Guarded = serde_json::from_value(with_status()).unwrap();
    let credential = guarded.clone().credential().unwrap();
    let sent: MoneyGoCredential = serde_json::from_value(with_status()).unwrap();
    assert_eq!((&credential.spec, &credential.status), (&sent.spec, &sent.status));
    assert_eq!(ObjectKey::of(&guarded), key("payments"));
    assert_eq!(credential.metadata.annotations.unwrap().len(), 1, "the refresh request alone is looked at");
    assert_eq!(credential.metadata.labels, sent.metadata.labels, "who admits a write of the status may look at them");
    assert_eq!(credential.metadata.managed_fields, None);
    let packed = Packed::new(&guarded).unwrap();
    assert!(packed.len() < 340, "{} bytes", packed.len());
    assert_eq!(packed.value::<String>(), None, "it is something else");
}

#[test]
fn what_cannot_be_read_is_kept_by_its_metadata_and_stops_no_other() {
    let mut changed = vec![("as it should be", true, true, with_status())];
    let mut change = |what, is_readable, pointer: &str, value: Value| {
        let mut sent = with_status();
        *sent.pointer_mut(pointer).unwrap() = value;
        changed.push((what, is_readable, false, sent));
    };
    change("a spec of another schema", false, "/spec", json!({"credentialsRef": "client"}));
    change("no spec", false, "/spec", Value::Null);
    change("a status of another schema", true, "/status/issuedAt", json!([1, {"a": -1.5}]));
    change("a status that is a text", true, "/status", json!("fine"));
    change("a status with a time after the last", true, "/status/expiresAt", json!("9999-12-31T23:59:59Z"));
    for (what, is_readable, has_status, sent) in changed {
        // A proxy may order the fields of an event as it likes.
        for event in
            [format!(r#"{{"type":"ADDED","object":{sent}}}"#), format!(r#"{{"object":{sent},"type":"ADDED"}}"#)]
        {
            let event: WatchEvent<Guarded> = serde_json::from_str(&event).unwrap();
            let WatchEvent::Added(object) = event else { panic!("{what}: another event") };
            let watches = Watches::of(vec![object]);
            let kept = watches.caches.credential(&key("payments")).expect(what);
            assert_eq!(watches.caches.version(&key("payments")), Some(Version::of(kept.meta())), "{what}");
            assert_eq!(kept.meta().resource_version.as_deref(), Some("1"), "{what}");
            let credential = kept.credential();
            assert_eq!(credential.is_some(), is_readable, "{what}");
            if let Some(credential) = credential {
                let mut whole: MoneyGoCredential = serde_json::from_value(with_status()).unwrap();
                whole.status = whole.status.filter(|_| has_status);
                assert_eq!((credential.spec, credential.status), (whole.spec, whole.status), "{what}");
            }
        }
    }
}

#[test]
fn a_status_that_does_not_come_back_as_it_was_is_as_good_as_none() {
    let mut sent = with_status();
    sent["status"]["conditions"][0]["lastTransitionTime"] = json!("0000-01-01T00:00:00+01:00");
    let object: Guarded = serde_json::from_value(sent).unwrap();
    assert!(object.clone().credential().is_some(), "a year before 0");
    let watches = Watches::of(vec![object]);
    let kept = watches.caches.credential(&key("payments")).expect("it is there");
    assert_eq!(kept.meta().resource_version.as_deref(), Some("1"));
    assert_eq!(kept.credential().expect("it can be read").status, None);
}

#[test]
fn a_look_is_for_one_version() {
    let watches = Watches::of(vec![]);
    let (target, version) = (key("t"), |number: u32| Version { uid: "s".into(), resource_version: number.to_string() });
    let look = |watches: &Watches| watches.caches.target(&target).map(|(_, look)| look);
    watches.caches.note_look(&target, &version(1), true);
    assert_eq!(look(&watches), None, "there is no such Secret");
    let _ = watches.caches.fold_secret(Event::Apply(secret("t", "s", 1)));
    assert_eq!(look(&watches), Some(Look::Never));
    watches.caches.note_look(&target, &version(1), true);
    assert_eq!(look(&watches), Some(Look::Sound));
    let _ = watches.caches.fold_secret(Event::Apply(secret("t", "s", 1)));
    assert_eq!(look(&watches), Some(Look::Sound), "the same version");
    let _ = watches.caches.fold_secret(Event::Apply(secret("t", "s", 3)));
    assert_eq!(look(&watches), Some(Look::Unsound), "someone changed it");
    watches.caches.note_look(&target, &version(2), true);
    assert_eq!(look(&watches), Some(Look::Unsound), "what was written is not what is there");
    watches.caches.note_look(&target, &version(3), false);
    assert_eq!(look(&watches), Some(Look::Unsound));
}
