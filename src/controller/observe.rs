//! What is known of one object: from the watches, from this process's memory, and from a look at both Secrets.

use kube::ResourceExt as _;

use super::{Context, OWNER_REFUSED_FOR, Sight, key_of, owner_of};
use crate::caches::ObjectKey;
use crate::crd::{MoneyGoCredential, MoneyGoCredentialStatus, Resolved, annotation};
use crate::digest::Match;
use crate::error::Error;
use crate::memory::{Attempt, HeldToken, Memory, Told};
use crate::plan::{self, Credentials, Held, Observed, Past, Target};
use crate::secret::{self, Claim, Facts, Found, Owner, Version};

impl Context {
    pub(super) fn observe(&self, credential: &MoneyGoCredential) -> Observed {
        let now = self.now();
        let requested = credential.annotations().get(annotation::REFRESH_REQUESTED).cloned();
        let owner = owner_of(credential);
        let mut memory = self.shared.memories.of(&key_of(&owner), &owner.uid);
        let spec = credential.resolve();
        let (version, status) = newest_version(credential, &memory);
        if let Some(at) = memory.unknown_attempt(&status) {
            let attempt = Attempt { at, refresh_requested: requested.clone(), target: None, client: None };
            self.remember(&owner, |memory| memory.attempt = Some(attempt.clone()));
            memory.attempt = Some(attempt);
        }
        let mut o = Observed {
            now,
            version,
            generation: credential.metadata.generation,
            created: credential.creation_timestamp().map(|time| time.0),
            ending: self.is_ending(&owner, credential),
            refresh_requested: requested,
            status,
            failure: None,
            hurried: None,
            may_stand: false,
            leading: self.shared.settings.leadership.is_leader(),
            rival: None,
            live: false,
            credentials: Credentials::Missing,
            target: Target::Missing,
            claimed: true,
            held: memory.held.as_ref().map(|held| held_facts(held, false)),
            has_written: matches!(memory.told, Some(Told::Token(_))),
            replaced_at: memory.replacements.available_at(now),
            changed_at: memory.changes.available_at(now),
            mend_at: now,
            digests: self.shared.digest_key().is_some(),
            owner_refused: memory
                .owner_refused_until
                .is_some_and(|until| until > now && until.duration_since(now) <= OWNER_REFUSED_FOR),
            outage: self.shared.settings.grants.is_outage(),
            stopping: self.shared.api_server.lets_all_through(),
            spec,
            owner,
        };
        // A spec that cannot be worked with takes no token away: what the target holds still counts.
        let target = o.status.target_name.clone().unwrap_or_else(|| credential.target_name().to_owned());
        let target = o.spec.as_ref().map_or(&target, |spec| &spec.target);
        let target = self.caches.target(&ObjectKey::new(&o.owner.namespace, target));
        o.target = target.map_or(Target::Missing, |(facts, look)| Target::Seen {
            trusted: look.trusts(&facts),
            facts: Box::new(facts),
        });
        let credentials = ObjectKey::new(&o.owner.namespace, &credential.spec.credentials_ref.name);
        o.credentials = self.caches.secret_version(&credentials).map_or(Credentials::Missing, Credentials::Seen);
        self.judge(&mut o, &memory, None);
        o
    }

    /// What follows from the Secrets' versions, and the credentials' digest where they were read: whose the target is, and whether an earlier failure
    /// still counts.
    pub(super) fn judge(&self, o: &mut Observed, memory: &Memory, client: Option<&str>) {
        let facts = o.target.facts();
        if let Ok(spec) = &o.spec {
            let contenders = self.caches.contenders(&o.owner, &spec.target);
            let winner = secret::winner(&contenders, facts);
            o.rival = winner.filter(|winner| winner.uid != o.owner.uid).map(|winner| winner.name.clone());
        }
        let is_live = |uid: &str| {
            let name = facts.and_then(Facts::controller).map(|controller| controller.name.as_str());
            name.is_some_and(|name| self.caches.is_live(&o.owner.namespace, name, uid))
        };
        o.claimed = facts.is_none_or(|facts| secret::claim(facts, &o.owner, is_live) == Claim::Ours);
        let target = facts.map(|facts| facts.version.clone());
        let changed = memory.attempt.as_ref().is_some_and(|attempt| {
            let of_target = attempt.target.is_some() && attempt.target != target;
            attempt.refresh_requested != o.refresh_requested || of_target
        });
        let of_client = memory.attempt.as_ref().filter(|attempt| attempt.client.is_some());
        let past = Past {
            untold: memory.untold.as_ref(),
            changed,
            attempted_at: of_client.map(|attempt| attempt.at),
            same_client: of_client.is_some_and(|attempt| attempt.client.as_deref() == client),
            hurried: memory.hurried,
            recovered_at: self.shared.settings.grants.recovered_at(),
        };
        plan::judge_failure(o, &past);
        if o.hurried != memory.hurried {
            self.remember(&o.owner, |memory| memory.hurried = o.hurried);
        }
        o.mend_at = memory.mend_at(o.generation, o.target.facts().map(|facts| &facts.version), o.now);
    }

    pub(super) fn is_ending(&self, owner: &Owner, credential: &MoneyGoCredential) -> bool {
        credential.metadata.deletion_timestamp.is_some()
            || self.caches.is_ending(&owner.namespace)
            || !self.is_there(owner)
    }

    /// Reads both Secrets.
    pub(super) async fn look(&self, o: &mut Observed) -> Result<Sight, Error> {
        let Ok(spec) = o.spec.clone() else { return Ok(Sight::default()) };
        let api_server = &self.shared.api_server;
        let namespace = o.owner.namespace.clone();
        let (credentials, target) = futures::future::try_join(
            api_server.read_secret(&namespace, &spec.credentials),
            api_server.read_secret(&namespace, &spec.target),
        )
        .await?;
        let sight = Sight { credentials, target };
        self.take_in(o, &spec, &sight);
        Ok(sight)
    }

    pub(super) fn take_in(&self, o: &mut Observed, spec: &Resolved, sight: &Sight) {
        let key = self.shared.digest_key();
        o.now = self.now();
        // Reading may have taken as long as a term.
        o.leading = self.shared.settings.leadership.is_leader();
        o.live = true;
        o.target = sight.target.as_ref().map_or(Target::Missing, |secret| {
            let facts = Facts::of(&secret.metadata);
            let found = secret::inspect(secret, &facts, spec, plan::life_in_status(&o.status), key.as_ref());
            let complete = secret::is_complete(secret, &facts, spec, &found);
            Target::Read { facts: Box::new(facts), found, complete, immutable: secret.immutable == Some(true) }
        });
        let mut client = None;
        o.credentials = sight.credentials.as_ref().map_or(Credentials::Missing, |secret| Credentials::Read {
            version: Version::of(&secret.metadata),
            content: secret::read_credentials(secret, spec).map(|(id, client_secret)| {
                let stored = o.target.facts().and_then(|facts| facts.marks.credentials_digest.as_deref());
                let Some(key) = key.as_ref() else { return Match::Unknown };
                let fresh = client.insert(key.of_credentials(id, client_secret));
                key.compare(stored, fresh)
            }),
        });
        self.note(o, sight, spec);
        let memory = self.remember(&o.owner, |memory| memory.clone());
        o.held =
            memory.held.as_ref().map(|held| held_facts(held, sight.stored_token(o, spec) == Some(held.token.expose())));
        self.judge(o, &memory, client.as_deref());
    }

    /// What was read is newer than what the watches have shown, and is no news any more when they do: who else names the
    /// Secret is told now.
    pub(super) fn note(&self, o: &Observed, sight: &Sight, spec: &Resolved) {
        for (name, secret) in [(&spec.credentials, &sight.credentials), (&spec.target, &sight.target)] {
            if let Some(secret) = secret {
                self.call_all(self.caches.note_secret(&key_of(&o.owner), name, &Facts::of(&secret.metadata)));
            }
        }
        if let Target::Read { facts, found, complete, .. } = &o.target {
            let key = ObjectKey::new(&o.owner.namespace, &spec.target);
            self.caches.note_look(&key, &facts.version, *complete && matches!(found, Found::Token(_)));
        }
    }
}

/// The newest version and status that are known: the watch's, or what we wrote and it does not show yet.
pub(super) fn newest_version(credential: &MoneyGoCredential, memory: &Memory) -> (Version, MoneyGoCredentialStatus) {
    let seen = Version::of(&credential.metadata);
    match &memory.status {
        Some((written, status)) if written.is_newer_than(&seen) => (written.clone(), status.clone()),
        _ => (seen, credential.status.clone().unwrap_or_default()),
    }
}

pub(super) fn newest_status(credential: &MoneyGoCredential, memory: &Memory) -> MoneyGoCredentialStatus {
    newest_version(credential, memory).1
}

pub(super) fn held_facts(held: &HeldToken, is_stored: bool) -> Held {
    Held { issue: held.issue.clone(), replaces: held.replaces, is_stored }
}
