//! A `MoneyGoCredential` of any shape: it can always be listed, and where it can be read and worked with, what follows is
//! what Kubernetes would take.
#![no_main]

use jiff::Timestamp;
use kube::runtime::watcher::Event;
use libfuzzer_sys::fuzz_target;
use moneygo_operator::caches::{Caches, Guarded, ObjectKey};
use moneygo_operator::crd::{MoneyGoCredential, MoneyGoCredentialStatus, Resolved};
use moneygo_operator::plan::{self, Credentials, Observed, Plan, Target};
use moneygo_operator::schedule::{Life, MAX_LIFETIME};
use moneygo_operator::secret::{Owner, Version};
use moneygo_operator::status;
use serde_json::{Value, json};

fuzz_target!(|input: &[u8]| {
    let Ok(Value::Object(mut object)) = serde_json::from_slice(input) else { return };
    object.insert("apiVersion".to_owned(), "money-go.com/v1alpha1".into());
    object.insert("kind".to_owned(), "MoneyGoCredential".into());
    object.insert("metadata".to_owned(), json!({"name": "o", "namespace": "n", "uid": "the-uid", "generation": 3}));
    // One object that cannot be read must not cost the list of all.
    let guarded: Guarded = serde_json::from_value(object.into()).expect("a list is read whole");
    check_kept(&guarded);
    if let Some(credential) = guarded.credential() {
        if let Ok(spec) = credential.resolve() {
            check_spec(&spec);
        }
        check_plan(&credential);
    }
});

/// Packed and unpacked it is the same.
fn check_kept(guarded: &Guarded) {
    let caches = Caches::default();
    let _ = caches.fold_object(Event::Apply(guarded.clone()));
    let kept = caches.credential(&ObjectKey::new("n", "o")).expect("it is kept");
    assert_eq!(kept.credential(), guarded.clone().credential());
}

fn check_spec(spec: &Resolved) {
    for name in [&spec.credentials, &spec.target] {
        assert!(!name.is_empty() && name.len() <= 253, "{name}");
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte)));
    }
    assert_ne!(spec.credentials, spec.target);
    assert_ne!(spec.client_id_key, spec.client_secret_key);
    let keys = [Some(&spec.access_token_key), spec.authorization_key.as_ref(), spec.expires_at_key.as_ref()];
    let keys: Vec<_> = keys.into_iter().flatten().collect();
    assert!(keys.iter().enumerate().all(|(index, key)| !keys[..index].contains(key)), "{keys:?}");
    assert!(spec.labels.len() <= 64 && spec.annotations.len() <= 64);
    for lifetime in [1, 60, 2_592_000] {
        let life = Life::new(Timestamp::UNIX_EPOCH, std::time::Duration::from_secs(lifetime));
        let at = life.refresh_at(spec.renew, "the-uid");
        assert!(at > life.issued_at && at <= life.expires_at, "{at} of {life:?}");
    }
}

fn check_plan(credential: &MoneyGoCredential) {
    let now = "2026-01-01T00:00:00Z".parse().expect("a time");
    let observed = observe(credential, now);
    let planned = plan::plan(&observed);
    if credential.resolve().is_err() {
        assert!(matches!(planned, Plan::Rest(..)), "nothing is asked for an object that cannot be worked with: {planned:?}");
    }
    let Plan::Rest(report, again_at) = plan::account(&observed) else { panic!("an account is a report") };
    assert!(again_at.is_none_or(|at| at > now), "no turning in circles");
    let said = report.status(&observed.status, now);
    let written = serde_json::to_value(status::with_status(credential.clone(), &Version::default(), said.clone())).expect("it can be written");
    let read: MoneyGoCredential = serde_json::from_value(written).expect("what is written can be read");
    assert_eq!((read.status, read.spec), (Some(said.clone()), credential.spec.clone()));
    let again = Observed { status: said.clone(), ..observed };
    let Plan::Rest(report, _) = plan::account(&again) else { panic!("an account is a report") };
    assert_eq!(report.status(&said, now).conditions, said.conditions, "what was said is not said again otherwise");
    assert!(said.expires_at.is_none_or(|at| said.issued_at.is_some_and(|from| at.duration_since(from) <= MAX_LIFETIME)));
}

fn observe(credential: &MoneyGoCredential, now: Timestamp) -> Observed {
    let status = credential.status.clone().unwrap_or_default();
    let mut observed = Observed {
        now,
        owner: Owner { namespace: "n".to_owned(), name: "o".to_owned(), uid: "the-uid".to_owned() },
        version: Version::default(),
        generation: credential.metadata.generation,
        created: None,
        ending: false,
        spec: credential.resolve(),
        refresh_requested: None,
        status,
        failure: None,
        hurried: None,
        may_stand: false,
        leading: true,
        rival: None,
        live: true,
        credentials: Credentials::Seen(Version { uid: "c".to_owned(), resource_version: "1".to_owned() }),
        target: Target::Missing,
        claimed: true,
        held: None,
        has_written: false,
        replaced_at: now,
        changed_at: now,
        mend_at: now,
        digests: true,
        owner_refused: false,
        outage: false,
        stopping: false,
    };
    plan::judge_failure(&mut observed, &plan::Past::default());
    observed
}
