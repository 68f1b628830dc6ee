//! One replica's turn: how it carries a plan out, up to the next call of the API server or of Money-Go.
//!
//! What is planned, composed, judged and reported is the operator's own code. What stands here is the thread between: each
//! function bears the name of its model in `src/controller`.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use moneygo_operator::crd::{DeletionPolicy, Reason, Resolved};
use moneygo_operator::digest::{DigestKey, Match};
use moneygo_operator::memory::Attempt;
use moneygo_operator::plan::{self, Allowed, Cause, Credentials, Failed, Held, Observed, Past, Plan, Target};
use moneygo_operator::schedule::{self, Backoff, Life, Renew};
use moneygo_operator::secret::{self, Content, Facts, Found, Issue, Owner, Ownership, Version};
use moneygo_operator::status::{Failure, Report, State};

use crate::replica::{HeldToken, Next, Pass, Replica, object_version};
use crate::setting::Setting;
use crate::shared::Shared;
use crate::world::{TOKEN_KEY, World, token_text};

/// A promise that was not kept.
pub type Broken = &'static str;

/// A replica whose turn it is, and everything else.
pub struct Turn<'a> {
    /// How far the model goes.
    pub setting: &'a Setting,
    /// Everything.
    pub world: &'a mut World,
    /// Which replica.
    pub at: usize,
    /// The promise that was not kept on the way.
    pub broken: Option<Broken>,
}

impl Turn<'_> {
    fn me(&mut self) -> &mut Replica {
        &mut self.world.replicas[self.at]
    }

    fn now(&self) -> Timestamp {
        self.world.clock(self.setting, self.at)
    }

    fn leads(&self) -> bool {
        self.world.leader == Some(self.at)
    }

    fn ensure(&mut self, kept: bool, promise: Broken) {
        if !kept {
            self.broken.get_or_insert(promise);
        }
    }

    /// The operator's own plan, and what must hold of every plan.
    fn plan(&mut self, o: &Observed) -> Plan {
        let plan = plan::plan(o);
        let is_grant = matches!(plan, Plan::Mint(_) | Plan::LookToMint);
        self.ensure(!is_grant || o.leading || o.held.is_some(), "only a leader asks, or who holds a token");
        let is_over = o.held.as_ref().is_some_and(|held| held.issue.life.is_expired(o.now));
        self.ensure(plan != Plan::Store || !is_over, "no expired token is written");
        if let Plan::Rest(report, _) = &plan {
            self.ensure_truth(o, report);
        }
        plan
    }

    fn ensure_truth(&mut self, o: &Observed, report: &Report) {
        let lives = report.expires_at.is_some_and(|at| at > o.now);
        self.ensure(report.ready.state != State::True || lives, "Ready is never said of an expired token");
    }

    /// A pass begins.
    pub fn begin(&mut self) {
        let me = self.me();
        (me.called, me.timer) = (false, None);
        let o = self.observe();
        match self.plan(&o) {
            Plan::Look | Plan::LookToMint => self.me().pass = Pass::Look { o: o.into(), answer: None },
            plan => self.carry_out(o, plan, None),
        }
    }

    /// The answer of the call that the pass waits for is there. None of it: the call failed.
    pub fn resume(&mut self) {
        match std::mem::replace(&mut self.me().pass, Pass::Idle) {
            Pass::Idle => {}
            Pass::Look { o, answer: Some(Some(target)) } => self.look(Observed::clone(&o), target.as_ref()),
            Pass::Ask { o, target, asked_at, answer } => {
                self.answered(Observed::clone(&o), target.as_ref(), asked_at, answer.flatten());
            }
            Pass::Write { o, issue, is_held, answer: Some(Some(meta)), .. } => {
                self.written(Observed::clone(&o), &issue, is_held, &meta);
            }
            Pass::Report { status, next, answer: Some(Some(version)), .. } => {
                self.me().remember(|memory| {
                    memory.status = Some((object_version(version), (*status).clone()));
                    memory.untold = None;
                });
                self.end(next);
            }
            Pass::Look { .. } | Pass::Write { .. } | Pass::Report { .. } => self.fail_pass(),
        }
    }

    fn fail_pass(&mut self) {
        self.me().called = false;
        self.end(Next::Soon);
    }

    /// A pass ends, and answers a call that came meanwhile: `end_pass`, `answer_call` and what the work queue does.
    fn end(&mut self, next: Next) {
        self.me().pass = Pass::Idle;
        self.me().forget_shown_status();
        let was_called = std::mem::take(&mut self.me().called);
        let next = if was_called { self.as_it_rests().unwrap_or(Next::Soon) } else { next };
        match next {
            Next::Await => {}
            // What is due after the end of all moments is never seen.
            Next::At(at) if at > self.last_moment() => {}
            Next::At(at) => self.me().timer = Some(at),
            Next::Soon => self.world.call(self.at),
        }
    }

    fn last_moment(&self) -> Timestamp {
        let secs = self.setting.moments.last().copied().unwrap_or_default() + self.setting.ahead_secs.max(0) + 1;
        Setting::start() + SignedDuration::from_secs(secs)
    }

    fn as_it_rests(&mut self) -> Option<Next> {
        let o = self.observe();
        let Plan::Rest(report, again_at) = self.plan(&o) else { return None };
        let told = self.me().newest_status().1;
        (report.status(&told, o.now) == told).then(|| again(again_at))
    }

    fn observe(&mut self) -> Observed {
        let (now, leading) = (self.now(), self.leads());
        let me = self.me();
        let (version, status) = me.newest_status();
        let refresh_requested = me.object.refresh_requested.clone();
        let failed_at = status.last_failure_time.filter(|_| status.failed_attempts.is_some());
        let is_unknown = |at: &Timestamp| me.memory.attempt.as_ref().is_none_or(|known| known.at < *at);
        if let Some(at) = failed_at.filter(is_unknown) {
            let attempt = Attempt { at, refresh_requested: refresh_requested.clone(), target: None, client: None };
            me.remember(|memory| memory.attempt = Some(attempt));
        }
        let memory = &me.memory;
        let mut o = Observed {
            now,
            owner: owner(),
            version,
            generation: Some(me.object.generation),
            created: Some(Setting::start()),
            ending: false,
            spec: Ok(resolved(me.object.scope)),
            refresh_requested,
            status,
            failure: None,
            leading,
            rival: None,
            live: false,
            credentials: Credentials::Seen(Version::of(&World::credentials().metadata)),
            target: me.target.as_ref().map_or(Target::Missing, |seen| Target::Seen {
                facts: Box::new(seen.0.clone()),
                trusted: seen.1.trusts(&seen.0),
            }),
            claimed: true,
            held: memory.held.as_ref().map(|held| held_facts(held, false)),
            has_written: false,
            replaced_at: memory.replacements.available_at(now),
            changed_at: memory.changes.available_at(now),
            mend_at: memory.mends.available_at(now),
            digests: true,
            owner_refused: false,
            outage: false,
            stopping: false,
            hurried: None,
            may_stand: false,
        };
        judge(&mut o, me);
        o
    }

    fn look(&mut self, mut o: Observed, target: Option<&Shared<Secret>>) {
        self.take_in(&mut o, target);
        let plan = self.plan(&o);
        self.ensure(!matches!(plan, Plan::Look | Plan::LookToMint), "no look after a look");
        self.carry_out(o, plan, target);
    }

    fn take_in(&mut self, o: &mut Observed, target: Option<&Shared<Secret>>) {
        let (Ok(spec), Some(key)) = (o.spec.clone(), digest_key()) else { return };
        (o.now, o.leading, o.live) = (self.now(), self.leads(), true);
        o.target = target.map_or(Target::Missing, |secret| {
            let facts = Facts::of(&secret.metadata);
            let found = secret::inspect(secret, &facts, &spec, plan::life_in_status(&o.status), Some(&key));
            Target::Read { facts: Box::new(facts), found, complete: true, immutable: false }
        });
        let credentials = World::credentials();
        o.credentials = Credentials::Read {
            version: Version::of(&credentials.metadata),
            content: secret::read_credentials(&credentials, &spec).map(|(id, client_secret)| {
                let stored = o.target.facts().and_then(|facts| facts.marks.credentials_digest.as_deref());
                key.compare(stored, &key.of_credentials(id, client_secret))
            }),
        };
        if let Target::Read { facts, found, .. } = &o.target {
            self.me().note(facts, matches!(found, Found::Token(_)));
        }
        let stored = target.and_then(|secret| secret::stored_token(secret, o.target.facts()?, &spec));
        let me = self.me();
        o.held = me.memory.held.as_ref().map(|held| held_facts(held, stored == Some(&held.token)));
        judge(o, me);
    }

    fn carry_out(&mut self, o: Observed, plan: Plan, target: Option<&Shared<Secret>>) {
        match plan {
            Plan::Stand | Plan::Look | Plan::LookToMint => self.end(Next::Await),
            Plan::Rest(report, again_at) => self.report(&o, &report, again(again_at)),
            Plan::Forget => {
                if o.held.as_ref().is_some_and(|held| held.issue.life.is_expired(o.now)) {
                    self.note_late_token();
                }
                self.me().remember(|memory| memory.held = None);
                self.end(Next::Soon);
            }
            Plan::Store => match self.me().memory.held.clone() {
                Some(held) => self.write(o, &held.token, held.issue, target, true),
                None => self.end(Next::Soon),
            },
            Plan::Mend(issue) => self.mend(o, *issue, target),
            Plan::Mint(cause) => self.mint(o, cause, target),
        }
    }

    fn account(&mut self, o: &Observed, then: Option<Next>) {
        match plan::account(o) {
            Plan::Rest(report, again_at) => {
                self.ensure_truth(o, &report);
                self.report(o, &report, then.unwrap_or_else(|| again(again_at)));
            }
            _ => self.end(Next::Await),
        }
    }

    fn report(&mut self, o: &Observed, report: &Report, next: Next) {
        let (version, before) = self.me().newest_status();
        if version != o.version {
            return self.end(Next::Soon);
        }
        let status = report.status(&before, o.now);
        if status == before {
            return self.end(next);
        }
        self.me().pass = Pass::Report { version: version.into(), status: status.into(), next, answer: None };
    }

    fn mint(&mut self, o: Observed, cause: Cause, target: Option<&Shared<Secret>>) {
        if cause != Cause::Settle && !self.leads() {
            return self.end(Next::Await);
        }
        let now = self.now();
        for allowed in plan::allowances(&o, cause) {
            match allowed {
                Allowed::Always => {}
                Allowed::AsReplacement => self.me().remember(|memory| memory.replacements.take(now)),
                Allowed::AsChange => self.me().remember(|memory| memory.changes.take(now)),
            }
        }
        let due = o.target.life().map(|life| life.issued_at);
        if cause == Cause::Due && self.world.due < due {
            // Another's request for the same token is no cause of its own.
            self.world.due = due;
            self.world.causes += 1;
        }
        self.world.asked += 1;
        let asked_at = self.now();
        self.me().pass = Pass::Ask { o: o.into(), target: target.cloned(), asked_at, answer: None };
    }

    fn answered(
        &mut self,
        mut o: Observed,
        target: Option<&Shared<Secret>>,
        asked_at: Timestamp,
        answer: Option<(usize, i64)>,
    ) {
        o.now = self.now();
        let Some((number, lives_secs)) = answer else {
            return self.fail(o, Reason::EndpointUnavailable, Backoff::Endpoint);
        };
        let (Ok(spec), Some(key)) = (o.spec.clone(), digest_key()) else { return };
        let token = token_text(number);
        let lifetime = Duration::from_secs(lives_secs.unsigned_abs());
        let life = lived(Life::new(asked_at, lifetime), &o, target, &spec, &token);
        if life.is_expired(o.now) {
            self.note_late_token();
            return self.fail(o, Reason::BadResponse, Backoff::Transient);
        }
        let credentials = World::credentials();
        let digest = secret::read_credentials(&credentials, &spec).map(|(id, secret)| key.of_credentials(id, secret));
        let issue = Issue {
            life,
            scope: spec.scope,
            refresh_handled: o.refresh_requested.clone(),
            credentials: Version::of(&credentials.metadata),
            credentials_digest: digest.ok(),
        };
        let held = HeldToken { token, issue, replaces: o.target.life().map(|life| life.issued_at) };
        o.held = Some(held_facts(&held, false));
        self.me().remember(|memory| memory.held = Some(held));
        // `deliver`.
        match self.plan(&o) {
            plan @ (Plan::Store | Plan::Forget) => self.carry_out(o, plan, target),
            _ => self.end(Next::Soon),
        }
    }

    /// Its life was over before it could be written: another in its place has a cause.
    fn note_late_token(&mut self) {
        self.world.late += 1;
        self.world.causes += 1;
    }

    fn fail(&mut self, mut o: Observed, reason: Reason, backoff: Backoff) {
        let attempts = o.failure.as_ref().map_or(1, |failure| failure.attempts.saturating_add(1));
        let living = o.target.life().map(|life| life.expires_at);
        let wait = o.failure.as_ref().and_then(|failure| failure.wait_before(reason, &o.status, living));
        let next_attempt_at = schedule::next_attempt(o.now, backoff, wait, attempts, None, living, &o.owner.uid);
        let failure =
            Failure { reason, message: String::new(), at: o.now, attempts, next_attempt_at }.in_milliseconds();
        let attempt =
            Attempt { at: failure.at, refresh_requested: o.refresh_requested.clone(), target: None, client: None };
        let credentials = o.credentials.version().cloned();
        let untold = Failed { failure: failure.clone(), generation: o.generation, credentials };
        self.me().remember(|memory| (memory.attempt, memory.untold) = (Some(attempt), Some(untold)));
        o.failure = Some(failure);
        self.account(&o, None);
    }

    fn mend(&mut self, o: Observed, issue: Issue, target: Option<&Shared<Secret>>) {
        let Ok(spec) = &o.spec else { return };
        let token = target.and_then(|secret| secret::stored_token(secret, o.target.facts()?, spec));
        let Some(token) = token.map(ToOwned::to_owned) else { return self.end(Next::Soon) };
        let now = self.now();
        self.me().remember(|memory| memory.mends.take(now));
        self.write(o, &token, issue, target, false);
    }

    fn write(&mut self, o: Observed, token: &str, issue: Issue, target: Option<&Shared<Secret>>, is_held: bool) {
        let Ok(spec) = &o.spec else { return };
        let (key, content) = (digest_key(), Content { token, issue: &issue });
        let live = target.map(|secret| &**secret);
        let wanted = secret::compose(live, &o.owner, spec, content, key.as_ref(), Ownership::AsWanted);
        if let Some(live) = live.filter(|live| secret::is_same(live, &wanted)) {
            return self.written(o, &issue, is_held, &live.metadata);
        }
        let (secret, issue) = (wanted.into(), issue.into());
        self.me().pass = Pass::Write { o: o.into(), secret, issue, is_held, answer: None };
    }

    fn written(&mut self, mut o: Observed, issue: &Issue, is_held: bool, meta: &ObjectMeta) {
        if is_held {
            self.me().remember(|memory| (memory.held, memory.attempt, memory.untold) = (None, None, None));
            o.status.last_handled_refresh = issue.refresh_handled.clone().or(o.status.last_handled_refresh.take());
            (o.held, o.failure, o.status.failed_attempts) = (None, None, None);
        }
        self.stored(&mut o, meta, issue);
        let plan = self.plan(&o);
        let rests = matches!(plan, Plan::Rest(..));
        match plan {
            _ if is_held => self.account(&o, (!rests).then_some(Next::Soon)),
            Plan::Rest(report, again_at) => self.report(&o, &report, again(again_at)),
            _ => self.end(Next::Soon),
        }
    }

    fn stored(&mut self, o: &mut Observed, written: &ObjectMeta, issue: &Issue) {
        let facts = Facts::of(written);
        self.me().note(&facts, true);
        o.claimed = true;
        o.target =
            Target::Read { facts: Box::new(facts), found: Found::Token(issue.life), complete: true, immutable: false };
        if let Credentials::Read { version, content: Ok(content) } = &mut o.credentials
            && *version == issue.credentials
        {
            *content = Match::Same;
        }
        o.status.issued_at = Some(issue.life.issued_at);
        o.status.expires_at = Some(issue.life.expires_at);
    }
}

fn judge(o: &mut Observed, me: &Replica) {
    let changed = me.memory.attempt.as_ref().is_some_and(|attempt| attempt.refresh_requested != o.refresh_requested);
    plan::judge_failure(o, &Past { untold: me.memory.untold.as_ref(), changed, ..Past::default() });
}

fn again(at: Option<Timestamp>) -> Next {
    at.map_or(Next::Await, Next::At)
}

fn held_facts(held: &HeldToken, is_stored: bool) -> Held {
    Held { issue: held.issue.clone(), replaces: held.replaces, is_stored }
}

fn lived(life: Life, o: &Observed, target: Option<&Shared<Secret>>, spec: &Resolved, token: &str) -> Life {
    let stored = target.and_then(|secret| secret::stored_token(secret, o.target.facts()?, spec));
    match o.target.life() {
        Some(earlier) if stored == Some(token) => life.of_repeated(earlier),
        _ => life,
    }
}

fn digest_key() -> Option<DigestKey> {
    DigestKey::new(&[7; 32])
}

fn owner() -> Owner {
    Owner { namespace: "shop".to_owned(), name: "token".to_owned(), uid: "object-uid".to_owned() }
}

fn resolved(scope: &str) -> Resolved {
    Resolved {
        credentials: "client".to_owned(),
        client_id_key: "client_id".to_owned(),
        client_secret_key: "client_secret".to_owned(),
        scope: scope.to_owned(),
        target: "token".to_owned(),
        access_token_key: TOKEN_KEY.to_owned(),
        authorization_key: None,
        expires_at_key: None,
        labels: std::collections::BTreeMap::new(),
        annotations: std::collections::BTreeMap::new(),
        deletion_policy: DeletionPolicy::Delete,
        renew: Renew::ThirdLeft,
        suspend: false,
    }
}
