//! What takes two minutes to show, side by side: tokens of twelve seconds are replaced in time, and two hundred objects
//! whose tokens are fresh cost nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod stage;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use fake_moneygo::{Mode, Outage, Script, TokenState};
use futures::future::join_all;
use futures::{FutureExt as _, StreamExt as _};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;
use kube::api::ListParams;
use moneygo_controlplane::AuditEvent;
use moneygo_operator::crd::annotation;
use serde_json::json;
use stage::{Operator, SOON, Stage, token_in};
use tokio::time::{MissedTickBehavior, interval, sleep};

const TWO_MINUTES: Duration = Duration::from_mins(2);
/// The stage searches the log for secrets.
const VERBOSE: &str = "--log-level=trace";

// ---- refresh ----

const LIFETIME: Duration = Duration::from_secs(12);
const OBJECTS: usize = 20;
const SAMPLED_EVERY: Duration = Duration::from_millis(100);
/// For how long a Secret may hold a token that a new grant has revoked: the new one has to be written.
const REVOKED_FOR: Duration = Duration::from_secs(1);
/// A sample that takes longer was held up: on a machine that does much else, an API server may not answer for seconds.
const STALL: Duration = Duration::from_secs(1);
/// How long the stand-in is away, and how long it is there, where it is down for half of the time. Between refresh and expiry of a token
/// lie at least four seconds.
const OUTAGE: Duration = Duration::from_secs(2);

/// How the endpoint fails between a token's refresh time and its expiry.
#[derive(Clone, Copy, PartialEq)]
enum Failing {
    Never,
    /// 503 to each client from its token's refresh time to the middle between that and the expiry.
    FirstHalf,
    /// Nothing listens for two of every four seconds.
    Refused,
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_ever_holds_an_expired_token() {
    let acts = [
        ("independent", Mode::Independent, Failing::Never),
        ("revoking", Mode::RevokePrevious, Failing::Never),
        ("revoking-503", Mode::RevokePrevious, Failing::FirstHalf),
        ("refused", Mode::Independent, Failing::Refused),
    ];
    let acts = acts.map(|(name, mode, failing)| refresh(name, mode, failing).boxed_local());
    let problems: Vec<String> = join_all(acts).await.into_iter().flatten().collect();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Plays one of the acts, and returns what was not as it should be.
async fn refresh(name: &'static str, mode: Mode, failing: Failing) -> Vec<String> {
    let stage = Stage::setup(name).moneygo(|moneygo| moneygo.expires_in(LIFETIME).mode(mode)).open().await;
    let operator = stage.operator().flag(VERBOSE).start().await;
    let names: Vec<String> = (0..OBJECTS).map(|n| format!("{name}-{n}")).collect();
    let fails_until = Arc::new(Mutex::new(HashMap::new()));
    for name in names.iter().filter(|_| failing == Failing::FirstHalf) {
        stage.moneygo.script(name, fails_before(name, &fails_until));
    }
    // All at once: while some fail and others do not yet, one at a time may try, and who it is may be the wrong one.
    join_all(names.iter().map(|name| stage.subscribe(name, json!({})))).await;
    let samples = tokio::select! {
        samples = sample(&stage) => samples,
        () = fail(&stage, failing, &fails_until) => unreachable!("it fails as long as it is let"),
    };
    let ended = stage::now();
    operator.stop().await;
    for name in &names {
        let token = stage.token(name).await;
        stage.until("the watch has caught up", SOON, |scene| scene.token(name).filter(|seen| *seen == token)).await;
    }
    let mut verdict = Verdict::new(name, &samples);
    verdict.judge_samples(&stage, &samples);
    for name in &names {
        verdict.judge_grants(&stage, name, ended, failing);
    }
    println!("{verdict}", verdict = verdict.summary(&stage));
    if failing != Failing::Never && verdict.held_up == 0 {
        verdict.problem("no failure held up a grant: nothing was shown");
    }
    if !verdict.problems.is_empty() {
        verdict.problems.push(stage.account());
    }
    verdict.problems
}

type FailsUntil = Arc<Mutex<HashMap<String, SystemTime>>>;

fn fails_before(client: &str, fails_until: &FailsUntil) -> Script {
    let (client, fails_until) = (client.to_owned(), Arc::clone(fails_until));
    Script::status(503)
        .forever()
        .when(move |now| fails_until.lock().unwrap().get(&client).is_some_and(|until| now < *until))
}

/// Never returns.
async fn fail(stage: &Stage, failing: Failing, fails_until: &FailsUntil) {
    match failing {
        Failing::Never => std::future::pending().await,
        Failing::Refused => loop {
            sleep(OUTAGE).await;
            stage.moneygo.set_outage(Some(Outage::Refused)).await.unwrap();
            sleep(OUTAGE).await;
            stage.moneygo.set_outage(None).await.unwrap();
        },
        Failing::FirstHalf => {
            let mut seen = 0;
            stage
                .until::<()>("for ever", 2 * TWO_MINUTES, |scene| {
                    for (_, secret) in &scene.history[seen..] {
                        let life = Life::of(secret);
                        let middle = life.refresh_at + life.expires_at.duration_since(life.refresh_at).unwrap() / 2;
                        fails_until.lock().unwrap().insert(secret.name_any(), middle);
                    }
                    seen = scene.history.len();
                    None
                })
                .await;
        }
    }
}

/// What the operator says of a token, beside the token.
struct Life {
    token: String,
    refresh_at: SystemTime,
    expires_at: SystemTime,
}

impl Life {
    fn of(secret: &Secret) -> Self {
        let time = |key: &str| SystemTime::from(secret.annotations()[key].parse::<Timestamp>().unwrap());
        let token = token_in(secret, "access_token").unwrap();
        Self { token, refresh_at: time(annotation::REFRESH_AT), expires_at: time(annotation::EXPIRES_AT) }
    }
}

/// The Secrets with tokens, as one LIST showed them.
struct Sample {
    before: SystemTime,
    after: SystemTime,
    tokens: Vec<(String, String)>,
}

async fn sample(stage: &Stage) -> Vec<Sample> {
    let started = stage::now();
    let mut ticks = interval(SAMPLED_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut samples = Vec::new();
    while stage::now().duration_since(started).unwrap() < TWO_MINUTES {
        ticks.tick().await;
        let before = stage::now();
        let secrets = stage.secrets().list(&ListParams::default()).await.unwrap();
        let token = |secret: &Secret| Some((secret.name_any(), token_in(secret, "access_token")?));
        samples.push(Sample { before, after: stage::now(), tokens: secrets.iter().filter_map(token).collect() });
    }
    samples
}

fn shown(at: SystemTime) -> Timestamp {
    Timestamp::try_from(at).unwrap()
}

struct Verdict {
    name: &'static str,
    problems: Vec<String>,
    /// When the machine stood still, or the API server did: nobody can be on time then.
    stalls: Vec<(SystemTime, SystemTime)>,
    excused: usize,
    samples: usize,
    longest_gap: Duration,
    longest_revoked: Duration,
    least_left: Duration,
    /// Grants that came later than half a second after the refresh time.
    held_up: usize,
    grants: BTreeMap<usize, usize>,
}

impl Verdict {
    fn new(name: &'static str, samples: &[Sample]) -> Self {
        let gaps = samples.windows(2).map(|pair| (pair[0].before, pair[1].before));
        let gaps: Vec<_> = gaps.chain(samples.iter().map(|sample| (sample.before, sample.after))).collect();
        let length = |&(from, to): &(SystemTime, SystemTime)| to.duration_since(from).unwrap_or_default();
        Self {
            name,
            problems: Vec::new(),
            longest_gap: gaps.iter().map(length).max().unwrap_or_default(),
            stalls: gaps.into_iter().filter(|gap| length(gap) > STALL).collect(),
            excused: 0,
            samples: samples.iter().map(|sample| sample.tokens.len()).sum(),
            longest_revoked: Duration::ZERO,
            least_left: Duration::MAX,
            held_up: 0,
            grants: BTreeMap::new(),
        }
    }

    fn problem(&mut self, what: impl std::fmt::Display) {
        if self.problems.len() < 20 {
            self.problems.push(format!("{}: {what}", self.name));
        }
    }

    /// Something came too late, unless nothing could come in time: a stall lies between the two moments.
    fn late(&mut self, from: SystemTime, to: SystemTime, what: impl std::fmt::Display) {
        if self.stalls.iter().any(|(begin, end)| *begin < to && *end > from) {
            self.excused += 1;
        } else {
            self.problem(what);
        }
    }

    /// No sample holds an expired token, one that was revoked too long ago, one that was never issued, or none where there was one.
    fn judge_samples(&mut self, stage: &Stage, samples: &[Sample]) {
        let expiries: HashMap<String, SystemTime> =
            stage.moneygo.ledger().into_iter().map(|grant| (grant.token, grant.expires)).collect();
        let mut there = 0;
        for Sample { before, after, tokens } in samples {
            let at = shown(*before);
            if tokens.len() < there {
                self.problem(format_args!("a token that was there is gone at {at}"));
            }
            there = tokens.len();
            for (name, token) in tokens {
                // The LIST was answered at some moment between the two: the earlier one is in the operator's favour.
                match stage.moneygo.state_of(token, *before) {
                    TokenState::Alive => {
                        self.least_left = self.least_left.min(expiries[token].duration_since(*before).unwrap());
                    }
                    TokenState::Expired => {
                        let due = expiries[token] - LIFETIME / 3;
                        self.late(due, *before, format_args!("{name} holds an expired token at {at}"));
                    }
                    TokenState::Revoked { since } => {
                        let revoked_for = before.duration_since(since).unwrap();
                        self.longest_revoked = self.longest_revoked.max(revoked_for);
                        if revoked_for > REVOKED_FOR {
                            let what = format_args!("{name} holds a token revoked {revoked_for:?} ago at {at}");
                            self.late(since, *before, what);
                        }
                    }
                    TokenState::Unknown if stage.moneygo.state_of(token, *after) == TokenState::Unknown => {
                        self.problem(format_args!("{name} holds a token that was never issued at {at}"));
                    }
                    TokenState::Unknown => {}
                }
            }
        }
    }

    /// As many grants as the refresh times imply: each token was replaced once, after its refresh time and before its expiry.
    fn judge_grants(&mut self, stage: &Stage, name: &str, ended: SystemTime, failing: Failing) {
        let mut written: Vec<Life> = Vec::new();
        for (_, secret) in stage.scene().history_of(name) {
            let life = Life::of(secret);
            if written.last().is_none_or(|last| last.token != life.token) {
                written.push(life);
            }
        }
        let grants = stage.moneygo.grants_of(name);
        *self.grants.entry(grants.len()).or_default() += 1;
        // A connection that breaks between a grant and its answer loses a token.
        let may_be_lost = usize::from(failing == Failing::Refused);
        if grants.len() < written.len() || grants.len() > written.len() + may_be_lost {
            self.problem(format_args!("{name}: {} grants, {} tokens in the Secret", grants.len(), written.len()));
        }
        for pair in written.windows(2) {
            let Some(grant) = grants.iter().find(|grant| grant.token == pair[1].token) else { continue };
            let (due, expiry) = (pair[0].refresh_at, pair[0].expires_at);
            self.held_up += usize::from(grant.issued > due + Duration::from_millis(500));
            if grant.issued < due {
                self.problem(format_args!("{name}: a grant at {}, before its time", shown(grant.issued)));
            }
            if grant.issued >= expiry {
                self.late(due, expiry, format_args!("{name}: a grant at {}, after the expiry", shown(grant.issued)));
            }
        }
        let Some(newest) = written.last() else { return self.problem(format_args!("{name} never had a token")) };
        let soon = newest.refresh_at + Duration::from_secs(1);
        let due = if failing == Failing::Never { soon } else { newest.expires_at };
        if due < ended {
            self.late(newest.refresh_at, ended, format_args!("{name}: the newest token was not replaced in time"));
        }
    }

    fn summary(&self, stage: &Stage) -> String {
        format!(
            "{}: {} samples of a Secret; {} problems; {} excused by {} stalls; the longest gap {:?}; the least time left {:?}; the longest time revoked {:?}; \
             {} grants held up; grants per object (grants: objects) {:?}; answers {:?}",
            self.name,
            self.samples,
            self.problems.len(),
            self.excused,
            self.stalls.len(),
            self.longest_gap,
            self.least_left,
            self.longest_revoked,
            self.held_up,
            self.grants,
            stage.moneygo.status_counts()
        )
    }
}

// ---- restart and steady state ----

const MANY: usize = 200;

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_and_two_quiet_minutes_cost_nothing() {
    let stage = Stage::new("quiet").await;
    let operator = stage.operator().flag("--leader-elect").flag(VERBOSE).start().await;
    let names: Vec<String> = (0..MANY).map(|n| format!("quiet-{n}")).collect();
    futures::stream::iter(&names)
        .for_each_concurrent(8, async |name| {
            stage.subscribe(name, json!({})).await;
        })
        .await;
    let all_are_ready =
        |scene: &stage::Scene| (scene.credentials().filter(stage::is_ready).count() == MANY).then_some(());
    stage.until("all are Ready", 3 * SOON, all_are_ready).await;
    operator.stop().await;
    assert_eq!(stage.moneygo.ledger().len(), MANY);
    let before = stage.scene();

    let mark = stage.mark();
    let mut operator = stage.operator().flag("--leader-elect").flag(VERBOSE).start().await;
    all_were_looked_at(&stage, &mut operator).await;
    let steady = stage.mark();
    let restart = counts(&stage.requests(mark));
    println!("requests of a restart with {MANY} objects: {restart:#?}");
    sleep(TWO_MINUTES).await;

    let quiet = counts(&stage.requests_beside_watches(steady));
    println!("requests of two quiet minutes beside watches and the Lease: {quiet:#?}");
    println!("and with them: {:#?}", counts(&stage.requests(steady)));
    assert!(quiet.is_empty(), "{quiet:#?}");
    assert_eq!(stage.moneygo.ledger().len(), MANY, "grants after a restart");
    for kind in ["get secrets", "update secrets", "create secrets", "update moneygocredentials/status"] {
        let count = restart.get(kind).copied().unwrap_or_default();
        let allowed = usize::from(kind == "get secrets");
        assert!(count <= allowed, "{kind}: {count} times after a restart; the key of the digests is read once");
    }
    let after = stage.scene();
    for name in &names {
        let version = |scene: &stage::Scene| scene.secret(name).and_then(Secret::resource_version);
        assert_eq!(version(&before), version(&after), "the Secret {name} was written");
    }
    operator.stop().await;
}

/// Every object was reconciled at least once since the start.
async fn all_were_looked_at(stage: &Stage, operator: &mut Operator<'_>) {
    let started = stage::now();
    loop {
        let (_, metrics) = operator.get("/metrics").await.expect("metrics");
        let reconciled: f64 = metrics
            .lines()
            .filter(|line| line.contains("reconcile_total"))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum();
        if reconciled >= f64::from(u16::try_from(MANY).unwrap()) {
            return;
        }
        let waited = stage::now().duration_since(started).unwrap();
        assert!(waited < 2 * SOON, "{reconciled} reconciles after {waited:?}\n{}", stage.account());
        sleep(Duration::from_millis(20)).await;
    }
}

/// How often each kind of request was made.
fn counts(requests: &[AuditEvent]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for request in requests {
        let resource = match request.subresource.as_str() {
            "" => request.resource.clone(),
            subresource => format!("{}/{subresource}", request.resource),
        };
        *counts.entry(format!("{} {resource}", request.verb).trim().to_owned()).or_default() += 1;
    }
    counts
}
