//! The target Secret: what it should be, what its metadata tells of it, and whose it is.
//!
//! Invariant: [`Facts`] come from metadata alone. Only [`inspect`] and [`compose`] see a Secret's data, and both get a
//! Secret that was read for the purpose and is dropped afterwards.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta, OwnerReference};
use kube::Resource as _;
use serde::{Deserialize, Serialize};

use crate::access_token::AccessToken;
use crate::crd::{DeletionPolicy, MoneyGoCredential, Resolved, annotation};
use crate::digest::{DigestKey, Match};
use crate::schedule::Life;

mod sent;

pub use sent::SecretMeta;

/// The operator's name in `managedFields`.
pub const FIELD_MANAGER: &str = "moneygo-operator";

/// A longer refresh request, in bytes, is remembered by the status alone: a Secret's annotations hold 256 KiB in all, and the token must find its way in.
const LONGEST_REQUEST: usize = 4096;

/// The labels that every target carries, whatever its object says.
pub const LABELS: [(&str, &str); 2] =
    [("app.kubernetes.io/managed-by", "moneygo-operator"), ("app.kubernetes.io/name", "moneygo-token")];

const DOMAIN: &str = "money-go.com/";
/// Of each of its words, in characters: no name is longer.
const OWNER_WORDS: usize = 253;

/// One version of one object.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Version {
    /// `metadata.uid`.
    #[serde(default)]
    pub uid: String,
    /// `metadata.resourceVersion`.
    #[serde(default)]
    pub resource_version: String,
}

impl Version {
    /// The version that metadata states.
    #[must_use]
    pub fn of(meta: &ObjectMeta) -> Self {
        Self {
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
        }
    }

    /// Whether this one was written after `other`, for all that can be told: the resource versions of one resource are
    /// ordered numbers (KEP-5504). What cannot be compared is not newer.
    #[must_use]
    pub fn is_newer_than(&self, other: &Self) -> bool {
        let number = |version: &Self| version.resource_version.parse::<u64>().ok();
        number(self).zip(number(other)).is_some_and(|(mine, theirs)| mine > theirs)
    }
}

/// Of an object of any kind, as much as tells its version.
#[derive(Deserialize)]
pub(crate) struct Versioned {
    pub(crate) metadata: Version,
}

/// For whom a Secret is judged or written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// `metadata.namespace` of the `MoneyGoCredential`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
}

/// What is recorded of a token beside the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issue {
    /// Its deadlines.
    pub life: Life,
    /// The scope that it was asked for with.
    pub scope: String,
    /// The refresh request (an annotation of the object) that it answers.
    pub refresh_handled: Option<String>,
    /// The credentials Secret that it was asked for with.
    pub credentials: Version,
    /// The digest of the client id and secret.
    pub credentials_digest: Option<String>,
}

/// What the operator's annotations on a Secret say. Each may be missing or may have been edited.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Marks {
    /// Issue, expiry and, where the provider repeated the token, the end that was known of it; `None` where either is missing or is no timestamp.
    pub life: Option<Life>,
    /// When the next token is asked for.
    pub refresh_at: Option<Timestamp>,
    /// The scope of the token.
    pub scope: Option<String>,
    /// The refresh request that it answers.
    pub refresh_handled: Option<String>,
    /// The credentials that it was asked for with.
    pub credentials: Option<Version>,
    /// Digest of the token and its deadlines.
    pub token_digest: Option<String>,
    /// Digest of the client id and secret.
    pub credentials_digest: Option<String>,
    /// What we wrote into the Secret, by name.
    pub applied: Option<Applied>,
}

/// The names of what was written into a Secret, so that what is no longer wanted can be taken out and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    /// The key of the token.
    pub token: String,
    /// The key of `Bearer <token>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorization: Option<String>,
    /// The key of the expiry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// Labels that the object asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Annotations that the object asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub annotations: Vec<String>,
}

impl Applied {
    fn wanted(spec: &Resolved) -> Self {
        Self {
            token: spec.access_token_key.clone(),
            authorization: spec.authorization_key.clone(),
            expires_at: spec.expires_at_key.clone(),
            labels: spec.labels.keys().cloned().collect(),
            annotations: spec.annotations.keys().cloned().collect(),
        }
    }

    fn keys(&self) -> impl Iterator<Item = &str> {
        [Some(&self.token), self.authorization.as_ref(), self.expires_at.as_ref()]
            .into_iter()
            .flatten()
            .map(String::as_str)
    }
}

/// Who wrote the data that is in a Secret now, as far as `managedFields` tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seal {
    /// We wrote every key of ours, and nobody wrote one since.
    Intact,
    /// Another field manager wrote one of them, or took it away.
    Broken(Option<String>),
    /// There are no `managedFields`, we do not know which keys are ours, or someone has applied one of them as `stringData`.
    Unknown,
}

/// What the metadata of a Secret tells. Holds nothing of its data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "Kept", into = "Kept")]
pub struct Facts {
    /// Its version.
    pub version: Version,
    /// `money-go.com/adopt`: the object that it belongs to.
    pub adopt: Option<String>,
    /// What owns it, in the sense of garbage collection.
    pub owners: Vec<OwnerReference>,
    /// What the annotations say of the token in it.
    pub marks: Marks,
    /// Who wrote the data.
    pub seal: Seal,
    /// Its labels, where it is one of ours.
    pub labels: BTreeMap<String, String>,
    /// Its annotations: all of them where it is one of ours, else those of ours.
    pub annotations: BTreeMap<String, String>,
}

/// What [`Facts`] are made of.
#[derive(Serialize, Deserialize)]
struct Kept {
    version: Version,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    owners: Vec<OwnerReference>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    seal: Seal,
}

impl From<Facts> for Kept {
    fn from(facts: Facts) -> Self {
        let Facts { version, owners, labels, annotations, seal, .. } = facts;
        Self { version, owners, labels, annotations, seal }
    }
}

impl From<Kept> for Facts {
    fn from(kept: Kept) -> Self {
        let Kept { version, owners, labels, annotations, seal } = kept;
        let adopt = annotations.get(annotation::ADOPT).cloned();
        Self { version, adopt, owners, marks: Marks::of(&annotations), seal, labels, annotations }
    }
}

impl Facts {
    /// Reads metadata. Of a Secret that has nothing to do with us, hardly more than its version is kept.
    #[must_use]
    pub fn of(meta: &ObjectMeta) -> Self {
        let mut annotations = meta.annotations.clone().unwrap_or_default();
        let owners = meta.owner_references.clone().unwrap_or_default();
        let ours = annotations.contains_key(annotation::ADOPT) || owners.iter().any(is_credential);
        if !ours {
            annotations.retain(|key, _| key.starts_with(DOMAIN));
        }
        let applied = Marks::applied(&annotations);
        let seal = seal(meta.managed_fields.as_deref(), applied.as_ref());
        let labels = if ours { meta.labels.clone().unwrap_or_default() } else { BTreeMap::new() };
        Kept { version: Version::of(meta), owners, labels, annotations, seal }.into()
    }

    /// The owner that garbage collection and other controllers heed.
    #[must_use]
    pub fn controller(&self) -> Option<&OwnerReference> {
        self.owners.iter().find(|owner| owner.controller == Some(true))
    }

    /// The uid of the `MoneyGoCredential` that controls it.
    #[must_use]
    pub fn owning_credential(&self) -> Option<&str> {
        self.controller().filter(|owner| is_credential(owner)).map(|owner| owner.uid.as_str())
    }
}

/// `Deployment "shop"`. Whoever may write the Secret may write anything there: the API server does not look at it.
#[must_use]
pub fn in_words(owner: &OwnerReference) -> String {
    let harmless =
        |text: &str| text.chars().filter(|character| !character.is_control()).take(OWNER_WORDS).collect::<String>();
    format!("{} \"{}\"", harmless(&owner.kind), harmless(&owner.name))
}

impl Marks {
    fn of(annotations: &BTreeMap<String, String>) -> Self {
        let text = |key: &str| annotations.get(key).cloned();
        let time = |key: &str| annotations.get(key).and_then(|value| value.parse::<Timestamp>().ok());
        let given_again = annotations.get(annotation::SAME_TOKEN);
        // What stands there is no timestamp where an earlier release wrote it.
        let known_end = |expires_at: Timestamp| {
            given_again.map(|known_end| known_end.parse().map_or(expires_at, |end: Timestamp| end.min(expires_at)))
        };
        let deadlines = time(annotation::ISSUED_AT).zip(time(annotation::EXPIRES_AT));
        let version = text(annotation::CREDENTIALS_UID).zip(text(annotation::CREDENTIALS_RESOURCE_VERSION));
        Self {
            life: deadlines.map(|(issued_at, expires_at)| Life {
                issued_at,
                expires_at,
                repeated: known_end(expires_at),
            }),
            refresh_at: time(annotation::REFRESH_AT),
            scope: text(annotation::SCOPE),
            refresh_handled: text(annotation::REFRESH_HANDLED),
            credentials: version.map(|(uid, resource_version)| Version { uid, resource_version }),
            token_digest: text(annotation::TOKEN_HMAC),
            credentials_digest: text(annotation::CREDENTIALS_HMAC),
            applied: Self::applied(annotations),
        }
    }

    fn applied(annotations: &BTreeMap<String, String>) -> Option<Applied> {
        annotations.get(annotation::APPLIED).and_then(|json| serde_json::from_str(json).ok())
    }
}

fn is_credential(owner: &OwnerReference) -> bool {
    owner.kind == MoneyGoCredential::kind(&()) && owner.api_version.starts_with(DOMAIN)
}

fn seal(entries: Option<&[ManagedFieldsEntry]>, applied: Option<&Applied>) -> Seal {
    let (Some(entries), Some(applied)) = (entries.filter(|entries| !entries.is_empty()), applied) else {
        return Seal::Unknown;
    };
    for key in applied.keys() {
        let writers = writers_of(entries, "f:data", key);
        if !writers.contains(&FIELD_MANAGER) {
            return Seal::Broken(writers.first().map(ToString::to_string));
        }
    }
    // What is applied as `stringData` becomes the data's value and no field of theirs; and stays noted when it is no more.
    let has_string = |key| !writers_of(entries, "f:stringData", key).is_empty();
    if applied.keys().any(has_string) { Seal::Unknown } else { Seal::Intact }
}

/// The field managers that a key of the data, or of `stringData`, belongs to.
fn writers_of<'a>(entries: &'a [ManagedFieldsEntry], map: &str, key: &str) -> Vec<&'a str> {
    let field = format!("f:{key}");
    let writes = |entry: &&ManagedFieldsEntry| {
        entry.fields_v1.as_ref().and_then(|fields| fields.0.get(map)?.get(&field)).is_some()
    };
    entries.iter().filter(writes).filter_map(|entry| entry.manager.as_deref()).collect()
}

/// Whose a Secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// It is the target of the object that asks: it owns it, or the Secret names it in `money-go.com/adopt`.
    Ours,
    /// It belongs to someone else, or says nothing.
    Foreign,
}

/// Judges whose a Secret is. `is_live` tells whether a `MoneyGoCredential` with a uid is there.
///
/// A controller that is there wins over the annotation, and one of another kind always does: two controllers would fight.
/// An owner of ours that is gone (an object created anew under its name, a restored backup) does not.
#[must_use]
pub fn claim(facts: &Facts, owner: &Owner, is_live: impl Fn(&str) -> bool) -> Claim {
    let named = facts.adopt.as_deref() == Some(&owner.name);
    let ours = match facts.controller() {
        Some(controller) if controller.uid == owner.uid => true,
        Some(controller) => named && is_credential(controller) && !is_live(&controller.uid),
        None => named,
    };
    if ours { Claim::Ours } else { Claim::Foreign }
}

/// One of several objects that name the same target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contender {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.creationTimestamp`.
    pub created: Option<Timestamp>,
    /// Whether its spec can be worked with. One that cannot stops itself and no other.
    pub sound: bool,
}

/// Which of several objects writes the target: its live owner, then whom `money-go.com/adopt` names, then the older, then
/// the lower uid.
#[must_use]
pub fn winner<'a>(contenders: &'a [Contender], target: Option<&Facts>) -> Option<&'a Contender> {
    let owner = target.and_then(Facts::owning_credential);
    let named = target.and_then(|facts| facts.adopt.as_deref());
    contenders.iter().filter(|one| one.sound || owner == Some(&one.uid)).min_by_key(|one| {
        let (owns, is_named) = (owner == Some(one.uid.as_str()), named == Some(one.name.as_str()));
        (!owns, !is_named, one.created, one.uid.as_str())
    })
}

/// What a look at a target's data tells of the token in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// There is no token of ours in it.
    Nothing,
    /// The token that we wrote, and its life.
    Token(Life),
    /// Something else stands where our token was.
    Altered,
}

/// Looks at a target's data. `remembered` is the life that the object's status states, which counts where the
/// annotations were edited or stripped.
///
/// With a digest the token and its deadlines prove each other. Without one, `managedFields` must show that nobody wrote
/// the data after us, and of two accounts of the deadlines the later issue is believed, and of one issue the earlier expiry.
#[must_use]
pub fn inspect(
    secret: &Secret,
    facts: &Facts,
    spec: &Resolved,
    remembered: Option<Life>,
    key: Option<&DigestKey>,
) -> Found {
    let Some(token) = stored_token(secret, facts, spec) else {
        let wrote = facts.marks.applied.is_some() || facts.marks.token_digest.is_some();
        return if wrote { Found::Altered } else { Found::Nothing };
    };
    let accounts: Vec<Life> =
        [facts.marks.life, remembered].into_iter().flatten().filter(|life| life.is_credible()).collect();
    if accounts.is_empty() && facts.marks.token_digest.is_none() && facts.marks.applied.is_none() {
        return Found::Nothing;
    }
    if !AccessToken::is_possible(token) {
        return Found::Altered;
    }
    let proven = |key: &DigestKey| prove(key, token, &accounts, facts.marks.token_digest.as_deref());
    match key.map_or(Proof::Impossible, proven) {
        Proof::Life(life) => Found::Token(life),
        Proof::Wrong => Found::Altered,
        Proof::Impossible if matches!(facts.seal, Seal::Broken(_)) => Found::Altered,
        Proof::Impossible if facts.marks.applied.is_none() && !has_our_data(secret, spec) => Found::Altered,
        Proof::Impossible => unproven(&accounts).map_or(Found::Altered, Found::Token),
    }
}

/// Which of two accounts counts where none can be proven: a later issue is our own write whose status was lost; of two
/// accounts of one issue, the earlier expiry; of two that are alike the first, the Secret's own.
fn unproven(accounts: &[Life]) -> Option<Life> {
    accounts.iter().rev().copied().max_by_key(|life| (life.issued_at, std::cmp::Reverse(life.expires_at)))
}

enum Proof {
    Life(Life),
    Wrong,
    Impossible,
}

fn prove(key: &DigestKey, token: &str, accounts: &[Life], stored: Option<&str>) -> Proof {
    for account in accounts {
        for life in [*account].into_iter().chain(account.as_noted_nowhere()) {
            match key.compare(stored, &key.of_token(token, life)) {
                Match::Same => return Proof::Life(life),
                Match::Unknown => return Proof::Impossible,
                Match::Different => {}
            }
        }
    }
    if accounts.is_empty() && stored.is_none() { Proof::Impossible } else { Proof::Wrong }
}

/// Whether we wrote the token's key last, for a Secret whose annotations were all stripped.
fn has_our_data(secret: &Secret, spec: &Resolved) -> bool {
    seal(secret.metadata.managed_fields.as_deref(), Some(&Applied::wanted(spec))) == Seal::Intact
}

/// The token in a Secret, under the key that it was last written to.
#[must_use]
pub fn stored_token<'a>(secret: &'a Secret, facts: &Facts, spec: &Resolved) -> Option<&'a str> {
    let key = facts.marks.applied.as_ref().map_or(&spec.access_token_key, |applied| &applied.token);
    let value = secret.data.as_ref()?.get(key)?;
    std::str::from_utf8(&value.0).ok().filter(|token| !token.is_empty())
}

/// Whether the keys beside the token's hold what [`compose`] writes into them: `Bearer <token>`, and the expiry.
#[must_use]
pub fn is_complete(secret: &Secret, facts: &Facts, spec: &Resolved, found: &Found) -> bool {
    let (Found::Token(life), Some(token)) = (found, stored_token(secret, facts, spec)) else { return true };
    let holds = |key: Option<&String>, wanted: String| {
        key.is_none_or(|key| {
            let value = secret.data.as_ref().and_then(|data| data.get(key));
            value.is_some_and(|value| value.0 == wanted.as_bytes())
        })
    };
    holds(spec.authorization_key.as_ref(), authorization(token))
        && holds(spec.expires_at_key.as_ref(), life.expires_at.to_string())
}

/// The value of an `Authorization` header (RFC 6750, section 2.1).
fn authorization(token: &str) -> String {
    format!("Bearer {token}")
}

/// Which digests a target can and so should carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digests {
    /// Of the token.
    pub token: bool,
    /// Of the client id and secret.
    pub credentials: bool,
}

/// Whether metadata is all that it should be for a token whose issue is known. With `owner_refused`, an owner that cannot
/// be changed is left as it is.
#[must_use]
pub fn is_dressed(
    facts: &Facts,
    owner: &Owner,
    spec: &Resolved,
    life: Life,
    digests: Digests,
    owner_refused: bool,
) -> bool {
    let marks = &facts.marks;
    let labels = LABELS.iter().all(|(key, value)| facts.labels.get(*key).is_some_and(|found| found == value));
    let asked = spec.labels.iter().all(|(key, value)| facts.labels.get(key) == Some(value))
        && spec.annotations.iter().all(|(key, value)| facts.annotations.get(key) == Some(value));
    let marked = marks.life == Some(life)
        && marks.refresh_at == Some(life.refresh_at(spec.renew, &owner.uid))
        && marks.scope.is_some()
        && marks.credentials.is_some()
        && (!digests.token || marks.token_digest.is_some())
        && (!digests.credentials || marks.credentials_digest.is_some());
    let is_owned = owner_refused || facts.owners == wanted_owners(&facts.owners, owner, spec.deletion_policy);
    labels
        && asked
        && marked
        && is_owned
        && marks.applied.as_ref() == Some(&Applied::wanted(spec))
        && facts.adopt.as_deref() == Some(&owner.name)
}

/// What goes into a target: the token and what is recorded of it.
#[derive(Clone, Copy)]
pub struct Content<'a> {
    /// The token. Not shown by any `Debug`: this type has none.
    pub token: &'a str,
    /// What is recorded of it.
    pub issue: &'a Issue,
}

/// How the owner of a Secret is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// As the deletion policy says.
    AsWanted,
    /// Left as it is: the API server refused to change it.
    AsFound,
}

/// Whether what is there is as it should be, so that nothing has to be written: it was already, and the answer was lost.
#[must_use]
pub fn is_same(live: &Secret, wanted: &Secret) -> bool {
    live.data == wanted.data
        && live.metadata.labels == wanted.metadata.labels
        && live.metadata.annotations == wanted.metadata.annotations
        && live.metadata.owner_references == wanted.metadata.owner_references
}

/// The target as it should be: what is there (`live`), less what we wrote and no longer want, with the token, the owner
/// and every mark. Keys, labels, annotations and owners of others stay.
#[must_use]
pub fn compose(
    live: Option<&Secret>,
    owner: &Owner,
    spec: &Resolved,
    content: Content<'_>,
    key: Option<&DigestKey>,
    ownership: Ownership,
) -> Secret {
    let mut secret = live.cloned().unwrap_or_else(|| blank(owner, spec));
    let applied = Facts::of(&secret.metadata).marks.applied;
    remove_written(&mut secret, applied.as_ref());
    let before = applied.unwrap_or_default();
    write_data(&mut secret, spec, content);
    let meta = &mut secret.metadata;
    meta.managed_fields = None;
    write_labels(meta.labels.get_or_insert_default(), &before, spec);
    write_annotations(meta.annotations.get_or_insert_default(), &before, spec, owner, content, key);
    if ownership == Ownership::AsWanted {
        let found = meta.owner_references.take().unwrap_or_default();
        meta.owner_references =
            Some(wanted_owners(&found, owner, spec.deletion_policy)).filter(|owners| !owners.is_empty());
    }
    secret
}

fn blank(owner: &Owner, spec: &Resolved) -> Secret {
    Secret {
        metadata: ObjectMeta {
            name: Some(spec.target.clone()),
            namespace: Some(owner.namespace.clone()),
            ..ObjectMeta::default()
        },
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    }
}

/// Takes away the keys that we wrote: those that the annotation names or, where it was stripped, those that belong to us
/// alone.
fn remove_written(secret: &mut Secret, applied: Option<&Applied>) {
    let entries = secret.metadata.managed_fields.as_deref().unwrap_or_default();
    let is_ours = |key: &str| {
        let writers = writers_of(entries, "f:data", key);
        !writers.is_empty() && writers.iter().all(|writer| *writer == FIELD_MANAGER)
    };
    if let Some(data) = &mut secret.data {
        data.retain(|key, _| match applied {
            Some(applied) => !applied.keys().any(|written| written == key),
            None => !is_ours(key),
        });
    }
}

fn write_data(secret: &mut Secret, spec: &Resolved, content: Content<'_>) {
    let data = secret.data.get_or_insert_default();
    let mut put = |key: Option<&String>, value: String| {
        if let Some(key) = key {
            data.insert(key.clone(), ByteString(value.into_bytes()));
        }
    };
    put(Some(&spec.access_token_key), content.token.to_owned());
    put(spec.authorization_key.as_ref(), authorization(content.token));
    put(spec.expires_at_key.as_ref(), content.issue.life.expires_at.to_string());
}

fn write_labels(labels: &mut BTreeMap<String, String>, before: &Applied, spec: &Resolved) {
    labels.retain(|key, _| !before.labels.contains(key));
    labels.extend(spec.labels.clone());
    labels.extend(LABELS.map(|(key, value)| (key.to_owned(), value.to_owned())));
}

fn write_annotations(
    annotations: &mut BTreeMap<String, String>,
    before: &Applied,
    spec: &Resolved,
    owner: &Owner,
    content: Content<'_>,
    key: Option<&DigestKey>,
) {
    let issue = content.issue;
    annotations.retain(|key, _| !before.annotations.contains(key));
    annotations.extend(spec.annotations.clone());
    let mut put = |key: &str, value: Option<String>| match value {
        Some(value) => drop(annotations.insert(key.to_owned(), value)),
        None => drop(annotations.remove(key)),
    };
    put(annotation::ADOPT, Some(owner.name.clone()));
    put(annotation::ISSUED_AT, Some(issue.life.issued_at.to_string()));
    put(annotation::EXPIRES_AT, Some(issue.life.expires_at.to_string()));
    put(annotation::REFRESH_AT, Some(issue.life.refresh_at(spec.renew, &owner.uid).to_string()));
    put(annotation::SAME_TOKEN, issue.life.repeated.map(|known_end| known_end.to_string()));
    put(annotation::SCOPE, Some(issue.scope.clone()));
    put(annotation::REFRESH_HANDLED, issue.refresh_handled.clone().filter(|request| request.len() <= LONGEST_REQUEST));
    put(annotation::CREDENTIALS_UID, Some(issue.credentials.uid.clone()));
    put(annotation::CREDENTIALS_RESOURCE_VERSION, Some(issue.credentials.resource_version.clone()));
    put(annotation::TOKEN_HMAC, key.map(|key| key.of_token(content.token, issue.life)));
    put(annotation::CREDENTIALS_HMAC, issue.credentials_digest.clone());
    put(annotation::APPLIED, serde_json::to_string(&Applied::wanted(spec)).ok());
}

/// Our reference among those of others. A `MoneyGoCredential` that controlled the Secret before us is gone, or we would not
/// write; it is replaced, since there can be one controller only. `blockOwnerDeletion` stays unset: it would need more
/// rights where `OwnerReferencesPermissionEnforcement` is on.
fn wanted_owners(found: &[OwnerReference], owner: &Owner, policy: DeletionPolicy) -> Vec<OwnerReference> {
    let ours = |one: &OwnerReference| one.uid == owner.uid;
    let controls = |one: &OwnerReference| is_credential(one) && one.controller == Some(true);
    let mut owners: Vec<_> = found.iter().filter(|one| !ours(one) && !controls(one)).cloned().collect();
    if policy == DeletionPolicy::Delete {
        // In its old place, so that nothing seems to have changed where nothing has.
        let place = found.iter().position(ours).unwrap_or(owners.len()).min(owners.len());
        owners.insert(place, reference(owner));
    }
    owners
}

fn reference(owner: &Owner) -> OwnerReference {
    OwnerReference {
        api_version: MoneyGoCredential::api_version(&()).into_owned(),
        kind: MoneyGoCredential::kind(&()).into_owned(),
        name: owner.name.clone(),
        uid: owner.uid.clone(),
        controller: Some(true),
        block_owner_deletion: None,
    }
}

/// What a credentials Secret holds, or what is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CredentialsProblem {
    /// One of the two keys is not there, or its value is empty.
    Incomplete,
    /// A value has white space at an end, or is not UTF-8.
    Malformed,
}

/// The client id and secret in a Secret, under the keys that the spec names.
///
/// # Errors
/// Says what is wrong where no request can be made with them.
pub fn read_credentials<'a>(secret: &'a Secret, spec: &Resolved) -> Result<(&'a str, &'a str), CredentialsProblem> {
    let value = |key: &str| {
        let value = secret.data.as_ref().and_then(|data| data.get(key)).filter(|value| !value.0.is_empty());
        value.ok_or(CredentialsProblem::Incomplete)
    };
    let (id, secret) = (value(&spec.client_id_key)?, value(&spec.client_secret_key)?);
    Ok((well_formed(&id.0)?, well_formed(&secret.0)?))
}

fn well_formed(value: &[u8]) -> Result<&str, CredentialsProblem> {
    let text = std::str::from_utf8(value).map_err(|_| CredentialsProblem::Malformed)?;
    let sound = text.trim() == text && !text.starts_with('\u{feff}');
    if sound { Ok(text) } else { Err(CredentialsProblem::Malformed) }
}

#[cfg(test)]
mod tests;
