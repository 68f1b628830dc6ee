//! Anything may happen, in any order: a world that is disturbed at random has to come to rest.

use super::*;

/// Small, and the same everywhere: xorshift64*.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        let sides = u64::try_from(from.len()).unwrap();
        from[usize::try_from(self.roll(sides)).unwrap()].clone()
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.roll(one_in) == 0
    }
}

const ANNOTATIONS: [&str; 12] = [
    annotation::ADOPT,
    annotation::ISSUED_AT,
    annotation::EXPIRES_AT,
    annotation::REFRESH_AT,
    annotation::SCOPE,
    annotation::REFRESH_HANDLED,
    annotation::CREDENTIALS_UID,
    annotation::CREDENTIALS_RESOURCE_VERSION,
    annotation::TOKEN_HMAC,
    annotation::CREDENTIALS_HMAC,
    annotation::APPLIED,
    annotation::SAME_TOKEN,
];

fn disturb(world: &mut World, dice: &mut Dice) -> &'static str {
    let times = ["2026-01-01T00:20:00Z", "3000-01-01T00:00:00Z", "1990-01-01T00:00:00Z", "never", ""];
    let kind = dice.roll(26);
    let has_target = world.target.is_some();
    let has_spec = world.spec.is_ok();
    match kind {
        0 => world.advance(i64::try_from(dice.roll(5000)).unwrap()),
        1 => world.advance(-i64::try_from(dice.roll(2000)).unwrap()),
        2 => world.restart(),
        3 => world.delete_target(),
        4 if has_target => world.edit_target("evil", |s| s.data = Some(data([("access_token", b"x")]))),
        5 | 6 if has_target => {
            let key = dice.pick(&ANNOTATIONS);
            let value = dice.pick(&times);
            world.annotate(key, if dice.chance(2) { None } else { Some(value) });
        }
        7 if has_target => world.edit_target("kubectl", |s| s.metadata.annotations = None),
        8 if has_target => world.edit_target("kubectl", |s| s.metadata.labels = None),
        9 if has_target => world.edit_target("kubectl", |s| s.metadata.owner_references = None),
        10 => world.status = MoneyGoCredentialStatus::default(),
        11 => world.status.expires_at = dice.pick(&times).parse().ok(),
        12 => world.status.issued_at = dice.pick(&times).parse().ok(),
        13 => world.status.next_attempt_at = dice.pick(&times).parse().ok(),
        14 => world.refresh_requested = (!dice.chance(3)).then(|| format!("r{}", dice.roll(3))),
        15 => world.set_credentials("id", dice.pick(&["secret", "other", "wrong "])),
        16 => world.credentials = None,
        17 if has_spec => world.respec(|spec| spec.scope = if spec.scope == "api" { "b".into() } else { "api".into() }),
        18 if has_spec => world.respec(|spec| spec.suspend = !spec.suspend),
        19 if has_spec => world.respec(|spec| {
            spec.access_token_key = if spec.access_token_key == "t" { "access_token".into() } else { "t".into() };
        }),
        20 if has_spec => {
            let renew = [Renew::ThirdLeft, Renew::PercentLeft(90), Renew::Before(Duration::from_mins(150))];
            let renew = dice.pick(&renew);
            world.respec(|spec| spec.renew = renew);
        }
        21 => {
            world.key = dice.pick(&[None, DigestKey::new(&[7; 32]), DigestKey::new(&[8; 32])]);
        }
        22 => {
            world.writers = if world.writers.is_some() { None } else { Some(BTreeMap::new()) };
            if has_target {
                world.edit_target("kubectl", |_| {});
            }
        }
        23 => {
            let answers = [Answer::New(HOUR_SECS), Answer::New(2), Answer::Rejected, Answer::Unavailable];
            world.answer = dice.pick(&answers);
        }
        24 => {
            world.spec = if has_spec && dice.chance(3) { Err(SpecProblem::Scope) } else { Ok(resolved()) };
            world.generation += 1;
        }
        25 => match dice.roll(5) {
            0 => world.rival = if world.rival.is_some() { None } else { Some("r".into()) },
            1 => world.owner_refused = !world.owner_refused,
            2 => world.outage = !world.outage,
            3 => world.leading = !world.leading,
            _ => world.refuses_writes = !world.refuses_writes,
        },
        _ => {}
    }
    [
        "clock on",
        "clock back",
        "restart",
        "delete",
        "edit",
        "annotate",
        "annotate",
        "strip",
        "labels",
        "owners",
        "status",
        "expiresAt",
        "issuedAt",
        "nextAttemptAt",
        "request",
        "credentials",
        "no credentials",
        "scope",
        "suspend",
        "key name",
        "renew",
        "digest key",
        "managedFields",
        "answer",
        "spec",
        "other",
    ][usize::try_from(kind).unwrap()]
}

/// What holds of every plan, whatever was observed.
fn assert_bounds(world: &World, name: &str) {
    for ending in [world.ending, true] {
        for live in [false, true] {
            let o = Observed { ending, ..world.observe(live) };
            let next = plan(&o);
            assert_eq!(next, plan(&o), "{name}: the same facts, the same plan");
            match &next {
                Plan::Look | Plan::LookToMint => assert!(!live, "{name}"),
                Plan::Mint(_) | Plan::Mend(_) | Plan::Store => assert!(live, "{name}"),
                Plan::Rest(_, Some(again_at)) => assert!(*again_at > o.now, "{name}"),
                Plan::Rest(_, None) | Plan::Stand | Plan::Forget => {}
            }
            let acts = matches!(next, Plan::Mint(_) | Plan::LookToMint | Plan::Mend(_));
            let writes = acts || next == Plan::Store;
            assert!(!acts || (o.leading || o.held.is_some()) && !ending, "{name}: {next:?}");
            assert!(!writes || o.claimed && (o.rival.is_none() || ending) && o.spec.is_ok(), "{name}: {next:?}");
            let suspended = o.spec.as_ref().is_ok_and(|spec| spec.suspend);
            assert!(!suspended || !matches!(next, Plan::Mint(_) | Plan::LookToMint), "{name}: {next:?}");
            if let Plan::Rest(report, _) = &next {
                let (ready, stalled) = (report.ready.state, report.stalled.state);
                assert!(stalled != State::True || ready == State::False, "{name}: stalled and ready");
                assert!(suspended || report.refreshed.reason != Reason::Suspended, "{name}");
                if ready == State::True {
                    assert!(report.expires_at.is_some_and(|at| at > o.now), "{name}: ready, and expired");
                }
            }
        }
    }
}

/// Disturbs a world a few times and reconciles after each.
fn live_through(seed: u64) {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut world = if dice.chance(4) { World::new() } else { scene() };
    let mut story = Vec::new();
    for _ in 0..12 {
        let disturbances = 1 + dice.roll(2);
        for _ in 0..disturbances {
            story.push(disturb(&mut world, &mut dice));
        }
        let name = format!("seed {seed}: {story:?}");
        assert_bounds(&world, &name);
        rest(&mut world, &name);
    }
}

fn rest(world: &mut World, name: &str) {
    let (grants, writes) = (world.grants.len(), world.writes);
    let mut passes = 0;
    while world.pass() {
        passes += 1;
        assert!(passes < 12, "{name}: it never rests: {:#?}", world.observe(true));
        assert_bounds(world, name);
    }
    assert!(world.grants.len() <= grants + 2, "{name}: {:?}", &world.grants[grants..]);
    assert!(world.writes <= writes + 3, "{name}: {} writes", world.writes - writes);
    // What was reported can show that there is more to mend, but not for ever.
    for _ in 0..3 {
        let before = (world.grants.len(), world.writes, world.status.clone());
        let acted = world.pass();
        if !acted && (world.grants.len(), world.writes, world.status.clone()) == before {
            return;
        }
    }
    panic!("{name}: a loop of writes: {:#?}", world.observe(true));
}

#[test]
fn whatever_happens_in_whatever_order_it_comes_to_rest_and_stays_there() {
    for seed in 0..500 {
        live_through(seed);
    }
}
