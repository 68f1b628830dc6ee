//! What the watches have shown: the objects, which Secrets they name, the metadata of Secrets, and which namespaces are
//! ending. Folds watch events; makes no request and takes no decision.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::Event;
use kube::{Resource as _, ResourceExt as _};
use serde::Deserialize;

mod figures;
mod guarded;
mod key;
mod packed;

pub use figures::Figures;
pub use guarded::Guarded;
pub use key::ObjectKey;

use guarded::Unpacked;
use packed::Packed;

use crate::secret::{Contender, Facts, Owner, Seal, SecretMeta, Version, Versioned};

/// What an object names, for finding it when one of those Secrets changes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Names {
    uid: Box<str>,
    credentials: Option<ObjectKey>,
    target: Option<ObjectKey>,
}

impl Names {
    fn of(key: &ObjectKey, object: &Guarded) -> Self {
        let uid = object.meta().uid.clone().unwrap_or_default().into();
        let (credentials, target) = object.names().unzip();
        let beside = |name: &str| key.beside(name);
        Self { uid, credentials: credentials.map(beside), target: target.map(beside) }
    }

    fn secrets(&self) -> impl Iterator<Item = &ObjectKey> {
        self.credentials.iter().chain(self.target.iter())
    }
}

struct Kept {
    names: Names,
    figures: Figures,
    object: Packed,
    is_new: bool,
    is_ending: bool,
}

#[derive(Default)]
struct Index {
    objects: BTreeMap<ObjectKey, Kept>,
    /// The objects that name a Secret, in order. Most Secrets are named by one.
    by_secret: HashMap<ObjectKey, Vec<ObjectKey>>,
    listing: Option<BTreeSet<ObjectKey>>,
}

/// What this process knows of a Secret's data, beside what the metadata tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Nobody looked since the start.
    Never,
    /// This version was looked at, or written: the token that we wrote is in it.
    Sound,
    /// It is not; or the Secret changed since.
    Unsound,
}

impl Look {
    /// Whether what its metadata tells is to be believed. A Secret that nobody looked at since the start is trusted where
    /// `managedFields` show that we wrote its data last.
    #[must_use]
    pub fn trusts(self, facts: &Facts) -> bool {
        match self {
            Self::Sound => true,
            Self::Unsound => false,
            Self::Never => facts.seal == Seal::Intact,
        }
    }
}

/// Of a Secret's [`Facts`], as much as tells its version.
#[derive(Deserialize)]
struct OfSecret {
    version: Version,
}

struct Known {
    facts: Packed,
    look: Look,
}

#[derive(Default)]
struct Secrets {
    known: HashMap<ObjectKey, Known>,
    listing: Option<HashSet<ObjectKey>>,
    /// Read or written while a list is under way.
    noted: HashSet<ObjectKey>,
    is_listed: bool,
    /// The newest version that the watch has shown, of whichever Secret.
    shown: Version,
}

/// What the watches of one scope (the cluster, or one namespace) have shown.
#[derive(Default)]
pub struct Caches {
    index: Mutex<Index>,
    secrets: Mutex<Secrets>,
    ending: Mutex<HashSet<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No fold can leave its map half-changed: a poisoned one is as good as any.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Caches {
    /// An object.
    #[must_use]
    pub fn credential(&self, key: &ObjectKey) -> Option<Guarded> {
        let index = lock(&self.index);
        let object = &index.objects.get(key)?.object;
        // What does not come back as it was packed, a time before the year 0, is an object that cannot be read.
        object.value::<Unpacked>().map(Guarded::from).or_else(|| object.value())
    }

    /// The version of an object, for less than all of it.
    #[must_use]
    pub fn version(&self, key: &ObjectKey) -> Option<Version> {
        Some(lock(&self.index).objects.get(key)?.object.value::<Versioned>()?.metadata)
    }

    /// Whether an object is there, can be read, and nothing was ever said of it.
    #[must_use]
    pub fn is_new(&self, key: &ObjectKey) -> bool {
        lock(&self.index).objects.get(key).is_some_and(|kept| kept.is_new)
    }

    /// An object's uid.
    #[must_use]
    pub fn uid(&self, key: &ObjectKey) -> Option<String> {
        lock(&self.index).objects.get(key).map(|kept| kept.names.uid.to_string())
    }

    /// Every object's name.
    #[must_use]
    pub fn keys(&self) -> Vec<ObjectKey> {
        lock(&self.index).objects.keys().cloned().collect()
    }

    /// What the metrics tell of the objects after that one, in the order of their names: so many at most, so that nobody is kept
    /// waiting. Nothing where there are no more.
    #[must_use]
    pub fn figures_after(&self, after: Option<&ObjectKey>, limit: usize) -> Vec<(ObjectKey, Figures)> {
        let index = lock(&self.index);
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let objects = index.objects.range::<ObjectKey, _>((from, Bound::Unbounded)).take(limit);
        // Of one that is being deleted they tell nothing any more.
        let told = |kept: &Kept| if kept.is_ending { Figures::default() } else { kept.figures };
        objects.map(|(key, kept)| (key.clone(), told(kept))).collect()
    }

    /// Objects after that one, in the order of their names, that say Ready of a token that had ended by then: so many at most.
    #[must_use]
    pub fn ready_past(&self, moment: Timestamp, after: Option<&ObjectKey>, limit: usize) -> Vec<ObjectKey> {
        let index = lock(&self.index);
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let objects = index.objects.range::<ObjectKey, _>((from, Bound::Unbounded));
        let past = objects.filter(|(_, kept)| kept.figures.is_ready_past(moment));
        past.map(|(key, _)| key.clone()).take(limit).collect()
    }

    /// Whether the object's next token may have to be asked for by then, as far as its status says.
    #[must_use]
    pub fn may_be_due(&self, key: &ObjectKey, moment: Timestamp) -> bool {
        lock(&self.index).objects.get(key).is_some_and(|kept| kept.figures.may_be_due(moment))
    }

    /// Whether the watch has shown every Secret that there is, once.
    #[must_use]
    pub fn has_seen_secrets(&self) -> bool {
        lock(&self.secrets).is_listed
    }

    /// The version of a Secret, for less than all that is known of it.
    #[must_use]
    pub fn secret_version(&self, key: &ObjectKey) -> Option<Version> {
        lock(&self.secrets).version(key)
    }

    /// What is known of a Secret's metadata, and of its data.
    #[must_use]
    pub fn target(&self, key: &ObjectKey) -> Option<(Facts, Look)> {
        let secrets = lock(&self.secrets);
        Some((secrets.get(key)?, secrets.known.get(key)?.look))
    }

    /// Takes note of whether the token that we wrote is in that version of a Secret.
    pub fn note_look(&self, key: &ObjectKey, version: &Version, is_sound: bool) {
        let mut secrets = lock(&self.secrets);
        let is_that = secrets.version(key).as_ref() == Some(version);
        if let Some(known) = secrets.known.get_mut(key) {
            known.look = if is_sound && is_that { Look::Sound } else { Look::Unsound };
        }
    }

    /// Takes note of a Secret that was read or written, for the object `by`, before its watch shows it. What the watch has
    /// shown to be deleted meanwhile stays so. Returns which other objects to look at.
    #[must_use]
    pub fn note_secret(&self, by: &ObjectKey, name: &str, facts: &Facts) -> Vec<ObjectKey> {
        let secret = by.beside(name);
        if !lock(&self.secrets).note(&secret, facts) {
            return Vec::new();
        }
        let mut naming = lock(&self.index).naming(&secret);
        naming.retain(|key| key != by);
        naming
    }

    /// Whether the namespace is known to be ending.
    #[must_use]
    pub fn is_ending(&self, namespace: &str) -> bool {
        lock(&self.ending).contains(namespace)
    }

    /// Whether a `MoneyGoCredential` of that name and uid is there.
    #[must_use]
    pub fn is_live(&self, namespace: &str, name: &str, uid: &str) -> bool {
        lock(&self.index).objects.get(&ObjectKey::new(namespace, name)).is_some_and(|kept| *kept.names.uid == *uid)
    }

    /// All objects whose target is that Secret, the asking one among them.
    #[must_use]
    pub fn contenders(&self, owner: &Owner, target: &str) -> Vec<Contender> {
        let secret = ObjectKey::new(&owner.namespace, target);
        let naming: Vec<ObjectKey> = {
            let index = lock(&self.index);
            index.by_secret.get(&secret).filter(|naming| naming.len() > 1).cloned().unwrap_or_default()
        };
        naming.iter().filter_map(|key| self.contender(key, target)).collect()
    }

    fn contender(&self, key: &ObjectKey, target: &str) -> Option<Contender> {
        let credential = self.credential(key)?.credential().filter(|credential| credential.target_name() == target)?;
        let bound = credential.status.as_ref().and_then(|status| status.target_name.as_deref());
        Some(Contender {
            name: key.name().to_owned(),
            uid: credential.uid().unwrap_or_default(),
            created: credential.creation_timestamp().map(|time| time.0),
            sound: credential.resolve().is_ok() && bound.is_none_or(|name| name == target),
        })
    }

    /// Another object that names the same credentials Secret.
    #[must_use]
    pub fn sharing_credentials(&self, key: &ObjectKey, credentials: &str) -> Option<String> {
        let (index, credentials) = (lock(&self.index), key.beside(credentials));
        let shares = |other: &&ObjectKey| {
            let named = index.objects.get(*other).and_then(|kept| kept.names.credentials.as_ref());
            *other != key && named == Some(&credentials)
        };
        let other = index.by_secret.get(&credentials)?.iter().find(shares)?;
        Some(other.name().to_owned())
    }

    /// Folds an event of the objects' watch. Returns whom to look at, and which objects are gone.
    pub fn fold_object(&self, event: Event<Guarded>) -> Folded {
        let mut index = lock(&self.index);
        match event {
            Event::Init => {
                index.listing = Some(BTreeSet::new());
                Folded::default()
            }
            Event::InitApply(object) => {
                let key = ObjectKey::of(&object);
                if let Some(listing) = &mut index.listing {
                    listing.insert(key.clone());
                }
                // Who shares a Secret with whom is known once the list is whole: who is to be looked at is told then.
                index.put(&key, &object);
                Folded::default()
            }
            Event::InitDone => index.end_of_list(),
            Event::Apply(object) => {
                let key = ObjectKey::of(&object);
                let touched = index.put(&key, &object);
                Folded { look_at: touched, gone: Vec::new() }
            }
            Event::Delete(object) => {
                let key = ObjectKey::of(&object);
                let look_at = index.remove(&key);
                Folded { look_at, gone: vec![key] }
            }
        }
    }

    /// Folds an event of the Secrets' watch. Returns whom to look at.
    pub fn fold_secret(&self, event: Event<SecretMeta>) -> Vec<ObjectKey> {
        let changed = lock(&self.secrets).fold(event);
        let index = lock(&self.index);
        changed.iter().flat_map(|secret| index.naming(secret)).collect()
    }

    /// Folds an event of the namespaces' watch. Returns whom to look at: the objects of a namespace that was ending, and is
    /// there again.
    pub fn fold_namespace(&self, event: &Event<PartialObjectMeta<Namespace>>) -> Vec<ObjectKey> {
        let mut ending = lock(&self.ending);
        match event {
            Event::Apply(namespace) | Event::InitApply(namespace)
                if namespace.metadata.deletion_timestamp.is_some() =>
            {
                ending.insert(namespace.name_any());
                Vec::new()
            }
            // Gone, or made anew under its name.
            Event::Apply(namespace) | Event::InitApply(namespace) | Event::Delete(namespace) => {
                let name = namespace.name_any();
                let was_ending = ending.remove(&name);
                drop(ending);
                let index = was_ending.then(|| lock(&self.index));
                let keys = index.iter().flat_map(|index| index.objects.keys());
                keys.filter(|key| key.namespace() == name).cloned().collect()
            }
            Event::Init | Event::InitDone => Vec::new(),
        }
    }
}

/// What follows from an event of the objects' watch.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Folded {
    /// Objects that the event concerns.
    pub look_at: Vec<ObjectKey>,
    /// Objects that are there no more.
    pub gone: Vec<ObjectKey>,
}

impl Index {
    /// Returns the object, and those that share its old or new target where that is new, or where its spec is.
    fn put(&mut self, key: &ObjectKey, object: &Guarded) -> Vec<ObjectKey> {
        let Some(packed) = Packed::new(object) else { return Vec::new() };
        // The copies that the tables have already are those that are kept, and returned to be kept elsewhere.
        let known = self.objects.get_key_value(key);
        let (key, before) =
            known.map_or_else(|| (key.clone(), None), |(key, kept)| (key.clone(), Some(kept.names.clone())));
        let names = Names::of(&key, object);
        let mut touched = vec![key.clone()];
        let names = match before {
            Some(old) if old == names => {
                touched.extend(self.rivals_of_edited(&key, &names, object));
                old
            }
            before => {
                touched.extend(before.iter().flat_map(|old| self.unlink(&key, old)));
                touched.extend(self.link(&key, &names));
                names
            }
        };
        let (figures, is_new, is_ending) = (object.figures(), object.is_new(), object.is_ending());
        let kept = Kept { names, figures, object: packed, is_new, is_ending };
        self.objects.insert(key, kept);
        touched.sort();
        touched.dedup();
        touched
    }

    /// Returns those that share its Secrets.
    fn link(&mut self, key: &ObjectKey, names: &Names) -> Vec<ObjectKey> {
        for secret in names.secrets() {
            let naming = self.by_secret.entry(secret.clone()).or_default();
            if let Err(place) = naming.binary_search(key) {
                naming.reserve_exact(1);
                naming.insert(place, key.clone());
            }
        }
        let contenders = names.target.iter().flat_map(|target| self.naming(target));
        let sharing = names.credentials.iter().flat_map(|credentials| self.newly_shared(credentials));
        contenders.chain(sharing).collect()
    }

    /// Those that share its target, where another spec of it came: an object that works no more holds its target no more.
    fn rivals_of_edited(&self, key: &ObjectKey, names: &Names, object: &Guarded) -> Vec<ObjectKey> {
        let naming = names.target.as_ref().and_then(|target| self.by_secret.get(target));
        let Some(naming) = naming.filter(|naming| naming.len() > 1) else { return Vec::new() };
        let before = self.objects.get(key).and_then(|kept| kept.object.value::<Unpacked>()).map(Guarded::from);
        let is_edited = before.is_none_or(|before| before.meta().generation != object.meta().generation);
        if is_edited { naming.clone() } else { Vec::new() }
    }

    fn remove(&mut self, key: &ObjectKey) -> Vec<ObjectKey> {
        let Some(kept) = self.objects.remove(key) else { return Vec::new() };
        self.unlink(key, &kept.names)
    }

    /// Returns those that share its target, who may take it over. Those that share its credentials have nothing to do.
    fn unlink(&mut self, key: &ObjectKey, names: &Names) -> Vec<ObjectKey> {
        for secret in names.secrets() {
            if let Some(naming) = self.by_secret.get_mut(secret) {
                naming.retain(|other| other != key);
                if naming.is_empty() {
                    self.by_secret.remove(secret);
                }
            }
        }
        names.target.iter().flat_map(|target| self.naming(target)).collect()
    }

    /// The two that share a Secret since one of them came. Of more, the older ones know already.
    fn newly_shared(&self, secret: &ObjectKey) -> Vec<ObjectKey> {
        let is_new = self.by_secret.get(secret).is_some_and(|names| names.len() == 2);
        if is_new { self.naming(secret) } else { Vec::new() }
    }

    fn naming(&self, secret: &ObjectKey) -> Vec<ObjectKey> {
        self.by_secret.get(secret).cloned().unwrap_or_default()
    }

    fn end_of_list(&mut self) -> Folded {
        let listed = self.listing.take().unwrap_or_default();
        let gone: Vec<_> = self.objects.keys().filter(|key| !listed.contains(*key)).cloned().collect();
        let mut look_at: Vec<_> = gone.iter().flat_map(|key| self.remove(key)).collect();
        look_at.extend(listed);
        look_at.sort();
        look_at.dedup();
        Folded { look_at, gone }
    }
}

impl Secrets {
    fn get(&self, key: &ObjectKey) -> Option<Facts> {
        self.known.get(key)?.facts.value()
    }

    fn version(&self, key: &ObjectKey) -> Option<Version> {
        Some(self.known.get(key)?.facts.value::<OfSecret>()?.version)
    }

    /// Returns the Secrets that changed by it.
    fn fold(&mut self, event: Event<SecretMeta>) -> Vec<ObjectKey> {
        match event {
            Event::Init => {
                self.listing = Some(HashSet::new());
                self.noted.clear();
                Vec::new()
            }
            Event::InitApply(secret) => {
                let key = ObjectKey::of(&secret);
                if let Some(listing) = &mut self.listing {
                    listing.insert(key.clone());
                }
                self.take_in(key, &secret)
            }
            Event::InitDone => self.end_of_list(),
            Event::Apply(secret) => self.take_in(ObjectKey::of(&secret), &secret),
            Event::Delete(secret) => {
                let key = ObjectKey::of(&secret);
                let deleted = Version::of(secret.meta());
                self.show(&deleted);
                // A Secret made anew may have been noted before the deletion of the old one is shown.
                let is_another =
                    self.version(&key).is_some_and(|known| known.uid != deleted.uid && known.is_newer_than(&deleted));
                (!is_another && self.known.remove(&key).is_some()).then_some(key).into_iter().collect()
            }
        }
    }

    fn take_in(&mut self, key: ObjectKey, secret: &SecretMeta) -> Vec<ObjectKey> {
        let facts = Facts::of(secret.meta());
        self.show(&facts.version);
        self.put(&key, &facts).then_some(key).into_iter().collect()
    }

    fn show(&mut self, version: &Version) {
        if self.shown == Version::default() || version.is_newer_than(&self.shown) {
            self.shown = version.clone();
        }
    }

    /// Whether it is news. An answer may be overtaken by the watch: a Secret that it does not know, though it is past that
    /// version, is gone.
    fn note(&mut self, key: &ObjectKey, facts: &Facts) -> bool {
        let is_gone = !self.known.contains_key(key) && self.shown.is_newer_than(&facts.version);
        let is_news = !is_gone && self.put(key, facts);
        if is_news && self.listing.is_some() {
            self.noted.insert(key.clone());
        }
        is_news
    }

    /// Whether it is news. What is older than what is known is not.
    fn put(&mut self, key: &ObjectKey, facts: &Facts) -> bool {
        if let Some(known) = self.version(key)
            && (known == facts.version || known.is_newer_than(&facts.version))
        {
            return false;
        }
        let Some(facts) = Packed::new(facts) else { return false };
        let looked_at = self.known.get(key).is_some_and(|known| known.look != Look::Never);
        let look = if looked_at { Look::Unsound } else { Look::Never };
        self.known.insert(key.clone(), Known { facts, look });
        true
    }

    fn end_of_list(&mut self) -> Vec<ObjectKey> {
        self.is_listed = true;
        let listed = self.listing.take().unwrap_or_default();
        let noted = std::mem::take(&mut self.noted);
        let unlisted: Vec<_> = self.known.keys().filter(|key| !listed.contains(*key)).cloned().collect();
        for key in &unlisted {
            // What was written while the list was under way may be missing from it, or be gone by then: that takes a look to tell.
            match self.known.get_mut(key).filter(|_| noted.contains(key)) {
                Some(known) => known.look = Look::Unsound,
                None => drop(self.known.remove(key)),
            }
        }
        unlisted
    }
}

#[cfg(test)]
mod tests;
