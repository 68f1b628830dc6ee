//! Worlds that are written down, each so that one way to go wrong cannot pass: what must come of it is counted in the ledger of
//! tokens and read in the store.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;

use jiff::Timestamp;
use moneygo_operator::crd::Reason;
use moneygo_operator::grants::MOST_TOLD;
use moneygo_simulation::node::{Node, token_clients};
use moneygo_simulation::run::alone;
use moneygo_simulation::scenario::{self, calm};
use moneygo_simulation::schedule::{Away, Blow, Disturbance, Setting, Trigger, What};
use moneygo_simulation::store::Kind;
use moneygo_simulation::time::{self, DAY, HOUR, MINUTE, Millis, SECOND};
use moneygo_simulation::world::{Shared, World, credentials_name, lock, object_name, target_name, text_of};
use serde_json::Value;

/// How long the nodes are run before anything is looked at: less than a request takes there and back.
const STEP: Millis = 20;
/// Nothing that is waited for takes as long.
const PATIENCE: Millis = HOUR;
/// Object and client of every world here.
const OBJECT: usize = 0;

/// A world and its replicas, under way.
struct Play {
    world: Shared,
    nodes: Vec<Node>,
    now: Millis,
}

/// Plays to the end of a script. It begins with the first token in its Secret.
fn play(setting: Setting, script: impl FnOnce(&mut Play) + Send) {
    play_from_the_start(setting, |play| {
        play.until("the first token", |world| token(world) == Some(1) && ready(world).0 == "True");
        script(play);
    });
}

fn play_from_the_start(setting: Setting, script: impl FnOnce(&mut Play) + Send) {
    alone(|| {
        time::reset();
        let clients = token_clients()?;
        let replicas = setting.replicas;
        let world: Shared = std::sync::Arc::new(std::sync::Mutex::new(World::new(setting, Vec::new(), false)));
        let nodes = clients.into_iter().take(replicas).enumerate();
        let nodes = nodes.map(|(index, client)| Node::new(world.clone(), index, client)).collect();
        lock(&world).begin();
        let mut play = Play { world, nodes, now: 0 };
        script(&mut play);
        assert_eq!(lock(&play.world).violation, None);
        Ok(())
    })
    .unwrap();
}

impl Play {
    fn go(&mut self, length: Millis) {
        let end = self.now + length;
        while self.now < end {
            self.now = (self.now + STEP).min(end);
            for node in &mut self.nodes {
                node.run_until(self.now).unwrap();
            }
        }
    }

    fn until(&mut self, what: &str, is_so: impl Fn(&World) -> bool) {
        let end = self.now + PATIENCE;
        while !is_so(&lock(&self.world)) {
            assert!(self.now < end, "never: {what}");
            self.go(STEP);
        }
    }

    /// Returns its place, for its end.
    fn begin(&mut self, what: What, lasts: Millis) -> usize {
        let mut world = lock(&self.world);
        let place = world.disturbances.len();
        world.disturbances.push(Disturbance { at: self.now, lasts, what });
        world.active.push(false);
        world.begin_disturbance(place, self.now);
        world.pulse.notify_waiters();
        place
    }

    fn end(&mut self, place: usize) {
        let mut world = lock(&self.world);
        world.end_disturbance(place, self.now);
        world.pulse.notify_waiters();
    }

    /// The number of the token in the target, and how many were granted.
    fn token_of_grants(&self) -> (Option<usize>, usize) {
        let world = lock(&self.world);
        (token(&world), world.provider.grants.len())
    }

    /// Makes a second token come while the API server is away, so that it cannot be written. Returns the outage's place.
    fn grant_in_an_outage(&mut self, how: Away) -> usize {
        let slow = self.begin(What::EndpointSlow(8 * SECOND), HOUR);
        self.until("a request for the second token", |world| posts(world) == 2);
        let outage = self.begin(What::ApiAway(None, how), HOUR);
        assert_eq!(self.token_of_grants(), (Some(1), 1), "the API server is away before the token comes");
        self.until("the second grant", |world| world.provider.grants.len() == 2);
        self.end(slow);
        self.go(2 * SECOND);
        assert_eq!(self.token_of_grants(), (Some(1), 2), "it could not be written");
        outage
    }
}

fn token(world: &World) -> Option<usize> {
    let secret = world.store.get(Kind::Secret, &target_name(OBJECT))?;
    text_of(&secret["data"]["access_token"])?.strip_prefix("token-canary-")?.parse().ok()
}

fn posts(world: &World) -> usize {
    world.nodes.iter().map(|node| node.posts.len()).sum()
}

fn status(world: &World) -> Value {
    status_of(world, OBJECT)
}

fn status_of(world: &World, object: usize) -> Value {
    world.store.get(Kind::Credential, &object_name(object)).map_or(Value::Null, |object| object["status"].clone())
}

/// The condition's status and reason.
fn ready(world: &World) -> (String, String) {
    ready_of(world, OBJECT)
}

fn ready_of(world: &World, object: usize) -> (String, String) {
    let status = status_of(world, object);
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    let ready = conditions.into_iter().find(|condition| condition["type"] == "Ready").unwrap_or_default();
    let text = |field: &str| ready[field].as_str().unwrap_or_default().to_owned();
    (text("status"), text("reason"))
}

#[test]
fn a_new_leader_whose_watches_are_behind_reads_before_it_asks() {
    let setting = Setting { replicas: 2, lease_secs: 6, ..calm(1, 10 * MINUTE) };
    play(setting, |play| {
        play.go(5 * MINUTE);
        let behind = [Kind::Secret, Kind::Credential].map(|kind| play.begin(What::WatchBehind(kind, false), HOUR));
        play.until("the second token", |world| token(world) == Some(2));
        play.go(2 * SECOND);
        let leader = lock(&play.world).nodes.iter().position(|node| node.posts.len() == 2).unwrap();
        // The other one believes that the first token is there still, and due.
        play.begin(What::Strike(leader, Blow::Crash, Trigger::Now), DAY);
        play.go(MINUTE);
        assert_eq!(play.token_of_grants(), (Some(2), 2));
        for place in behind {
            play.end(place);
        }
        play.until("the third token", |world| token(world) == Some(3));
        assert_eq!(lock(&play.world).nodes[1 - leader].posts.len(), 1, "the other led");
    });
}

#[test]
fn a_token_that_a_clock_says_has_expired_is_replaced_within_seconds_of_the_jump() {
    play(calm(1, HOUR), |play| {
        play.go(10 * MINUTE);
        let ahead = 2 * HOUR;
        play.begin(What::ClockWrong(0, i64::try_from(ahead).unwrap()), DAY);
        play.go(15 * SECOND);
        assert_eq!(play.token_of_grants(), (Some(2), 2));
    });
}

#[test]
fn a_token_whose_write_finds_no_api_server_is_written_as_soon_as_there_is_one() {
    for how in [Away::Refused, Away::Status(500), Away::Status(503)] {
        play(calm(1, 100 * SECOND), |play| {
            let outage = play.grant_in_an_outage(how);
            play.end(outage);
            play.go(12 * SECOND);
            assert_eq!(play.token_of_grants(), (Some(2), 2), "{how:?}");
        });
    }
}

#[test]
fn a_stop_waits_for_the_token_that_is_not_written_yet() {
    play(calm(1, 100 * SECOND), |play| {
        let outage = play.grant_in_an_outage(Away::Refused);
        play.begin(What::Strike(0, Blow::Stop, Trigger::Now), MINUTE);
        play.go(SECOND);
        play.end(outage);
        play.go(SECOND);
        assert_eq!(play.token_of_grants(), (Some(2), 2));
    });
}

#[test]
fn what_it_wrote_into_the_status_counts_before_the_watch_shows_it() {
    play(calm(1, HOUR), |play| {
        play.begin(What::WatchBehind(Kind::Credential, false), HOUR);
        play.begin(What::TokenEdited(OBJECT), 0);
        play.until("another token, and the status of it", |world| token(world) == Some(2) && ready(world).0 == "True");
        play.go(5 * SECOND);
        // The status is to name the new version: one written in place of the version that the watch shows would meet a conflict each time.
        play.begin(What::CredentialsTouched(OBJECT), 0);
        play.go(5 * SECOND);
        let world = lock(&play.world);
        let version = &world.store.get(Kind::Secret, &credentials_name(OBJECT)).unwrap()["metadata"]["resourceVersion"];
        assert_eq!(status(&world)["observedCredentials"]["resourceVersion"], *version);
        assert_eq!(world.provider.grants.len(), 2);
    });
}

#[test]
fn a_token_that_was_edited_while_no_operator_ran_is_replaced_at_the_start() {
    play(calm(1, HOUR), |play| {
        play.begin(What::Strike(0, Blow::Crash, Trigger::Now), MINUTE);
        play.go(10 * SECOND);
        play.begin(What::TokenEdited(OBJECT), 0);
        assert_eq!(play.token_of_grants(), (None, 1));
        play.go(3 * MINUTE);
        assert_eq!(play.token_of_grants(), (Some(2), 2));
    });
}

#[test]
fn a_token_is_replaced_each_time_that_it_is_edited() {
    play(calm(1, HOUR), |play| {
        for number in 2..=4 {
            play.go(MINUTE);
            play.begin(What::TokenEdited(OBJECT), 0);
            assert_eq!(play.token_of_grants(), (None, number - 1));
            play.go(5 * SECOND);
            assert_eq!(play.token_of_grants(), (Some(number), number));
        }
    });
}

#[test]
fn what_is_seen_while_the_secrets_are_read_is_heeded_before_a_token_is_asked_for() {
    play(calm(1, 100 * SECOND), |play| {
        let refresh_at: Timestamp = status(&lock(&play.world))["refreshAt"].as_str().unwrap().parse().unwrap();
        let due: Millis = time::true_time(refresh_at).try_into().unwrap();
        play.begin(What::ApiSlow(4 * SECOND), HOUR);
        play.go(due + 100 - play.now);
        let suspension = play.begin(What::Suspended(OBJECT), HOUR);
        play.go(20 * SECOND);
        assert_eq!((play.token_of_grants(), posts(&lock(&play.world))), ((Some(1), 1), 1));
        play.end(suspension);
        play.until("another token", |world| token(world) == Some(2));
    });
}

#[test]
fn the_status_of_a_suspended_object_says_so_when_its_token_expires() {
    play(calm(1, 100 * SECOND), |play| {
        play.begin(What::Suspended(OBJECT), HOUR);
        let expires = lock(&play.world).provider.grants[0].expires;
        let is_ready = ("True".to_owned(), Reason::TokenValid.as_str().to_owned());
        let has_expired = ("False".to_owned(), Reason::TokenExpired.as_str().to_owned());
        play.go(expires - 2 * SECOND - play.now);
        assert_eq!(ready(&lock(&play.world)), is_ready);
        play.go(3 * SECOND);
        assert_eq!(ready(&lock(&play.world)), has_expired);
        assert_eq!(play.token_of_grants(), (Some(1), 1));
    });
}

#[test]
fn a_refused_client_is_asked_for_at_most_24_times_a_day_and_at_once_when_it_is_corrected() {
    let outcome = scenario::refused(&token_clients().unwrap(), DAY).unwrap();
    assert_eq!(outcome.violation, None);
    let days = 10;
    assert!((days..=24 * days).contains(&outcome.counts.posts), "{} requests", outcome.counts.posts);
}

#[test]
fn a_crowd_is_no_flood() {
    let crowd = scenario::crowd(&token_clients().unwrap(), 500).unwrap();
    assert!(crowd.expired > 100 && crowd.expired < 400, "{crowd:?}");
}

#[test]
fn of_hundreds_that_wait_behind_a_slow_endpoint_those_in_the_middle_say_so_after_two_minutes() {
    const OBJECTS: usize = 1200;
    // Sixteen are asked for at once, each answered within eight seconds. Were it the limiter that they wait for, they would say so
    // at once.
    let setting = Setting { rate: 1000, token_delay: 4 * SECOND, ..calm(OBJECTS, 30 * DAY) };
    play_from_the_start(setting, |play| {
        let absent = (0..OBJECTS).map(|object| play.begin(What::Recreated(object), MINUTE)).collect::<Vec<_>>();
        play.go(5 * SECOND);
        for place in absent {
            play.end(place);
        }
        let told = |world: &World| (0..OBJECTS).filter(|object| waits(world, *object)).collect::<Vec<_>>();
        play.go(2 * MINUTE);
        assert!(told(&lock(&play.world)).is_empty());
        play.until("someone says that it waits", |world| !told(world).is_empty());
        // There is a heartbeat every ten seconds.
        assert!(play.now < 131 * SECOND, "called at a heartbeat, it does not wait for more: {}", play.now);
        play.go(SECOND);
        let first = told(&lock(&play.world));
        assert_eq!(first.len(), MOST_TOLD);
        let served = |world: &World| world.provider.grants.len();
        let before = served(&lock(&play.world));
        play.go(MINUTE);
        let world = lock(&play.world);
        assert!(served(&world) >= before + 100, "{} after {before}", served(&world));
        assert!(first.iter().all(|object| waits(&world, *object)), "who is about to be served is not bothered with it");
        let untold = (0..OBJECTS).filter(|object| !waits(&world, *object) && !has_token(&world, *object)).count();
        assert!(untold <= 16, "all others that wait have said so since: {untold}");
    });
}

#[test]
fn who_waits_as_an_outage_begins_says_so_within_minutes() {
    const OBJECTS: usize = 400;
    // The limiter lets one through each second: the others say soon that they wait.
    let setting = Setting { rate: 1, ..calm(OBJECTS, 30 * DAY) };
    play_from_the_start(setting, |play| {
        // What those say that have no token.
        let said = |play: &Play| -> BTreeSet<String> {
            let world = lock(&play.world);
            let without = (0..OBJECTS).filter(|object| !has_token(&world, *object));
            without.map(|object| ready_of(&world, object).1).collect()
        };
        play.go(10 * SECOND);
        assert!(said(play).contains("Pending"));
        play.begin(What::EndpointAway(Away::Refused), HOUR);
        // Two minutes, two heartbeats of 200, and what it takes to know of the outage.
        play.go(2 * MINUTE + 30 * SECOND);
        assert_eq!(said(play), BTreeSet::from(["EndpointUnavailable".to_owned()]));
    });
}

fn waits(world: &World, object: usize) -> bool {
    ready_of(world, object) == ("False".to_owned(), "Pending".to_owned())
}

fn has_token(world: &World, object: usize) -> bool {
    world.store.get(Kind::Secret, &target_name(object)).is_some()
}
