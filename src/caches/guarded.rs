//! An object of ours as it comes from the API server.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Resource;
use kube::api::ObjectMeta;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::Figures;
use crate::crd::{MoneyGoCredential, MoneyGoCredentialSpec, MoneyGoCredentialStatus, annotation};

/// An object of ours, or what is left of one that cannot be read: an older schema's, or made by hand. It stops itself and
/// no other.
///
/// kube's `DeserializeGuard` is for the same, but makes a tree of values of each object first, and keeps all of it.
#[derive(Clone, Serialize, Deserialize, Resource)]
#[serde(from = "Sent")]
#[resource(inherit = "MoneyGoCredential")]
pub struct Guarded {
    metadata: ObjectMeta,
    #[serde(flatten)]
    body: Option<Body>,
}

#[derive(Clone, Serialize)]
struct Body {
    spec: MoneyGoCredentialSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<MoneyGoCredentialStatus>,
}

/// As much of an object as any has.
#[derive(Deserialize)]
struct Sent {
    metadata: SentMeta,
    #[serde(default)]
    spec: Lenient<MoneyGoCredentialSpec>,
    #[serde(default)]
    status: Option<Lenient<MoneyGoCredentialStatus>>,
}

/// What is there, whether it can be read or not.
#[derive(Deserialize)]
#[serde(untagged)]
enum Lenient<T> {
    Read(T),
    Unreadable(IgnoredAny),
}

impl<T> Default for Lenient<T> {
    fn default() -> Self {
        Self::Unreadable(IgnoredAny)
    }
}

impl<T> Lenient<T> {
    fn read(self) -> Option<T> {
        match self {
            Self::Read(value) => Some(value),
            Self::Unreadable(_) => None,
        }
    }
}

/// An object as it was kept: what can be read of it is known already.
#[derive(Deserialize)]
pub(super) struct Unpacked {
    metadata: SentMeta,
    spec: Option<MoneyGoCredentialSpec>,
    status: Option<MoneyGoCredentialStatus>,
}

/// What is looked at. Of the rest, `managedFields` alone are larger.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SentMeta {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    generation: Option<i64>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    /// For who admits writes of the status.
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
}

impl Guarded {
    /// The object.
    ///
    /// # Errors
    /// Its metadata, where the rest cannot be read.
    pub fn read(self) -> Result<MoneyGoCredential, Box<ObjectMeta>> {
        match self.body {
            Some(Body { spec, status }) => Ok(MoneyGoCredential { metadata: self.metadata, spec, status }),
            None => Err(Box::new(self.metadata)),
        }
    }

    /// The object, where it can be read.
    #[must_use]
    pub fn credential(self) -> Option<MoneyGoCredential> {
        self.read().ok()
    }

    /// Whether it can be read, and has no status.
    pub(super) fn is_new(&self) -> bool {
        self.body.as_ref().is_some_and(|body| body.status.is_none())
    }

    /// Whether it is being deleted.
    pub(super) fn is_ending(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// What is told of it in few words.
    pub(super) fn figures(&self) -> Figures {
        let Some(body) = &self.body else { return Figures::unreadable() };
        let is_suspended = body.spec.suspend == Some(true);
        body.status.as_ref().map(|status| Figures::of(status, is_suspended)).unwrap_or_default()
    }

    /// The Secret with the client's id and secret, and the target, where it can be read.
    pub(super) fn names(&self) -> Option<(&str, &str)> {
        let spec = &self.body.as_ref()?.spec;
        let target = spec.target.as_ref().and_then(|target| target.name.as_deref());
        Some((&spec.credentials_ref.name, target.or(self.metadata.name.as_deref()).unwrap_or_default()))
    }
}

impl From<Sent> for Guarded {
    fn from(Sent { metadata, spec, status }: Sent) -> Self {
        // A status that somebody made unreadable is as good as none: the target tells what was in it, and the next report takes its place.
        let status = status.and_then(Lenient::read);
        let body = spec.read().map(|spec| Body { spec, status });
        Self { metadata: metadata.into(), body }
    }
}

impl From<Unpacked> for Guarded {
    fn from(Unpacked { metadata, spec, status }: Unpacked) -> Self {
        Self { metadata: metadata.into(), body: spec.map(|spec| Body { spec, status }) }
    }
}

impl From<SentMeta> for ObjectMeta {
    fn from(sent: SentMeta) -> Self {
        let annotations = sent.annotations.map(|mut annotations| {
            annotations.retain(|key, _| key == annotation::REFRESH_REQUESTED);
            annotations
        });
        Self {
            name: sent.name,
            namespace: sent.namespace,
            uid: sent.uid,
            resource_version: sent.resource_version,
            generation: sent.generation,
            creation_timestamp: sent.creation_timestamp,
            deletion_timestamp: sent.deletion_timestamp,
            labels: sent.labels,
            annotations: annotations.filter(|annotations| !annotations.is_empty()),
            ..Self::default()
        }
    }
}

impl std::fmt::Debug for Guarded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guarded").field("name", &self.metadata.name).finish_non_exhaustive()
    }
}
