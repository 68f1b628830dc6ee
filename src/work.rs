//! The work queue: which objects are to be looked at now, and which at a later moment. The same object is never looked at twice at
//! once. What client-go's `workqueue` is to its controllers; no IO, no clock.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::ops::RangeBounds;
use std::time::Duration;

use tokio::time::Instant;

/// When an object is looked at again, where nothing happens to it before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Action {
    after: Option<Duration>,
}

impl Action {
    /// After this long.
    #[must_use]
    pub fn requeue(after: Duration) -> Self {
        Self { after: Some(after) }
    }

    /// When either is due.
    #[must_use]
    pub fn sooner(self, other: Self) -> Self {
        Self { after: [self.after, other.after].into_iter().flatten().min() }
    }

    /// Not before something happens.
    #[must_use]
    pub fn await_change() -> Self {
        Self { after: None }
    }

    /// Whether it is to be within this time.
    #[must_use]
    pub fn is_within(self, time: Duration) -> bool {
        self.after.is_some_and(|after| after <= time)
    }
}

/// Nobody waits longer for those before it that are tried again for long.
const LONGEST_LINE: Duration = Duration::from_mins(2);

/// Those that are tried again for long, one behind the other: of a few, each as often as it would be alone; of thousands, the less often.
#[derive(Debug)]
pub struct Retries {
    between: Duration,
    /// When the last of them is.
    last: Option<Instant>,
}

impl Retries {
    /// None, and so far apart at least.
    #[must_use]
    pub fn new(between: Duration) -> Self {
        Self { between, last: None }
    }

    /// Puts one behind the others. Returns how long it waits: not less than `wait`, and not more than `latest`, for which it takes no place.
    pub fn join(&mut self, now: Instant, wait: Duration, latest: Option<Duration>) -> Duration {
        // Who joins anew has a place already, which is not known here: without a limit the last would wait for those that nobody waits for.
        let behind = self.last.map_or(now, |last| last + self.between).min(now + wait + LONGEST_LINE);
        let at = behind.max(now + wait);
        if let Some(latest) = latest.filter(|latest| now + *latest < at) {
            return latest;
        }
        self.last = Some(at);
        at.saturating_duration_since(now)
    }
}

/// An object that hung so often in a row is expected to hang again: once may have been chance.
const HANGS: u32 = 2;
/// How many of the objects that are expected to hang are looked at at once: each takes a place of the API server's, too.
const HANGING_AT_ONCE: usize = 8;

/// A work queue. `K` names an object.
#[derive(Debug)]
pub struct Work<K> {
    /// Who waits to be looked at.
    line: BTreeMap<Place, K>,
    place_of: HashMap<K, Place>,
    /// How many came.
    came: u64,
    /// Whose last looks hung, and how many in a row.
    hung: HashMap<K, u32>,
    /// Of those, who are looked at now.
    hanging: HashSet<K>,
    running: HashSet<K>,
    /// Of those, whose turn it was.
    turning: HashSet<K>,
    /// Called while they run, and whether it was for their turn.
    again: HashMap<K, bool>,
    timers: BTreeSet<(Instant, K)>,
    timer_of: HashMap<K, Instant>,
}

/// A place in the line, each kind in the order in which they were called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// Its turn to ask for a token: its leave does not last.
    Turn(u64),
    Ready(u64),
    /// Expected to hang: it did so often in a row. Fewer times come first, so that one that hung by chance does not stand behind those that always do.
    ToHang(u32, u64),
}

impl<K> Default for Work<K> {
    fn default() -> Self {
        Self {
            line: BTreeMap::new(),
            place_of: HashMap::new(),
            came: 0,
            hung: HashMap::new(),
            hanging: HashSet::new(),
            running: HashSet::new(),
            turning: HashSet::new(),
            again: HashMap::new(),
            timers: BTreeSet::new(),
            timer_of: HashMap::new(),
        }
    }
}

impl<K: Clone + Ord + Hash> Work<K> {
    /// An object is to be looked at now: once, however often it is called before that.
    pub fn call(&mut self, key: K) {
        if self.running.contains(&key) {
            self.again.entry(key).or_insert(false);
        } else if !self.place_of.contains_key(&key) {
            let place = match self.hung.get(&key) {
                Some(hung) if *hung >= HANGS => Place::ToHang((*hung).min(HANGS + 1), self.next_place()),
                _ => Place::Ready(self.next_place()),
            };
            self.put(key, place);
        }
    }

    /// An object is to be looked at before all others, and be it expected to hang: it is its turn to ask for a token.
    pub fn call_first(&mut self, key: K) {
        if self.running.contains(&key) {
            self.again.insert(key, true);
        } else if !matches!(self.place_of.get(&key), Some(Place::Turn(_))) {
            self.take_out(&key);
            let place = Place::Turn(self.next_place());
            self.put(key, place);
        }
    }

    fn next_place(&mut self) -> u64 {
        self.came += 1;
        self.came
    }

    fn put(&mut self, key: K, place: Place) {
        self.place_of.insert(key.clone(), place);
        self.line.insert(place, key);
    }

    fn take_out(&mut self, key: &K) {
        if let Some(place) = self.place_of.remove(key) {
            self.line.remove(&place);
        }
    }

    /// The next object whose turn it is to ask for a token, as [`Self::start`].
    pub fn start_turn(&mut self) -> Option<K> {
        let key = self.first(..Place::Ready(0))?.clone();
        self.turning.insert(key.clone());
        Some(self.begin(key))
    }

    /// The next of the other objects to be looked at: it runs from here on, and what was planned for later is off.
    pub fn start(&mut self) -> Option<K> {
        if let Some(key) = self.first_to_hang().cloned() {
            self.hanging.insert(key.clone());
            return Some(self.begin(key));
        }
        let key = self.first_ready()?.clone();
        Some(self.begin(key))
    }

    fn first(&self, places: impl RangeBounds<Place>) -> Option<&K> {
        self.line.range(places).next().map(|(_, key)| key)
    }

    fn first_ready(&self) -> Option<&K> {
        self.first(Place::Ready(0)..Place::ToHang(0, 0))
    }

    /// The first that is expected to hang, where it may.
    fn first_to_hang(&self) -> Option<&K> {
        self.first(Place::ToHang(0, 0)..).filter(|_| self.hanging.len() < HANGING_AT_ONCE)
    }

    fn begin(&mut self, key: K) -> K {
        self.take_out(&key);
        self.forget_timer(&key);
        self.running.insert(key.clone());
        key
    }

    /// Whether someone is there to be started whose turn it is.
    #[must_use]
    pub fn is_turn(&self) -> bool {
        self.first(..Place::Ready(0)).is_some()
    }

    /// Whether someone else is there to be started.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.first_ready().is_some() || self.first_to_hang().is_some()
    }

    /// How many run whose turn it was.
    #[must_use]
    pub fn turning(&self) -> usize {
        self.turning.len()
    }

    /// Who waited to be looked at, where nobody is to be yet.
    #[must_use]
    pub fn into_waiting(self) -> Vec<K> {
        self.line.into_values().collect()
    }

    /// Who waits to be looked at.
    pub fn waiting(&self) -> impl Iterator<Item = &K> {
        self.line.values()
    }

    /// Takes note of whether the look at an object that ends now hung: if so once more, it is one of few from the next time on.
    pub fn note_pace(&mut self, key: &K, hung: bool) {
        if hung {
            let hung = self.hung.entry(key.clone()).or_default();
            *hung = hung.saturating_add(1);
        } else {
            self.hung.remove(key);
        }
    }

    /// An object was looked at.
    pub fn done(&mut self, key: K, action: Action, now: Instant) {
        self.running.remove(&key);
        self.hanging.remove(&key);
        self.turning.remove(&key);
        let at = action.after.map(|after| now.checked_add(after));
        match self.again.remove(&key) {
            Some(true) => self.call_first(key),
            Some(false) => self.call(key),
            None if at.flatten().is_some_and(|at| at <= now) => self.call(key),
            None => {
                if let Some(Some(at)) = at {
                    self.timers.insert((at, key.clone()));
                    self.timer_of.insert(key, at);
                }
            }
        }
    }

    /// When the next object is due.
    #[must_use]
    pub fn next_timer(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Calls whoever is due.
    pub fn call_due(&mut self, now: Instant) {
        while let Some((at, key)) = self.timers.first().cloned().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, key.clone()));
            self.timer_of.remove(&key);
            self.call(key);
        }
    }

    fn forget_timer(&mut self, key: &K) {
        if let Some(at) = self.timer_of.remove(key) {
            self.timers.remove(&(at, key.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn of_those_that_are_tried_again_for_long_each_waits_for_its_turn() {
        let (millis, now) = (Duration::from_millis, Instant::now());
        let mut retries = Retries::new(millis(5));
        let waits: Vec<_> = (0..4).map(|_| retries.join(now, millis(1000), None).as_millis()).collect();
        assert_eq!(waits, [1000, 1005, 1010, 1015]);
        // As each comes again, nothing has changed for so few.
        assert_eq!(retries.join(now + millis(1000), millis(1000), None), millis(1000));
        let of_many: Vec<_> = (0..400).map(|_| retries.join(now + millis(2000), millis(1000), None)).collect();
        assert_eq!(of_many.first(), Some(&millis(1000)));
        assert_eq!(of_many.last(), Some(&millis(1000 + 399 * 5)));
        let mut crowd = Retries::new(millis(5));
        let of_crowd = (0..50_000).map(|_| crowd.join(now, millis(1000), None)).max().unwrap();
        assert_eq!(of_crowd, millis(1000) + LONGEST_LINE, "nobody stands behind those that have joined anew for ever");
        // Who cannot wait for that long takes nobody's place.
        assert_eq!(retries.join(now + millis(2000), millis(1000), Some(millis(1500))), millis(1500));
        assert_eq!(retries.join(now + millis(2000), millis(1000), Some(millis(9000))), millis(1000 + 400 * 5));
        assert_eq!(
            retries.join(now + millis(60_000), millis(1000), None),
            millis(1000),
            "and all of it is over at some time"
        );
    }

    fn start(work: &mut Work<&'static str>) -> Vec<&'static str> {
        std::iter::from_fn(|| work.start_turn().or_else(|| work.start())).collect()
    }

    fn end(work: &mut Work<&'static str>, key: &'static str, hung: bool) {
        work.note_pace(&key, hung);
        work.done(key, Action::await_change(), Instant::now());
    }

    /// Objects that have hung so often in a row that they are expected to hang again, all of them called.
    fn all_that_hang() -> (Work<&'static str>, Vec<&'static str>) {
        let mut work = Work::default();
        let all: Vec<&'static str> = "a b c d e f g h i j".split(' ').collect();
        for &key in &all {
            work.call(key);
        }
        for why in ["nobody knows that they will hang", "it may have been chance"] {
            assert_eq!(start(&mut work), all, "{why}");
            for &key in &all {
                work.call(key);
                end(&mut work, key, true);
            }
        }
        (work, all)
    }

    #[test]
    fn who_is_called_is_looked_at_once_and_in_order() {
        let mut work = Work::default();
        for key in ["b", "a", "b", "c", "a"] {
            work.call(key);
        }
        assert_eq!(start(&mut work), ["b", "a", "c"]);
    }

    #[test]
    fn who_is_called_while_it_runs_is_looked_at_once_more_and_not_before() {
        let (mut work, now) = (Work::default(), Instant::now());
        work.call("a");
        assert_eq!(start(&mut work), ["a"]);
        work.call("a");
        work.call("a");
        assert_eq!(start(&mut work), [""; 0]);
        work.done("a", Action::requeue(Duration::from_secs(9)), now);
        assert_eq!(start(&mut work), ["a"]);
        assert_eq!(work.next_timer(), None, "the look that is under way tells when the next is");
        work.done("a", Action::await_change(), now);
        assert_eq!(start(&mut work), [""; 0]);
    }

    #[test]
    fn who_is_due_is_looked_at_then_and_a_call_before_that_takes_its_place() {
        let (mut work, now) = (Work::default(), Instant::now());
        for (key, secs) in [("a", 2), ("b", 1), ("c", 3)] {
            work.call(key);
            assert_eq!(start(&mut work), [key]);
            work.done(key, Action::requeue(Duration::from_secs(secs)), now);
        }
        let after = |secs| now + Duration::from_secs(secs);
        work.call_due(now);
        assert_eq!(start(&mut work), [""; 0]);
        assert_eq!(work.next_timer(), Some(after(1)));
        work.call("a");
        assert_eq!(start(&mut work), ["a"]);
        work.done("a", Action::await_change(), after(1));
        work.call_due(after(2));
        assert_eq!(start(&mut work), ["b"], "a was looked at meanwhile");
        work.call_due(after(3));
        assert_eq!(start(&mut work), ["c"]);
        assert!(work.timer_of.is_empty() && work.timers.is_empty() && work.place_of.is_empty());
    }

    #[test]
    fn of_those_that_hung_few_are_looked_at_at_once_and_they_hold_up_no_other() {
        let (mut work, all) = all_that_hang();
        work.call("z");
        assert_eq!(start(&mut work), [&all[..HANGING_AT_ONCE], &["z"]].concat());
        assert!(!work.is_waiting(), "i and j cannot be started");
        end(&mut work, "z", false);
        end(&mut work, "a", false);
        assert!(work.is_waiting());
        assert_eq!(start(&mut work), ["i"]);
        for key in ["b", "i"] {
            end(&mut work, key, true);
        }
        assert_eq!(start(&mut work), ["j"]);
        work.call("a");
        work.call("b");
        assert_eq!(start(&mut work), ["b", "a"], "who went well is as all others, and one has room to hang");
        assert!(!work.is_waiting() && work.place_of.is_empty());
    }

    #[test]
    fn who_hung_by_chance_does_not_wait_for_all_that_hang_for_good() {
        let (mut work, now) = (Work::default(), Instant::now());
        let end = |work: &mut Work<u32>, key, hung| {
            work.note_pace(&key, hung);
            work.done(key, Action::requeue(Duration::ZERO), now);
        };
        let all = || std::iter::successors(Some(0), |key| Some(key + 1)).take(100);
        for key in all() {
            work.call(key);
        }
        for _ in 0..HANGS {
            let started: Vec<_> = std::iter::from_fn(|| work.start()).collect();
            assert_eq!(started.len(), 100);
            for key in started {
                end(&mut work, key, true);
            }
        }
        // They go round, and hang once more each.
        for _ in all() {
            let key = work.start().unwrap();
            end(&mut work, key, true);
        }
        for _ in 0..HANGS {
            work.call(1000);
            let started = std::iter::from_fn(|| work.start()).find(|key| *key == 1000);
            end(&mut work, started.unwrap(), true);
        }
        let running: Vec<_> = work.running.iter().copied().collect();
        end(&mut work, running[0], true);
        assert_eq!(work.start(), Some(1000));
    }

    #[test]
    fn whose_turn_it_is_comes_before_all_others_once() {
        let (mut work, now) = (Work::default(), Instant::now());
        for key in ["a", "b", "c"] {
            work.call(key);
        }
        for key in ["c", "d", "c"] {
            work.call_first(key);
        }
        assert!(work.is_turn());
        assert_eq!(start(&mut work), ["c", "d", "a", "b"]);
        assert!(!work.is_turn() && !work.is_waiting());
        assert_eq!(work.turning(), 2);
        work.call_first("a");
        work.call("a");
        work.call("b");
        work.done("b", Action::await_change(), now);
        work.done("a", Action::await_change(), now);
        work.done("d", Action::await_change(), now);
        assert_eq!((start(&mut work), work.turning()), (vec!["a", "b"], 2), "as it ends, and still before the others");
    }

    #[test]
    fn whose_turn_it_is_does_not_wait_for_those_that_hang() {
        let (mut work, all) = all_that_hang();
        assert_eq!(start(&mut work), all[..HANGING_AT_ONCE]);
        assert_eq!(work.waiting().collect::<BTreeSet<_>>(), [&"i", &"j"].into());
        work.call_first("j");
        assert_eq!(start(&mut work), ["j"]);
        work.call("j");
        end(&mut work, "j", true);
        end(&mut work, "a", true);
        assert_eq!(start(&mut work), ["i"], "j has lost its place among those that wait");
        end(&mut work, "b", true);
        assert_eq!(start(&mut work), ["j"]);
        assert_eq!((start(&mut work), work.hanging.len()), (vec![], HANGING_AT_ONCE));
        assert!(work.turning() == 0 && work.line.is_empty() && work.place_of.is_empty());
    }

    #[test]
    fn no_wait_at_all_is_behind_those_that_are_ready() {
        let (mut work, now) = (Work::default(), Instant::now());
        work.call("a");
        assert_eq!(start(&mut work), ["a"]);
        work.call("b");
        work.done("a", Action::requeue(Duration::ZERO), now);
        assert_eq!(start(&mut work), ["b", "a"]);
        work.done("b", Action::requeue(Duration::MAX), now);
        assert_eq!(work.next_timer(), None, "no clock reaches that");
    }
}
