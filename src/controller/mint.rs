//! Asking for a token, and keeping it until it is written.

use std::time::Duration;

use futures::future::{Either, select};
use jiff::Timestamp;
use kube::ResourceExt as _;

use super::observe::held_facts;
use super::{Context, Sight, WAITS_BEFORE_REPORT, key_of};
use crate::caches::{Guarded, ObjectKey};
use crate::crd::{MoneyGoCredential, Reason, Resolved};
use crate::error::Error;
use crate::grants::{Blame, Permit};
use crate::memory::{Attempt, HeldToken, Told};
use crate::plan::{self, Cause, Failed, Observed, Plan};
use crate::schedule::{self, Backoff, Life};
use crate::secret::{self, Issue, Owner, Version};
use crate::status::{self, Failure};
use crate::token::{BadResponse, ClientCredentials, Grant, TokenError};
use crate::traces::Span;
use crate::work::Action;

/// Attempts to write a late token to the target of an object that is gone.
const LAST_ATTEMPTS: usize = 3;
/// Between two attempts to write a late token to the target of an object that is gone, where the API server refuses it.
const REFUSED_WRITE_RETRY: Duration = Duration::from_secs(10);
/// How long a repeated token of which the provider says that nothing is left may still live.
const LAST_SECOND: Duration = Duration::from_secs(1);

impl Context {
    pub(super) async fn mint(
        &self,
        o: &mut Observed,
        cause: Cause,
        sight: Sight,
        permit: Permit<ObjectKey>,
    ) -> Result<Action, Error> {
        let Ok(spec) = o.spec.clone() else { return Ok(Action::await_change()) };
        let read = sight.credentials.as_ref().map(|secret| secret::read_credentials(secret, &spec));
        let Some(Ok((id, client_secret))) = read else { return Ok(Action::requeue(Duration::ZERO)) };
        let credentials = ClientCredentials::new(id.to_owned(), client_secret.to_owned());
        let digest = self.shared.digest_key().map(|key| key.of_credentials(id, client_secret));
        if let Some(action) = self.kept_from_asking(o, cause).await? {
            return Ok(action);
        }
        self.remember(&o.owner, |memory| memory.take(plan::allowances(o, cause), self.now()));
        tracing::debug!(namespace = %o.owner.namespace, name = %o.owner.name, reason = cause.as_str(), "asking for a token");
        let (answer, asked_at) = self.ask(o, &credentials, &spec.scope, permit).await;
        let grant = match answer {
            Ok(grant) => grant,
            Err((error, blame)) => return self.attempt_failed(o, &error, blame, digest.as_deref()).await,
        };
        let life = lived(asked_at, &grant, o, &sight, &spec);
        if life.is_expired(o.now) {
            return self.came_too_late(o, digest.as_deref()).await;
        }
        let version = sight.credentials.as_ref().map(|secret| Version::of(&secret.metadata));
        let issue = Issue {
            life,
            scope: spec.scope,
            refresh_handled: o.refresh_requested.clone(),
            credentials: version.unwrap_or_default(),
            credentials_digest: digest,
        };
        let replaces = o.target.life().map(|life| life.issued_at);
        self.hold(o, HeldToken { token: grant.token, issue, replaces });
        self.deliver(o, sight).await
    }

    /// What has come in the way since the Secrets were read, at the last moment before a request; and what is done instead.
    async fn kept_from_asking(&self, o: &Observed, cause: Cause) -> Result<Option<Action>, Error> {
        if self.namespace.is_some() && self.shared.api_server.is_namespace_ending(&o.owner.namespace).await? {
            return Ok(Some(Action::await_change()));
        }
        // The way here may have taken as long as a term. Who holds a token settles what becomes of it in any case.
        if cause != Cause::Settle && !self.shared.settings.leadership.is_leader() {
            return Ok(Some(Action::await_change()));
        }
        if self.has_moved_on(o) {
            return Ok(Some(Action::requeue(Duration::ZERO)));
        }
        Ok(self.shared.settings.grants.is_too_late().then(Action::await_change))
    }

    /// Makes the request. Beside its answer it returns when it was sent, and `o` is of the moment of the answer.
    async fn ask(
        &self,
        o: &mut Observed,
        credentials: &ClientCredentials,
        scope: &str,
        permit: Permit<ObjectKey>,
    ) -> (Result<Grant, (TokenError, Blame)>, Timestamp) {
        let begun = self.shared.settings.clock.moment();
        let span = Span::of_call("ask for a token");
        let asking = Box::pin(span.around(permit.request(credentials, scope)));
        let answer = match select(asking, Box::pin(self.tell_of_expiry(o.clone()))).await {
            Either::Left((answer, _)) => answer,
            Either::Right((told, asking)) => {
                o.version = told.unwrap_or_else(|| o.version.clone());
                asking.await
            }
        };
        let result = answer.as_ref().map_or_else(|(error, _)| failure_reason(error), |_| Reason::Succeeded);
        span.ended(result.as_str(), answer.is_err());
        let took = self.shared.settings.clock.moment().since(begun);
        self.shared.settings.metrics.token_request(result.as_str(), took.as_secs_f64());
        o.now = self.now();
        // By the wall clock as it is now: it may have been set meanwhile.
        (answer, schedule::before(o.now, took))
    }

    /// Says so as the token in the target ends, though the answer that may bring another is still to come; soon, where it had ended before or
    /// was lost, and nobody has said so. Returns the object's version since then, where nobody else has written it: of what others wrote the pass knows
    /// nothing.
    async fn tell_of_expiry(&self, mut o: Observed) -> Option<Version> {
        let left = match o.target.life().and_then(|life| schedule::until(life.expires_at, self.now())) {
            Some(left) => left,
            // To say so would take as long as most requests.
            None if status::says_ready(&o.status) => Duration::try_from(WAITS_BEFORE_REPORT).unwrap_or_default(),
            None => return std::future::pending().await,
        };
        tokio::time::sleep(left).await;
        o.now = self.now();
        let (credential, version, _) = self.newest_of(&o.owner)?;
        let is_another = version != o.version;
        if is_another {
            o = self.observe(&credential);
            match plan::plan(&o) {
                Plan::Stand => return None,
                Plan::Look => drop(self.look(&mut o).await.ok()?),
                _ => {}
            }
        }
        // What cannot be said now is said with what comes of the request.
        let _ = self.account_while_asking(&mut o).await;
        (!is_another).then_some(o.version)
    }

    /// From here on the token is not lost while the process lives.
    pub(super) fn hold(&self, o: &mut Observed, held: HeldToken) {
        o.held = Some(held_facts(&held, false));
        self.remember(&o.owner, |memory| {
            memory.held = Some(held);
            (memory.waits_since, memory.hurried) = (None, None);
        });
    }

    /// Writes a token that has just come, to where it can be written now.
    pub(super) async fn deliver(&self, o: &mut Observed, sight: Sight) -> Result<Action, Error> {
        let object = self.caches.credential(&key_of(&o.owner));
        let credential = object.and_then(Guarded::credential);
        let Some(credential) = credential.filter(|found| found.uid().as_ref() == Some(&o.owner.uid)) else {
            // As the pass ends.
            return Ok(Action::await_change());
        };
        o.ending = self.is_ending(&o.owner, &credential);
        match plan::plan(o) {
            plan @ Plan::Store => self.carry_out(o, plan, sight).await,
            plan @ Plan::Forget if !o.ending => self.carry_out(o, plan, sight).await,
            // Anything else is decided on a fresh look: of one that is being deleted the Secret may have been taken away.
            _ => Ok(Action::requeue(Duration::ZERO)),
        }
    }

    /// The watch shows the object no more. If it is gone, the token goes to a retained target, or is dropped; if it only left the label selector,
    /// its target gets it all the same, as the last from here. What the API server does not do is tried again as long as the token lives.
    pub(super) async fn deliver_to_what_remains(
        &self,
        credential: &MoneyGoCredential,
        o: &mut Observed,
        sight: Sight,
    ) -> Result<Action, Error> {
        let key = key_of(&o.owner);
        let result = self.write_to_what_remains(o, sight).await;
        if !matches!(result, Ok(false)) && self.shared.memories.leave(&key, credential) {
            return result.map(|_| Action::requeue(REFUSED_WRITE_RETRY));
        }
        let dropped = self.remember(&o.owner, |memory| {
            memory.left = None;
            memory.held.take()
        });
        if dropped.is_some() {
            Self::log_dropped(&key);
        }
        Ok(Action::await_change())
    }

    /// Returns whether there is something left to try.
    async fn write_to_what_remains(&self, o: &mut Observed, mut sight: Sight) -> Result<bool, Error> {
        o.ending = !self.lives_unseen(&o.owner).await?;
        for _ in 0..LAST_ATTEMPTS {
            match plan::plan(o) {
                Plan::Store => match self.carry_out(o, Plan::Store, sight).await {
                    Err(error) if error.is_conflict() => sight = self.look(o).await?,
                    Err(error) => return Err(error),
                    Ok(_) => return Ok(!o.ending),
                },
                Plan::Look => sight = self.look(o).await?,
                Plan::Rest(..) => return Ok(!o.ending && (plan::is_write_refused(o) || plan::is_immutable(o))),
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    /// As [`Self::deliver_to_what_remains`], for an object that is looked at for this alone.
    pub(super) async fn deliver_left(&self, key: &ObjectKey) -> Result<Action, Error> {
        let Some(credential) = self.shared.memories.left(key) else { return Ok(Action::await_change()) };
        let mut o = self.observe(&credential);
        let has_ended = self.remember(&o.owner, |memory| {
            let ended = memory.held.take_if(|held| held.issue.life.is_expired(o.now));
            ended.inspect(|_| memory.left = None).is_some()
        });
        let action = if has_ended {
            Self::log_dropped(key);
            Action::await_change()
        } else {
            let sight = self.look(&mut o).await?;
            self.deliver_to_what_remains(&credential, &mut o, sight).await?
        };
        if self.shared.memories.settle(key, &o.owner.uid) {
            if self.caches.uid(key).is_some() || self.shared.memories.is_holding(key) {
                // It may have been made anew under its name meanwhile, or even be gone again.
                self.call(key.clone());
            } else {
                self.forget(key);
            }
        }
        Ok(action)
    }

    /// Whether an object that the watch does not show is there, and stays.
    async fn lives_unseen(&self, owner: &Owner) -> Result<bool, Error> {
        let found = self.shared.api_server.read_any_credential(&owner.namespace, &owner.name).await?;
        let metadata = found.map(|object| object.metadata);
        Ok(metadata
            .is_some_and(|metadata| metadata.uid.as_ref() == Some(&owner.uid) && metadata.deletion_timestamp.is_none()))
    }

    pub(super) async fn attempt_failed(
        &self,
        o: &mut Observed,
        error: &TokenError,
        blame: Blame,
        client: Option<&str>,
    ) -> Result<Action, Error> {
        if blame == Blame::Outage {
            // Everyone waits for one probe: nothing is written of each.
            return match self.admit(o) {
                Some(permit) => {
                    drop(permit);
                    Ok(Action::requeue(Duration::from_secs(1)))
                }
                None => self.wait(o).await,
            };
        }
        let is_without_life = matches!(error, TokenError::BadResponse { problem: BadResponse::ExpiresIn, .. });
        let soon = (is_without_life && is_at_its_end(o)).then_some(LAST_SECOND);
        let retry_after = error.retry_after().or(soon);
        // Whoever fails in an outage goes on soon after it, though it be for a reason of its own that it failed first.
        let is_outage = self.shared.settings.grants.is_outage();
        let backoff = backoff(error, blame, is_outage);
        self.fail(o, failure_reason(error), error.to_string(), backoff, retry_after, client).await
    }

    /// The token had less left than its answer took.
    async fn came_too_late(&self, o: &mut Observed, client: Option<&str>) -> Result<Action, Error> {
        let message = "the token had expired when it came: its lifetime is shorter than the time that the answer took";
        let soon = is_at_its_end(o).then_some(LAST_SECOND);
        self.fail(o, Reason::BadResponse, message.to_owned(), Backoff::Transient, soon, client).await
    }

    /// Whether an attempt that failed is more than one more that failed the same way. To be asked before it is told: it is news once.
    pub(super) fn is_news(&self, o: &Observed, reason: Reason) -> bool {
        let is_another = o.failure.as_ref().is_none_or(|failure| failure.reason != reason);
        let told = Told::Failure(reason);
        self.remember(&o.owner, |memory| memory.told.replace(told) != Some(told)) && is_another
    }

    /// Takes note of an attempt that failed, and of when it is repeated.
    pub(super) async fn fail(
        &self,
        o: &mut Observed,
        reason: Reason,
        message: String,
        backoff: Backoff,
        retry_after: Option<Duration>,
        client: Option<&str>,
    ) -> Result<Action, Error> {
        let earlier = o.failure.as_ref().filter(|failure| failure.is_of_an_attempt());
        let attempts = earlier.map_or(1, |failure| failure.attempts.saturating_add(1));
        let living = o.target.life().map(|life| life.expires_at);
        let wait = earlier.and_then(|failure| failure.wait_before(reason, &o.status, living));
        let next_attempt_at = schedule::next_attempt(o.now, backoff, wait, attempts, retry_after, living, &o.owner.uid);
        let failure = Failure { reason, message, at: o.now, attempts, next_attempt_at };
        if self.is_news(o, reason) {
            tracing::warn!(
                namespace = %o.owner.namespace, name = %o.owner.name, reason = reason.as_str(),
                next_attempt_at = %failure.next_attempt_at, "no new token: {}", failure.message
            );
        } else {
            tracing::debug!(
                namespace = %o.owner.namespace, name = %o.owner.name, reason = reason.as_str(), attempts,
                next_attempt_at = %failure.next_attempt_at, "no new token once more"
            );
        }
        let attempt = Attempt {
            at: schedule::floor_millis(failure.at),
            refresh_requested: o.refresh_requested.clone(),
            target: failure.is_of_the_write().then(|| o.target.facts().map(|facts| facts.version.clone())).flatten(),
            client: client.map(Into::into),
        };
        let failure = failure.in_milliseconds();
        let credentials = o.credentials.version().cloned();
        self.remember(&o.owner, |memory| {
            memory.hurried = None;
            memory.attempt = Some(attempt);
            memory.untold = Some(Failed { failure: failure.clone(), generation: o.generation, credentials });
            memory.waits_since = None;
        });
        o.failure = Some(failure);
        self.account(o).await
    }
}

/// The new token's life, in the light of what is there: the provider may have given the same token again.
fn lived(asked_at: Timestamp, grant: &Grant, o: &Observed, sight: &Sight, spec: &Resolved) -> Life {
    let life = Life::new(asked_at, grant.lifetime.length);
    let given_again = o.target.life().filter(|_| sight.stored_token(o, spec) == Some(grant.token.expose()));
    given_again.map_or(life, |earlier| life.of_repeated(earlier))
}

/// A provider that repeats its token says of one that ends within the second that it lives for 0 s, or gives it so late that
/// it is over. Soon it has a new one, which it is asked for until the end has passed.
fn is_at_its_end(o: &Observed) -> bool {
    o.target.life().map(|life| life.repeated.unwrap_or(life.expires_at)).is_some_and(|end| {
        let asked_since = o.failure.as_ref().is_some_and(|failure| failure.is_of_an_attempt() && failure.at >= end);
        !asked_since && schedule::before(end, LAST_SECOND) <= o.now
    })
}

pub(super) fn failure_reason(error: &TokenError) -> Reason {
    match error {
        TokenError::Rejected { .. } if error.refuses_client() => Reason::InvalidClient,
        TokenError::Rejected { .. } => Reason::RequestRejected,
        TokenError::RateLimited { .. } => Reason::RateLimited,
        TokenError::Unavailable { .. } => Reason::EndpointUnavailable,
        TokenError::BadResponse { .. } => Reason::BadResponse,
    }
}

pub(super) fn backoff(error: &TokenError, blame: Blame, is_outage: bool) -> Backoff {
    match error {
        TokenError::Rejected { .. } => Backoff::Rejected,
        TokenError::Unavailable { .. } if blame == Blame::Endpoint || is_outage => Backoff::Endpoint,
        _ => Backoff::Transient,
    }
}
