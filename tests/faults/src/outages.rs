//! What is away for a while: the API server, its store, its willingness to take writes, the token endpoint's patience.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail, ensure};
use fake_moneygo::{Script, TokenState};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;
use moneygo_operator::clock::Clock;
use serde_json::json;

use crate::cell::{Cell, QUIET, condition, is_ready, token_in};
use crate::interposer::{Fault, Interposer, Point};
use crate::replica::Replica;
use crate::tally::Tally;
use crate::world::{Provider, Scene, World, now};

/// Objects of each outage.
const OBJECTS: usize = 10;
/// Within which everything is as it should be after an outage.
const RECOVERY: Duration = Duration::from_secs(30);
const LIMIT: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(20);
/// How long writes are refused.
const STORM: Duration = Duration::from_secs(6);
/// How long the API server is away, and the store stands still.
const AWAY: Duration = Duration::from_secs(6);
/// Of tokens that must survive it.
const SHORT_LIFE: Duration = Duration::from_mins(1);
/// What a machine that is busy may need, from the return on.
const MARGIN: Duration = Duration::from_secs(5);

/// One kind of outage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outage {
    /// Every write is answered with this status.
    Storm(u16),
    /// The API server is killed and started again.
    Apiserver,
    /// The API server answers nothing.
    Silence,
    /// The store stands still.
    Etcd,
    /// The token endpoint answers 429, once, with this header.
    RetryAfter(Header),
}

/// Forms of `Retry-After` (RFC 9110 §10.2.3), and what is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the table in `Header::text` says what each is")]
pub enum Header {
    Absent,
    Soon,
    Zero,
    Negative,
    Fraction,
    Word,
    Huge,
    Long,
    DateSoon,
    DatePast,
    DateFar,
    Twice,
}

const STORMS: [u16; 6] = [409, 429, 500, 503, 504, 403];
const HEADERS: [Header; 12] = [
    Header::Absent,
    Header::Soon,
    Header::Zero,
    Header::Negative,
    Header::Fraction,
    Header::Word,
    Header::Huge,
    Header::Long,
    Header::DateSoon,
    Header::DatePast,
    Header::DateFar,
    Header::Twice,
];

impl Header {
    fn text(self) -> Option<String> {
        let date = |secs: i64| {
            let at = Clock::SYSTEM.now().saturating_add(SignedDuration::from_secs(secs)).ok()?;
            Some(at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string())
        };
        let text = match self {
            Self::Absent => return None,
            Self::Soon => "2",
            Self::Zero => "0",
            Self::Negative => "-5",
            Self::Fraction => "1.5",
            Self::Word => "soon",
            Self::Huge => "99999999999999999999999",
            Self::Long => "86400",
            Self::Twice => "1, 2",
            Self::DateSoon => return date(3),
            Self::DatePast => return date(-3600),
            Self::DateFar => return date(400 * 86_400),
        };
        Some(text.to_owned())
    }

    /// What was asked for; nothing is asked again within a second, whatever was.
    fn shortest_wait(self) -> Duration {
        match self {
            Self::Soon => Duration::from_millis(1950),
            _ if self.is_long() => Duration::ZERO,
            _ => Duration::from_millis(950),
        }
    }

    /// Whether it keeps the operator waiting for longer than a test may take.
    fn is_long(self) -> bool {
        matches!(self, Self::Long | Self::DateFar | Self::Huge)
    }
}

impl std::fmt::Display for Outage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Storm(status) => write!(f, "outages:storm:{status}"),
            Self::Apiserver => f.write_str("outages:apiserver"),
            Self::Silence => f.write_str("outages:silence"),
            Self::Etcd => f.write_str("outages:etcd"),
            Self::RetryAfter(header) => write!(f, "outages:retry-after:{header:?}"),
        }
    }
}

/// Every outage.
#[must_use]
pub fn all() -> Vec<Outage> {
    let storms = STORMS.map(Outage::Storm);
    let headers = HEADERS.map(Outage::RetryAfter);
    let servers = [Outage::Apiserver, Outage::Silence, Outage::Etcd];
    headers.into_iter().chain(storms).chain(servers).collect()
}

impl std::str::FromStr for Outage {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        all().into_iter().find(|outage| outage.to_string() == text).with_context(|| format!("no outage: {text}"))
    }
}

impl Outage {
    /// Whether it concerns everyone, so that nothing else may run meanwhile.
    fn is_of_all(&self) -> bool {
        matches!(self, Self::Apiserver | Self::Silence | Self::Etcd)
    }

    async fn play(&self, world: &World) -> anyhow::Result<Duration> {
        match self {
            Self::Storm(status) => storm(world, *status).await,
            Self::RetryAfter(header) => retry_after(world, *header).await,
            Self::Apiserver | Self::Silence | Self::Etcd => self.away(world).await,
        }
    }

    /// Tokens that are due while the servers are away, and end well after.
    async fn away(&self, world: &World) -> anyhow::Result<Duration> {
        let cell = Cell::open(world, Provider::Independent).await?;
        let names = names();
        for name in &names {
            cell.moneygo().set_expires_in_of(&cell.client_of(name), Some(SHORT_LIFE));
            cell.subscribe(name, &json!({}), json!({})).await?;
        }
        let replica = Replica::start(Interposer::new(world.admin.clone()), cell.config())?;
        cell.settle(&replica, QUIET, LIMIT, |scene| all_ready(scene, &names)).await?;
        // The earliest refresh is at six tenths of the life.
        let oldest =
            names.iter().filter_map(|name| Some(cell.grants(name).first()?.issued)).min().context("a grant")?;
        let due = oldest + SHORT_LIFE.mul_f64(0.58);
        tokio::time::sleep(due.duration_since(now()).unwrap_or_default()).await;
        let gone = now();
        match self {
            Self::Apiserver => world.plane.stop_apiserver()?,
            Self::Silence => world.plane.pause_apiserver()?,
            _ => world.plane.pause_etcd()?,
        }
        tokio::time::sleep(AWAY).await;
        match self {
            Self::Apiserver => world.plane.start_apiserver().await?,
            Self::Silence => world.plane.resume_apiserver()?,
            _ => world.plane.resume_etcd()?,
        }
        let back = now();
        // A server takes requests before it says that it is ready: what was done by then counts.
        let took = refreshed_after(&cell, &names, gone).await?;
        // The promise is for an outage that ends before the token does.
        if back + MARGIN < oldest + SHORT_LIFE {
            for name in &names {
                never_expired(&cell, name)?;
            }
        } else {
            println!("  {self}: the servers took too long to come back to say whether a token expired");
        }
        replica.crash().await;
        Ok(took)
    }
}

fn names() -> Vec<String> {
    (0..OBJECTS).map(|index| format!("o{index}")).collect()
}

fn all_ready(scene: &Scene, names: &[String]) -> Result<(), String> {
    let unready = names.iter().find(|name| !scene.objects.get(*name).is_some_and(|object| is_ready(object)));
    unready.map_or(Ok(()), |name| Err(format!("{name} is not Ready")))
}

/// Waits until every object has a token that was stored after `since`, and is Ready.
async fn refreshed_after(cell: &Cell<'_>, names: &[String], since: SystemTime) -> anyhow::Result<Duration> {
    let started = Instant::now();
    loop {
        let scene = cell.scene();
        let missing = names.iter().find(|name| {
            let stored = scene.secrets.get(*name).and_then(|secret| token_in(secret));
            let first_seen = stored.and_then(|token| {
                let sightings = scene.history.iter().filter(|one| one.name == **name);
                sightings.filter(|one| one.values.contains(&token)).map(|one| one.at).min()
            });
            first_seen.is_none_or(|at| at < since) || cell.check_alive(&scene, name).is_err()
        });
        let verdict = missing.map_or_else(|| all_ready(&scene, names), |name| Err(format!("{name} has no new token")));
        match verdict {
            Ok(()) => return Ok(started.elapsed()),
            Err(why) if started.elapsed() > RECOVERY => bail!("no recovery within {RECOVERY:?}: {why}"),
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// No token stood in the Secret beyond its end.
fn never_expired(cell: &Cell<'_>, name: &str) -> anyhow::Result<()> {
    let scene = cell.scene();
    let sightings: Vec<_> = scene.history.iter().filter(|one| one.name == name).collect();
    let grants = cell.grants(name);
    for pair in sightings.windows(2) {
        for grant in grants.iter().filter(|grant| pair[0].values.contains(&grant.token)) {
            ensure!(grant.expires > pair[1].at, "{name} held an expired token");
        }
    }
    Ok(())
}

/// Objects that are due, under an operator whose every write is refused for a while.
async fn storm(world: &World, status: u16) -> anyhow::Result<Duration> {
    let (cell, names) = due(world).await?;
    let before: Vec<Option<String>> = names.iter().map(|name| token_of(&cell.scene(), name)).collect();
    let interposer = Interposer::new(world.admin.clone());
    let is_write = |point: &Point| {
        let verb = point.what.split(' ').next().unwrap_or_default();
        matches!(verb, "put" | "post" | "patch") && point.what != crate::interposer::TOKEN
    };
    interposer.inject_where(is_write, Fault::Answer(status));
    let replica = Replica::start(interposer.clone(), cell.config())?;
    tokio::time::sleep(STORM).await;
    let scene = cell.scene();
    for (name, before) in names.iter().zip(before) {
        ensure!(token_of(&scene, name) == before, "the last good token of {name} is gone");
    }
    let back = now();
    interposer.disarm();
    let took = refreshed_after(&cell, &names, back).await?;
    for name in &names {
        let grants = cell.grants(name).len();
        ensure!(grants == 2, "{grants} grants of {name} in place of 2: a token that was held was lost");
    }
    replica.crash().await;
    Ok(took)
}

async fn due(world: &World) -> anyhow::Result<(Cell<'_>, Vec<String>)> {
    let cell = Cell::open(world, Provider::Independent).await?;
    let names = names();
    for name in &names {
        cell.subscribe(name, &json!({}), json!({})).await?;
    }
    cell.set_up(Clock::new(twenty_five_days_ago, || Clock::SYSTEM.moment().boot), None).await?;
    Ok((cell, names))
}

fn twenty_five_days_ago() -> Timestamp {
    let now = Clock::SYSTEM.now();
    now.saturating_sub(SignedDuration::from_hours(24 * 25)).unwrap_or(now)
}

fn token_of(scene: &Scene, name: &str) -> Option<String> {
    scene.secrets.get(name).and_then(|secret: &std::sync::Arc<Secret>| token_in(secret))
}

async fn retry_after(world: &World, header: Header) -> anyhow::Result<Duration> {
    let (cell, names) = due(world).await?;
    for name in &names {
        let script = Script::status(429);
        let script = header.text().into_iter().fold(script, |script, text| script.header("retry-after", &text));
        cell.moneygo().script(&cell.client_of(name), script);
    }
    let before = cell.scene();
    let replica = Replica::start(Interposer::new(world.admin.clone()), cell.config())?;
    let limited = |scene: &Scene| {
        for name in &names {
            let object = scene.objects.get(name).ok_or("no object")?;
            let reason = condition(object, "Refreshed").map(|one| one["reason"].clone());
            if reason != Some(json!("RateLimited")) {
                return Err(format!("{name} is {reason:?}"));
            }
            let next = object.data["status"]["nextAttemptAt"].as_str().and_then(|at| at.parse::<Timestamp>().ok());
            let wait = next.ok_or("no nextAttemptAt")?.duration_since(Clock::SYSTEM.now());
            if wait > SignedDuration::from_hours(1) {
                return Err(format!("{name} waits {wait}"));
            }
            if header.is_long() && wait < SignedDuration::from_mins(50) && header != Header::Huge {
                return Err(format!("{name} waits {wait} only"));
            }
            if token_of(scene, name) != token_of(&before, name) {
                return Err("the last good token is gone".to_owned());
            }
            cell.check_alive(scene, name)?;
        }
        Ok(())
    };
    let asked = now();
    if header.is_long() {
        cell.settle(&replica, Duration::ZERO, Duration::from_secs(10), limited).await?;
        // A person corrects the client: that is no time to wait.
        for name in &names {
            cell.rotate(name).await?;
        }
    }
    let took = refreshed_after(&cell, &names, asked).await?;
    for name in &names {
        let asked: Vec<_> = cell.moneygo().requests_of(&cell.client_of(name)).into_iter().rev().take(2).collect();
        let [again, first] = asked.as_slice() else { bail!("{name} asked once") };
        let waited = again.received_at.duration_since(first.received_at).unwrap_or_default();
        ensure!(waited >= header.shortest_wait(), "{name} asked again after {waited:?}");
        let token = token_of(&cell.scene(), name).context("a token")?;
        ensure!(cell.moneygo().state_of(&token, now()) == TokenState::Alive, "the token of {name} is dead");
        let owner = cell.scene().secrets.get(name).map(|secret| secret.owner_references().len());
        ensure!(owner == Some(1), "{name} has lost its owner");
    }
    replica.crash().await;
    Ok(took)
}

/// Plays every outage, those of the servers one after the other.
///
/// # Errors
/// Never but where the harness is at fault.
pub async fn run(world: &World, with_servers: bool, parallel: usize) -> anyhow::Result<Tally> {
    use futures::StreamExt as _;
    let started = Instant::now();
    let mut tally = Tally::new("outages");
    let (alone, together): (Vec<_>, Vec<_>) = all().into_iter().partition(Outage::is_of_all);
    let results: Vec<_> = futures::stream::iter(together)
        .map(|outage| async move { (outage.play(world).await, outage) })
        .buffer_unordered(parallel)
        .collect()
        .await;
    let mut longest = Duration::ZERO;
    let mut take = |outage: &Outage, result: anyhow::Result<Duration>| {
        tally.count();
        match result {
            Ok(took) => {
                println!("  {outage}: recovered within {:.1} s", took.as_secs_f64());
                longest = longest.max(took);
            }
            Err(error) => tally.violation(&outage.to_string(), &format!("{error:#}")),
        }
    };
    for (result, outage) in results {
        take(&outage, result);
    }
    if with_servers {
        for outage in alone {
            let result = outage.play(world).await;
            take(&outage, result);
        }
    }
    tally.note(format!("recovered within {:.1} s", longest.as_secs_f64()));
    tally.took(started.elapsed());
    Ok(tally)
}

/// Plays one outage again.
///
/// # Errors
/// What is wrong.
pub async fn replay(world: &World, outage: &Outage) -> anyhow::Result<()> {
    let took = outage.play(world).await?;
    println!("recovered within {took:?}");
    Ok(())
}
