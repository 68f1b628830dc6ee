//! Two shards: operators of one installation, each with namespaces, a Lease and a user of its own. Neither touches what the other has, and a
//! namespace that is moved from one to the other costs no token.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod stage;

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::ResourceExt as _;
use kube::api::ListParams;
use moneygo_controlplane::{AuditMark, User};
use moneygo_operator::crd::MoneyGoCredential;
use serde_json::json;
use stage::{Operator, SOON, Scene, Stage, token_of};

/// A move has the time from the issue of a token to its refresh: two thirds of this, less the jitter of a tenth.
const LIFE: Duration = Duration::from_mins(1);
const WRITES: [&str; 5] = ["create", "update", "patch", "delete", "deletecollection"];

/// An installation of two shards and three namespaces, two objects in each. That in the middle is the one that is moved.
struct Installation {
    stays: Stage,
    moves: Stage,
    other: Stage,
}

impl Installation {
    async fn open(name: &str) -> Self {
        let setup = |part: &str| Stage::setup(&format!("{name}-{part}"));
        let stays = setup("stays").moneygo(|moneygo| moneygo.expires_in(LIFE)).open().await;
        let moves = setup("moves").beside(&stays).open().await;
        let other = setup("other").beside(&stays).open().await;
        moves.let_in(&stays.user).await;
        for (stage, lease) in [(&stays, "shard-a"), (&other, "shard-b")] {
            stage.plane.forbid(&stage.user, &stage.own_namespace).await.expect("rights that can be taken");
            stage.be_at_home(&stage.user, &stage.own_namespace, lease).await;
        }
        Self { stays, moves, other }
    }

    /// Shard A: its user is that of the first stage.
    fn a(&self) -> Shard<'_> {
        Shard { of: &self.stays, lease: "shard-a", home: self.stays.own_namespace.clone() }
    }

    /// Shard B, whose user is that of the last.
    fn b(&self) -> Shard<'_> {
        Shard { of: &self.other, lease: "shard-b", home: self.other.own_namespace.clone() }
    }

    fn all(&self) -> [&Stage; 3] {
        [&self.stays, &self.moves, &self.other]
    }

    /// Two objects in each namespace, served.
    async fn subscribe_all(&self) {
        for stage in self.all() {
            for name in names(stage) {
                stage.subscribe(&name, json!({})).await;
            }
        }
        for stage in self.all() {
            for name in names(stage) {
                stage.ready(&name).await;
            }
        }
    }

    /// The users of the shards that wrote into a namespace since.
    fn writers(&self, stage: &Stage, since: AuditMark) -> BTreeSet<&str> {
        let shards = [&self.stays.user.name, &self.other.user.name];
        let requests = stage.plane.audit_events(since, None).unwrap();
        let writes = requests.iter().filter(|it| it.namespace == stage.namespace && WRITES.contains(&it.verb.as_str()));
        let users: BTreeSet<_> = writes.map(|it| it.user.as_str()).collect();
        shards.into_iter().map(String::as_str).filter(|shard| users.contains(shard)).collect()
    }

    fn grants(&self) -> usize {
        self.stays.moneygo.ledger().len()
    }
}

/// The client, and with it the object, has a name that no other namespace has: the ledger tells them apart by it.
fn names(stage: &Stage) -> [String; 2] {
    ["one", "two"].map(|name| format!("{name}-{}", stage.namespace))
}

struct Shard<'a> {
    of: &'a Stage,
    lease: &'static str,
    /// Where its Lease is, and the key of its digests.
    home: String,
}

impl<'a> Shard<'a> {
    /// An operator for these namespaces, once it is ready: it leads, or waits until the one before it is gone.
    async fn start(&self, namespaces: &[&Stage]) -> Operator<'a> {
        let flags = [
            "--leader-elect".to_owned(),
            "--leader-elect-lease-duration=3s".to_owned(),
            format!("--leader-elect-lease-name={}", self.lease),
            format!("--leader-elect-namespace={}", self.home),
            "--token-requests-per-second=200".to_owned(),
        ];
        let watched = namespaces.iter().map(|stage| format!("--watch-namespace={}", stage.namespace));
        let operator = self.of.operator().without_flag("--watch-namespace").without_flag("--leader-elect-namespace");
        let operator = flags.into_iter().chain(watched).fold(operator, stage::OperatorBuilder::flag);
        operator.start().await
    }

    /// As a rolling update does it: the new one is there before the old one goes.
    async fn replace(&self, old: Operator<'a>, namespaces: &[&Stage]) -> Operator<'a> {
        let mut new = self.start(namespaces).await;
        old.stop().await;
        leads(&mut new).await;
        new
    }
}

async fn leads(operator: &mut Operator<'_>) {
    let started = Instant::now();
    while metric(operator, "moneygo_leader").await != 1 {
        assert!(started.elapsed() < SOON, "the shard is not led");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A value of an operator's metrics; 0 where it has none of that name.
async fn metric(operator: &mut Operator<'_>, series: &str) -> usize {
    let text = operator.get("/metrics").await.map(|(_, text)| text).unwrap_or_default();
    let value = |line: &str| line.strip_prefix(series)?.trim().parse().ok();
    text.lines().find_map(value).unwrap_or_default()
}

/// How many tokens it has got so far.
async fn tokens_got(operator: &mut Operator<'_>) -> usize {
    metric(operator, "moneygo_token_requests_total{result=\"Succeeded\"}").await
}

/// The API server's answers to a user who looks around in a namespace.
async fn codes(user: &User, namespace: &str) -> [u16; 3] {
    let client = user.client().await.unwrap();
    let list = ListParams::default();
    let code = |answer: kube::Result<()>| match answer {
        Ok(()) => 200,
        Err(kube::Error::Api(status)) => status.code,
        Err(error) => panic!("{error}"),
    };
    [
        code(Api::<Secret>::namespaced(client.clone(), namespace).list(&list).await.map(drop)),
        code(Api::<MoneyGoCredential>::namespaced(client.clone(), namespace).list(&list).await.map(drop)),
        code(Api::<Secret>::all(client).list(&list).await.map(drop)),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn two_shards_never_touch_each_others_objects() {
    let here = Installation::open("apart").await;
    let mark = here.stays.mark();
    let mut a = here.a().start(&[&here.stays, &here.moves]).await;
    let mut b = here.b().start(&[&here.other]).await;
    tokio::join!(leads(&mut a), leads(&mut b));
    here.subscribe_all().await;
    let got = [tokens_got(&mut a).await, tokens_got(&mut b).await];
    assert_eq!(got, [4, 2], "each asks for the tokens of its own");

    // All that makes an operator write: a target that is edited, gone or robbed of its owner, a refresh, a new client secret.
    for stage in here.all() {
        let [one, two] = &names(stage);
        stage.patch_secret(one, json!({"metadata": {"labels": null, "ownerReferences": null}})).await;
        stage.delete_secret(two).await;
        stage.moneygo.wait_for_grants(two, 2, SOON).await.unwrap();
        stage.request_refresh(one, "now").await;
        let is_answered = |scene: &Scene| {
            (scene.credential(one)?.status?.last_handled_refresh.as_deref() == Some("now")).then_some(())
        };
        stage.until("the request is answered", SOON, is_answered).await;
        stage.ready(two).await;
    }
    let got = [tokens_got(&mut a).await, tokens_got(&mut b).await];
    assert_eq!((got, here.grants()), ([8, 4], 12), "the other shard asked for none of them");

    let (user_a, user_b) = (&here.stays.user, &here.other.user);
    for (stage, own) in [(&here.stays, user_a), (&here.moves, user_a), (&here.other, user_b)] {
        assert_eq!(here.writers(stage, mark), BTreeSet::from([own.name.as_str()]), "{}", stage.namespace);
    }
    for (user, own, foreign) in
        [(user_a, &here.moves, vec![&here.other]), (user_b, &here.other, vec![&here.stays, &here.moves])]
    {
        assert_eq!(codes(user, &own.namespace).await, [200, 200, 403]);
        for stage in foreign {
            assert_eq!(codes(user, &stage.namespace).await, [403; 3], "{} in {}", user.name, stage.namespace);
        }
    }
    // Nor was either ever refused anything: it never tried.
    for (operator, stages) in [(&a, vec![&here.other]), (&b, vec![&here.stays, &here.moves])] {
        let log = operator.log();
        assert!(stages.iter().all(|stage| !log.contains(&stage.namespace)), "a shard knows of the other's namespaces");
    }
    a.stop().await;
    b.stop().await;
}

/// The judge of the test above can tell: of two with a namespace in common, both ask for its tokens.
#[tokio::test(flavor = "multi_thread")]
async fn shards_that_overlap_are_told_of() {
    let here = Installation::open("overlap").await;
    here.moves.let_in(&here.other.user).await;
    let mark = here.stays.mark();
    let mut a = here.a().start(&[&here.stays, &here.moves]).await;
    let mut b = here.b().start(&[&here.other, &here.moves]).await;
    tokio::join!(leads(&mut a), leads(&mut b));
    here.stays.moneygo.hold_answers();
    let [name, _] = &names(&here.moves);
    here.moves.subscribe(name, json!({})).await;
    here.stays.moneygo.wait_for_held(2, SOON).await.unwrap();
    here.stays.moneygo.release();
    here.moves.ready(name).await;
    let both_ask = async {
        while tokens_got(&mut a).await == 0 || tokens_got(&mut b).await == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, both_ask).await.expect("both ask");
    let both_write = async {
        while here.writers(&here.moves, mark).len() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, both_write).await.expect("both write");
    assert!(here.grants() >= 2, "{} grants for one token", here.grants());
    a.stop().await;
    b.stop().await;
}

/// What must not change when a namespace is moved.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    name: String,
    token: String,
    secret_version: Option<String>,
    object_version: Option<String>,
}

async fn held(stage: &Stage) -> Vec<Held> {
    let mut all = Vec::new();
    for name in names(stage) {
        let (secret, object) = (stage.secret(&name).await, stage.get(&name).await);
        let (secret_version, object_version) = (secret.resource_version(), object.resource_version());
        all.push(Held { token: token_of(&secret), name, secret_version, object_version });
    }
    all
}

/// What comes after the move, whichever way it was made: B alone refreshes what is due, once, and A goes on with what it kept.
async fn judge_the_refresh(
    here: &Installation,
    a: &mut Operator<'_>,
    b: &mut Operator<'_>,
    before: &[Held],
    moved: SystemTime,
) {
    let mark = here.stays.mark();
    let got_before = [tokens_got(a).await, tokens_got(b).await];
    let all_replaced = |scene: &Scene| {
        before.iter().all(|held| scene.token(&held.name).is_some_and(|token| token != held.token)).then_some(())
    };
    here.moves.until("what was moved is refreshed", LIFE, all_replaced).await;
    for held in before {
        let grants = here.stays.moneygo.grants_of(&held.name);
        assert_eq!(grants.len(), 2, "{}: one before the move and one after it", held.name);
        assert!(
            grants[1].issued > moved,
            "it was due during the move: the machine is too slow for a token of {LIFE:?}"
        );
        assert_eq!(here.moves.token(&held.name).await, grants[1].token);
    }
    for stage in [&here.stays, &here.other] {
        for name in names(stage) {
            let token = stage.moneygo.wait_for_grants(&name, 2, LIFE).await.unwrap()[1].token.clone();
            let is_written = |scene: &Scene| (scene.token(&name)? == token).then_some(());
            stage.until("what stayed is refreshed", SOON, is_written).await;
        }
    }
    here.moves.ready(&before[0].name).await;
    let got = [tokens_got(a).await - got_before[0], tokens_got(b).await - got_before[1]];
    assert_eq!(got, [2, 4], "A asks for the tokens of the namespace that it kept, and B for those of two");
    assert_eq!(here.writers(&here.moves, mark), BTreeSet::from([here.other.user.name.as_str()]));
}

/// Both have it for a while, as in a rolling update of both at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_is_given_before_it_is_taken_costs_nothing() {
    let here = Installation::open("overlapping").await;
    let a = here.a().start(&[&here.stays, &here.moves]).await;
    let b = here.b().start(&[&here.other]).await;
    here.subscribe_all().await;
    let (before, grants, mark) = (held(&here.moves).await, here.grants(), here.stays.mark());

    here.moves.let_in(&here.other.user).await;
    let mut b = here.b().replace(b, &[&here.other, &here.moves]).await;
    // Both lead, and both look at the object.
    for name in names(&here.moves) {
        here.moves.patch(&name, json!({"metadata": {"labels": {"moved": "true"}}})).await;
    }
    let labelled = held(&here.moves).await;
    let mut a = here.a().replace(a, &[&here.stays]).await;
    here.moves.shut_out(&here.stays.user).await;
    let moved = stage::now();

    assert_eq!(here.grants(), grants, "nothing was asked for");
    assert_eq!(held(&here.moves).await, labelled, "nothing was written");
    let secrets =
        |held: &[Held]| held.iter().map(|it| (it.token.clone(), it.secret_version.clone())).collect::<Vec<_>>();
    assert_eq!(secrets(&labelled), secrets(&before), "nor while both had it");
    assert_eq!(here.writers(&here.moves, mark), BTreeSet::new());
    judge_the_refresh(&here, &mut a, &mut b, &before, moved).await;
    a.stop().await;
    b.stop().await;
}

/// Nobody has it for a while, as in the two upgrades that docs/scaling.md advises.
#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_is_taken_before_it_is_given_costs_nothing() {
    let here = Installation::open("by-turns").await;
    move_by_turns(&here, &here.b()).await;
}

/// The same to a shard of another release, in a namespace of its own, with another key for its digests.
#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_is_given_to_another_release_costs_nothing() {
    let here = Installation::open("releases").await;
    let home = here.other.plane.namespace("releases-another").await.unwrap();
    here.other.be_at_home(&here.other.user, &home, "shard-b").await;
    move_by_turns(&here, &Shard { home, ..here.b() }).await;
}

async fn move_by_turns(here: &Installation, shard_b: &Shard<'_>) {
    let a = here.a().start(&[&here.stays, &here.moves]).await;
    let b = shard_b.start(&[&here.other]).await;
    here.subscribe_all().await;
    let (before, grants, mark) = (held(&here.moves).await, here.grants(), here.stays.mark());

    let mut a = here.a().replace(a, &[&here.stays]).await;
    here.moves.shut_out(&here.stays.user).await;
    assert_eq!(codes(&here.stays.user, &here.moves.namespace).await, [403; 3]);
    here.moves.let_in(&here.other.user).await;
    let mut b = shard_b.replace(b, &[&here.other, &here.moves]).await;
    let moved = stage::now();

    assert_eq!(here.grants(), grants, "nothing was asked for");
    assert_eq!(held(&here.moves).await, before, "nothing was written");
    assert_eq!(here.writers(&here.moves, mark), BTreeSet::new());
    judge_the_refresh(here, &mut a, &mut b, &before, moved).await;
    a.stop().await;
    b.stop().await;
}
