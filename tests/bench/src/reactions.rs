//! Whatever is changed by someone is answered: how soon, from the return of the write that changed it to the event of the Secret that answers it.
//! Each is done to objects of its own, one after the other.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use moneygo_operator::crd::MoneyGoCredential;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::sight::{Sight, millis};
use crate::world::{World, client_of, target_of};

const LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
/// For what follows the Secret: the status, the event.
const PAUSE: Duration = Duration::from_millis(40);
/// Clients from this number on are known to the stand-in, and so can be wrong.
const FIRST_KNOWN: usize = 10_000_000;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// The target Secret is deleted.
    TargetDeleted,
    /// The token in it is replaced.
    TokenEdited,
    /// A label is taken from it.
    LabelRemoved,
    /// The object wants the token under another key.
    KeyRenamed,
    /// The credentials Secret is created after the object.
    CredentialsCreated,
    /// The client secret is put right after it was refused.
    ClientSecretCorrected,
    /// A refresh is asked for by the annotation.
    RefreshRequested,
    /// An object without a token is no longer suspended.
    SuspendLifted,
}

impl Change {
    /// All there are.
    pub const ALL: [Self; 8] = [
        Self::TargetDeleted,
        Self::TokenEdited,
        Self::LabelRemoved,
        Self::KeyRenamed,
        Self::CredentialsCreated,
        Self::ClientSecretCorrected,
        Self::RefreshRequested,
        Self::SuspendLifted,
    ];

    fn begins_with_a_token(self) -> bool {
        !matches!(self, Self::CredentialsCreated | Self::ClientSecretCorrected | Self::SuspendLifted)
    }

    /// In words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::TargetDeleted => "target deleted",
            Self::TokenEdited => "token edited",
            Self::LabelRemoved => "label removed",
            Self::KeyRenamed => "key renamed",
            Self::CredentialsCreated => "credentials created",
            Self::ClientSecretCorrected => "client secret corrected",
            Self::RefreshRequested => "refresh requested",
            Self::SuspendLifted => "suspend lifted",
        }
    }
}

/// Milliseconds until each of `count` such changes was answered.
///
/// # Errors
/// If one is not.
pub async fn answered(world: &World, namespace: &str, change: Change, count: usize) -> Result<Vec<f64>> {
    world.add_namespace(namespace).await?;
    let scene = Scene {
        world,
        sight: Sight::on(&world.admin, namespace),
        namespace,
        objects: Api::namespaced(world.admin.clone(), namespace),
        secrets: Api::namespaced(world.admin.clone(), namespace),
    };
    let first = if change == Change::ClientSecretCorrected { FIRST_KNOWN } else { 0 };
    let numbers = first..first + count;
    scene.prepare(change, numbers.clone()).await?;
    let mut latencies = Vec::with_capacity(count);
    for number in numbers {
        tokio::time::sleep(PAUSE).await;
        let version = scene.sight.version(&target_of(number));
        let changed = scene.make(change, number).await?.unwrap_or(version);
        let done = Instant::now();
        latencies.push(millis(done, scene.sight.after(&target_of(number), changed).await?));
    }
    Ok(latencies)
}

struct Scene<'a> {
    world: &'a World,
    sight: Sight,
    namespace: &'a str,
    objects: Api<MoneyGoCredential>,
    secrets: Api<Secret>,
}

impl Scene<'_> {
    /// Makes objects, and waits until each has said how it is.
    async fn prepare(&self, change: Change, numbers: Range<usize>) -> Result<()> {
        for number in numbers.clone() {
            if change == Change::ClientSecretCorrected {
                self.world.moneygo.add_client(&client_of(number), "what it should be");
            }
            if change != Change::CredentialsCreated {
                self.world.add_credentials(self.namespace, number).await?;
            }
            let suspend = change == Change::SuspendLifted;
            self.world.add_object_that_waits(self.namespace, number, suspend).await?;
        }
        for number in numbers {
            self.has_status(number).await?;
            if change.begins_with_a_token() {
                self.sight.after(&target_of(number), 0).await?;
            }
        }
        Ok(())
    }

    async fn has_status(&self, number: usize) -> Result<()> {
        let started = Instant::now();
        while self.objects.get(&target_of(number)).await?.status.is_none_or(|status| status.conditions.is_empty()) {
            ensure!(started.elapsed() < LIMIT, "an object has no status");
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// The version of the target that the change itself made, where it made one.
    async fn make(&self, change: Change, number: usize) -> Result<Option<u64>> {
        let name = target_of(number);
        match change {
            Change::TargetDeleted => {
                let _ = self.secrets.delete(&name, &DeleteParams::default()).await?;
                Ok(None)
            }
            Change::TokenEdited => self.edit_secret(&name, json!({"stringData": {"access_token": "edited"}})).await,
            Change::LabelRemoved => {
                let without = json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": null}}});
                self.edit_secret(&name, without).await
            }
            Change::KeyRenamed => self.edit(number, json!({"spec": {"target": {"accessTokenKey": "token"}}})).await,
            Change::CredentialsCreated => {
                self.world.add_credentials(self.namespace, number).await?;
                Ok(None)
            }
            Change::ClientSecretCorrected => {
                let right = json!({"stringData": {"client_secret": "what it should be"}});
                self.edit_secret(&client_of(number), right).await?;
                Ok(None)
            }
            Change::RefreshRequested => {
                let asked = json!({"metadata": {"annotations": {"money-go.com/refresh-requested": "now"}}});
                self.edit(number, asked).await
            }
            Change::SuspendLifted => self.edit(number, json!({"spec": {"suspend": false}})).await,
        }
    }

    async fn edit(&self, number: usize, patch: Value) -> Result<Option<u64>> {
        self.objects.patch(&target_of(number), &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(None)
    }

    async fn edit_secret(&self, name: &str, patch: Value) -> Result<Option<u64>> {
        let secret = self.secrets.patch_metadata(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(secret.resource_version().and_then(|version| version.parse().ok()))
    }
}
