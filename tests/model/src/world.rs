//! What there is beside the replicas: the API server's objects, Money-Go's ledger, the lease, time and people.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry, ObjectMeta};
use moneygo_operator::crd::MoneyGoCredentialStatus;
use moneygo_operator::secret::{FIELD_MANAGER, Facts, Version};
use serde_json::{Value, json};

use crate::replica::Replica;
use crate::setting::{Allowed, LIFETIME_SECS, Provider, Setting};
use crate::shared::Shared;

/// The key of the token in the target.
pub const TOKEN_KEY: &str = "access_token";
/// How many events of a kind the watches of a standby may be behind.
pub const MOST_BEHIND: usize = 2;
/// The scope that the object asks for at first.
pub const SCOPE: &str = "api";
/// The scope that a person changes it to.
pub const OTHER_SCOPE: &str = "other";
/// The refresh request that a person makes.
pub const REQUEST: &str = "now";

/// The object, as the API server has it.
#[derive(Debug, Clone)]
pub struct Object {
    /// `metadata.resourceVersion`.
    pub version: u64,
    /// `metadata.generation`.
    pub generation: i64,
    /// `spec.scope`.
    pub scope: &'static str,
    /// The annotation that asks for a refresh.
    pub refresh_requested: Option<String>,
    /// Its status.
    pub status: MoneyGoCredentialStatus,
}

/// What the watch of Secrets shows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Event {
    /// The target was written.
    Applied(Shared<Facts>),
    /// It was deleted: its last uid, and the version of its deletion.
    Deleted(Shared<Version>),
}

/// A token, as Money-Go knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token {
    /// When it ends, in seconds from the start.
    pub ends_at_secs: i64,
    /// For which scope it was given.
    pub scope: &'static str,
    /// Whether it was revoked.
    pub revoked: bool,
    /// Whether the target ever held it.
    pub written: bool,
    /// Whether nobody has it: its answer was lost, or whoever had it crashed, or a person took it out of the target.
    pub gone: bool,
}

/// Everything, at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct World {
    /// The place of the moment in [`Setting::moments`].
    pub moment: usize,
    /// Requests to Money-Go so far. Each is a millisecond later than the one before.
    pub asked: u8,
    /// Grants so far.
    pub grants: u8,
    /// Grants that a cause stands for: what was due, missing or asked for.
    pub causes: u8,
    /// Tokens that had expired before they could be written.
    pub late: u8,
    /// The issue of the last token that was replaced because it was due.
    pub due: Option<Timestamp>,
    /// The object.
    pub object: Shared<Object>,
    /// The target.
    pub target: Option<Shared<Secret>>,
    /// What the target was at first.
    pub first: Option<Shared<Secret>>,
    /// The newest version of a Secret.
    pub version: u64,
    /// The issues of all tokens that the target ever held.
    pub held: Vec<Timestamp>,
    /// Money-Go's tokens.
    pub ledger: Vec<Token>,
    /// The operator's processes.
    pub replicas: Vec<Replica>,
    /// Who has the lease.
    pub leader: Option<usize>,
    /// Who is cut off from the API server.
    pub cut: Option<usize>,
    /// What may still go wrong.
    pub allowed: Allowed,
}

impl World {
    /// A new object without a target, which everyone has seen. The first replica leads.
    #[must_use]
    pub fn new(setting: &Setting) -> Self {
        let object = Shared::from(Object {
            version: 1,
            generation: 1,
            scope: SCOPE,
            refresh_requested: None,
            status: MoneyGoCredentialStatus::default(),
        });
        let replicas = (0..setting.replicas).map(|_| Replica::new(object.clone(), None, 100)).collect();
        let mut world = Self {
            moment: 0,
            asked: 0,
            grants: 0,
            causes: 1,
            late: 0,
            due: None,
            object,
            target: None,
            first: None,
            version: 100,
            held: Vec::new(),
            ledger: Vec::new(),
            replicas,
            leader: Some(0),
            cut: None,
            allowed: setting.allowed,
        };
        world.call(0);
        world
    }

    /// Seconds from the start.
    #[must_use]
    pub fn secs(&self, setting: &Setting) -> i64 {
        setting.moments.get(self.moment).copied().unwrap_or_default()
    }

    /// What a replica's clock shows.
    #[must_use]
    pub fn clock(&self, setting: &Setting, replica: usize) -> Timestamp {
        let ahead = if replica == 0 { 0 } else { setting.ahead_secs };
        let since = SignedDuration::from_secs(self.secs(setting) + ahead);
        Setting::start() + since + SignedDuration::from_millis(i64::from(self.asked))
    }

    /// The credentials Secret, which nobody touches.
    #[must_use]
    pub fn credentials() -> Secret {
        let data = [("client_id", "id"), ("client_secret", "secret")];
        let metadata = ObjectMeta {
            name: Some("client".to_owned()),
            uid: Some("client-uid".to_owned()),
            resource_version: Some("7".to_owned()),
            ..ObjectMeta::default()
        };
        let data = data.map(|(key, value)| (key.to_owned(), k8s_openapi::ByteString(value.as_bytes().to_vec())));
        Secret { metadata, data: Some(data.into()), ..Secret::default() }
    }

    /// An object is to be looked at. A replica that would only stand by does so at once: a pass of its own would change nothing.
    pub fn call(&mut self, replica: usize) {
        self.replicas[replica].called = true;
        self.let_stand(replica);
    }

    /// Whether a replica does nothing, whatever it is called for.
    #[must_use]
    pub fn stands_by(&self, replica: usize) -> bool {
        let one = &self.replicas[replica];
        self.leader != Some(replica) && one.is_idle() && one.memory.held.is_none()
    }

    fn let_stand(&mut self, replica: usize) {
        if self.stands_by(replica) {
            let one = &mut self.replicas[replica];
            (one.called, one.timer) = (false, None);
        }
    }

    /// Has the watches show what changes nothing at once, and a standby what it would be too far behind without: when they do
    /// makes no difference.
    pub fn show_what_is_no_news(&mut self) {
        for at in (0..self.replicas.len()).filter(|at| self.cut != Some(*at)) {
            let most = if self.stands_by(at) { MOST_BEHIND } else { usize::MAX };
            self.replicas[at].catch_up(most);
        }
    }

    /// Whether the watches have shown everything to those who do something.
    #[must_use]
    pub fn is_shown(&self) -> bool {
        (0..self.replicas.len()).all(|at| self.stands_by(at) || self.replicas[at].has_seen_all())
    }

    /// The lease is someone else's from here on.
    pub fn give_lease(&mut self, to: usize) {
        let before = self.leader.replace(to);
        if let Some(before) = before {
            self.let_stand(before);
        }
        self.call(to);
    }

    /// Puts a Secret in the target's place, unless it is another version by now. As the API server does, who changes a key of the
    /// data owns it.
    pub fn put_target(&mut self, manager: &str, mut secret: Secret) -> Option<ObjectMeta> {
        let expected = secret.metadata.resource_version.take();
        let before = self.target.as_ref();
        if expected != before.and_then(|before| before.metadata.resource_version.clone()) {
            return None;
        }
        let fields = managed_fields(before, &secret, manager);
        self.version += 1;
        let meta = &mut secret.metadata;
        meta.uid.get_or_insert_with(|| format!("target-{}", self.version));
        meta.resource_version = Some(self.version.to_string());
        meta.managed_fields = Some(fields);
        let written = secret.metadata.clone();
        self.note_token(&secret);
        let secret = Shared::from(secret);
        self.first.get_or_insert_with(|| secret.clone());
        self.target = Some(secret);
        self.show_secret(&Event::Applied(Facts::of(&written).into()));
        Some(written)
    }

    fn note_token(&mut self, secret: &Secret) {
        if let Some(token) = token_in(secret).and_then(|number| self.ledger.get_mut(number)) {
            token.written = true;
        }
        let issued_at = Facts::of(&secret.metadata).marks.life.map(|life| life.issued_at);
        self.held.extend(issued_at.filter(|at| !self.held.contains(at)));
        self.held.sort();
    }

    /// A person deletes the target.
    pub fn delete_target(&mut self) {
        let Some(target) = self.target.take() else { return };
        self.lose_token(token_in(&target));
        self.version += 1;
        let uid = target.metadata.uid.clone().unwrap_or_default();
        let version = Version { uid, resource_version: self.version.to_string() };
        self.show_secret(&Event::Deleted(version.into()));
    }

    /// A person puts back what the target was at first.
    pub fn restore_target(&mut self) {
        let (Some(target), Some(first)) = (self.target.clone(), self.first.clone()) else { return };
        let issued_at = Facts::of(&target.metadata).marks.life.map(|life| life.issued_at);
        if issued_at != self.object.status.issued_at {
            // Of any other the status tells.
            self.lose_token(token_in(&target));
        }
        let mut secret = Secret::clone(&target);
        secret.data.clone_from(&first.data);
        secret.metadata.annotations.clone_from(&first.metadata.annotations);
        self.put_target("kubectl", secret);
    }

    /// Replaces the object, whose status or spec is another.
    pub fn put_object(&mut self, change: impl FnOnce(&mut Object)) {
        let mut object = Object::clone(&self.object);
        change(&mut object);
        object.version += 1;
        let object = Shared::from(object);
        for replica in &mut self.replicas {
            replica.objects.push_back(object.clone());
        }
        self.object = object;
    }

    fn show_secret(&mut self, event: &Event) {
        for replica in &mut self.replicas {
            replica.secrets.push_back(event.clone());
        }
    }

    /// Money-Go gives a token: which of its ledger, and for how many seconds.
    pub fn grant(&mut self, setting: &Setting, scope: &'static str) -> (usize, i64) {
        let now = self.secs(setting);
        self.grants += 1;
        let last = self.ledger.iter().rposition(|token| token.scope == scope && token.ends_at_secs > now);
        match (setting.provider, last) {
            (Provider::Repeating, Some(last)) => return (last, self.ledger[last].ends_at_secs - now),
            (Provider::Independent | Provider::Repeating, _) => {}
            (Provider::Revoking, _) => self.revoke_all_but(0),
            (Provider::TwoAlive, _) => self.revoke_all_but(1),
        }
        let token = Token { ends_at_secs: now + LIFETIME_SECS, scope, revoked: false, written: false, gone: false };
        self.ledger.push(token);
        (self.ledger.len() - 1, LIFETIME_SECS)
    }

    fn revoke_all_but(&mut self, last: usize) {
        for token in self.ledger.iter_mut().rev().skip(last) {
            token.revoked = true;
        }
    }

    /// Whether the token in the target can be used.
    #[must_use]
    pub fn token_lives(&self, setting: &Setting) -> bool {
        let token = self.target.as_ref().and_then(|target| token_in(target)).and_then(|number| self.ledger.get(number));
        token.is_some_and(|token| !token.revoked && token.ends_at_secs > self.secs(setting))
    }

    /// Tokens that the target never held, though they would have lived for long enough.
    #[must_use]
    pub fn lost_tokens(&self) -> u8 {
        let lost: u8 = self.ledger.iter().map(|token| u8::from(!token.written)).sum();
        lost.saturating_sub(self.late)
    }

    /// Nobody has a token any more that may be the last one.
    pub fn lose_token(&mut self, number: Option<usize>) {
        if let Some(token) = number.and_then(|number| self.ledger.get_mut(number)) {
            token.gone = true;
        }
    }

    /// Whether the target's token was revoked by a later one that is gone: nothing tells the operator of it.
    #[must_use]
    pub fn is_revoked_by_what_is_gone(&self) -> bool {
        let Some(number) = self.target.as_ref().and_then(|target| token_in(target)) else { return false };
        let later = self.ledger.get(number + 1..).unwrap_or_default();
        self.ledger.get(number).is_some_and(|token| token.revoked) && later.iter().any(|token| token.gone)
    }

    /// Grants beyond those that a cause stands for.
    #[must_use]
    pub fn extra_grants(&self) -> u8 {
        self.grants.saturating_sub(self.causes)
    }
}

/// The token of that number in the ledger.
#[must_use]
pub fn token_text(number: usize) -> String {
    format!("token-{number}")
}

/// The number of a token.
#[must_use]
pub fn token_number(text: &str) -> Option<usize> {
    text.strip_prefix("token-")?.parse().ok()
}

/// The number of the token in a Secret.
#[must_use]
pub fn token_in(secret: &Secret) -> Option<usize> {
    let value = &secret.data.as_ref()?.get(TOKEN_KEY)?.0;
    std::str::from_utf8(value).ok().and_then(token_number)
}

fn managed_fields(before: Option<&Shared<Secret>>, after: &Secret, manager: &str) -> Vec<ManagedFieldsEntry> {
    let old = before.and_then(|before| before.data.clone()).unwrap_or_default();
    let entries = before.and_then(|before| before.metadata.managed_fields.as_deref()).unwrap_or_default();
    let mut fields: BTreeMap<String, serde_json::Map<String, Value>> = BTreeMap::new();
    for (key, value) in after.data.iter().flatten() {
        let stays = old.get(key) == Some(value);
        let owner = if stays { owner_of(entries, key) } else { manager.to_owned() };
        fields.entry(owner).or_default().insert(format!("f:{key}"), json!({}));
    }
    let entry = |(manager, fields)| ManagedFieldsEntry {
        manager: Some(manager),
        fields_v1: Some(FieldsV1(json!({ "f:data": Value::Object(fields) }))),
        ..ManagedFieldsEntry::default()
    };
    fields.into_iter().map(entry).collect()
}

fn owner_of(entries: &[ManagedFieldsEntry], key: &str) -> String {
    let field = format!("f:{key}");
    let owns = |entry: &&ManagedFieldsEntry| {
        entry.fields_v1.as_ref().and_then(|fields| fields.0.get("f:data")?.get(&field)).is_some()
    };
    entries.iter().find(owns).and_then(|entry| entry.manager.clone()).unwrap_or_else(|| FIELD_MANAGER.to_owned())
}
