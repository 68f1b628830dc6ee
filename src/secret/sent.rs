//! The metadata of a Secret as they come from the API server.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry, OwnerReference};
use kube::Resource;
use kube::api::ObjectMeta;
use serde::Deserialize;
use serde_json::{Map, Value};

/// As much of a Secret's metadata as [`Facts`](super::Facts) are made of. Its data are never asked for.
///
/// kube's `PartialObjectMeta` is for the same, but makes a tree of values of all that `managedFields` name.
#[derive(Clone, Deserialize)]
#[serde(from = "Sent")]
pub struct SecretMeta {
    metadata: ObjectMeta,
}

#[derive(Deserialize)]
struct Sent {
    metadata: SentMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SentMeta {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    owner_references: Option<Vec<OwnerReference>>,
    managed_fields: Option<Vec<SentEntry>>,
}

#[derive(Deserialize)]
struct SentEntry {
    manager: Option<String>,
    #[serde(rename = "fieldsV1")]
    fields: Option<SentFields>,
}

/// Of whom a field is, the data's keys alone are looked at.
#[derive(Deserialize)]
struct SentFields {
    #[serde(rename = "f:data")]
    data: Option<Map<String, Value>>,
    #[serde(rename = "f:stringData")]
    string_data: Option<Map<String, Value>>,
}

impl From<Sent> for SecretMeta {
    fn from(Sent { metadata }: Sent) -> Self {
        let metadata = ObjectMeta {
            name: metadata.name,
            namespace: metadata.namespace,
            uid: metadata.uid,
            resource_version: metadata.resource_version,
            labels: metadata.labels,
            annotations: metadata.annotations,
            owner_references: metadata.owner_references,
            managed_fields: metadata.managed_fields.map(|entries| entries.into_iter().map(Into::into).collect()),
            ..ObjectMeta::default()
        };
        Self { metadata }
    }
}

impl From<SentEntry> for ManagedFieldsEntry {
    fn from(sent: SentEntry) -> Self {
        let of_data = |fields: SentFields| {
            let named = [("f:data", fields.data), ("f:stringData", fields.string_data)];
            FieldsV1(named.into_iter().filter_map(|(name, keys)| Some((name, keys?))).collect())
        };
        Self { manager: sent.manager, fields_v1: sent.fields.map(of_data), ..Self::default() }
    }
}

impl From<SecretMeta> for ObjectMeta {
    fn from(SecretMeta { metadata }: SecretMeta) -> Self {
        metadata
    }
}

impl std::fmt::Debug for SecretMeta {
    /// Annotations may hold what someone applied, data and all.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretMeta").field("name", &self.metadata.name).finish_non_exhaustive()
    }
}

impl Resource for SecretMeta {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        Secret::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        Secret::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        Secret::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        Secret::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }

    fn metadata_api() -> bool {
        true
    }
}
