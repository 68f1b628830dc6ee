//! Writing the target: a token that is held, or what is missing beside the one that is there.

use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Secret;
use kube::api::ObjectMeta;
use tokio::time::Instant;

use super::{Context, OWNER_REFUSED_FOR, Sight, key_of};
use crate::access_token::AccessToken;
use crate::caches::ObjectKey;
use crate::crd::{Reason, Resolved};
use crate::digest::Match;
use crate::error::{CALL_TIMEOUT, Error, LONGEST_WRITE};
use crate::events::EventReason;
use crate::memory::{HeldToken, Told, UndoneMend};
use crate::plan::{self, Credentials, Observed, Plan, Target};
use crate::schedule::{self, Backoff, Life, Undone};
use crate::secret::{self, Content, Facts, Found, Issue, Owner, Ownership};
use crate::status::{self, Failure};
use crate::work::Action;

impl Context {
    /// Whether a new token ends a failure that was told: that the last one has expired may have been while this one was on the way.
    fn recovers(&self, o: &Observed) -> bool {
        // Only then: it has to be unpacked.
        let has_ended = o.target.life().is_some_and(|life| life.is_expired(o.now));
        let newest = has_ended.then(|| self.newest_of(&o.owner)).flatten().map(|(_, _, status)| status);
        let told = newest.as_ref().unwrap_or(&o.status);
        status::was_failing(told) && told.issued_at.is_some() && !o.ending
    }

    pub(super) async fn store(&self, o: &mut Observed, held: HeldToken, sight: Sight) -> Result<Action, Error> {
        let Ok(spec) = o.spec.clone() else { return Ok(Action::await_change()) };
        let content = Content { token: held.token.expose(), issue: &held.issue };
        let written = match self.write(o, &spec, content, sight.target.as_ref()).await {
            Ok(written) => written,
            Err(error) if error.is_refusal() => return self.write_refused(o, &error).await,
            Err(error) => return Err(error),
        };
        // The write may have taken as long as what was left of the token before.
        o.now = self.now();
        let adopts = plan::adopts(o);
        let recovers = self.recovers(o);
        let is_given_again = held.issue.life.repeated.is_some() && held.replaces.is_some();
        let was_told = self.remember(&o.owner, |memory| {
            let was_told = is_given_again && matches!(memory.told, Some(Told::Token(_)));
            let is_told = was_told || recovers || !is_given_again;
            memory.held = None;
            memory.attempt = None;
            memory.untold = None;
            memory.hurried = None;
            memory.told = is_told.then_some(Told::Token(held.issue.life.issued_at));
            was_told
        });
        o.held = None;
        o.failure = None;
        o.status.failed_attempts = None;
        self.stored(o, &written, held.issue.life, &held.issue);
        // Whatever became of the mark on its way.
        o.status.last_handled_refresh = held.issue.refresh_handled.clone().or(o.status.last_handled_refresh.take());
        // The status could not say so yet.
        self.tell_of_token(o, &spec, &held, recovers && !was_told);
        if adopts {
            self.adopted(o);
        }
        if o.ending {
            return Ok(Action::await_change());
        }
        let rest = self.account(o).await?;
        // A write that took long may have come after the token's own refresh time.
        Ok(if matches!(plan::plan(o), Plan::Rest(..)) { rest } else { Action::requeue(Duration::ZERO) })
    }

    fn tell_of_token(&self, o: &Observed, spec: &Resolved, held: &HeldToken, recovers: bool) {
        let (expires_at, is_given_again) = (held.issue.life.expires_at, held.issue.life.repeated.is_some());
        let reason = match held.replaces {
            _ if recovers => EventReason::Recovered,
            Some(_) if is_given_again => {
                tracing::debug!(
                    namespace = %o.owner.namespace, name = %o.owner.name, %expires_at,
                    "the last request gave the token that was there already"
                );
                return;
            }
            Some(_) => EventReason::TokenRefreshed,
            None => EventReason::TokenIssued,
        };
        let token = if is_given_again { "the token that it held before," } else { "a new token" };
        self.tell(o, reason, format!("the Secret \"{}\" holds {token} that expires at {expires_at}", spec.target));
    }

    pub(super) async fn mend(&self, o: &mut Observed, issue: Issue, sight: Sight) -> Result<Action, Error> {
        let Ok(spec) = o.spec.clone() else { return Ok(Action::await_change()) };
        self.remember(&o.owner, |memory| memory.mends.take(self.now()));
        let token = sight.stored_token(o, &spec).map(ToOwned::to_owned);
        let Some(token) = token.and_then(AccessToken::new) else {
            return Ok(Action::requeue(Duration::ZERO));
        };
        let (resumes, issue) = (plan::resumes(o), self.restamped(o, issue, &sight, &spec));
        let content = Content { token: token.expose(), issue: &issue };
        let written = match self.write(o, &spec, content, sight.target.as_ref()).await {
            Ok(written) => written,
            Err(error) if error.is_refusal() => return self.write_refused(o, &error).await,
            Err(error) => return Err(error),
        };
        o.now = self.now();
        if o.failure.as_ref().is_some_and(Failure::is_of_the_write) {
            o.failure = None;
            self.remember(&o.owner, |memory| (memory.attempt, memory.untold) = (None, None));
        }
        self.stored(o, &written, issue.life, &issue);
        self.mended(o, &spec.target);
        // There may be more to do than the mending: the next look is at what is there now.
        match plan::plan(o) {
            Plan::Rest(report, again_at) => self.report_and_adopt(o, *report, again_at, resumes).await,
            _ => Ok(Action::requeue(Duration::ZERO)),
        }
    }

    /// Tells of what was put back, and looks at whether it is there.
    fn mended(&self, o: &mut Observed, target: &str) {
        // It may have been with this very write.
        o.owner_refused |=
            self.remember(&o.owner, |memory| memory.owner_refused_until.is_some_and(|until| until > o.now));
        let Owner { namespace, name, .. } = &o.owner;
        if !plan::is_undone(o) {
            self.remember(&o.owner, |memory| memory.undone = None);
            tracing::info!(%namespace, %name, reason = "Mended", secret = target, "put back what was missing beside the token");
            return;
        }
        let Some(left) = o.target.facts().map(|facts| facts.version.clone()) else { return };
        let (is_news, mend_at) = self.remember(&o.owner, |memory| {
            let earlier = memory.undone.take().filter(|earlier| earlier.generation == o.generation);
            let pace = Undone::once_more(earlier.as_ref().map(|earlier| earlier.pace), o.now);
            memory.undone = Some(Box::new(UndoneMend { pace, generation: o.generation, target: left.clone() }));
            (earlier.is_none(), memory.mend_at(o.generation, Some(&left), o.now))
        });
        if is_news {
            tracing::warn!(
                %namespace, %name, reason = "Undone", secret = target,
                "what was put back beside the token was changed as it was written: look at the admission webhooks and policies for Secrets; it is tried again within ten minutes"
            );
        }
        o.mend_at = mend_at;
    }

    /// Puts back a digest that was stripped, where the credentials are the very ones that the token was asked for with.
    pub(super) fn restamped(&self, o: &Observed, issue: Issue, sight: &Sight, spec: &Resolved) -> Issue {
        let key = self.shared.digest_key();
        let fresh = sight.credentials.as_ref().zip(key).and_then(|(secret, key)| {
            let (id, client_secret) = secret::read_credentials(secret, spec).ok()?;
            plan::is_restampable(o).then(|| key.of_credentials(id, client_secret))
        });
        let unknown = !matches!(o.credentials, Credentials::Read { content: Ok(Match::Same | Match::Different), .. });
        let credentials_digest = if unknown { fresh.or(issue.credentials_digest) } else { issue.credentials_digest };
        Issue { credentials_digest, ..issue }
    }

    /// Writes the target; where the API server refuses to change its owner, without that.
    pub(super) async fn write(
        &self,
        o: &Observed,
        spec: &Resolved,
        content: Content<'_>,
        live: Option<&Secret>,
    ) -> Result<ObjectMeta, Error> {
        let key = self.shared.digest_key();
        let compose = |ownership| secret::compose(live, &o.owner, spec, content, key.as_ref(), ownership);
        // A Secret that is made anew gets its owner: creating one needs no right to change it.
        let is_left = o.owner_refused || plan::is_orphaned(o);
        let ownership = if is_left && live.is_some() { Ownership::AsFound } else { Ownership::AsWanted };
        let wanted = compose(ownership);
        if let Some(live) = live.filter(|live| secret::is_same(live, &wanted)) {
            // It was written already, and the answer was lost.
            return Ok(live.metadata.clone());
        }
        let changes_owner = live.is_some_and(|live| {
            live.metadata.owner_references.clone().unwrap_or_default()
                != wanted.metadata.owner_references.clone().unwrap_or_default()
        });
        let result = self.write_secret(o, &wanted).await;
        if !(changes_owner && result.as_ref().is_err_and(Error::is_forbidden)) {
            return result;
        }
        let result = self.write_secret(o, &compose(Ownership::AsFound)).await;
        if result.is_ok() {
            self.owner_refused(o);
        }
        result
    }

    async fn write_secret(&self, o: &Observed, secret: &Secret) -> Result<ObjectMeta, Error> {
        let (begun, within) = (Instant::now(), self.write_within(o));
        let result = self.shared.api_server.write_secret(secret, within).await;
        self.remember(&o.owner, |memory| memory.slow_writes = begun.elapsed() >= CALL_TIMEOUT);
        self.shared.settings.metrics.secret_write(&result);
        result
    }

    /// What was not answered in time is waited for the next time; but a living token must leave time for another attempt.
    fn write_within(&self, o: &Observed) -> Duration {
        if !self.remember(&o.owner, |memory| memory.slow_writes) {
            return CALL_TIMEOUT;
        }
        let left = o.target.life().map(|life| life.expires_at.duration_since(self.now()));
        let left = left.filter(SignedDuration::is_positive).map(SignedDuration::unsigned_abs);
        left.map_or(LONGEST_WRITE, |left| LONGEST_WRITE.min((left / 2).max(CALL_TIMEOUT)))
    }

    pub(super) fn owner_refused(&self, o: &Observed) {
        self.remember(&o.owner, |memory| {
            memory.owner_refused_until = Some(schedule::add(self.now(), OWNER_REFUSED_FOR));
        });
        let is_ours = o.target.facts().is_some_and(|facts| facts.owners.iter().any(|owner| owner.uid == o.owner.uid));
        let note = if is_ours {
            "the API server refuses to take the owner from the Secret, so that it WILL be deleted with this object: give the operator `delete` on Secrets, or take away the Secret's ownerReference to this object"
        } else {
            "the API server refuses to change the Secret's owner, so that it will not be deleted with this object: give the operator `delete` on Secrets, or set target.deletionPolicy to Retain"
        };
        self.tell(o, EventReason::OwnerRefused, note.to_owned());
    }

    /// A Secret that was there before is the object's own from now on.
    pub(super) fn adopted(&self, o: &Observed) {
        let target = o.spec.as_ref().map_or("", |spec| spec.target.as_str());
        let note = format!("the Secret \"{target}\", which was there before, belongs to this object from now on");
        self.tell(o, EventReason::TargetAdopted, note);
    }

    /// The API server will not have it. The token, if there is a new one, stays held and is written again.
    pub(super) async fn write_refused(&self, o: &mut Observed, error: &Error) -> Result<Action, Error> {
        o.now = self.now();
        if o.stopping && plan::is_write_refused(o) {
            // That was said already.
            return Ok(Action::await_change());
        }
        let message = format!(
            "the API server refuses to write the Secret ({}): look at the operator's rights, quotas and admission webhooks; it is tried again with the same token",
            error.answer()
        );
        if self.is_news(o, Reason::TargetForbidden) {
            // RBAC's own words stand here alone.
            tracing::warn!(
                namespace = %o.owner.namespace, name = %o.owner.name, reason = Reason::TargetForbidden.as_str(), %error,
                "the Secret was not written"
            );
        }
        self.fail(o, Reason::TargetForbidden, message, Backoff::Transient, None, None).await
    }

    /// Takes note of what was just written.
    pub(super) fn stored(&self, o: &mut Observed, written: &ObjectMeta, life: Life, issue: &Issue) {
        let facts = Facts::of(written);
        let name = written.name.clone().unwrap_or_default();
        self.call_all(self.caches.note_secret(&key_of(&o.owner), &name, &facts));
        self.caches.note_look(&ObjectKey::new(&o.owner.namespace, &name), &facts.version, true);
        o.claimed = true;
        o.target = Target::Read { facts: Box::new(facts), found: Found::Token(life), complete: true, immutable: false };
        if let Credentials::Read { version, content: Ok(content) } = &mut o.credentials
            && *version == issue.credentials
        {
            *content = Match::Same;
        }
        // The status is behind the Secret now, and follows.
        o.status.issued_at = Some(life.issued_at);
        o.status.expires_at = Some(life.expires_at);
    }
}
