//! Saying how things stand: the status, the log, events.

use std::sync::PoisonError;
use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt as _;
use kube::api::ObjectMeta;
use serde::Serialize;

use super::observe::newest_version;
use super::{Context, FAILURES_BEFORE_REPORT, WAITS_BEFORE_REPORT, is_of_chance, key_of};
use crate::caches::{Guarded, ObjectKey};
use crate::crd::{MoneyGoCredential, MoneyGoCredentialStatus, Reason};
use crate::error::Error;
use crate::events::{EventReason, FAILURES, Notice};
use crate::grants::{Saying, Wait};
use crate::memory::{Memory, Told};
use crate::plan::{self, Observed, Plan};
use crate::schedule;
use crate::secret::{Owner, Version};
use crate::status::{self, Failure, State};
use crate::work::Action;

/// A pass that can says within this time that a token has ended, and what the API server answered: one that fails is repeated within ten seconds. Who is
/// later is told of without a pass.
const PASSES_TELL_WITHIN: Duration = Duration::from_secs(15);
/// The first list of the Secrets is done by then, or cannot be had.
const LISTS_WITHIN: Duration = Duration::from_secs(30);
/// At each heartbeat no more objects are told of whose tokens have ended with no pass that said so.
const MOST_TOLD_OF_ENDS: usize = 500;

impl Context {
    pub(super) async fn account(&self, o: &mut Observed) -> Result<Action, Error> {
        self.report_planned(o, plan::account(o)).await
    }

    pub(super) async fn account_while_asking(&self, o: &mut Observed) -> Result<Action, Error> {
        self.report_planned(o, plan::account_while_asking(o)).await
    }

    async fn report_planned(&self, o: &mut Observed, plan: Plan) -> Result<Action, Error> {
        match plan {
            Plan::Rest(report, again_at) => self.report(o, *report, again_at).await,
            _ => Ok(Action::await_change()),
        }
    }

    pub(super) async fn report(
        &self,
        o: &mut Observed,
        report: status::Report,
        again_at: Option<Timestamp>,
    ) -> Result<Action, Error> {
        let Some((credential, version, before)) = self.newest_of(&o.owner) else { return Ok(Action::await_change()) };
        if version != o.version {
            // Someone else wrote it since the pass began: what they know, another leader perhaps, is planned on first.
            return Ok(Action::requeue(Duration::ZERO));
        }
        let wanted = report.status(&before, o.now);
        self.warn_of_sharing(o);
        if wanted != before {
            let unsaid = self.shared.memories.of(&key_of(&o.owner), &o.owner.uid);
            let object = status::with_status(credential, &version, wanted.clone());
            let writing = Box::pin(self.write_status(&o.owner, object));
            match writing.await {
                Ok(version) => {
                    self.announce(o, &before, &wanted);
                    o.version = version.clone();
                    self.wrote_status(o, version, wanted, &unsaid);
                }
                // What answers so of an object that is there is no API server, or has lost its sight for a moment.
                Err(error) if error.is_not_found() && !self.is_there(&o.owner) => return Ok(Action::await_change()),
                Err(error) => return Err(error),
            }
        }
        Ok(self.requeue_at(o, again_at))
    }

    /// Remembers a status that was written, until the watch shows it. While it was, the object may have gone and been made anew; and another's may have
    /// been written after it.
    fn wrote_status(&self, o: &Observed, version: Version, status: MoneyGoCredentialStatus, unsaid: &Memory) {
        if !self.is_there(&o.owner) {
            return;
        }
        self.remember(&o.owner, |memory| {
            if memory.status.as_ref().is_none_or(|(known, _)| version.is_newer_than(known)) {
                memory.status = Some((version, status));
            }
            // What came to be while it was written is still to be said.
            if (&memory.untold, memory.told) == (&unsaid.untold, unsaid.told) {
                (memory.untold, memory.told) = (None, None);
            }
        });
    }

    /// The same; and says, once the status does, that the object goes on with a token from before it was there.
    pub(super) async fn report_and_adopt(
        &self,
        o: &mut Observed,
        report: status::Report,
        again_at: Option<Timestamp>,
        resumes: bool,
    ) -> Result<Action, Error> {
        let resumes = resumes && self.newest_of(&o.owner).is_some_and(|(_, version, _)| version == o.version);
        let action = self.report(o, report, again_at).await?;
        if resumes {
            self.adopted(o);
        }
        Ok(action)
    }

    /// A pass that failed for the API server's sake has said nothing of how things stand: the token may have ended since it was told of, or
    /// have been taken away; and who has no token waits to hear why. What cannot be said now is said with a later pass.
    pub(super) async fn tell_despite(&self, error: &Error, owner: &Owner) {
        let failures = self.shared.memories.of(&key_of(owner), &owner.uid).api_failures;
        if is_of_chance(error, failures) || error.is_not_found() {
            return;
        }
        let Some((credential, _, told)) = self.newest_of(owner) else { return };
        let is_unexplained = told.failed_attempts.is_none() && failures >= FAILURES_BEFORE_REPORT;
        if !is_unexplained && !status::says_ready(&told) {
            return;
        }
        let mut o = self.observe(&credential);
        if !o.leading || o.ending {
            return;
        }
        let failure = unavailable(&format!(" ({})", error.answer()), o.now);
        if let Some(report) = plan::account_without_secrets(&o, failure) {
            let _ = self.report(&mut o, *report, None).await;
        }
    }

    /// Objects whose tokens have ended with nobody told, which the leader is to tell of: those behind the last that were looked for.
    pub(super) fn next_ends(&self) -> Vec<ObjectKey> {
        if !self.shared.settings.leadership.is_leader() {
            return Vec::new();
        }
        let ended_by = schedule::before(self.now(), PASSES_TELL_WITHIN);
        // Those that cannot be told of must not keep the others from it: who comes next is next.
        let mut last = self.last_end.lock().unwrap_or_else(PoisonError::into_inner);
        let past = self.caches.ready_past(ended_by, last.as_ref(), MOST_TOLD_OF_ENDS);
        *last = past.last().cloned().filter(|_| past.len() == MOST_TOLD_OF_ENDS);
        past
    }

    /// Says of a token that it has ended where no pass has: it hangs, or fails before it can say anything, or there is none, for the Secrets
    /// cannot be listed or the object is being deleted.
    pub(super) async fn tell_of_end(&self, key: &ObjectKey) {
        let Some(credential) = self.caches.credential(key).and_then(Guarded::credential) else { return };
        let mut o = self.observe(&credential);
        let has_ended = o.status.expires_at.is_some_and(|at| at <= o.now);
        if !has_ended || !o.leading || !status::says_ready(&o.status) {
            return;
        }
        let has_failed = self.shared.memories.of(key, &o.owner.uid).api_failures > 0;
        let report = if o.ending && plan::holds_a_later_token(&o) {
            // It came after the deletion, to a Secret that is retained.
            None
        } else if o.ending {
            match plan::account_while_asking(&Observed { outage: false, ..o.clone() }) {
                Plan::Rest(report, _) => Some(report),
                _ => None,
            }
        } else if !self.caches.has_seen_secrets() {
            let is_late = self.opened_at.elapsed() >= LISTS_WITHIN;
            is_late.then(|| plan::account_before_the_secrets(&o, unavailable("", o.now))).flatten()
        } else if has_failed {
            plan::account_without_secrets(&o, unavailable("", o.now))
        } else {
            // Its pass is on its way.
            None
        };
        if let Some(report) = report.filter(|report| report.ready.state != State::True) {
            // What cannot be said now is said at the next beat.
            let _ = self.report(&mut o, *report, None).await;
        }
    }

    /// The object, and the newest version and status of it. `None` where it is gone.
    pub(super) fn newest_of(&self, owner: &Owner) -> Option<(MoneyGoCredential, Version, MoneyGoCredentialStatus)> {
        let key = key_of(owner);
        let credential = self.caches.credential(&key).and_then(Guarded::credential);
        let credential = credential.filter(|found| found.uid().as_ref() == Some(&owner.uid))?;
        let (version, status) = newest_version(&credential, &self.shared.memories.of(&key, &owner.uid));
        Some((credential, version, status))
    }

    async fn write_status(&self, owner: &Owner, object: impl Serialize) -> Result<Version, Error> {
        let result = self.shared.api_server.write_status(&owner.namespace, &owner.name, &object).await;
        self.shared.settings.metrics.status_write(&result);
        result
    }

    /// One line and at most one event for each change of what the conditions say; none for a retry that fails the same way, nor for
    /// what was told as it happened.
    pub(super) fn announce(&self, o: &Observed, before: &MoneyGoCredentialStatus, after: &MoneyGoCredentialStatus) {
        let told = self.shared.memories.of(&key_of(&o.owner), &o.owner.uid).told;
        let Some(change) = status::change(before, after) else { return };
        let is_failing = status::is_failing(after);
        if told == Some(Told::Token(after.issued_at.unwrap_or_default())) && !is_failing {
            return;
        }
        let reason = Reason::of(&change.reason).unwrap_or(Reason::Pending);
        if is_failing && change.status == "False" && FAILURES.contains(&reason) {
            if told != Some(Told::Failure(reason)) {
                tracing::warn!(namespace = %o.owner.namespace, name = %o.owner.name, reason = reason.as_str(), "{}", change.message);
            }
            self.notice(o, EventReason::Failed(reason), change.message.clone());
        } else if status::was_failing(before) && !is_failing && change.status == "True" {
            self.tell(o, EventReason::Recovered, format!("{}: {}", change.type_, change.message));
        } else {
            tracing::info!(namespace = %o.owner.namespace, name = %o.owner.name, reason = reason.as_str(), "{}", change.message);
        }
    }

    /// A line of the log, and an event.
    pub(super) fn tell(&self, o: &Observed, reason: EventReason, note: String) {
        let (namespace, name, word) = (&o.owner.namespace, &o.owner.name, reason.as_str());
        if reason.is_warning() {
            tracing::warn!(%namespace, %name, reason = word, "{note}");
        } else {
            tracing::info!(%namespace, %name, reason = word, "{note}");
        }
        self.notice(o, reason, note);
    }

    fn notice(&self, o: &Observed, reason: EventReason, note: String) {
        self.shared.settings.notices.put(Notice { owner: o.owner.clone(), reason, note });
    }

    /// With a provider that revokes the last token on a new grant, two objects with one client kill each other's tokens.
    pub(super) fn warn_of_sharing(&self, o: &Observed) {
        let Ok(spec) = &o.spec else { return };
        if self.shared.memories.of(&key_of(&o.owner), &o.owner.uid).warned_of_sharing {
            return;
        }
        let Some(other) = self.caches.sharing_credentials(&key_of(&o.owner), &spec.credentials) else { return };
        self.remember(&o.owner, |memory| memory.warned_of_sharing = true);
        let note = format!(
            "the MoneyGoCredential \"{other}\" has the same credentials Secret: if Money-Go ends a client's last token when it gives a new one, the two end each other's; use a client for each"
        );
        self.tell(o, EventReason::SharedCredentials, note);
    }

    /// Says that the object waits for leave to ask for a token, if that takes long or if its token ends meanwhile. In a queue
    /// that is short nobody does: to say so would take as long as the grant.
    pub(super) async fn wait(&self, o: &Observed) -> Result<Action, Error> {
        let (grants, key) = (&self.shared.settings.grants, key_of(&o.owner));
        // An outage may have begun with the very request that failed.
        let mut o = Observed { outage: grants.is_outage(), ..o.clone() };
        let since = self.remember(&o.owner, |memory| *memory.waits_since.get_or_insert(o.now));
        let Plan::Rest(report, again_at) = plan::account_while_asking(&o) else { return Ok(Action::await_change()) };
        let was_ready = status::says_ready(&o.status);
        let saying = match (report.ready.state, o.outage) {
            (State::True, _) => Saying::Nothing,
            (_, true) => Saying::EndpointIsDown,
            (_, false) => Saying::IsAskedFor,
        };
        if saying == Saying::Nothing {
            grants.has_said(&key, saying);
        }
        let ends = was_ready && saying != Saying::Nothing;
        let report_at = schedule::add(since.min(o.now), WAITS_BEFORE_REPORT);
        match grants.wait_of(&key) {
            Wait::Short if !ends => return Ok(self.requeue_at(&o, again_at)),
            Wait::Long if !ends && o.now < report_at => return Ok(self.requeue_at(&o, Some(report_at))),
            Wait::Short | Wait::Long | Wait::Overlong => {}
        }
        let action = self.report(&mut o, *report, again_at).await?;
        if self.newest_of(&o.owner).is_some_and(|(_, version, _)| version == o.version) {
            grants.has_said(&key, saying);
        }
        Ok(action)
    }

    /// An object that cannot be read: an older schema's, or made by hand. It stops itself and no other.
    pub(super) async fn report_broken(&self, meta: &ObjectMeta) -> Result<Action, Error> {
        let owner = Owner {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
        };
        if !self.shared.settings.leadership.is_leader() || meta.deletion_timestamp.is_some() {
            return Ok(Action::await_change());
        }
        let api_server = &self.shared.api_server;
        let Some(object) = api_server.read_any_credential(&owner.namespace, &owner.name).await? else {
            return Ok(Action::await_change());
        };
        let is_told = |status| status::says_unreadable(status, meta.generation);
        // What was changed since can perhaps be read, and its watch tells of it.
        if object.metadata.generation != meta.generation || object.data.get("status").is_some_and(is_told) {
            return Ok(Action::await_change());
        }
        let writing = Box::pin(self.write_status(&owner, status::unreadable(object, self.now())));
        let refusal = match writing.await {
            Ok(_) => String::new(),
            Err(error) if error.is_not_found() => return Ok(Action::await_change()),
            // Mostly the API server cannot check it against its rules.
            Err(error) if error.is_refusal() => format!("; nor can its status be written: {error}"),
            Err(error) => return Err(error),
        };
        let reason = EventReason::Failed(Reason::InvalidSpec);
        tracing::warn!(namespace = %owner.namespace, name = %owner.name, reason = reason.as_str(), "the object cannot be read{refusal}");
        self.shared.settings.notices.put(Notice { owner, reason, note: status::UNREADABLE.to_owned() });
        Ok(Action::await_change())
    }
}

/// What keeps a token from coming is the API server. `answer` is what it says to it.
fn unavailable(answer: &str, at: Timestamp) -> Failure {
    let message = format!(
        "the API server does not let the Secrets be read or written{answer}: look at it, at admission webhooks and at the operator's rights; it is tried again every few seconds"
    );
    Failure { reason: Reason::SecretsUnavailable, message, at, attempts: 1, next_attempt_at: at }.in_milliseconds()
}
