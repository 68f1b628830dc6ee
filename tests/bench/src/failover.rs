//! Two replicas, and the leader goes: how soon the other one serves.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::sight::{Sight, millis};
use crate::subject::{Subject, Who};
use crate::world::{World, target_of};

/// For the new replica to try for the Lease once, and to be told no.
const SETTLE: Duration = Duration::from_secs(1);

/// What was found, a figure a round.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Failovers {
    /// From the leader's death by SIGKILL to the Secret of an object that was made then, in milliseconds. The Lease lasts 15 s.
    pub crash_millis: Vec<f64>,
    /// From the leader being asked to stop by SIGTERM, likewise.
    pub orderly_millis: Vec<f64>,
    /// Grants beside those for the objects that were made.
    pub grants_beyond: usize,
}

/// Plays both, so many rounds; returns who leads in the end.
///
/// # Errors
/// If nobody takes over.
pub async fn play(world: &World, who: &Who<'_>, mut leader: Subject, rounds: usize) -> Result<(Subject, Failovers)> {
    const NAMESPACE: &str = "failovers";
    world.add_namespace(NAMESPACE).await?;
    let sight = Sight::on(&world.admin, NAMESPACE);
    let grants = world.moneygo.request_count();
    let mut found = Failovers::default();
    for number in 0..2 * rounds {
        let mut standby = Subject::start(world, who)?;
        standby.ready().await?;
        tokio::time::sleep(SETTLE).await;
        world.add_credentials(NAMESPACE, number).await?;
        world.rest().await?;
        let gone = Instant::now();
        let made = async {
            world.add_object(NAMESPACE, number).await?;
            sight.after(&target_of(number), 0).await
        };
        if number % 2 == 0 {
            leader.kill()?;
            found.crash_millis.push(millis(gone, made.await?));
        } else {
            let (stopped, served) = tokio::join!(leader.stop(), made);
            stopped?;
            found.orderly_millis.push(millis(gone, served?));
        }
        leader = standby;
    }
    let minted = world.moneygo.request_count() - grants;
    ensure!(minted >= 2 * rounds, "{minted} grants for {} objects", 2 * rounds);
    found.grants_beyond = minted - 2 * rounds;
    Ok((leader, found))
}
