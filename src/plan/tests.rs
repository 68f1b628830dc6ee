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

// ---- A world: what the API server holds and what one process remembers, with the controller's straight line ---------

/// What the endpoint answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    New(u64),
    Rejected,
    Unavailable,
}

struct World {
    now: Timestamp,
    owner: Owner,
    generation: i64,
    spec: Result<Resolved, SpecProblem>,
    refresh_requested: Option<String>,
    status: MoneyGoCredentialStatus,
    ending: bool,
    leading: bool,
    rival: Option<String>,
    credentials: Option<Secret>,
    target: Option<Secret>,
    /// Which field manager wrote a key of the target; none at all where `managedFields` were reset.
    writers: Option<BTreeMap<String, String>>,
    live_uids: Vec<String>,
    key: Option<DigestKey>,
    held: Option<(String, Issue, Option<Timestamp>)>,
    verified: Option<(Version, bool)>,
    /// The refresh request and the target's version of the last attempt that failed.
    attempt: Option<(Option<String>, Option<Version>)>,
    replacements: Allowance,
    changes: Allowance,
    mends: Allowance,
    owner_refused: bool,
    outage: bool,
    refuses_writes: bool,
    /// Between the write of the target and that of the status.
    crashes: bool,
    answer: Answer,
    versions: u64,
    // What happened.
    grants: Vec<Cause>,
    looks: usize,
    writes: usize,
    status_writes: usize,
    again_at: Option<Timestamp>,
}

fn resolved() -> Resolved {
    Resolved {
        credentials: "client".into(),
        client_id_key: "client_id".into(),
        client_secret_key: "client_secret".into(),
        scope: "api".into(),
        target: "token".into(),
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

fn data<const N: usize>(pairs: [(&str, &[u8]); N]) -> BTreeMap<String, ByteString> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), ByteString(value.to_vec()))).collect()
}

impl World {
    /// A new object whose credentials are there.
    fn new() -> Self {
        let mut world = Self {
            now: start(),
            owner: Owner { namespace: "shop".into(), name: "token".into(), uid: "uid-1".into() },
            generation: 1,
            spec: Ok(resolved()),
            refresh_requested: None,
            status: MoneyGoCredentialStatus::default(),
            ending: false,
            leading: true,
            rival: None,
            credentials: None,
            target: None,
            writers: Some(BTreeMap::new()),
            live_uids: vec!["uid-1".into()],
            key: DigestKey::new(&[7; 32]),
            held: None,
            verified: None,
            attempt: None,
            replacements: Allowance::of_unplanned_grants(),
            changes: Allowance::of_unplanned_grants(),
            mends: Allowance::of_mends(),
            owner_refused: false,
            outage: false,
            refuses_writes: false,
            crashes: false,
            answer: Answer::New(HOUR_SECS),
            versions: 100,
            grants: Vec::new(),
            looks: 0,
            writes: 0,
            status_writes: 0,
            again_at: None,
        };
        world.set_credentials("id", "secret");
        world
    }

    fn spec(&mut self) -> &mut Resolved {
        self.spec.as_mut().unwrap()
    }

    /// An edit of the spec.
    fn respec(&mut self, change: impl FnOnce(&mut Resolved)) {
        change(self.spec());
        self.generation += 1;
    }

    fn next_version(&mut self) -> String {
        self.versions += 1;
        self.versions.to_string()
    }

    fn set_credentials(&mut self, id: &str, secret: &str) {
        self.put_credentials(data([("client_id", id.as_bytes()), ("client_secret", secret.as_bytes())]));
    }

    fn put_credentials(&mut self, data: BTreeMap<String, ByteString>) {
        let uid = self.credentials.as_ref().and_then(|secret| secret.metadata.uid.clone());
        let (uid, version) = (uid.unwrap_or_else(|| "credentials-uid".into()), self.next_version());
        let metadata = ObjectMeta {
            name: Some("client".into()),
            uid: Some(uid),
            resource_version: Some(version),
            ..ObjectMeta::default()
        };
        self.credentials = Some(Secret { metadata, data: Some(data), ..Secret::default() });
    }

    /// As the API server does: who changes a key of the data owns it.
    fn put_target(&mut self, manager: &str, mut secret: Secret) {
        let before = self.target.as_ref().and_then(|secret| secret.data.clone()).unwrap_or_default();
        let after = secret.data.clone().unwrap_or_default();
        let version = self.next_version();
        if let Some(writers) = &mut self.writers {
            writers.retain(|key, _| after.contains_key(key));
            for (key, value) in &after {
                if before.get(key) != Some(value) {
                    writers.insert(key.clone(), manager.to_owned());
                }
            }
        }
        secret.metadata.uid.get_or_insert_with(|| format!("target-{version}"));
        secret.metadata.resource_version = Some(version);
        secret.metadata.managed_fields = self.writers.as_ref().map(managed_fields);
        self.target = Some(secret);
        self.writes += 1;
    }

    fn edit_target(&mut self, manager: &str, change: impl FnOnce(&mut Secret)) {
        let mut secret = self.target.clone().unwrap();
        change(&mut secret);
        self.put_target(manager, secret);
    }

    fn annotate(&mut self, key: &str, value: Option<&str>) {
        self.edit_target("kubectl", |secret| {
            let annotations = secret.metadata.annotations.get_or_insert_default();
            match value {
                Some(value) => drop(annotations.insert(key.to_owned(), value.to_owned())),
                None => drop(annotations.remove(key)),
            }
        });
    }

    fn delete_target(&mut self) {
        self.target = None;
        self.writers = self.writers.as_ref().map(|_| BTreeMap::new());
    }

    fn token(&self) -> Option<String> {
        let value = self.target.as_ref()?.data.as_ref()?.get("access_token")?;
        Some(String::from_utf8(value.0.clone()).unwrap())
    }

    fn facts(&self) -> Option<Facts> {
        self.target.as_ref().map(|secret| Facts::of(&secret.metadata))
    }

    /// A new process: nothing is remembered but what the API server holds.
    fn restart(&mut self) {
        (self.verified, self.held, self.attempt) = (None, None, None);
        self.replacements = Allowance::of_unplanned_grants();
        self.changes = Allowance::of_unplanned_grants();
        self.mends = Allowance::of_mends();
        self.owner_refused = false;
    }

    fn advance(&mut self, by_secs: i64) {
        self.now = add(self.now, secs(by_secs));
    }

    fn observe(&self, live: bool) -> Observed {
        let facts = self.facts();
        let mut o = Observed {
            now: self.now,
            owner: self.owner.clone(),
            generation: Some(self.generation),
            created: Some(start()),
            ending: self.ending,
            spec: self.spec.clone(),
            refresh_requested: self.refresh_requested.clone(),
            status: self.status.clone(),
            failure: None,
            leading: self.leading,
            rival: self.rival.clone(),
            live,
            credentials: Credentials::Missing,
            target: Target::Missing,
            claimed: facts.as_ref().is_none_or(|facts| {
                secret::claim(facts, &self.owner, |uid| self.live_uids.iter().any(|live| live == uid)) == Claim::Ours
            }),
            held: None,
            replaced_at: self.replacements.available_at(self.now),
            changed_at: self.changes.available_at(self.now),
            mend_at: self.mends.available_at(self.now),
            digests: self.key.is_some(),
            owner_refused: self.owner_refused,
            outage: self.outage,
        };
        if let Ok(spec) = &self.spec {
            o.target = self.observe_target(spec, live);
            o.credentials = self.observe_credentials(spec, live);
            let stored = self.target.as_ref().filter(|_| live).zip(facts.as_ref());
            let stored = stored.and_then(|(secret, facts)| secret::stored_token(secret, facts, spec));
            o.held = self.held.as_ref().map(|(token, issue, replaces)| Held {
                issue: issue.clone(),
                replaces: *replaces,
                is_stored: stored == Some(token),
            });
        }
        if self.spec.is_err() && self.status.target_name.is_some() {
            o.target = self.observe_target(&resolved(), false);
        }
        let changed = self.attempt.as_ref().is_some_and(|(request, target)| {
            *request != self.refresh_requested
                || target.is_some() && *target != facts.as_ref().map(|facts| facts.version.clone())
        });
        o.failure = standing_failure(&o, changed);
        o
    }

    fn observe_target(&self, spec: &Resolved, live: bool) -> Target {
        let (Some(secret), Some(facts)) = (&self.target, self.facts()) else { return Target::Missing };
        if live {
            let found = secret::inspect(secret, &facts, spec, life_in_status(&self.status), self.key.as_ref());
            return Target::Read { facts: Box::new(facts), found, immutable: secret.immutable == Some(true) };
        }
        let trusted = match &self.verified {
            Some((version, sound)) => *sound && *version == facts.version,
            None => facts.seal == Seal::Intact,
        };
        Target::Seen { facts: Box::new(facts), trusted }
    }

    fn observe_credentials(&self, spec: &Resolved, live: bool) -> Credentials {
        let Some(secret) = &self.credentials else { return Credentials::Missing };
        let version = Version::of(&secret.metadata);
        if !live {
            return Credentials::Seen(version);
        }
        let stored = self.facts().and_then(|facts| facts.marks.credentials_digest);
        let compare = |key: &DigestKey, id, secret| key.compare(stored.as_deref(), &key.of_credentials(id, secret));
        let content = secret::read_credentials(secret, spec)
            .map(|(id, secret)| self.key.as_ref().map_or(Match::Unknown, |key| compare(key, id, secret)));
        Credentials::Read { version, content }
    }

    fn look(&mut self) -> Observed {
        self.looks += 1;
        let o = self.observe(true);
        if let Target::Read { facts, found, .. } = &o.target {
            self.verified = Some((facts.version.clone(), matches!(found, Found::Token(_))));
        }
        o
    }

    /// One reconcile, as the controller does it. Whether there may be more to do at once.
    fn pass(&mut self) -> bool {
        let mut o = self.observe(false);
        let mut next = plan(&o);
        assert!(!matches!(next, Plan::Mint(_) | Plan::Mend(_) | Plan::Store), "{next:?} without a look");
        if matches!(next, Plan::Look | Plan::LookToMint) {
            o = self.look();
            next = plan(&o);
            assert!(!matches!(next, Plan::Look | Plan::LookToMint), "a look after a look: {o:#?}");
        }
        self.again_at = None;
        match next {
            Plan::Stand => return false,
            Plan::Rest(report, again_at) => {
                self.report(&report, again_at);
                return false;
            }
            Plan::Mint(cause) => self.mint(&o, cause),
            Plan::Store => self.store(&o),
            Plan::Forget => self.held = None,
            Plan::Mend(issue) => self.mend(&o, &issue),
            Plan::Look | Plan::LookToMint => {}
        }
        true
    }

    fn report(&mut self, report: &Report, again_at: Option<Timestamp>) {
        let status = report.status(&self.status, self.now);
        if status != self.status {
            self.status_writes += 1;
            self.status = status;
        }
        self.again_at = again_at;
    }

    fn account(&mut self, o: &Observed) {
        if let Plan::Rest(report, again_at) = account(o) {
            self.report(&report, again_at);
        }
    }

    fn mint(&mut self, o: &Observed, cause: Cause) {
        match cause.allowance() {
            Allowed::Always => {}
            Allowed::AsReplacement => self.replacements.take(self.now),
            Allowed::AsChange => self.changes.take(self.now),
        }
        let spec = self.spec().clone();
        let (lifetime_secs, reason, backoff) = match self.answer {
            Answer::New(secs) => (secs, Reason::Succeeded, Backoff::Transient),
            Answer::Rejected => (0, Reason::InvalidClient, Backoff::Rejected),
            Answer::Unavailable => (0, Reason::EndpointUnavailable, Backoff::Transient),
        };
        let living = if let Target::Read { found: Found::Token(life), .. } = &o.target { Some(*life) } else { None };
        if reason != Reason::Succeeded {
            let attempts = o.failure.as_ref().map_or(1, |failure| failure.attempts + 1);
            let expires_at = living.map(|life| life.expires_at);
            let next = schedule::next_attempt(self.now, backoff, attempts, None, expires_at, &self.owner.uid);
            return self.fail(o, reason, attempts, next);
        }
        let credentials = self.credentials.as_ref().unwrap();
        let (id, client_secret) = secret::read_credentials(credentials, &spec).unwrap();
        let issue = Issue {
            life: Life::new(self.now, Duration::from_secs(lifetime_secs)),
            scope: spec.scope.clone(),
            refresh_handled: self.refresh_requested.clone(),
            credentials: Version::of(&credentials.metadata),
            credentials_digest: self.key.as_ref().map(|key| key.of_credentials(id, client_secret)),
        };
        self.grants.push(cause);
        self.versions += 1;
        self.held = Some((format!("granted-{}", self.versions), issue, living.map(|life| life.issued_at)));
    }

    fn fail(&mut self, o: &Observed, reason: Reason, attempts: i32, next_attempt_at: Timestamp) {
        let failure = Failure { reason, message: "as told".into(), at: self.now, attempts, next_attempt_at };
        let target = o.target.facts().map(|facts| facts.version.clone());
        self.attempt = Some((self.refresh_requested.clone(), target.filter(|_| reason == Reason::TargetForbidden)));
        self.account(&Observed { failure: Some(failure.in_milliseconds()), ..o.clone() });
    }

    fn store(&mut self, o: &Observed) {
        let (token, issue, _) = self.held.clone().unwrap();
        if self.refuses_writes {
            let attempts = o.failure.as_ref().map_or(1, |failure| failure.attempts + 1);
            let next = schedule::next_attempt(self.now, Backoff::Transient, attempts, None, None, "x");
            return self.fail(o, Reason::TargetForbidden, attempts, next);
        }
        (self.held, self.attempt) = (None, None);
        self.write(&token, &issue);
        let mut o = Observed { held: None, failure: None, ..o.clone() };
        o.status.failed_attempts = None;
        self.stored(&mut o, &issue);
        if !o.ending && !self.crashes {
            self.account(&o);
        }
    }

    fn stored(&self, o: &mut Observed, issue: &Issue) {
        let facts = Box::new(self.facts().unwrap());
        o.claimed = true;
        o.target = Target::Read { facts, found: Found::Token(issue.life), immutable: false };
        if let Credentials::Read { version, content: Ok(content) } = &mut o.credentials
            && *version == issue.credentials
        {
            *content = Match::Same;
        }
        (o.status.issued_at, o.status.expires_at) = (Some(issue.life.issued_at), Some(issue.life.expires_at));
    }

    fn mend(&mut self, o: &Observed, issue: &Issue) {
        let spec = self.spec().clone();
        let facts = self.facts().unwrap();
        let token = secret::stored_token(self.target.as_ref().unwrap(), &facts, &spec).unwrap().to_owned();
        self.mends.take(self.now);
        let mut issue = issue.clone();
        let known = matches!(o.credentials, Credentials::Read { content: Ok(Match::Same | Match::Different), .. });
        if let (false, true, Some(key), Some(secret)) = (known, is_restampable(o), &self.key, &self.credentials)
            && let Ok((id, client_secret)) = secret::read_credentials(secret, &spec)
        {
            issue.credentials_digest = Some(key.of_credentials(id, client_secret));
        }
        self.write(&token, &issue);
        let mut o = o.clone();
        self.stored(&mut o, &issue);
        if let Plan::Rest(report, again_at) = plan(&o) {
            self.report(&report, again_at);
        }
    }

    fn write(&mut self, token: &str, issue: &Issue) {
        let spec = self.spec().clone();
        let ownership = if self.owner_refused { Ownership::AsFound } else { Ownership::AsWanted };
        let content = Content { token, issue };
        let wanted = secret::compose(self.target.as_ref(), &self.owner, &spec, content, self.key.as_ref(), ownership);
        self.put_target(FIELD_MANAGER, wanted);
        self.verified = self.facts().map(|facts| (facts.version, true));
    }

    /// Reconciles until there is nothing more to do now, and once more to see that this stays so.
    #[track_caller]
    fn settle(&mut self) {
        for _ in 0..12 {
            if !self.pass() {
                let before = (self.grants.len(), self.writes, self.status.clone());
                assert!(!self.pass(), "what rested does not rest");
                let after = (self.grants.len(), self.writes, self.status.clone());
                assert_eq!(after, before, "a second look at the same facts wrote something");
                return;
            }
        }
        panic!("it never rests: {:#?}", self.observe(true));
    }

    fn forget_the_past(&mut self) {
        self.grants.clear();
        (self.looks, self.writes, self.status_writes) = (0, 0, 0);
    }

    /// (status, reason) of a condition.
    #[track_caller]
    fn condition(&self, kind: ConditionType) -> (&str, &str) {
        let found = condition(&self.status, kind).unwrap_or_else(|| panic!("{kind:?} is missing"));
        assert_eq!(found.observed_generation, Some(self.generation), "{kind:?}");
        (&found.status, &found.reason)
    }

    #[track_caller]
    fn assert_conditions(&self, ready: (&str, &str), refreshed: (&str, &str), stalled: &str) {
        assert_eq!(self.condition(ConditionType::Ready), ready);
        assert_eq!(self.condition(ConditionType::Refreshed), refreshed);
        assert_eq!(self.condition(ConditionType::Stalled).0, stalled);
    }

    #[track_caller]
    fn assert_well(&self) {
        self.assert_conditions(("True", "TokenValid"), ("True", "Succeeded"), "False");
    }
}

fn managed_fields(writers: &BTreeMap<String, String>) -> Vec<ManagedFieldsEntry> {
    let mut entries: BTreeMap<&str, serde_json::Map<String, serde_json::Value>> = BTreeMap::new();
    for (key, manager) in writers {
        entries.entry(manager).or_default().insert(format!("f:{key}"), json!({}));
    }
    let entry = |(manager, fields): (&str, _)| ManagedFieldsEntry {
        manager: Some(manager.to_owned()),
        fields_v1: Some(FieldsV1(json!({ "f:data": fields }))),
        ..ManagedFieldsEntry::default()
    };
    entries.into_iter().map(entry).collect()
}

/// A healthy object, ten minutes into the hour that its token lives.
fn scene() -> World {
    let mut world = World::new();
    world.settle();
    world.advance(600);
    world.settle();
    world.forget_the_past();
    world
}

/// As [`scene`], but the credentials were rotated to a pair that the endpoint refuses, which was found just now.
fn rejected() -> World {
    let mut world = scene();
    world.set_credentials("id", "rotated");
    world.answer = Answer::Rejected;
    while world.pass() && world.status.failed_attempts.is_none() {}
    world.settle();
    assert_eq!(world.condition(ConditionType::Refreshed), ("False", "InvalidClient"));
    world.forget_the_past();
    world
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

type Change = (&'static str, fn(&mut World));

#[test]
fn what_calls_for_a_new_token_gets_exactly_one() {
    let cases: [(&str, fn(&mut World), Cause); 15] = [
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
    let cases: [Change; 24] = [
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

#[track_caller]
fn assert_that_a_crash_before_the_status_costs_nothing(mut world: World) {
    world.advance(2000);
    world.crashes = true;
    while world.grants.is_empty() || world.held.is_some() {
        assert!(world.pass());
    }
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
#[ignore = "bug: without a digest key the status's earlier expiry is believed, though it is another token's"]
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
    let cases: [(fn(&mut World), &str, &str); 3] = [
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
    while world.changes.available_at(world.now) <= world.now {
        world.changes.take(world.now);
    }
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
    while world.pass() && world.status.failed_attempts.is_none() {}
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
    let obstacles: [(&str, fn(&mut World), &str); 6] = [
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
    assert_eq!(plan(&world.observe(false)), Plan::Forget, "Delete: the target goes, too");

    let mut world = holding();
    retain(&mut world);
    world.ending = true;
    assert_eq!(plan(&world.observe(false)), Plan::Look);
    assert_eq!(plan(&world.observe(true)), Plan::Store);
    let (token, ..) = world.held.clone().unwrap();
    world.settle();
    assert_eq!((world.token(), world.status_writes), (Some(token), 0), "the status is not written");

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
    while world.pass() && world.status.failed_attempts.is_none() {}
    world.settle();
    world.assert_conditions(("False", "InvalidClient"), ("False", "InvalidClient"), "True");
    let o = world.observe(false);
    assert!(o.failure.is_some());
    assert!(standing_failure(&o, true).is_none(), "the request or the target is another");
    let generation = Observed { generation: Some(2), ..o.clone() };
    assert!(standing_failure(&generation, false).is_none(), "the spec is another");
    let credentials = Observed { credentials: Credentials::Seen(Version::default()), ..o.clone() };
    assert!(standing_failure(&credentials, false).is_none(), "the credentials are others");
    let missing = Observed { credentials: Credentials::Missing, ..o.clone() };
    assert!(standing_failure(&missing, false).is_some(), "credentials that are gone mend nothing");
    let healed = Observed { status: MoneyGoCredentialStatus::default(), ..o.clone() };
    assert!(standing_failure(&healed, false).is_none());
    let later = Observed { now: add(o.now, secs(60)), ..o.clone() };
    assert_eq!(standing_failure(&later, false), o.failure, "time alone changes nothing");
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
            while world.pass() && world.status.failed_attempts.is_none() {}
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
fn failures_in_a_row_are_counted_and_ready_stays_true_until_the_token_ends() {
    let mut world = scene();
    world.answer = Answer::Unavailable;
    world.advance(2000);
    let token = world.token();
    let expires_at = world.status.expires_at.unwrap();
    let mut attempts = 0;
    while world.now < expires_at {
        while world.pass() && world.status.failed_attempts.unwrap_or_default() == attempts {}
        attempts += 1;
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

impl World {
    /// As `settle`, where an attempt is due that fails.
    fn settle_failing(&mut self) {
        for _ in 0..12 {
            if !self.pass() {
                return;
            }
        }
        panic!("it never rests");
    }
}

#[test]
fn an_outage_is_told_only_where_there_is_no_token() {
    let mut world = World::new();
    world.outage = true;
    let Plan::Rest(report, _) = account(&world.observe(false)) else { panic!("an account is a rest") };
    assert_eq!(report.ready.reason, Reason::EndpointUnavailable);
    let mut world = scene();
    world.outage = true;
    world.settle();
    world.assert_well();
}

#[test]
fn an_object_that_waits_for_leave_is_pending() {
    let Plan::Rest(report, _) = account(&World::new().observe(false)) else { panic!("an account is a rest") };
    assert_eq!((report.ready.state, report.ready.reason), (State::False, Reason::Pending));
    assert_eq!((report.refreshed.state, report.refreshed.reason), (State::Unknown, Reason::Pending));
    assert_eq!(report.stalled.state, State::False);
}

#[test]
fn what_a_success_says_of_the_next_refresh() {
    let message = |world: &World| condition(&world.status, ConditionType::Refreshed).unwrap().message.clone();
    let mut world = scene();
    world.respec(|spec| spec.renew = Renew::Before(Duration::from_secs(7200)));
    world.settle();
    assert!(message(&world).contains("nine tenths"), "{}", message(&world));

    let mut world = scene();
    let (token, mut issue) = (world.token().unwrap(), world.held.clone().map(|held| held.1).unwrap_or_else(an_issue));
    issue.life = Life { repeated: true, ..Life::new(world.now, Duration::from_secs(3000)) };
    world.write(&token, &issue);
    world.settle();
    assert!(message(&world).contains("halfway"), "{}", message(&world));
    assert_eq!(world.status.refresh_at, Some(add(world.now, secs(1500))));
    assert_eq!(world.grants, []);
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
    assert_eq!(urgency(&new), start());
    assert_eq!(urgency(&Observed { created: None, ..new.clone() }), new.now);
    let mut world = scene();
    assert_eq!(urgency(&world.observe(false)), add(start(), secs(3600)));
    world.annotate(annotation::EXPIRES_AT, Some("3000-01-01T00:00:00Z"));
    assert_eq!(urgency(&world.observe(false)), start(), "no lifetime above the cap is believed");
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

// ---- Anything, in any order ------------------------------------------------------------------------------------------

/// Small, and the same everywhere: xorshift64*.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.roll(one_in) == 0
    }
}

const ANNOTATIONS: [&str; 12] = [
    annotation::ADOPT,
    annotation::ISSUED_AT,
    annotation::EXPIRES_AT,
    annotation::REFRESH_AT,
    annotation::SCOPE,
    annotation::REFRESH_HANDLED,
    annotation::CREDENTIALS_UID,
    annotation::CREDENTIALS_RESOURCE_VERSION,
    annotation::TOKEN_HMAC,
    annotation::CREDENTIALS_HMAC,
    annotation::APPLIED,
    annotation::SAME_TOKEN,
];

fn disturb(world: &mut World, dice: &mut Dice) -> &'static str {
    let times = ["2026-01-01T00:20:00Z", "3000-01-01T00:00:00Z", "1990-01-01T00:00:00Z", "never", ""];
    let kind = dice.roll(26);
    let has_target = world.target.is_some();
    let has_spec = world.spec.is_ok();
    match kind {
        0 => world.advance(i64::try_from(dice.roll(5000)).unwrap()),
        1 => world.advance(-i64::try_from(dice.roll(2000)).unwrap()),
        2 => world.restart(),
        3 => world.delete_target(),
        4 if has_target => world.edit_target("evil", |s| s.data = Some(data([("access_token", b"x")]))),
        5 | 6 if has_target => {
            let key = ANNOTATIONS[usize::try_from(dice.roll(12)).unwrap()];
            let value = times[usize::try_from(dice.roll(5)).unwrap()];
            world.annotate(key, if dice.chance(2) { None } else { Some(value) });
        }
        7 if has_target => world.edit_target("kubectl", |s| s.metadata.annotations = None),
        8 if has_target => world.edit_target("kubectl", |s| s.metadata.labels = None),
        9 if has_target => world.edit_target("kubectl", |s| s.metadata.owner_references = None),
        10 => world.status = MoneyGoCredentialStatus::default(),
        11 => world.status.expires_at = times[usize::try_from(dice.roll(3)).unwrap()].parse().ok(),
        12 => world.status.issued_at = times[usize::try_from(dice.roll(3)).unwrap()].parse().ok(),
        13 => world.status.next_attempt_at = times[usize::try_from(dice.roll(3)).unwrap()].parse().ok(),
        14 => world.refresh_requested = (!dice.chance(3)).then(|| format!("r{}", dice.roll(3))),
        15 => world.set_credentials("id", ["secret", "other", "wrong "][usize::try_from(dice.roll(3)).unwrap()]),
        16 => world.credentials = None,
        17 if has_spec => world.respec(|spec| spec.scope = if spec.scope == "api" { "b".into() } else { "api".into() }),
        18 if has_spec => world.respec(|spec| spec.suspend = !spec.suspend),
        19 if has_spec => world.respec(|spec| {
            spec.access_token_key = if spec.access_token_key == "t" { "access_token".into() } else { "t".into() };
        }),
        20 if has_spec => {
            let renew = [Renew::ThirdLeft, Renew::PercentLeft(90), Renew::Before(Duration::from_secs(9000))];
            let renew = renew[usize::try_from(dice.roll(3)).unwrap()];
            world.respec(|spec| spec.renew = renew);
        }
        21 => {
            world.key = [None, DigestKey::new(&[7; 32]), DigestKey::new(&[8; 32])]
                [usize::try_from(dice.roll(3)).unwrap()]
            .clone()
        }
        22 => {
            world.writers = if world.writers.is_some() { None } else { Some(BTreeMap::new()) };
            if has_target {
                world.edit_target("kubectl", |_| {});
            }
        }
        23 => {
            let answers = [Answer::New(HOUR_SECS), Answer::New(2), Answer::Rejected, Answer::Unavailable];
            world.answer = answers[usize::try_from(dice.roll(4)).unwrap()];
        }
        24 => {
            world.spec = if has_spec && dice.chance(3) { Err(SpecProblem::Scope) } else { Ok(resolved()) };
            world.generation += 1;
        }
        25 => match dice.roll(5) {
            0 => world.rival = if world.rival.is_some() { None } else { Some("r".into()) },
            1 => world.owner_refused = !world.owner_refused,
            2 => world.outage = !world.outage,
            3 => world.leading = !world.leading,
            _ => world.refuses_writes = !world.refuses_writes,
        },
        _ => {}
    }
    [
        "clock on",
        "clock back",
        "restart",
        "delete",
        "edit",
        "annotate",
        "annotate",
        "strip",
        "labels",
        "owners",
        "status",
        "expiresAt",
        "issuedAt",
        "nextAttemptAt",
        "request",
        "credentials",
        "no credentials",
        "scope",
        "suspend",
        "key name",
        "renew",
        "digest key",
        "managedFields",
        "answer",
        "spec",
        "other",
    ][usize::try_from(kind).unwrap()]
}

/// What holds of every plan, whatever was observed.
fn assert_bounds(world: &World, name: &str) {
    for ending in [world.ending, true] {
        for live in [false, true] {
            let o = Observed { ending, ..world.observe(live) };
            let next = plan(&o);
            assert_eq!(next, plan(&o), "{name}: the same facts, the same plan");
            match &next {
                Plan::Look | Plan::LookToMint => assert!(!live, "{name}"),
                Plan::Mint(_) | Plan::Mend(_) | Plan::Store => assert!(live, "{name}"),
                Plan::Rest(_, Some(again_at)) => assert!(*again_at > o.now, "{name}"),
                Plan::Rest(_, None) | Plan::Stand | Plan::Forget => {}
            }
            let acts = matches!(next, Plan::Mint(_) | Plan::LookToMint | Plan::Mend(_));
            let writes = acts || next == Plan::Store;
            assert!(!acts || (o.leading || o.held.is_some()) && !ending, "{name}: {next:?}");
            assert!(!writes || o.claimed && (o.rival.is_none() || ending) && o.spec.is_ok(), "{name}: {next:?}");
            let suspended = o.spec.as_ref().is_ok_and(|spec| spec.suspend);
            assert!(!suspended || !matches!(next, Plan::Mint(_) | Plan::LookToMint), "{name}: {next:?}");
            if let Plan::Rest(report, _) = &next {
                let (ready, stalled) = (report.ready.state, report.stalled.state);
                assert!(stalled != State::True || ready == State::False, "{name}: stalled and ready");
                assert!(suspended || report.refreshed.reason != Reason::Suspended, "{name}");
                if ready == State::True {
                    assert!(report.expires_at.is_some_and(|at| at > o.now), "{name}: ready, and expired");
                }
            }
        }
    }
}

/// Disturbs a world a few times and reconciles after each.
fn live_through(seed: u64) {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut world = if dice.chance(4) { World::new() } else { scene() };
    let mut story = Vec::new();
    for _ in 0..12 {
        let disturbances = 1 + dice.roll(2);
        for _ in 0..disturbances {
            story.push(disturb(&mut world, &mut dice));
        }
        let name = format!("seed {seed}: {story:?}");
        assert_bounds(&world, &name);
        rest(&mut world, &name);
    }
}

fn rest(world: &mut World, name: &str) {
    let (grants, writes) = (world.grants.len(), world.writes);
    let mut passes = 0;
    while world.pass() {
        passes += 1;
        assert!(passes < 12, "{name}: it never rests: {:#?}", world.observe(true));
        assert_bounds(world, name);
    }
    assert!(world.grants.len() <= grants + 2, "{name}: {:?}", &world.grants[grants..]);
    assert!(world.writes <= writes + 3, "{name}: {} writes", world.writes - writes);
    // What was reported can show that there is more to mend, but not for ever.
    for _ in 0..3 {
        let before = (world.grants.len(), world.writes, world.status.clone());
        let acted = world.pass();
        if !acted && (world.grants.len(), world.writes, world.status.clone()) == before {
            return;
        }
    }
    panic!("{name}: a loop of writes: {:#?}", world.observe(true));
}

#[test]
fn whatever_happens_in_whatever_order_it_comes_to_rest_and_stays_there() {
    for seed in 0..500 {
        live_through(seed);
    }
}
