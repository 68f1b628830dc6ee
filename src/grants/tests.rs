use std::cell::Cell;

use fake_moneygo::{FakeMoneyGo, Script};
use tokio::sync::mpsc::{self, UnboundedReceiver};

use super::*;
use crate::clock::Clock;
use crate::schedule::add;
use crate::token::{TokenClientConfig, Unavailability};

type Key = &'static str;

fn start() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn in_secs(secs: i64) -> Timestamp {
    add(wall(), jiff::SignedDuration::from_secs(secs))
}

thread_local! {
    static BEGUN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// A wall clock in step with tokio's, which stands still while it is paused.
fn wall() -> Timestamp {
    let begun = BEGUN.get().unwrap_or_else(Instant::now);
    BEGUN.set(Some(begun));
    add(start(), jiff::SignedDuration::try_from(begun.elapsed()).unwrap())
}

fn token_client(url: &str) -> TokenClient {
    let timeout = Duration::from_secs(20);
    let config = TokenClientConfig { url: url.to_owned(), allow_insecure: false, ca_file: None, timeout };
    TokenClient::new(&config, Clock::new(wall, || Duration::ZERO)).unwrap()
}

fn limits(per_second: f64, concurrency: u16) -> Limits {
    let between = Duration::from_secs_f64(1.0 / per_second);
    Limits { between, concurrency: NonZeroU16::new(concurrency).unwrap() }
}

/// A queue whose `run` is running, and whom it calls.
struct Queue {
    grants: Arc<Grants<Key>>,
    calls: UnboundedReceiver<Key>,
    running: tokio::task::JoinHandle<()>,
}

impl Queue {
    fn at(url: &str, limits: Limits) -> Self {
        wall();
        let grants = Grants::new(token_client(url), limits, Clock::new(wall, || Duration::ZERO));
        let (call, calls) = mpsc::unbounded_channel();
        let queue = Arc::clone(&grants);
        let running = tokio::spawn(async move { queue.run(|key| _ = call.send(*key)).await });
        Self { grants, calls, running }
    }

    /// One that makes no request.
    fn new(per_second: f64, concurrency: u16) -> Self {
        Self::at("http://127.0.0.1:9/token", limits(per_second, concurrency))
    }

    /// Whoever was called by now.
    async fn called(&mut self) -> Vec<Key> {
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
        std::iter::from_fn(|| self.calls.try_recv().ok()).collect()
    }

    /// Who is called next, and after how many milliseconds.
    async fn next(&mut self) -> (Key, u128) {
        let before = Instant::now();
        let called = tokio::time::timeout(Duration::from_mins(2), self.calls.recv()).await;
        (called.expect("a call").expect("a queue that runs"), before.elapsed().as_millis())
    }

    #[track_caller]
    fn admit(&self, key: Key, urgency: Timestamp) -> Permit<Key> {
        self.grants.admit(&key, urgency).expect("a permit")
    }

    #[track_caller]
    fn enqueue(&self, key: Key, urgency: Timestamp) {
        assert!(self.grants.admit(&key, urgency).is_none(), "{key} should wait");
    }

    /// As a request that fails, or is answered, would end.
    fn fails(&self, permit: Permit<Key>) -> Blame {
        let blame = self.grants.failed(&permit.key);
        drop(permit);
        blame
    }

    fn answers(&self, permit: Permit<Key>) {
        self.grants.answered(&permit.key);
        drop(permit);
    }

    /// Two clients meet an endpoint that is down.
    #[track_caller]
    fn break_down(&self) {
        let (one, other) = (self.admit("x", wall()), self.admit("y", wall()));
        assert_eq!(self.fails(one), Blame::Endpoint);
        assert!(!self.grants.is_outage());
        assert_eq!(self.fails(other), Blame::Outage);
        assert!(self.grants.is_outage());
    }
}

/// So fast that no start waits for another.
const FAST: f64 = 1e12;

// ---- The queue -------------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn the_token_that_ends_first_goes_first() {
    let mut queue = Queue::new(FAST, 1);
    let permit = queue.admit("first", in_secs(500));
    for (key, ends_in) in [("c", 300), ("a", 100), ("e", -10), ("b", 200), ("d", 200)] {
        queue.enqueue(key, in_secs(ends_in));
    }
    assert_eq!(queue.called().await, Vec::<Key>::new());
    drop(permit);
    for expected in ["e", "a", "b", "d", "c"] {
        let (key, _) = queue.next().await;
        assert_eq!(key, expected);
        drop(queue.admit(key, wall()));
    }
}

#[tokio::test(start_paused = true)]
async fn of_newcomers_the_last_takes_every_other_turn() {
    let mut queue = Queue::new(FAST, 1);
    let permit = queue.admit("first", in_secs(500));
    for (key, since) in [("a", -40), ("b", -30), ("c", -20), ("d", -20)] {
        assert!(queue.grants.enqueue(&key, Urgency::New(in_secs(since))));
    }
    queue.enqueue("living", in_secs(100));
    queue.enqueue("ended", in_secs(-35));
    drop(permit);
    let mut turns = Vec::new();
    for _ in 0..3 {
        let (key, _) = queue.next().await;
        turns.push(key);
        if turns.len() == 2 {
            assert!(queue.grants.enqueue(&"new", Urgency::New(wall())));
        }
        drop(queue.admit(key, wall()));
    }
    assert_eq!(turns, ["a", "d", "ended"], "of two of the same age, the later is the last");
    for expected in ["new", "b", "c", "living"] {
        let (key, _) = queue.next().await;
        assert_eq!(key, expected);
        drop(queue.admit(key, wall()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_turn_whose_time_comes_while_the_queue_is_looked_at_is_not_slept_through() {
    let queue = Queue::new(1.0, 2);
    queue.running.abort();
    let limits = limits(1.0, 2);
    let first = queue.admit("first", wall());
    queue.enqueue("second", wall());
    assert!(queue.grants.state().next_turns(limits).is_empty(), "the limiter lets one through a second");
    // The clock does not wait: between the look at the queue and the choice of when to look again, that second ends.
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(queue.grants.state().wake_at(limits), Some(Instant::now()));
    assert_eq!(queue.grants.state().next_turns(limits), ["second"]);
    // Where everyone who may ask does, whoever ends wakes it.
    queue.enqueue("third", wall());
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(queue.grants.state().wake_at(limits), Some(Instant::now() + COLLECT_WITHIN - Duration::from_secs(1)));
    drop(first);
    assert_eq!(queue.grants.state().wake_at(limits), Some(Instant::now()));
}

#[tokio::test(start_paused = true)]
async fn who_is_known_to_need_a_token_is_queued_at_once_where_the_queue_is_short() {
    let mut queue = Queue::new(1.0, 1);
    assert!(queue.grants.enqueue(&"a", in_secs(-9)), "it is called when its turn comes, which is now");
    assert_eq!(queue.called().await, ["a"]);
    assert!(!queue.grants.enqueue(&"a", in_secs(-9)), "it was called already");
    for key in ["b", "c", "d", "e", "f"] {
        assert!(queue.grants.enqueue(&key, in_secs(-9)), "{key}");
        let expected = if key == "f" { Wait::Long } else { Wait::Short };
        assert_eq!(queue.grants.wait_of(&key), expected, "{key}");
    }
    let newcomer = Urgency::New(in_secs(-9));
    assert!(!queue.grants.enqueue(&"g", newcomer), "more than the limiter takes in five seconds: it is to say so");
    assert!(!queue.grants.has(&"g") && queue.grants.has(&"f"));
    assert!(queue.grants.enqueue(&"g", in_secs(9)), "whose token lives has nothing to say");
    queue.grants.withdraw(&"g");
    assert_eq!(queue.grants.wait_of(&"b"), Wait::Long);
    assert_eq!(queue.grants.overlong(), Vec::<Key>::new());
}

#[tokio::test(start_paused = true)]
async fn who_has_waited_for_two_minutes_is_to_say_so() {
    let queue = Queue::new(FAST, 1);
    let _permit = queue.admit("first", in_secs(500));
    for key in ["a", "b"] {
        queue.enqueue(key, in_secs(-1));
        assert_eq!(queue.grants.wait_of(&key), Wait::Short);
    }
    queue.grants.has_said(&"b", Saying::IsAskedFor);
    tokio::time::advance(LONG_WAIT).await;
    for key in ["a", "b"] {
        queue.enqueue(key, in_secs(-2));
        assert_eq!(queue.grants.wait_of(&key), Wait::Overlong, "another urgency begins no other wait");
    }
    assert_eq!(queue.grants.overlong(), ["a"], "who has said so is not called for it");
    assert_eq!(queue.grants.overlong(), Vec::<Key>::new(), "once");
    queue.grants.withdraw(&"a");
    assert_eq!(queue.grants.overlong(), Vec::<Key>::new());
}

#[tokio::test(start_paused = true)]
async fn who_has_said_so_before_an_outage_begins_is_to_say_so_again_and_its_end_is_told_by_tokens() {
    let queue = Queue::new(FAST, 3);
    let _permit = queue.admit("first", in_secs(500));
    let [one, other] = ["x", "y"].map(|key| queue.admit(key, wall()));
    // Of "edited" the annotations tell of a token that would live.
    for (key, urgency) in [("a", in_secs(-1)), ("b", in_secs(-1)), ("edited", in_secs(50)), ("living", in_secs(3600))] {
        queue.enqueue(key, urgency);
    }
    for (key, saying) in [("a", Saying::IsAskedFor), ("edited", Saying::IsAskedFor), ("living", Saying::Nothing)] {
        queue.grants.has_said(&key, saying);
    }
    tokio::time::advance(LONG_WAIT).await;
    assert_eq!(queue.grants.overlong(), ["b"]);
    for _ in 0..2 {
        assert_eq!(queue.grants.overlong(), Vec::<Key>::new());
    }
    assert_eq!([queue.fails(one), queue.fails(other)], [Blame::Endpoint, Blame::Outage]);
    queue.grants.has_said(&"b", Saying::EndpointIsDown);
    assert_eq!(queue.grants.overlong(), ["a", "edited"], "of the outage; whose token lives has nothing to say");
    queue.grants.answered(&"x");
    assert_eq!(queue.grants.overlong(), Vec::<Key>::new(), "what they have said stands until there is a token");
    queue.grants.has_said(&"living", Saying::IsAskedFor);
    tokio::time::advance(Duration::from_secs(1)).await;
    let fails = |key| queue.grants.failed(&key);
    assert_eq!(["x", "y"].map(fails), [Blame::Endpoint, Blame::Outage]);
    assert_eq!(queue.grants.overlong(), ["living"], "its token has ended; the others have told of an outage");
}

#[tokio::test(start_paused = true)]
async fn of_thousands_that_have_waited_for_two_minutes_few_say_so_at_a_time_and_first_those_who_go_on_waiting() {
    let names: Vec<String> = (0..2 * MOST_TOLD + 2).map(|number| format!("{number:05}")).collect();
    let keys: Vec<Key> = names.into_iter().map(|name| &*name.leak()).collect();
    let queue = Queue::new(FAST, 1);
    let _permit = queue.admit("first", in_secs(500));
    for key in &keys {
        queue.enqueue(key, in_secs(-1));
    }
    tokio::time::advance(LONG_WAIT).await;
    let (front, back) = (MOST_TOLD / 2 + 1, MOST_TOLD * 3 / 2 + 1);
    assert_eq!(queue.grants.overlong(), keys[front..back], "the middle, which is served last");
    assert_eq!(queue.grants.overlong(), [&keys[1..front], &keys[back..keys.len() - 1]].concat(), "outwards from it");
    assert_eq!(queue.grants.overlong(), [keys[0], keys[keys.len() - 1]]);
    assert_eq!(queue.grants.overlong(), Vec::<Key>::new(), "each once");
}

#[tokio::test(start_paused = true)]
async fn an_object_waits_once_with_its_latest_urgency() {
    let mut queue = Queue::new(FAST, 1);
    let permit = queue.admit("first", in_secs(500));
    queue.enqueue("a", in_secs(300));
    queue.enqueue("b", in_secs(200));
    queue.enqueue("a", in_secs(100));
    drop(permit);
    for expected in ["a", "b"] {
        let (key, _) = queue.next().await;
        assert_eq!(key, expected);
        drop(queue.admit(key, wall()));
    }
    tokio::time::sleep(Duration::from_mins(1)).await;
    assert_eq!(queue.called().await, Vec::<Key>::new(), "a is not called twice");
}

#[tokio::test(start_paused = true)]
async fn no_more_than_the_concurrency_are_out_at_once() {
    let mut queue = Queue::new(FAST, 3);
    let mut out = Vec::new();
    for key in ["a", "b", "c"] {
        out.push(queue.admit(key, wall()));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for key in ["d", "e", "f"] {
        queue.enqueue(key, in_secs(9999));
    }
    tokio::time::sleep(Duration::from_hours(1)).await;
    assert_eq!(queue.called().await, Vec::<Key>::new());
    out.truncate(1);
    assert_eq!([queue.next().await.0, queue.next().await.0], ["d", "e"]);
    assert_eq!(queue.called().await, Vec::<Key>::new());
}

#[tokio::test(start_paused = true)]
async fn no_more_than_the_rate_start() {
    let mut queue = Queue::new(20.0, 100);
    drop(queue.admit("0", wall()));
    let names = ["1", "2", "3", "4", "5"];
    for name in names {
        queue.enqueue(name, in_secs(9999));
    }
    for name in names {
        let (key, waited_ms) = queue.next().await;
        assert_eq!(key, name);
        assert!((50..=51).contains(&waited_ms), "{waited_ms} ms");
        drop(queue.admit(key, wall()));
    }
    tokio::time::sleep(Duration::from_mins(1)).await;
    drop(queue.admit("late", wall()));
    queue.enqueue("later", wall());
    assert!(queue.next().await.1 >= 50, "idle time is not saved up");
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_does_not_overtake_those_that_wait() {
    let mut queue = Queue::new(1.0, 1);
    drop(queue.admit("first", wall()));
    queue.enqueue("urgent", in_secs(-5));
    tokio::time::advance(Duration::from_secs(2)).await;
    queue.enqueue("newcomer", in_secs(100));
    assert_eq!(queue.next().await.0, "urgent");
}

#[tokio::test(start_paused = true)]
async fn who_is_withdrawn_is_not_called_and_gives_its_place_on() {
    let mut queue = Queue::new(FAST, 1);
    let permit = queue.admit("first", wall());
    for (key, ends_in) in [("a", 100), ("b", 200), ("c", 300)] {
        queue.enqueue(key, in_secs(ends_in));
    }
    queue.grants.withdraw(&"a");
    drop(permit);
    assert_eq!(queue.next().await.0, "b");
    queue.grants.forget(&"b");
    let (key, waited_ms) = queue.next().await;
    assert_eq!(key, "c");
    assert!(waited_ms < 10, "called, and gone: its permit goes on at once, after {waited_ms} ms");
    queue.grants.withdraw(&"never seen");
}

#[tokio::test(start_paused = true)]
async fn a_permit_that_is_not_collected_goes_to_the_next() {
    let mut queue = Queue::new(FAST, 1);
    let permit = queue.admit("first", wall());
    queue.enqueue("slow", in_secs(100));
    queue.enqueue("next", in_secs(200));
    drop(permit);
    assert_eq!(queue.next().await.0, "slow");
    let (key, waited_ms) = queue.next().await;
    assert_eq!(key, "next");
    assert!((10_000..10_010).contains(&waited_ms), "{waited_ms} ms");
    queue.enqueue("slow", in_secs(100));
    drop(queue.admit("next", wall()));
    assert_eq!(queue.next().await.0, "slow", "it waits anew");
    drop(queue.admit("slow", wall()));
    drop(queue.admit("more", wall()));
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_is_closed_calls_nobody_and_ends() {
    let mut queue = Queue::new(FAST, 2);
    let permit = queue.admit("out", wall());
    let other = queue.admit("other", in_secs(1));
    queue.enqueue("a", in_secs(2));
    assert!(queue.grants.admit_last(&"holder").is_none(), "it waits like everyone, while the queue is open");
    queue.grants.close(Instant::now() + ANSWERS_WITHIN * 2);
    drop(other);
    (&mut queue.running).await.unwrap();
    assert_eq!(queue.called().await, Vec::<Key>::new());
    assert!(queue.grants.admit(&"b", wall()).is_none());
    let last = queue.grants.admit_last(&"holder").expect("one place is free");
    assert!(queue.grants.admit_last(&"another").is_none(), "no more at once than ever");
    drop(last);
    assert_eq!(queue.grants.load().under_way, 1);
    tokio::time::advance(ANSWERS_WITHIN + Duration::from_millis(1)).await;
    assert!(queue.grants.admit_last(&"late").is_none(), "its answer would come too late");
    queue.answers(permit);
    queue.grants.run(|_| panic!("closed")).await;
}

// ---- The endpoint's health -------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_failure_is_the_clients_where_others_are_answered_and_the_endpoints_where_nobody_knows() {
    let queue = Queue::new(FAST, 10);
    let step = || tokio::time::sleep(Duration::from_millis(10));
    for _ in 0..3 {
        assert_eq!(queue.fails(queue.admit("a", wall())), Blame::Endpoint, "however often, it is one client");
        step().await;
    }
    queue.answers(queue.admit("b", wall()));
    step().await;
    assert_eq!(queue.fails(queue.admit("a", wall())), Blame::Client);
    queue.grants.withdraw(&"a");
    step().await;
    assert_eq!(queue.fails(queue.admit("a", wall())), Blame::Endpoint, "nobody has been answered since");
    step().await;
    queue.answers(queue.admit("b", wall()));
    queue.grants.withdraw(&"a");
    step().await;
    assert_eq!(queue.fails(queue.admit("a", wall())), Blame::Client, "a look in between forgets nothing");
    queue.answers(queue.admit("a", wall()));
    step().await;
    assert_eq!(queue.fails(queue.admit("a", wall())), Blame::Endpoint, "it was answered, so this is a new failure");
    queue.grants.forget(&"a");
    step().await;
    assert_eq!(queue.fails(queue.admit("b", wall())), Blame::Endpoint, "one that is gone is no witness");
    assert!(!queue.grants.is_outage());
}

/// It failed once, others were answered, and then nobody was any more.
#[tokio::test(start_paused = true)]
async fn who_failed_before_an_outage_is_a_witness_of_it() {
    let queue = Queue::new(FAST, 10);
    let step = || tokio::time::sleep(Duration::from_millis(10));
    assert_eq!(queue.fails(queue.admit("a", wall())), Blame::Endpoint);
    step().await;
    queue.answers(queue.admit("c", wall()));
    step().await;
    assert_eq!(queue.fails(queue.admit("a", wall())), Blame::Client);
    step().await;
    assert_eq!(queue.fails(queue.admit("a", wall())), Blame::Endpoint);
    step().await;
    assert_eq!(queue.fails(queue.admit("c", wall())), Blame::Outage);
}

#[tokio::test(start_paused = true)]
async fn two_that_are_broken_each_by_itself_are_no_outage() {
    let queue = Queue::new(FAST, 10);
    let step = || tokio::time::sleep(Duration::from_millis(10));
    for key in ["a", "b"] {
        queue.fails(queue.admit(key, wall()));
        step().await;
        queue.answers(queue.admit("c", wall()));
        step().await;
        assert_eq!(queue.fails(queue.admit(key, wall())), Blame::Client, "{key}");
        step().await;
    }
    for (key, blame) in [("a", Blame::Client), ("b", Blame::Endpoint), ("a", Blame::Endpoint), ("b", Blame::Endpoint)] {
        assert_eq!(queue.fails(queue.admit(key, wall())), blame, "{key}");
        step().await;
    }
    assert_eq!(queue.fails(queue.admit("c", wall())), Blame::Outage, "it was well, and is not answered either");
}

#[tokio::test(start_paused = true)]
async fn failures_with_an_answer_between_them_are_no_outage() {
    let queue = Queue::new(FAST, 10);
    for (key, expected) in [("a", Blame::Endpoint), ("c", Blame::Endpoint), ("d", Blame::Endpoint)] {
        assert_eq!(queue.fails(queue.admit(key, wall())), expected, "{key}");
        tokio::time::sleep(Duration::from_millis(10)).await;
        queue.answers(queue.admit("b", wall()));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!queue.grants.is_outage());
    assert_eq!(queue.grants.recovered_at(), None);
}

#[tokio::test(start_paused = true)]
async fn while_the_endpoint_is_down_one_probe_at_a_time_is_made_every_5_to_30_s() {
    let mut queue = Queue::new(FAST, 10);
    tokio::time::sleep(Duration::from_millis(10)).await;
    let first = queue.admit("x", wall());
    tokio::time::sleep(Duration::from_millis(10)).await;
    let second = queue.admit("y", wall());
    queue.fails(first);
    assert_eq!(queue.fails(second), Blame::Outage);
    // All have expired: there is nothing to hurry for.
    for key in ["a", "b", "c"] {
        queue.enqueue(key, in_secs(-100));
    }
    let mut waits = Vec::new();
    for _ in 0..6 {
        let (key, waited_ms) = queue.next().await;
        waits.push(waited_ms / 1000);
        let probe = queue.admit(key, in_secs(-100));
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(queue.called().await, Vec::<Key>::new(), "a second probe");
        assert_eq!(queue.fails(probe), Blame::Outage);
        queue.enqueue(key, in_secs(-100));
    }
    assert_eq!(waits, [5, 10, 20, 30, 30, 30]);
}

#[tokio::test(start_paused = true)]
async fn requests_that_were_under_way_as_the_outage_began_do_not_put_off_the_probe() {
    let mut queue = Queue::new(FAST, 10);
    let mut under_way = Vec::new();
    for key in ["a", "b", "c", "d", "e", "f"] {
        under_way.push(queue.admit(key, wall()));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    for permit in under_way {
        queue.fails(permit);
    }
    queue.enqueue("g", in_secs(-1));
    let (_, waited_ms) = queue.next().await;
    assert!((5000..5010).contains(&waited_ms), "{waited_ms} ms");
}

#[tokio::test(start_paused = true)]
async fn a_probe_never_waits_longer_than_a_quarter_of_what_the_most_urgent_living_token_has_left() {
    // (the most urgent living one ends in s, the probe comes after ms)
    for (left_secs, expected_ms) in [(1000, 5000), (20, 5000), (12, 3000), (8, 2000), (4, 1000), (2, 1000), (1, 1000)] {
        let mut queue = Queue::new(FAST, 10);
        tokio::time::sleep(Duration::from_millis(10)).await;
        let (one, other) = (queue.admit("x", wall()), {
            tokio::time::sleep(Duration::from_millis(10)).await;
            queue.admit("y", wall())
        });
        queue.fails(one);
        queue.fails(other);
        queue.enqueue("expired", in_secs(-3));
        queue.enqueue("later", in_secs(5000));
        queue.enqueue("urgent", in_secs(left_secs));
        let (key, waited_ms) = queue.next().await;
        assert_eq!(key, "expired", "the order stays");
        assert!(waited_ms.abs_diff(expected_ms) < 10, "{left_secs} s left: {waited_ms} ms");
    }
}

/// When an object was made is no moment at which a token ends.
#[tokio::test(start_paused = true)]
async fn a_new_object_does_not_bring_the_probe_forward() {
    let mut queue = Queue::new(FAST, 10);
    queue.break_down();
    let made = in_secs(4);
    assert!(queue.grants.admit(&"new", Urgency::New(made)).is_none());
    let (_, waited_ms) = queue.next().await;
    assert!(waited_ms > 4900, "{waited_ms} ms");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_alone_is_refused_keeps_nobody_from_probing() {
    let mut queue = Queue::new(FAST, 10);
    queue.break_down();
    for (key, ends_in) in [("broken", -100), ("sound", 100_000), ("other", 200_000)] {
        queue.enqueue(key, in_secs(ends_in));
    }
    for key in ["broken", "sound", "other", "broken"] {
        assert_eq!(queue.next().await.0, key, "who failed last is the last to try again");
        assert_eq!(queue.fails(queue.admit(key, wall())), Blame::Outage);
        queue.enqueue(key, in_secs(if key == "broken" { -100 } else { 100_000 }));
    }
    assert_eq!(queue.next().await.0, "sound");
    queue.answers(queue.admit("sound", wall()));
    assert!(!queue.grants.is_outage());
}

#[tokio::test(start_paused = true)]
async fn who_failed_while_others_were_answered_does_not_prolong_an_outage() {
    let mut queue = Queue::new(FAST, 10);
    let step = || tokio::time::sleep(Duration::from_millis(10));
    step().await;
    assert_eq!(queue.fails(queue.admit("broken", wall())), Blame::Endpoint);
    step().await;
    queue.answers(queue.admit("sound", wall()));
    step().await;
    queue.break_down();
    queue.enqueue("broken", in_secs(-100));
    queue.enqueue("sound", in_secs(100_000));
    assert_eq!(queue.next().await.0, "sound", "it did not fail yet");
    assert_eq!(queue.fails(queue.admit("sound", wall())), Blame::Outage);
    assert_eq!(queue.next().await.0, "broken");
    assert_eq!(queue.fails(queue.admit("broken", wall())), Blame::Client);
    assert!(queue.grants.is_outage(), "nor does it end one");
}

#[tokio::test(start_paused = true)]
async fn the_first_answer_releases_all_at_the_limiters_pace() {
    let mut queue = Queue::new(10.0, 10);
    let one = queue.admit("x", wall());
    tokio::time::sleep(Duration::from_millis(100)).await;
    let other = queue.admit("y", wall());
    queue.fails(one);
    queue.fails(other);
    for key in ["a", "b", "c", "d"] {
        queue.enqueue(key, in_secs(-100));
    }
    let (key, _) = queue.next().await;
    let probe = queue.admit(key, wall());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let back_at = wall();
    queue.answers(probe);
    assert!(!queue.grants.is_outage());
    assert_eq!(queue.grants.recovered_at(), Some(back_at));
    let mut released = [queue.next().await.0, queue.next().await.0, queue.next().await.0];
    released.sort_unstable();
    assert_eq!(released, ["b", "x", "y"], "those that failed, and the first that waits");
    let mut waits = Vec::new();
    for _ in 0..2 {
        waits.push(queue.next().await.1);
    }
    assert!(waits.iter().all(|ms| ms.abs_diff(100) < 5), "{waits:?}");
    tokio::time::sleep(Duration::from_millis(100)).await;
    queue.grants.withdraw(&"b");
    assert_eq!(queue.fails(queue.admit("x", wall())), Blame::Endpoint, "what failed before is forgotten");
}

/// Each waits by itself, as long as its own failure has it, and that is over.
#[tokio::test(start_paused = true)]
async fn who_failed_before_an_outage_and_does_not_wait_here_is_called_as_it_ends() {
    let mut queue = Queue::new(FAST, 10);
    queue.break_down();
    queue.enqueue("y", in_secs(-100));
    queue.enqueue("a", in_secs(-50));
    let (key, _) = queue.next().await;
    assert_eq!(key, "a", "who has not failed so far");
    queue.answers(queue.admit(key, wall()));
    let mut called = queue.called().await;
    called.sort_unstable();
    assert_eq!(called, ["x", "y"], "each once: y's turn has come");
    queue.answers(queue.admit("y", wall()));
    assert_eq!(queue.called().await, Vec::<Key>::new());
}

#[tokio::test(start_paused = true)]
async fn a_probe_whose_object_is_gone_is_made_by_the_next() {
    let mut queue = Queue::new(FAST, 10);
    let one = queue.admit("x", wall());
    tokio::time::sleep(Duration::from_millis(10)).await;
    let other = queue.admit("y", wall());
    queue.fails(one);
    queue.fails(other);
    queue.enqueue("gone", in_secs(-100));
    queue.enqueue("next", in_secs(-50));
    assert_eq!(queue.next().await.0, "gone");
    queue.grants.forget(&"gone");
    assert_eq!(queue.next().await.0, "next");
}

#[tokio::test(start_paused = true)]
async fn who_comes_first_in_an_outage_waits_for_the_probes_time() {
    let mut queue = Queue::new(FAST, 10);
    queue.break_down();
    queue.enqueue("a", in_secs(-1));
    let (key, waited_ms) = queue.next().await;
    assert_eq!(key, "a");
    assert!((5000..5010).contains(&waited_ms), "{waited_ms} ms");
    queue.answers(queue.admit("a", wall()));
    drop(queue.admit("b", wall()));
}

// ---- A request -------------------------------------------------------------------------------------------------------

fn credentials(id: &str) -> ClientCredentials {
    ClientCredentials::new(id.to_owned(), "secret".to_owned())
}

#[tokio::test]
async fn a_request_tells_whose_failure_it_is() {
    let fake = FakeMoneyGo::builder().any_client().start().await.unwrap();
    let queue = Queue::at(&fake.token_url(), limits(FAST, 10));
    let ask = async |id: Key| queue.admit(id, wall()).request(&credentials(id), "api").await;
    fake.script("down", Script::status(503).forever());
    fake.script("down too", Script::status(500).forever());
    fake.script("limited", Script::status(429).forever());
    fake.script("refused", Script::status(401).forever());

    let (error, blame) = ask("down").await.unwrap_err();
    assert!(matches!(error, TokenError::Unavailable { cause: Unavailability::Reported, .. }));
    assert_eq!(blame, Blame::Endpoint);
    assert!(ask("well").await.is_ok());
    assert_eq!(ask("down").await.unwrap_err().1, Blame::Client);
    assert_eq!(ask("down too").await.unwrap_err().1, Blame::Endpoint);
    let (error, blame) = ask("limited").await.unwrap_err();
    assert!(matches!(error, TokenError::RateLimited { .. }));
    assert_eq!(blame, Blame::Client);
    assert_eq!(ask("refused").await.unwrap_err().1, Blame::Client, "whoever refuses is there");
    assert!(!queue.grants.is_outage());
}

#[tokio::test]
async fn clients_that_meet_a_dead_endpoint_one_after_the_other_tell_of_an_outage() {
    let fake = FakeMoneyGo::builder().any_client().start().await.unwrap();
    let queue = Queue::at(&fake.token_url(), limits(FAST, 10));
    let (one, other) = (queue.admit("a", wall()), queue.admit("b", wall()));
    let probe = queue.admit("c", wall());
    fake.script_all(Script::status(502).times(2));
    assert_eq!(one.request(&credentials("a"), "api").await.unwrap_err().1, Blame::Endpoint);
    assert_eq!(other.request(&credentials("b"), "api").await.unwrap_err().1, Blame::Outage);
    queue.enqueue("d", in_secs(100));
    assert!(probe.request(&credentials("c"), "api").await.is_ok());
    assert!(!queue.grants.is_outage() && queue.grants.recovered_at().is_some());
}

// ---- What is told of it ----------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn the_load_tells_who_waits_for_how_long_and_whether_anyone_is_answered() {
    let queue = Queue::new(FAST, 1);
    let load = || queue.grants.load();
    let idle = Load { waiting: 0, longest_wait: Duration::ZERO, under_way: 0, is_endpoint_up: true };
    assert_eq!(load(), idle);
    let permit = queue.admit("a", wall());
    queue.enqueue("b", in_secs(1));
    tokio::time::advance(Duration::from_secs(3)).await;
    queue.enqueue("c", in_secs(1));
    assert_eq!(load(), Load { waiting: 2, longest_wait: Duration::from_secs(3), under_way: 1, is_endpoint_up: true });
    queue.grants.withdraw(&"b");
    queue.grants.withdraw(&"c");
    assert_eq!(queue.fails(permit), Blame::Endpoint);
    assert_eq!(load(), Load { is_endpoint_up: false, ..idle }, "one client that has no answer is enough");
    tokio::time::advance(ASKED_AGAIN_WITHIN).await;
    assert_eq!(load(), idle, "it asks no more: it is suspended, say");
    let permit = queue.admit("a", wall());
    assert_eq!(queue.fails(permit), Blame::Endpoint);
    assert_eq!(load(), Load { is_endpoint_up: false, ..idle });
    queue.grants.forget(&"a");
    assert_eq!(load(), idle, "who failed is gone");
}
