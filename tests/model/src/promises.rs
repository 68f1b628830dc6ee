//! What must hold whenever everyone has done what there is to do.

use moneygo_operator::crd::{ConditionType, MoneyGoCredentialStatus};
use moneygo_operator::secret::Facts;
use moneygo_operator::status::condition;

use crate::setting::Setting;
use crate::turn::Broken;
use crate::world::World;

/// How a world is at rest: nobody has anything to do before time goes on or something happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// Every promise is kept.
    Kept,
    /// The Secret's token was revoked by a later grant whose token is gone, which nothing could tell the operator of. The next
    /// refresh mends it.
    Unknowable,
    /// This one is not.
    Broken(Broken),
}

impl Rest {
    /// Judges a world at rest.
    #[must_use]
    pub fn of(setting: &Setting, world: &World) -> Self {
        if world.lost_tokens() > may_lose(setting, world) {
            return Self::Broken("a crash or another's token loses one token at most, and a failover two");
        }
        match broken_of_token(setting, world) {
            None => Self::Kept,
            Some(_) if is_waiting(setting, world) => Self::Kept,
            Some(LIVING) if world.is_revoked_by_what_is_gone() => Self::Unknowable,
            Some(promise) => Self::Broken(promise),
        }
    }
}

const LIVING: Broken = "the Secret holds a living token";

/// An attempt failed, and it is not time yet to try again.
fn is_waiting(setting: &Setting, world: &World) -> bool {
    let now = world.leader.map(|leader| world.clock(setting, leader));
    now.zip(world.object.status.next_attempt_at).is_some_and(|(now, next)| now < next)
}

/// Whoever puts another token into the target while one is asked for makes that one a lost one: no clock can say which is the later.
fn may_lose(setting: &Setting, world: &World) -> u8 {
    let (given, left) = (setting.allowed, world.allowed);
    let one_each = (given.crashes - left.crashes) + (given.losses - left.losses) + (given.restores - left.restores);
    one_each + 2 * (given.handovers - left.handovers)
}

fn broken_of_token(setting: &Setting, world: &World) -> Option<Broken> {
    let object = &world.object;
    let facts = world.target.as_ref().map(|target| Facts::of(&target.metadata));
    let life = facts.as_ref().and_then(|facts| facts.marks.life);
    let marks = facts.as_ref().map(|facts| &facts.marks);
    let promises = [
        (world.replicas.iter().all(|one| one.memory.held.is_none()), "no token stays unwritten"),
        (world.token_lives(setting), LIVING),
        (marks.and_then(|marks| marks.scope.as_deref()) == Some(object.scope), "it is for the scope that is asked for"),
        (is_ready(&object.status), "the object is Ready, and its token refreshed"),
        (
            object.status.issued_at.is_some() && object.status.issued_at == life.map(|life| life.issued_at),
            "the status tells of the Secret's token",
        ),
        (object.status.expires_at == life.map(|life| life.expires_at), "the status tells when it expires"),
        (object.status.last_handled_refresh == object.refresh_requested, "the request is answered"),
        (object.status.observed_generation == Some(object.generation), "the status is about the spec as it is"),
    ];
    promises.iter().find(|(kept, _)| !kept).map(|(_, promise)| *promise)
}

fn is_ready(status: &MoneyGoCredentialStatus) -> bool {
    let is_true = |kind| condition(status, kind).is_some_and(|one| one.status == "True");
    is_true(ConditionType::Ready) && is_true(ConditionType::Refreshed)
}
