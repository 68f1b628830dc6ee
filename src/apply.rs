//! Reads and conditional writes. Knows no HTTP to Money-Go and takes no decision.
//!
//! Every write of an object that is there is conditional on its uid and resource version. Every call is bounded.

use std::future::Future;

use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::{Api, ObjectMeta, PartialObjectMeta, Patch, PatchParams, PostParams};
use kube::core::{DynamicObject, Request};
use kube::{Client, Resource as _};
use ring::rand::SecureRandom as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::crd::MoneyGoCredential;
use crate::digest::{DigestKey, KEY_BYTES};
use crate::error::{CALL_TIMEOUT, Error};
use crate::secret::{FIELD_MANAGER, SecretMeta, Version};
use crate::traces::Span;

/// The Secret, in the operator's own namespace, that holds the key of all digests.
pub const DIGEST_KEY_SECRET: &str = "moneygo-operator-digest-key";
const DIGEST_KEY: &str = "key";

async fn call<T>(doing: &'static str, request: impl Future<Output = kube::Result<T>>) -> Result<T, Error> {
    let span = Span::of_call(doing);
    let result = match tokio::time::timeout(CALL_TIMEOUT, span.around(request)).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Error::of(doing, &error)),
        Err(_) => Err(Error::Timeout { doing }),
    };
    span.ended(Error::outcome(&result), result.is_err());
    result
}

/// For who reads less of the answer than kube's `Api` does.
async fn send<T: DeserializeOwned>(
    client: &Client,
    doing: &'static str,
    request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
) -> Result<T, Error> {
    let request = request.map_err(|error| Error::of(doing, &kube::Error::BuildRequest(error)))?;
    call(doing, client.request(request)).await
}

fn post_params() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() }
}

/// Reads a Secret, data included. `None` where there is none.
///
/// # Errors
/// When the API server does not answer with it.
pub async fn read_secret(client: &Client, namespace: &str, name: &str) -> Result<Option<Secret>, Error> {
    let api = Api::<Secret>::namespaced(client.clone(), namespace);
    call("read a Secret", api.get_opt(name)).await
}

/// Writes a Secret: creates it where it carries no resource version, and else replaces exactly that version. Returns its
/// metadata as they are now.
///
/// # Errors
/// [`Error::is_conflict`] where it is there already or is another version, [`Error::is_not_found`] where it is gone.
pub async fn write_secret(client: &Client, secret: &Secret) -> Result<ObjectMeta, Error> {
    let namespace = secret.metadata.namespace.as_deref().unwrap_or_default();
    let name = secret.metadata.name.as_deref().unwrap_or_default();
    let request = Request::new(Secret::url_path(&(), Some(namespace)));
    let replaces = secret.metadata.resource_version.is_some();
    let doing = if replaces { "replace a Secret" } else { "create a Secret" };
    let json = serde_json::to_vec(secret).map_err(|error| Error::of(doing, &kube::Error::SerdeError(error)))?;
    let params = post_params();
    let request = if replaces { request.replace(name, &params, json) } else { request.create(&params, json) };
    // The data comes back, too, and is left where it is.
    let written: SecretMeta = send(client, doing, request).await?;
    Ok(written.into())
}

/// Patches the status of a `MoneyGoCredential`; the patch names the uid and resource version that it is for. Returns the
/// new version.
///
/// # Errors
/// As [`write_secret`].
pub async fn patch_status(client: &Client, namespace: &str, name: &str, patch: &Value) -> Result<Version, Error> {
    let doing = "write a status";
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let request = Request::new(MoneyGoCredential::url_path(&(), Some(namespace)));
    let request = request.patch_subresource("status", name, &params, &Patch::Merge(patch));
    let patched: Versioned = send(client, doing, request).await?;
    Ok(patched.metadata)
}

/// As much of an answer as is read of it.
#[derive(Deserialize)]
struct Versioned {
    metadata: Version,
}

/// Reads a `MoneyGoCredential` in whatever shape it is.
///
/// # Errors
/// When the API server does not answer with it.
pub async fn read_any_credential(client: &Client, namespace: &str, name: &str) -> Result<Option<DynamicObject>, Error> {
    let resource = kube::api::ApiResource::erase::<MoneyGoCredential>(&());
    let api = Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &resource);
    call("read a MoneyGoCredential", api.get_opt(name)).await
}

/// Whether a namespace is being deleted, or gone. One that may not be read is taken for one that stays: a grant that turns
/// out to be in vain is better than none at all.
///
/// # Errors
/// When the API server does not say.
pub async fn is_namespace_ending(client: &Client, name: &str) -> Result<bool, Error> {
    let api = Api::<Namespace>::all(client.clone());
    let found: Result<Option<PartialObjectMeta<Namespace>>, _> =
        call("read a namespace", api.get_metadata_opt(name)).await;
    match found {
        Ok(found) => Ok(found.is_none_or(|namespace| namespace.metadata.deletion_timestamp.is_some())),
        Err(error) if error.is_forbidden() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads the key of all digests, or makes one where there is none.
///
/// # Errors
/// When it can be neither read nor created, or when what is there is no key.
pub async fn digest_key(client: &Client, namespace: &str) -> Result<Option<DigestKey>, Error> {
    if let Some(secret) = read_secret(client, namespace, DIGEST_KEY_SECRET).await? {
        return Ok(key_in(&secret));
    }
    let Some(fresh) = fresh_key(namespace) else { return Ok(None) };
    match write_secret(client, &fresh).await {
        Ok(_) => Ok(key_in(&fresh)),
        // Another replica was faster.
        Err(error) if error.is_conflict() => {
            Ok(read_secret(client, namespace, DIGEST_KEY_SECRET).await?.as_ref().and_then(key_in))
        }
        Err(error) => Err(error),
    }
}

fn key_in(secret: &Secret) -> Option<DigestKey> {
    DigestKey::new(&secret.data.as_ref()?.get(DIGEST_KEY)?.0)
}

/// A key that ends with the process. `None` where the system gives no random bytes.
#[must_use]
pub fn ephemeral_digest_key() -> Option<DigestKey> {
    DigestKey::new(&random_bytes()?)
}

fn random_bytes() -> Option<Vec<u8>> {
    let mut bytes = vec![0; KEY_BYTES];
    ring::rand::SystemRandom::new().fill(&mut bytes).ok()?;
    Some(bytes)
}

fn fresh_key(namespace: &str) -> Option<Secret> {
    let bytes = random_bytes()?;
    Some(Secret {
        metadata: ObjectMeta {
            name: Some(DIGEST_KEY_SECRET.to_owned()),
            namespace: Some(namespace.to_owned()),
            labels: Some([("app.kubernetes.io/managed-by".to_owned(), FIELD_MANAGER.to_owned())].into()),
            ..ObjectMeta::default()
        },
        data: Some([(DIGEST_KEY.to_owned(), k8s_openapi::ByteString(bytes))].into()),
        ..Secret::default()
    })
}
