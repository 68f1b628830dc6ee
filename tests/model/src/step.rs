//! What can happen next.

use k8s_openapi::api::core::v1::Secret;
use moneygo_operator::crd::MoneyGoCredentialStatus;
use moneygo_operator::secret::FIELD_MANAGER;

use crate::replica::{Pass, Replica, object_version};
use crate::setting::Setting;
use crate::turn::{Broken, Turn};
use crate::world::{OTHER_SCOPE, REQUEST, SCOPE, World};

/// One thing that happens. The number is a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// It begins a pass.
    Begin(u8),
    /// Its call reaches the API server or Money-Go, and is answered.
    Serve(u8),
    /// It goes on with the answer.
    Resume(u8),
    /// The watch shows it the object's next version.
    ShowObject(u8),
    /// The watch shows it the target's next event.
    ShowSecret(u8),
    /// It takes a lease that nobody has.
    Acquire(u8),
    /// It takes the other's lease.
    Handover(u8),
    /// It crashes and starts again.
    Crash(u8),
    /// It is cut off from the API server.
    Cut(u8),
    /// It reaches the API server again.
    Uncut(u8),
    /// Its call is not taken, or not answered.
    Fail(u8),
    /// Money-Go refuses its request.
    Refuse(u8),
    /// Money-Go gives it a token, and the answer is lost.
    Lose(u8),
    /// Time goes on to the next moment.
    Later,
    /// A person deletes the target.
    Delete,
    /// A person puts back what the target was at first.
    Restore,
    /// A person asks for a refresh.
    Request,
    /// A person changes the scope.
    Rescope,
}

impl Step {
    /// Whether it comes by itself, sooner or later: no fault, no person, and no matter of time.
    #[must_use]
    pub fn is_due(self) -> bool {
        matches!(
            self,
            Self::Begin(_)
                | Self::Serve(_)
                | Self::Resume(_)
                | Self::ShowObject(_)
                | Self::ShowSecret(_)
                | Self::Acquire(_)
        )
    }

    fn replica(self) -> Option<usize> {
        match self {
            Self::Begin(at)
            | Self::Serve(at)
            | Self::Resume(at)
            | Self::ShowObject(at)
            | Self::ShowSecret(at)
            | Self::Acquire(at)
            | Self::Handover(at)
            | Self::Crash(at)
            | Self::Cut(at)
            | Self::Uncut(at)
            | Self::Fail(at)
            | Self::Refuse(at)
            | Self::Lose(at) => Some(usize::from(at)),
            Self::Later | Self::Delete | Self::Restore | Self::Request | Self::Rescope => None,
        }
    }
}

/// Everything that can happen next.
#[must_use]
pub fn steps(setting: &Setting, world: &World) -> Vec<Step> {
    let mut steps = Vec::new();
    for (at, number) in (0..world.replicas.len()).zip(0_u8..) {
        of_replica(setting, world, at, number, &mut steps);
    }
    let (allowed, has_target) = (world.allowed, world.target.is_some());
    let is_first = world.target.as_ref().zip(world.first.as_ref()).is_none_or(|(now, first)| now.data == first.data);
    let people = [
        (Step::Later, world.moment + 1 < setting.moments.len()),
        (Step::Delete, allowed.deletions > 0 && has_target),
        (Step::Restore, allowed.restores > 0 && !is_first),
        (Step::Request, allowed.requests > 0),
        (Step::Rescope, allowed.scopes > 0),
    ];
    steps.extend(people.into_iter().filter_map(|(step, can)| can.then_some(step)));
    steps
}

fn of_replica(setting: &Setting, world: &World, at: usize, number: u8, steps: &mut Vec<Step>) {
    let (one, allowed) = (&world.replicas[at], world.allowed);
    let is_cut = world.cut == Some(at);
    let asks = matches!(one.pass, Pass::Ask { .. });
    let is_sent = !one.is_idle() && !one.is_answered();
    // What a standby sees, and when, shows only once it is called.
    let sees = !is_cut && !world.stands_by(at);
    let is_due = one.called || one.timer.is_some_and(|timer| timer <= world.clock(setting, at));
    let can = [
        (Step::Begin(number), one.is_idle() && is_due),
        (Step::Serve(number), is_sent),
        (Step::Resume(number), one.is_answered() && (asks || !is_cut)),
        (Step::ShowObject(number), sees && !one.objects.is_empty()),
        (Step::ShowSecret(number), sees && !one.secrets.is_empty()),
        (Step::Acquire(number), !is_cut && world.leader.is_none()),
        (Step::Handover(number), !is_cut && allowed.handovers > 0 && world.leader.is_some_and(|leader| leader != at)),
        (Step::Crash(number), allowed.crashes > 0),
        (Step::Cut(number), allowed.cuts > 0 && world.cut.is_none()),
        (Step::Uncut(number), is_cut),
        (Step::Fail(number), is_cut && !asks && !one.is_idle()),
        (Step::Refuse(number), asks && is_sent && allowed.refusals > 0),
        (Step::Lose(number), asks && is_sent && allowed.losses > 0),
    ];
    steps.extend(can.into_iter().filter_map(|(step, can)| can.then_some(step)));
}

/// What is there after a step, and the promise that was not kept on the way.
#[must_use]
pub fn after(setting: &Setting, before: &World, step: Step) -> (World, Option<Broken>) {
    let mut world = before.clone();
    let broken = take(setting, &mut world, step);
    world.show_what_is_no_news();
    (world, broken)
}

fn take(setting: &Setting, world: &mut World, step: Step) -> Option<Broken> {
    let Some(at) = step.replica() else {
        beside(world, step);
        return None;
    };
    if matches!(step, Step::Fail(_)) {
        answer_with_nothing(&mut world.replicas[at]);
    }
    match step {
        Step::Begin(_) | Step::Resume(_) | Step::Fail(_) => {
            let mut turn = Turn { setting, world, at, broken: None };
            if matches!(step, Step::Begin(_)) {
                turn.begin();
            } else {
                turn.resume();
            }
            turn.broken
        }
        Step::Serve(_) => serve(setting, world, at),
        _ => {
            happen(setting, world, at, step);
            None
        }
    }
}

fn beside(world: &mut World, step: Step) {
    let allowed = &mut world.allowed;
    match step {
        Step::Later => {
            world.moment += 1;
            return;
        }
        Step::Delete => allowed.deletions -= 1,
        Step::Restore => allowed.restores -= 1,
        Step::Request => allowed.requests -= 1,
        _ => allowed.scopes -= 1,
    }
    world.causes += 1;
    match step {
        Step::Delete => world.delete_target(),
        Step::Restore => world.restore_target(),
        Step::Request => world.put_object(|object| object.refresh_requested = Some(REQUEST.to_owned())),
        _ => world.put_object(|object| (object.scope, object.generation) = (OTHER_SCOPE, object.generation + 1)),
    }
}

fn happen(setting: &Setting, world: &mut World, at: usize, step: Step) {
    match step {
        Step::ShowObject(_) if world.replicas[at].see_object() => world.call(at),
        Step::ShowSecret(_) if world.replicas[at].see_secret() => world.call(at),
        Step::Acquire(_) => world.give_lease(at),
        Step::Handover(_) => {
            world.allowed.handovers -= 1;
            world.give_lease(at);
        }
        Step::Crash(_) => crash(world, at),
        Step::Cut(_) => {
            world.allowed.cuts -= 1;
            world.cut = Some(at);
        }
        Step::Uncut(_) => world.cut = None,
        Step::Refuse(_) => {
            world.allowed.refusals -= 1;
            answer_with_nothing(&mut world.replicas[at]);
        }
        Step::Lose(_) => {
            world.allowed.losses -= 1;
            world.causes += 1;
            let _ = serve(setting, world, at);
            world.lose_token(world.replicas[at].token_at_hand());
            answer_with_nothing(&mut world.replicas[at]);
        }
        _ => {}
    }
}

fn crash(world: &mut World, at: usize) {
    world.allowed.crashes -= 1;
    world.lose_token(world.replicas[at].token_at_hand());
    world.replicas[at] = Replica::new(world.object.clone(), world.target.as_deref(), world.version);
    world.leader = world.leader.filter(|leader| *leader != at);
    world.cut = world.cut.filter(|cut| *cut != at);
}

fn answer_with_nothing(one: &mut Replica) {
    match &mut one.pass {
        Pass::Idle => {}
        Pass::Look { answer, .. } => *answer = Some(None),
        Pass::Ask { answer, .. } => *answer = Some(None),
        Pass::Write { answer, .. } => *answer = Some(None),
        Pass::Report { answer, .. } => *answer = Some(None),
    }
}

fn serve(setting: &Setting, world: &mut World, at: usize) -> Option<Broken> {
    let mut pass = std::mem::replace(&mut world.replicas[at].pass, Pass::Idle);
    let mut broken = None;
    match &mut pass {
        Pass::Idle => {}
        Pass::Look { answer, .. } => *answer = Some(Some(world.target.clone())),
        Pass::Ask { o, answer, .. } => {
            let is_first = o.spec.as_ref().is_ok_and(|spec| spec.scope == SCOPE);
            *answer = Some(Some(world.grant(setting, if is_first { SCOPE } else { OTHER_SCOPE })));
        }
        Pass::Write { secret, answer, .. } => {
            *answer = Some(world.put_target(FIELD_MANAGER, Secret::clone(secret)).map(Into::into));
        }
        Pass::Report { version, status, answer, .. } => {
            if **version == object_version(world.object.version) {
                let told = status.issued_at;
                if told.is_some_and(|told| !world.held.contains(&told)) {
                    broken = Some("the status tells of no token that the Secret did not hold before");
                }
                world.put_object(|object| object.status = MoneyGoCredentialStatus::clone(status));
                *answer = Some(Some(world.object.version));
            } else {
                *answer = Some(None);
            }
        }
    }
    world.replicas[at].pass = pass;
    broken
}
