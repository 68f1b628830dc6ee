//! An object of ours as it is kept between two looks.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Resource;
use kube::api::ObjectMeta;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::packed::Packed;
use crate::crd::{MoneyGoCredential, MoneyGoCredentialSpec, MoneyGoCredentialStatus, annotation};

/// An object of ours, or what is left of one that cannot be read: an older schema's, or made by hand. It stops itself and
/// no other.
///
/// kube's `DeserializeGuard` is for the same, but makes a tree of values of each object first, and keeps all of it.
#[derive(Clone)]
pub struct Guarded {
    metadata: ObjectMeta,
    /// `None` where it cannot be read.
    body: Option<Packed>,
}

type Body = (MoneyGoCredentialSpec, Option<MoneyGoCredentialStatus>);

/// As much of an object as any has.
#[derive(Deserialize)]
struct Sent {
    metadata: SentMeta,
    #[serde(default)]
    spec: Value,
    #[serde(default)]
    status: Option<Value>,
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
    annotations: Option<BTreeMap<String, String>>,
}

impl Guarded {
    /// The object; `None` where it cannot be read.
    #[must_use]
    pub fn credential(&self) -> Option<MoneyGoCredential> {
        let (spec, status): Body = self.body.as_ref()?.value()?;
        Some(MoneyGoCredential { metadata: self.metadata.clone(), spec, status })
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
            annotations: annotations.filter(|annotations| !annotations.is_empty()),
            ..Self::default()
        }
    }
}

impl<'de> Deserialize<'de> for Guarded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Sent { metadata, spec, status } = Sent::deserialize(deserializer)?;
        let spec = MoneyGoCredentialSpec::deserialize(spec).ok();
        let status = status.map(MoneyGoCredentialStatus::deserialize).transpose().ok();
        let body: Option<Body> = spec.zip(status);
        Ok(Self { metadata: metadata.into(), body: body.as_ref().and_then(Packed::new) })
    }
}

impl std::fmt::Debug for Guarded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guarded").field("name", &self.metadata.name).finish_non_exhaustive()
    }
}

impl Resource for Guarded {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        MoneyGoCredential::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        MoneyGoCredential::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        MoneyGoCredential::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        MoneyGoCredential::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
