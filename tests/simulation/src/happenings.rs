//! What disturbances do to the world, how long each may keep things from working, and what each may cost.

use serde_json::{Value, json};

use moneygo_operator::crd::annotation;

use crate::moneygo::Grant;
use crate::oracle::{self, patience};
use crate::schedule::{Away, Blow, Disturbance, Edit, Mode, Renew, RetryAfter, Time, What};
use crate::store::Kind;
use crate::time::{Millis, SECOND};
use crate::world::{Hinders, World, base64, client_id, credentials_name, object_name, target_name};

/// The longest wait between two attempts of the watches, and of a write that failed.
const CLUSTER_BACKOFF: Millis = 45 * SECOND;
/// The longest backoff of a failed grant that is no rejection, with its jitter.
const GRANT_BACKOFF: Millis = 620 * SECOND;
/// Recovery of an endpoint that was away begins within this.
const RECOVERY: Millis = 30 * SECOND;
/// A corrected Secret is tried within this.
const CORRECTION: Millis = SECOND;
/// For a reaction to a person, and for one that its allowance holds up.
const REACTION: Millis = 12 * SECOND;

/// A token request that must come.
#[derive(Debug, Clone)]
pub struct Expectation {
    promise: &'static str,
    /// Of which client; of any where unset.
    client: Option<String>,
    from: Millis,
    by: Millis,
    /// How many times something was in the way as it was made.
    interferences: usize,
}

/// What is counted for each object.
#[derive(Debug, Clone, Copy, Default)]
pub struct Account {
    /// Grants that reached a living process.
    pub delivered: u64,
    /// Grants that its disturbances may cost.
    pub allowed: u64,
    /// Changes that people made.
    changes: u64,
}

/// As the quiet time began.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet {
    touches: u64,
    grants: u64,
}

impl World {
    /// Before anything runs.
    pub fn begin(&mut self) {
        let start = 10 * SECOND + self.failover();
        self.excuse(0, start, None, Hinders::Cluster);
        for account in &mut self.accounts {
            account.allowed = 1;
        }
    }

    fn allow(&mut self, object: Option<usize>, grants: u64) {
        for (index, account) in self.accounts.iter_mut().enumerate() {
            if object.is_none_or(|object| object == index) {
                account.allowed += grants;
            }
        }
    }

    /// A process was stopped in whatever way: what it had in flight may be asked for again.
    pub fn allow_for_blow(&mut self, blow: Blow) {
        let replicas = self.setting.replicas as u64;
        let grants = if matches!(blow, Blow::Crash | Blow::Stop) { replicas } else { 2 * (replicas - 1) };
        self.allow(None, grants);
    }

    /// A disturbance begins.
    pub fn begin_disturbance(&mut self, place: usize, now: Millis) {
        let Some(one) = self.disturbances.get(place).copied() else { return };
        if let Some(active) = self.active.get_mut(place) {
            *active = one.lasts > 0;
        }
        self.note(now, || format!("== begins: {one}"));
        self.excuse_for(one, now);
        self.allow_for(one);
        match one.what {
            What::Strike(..) => self.arm(place, now),
            What::WatchCut(kind, gone) => self.cut(kind, gone),
            What::GrantsLost(count) => self.to_lose += count,
            What::ClockWrong(node, by) => crate::time::set_wrong(node, by),
            What::InvalidClient(object) => self.provider.clients.entry(client_id(object)).or_default().blocked = true,
            _ => self.begin_of_people(one.what, now),
        }
    }

    fn begin_of_people(&mut self, what: What, now: Millis) {
        match what {
            What::TargetDeleted(object) if !self.is_foreign(object) => {
                self.store.delete(Kind::Secret, &target_name(object), now);
            }
            What::TargetTaken(object) if !self.is_foreign(object) => {
                self.store.delete(Kind::Secret, &target_name(object), now);
                self.put_foreign(object, now);
            }
            What::TokenEdited(object)
            | What::AnnotationsStripped(object)
            | What::ExpiryEdited(object)
            | What::LabelsStripped(object)
                if !self.is_foreign(object) =>
            {
                // Nothing else would tell whose a retained Secret is.
                if matches!(what, What::AnnotationsStripped(_)) && self.is_retained(object) {
                    return;
                }
                self.store.edit(Kind::Secret, &target_name(object), now, |secret| tamper(secret, what));
            }
            What::RefreshRequested(object) => {
                let value = format!("at-{now}");
                self.store.edit(Kind::Credential, &object_name(object), now, |found| {
                    found["metadata"]["annotations"][annotation::REFRESH_REQUESTED] = value.into();
                });
            }
            What::SpecEdited(object, edit) => {
                self.store.edit(Kind::Credential, &object_name(object), now, |found| edit_spec(found, edit, now));
            }
            What::Suspended(object) => self.set_suspended(object, true, now),
            What::CredentialsGone(object) => self.store.delete(Kind::Secret, &credentials_name(object), now),
            What::CredentialsRotated(object) => {
                self.rotate(object);
                self.put_credentials(object, now);
            }
            What::CredentialsWrong(object) => self.put_secret_of_client(object, "wrong-canary", now),
            What::CredentialsTouched(object) => {
                self.store.edit(Kind::Secret, &credentials_name(object), now, |found| {
                    found["metadata"]["labels"]["touched"] = format!("at-{now}").into();
                });
            }
            What::StatusCleared(object) => self.store.clear_status(&object_name(object), now),
            What::Recreated(object) => {
                self.store.delete(Kind::Credential, &object_name(object), now);
                self.garbage_from = self.garbage_from.or(Some(now + SECOND));
            }
            _ => {}
        }
    }

    /// A disturbance ends.
    pub fn end_disturbance(&mut self, place: usize, now: Millis) {
        let Some(one) = self.disturbances.get(place).copied() else { return };
        if let Some(active) = self.active.get_mut(place) {
            *active = false;
        }
        if one.lasts > 0 {
            self.note(now, || format!("== ends: {one}"));
        }
        match one.what {
            What::WatchBehind(kind, true) => self.cut(kind, true),
            What::ClockWrong(node, _) => crate::time::set_wrong(node, 0),
            What::InvalidClient(object) => {
                self.expect_correction(object, now);
                if let Some(client) = self.provider.clients.get_mut(&client_id(object)) {
                    client.blocked = false;
                }
                self.rotate(object);
                self.put_credentials(object, now);
            }
            What::CredentialsWrong(object) => {
                // Where the token is from the right ones and good, there is nothing to ask for.
                if self.is_overdue(object, now) {
                    self.expect_correction(object, now);
                }
                self.put_credentials(object, now);
            }
            What::CredentialsGone(object) => self.put_credentials(object, now),
            What::EndpointAway(how) => self.expect_recovery(how, now),
            What::Suspended(object) => self.set_suspended(object, false, now),
            What::Recreated(object) => self.create_object(object, now),
            What::TargetTaken(object) if !self.is_foreign(object) => {
                self.store.delete(Kind::Secret, &target_name(object), now);
            }
            _ => {}
        }
    }

    /// What still waits for its moment does not come any more.
    pub fn end_faults(&mut self) {
        self.disarm();
        self.to_lose = 0;
    }

    fn cut(&mut self, kind: Kind, gone: bool) {
        let cut = self.cuts.entry(kind).or_default();
        *cut = (cut.0 + 1, gone);
    }

    fn is_foreign(&self, object: usize) -> bool {
        self.setting.objects.get(object).is_some_and(|setting| setting.foreign)
    }

    fn is_retained(&self, object: usize) -> bool {
        self.setting.objects.get(object).is_some_and(|setting| setting.retain)
    }

    fn set_suspended(&mut self, object: usize, suspended: bool, now: Millis) {
        self.store
            .edit(Kind::Credential, &object_name(object), now, |found| found["spec"]["suspend"] = suspended.into());
    }

    /// Deletes Secrets whose owners are gone.
    pub fn collect_garbage(&mut self, now: Millis) {
        if self.garbage_from.is_none_or(|from| from > now) {
            return;
        }
        self.garbage_from = Some(now + 2 * SECOND);
        for name in self.store.orphans() {
            self.note(now, || format!("garbage collection deletes {name}"));
            self.store.delete(Kind::Secret, &name, now);
        }
        self.pulse.notify_waiters();
    }

    fn excuse_for(&mut self, one: Disturbance, now: Millis) {
        let end = now + one.lasts;
        let failover = self.failover();
        let (object, hinders, linger) = match one.what {
            What::Strike(..) | What::GrantsLost(_) => return,
            // A write that was refused is tried again as a failed grant is.
            What::ApiFlaky(_, Away::Status(403)) => (None, Hinders::Cluster, GRANT_BACKOFF + failover),
            What::ApiAway(..) | What::ApiFlaky(..) | What::ApiSlow(_) => {
                (None, Hinders::Cluster, CLUSTER_BACKOFF + failover)
            }
            What::WatchCut(..) | What::WatchBehind(..) => (None, Hinders::Cluster, CLUSTER_BACKOFF),
            What::WatchSlow(_, longest) => (None, Hinders::Cluster, longest + 10 * SECOND),
            What::EndpointAway(_) => (None, Hinders::Grants, RECOVERY + REACTION + 10 * SECOND),
            // With a clock that is wrong, a date may be any time from now to the longest wait.
            What::RateLimited(RetryAfter::Date(_)) if self.has_wrong_clocks() => (None, Hinders::Grants, 3612 * SECOND),
            What::RateLimited(RetryAfter::Seconds(secs) | RetryAfter::Date(secs)) => {
                (None, Hinders::Grants, (secs.min(3600) + 12) * SECOND)
            }
            What::RateLimited(_) | What::EndpointSlow(_) | What::BadAnswers => {
                (None, Hinders::Grants, GRANT_BACKOFF + REACTION)
            }
            What::InvalidClient(object) | What::CredentialsGone(object) | What::CredentialsWrong(object) => {
                (Some(object), Hinders::Grants, REACTION)
            }
            What::Suspended(object) => (Some(object), Hinders::Grants, REACTION),
            What::ClockWrong(..) => {
                if self.setting.replicas == 1 {
                    self.excuse(now, now + 15 * SECOND, None, Hinders::Cluster);
                    self.excuse(end, end + 15 * SECOND, None, Hinders::Cluster);
                    return;
                }
                (None, Hinders::Cluster, 15 * SECOND + failover)
            }
            What::TargetTaken(object) => {
                let reaction = self.reaction(object);
                self.excuse(now, now + reaction, Some(object), Hinders::Cluster);
                self.excuse(end, end + reaction, Some(object), Hinders::Cluster);
                (Some(object), Hinders::Grants, reaction)
            }
            What::TargetDeleted(object)
            | What::TokenEdited(object)
            | What::AnnotationsStripped(object)
            | What::ExpiryEdited(object)
            | What::LabelsStripped(object)
            | What::RefreshRequested(object)
            | What::SpecEdited(object, _)
            | What::CredentialsRotated(object)
            | What::CredentialsTouched(object)
            | What::StatusCleared(object)
            | What::Recreated(object) => (Some(object), Hinders::Cluster, self.reaction(object)),
        };
        self.excuse(now, end + linger, object, hinders);
    }

    /// Each change may have to wait for its turn.
    fn reaction(&mut self, object: usize) -> Millis {
        let changes = self.accounts.get_mut(object).map_or(0, |account| {
            account.changes += 1;
            account.changes
        });
        REACTION + changes * 11 * SECOND
    }

    fn allow_for(&mut self, one: Disturbance) {
        let second = self.setting.replicas as u64 - 1;
        let (object, grants) = match one.what {
            What::ApiAway(..) | What::ApiFlaky(..) | What::ApiSlow(_) => (None, 2 * second),
            What::WatchBehind(..) | What::WatchSlow(..) => (None, second),
            What::ClockWrong(..) => (None, 2 + 4 * second),
            What::InvalidClient(object) | What::CredentialsWrong(object) | What::CredentialsRotated(object) => {
                (Some(object), 1)
            }
            What::TargetDeleted(object)
            | What::TokenEdited(object)
            | What::RefreshRequested(object)
            | What::Recreated(object)
            | What::TargetTaken(object)
            | What::SpecEdited(object, Edit::Scope | Edit::Percent(_)) => (Some(object), 1),
            _ => return,
        };
        self.allow(object, grants);
    }

    fn has_wrong_clocks(&self) -> bool {
        self.disturbances.iter().any(|one| matches!(one.what, What::ClockWrong(..)))
    }

    /// A grant has reached a process that lives.
    pub fn delivered(&mut self, object: usize) {
        if let Some(account) = self.accounts.get_mut(object) {
            account.delivered += 1;
        }
    }

    /// A grant was made and its answer lost.
    pub fn lost(&mut self, now: Millis) {
        self.excuse(now, now + RECOVERY + REACTION, None, Hinders::Grants);
    }

    /// When the object's tokens are replaced now.
    #[must_use]
    pub fn renew_of(&self, object: usize) -> Renew {
        let credential = self.store.get(Kind::Credential, &object_name(object));
        let percent = credential.and_then(|found| found["spec"]["refresh"]["renewBeforePercentage"].as_u64());
        let first = self.setting.objects.get(object).map_or(Renew::Unset, |setting| setting.renew);
        percent.map_or(first, Renew::Percent)
    }

    /// Whether a token was lost that nothing but a wrong clock had asked for: with the process that asked ends what was known
    /// of it, and that the one before was revoked by it.
    #[must_use]
    pub fn was_lost_by_a_wrong_clock(&self, object: usize) -> bool {
        let client = client_id(object);
        let last = self.provider.grants.iter().rev().find(|grant| grant.client == client);
        self.has_wrong_clocks() && last.is_some_and(|grant| !grant.delivered)
    }

    /// Whether no wall clock was set since, or shows something wrong now.
    #[must_use]
    pub fn clocks_steady_since(&self, since: Millis) -> bool {
        let sets = self.disturbances.iter().filter(|one| matches!(one.what, What::ClockWrong(..)));
        !sets.flat_map(|one| [one.at, one.at + one.lasts]).any(|at| at >= since)
    }

    fn expect_correction(&mut self, object: usize, now: Millis) {
        let client = client_id(object);
        let was_refused = self.provider.clients.get(&client).is_some_and(|known| !known.refused.is_empty());
        let others = self.current().any(|what| {
            matches!(
                what,
                What::EndpointAway(_)
                    | What::RateLimited(_)
                    | What::BadAnswers
                    | What::EndpointSlow(_)
                    | What::Suspended(_)
                    | What::CredentialsGone(_)
                    | What::InvalidClient(_)
                    | What::CredentialsWrong(_)
                    | What::TargetTaken(_)
            )
        });
        if !was_refused || others || self.is_foreign(object) || self.clean_since(object, now, true).is_none() {
            return;
        }
        if self.interfered_lately(now) {
            return;
        }
        let by = now + CORRECTION + 8 * self.setting.api_delay + 3 * self.setting.step;
        let interferences = self.interferences.len();
        let promise = "a corrected Secret is tried within a second";
        self.expectations.push(Expectation { promise, client: Some(client), from: now, by, interferences });
    }

    /// Whether Money-Go was away, or said later, a moment ago: waits of that time are not over.
    fn interfered_lately(&self, now: Millis) -> bool {
        self.disturbances.iter().any(|one| {
            let end = one.at + one.lasts;
            let waits = match one.what {
                What::EndpointAway(_) | What::EndpointSlow(_) | What::GrantsLost(_) => 60 * SECOND,
                _ => return false,
            };
            one.at <= now && now < end + waits
        })
    }

    fn expect_recovery(&mut self, how: Away, now: Millis) {
        let others = self.current().any(|what| {
            matches!(
                what,
                What::EndpointAway(_)
                    | What::RateLimited(_)
                    | What::BadAnswers
                    | What::InvalidClient(_)
                    | What::EndpointSlow(_)
            )
        });
        // What was said of later than the outage is waited for.
        let told = self.disturbances.iter().any(|one| {
            let waits = matches!(
                one.what,
                What::RateLimited(_)
                    | What::BadAnswers
                    | What::InvalidClient(_)
                    | What::CredentialsWrong(_)
                    | What::EndpointSlow(_)
                    | What::Suspended(_)
                    | What::CredentialsGone(_)
                    | What::SpecEdited(..)
            );
            waits && one.at <= now
        });
        let waiting = (0..self.setting.objects.len()).any(|object| {
            !self.is_foreign(object)
                && self.clean_since(object, now, true).is_some()
                && oracle::has_right_credentials(self, object)
                && self.is_overdue(object, now)
        });
        if others || told || !waiting {
            return;
        }
        let hanging = if how == Away::Hangs { 11 * SECOND } else { 0 };
        let by = now + RECOVERY + hanging + patience(self);
        let interferences = self.interferences.len();
        let promise = "recovery begins within 30 s of the return of Money-Go";
        self.expectations.push(Expectation { promise, client: None, from: now, by, interferences });
    }

    fn is_overdue(&self, object: usize, now: Millis) -> bool {
        let client = client_id(object);
        let last = self.provider.grants.iter().rev().find(|grant: &&Grant| grant.client == client && grant.delivered);
        // A token that was given again is asked for halfway to its end.
        let due = match self.setting.mode {
            Mode::SameAgain => self.setting.lifetime,
            _ => self.renew_of(object).due_at_age(self.setting.lifetime).1,
        };
        last.is_none_or(|grant| grant.issued + due + patience(self) < now)
    }

    /// Checks what must have come by now.
    pub fn check_expectations(&mut self, now: Millis) {
        let (over, still): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.expectations).into_iter().partition(|one| one.by < now);
        self.expectations = still;
        for one in over {
            // Something else came in the way.
            if self.interferences.len() > one.interferences {
                continue;
            }
            let of_client = |client: &String| one.client.as_ref().is_none_or(|wanted| wanted == client);
            let came = self
                .nodes
                .iter()
                .flat_map(|node| &node.posts)
                .any(|(at, client)| (one.from..=one.by).contains(at) && of_client(client));
            if !came {
                let detail = format!("{:?}: expected from {} to {}", one.client, Time(one.from), Time(one.by));
                self.violate(one.promise, now, detail);
            }
        }
    }

    /// From here on nothing happens but what schedules foresee.
    pub fn begin_quiet(&mut self) {
        self.quiet = Quiet { touches: self.touches, grants: self.counts.grants };
        for account in &mut self.accounts {
            account.changes = account.delivered;
        }
    }

    /// Judges the quiet time, and the sum of all grants.
    pub fn judge_quiet(&mut self, now: Millis, length: Millis) {
        let (grants, touches) = (self.counts.grants - self.quiet.grants, self.touches - self.quiet.touches);
        // Two reads, the Secret, the status, an event; a read of the namespace where it is not watched; one may
        // be under way as it begins, and one as it ends.
        // A token that is given again until it ends may end, and its status say so, before there is another.
        let each = if self.setting.mode == Mode::SameAgain { 8 } else { 6 };
        if touches > each * grants + 7 * self.setting.objects.len() as u64 {
            let detail = format!("{touches} requests for {grants} grants");
            self.violate("in steady state nothing is read or written", now, detail);
        }
        for object in 0..self.setting.objects.len() {
            self.judge_grants(object, now, length);
        }
    }

    fn judge_grants(&mut self, object: usize, now: Millis, length: Millis) {
        let Some(account) = self.accounts.get(object).copied() else { return };
        let renew = self.renew_of(object);
        let (quiet, planned) = (account.delivered - account.changes, oracle::planned_grants(self, renew, length));
        if quiet > planned {
            let detail = format!("{}: {quiet} in the quiet time, {planned} planned", object_name(object));
            self.violate("one grant a token's life", now, detail);
        }
        let edits = self.disturbances.iter().filter_map(|one| match one.what {
            What::SpecEdited(of, Edit::Percent(percent)) if of == object => Some(Renew::Percent(percent)),
            _ => None,
        });
        let first = self.setting.objects.get(object).map_or(Renew::Unset, |setting| setting.renew);
        let most = edits.chain([first]).map(|renew| oracle::planned_grants(self, renew, now)).max().unwrap_or(0);
        let most = most + account.allowed;
        if account.delivered > most {
            let detail =
                format!("{}: {} in all, at most {most} for all that happened", object_name(object), account.delivered);
            self.violate("no more grants than there are causes", now, detail);
        }
    }
}

fn tamper(secret: &mut Value, what: What) {
    match what {
        What::TokenEdited(_) => {
            let key = oracle::token_key(secret);
            secret["data"][key] = base64(b"edited");
        }
        What::AnnotationsStripped(_) => secret["metadata"]["annotations"] = json!({}),
        What::ExpiryEdited(_) => {
            secret["metadata"]["annotations"][annotation::EXPIRES_AT] = "3000-01-01T00:00:00Z".into();
        }
        _ => secret["metadata"]["labels"] = json!({}),
    }
}

fn edit_spec(found: &mut Value, edit: Edit, now: Millis) {
    let target = &mut found["spec"]["target"];
    match edit {
        Edit::Scope => found["spec"]["scope"] = format!("scope-{now}").into(),
        Edit::TokenKey => target["accessTokenKey"] = format!("key-{now}").into(),
        Edit::AuthorizationKey if target["authorizationKey"].is_string() => {
            if let Some(fields) = target.as_object_mut() {
                fields.remove("authorizationKey");
            }
        }
        Edit::AuthorizationKey => target["authorizationKey"] = "authorization".into(),
        Edit::Labels => target["labels"] = json!({"edited": format!("at-{now}")}),
        Edit::Percent(percent) => found["spec"]["refresh"] = json!({"renewBeforePercentage": percent}),
    }
}
