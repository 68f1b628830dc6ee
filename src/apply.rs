//! Reads and conditional writes. Knows no HTTP to Money-Go and takes no decision.
//!
//! Every write of an object that is there is conditional on its uid and resource version. Every call is bounded, and few are under
//! way at once.

use std::future::Future;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::{Api, ObjectMeta, PartialObjectMeta, PostParams};
use kube::core::{DynamicObject, Request};
use kube::{Client, Resource as _};
use ring::rand::SecureRandom as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;

use crate::crd::MoneyGoCredential;
use crate::digest::{DigestKey, KEY_BYTES};
use crate::error::{CALL_TIMEOUT, Error, if_there};
use crate::secret::{FIELD_MANAGER, SecretMeta, Version, Versioned};
use crate::traces::Span;

/// The Secret, in the operator's own namespace, that holds the key of all digests.
pub const DIGEST_KEY_SECRET: &str = "moneygo-operator-digest-key";
const DIGEST_KEY: &str = "key";

/// Calls under way at once. Of more, the rest wait in the API server, and what its watches tell waits with them; of fewer, each costs the
/// API server and etcd more (docs/performance.md).
const AT_ONCE: usize = 64;
/// Who waits for longer than that gives its place to the next: what hangs (an admission webhook, say) holds up no other object.
const PLACE_HELD_FOR: Duration = Duration::from_secs(1);

/// Does what has a place. What takes long gives it up, and goes on without. Returns what came of it, and whether it took so long.
pub async fn in_place<T>(place: impl Sized, mut work: impl Future<Output = T> + Unpin) -> (T, bool) {
    let in_time = tokio::time::timeout(PLACE_HELD_FOR, &mut work).await;
    drop(place);
    match in_time {
        Ok(done) => (done, false),
        Err(_) => (work.await, true),
    }
}

/// The API server, for what a reconcile asks of it.
pub struct ApiServer {
    client: Client,
    places: Semaphore,
}

impl ApiServer {
    /// What is reached by this client, whose own retries are off.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client, places: Semaphore::new(AT_ONCE) }
    }

    /// From here on nobody waits for a place: at a stop, a token that is held is written within seconds or never.
    pub fn let_all_through(&self) {
        self.places.close();
    }

    /// Whether the process stops.
    #[must_use]
    pub fn lets_all_through(&self) -> bool {
        self.places.is_closed()
    }

    async fn call<T>(&self, doing: &'static str, request: impl Future<Output = kube::Result<T>>) -> Result<T, Error> {
        self.call_within(CALL_TIMEOUT, doing, request).await
    }

    /// The time that a call may take begins once it has a place.
    async fn call_within<T>(
        &self,
        within: Duration,
        doing: &'static str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Error> {
        let span = Span::of_call(doing);
        let place = self.places.acquire().await.ok();
        let request = in_place(place, Box::pin(span.around(request)));
        let result = match tokio::time::timeout(within, request).await {
            Ok((Ok(value), _)) => Ok(value),
            Ok((Err(error), _)) => Err(Error::of(doing, &error)),
            Err(_) => Err(Error::Timeout { doing, within }),
        };
        span.ended(Error::outcome(&result), result.is_err());
        result
    }

    /// For who reads less of the answer than kube's `Api` does.
    async fn send<T: DeserializeOwned>(
        &self,
        within: Duration,
        doing: &'static str,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<T, Error> {
        let request = request.map_err(|error| Error::of(doing, &kube::Error::BuildRequest(error)))?;
        self.call_within(within, doing, self.client.request(request)).await
    }

    /// Reads a Secret, data included. `None` where there is none.
    ///
    /// # Errors
    /// When the API server does not answer with it.
    pub async fn read_secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, Error> {
        let api = Api::<Secret>::namespaced(self.client.clone(), namespace);
        self.call("read a Secret", async { if_there(api.get(name).await) }).await
    }

    /// Writes a Secret: creates it where it carries no resource version, and else replaces exactly that version. Returns its
    /// metadata as they are now. `within` is how long the API server may take for it.
    ///
    /// # Errors
    /// [`Error::is_conflict`] where it is there already or is another version, [`Error::is_not_found`] where it is gone.
    pub async fn write_secret(&self, secret: &Secret, within: Duration) -> Result<ObjectMeta, Error> {
        let namespace = secret.metadata.namespace.as_deref().unwrap_or_default();
        let name = secret.metadata.name.as_deref().unwrap_or_default();
        let request = Request::new(Secret::url_path(&(), Some(namespace)));
        let replaces = secret.metadata.resource_version.is_some();
        let doing = if replaces { "replace a Secret" } else { "create a Secret" };
        let json = body_of(doing, secret)?;
        let params = post_params();
        let request = if replaces { request.replace(name, &params, json) } else { request.create(&params, json) };
        // The data comes back, too, and is left where it is.
        let written: SecretMeta = self.send(within, doing, request).await?;
        Ok(written.into())
    }

    /// Writes the status of a `MoneyGoCredential`; the object names the uid and resource version that it is for. Returns the
    /// new version. The API server leaves all but the status as it is; a patch would cost it more (docs/performance.md).
    ///
    /// # Errors
    /// As [`ApiServer::write_secret`].
    pub async fn write_status(&self, namespace: &str, name: &str, object: &impl Serialize) -> Result<Version, Error> {
        let doing = "write a status";
        let json = body_of(doing, object)?;
        let request = Request::new(MoneyGoCredential::url_path(&(), Some(namespace)));
        let request = request.replace_subresource("status", name, &post_params(), json);
        let written: Versioned = self.send(CALL_TIMEOUT, doing, request).await?;
        Ok(written.metadata)
    }

    /// Reads a `MoneyGoCredential` in whatever shape it is.
    ///
    /// # Errors
    /// When the API server does not answer with it.
    pub async fn read_any_credential(&self, namespace: &str, name: &str) -> Result<Option<DynamicObject>, Error> {
        let resource = kube::api::ApiResource::erase::<MoneyGoCredential>(&());
        let api = Api::<DynamicObject>::namespaced_with(self.client.clone(), namespace, &resource);
        self.call("read a MoneyGoCredential", async { if_there(api.get(name).await) }).await
    }

    /// Whether a namespace is being deleted, or gone. One that may not be read is taken for one that stays: a grant that turns
    /// out to be in vain is better than none at all.
    ///
    /// # Errors
    /// When the API server does not say.
    pub async fn is_namespace_ending(&self, name: &str) -> Result<bool, Error> {
        let api = Api::<Namespace>::all(self.client.clone());
        let found: Result<Option<PartialObjectMeta<Namespace>>, _> =
            self.call("read a namespace", async { if_there(api.get_metadata(name).await) }).await;
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
    pub async fn digest_key(&self, namespace: &str) -> Result<Option<DigestKey>, Error> {
        if let Some(secret) = self.read_secret(namespace, DIGEST_KEY_SECRET).await? {
            return Ok(key_in(&secret));
        }
        let Some(fresh) = fresh_key(namespace) else { return Ok(None) };
        match self.write_secret(&fresh, CALL_TIMEOUT).await {
            Ok(_) => Ok(key_in(&fresh)),
            // Another replica was faster.
            Err(error) if error.is_conflict() => {
                Ok(self.read_secret(namespace, DIGEST_KEY_SECRET).await?.as_ref().and_then(key_in))
            }
            Err(error) => Err(error),
        }
    }
}

fn body_of(doing: &'static str, object: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(object).map_err(|error| Error::of(doing, &kube::Error::SerdeError(error)))
}

fn post_params() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() }
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::Response;
    use kube::client::Body;
    use tokio::time::Instant;

    use super::*;

    /// Answers reads of what is not called "hangs", with an empty Secret.
    fn api_server() -> ApiServer {
        let service = tower::service_fn(async |request: http::Request<Body>| {
            if request.uri().path().ends_with("/hangs") {
                std::future::pending::<()>().await;
            }
            Ok::<_, Infallible>(Response::new(Body::from(b"{\"metadata\": {}}".to_vec())))
        });
        ApiServer::new(Client::new(service, "default"))
    }

    async fn took(api_server: &ApiServer, name: &str) -> (Duration, bool) {
        let asked = Instant::now();
        let answer = api_server.read_secret("payments", name).await;
        (asked.elapsed(), answer.is_ok())
    }

    #[tokio::test(start_paused = true)]
    async fn calls_that_hang_hold_up_no_other_for_longer_than_a_second() {
        let api_server = api_server();
        let hanging = futures::future::join_all((0..3 * AT_ONCE).map(|_| took(&api_server, "hangs")));
        let (hung, answered) = futures::future::join(hanging, took(&api_server, "answers")).await;
        assert_eq!(answered, (3 * PLACE_HELD_FOR, true), "it came last");
        let waited = |row: usize| CALL_TIMEOUT + PLACE_HELD_FOR * u32::try_from(row).unwrap();
        for (place, hung) in hung.into_iter().enumerate() {
            assert_eq!(hung, (waited(place / AT_ONCE), false), "each has all of its time");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn at_a_stop_nobody_waits() {
        let api_server = api_server();
        let hanging = futures::future::join_all((0..3 * AT_ONCE).map(|_| took(&api_server, "hangs")));
        let stop = async {
            tokio::time::sleep(PLACE_HELD_FOR / 2).await;
            api_server.let_all_through();
        };
        let answered = async {
            tokio::time::sleep(PLACE_HELD_FOR / 4).await;
            took(&api_server, "answers").await
        };
        let (_, (), answered) = futures::future::join3(hanging, stop, answered).await;
        assert_eq!(answered, (PLACE_HELD_FOR / 4, true));
    }
}
