//! A world: what the API server holds and what one process remembers, with the controller's straight line over it.

use super::*;

/// Whatever happens, an object rests after fewer reconciles.
pub(super) const MOST_PASSES: usize = 12;

/// What the endpoint answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    New(u64),
    Rejected,
    Unavailable,
}

#[expect(clippy::struct_excessive_bools, reason = "as in `Observed`")]
pub(super) struct World {
    pub(super) now: Timestamp,
    pub(super) owner: Owner,
    pub(super) generation: i64,
    pub(super) spec: Result<Resolved, SpecProblem>,
    pub(super) refresh_requested: Option<String>,
    pub(super) status: MoneyGoCredentialStatus,
    pub(super) ending: bool,
    pub(super) leading: bool,
    pub(super) rival: Option<String>,
    pub(super) credentials: Option<Secret>,
    pub(super) target: Option<Secret>,
    /// Which field manager wrote a key of the target; none at all where `managedFields` were reset.
    pub(super) writers: Option<BTreeMap<String, String>>,
    pub(super) live_uids: Vec<String>,
    pub(super) key: Option<DigestKey>,
    pub(super) held: Option<(String, Issue, Option<Timestamp>)>,
    pub(super) verified: Option<(Version, bool)>,
    /// The refresh request and the target's version of the last attempt that failed.
    pub(super) attempt: Option<(Option<String>, Option<Version>)>,
    /// When that was, and the digest of the credentials that it was made with.
    pub(super) tried: Option<(Timestamp, String)>,
    pub(super) hurried: Option<Timestamp>,
    pub(super) replacements: Allowance,
    pub(super) changes: Allowance,
    pub(super) mends: Allowance,
    pub(super) owner_refused: bool,
    pub(super) outage: bool,
    pub(super) stopping: bool,
    pub(super) refuses_writes: bool,
    /// Between the write of the target and that of the status.
    pub(super) crashes: bool,
    pub(super) answer: Answer,
    pub(super) versions: u64,
    // What happened.
    pub(super) grants: Vec<Cause>,
    pub(super) requests: usize,
    pub(super) looks: usize,
    pub(super) writes: usize,
    pub(super) status_writes: usize,
    pub(super) again_at: Option<Timestamp>,
}

pub(super) fn resolved() -> Resolved {
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

pub(super) fn data<const N: usize>(pairs: [(&str, &[u8]); N]) -> BTreeMap<String, ByteString> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), ByteString(value.to_vec()))).collect()
}

impl World {
    /// A new object whose credentials are there.
    pub(super) fn new() -> Self {
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
            tried: None,
            hurried: None,
            replacements: Allowance::of_unplanned_grants(),
            changes: Allowance::of_unplanned_grants(),
            mends: Allowance::of_mends(),
            owner_refused: false,
            outage: false,
            stopping: false,
            refuses_writes: false,
            crashes: false,
            answer: Answer::New(HOUR_SECS),
            versions: 100,
            grants: Vec::new(),
            requests: 0,
            looks: 0,
            writes: 0,
            status_writes: 0,
            again_at: None,
        };
        world.set_credentials("id", "secret");
        world
    }

    pub(super) fn spec(&mut self) -> &mut Resolved {
        self.spec.as_mut().unwrap()
    }

    /// An edit of the spec.
    pub(super) fn respec(&mut self, change: impl FnOnce(&mut Resolved)) {
        change(self.spec());
        self.generation += 1;
    }

    pub(super) fn next_version(&mut self) -> String {
        self.versions += 1;
        self.versions.to_string()
    }

    pub(super) fn set_credentials(&mut self, id: &str, secret: &str) {
        self.put_credentials(data([("client_id", id.as_bytes()), ("client_secret", secret.as_bytes())]));
    }

    pub(super) fn put_credentials(&mut self, data: BTreeMap<String, ByteString>) {
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
    pub(super) fn put_target(&mut self, manager: &str, mut secret: Secret) {
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

    pub(super) fn edit_target(&mut self, manager: &str, change: impl FnOnce(&mut Secret)) {
        let mut secret = self.target.clone().unwrap();
        change(&mut secret);
        self.put_target(manager, secret);
    }

    pub(super) fn annotate(&mut self, key: &str, value: Option<&str>) {
        self.edit_target("kubectl", |secret| {
            let annotations = secret.metadata.annotations.get_or_insert_default();
            match value {
                Some(value) => drop(annotations.insert(key.to_owned(), value.to_owned())),
                None => drop(annotations.remove(key)),
            }
        });
    }

    pub(super) fn delete_target(&mut self) {
        self.target = None;
        self.writers = self.writers.as_ref().map(|_| BTreeMap::new());
    }

    pub(super) fn token(&self) -> Option<String> {
        let value = self.target.as_ref()?.data.as_ref()?.get("access_token")?;
        Some(String::from_utf8(value.0.clone()).unwrap())
    }

    pub(super) fn facts(&self) -> Option<Facts> {
        self.target.as_ref().map(|secret| Facts::of(&secret.metadata))
    }

    /// A new process: nothing is remembered but what the API server holds.
    pub(super) fn restart(&mut self) {
        (self.verified, self.held, self.attempt) = (None, None, None);
        (self.tried, self.hurried) = (None, None);
        self.replacements = Allowance::of_unplanned_grants();
        self.changes = Allowance::of_unplanned_grants();
        self.mends = Allowance::of_mends();
        self.owner_refused = false;
    }

    pub(super) fn advance(&mut self, by_secs: i64) {
        self.now = add(self.now, secs(by_secs));
    }

    pub(super) fn observe(&self, live: bool) -> Observed {
        let facts = self.facts();
        let mut o = Observed {
            now: self.now,
            owner: self.owner.clone(),
            version: Version::default(),
            generation: Some(self.generation),
            created: Some(start()),
            ending: self.ending,
            spec: self.spec.clone(),
            refresh_requested: self.refresh_requested.clone(),
            status: self.status.clone(),
            failure: None,
            hurried: None,
            may_stand: false,
            leading: self.leading,
            rival: self.rival.clone(),
            live,
            credentials: Credentials::Missing,
            target: Target::Missing,
            claimed: facts.as_ref().is_none_or(|facts| {
                secret::claim(facts, &self.owner, |uid| self.live_uids.iter().any(|live| live == uid)) == Claim::Ours
            }),
            held: None,
            has_written: false,
            replaced_at: self.replacements.available_at(self.now),
            changed_at: self.changes.available_at(self.now),
            mend_at: self.mends.available_at(self.now),
            digests: self.key.is_some(),
            owner_refused: self.owner_refused,
            outage: self.outage,
            stopping: self.stopping,
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
        let past = Past {
            changed,
            attempted_at: self.tried.as_ref().map(|(at, _)| *at),
            same_client: live && self.tried.as_ref().is_some_and(|(_, digest)| Some(digest) == self.digest().as_ref()),
            hurried: self.hurried,
            ..Past::default()
        };
        judge_failure(&mut o, &past);
        o
    }

    pub(super) fn observe_target(&self, spec: &Resolved, live: bool) -> Target {
        let (Some(secret), Some(facts)) = (&self.target, self.facts()) else { return Target::Missing };
        if live {
            let found = secret::inspect(secret, &facts, spec, life_in_status(&self.status), self.key.as_ref());
            let complete = secret::is_complete(secret, &facts, spec, &found);
            return Target::Read { facts: Box::new(facts), found, complete, immutable: secret.immutable == Some(true) };
        }
        let trusted = match &self.verified {
            Some((version, sound)) => *sound && *version == facts.version,
            None => facts.seal == Seal::Intact,
        };
        Target::Seen { facts: Box::new(facts), trusted }
    }

    pub(super) fn observe_credentials(&self, spec: &Resolved, live: bool) -> Credentials {
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

    /// Of the credentials that are there.
    fn digest(&self) -> Option<String> {
        let (id, secret) = secret::read_credentials(self.credentials.as_ref()?, self.spec.as_ref().ok()?).ok()?;
        Some(self.key.as_ref()?.of_credentials(id, secret))
    }

    pub(super) fn look(&mut self) -> Observed {
        self.looks += 1;
        let o = self.observe(true);
        self.hurried = o.hurried;
        if let Target::Read { facts, found, complete, .. } = &o.target {
            self.verified = Some((facts.version.clone(), *complete && matches!(found, Found::Token(_))));
        }
        o
    }

    /// One reconcile, as the controller does it. Whether there may be more to do at once.
    pub(super) fn pass(&mut self) -> bool {
        let mut o = self.observe(false);
        self.hurried = o.hurried;
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

    pub(super) fn report(&mut self, report: &Report, again_at: Option<Timestamp>) {
        let status = report.status(&self.status, self.now);
        if status != self.status {
            self.status_writes += 1;
            self.status = status;
        }
        self.again_at = again_at;
    }

    pub(super) fn account(&mut self, o: &Observed) {
        if let Plan::Rest(report, again_at) = account(o) {
            self.report(&report, again_at);
        }
    }

    pub(super) fn mint(&mut self, o: &Observed, cause: Cause) {
        for allowed in allowances(o, cause) {
            match allowed {
                Allowed::Always => {}
                Allowed::AsReplacement => self.replacements.take(self.now),
                Allowed::AsChange => self.changes.take(self.now),
            }
        }
        self.requests += 1;
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
            let wait = o.failure.as_ref().and_then(|failure| failure.wait_before(reason, &o.status, expires_at));
            let next = schedule::next_attempt(self.now, backoff, wait, attempts, None, expires_at, &self.owner.uid);
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
        (self.tried, self.hurried) = (None, None);
        self.grants.push(cause);
        self.versions += 1;
        self.held = Some((format!("granted-{}", self.versions), issue, living.map(|life| life.issued_at)));
    }

    pub(super) fn fail(&mut self, o: &Observed, reason: Reason, attempts: i32, next_attempt_at: Timestamp) {
        let failure = Failure { reason, message: "as told".into(), at: self.now, attempts, next_attempt_at };
        let digest = self.digest().filter(|_| reason != Reason::TargetForbidden);
        (self.tried, self.hurried) = (digest.map(|digest| (failure.clone().in_milliseconds().at, digest)), None);
        let target = o.target.facts().map(|facts| facts.version.clone());
        self.attempt = Some((self.refresh_requested.clone(), target.filter(|_| reason == Reason::TargetForbidden)));
        self.account(&Observed { failure: Some(failure.in_milliseconds()), ..o.clone() });
    }

    fn refuse(&mut self, o: &Observed) {
        let attempts = o.failure.as_ref().map_or(1, |failure| failure.attempts + 1);
        let wait = o.failure.as_ref().and_then(|failure| failure.wait_before(Reason::TargetForbidden, &o.status, None));
        let next = schedule::next_attempt(self.now, Backoff::Transient, wait, attempts, None, None, "x");
        self.fail(o, Reason::TargetForbidden, attempts, next);
    }

    pub(super) fn store(&mut self, o: &Observed) {
        let (token, issue, _) = self.held.clone().unwrap();
        if self.refuses_writes {
            return self.refuse(o);
        }
        (self.held, self.attempt, self.hurried) = (None, None, None);
        self.write(&token, &issue);
        let mut o = Observed { held: None, failure: None, ..o.clone() };
        o.status.failed_attempts = None;
        self.stored(&mut o, &issue);
        o.status.last_handled_refresh = issue.refresh_handled.clone().or(o.status.last_handled_refresh.take());
        if !o.ending && !self.crashes {
            self.account(&o);
        }
    }

    pub(super) fn stored(&self, o: &mut Observed, issue: &Issue) {
        let facts = Box::new(self.facts().unwrap());
        o.claimed = true;
        o.target = Target::Read { facts, found: Found::Token(issue.life), complete: true, immutable: false };
        if let Credentials::Read { version, content: Ok(content) } = &mut o.credentials
            && *version == issue.credentials
        {
            *content = Match::Same;
        }
        (o.status.issued_at, o.status.expires_at) = (Some(issue.life.issued_at), Some(issue.life.expires_at));
    }

    pub(super) fn mend(&mut self, o: &Observed, issue: &Issue) {
        let spec = self.spec().clone();
        let facts = self.facts().unwrap();
        let token = secret::stored_token(self.target.as_ref().unwrap(), &facts, &spec).unwrap().to_owned();
        self.mends.take(self.now);
        if self.refuses_writes {
            return self.refuse(o);
        }
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

    pub(super) fn write(&mut self, token: &str, issue: &Issue) {
        let spec = self.spec().clone();
        let ownership = if self.owner_refused { Ownership::AsFound } else { Ownership::AsWanted };
        let content = Content { token, issue };
        let wanted = secret::compose(self.target.as_ref(), &self.owner, &spec, content, self.key.as_ref(), ownership);
        self.put_target(FIELD_MANAGER, wanted);
        self.verified = self.facts().map(|facts| (facts.version, true));
    }

    /// Reconciles until there is nothing more to do now, and once more to see that this stays so.
    #[track_caller]
    pub(super) fn settle(&mut self) {
        for _ in 0..MOST_PASSES {
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

    pub(super) fn forget_the_past(&mut self) {
        self.grants.clear();
        (self.requests, self.looks, self.writes, self.status_writes) = (0, 0, 0, 0);
    }

    /// (status, reason) of a condition.
    #[track_caller]
    pub(super) fn condition(&self, kind: ConditionType) -> (&str, &str) {
        let found = condition(&self.status, kind).unwrap_or_else(|| panic!("{kind:?} is missing"));
        assert_eq!(found.observed_generation, Some(self.generation), "{kind:?}");
        (&found.status, &found.reason)
    }

    #[track_caller]
    pub(super) fn assert_conditions(&self, ready: (&str, &str), refreshed: (&str, &str), stalled: &str) {
        assert_eq!(self.condition(ConditionType::Ready), ready);
        assert_eq!(self.condition(ConditionType::Refreshed), refreshed);
        assert_eq!(self.condition(ConditionType::Stalled).0, stalled);
    }

    #[track_caller]
    pub(super) fn assert_well(&self) {
        self.assert_conditions(("True", "TokenValid"), ("True", "Succeeded"), "False");
    }
}

pub(super) fn managed_fields(writers: &BTreeMap<String, String>) -> Vec<ManagedFieldsEntry> {
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
pub(super) fn scene() -> World {
    let mut world = World::new();
    world.settle();
    world.advance(600);
    world.settle();
    world.forget_the_past();
    world
}

/// As [`scene`], but the credentials were rotated to a pair that the endpoint refuses, which was found just now.
pub(super) fn rejected() -> World {
    let mut world = scene();
    world.set_credentials("id", "rotated");
    world.answer = Answer::Rejected;
    world.pass_until_one_fails();
    world.settle();
    assert_eq!(world.condition(ConditionType::Refreshed), ("False", "InvalidClient"));
    world.forget_the_past();
    world
}

impl World {
    /// Reconciles until an attempt has failed, or there is nothing more to do now.
    #[track_caller]
    pub(super) fn pass_until_one_fails(&mut self) {
        let before = self.status.failed_attempts;
        for _ in 0..MOST_PASSES {
            if !self.pass() || self.status.failed_attempts != before {
                return;
            }
        }
        panic!("it never rests");
    }

    /// As `settle`, where an attempt is due that fails.
    pub(super) fn settle_failing(&mut self) {
        for _ in 0..MOST_PASSES {
            if !self.pass() {
                return;
            }
        }
        panic!("it never rests");
    }
}
