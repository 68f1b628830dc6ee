//! Runs whose disturbances are written down, not drawn: long outages, a client that is refused for days, and 10,000 objects
//! that are due at once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use anyhow::ensure;
use moneygo_operator::token::TokenClient;

use crate::node::Node;
use crate::run::{Outcome, alone, run};
use crate::schedule::{Away, Disturbance, Mode, ObjectSetting, Renew, Setting, Time, What};
use crate::time::{self, DAY, HOUR, MINUTE, Millis, SECOND};
use crate::world::{Shared, World, lock};

/// How long Money-Go or the API server is away.
pub const OUTAGES: [Millis; 12] =
    [SECOND, 10 * SECOND, MINUTE, 10 * MINUTE, HOUR, 6 * HOUR, DAY, 3 * DAY, 9 * DAY, 15 * DAY, 29 * DAY, 40 * DAY];

/// A world without faults: one replica, and objects with nothing but the defaults.
#[must_use]
pub fn calm(objects: usize, lifetime: Millis) -> Setting {
    let object = ObjectSetting { renew: Renew::Unset, retain: false, more_keys: false, foreign: false };
    Setting {
        seed: 1,
        replicas: 1,
        objects: vec![object; objects],
        mode: Mode::RevokesLast,
        lifetime,
        lease_secs: 60,
        api_delay: 20,
        token_delay: 200,
        rate: 20,
        named_namespace: false,
        digest_key: true,
        step: (lifetime / 1000).clamp(100, 10 * SECOND),
        faults_until: lifetime,
    }
}

/// Outages of every length, of Money-Go in every way and of the API server, each beginning when tokens of 30 days are about
/// to be due.
///
/// # Errors
/// Where the simulation itself cannot run.
pub fn outages(clients: &[TokenClient], mut each: impl FnMut(String, Outcome)) -> anyhow::Result<()> {
    let ways = [Away::Refused, Away::Hangs, Away::Status(503), Away::AnswersLost];
    for lasts in OUTAGES {
        for (way, of_api) in
            // A gateway that has lost its way answers 404 itself.
            ways
                .into_iter()
                .map(|way| (way, false))
                .chain([Away::Refused, Away::Hangs, Away::Status(404)].map(|way| (way, true)))
        {
            let what = if of_api { What::ApiAway(None, way) } else { What::EndpointAway(way) };
            let outage = Disturbance { at: 18 * DAY, lasts, what };
            let outcome = run(clients, calm(3, 30 * DAY), vec![outage], false)?;
            each(format!("{what:?} for {}", Time(lasts)), outcome);
        }
    }
    Ok(())
}

/// A client whose secret is wrong for ten days, with tokens of a minute to 30 days: the most requests in a day. The oracle of
/// the run limits them, and the retry after the correction.
///
/// # Errors
/// As [`outages`].
pub fn refused_client(clients: &[TokenClient], mut each: impl FnMut(String, Outcome)) -> anyhow::Result<()> {
    for lifetime in [MINUTE, HOUR, DAY, 12 * DAY, 30 * DAY] {
        each(format!("a refused client, tokens of {}", Time(lifetime)), refused(clients, lifetime)?);
    }
    Ok(())
}

/// As [`refused_client`], with tokens of one lifetime.
///
/// # Errors
/// As [`outages`].
pub fn refused(clients: &[TokenClient], lifetime: Millis) -> anyhow::Result<Outcome> {
    let wrong = Disturbance { at: 10 * SECOND + lifetime / 2, lasts: 10 * DAY, what: What::CredentialsWrong(0) };
    run(clients, calm(1, lifetime), vec![wrong], false)
}

/// What became of a crowd.
#[derive(Debug, Clone, Copy, Default)]
pub struct Crowd {
    /// Token requests while Money-Go was away.
    pub during: usize,
    /// The most in any second after its return.
    pub most_in_a_second: usize,
    /// From its return until all had a new token.
    pub until_all: Millis,
    /// Those that had expired as it came back.
    pub expired: usize,
}

/// So many objects with tokens of an hour; Money-Go is away until half of the tokens have expired and all are due. On its
/// return they are asked for at the limiter's pace, those that ended first going first.
///
/// # Errors
/// Where a promise is not kept, or the simulation itself cannot run.
pub fn crowd(clients: &[TokenClient], objects: usize) -> anyhow::Result<Crowd> {
    alone(|| crowd_here(clients, objects))
}

fn crowd_here(clients: &[TokenClient], objects: usize) -> anyhow::Result<Crowd> {
    time::reset();
    let setting = Setting { mode: Mode::Independent, api_delay: 5, token_delay: 100, ..calm(objects, HOUR) };
    let minting = objects as u64 * SECOND / u64::from(setting.rate);
    let back = HOUR + minting / 2;
    let away = Disturbance { at: 30 * MINUTE, lasts: back - 30 * MINUTE, what: What::EndpointAway(Away::Status(503)) };
    let world: Shared = Arc::new(Mutex::new(World::new(setting, vec![away], false)));
    let Some(client) = clients.first() else { anyhow::bail!("there is no client") };
    let mut node = Node::new(world.clone(), 0, client.clone());
    let mut now = 0;
    let mut go = |until: Millis| -> anyhow::Result<()> {
        while now < until {
            now = (now + SECOND).min(until);
            node.run_until(now)?;
            crate::logs::drain(&mut lock(&world), now);
        }
        Ok(())
    };
    go(away.at)?;
    lock(&world).begin_disturbance(0, away.at);
    go(back)?;
    lock(&world).end_disturbance(0, back);
    lock(&world).pulse.notify_waiters();
    go(back + minting + 2 * MINUTE)?;
    let world = lock(&world);
    ensure!(world.violation.is_none(), "not kept: {:?}", world.violation);
    judge_crowd(&world, away, back, objects)
}

fn judge_crowd(world: &World, away: Disturbance, back: Millis, objects: usize) -> anyhow::Result<Crowd> {
    let posts: Vec<(Millis, &str)> =
        world.nodes.iter().flat_map(|node| &node.posts).map(|(at, client)| (*at, client.as_str())).collect();
    let mut ends: BTreeMap<&str, Millis> = BTreeMap::new();
    for grant in world.provider.grants.iter().filter(|grant| grant.issued < away.at) {
        ends.insert(&grant.client, grant.expires);
    }
    ensure!(ends.len() == objects, "{} of {objects} had a token before the outage", ends.len());
    let after: Vec<(Millis, &str)> = posts.iter().copied().filter(|(at, _)| *at >= back).collect();
    let most_in_a_second = after
        .iter()
        .enumerate()
        .map(|(first, (at, _))| after.iter().skip(first).take_while(|(other, _)| *other < at + SECOND).count())
        .max();
    let most_in_a_second = most_in_a_second.unwrap_or(0);
    let limit = usize::try_from(world.setting.rate).unwrap_or(usize::MAX) + 16;
    ensure!(most_in_a_second <= limit, "{most_in_a_second} token requests in a second: the limiter allows {limit}");
    // Whole seconds are what an expiry is known in; requests that are under way at once may change places.
    let slack = 5 * SECOND;
    let mut latest = 0;
    for (at, client) in &after {
        let end = ends.get(client).copied().unwrap_or_default();
        ensure!(
            end + slack >= latest,
            "at {}: {client}, whose token ended at {}, after one that ended at {}",
            Time(*at),
            Time(end),
            Time(latest)
        );
        latest = latest.max(end);
    }
    let renewed: BTreeMap<&str, Millis> = world
        .provider
        .grants
        .iter()
        .filter(|grant| grant.issued >= back)
        .map(|grant| (grant.client.as_str(), grant.issued))
        .collect();
    ensure!(renewed.len() == objects, "{} of {objects} had a new token in the end", renewed.len());
    ensure!(after.len() == objects, "{} requests for {objects} tokens", after.len());
    Ok(Crowd {
        during: posts.iter().filter(|(at, _)| (away.at..back).contains(at)).count(),
        most_in_a_second,
        until_all: renewed.values().max().copied().unwrap_or(back) - back,
        expired: ends.values().filter(|end| **end <= back).count(),
    })
}
