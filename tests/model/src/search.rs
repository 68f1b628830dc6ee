//! Every state that can be reached, the shortest way first.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher};

use crate::promises::Rest;
use crate::setting::Setting;
use crate::step::{Step, after, steps};
use crate::turn::Broken;
use crate::world::World;

/// A promise that was not kept, and the shortest way there.
#[derive(Debug, Clone)]
pub struct Violation {
    /// The promise.
    pub promise: Broken,
    /// What happened, one thing after the other.
    pub path: Vec<Step>,
}

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// Different states.
    pub states: usize,
    /// Steps between them, those to a state that was known already among them.
    pub steps: u64,
    /// The longest of the shortest ways to a state.
    pub depth: usize,
    /// States in which nobody has anything to do.
    pub rests: u64,
    /// Whether all that can be reached was.
    pub is_whole: bool,
    /// The first way to break each promise that is not kept.
    pub violations: Vec<Violation>,
    /// Of those, how many hold a token of which nothing tells the operator that it was revoked.
    pub unknowable: u64,
    /// The shortest way to one.
    pub way_to_unknowable: Vec<Step>,
    /// The most tokens that were lost at a rest.
    pub most_lost: u8,
    /// The most grants that no cause stood for at a rest.
    pub most_extra: u8,
}

/// A digest of a state is all that is kept of it: hashing it once more would be in vain.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |all, byte| all << 8 | u64::from(*byte));
    }

    fn write_u64(&mut self, digest: u64) {
        self.0 = digest;
    }
}

struct Search<'a> {
    setting: &'a Setting,
    known: HashMap<u64, u32, BuildHasherDefault<AsIs>>,
    /// Of each state, from which it was reached first, and how.
    came_from: Vec<(u32, Step)>,
    /// The steps that come by themselves: between them there must be no way round.
    due: Vec<(u32, u32)>,
    found: Found,
}

/// Looks at every state that can be reached, or at so many.
#[must_use]
pub fn explore(setting: &Setting, most_states: usize) -> Found {
    let first = World::new(setting);
    let mut search =
        Search { setting, known: HashMap::default(), came_from: Vec::new(), due: Vec::new(), found: Found::default() };
    let _ = search.number(&first, 0, Step::Later);
    let (mut level, mut at_once) = (vec![(0, first)], Vec::new());
    while !level.is_empty() && search.came_from.len() < most_states {
        for (number, world) in level.drain(..) {
            search.go_on(number, &world, &mut at_once);
        }
        std::mem::swap(&mut level, &mut at_once);
        search.found.depth += usize::from(!level.is_empty());
    }
    search.found.is_whole = level.is_empty();
    if search.found.is_whole {
        search.find_a_way_round();
    }
    search.found.states = search.came_from.len();
    search.found
}

impl Search<'_> {
    /// The number of a state, and whether it is new.
    fn number(&mut self, world: &World, from: u32, step: Step) -> (u32, bool) {
        let mut hasher = DefaultHasher::new();
        world.hash(&mut hasher);
        let next = u32::try_from(self.came_from.len()).unwrap_or(u32::MAX);
        let number = *self.known.entry(hasher.finish()).or_insert(next);
        if number == next {
            self.came_from.push((from, step));
        }
        (number, number == next)
    }

    fn go_on(&mut self, number: u32, world: &World, next: &mut Vec<(u32, World)>) {
        let steps = steps(self.setting, world);
        // What a watch is yet to show may end what goes round until then.
        let is_shown = world.cut.is_none() && world.is_shown();
        let is_at_rest = world.cut.is_none() && !steps.iter().any(|step| step.is_due());
        if is_at_rest {
            self.rest(number, world);
        }
        for step in steps {
            let (then, broken) = after(self.setting, world, step);
            self.found.steps += 1;
            if let Some(promise) = broken {
                self.note(promise, number, Some(step));
                continue;
            }
            let (known, is_new) = self.number(&then, number, step);
            if step.is_due() && is_shown {
                self.due.push((number, known));
            }
            if is_new {
                next.push((known, then));
            }
        }
    }

    fn rest(&mut self, number: u32, world: &World) {
        let found = &mut self.found;
        found.rests += 1;
        found.most_lost = found.most_lost.max(world.lost_tokens());
        found.most_extra = found.most_extra.max(world.extra_grants());
        match Rest::of(self.setting, world) {
            Rest::Kept => {}
            Rest::Broken(promise) => self.note(promise, number, None),
            Rest::Unknowable => {
                self.found.unknowable += 1;
                if self.found.unknowable == 1 {
                    self.found.way_to_unknowable = self.way_to(number, None);
                }
            }
        }
    }

    fn note(&mut self, promise: Broken, number: u32, last: Option<Step>) {
        if self.found.violations.iter().any(|one| one.promise == promise) {
            return;
        }
        let path = self.way_to(number, last);
        self.found.violations.push(Violation { promise, path });
    }

    fn way_to(&self, mut number: u32, last: Option<Step>) -> Vec<Step> {
        let mut path: Vec<Step> = last.into_iter().collect();
        while number != 0 {
            let (from, step) = self.came_from[number as usize];
            path.push(step);
            number = from;
        }
        path.reverse();
        path
    }

    /// Whoever takes only steps that come by themselves has to come to rest: takes away, again and again, the states that no
    /// such step leads to. What is left goes round.
    fn find_a_way_round(&mut self) {
        let mut into = vec![0_u32; self.came_from.len()];
        for (_, to) in &self.due {
            into[*to as usize] += 1;
        }
        self.due.sort_unstable();
        let mut free: Vec<u32> = (0_u32..).zip(&into).filter_map(|(at, count)| (*count == 0).then_some(at)).collect();
        while let Some(at) = free.pop() {
            let first = self.due.partition_point(|(from, _)| *from < at);
            for (_, to) in self.due[first..].iter().take_while(|(from, _)| *from == at) {
                into[*to as usize] -= 1;
                if into[*to as usize] == 0 {
                    free.push(*to);
                }
            }
        }
        if let Some(round) = (0_u32..).zip(&into).find_map(|(at, count)| (*count > 0).then_some(at)) {
            self.note("everyone comes to rest", round, None);
        }
    }
}
