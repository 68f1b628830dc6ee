//! What an API server keeps, and its rules for reads and writes: optimistic concurrency, uid and resource version
//! preconditions, generations, `managedFields` of a Secret's data, owner references, and a log of changes for watches.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::time::{Millis, timestamp};

/// What the operator reads or writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `MoneyGoCredential`.
    Credential,
    /// Secret.
    Secret,
    /// Namespace.
    Namespace,
    /// Lease.
    Lease,
    /// Event: taken and not kept.
    Event,
}

impl Kind {
    /// `apiVersion` and `kind`.
    #[must_use]
    pub fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Credential => ("money-go.com/v1alpha1", "MoneyGoCredential"),
            Self::Secret => ("v1", "Secret"),
            Self::Namespace => ("v1", "Namespace"),
            Self::Lease => ("coordination.k8s.io/v1", "Lease"),
            Self::Event => ("events.k8s.io/v1", "Event"),
        }
    }

    /// The kind of a path's plural.
    #[must_use]
    pub fn of_plural(plural: &str) -> Option<Self> {
        Some(match plural {
            "moneygocredentials" => Self::Credential,
            "secrets" => Self::Secret,
            "namespaces" => Self::Namespace,
            "leases" => Self::Lease,
            "events" => Self::Event,
            _ => return None,
        })
    }
}

/// Kind and name. All objects but the Lease and the key of the digests live in one namespace of their own.
pub type Key = (Kind, String);

/// A change that watches show.
#[derive(Debug, Clone)]
pub struct Change {
    /// The resource version that it made.
    pub revision: u64,
    /// What was changed.
    pub kind: Kind,
    /// `ADDED`, `MODIFIED` or `DELETED`.
    pub event: &'static str,
    /// As it is since, or was last.
    pub object: Arc<Value>,
    /// When.
    pub at: Millis,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub code: u16,
    /// `Status.reason`.
    pub reason: &'static str,
}

const CONFLICT: Refusal = Refusal { code: 409, reason: "Conflict" };
const EXISTS: Refusal = Refusal { code: 409, reason: "AlreadyExists" };
const NOT_FOUND: Refusal = Refusal { code: 404, reason: "NotFound" };

/// The objects.
#[derive(Debug, Default)]
pub struct Store {
    objects: BTreeMap<Key, Arc<Value>>,
    log: Vec<Change>,
    revision: u64,
    uids: u64,
}

impl Store {
    /// The newest resource version.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Changes from that place of the log on.
    #[must_use]
    pub fn log(&self, from: usize) -> &[Change] {
        self.log.get(from..).unwrap_or_default()
    }

    /// The place of the log after this resource version.
    #[must_use]
    pub fn place_after(&self, revision: u64) -> usize {
        self.log.partition_point(|change| change.revision <= revision)
    }

    /// An object.
    #[must_use]
    pub fn get(&self, kind: Kind, name: &str) -> Option<&Arc<Value>> {
        self.objects.get(&(kind, name.to_owned()))
    }

    /// All objects of a kind in one namespace, or in all.
    pub fn list<'a>(&'a self, kind: Kind, namespace: Option<&'a str>) -> impl Iterator<Item = &'a Arc<Value>> {
        self.objects
            .range((kind, String::new())..)
            .take_while(move |((found, _), _)| *found == kind)
            .map(|(_, object)| object)
            .filter(move |object| is_in(object, namespace))
    }

    /// Creates an object.
    ///
    /// # Errors
    /// Where it is there.
    pub fn create(&mut self, key: Key, mut object: Value, manager: &str, now: Millis) -> Result<Arc<Value>, Refusal> {
        if self.objects.contains_key(&key) {
            return Err(EXISTS);
        }
        self.uids += 1;
        let (version, kind) = key.0.names();
        object["apiVersion"] = version.into();
        object["kind"] = kind.into();
        object["metadata"]["uid"] = format!("uid-{:04}", self.uids).into();
        object["metadata"]["creationTimestamp"] = at_second(now).into();
        if key.0 == Kind::Credential {
            object["metadata"]["generation"] = 1.into();
            if let Some(fields) = object.as_object_mut() {
                fields.remove("status");
            }
        }
        own(key.0, None, &mut object, manager);
        Ok(self.put(key, object, "ADDED", now))
    }

    /// Replaces an object.
    ///
    /// # Errors
    /// Where it is gone or is not the uid or resource version that `object` states.
    pub fn replace(&mut self, key: Key, mut object: Value, manager: &str, now: Millis) -> Result<Arc<Value>, Refusal> {
        let before = Arc::clone(self.objects.get(&key).ok_or(NOT_FOUND)?);
        check(&before, &object)?;
        for field in ["uid", "creationTimestamp", "generation", "resourceVersion"] {
            take_over(&mut object["metadata"], &before["metadata"], field);
        }
        if key.0 == Kind::Credential {
            take_over(&mut object, &before, "status");
            if object["spec"] != before["spec"] {
                object["metadata"]["generation"] = (before["metadata"]["generation"].as_i64().unwrap_or(0) + 1).into();
            }
        }
        object["apiVersion"] = before["apiVersion"].clone();
        object["kind"] = before["kind"].clone();
        own(key.0, Some(&before), &mut object, manager);
        Ok(self.put_if_changed(key, &before, object, now))
    }

    /// Replaces the status, and leaves the rest as it is.
    ///
    /// # Errors
    /// As [`Self::replace`].
    pub fn replace_status(&mut self, key: Key, stated: &Value, now: Millis) -> Result<Arc<Value>, Refusal> {
        let before = Arc::clone(self.objects.get(&key).ok_or(NOT_FOUND)?);
        check(&before, stated)?;
        let mut object = Value::clone(&before);
        take_over(&mut object, stated, "status");
        Ok(self.put_if_changed(key, &before, object, now))
    }

    /// Changes an object as a person would, whatever its version. Nothing where it is gone.
    pub fn edit(&mut self, kind: Kind, name: &str, now: Millis, edit: impl FnOnce(&mut Value)) {
        let key = (kind, name.to_owned());
        let Some(mut object) = self.objects.get(&key).map(|object| Value::clone(object)) else { return };
        edit(&mut object);
        if let Some(meta) = object["metadata"].as_object_mut() {
            meta.remove("resourceVersion");
            meta.remove("uid");
        }
        let _ = self.replace(key, object, "someone", now);
    }

    /// Takes the status away, as a restored backup does.
    pub fn clear_status(&mut self, name: &str, now: Millis) {
        let key = (Kind::Credential, name.to_owned());
        let Some(before) = self.objects.get(&key).cloned() else { return };
        let mut object = Value::clone(&before);
        if let Some(fields) = object.as_object_mut() {
            fields.remove("status");
        }
        self.put_if_changed(key, &before, object, now);
    }

    /// Deletes an object, if it is there.
    pub fn delete(&mut self, kind: Kind, name: &str, now: Millis) {
        let Some(object) = self.objects.remove(&(kind, name.to_owned())) else { return };
        let mut last = Value::clone(&object);
        self.revision += 1;
        last["metadata"]["resourceVersion"] = self.revision.to_string().into();
        self.log.push(Change { revision: self.revision, kind, event: "DELETED", object: Arc::new(last), at: now });
    }

    /// Secrets all of whose owners are gone: what garbage collection deletes.
    #[must_use]
    pub fn orphans(&self) -> Vec<String> {
        let live: Vec<&Value> = self.list(Kind::Credential, None).map(|object| &object["metadata"]["uid"]).collect();
        let is_orphan = |object: &&Arc<Value>| {
            let owners = object["metadata"]["ownerReferences"].as_array();
            owners.is_some_and(|owners| !owners.is_empty() && owners.iter().all(|owner| !live.contains(&&owner["uid"])))
        };
        self.list(Kind::Secret, None).filter(is_orphan).map(|object| name(object).to_owned()).collect()
    }

    fn put_if_changed(&mut self, key: Key, before: &Arc<Value>, object: Value, now: Millis) -> Arc<Value> {
        if **before == object {
            return Arc::clone(before);
        }
        self.put(key, object, "MODIFIED", now)
    }

    fn put(&mut self, key: Key, mut object: Value, event: &'static str, now: Millis) -> Arc<Value> {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
        let object = Arc::new(object);
        // Nobody watches Leases.
        if key.0 != Kind::Lease {
            let change = Change { revision: self.revision, kind: key.0, event, object: Arc::clone(&object), at: now };
            self.log.push(change);
        }
        self.objects.insert(key, Arc::clone(&object));
        object
    }
}

/// `metadata.name`.
#[must_use]
pub fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// Whether an object is in that namespace.
#[must_use]
pub fn is_in(object: &Value, namespace: Option<&str>) -> bool {
    namespace.is_none_or(|namespace| object["metadata"]["namespace"].as_str() == Some(namespace))
}

/// An object's metadata alone, as the API server gives it where that was asked for.
#[must_use]
pub fn metadata_of(object: &Value) -> Value {
    json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": object["metadata"]})
}

fn at_second(now: Millis) -> String {
    timestamp(now - now % 1000).to_string()
}

fn check(before: &Value, stated: &Value) -> Result<(), Refusal> {
    let differs = |field: &str| {
        let stated = stated["metadata"][field].as_str().filter(|stated| !stated.is_empty());
        stated.is_some_and(|stated| before["metadata"][field].as_str() != Some(stated))
    };
    if differs("uid") || differs("resourceVersion") { Err(CONFLICT) } else { Ok(()) }
}

/// Takes a field of another object over, or away where it has none.
fn take_over(object: &mut Value, before: &Value, field: &str) {
    let Some(fields) = object.as_object_mut() else { return };
    match before.get(field) {
        Some(value) => drop(fields.insert(field.to_owned(), value.clone())),
        None => drop(fields.remove(field)),
    }
}

/// Writes who wrote each key of a Secret's data: whoever changed it last.
fn own(kind: Kind, before: Option<&Value>, object: &mut Value, manager: &str) {
    if kind != Kind::Secret {
        return;
    }
    let mut owners: BTreeMap<String, String> = BTreeMap::new();
    for entry in before.into_iter().filter_map(|before| before["metadata"]["managedFields"].as_array()).flatten() {
        let fields = entry["fieldsV1"]["f:data"].as_object().into_iter().flat_map(Map::keys);
        for field in fields {
            owners.insert(field.clone(), entry["manager"].as_str().unwrap_or_default().to_owned());
        }
    }
    let empty = Map::new();
    let data = object["data"].as_object().unwrap_or(&empty);
    let earlier = before.and_then(|before| before["data"].as_object()).unwrap_or(&empty);
    owners.retain(|field, _| field.strip_prefix("f:").is_some_and(|key| data.contains_key(key)));
    for (key, value) in data {
        if earlier.get(key) != Some(value) {
            owners.insert(format!("f:{key}"), manager.to_owned());
        }
    }
    let mut by_manager: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    for (field, owner) in owners {
        by_manager.entry(owner).or_default().insert(field, json!({}));
    }
    let entry = |(manager, fields)| json!({"manager": manager, "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": {"f:data": fields}});
    object["metadata"]["managedFields"] = by_manager.into_iter().map(entry).collect();
}
