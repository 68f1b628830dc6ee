//! From a manifest to its Secret, with nothing else to do: objects are made one after the other.

use std::time::{Duration, Instant};

use anyhow::Result;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use moneygo_operator::crd::MoneyGoCredential;

use crate::sight::{Sight, millis};
use crate::world::{World, target_of};

/// For the status and the event of the object before.
const PAUSE: Duration = Duration::from_millis(40);

/// Milliseconds from when each of `count` objects was sent to the event of its Secret. They are removed afterwards: what is looked at next
/// finds the world as it was.
///
/// # Errors
/// If one is not served.
pub async fn one_by_one(world: &World, namespace: &str, count: usize) -> Result<Vec<f64>> {
    world.add_namespace(namespace).await?;
    for number in 0..count {
        world.add_credentials(namespace, number).await?;
    }
    let sight = Sight::on(&world.admin, namespace);
    let mut latencies = Vec::with_capacity(count);
    for number in 0..count {
        tokio::time::sleep(PAUSE).await;
        let made = Instant::now();
        world.add_object(namespace, number).await?;
        latencies.push(millis(made, sight.after(&target_of(number), 0).await?));
    }
    tokio::time::sleep(PAUSE).await;
    remove_all(world, namespace).await?;
    Ok(latencies)
}

/// The objects first: a target that goes before its object would be made again.
async fn remove_all(world: &World, namespace: &str) -> Result<()> {
    let (delete, all) = (DeleteParams::default(), ListParams::default());
    let objects: Api<MoneyGoCredential> = Api::namespaced(world.admin.clone(), namespace);
    let _ = objects.delete_collection(&delete, &all).await?;
    let secrets: Api<Secret> = Api::namespaced(world.admin.clone(), namespace);
    let _ = secrets.delete_collection(&delete, &all).await?;
    world.rest().await
}
