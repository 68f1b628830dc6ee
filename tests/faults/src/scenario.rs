//! Every state that an object can be in: how it comes about, and what an operator should make of it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::bail;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::ObjectMeta;
use moneygo_operator::clock::Clock;
use moneygo_operator::crd::annotation;
use serde_json::{Value, json};

use crate::cell::{Cell, condition};
use crate::interposer::{Moment, Point, TOKEN};
use crate::world::{Provider, Scene, World};

/// The object of every scenario.
pub const NAME: &str = "payments";
/// Its target, where it is not named after it: so that each Secret is known by its name.
pub const TARGET: &str = "payments-token";

/// A state, and what changes in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the table below says what each is")]
pub enum Scenario {
    New,
    Fresh,
    Due,
    Expired,
    Failing,
    Refused,
    Tampered,
    Stripped,
    Gone,
    Conflicting,
    Suspended,
    Deleted,
    DeletedInFlight,
    RetainedInFlight,
    Retained,
    Adopted,
    Requested,
    Rescoped,
    Rotated,
    Renamed,
    Interfered,
    Usurped,
}

/// What an operator should make of it.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// `Ready`, its status and reason; none where the object is gone.
    pub ready: Option<(&'static str, &'static str)>,
    /// The reason of `Refreshed`.
    pub refreshed: &'static str,
    /// Grants that are made where nothing fails.
    pub grants: usize,
}

const VALID: Option<(&str, &str)> = Some(("True", "TokenValid"));

impl Scenario {
    /// Each of them.
    pub const ALL: [Self; 22] = [
        Self::New,
        Self::Fresh,
        Self::Due,
        Self::Expired,
        Self::Failing,
        Self::Refused,
        Self::Tampered,
        Self::Stripped,
        Self::Gone,
        Self::Conflicting,
        Self::Suspended,
        Self::Deleted,
        Self::DeletedInFlight,
        Self::RetainedInFlight,
        Self::Retained,
        Self::Adopted,
        Self::Requested,
        Self::Rescoped,
        Self::Rotated,
        Self::Renamed,
        Self::Interfered,
        Self::Usurped,
    ];

    /// What is to come of it.
    #[must_use]
    pub fn expected(self) -> Expected {
        let (ready, refreshed, grants) = match self {
            Self::New
            | Self::Due
            | Self::Expired
            | Self::Failing
            | Self::Tampered
            | Self::Gone
            | Self::Adopted
            | Self::Requested
            | Self::Rescoped
            | Self::Rotated
            | Self::Interfered => (VALID, "Succeeded", 1),
            Self::Fresh | Self::Stripped | Self::Retained | Self::Renamed | Self::Deleted => (VALID, "Succeeded", 0),
            Self::Refused => (VALID, "InvalidClient", 0),
            Self::Conflicting => (Some(("False", "TargetConflict")), "TargetConflict", 0),
            Self::Usurped => (Some(("False", "TargetConflict")), "TargetConflict", 1),
            Self::Suspended => (VALID, "Suspended", 0),
            Self::DeletedInFlight | Self::RetainedInFlight => (None, "", 1),
        };
        Expected { ready, refreshed, grants }
    }

    /// Whether the object goes while its token is on its way.
    #[must_use]
    pub fn ends_in_flight(self) -> bool {
        matches!(self, Self::DeletedInFlight | Self::RetainedInFlight)
    }

    /// Whether what happens leaves no place for a token that is on its way.
    #[must_use]
    pub fn is_cut_short(self) -> bool {
        self.ends_in_flight() || self == Self::Usurped
    }

    /// Whether its target belongs to someone else in the end.
    #[must_use]
    pub fn is_foreign(self) -> bool {
        matches!(self, Self::Conflicting | Self::Usurped)
    }

    /// At which request something happens behind the operator's back.
    #[must_use]
    pub fn interrupted_at(self) -> Option<(Point, Moment)> {
        match self {
            Self::DeletedInFlight | Self::RetainedInFlight => Some((Point::new(TOKEN, 0), Moment::Unanswered)),
            Self::Interfered | Self::Usurped => Some((Point::new(&format!("put secrets/{TARGET}"), 0), Moment::Before)),
            _ => None,
        }
    }

    /// What happens then.
    ///
    /// # Errors
    /// Where the API server refuses.
    pub async fn interrupt(self, cell: &Cell<'_>) -> anyhow::Result<()> {
        match self {
            Self::DeletedInFlight | Self::RetainedInFlight => {
                cell.delete(NAME).await?;
                // The operator's watch is another one.
                tokio::time::sleep(Duration::from_millis(50)).await;
                Ok(())
            }
            Self::Interfered => cell.patch_secret(TARGET, json!({"stringData": {"theirs": "kept"}})).await,
            Self::Usurped => {
                cell.delete_secret(TARGET).await?;
                cell.apply_secret(&foreign(false)).await
            }
            _ => Ok(()),
        }
    }

    fn spec(self) -> Value {
        let policy = if matches!(self, Self::Retained | Self::RetainedInFlight) { "Retain" } else { "Delete" };
        json!({"target": {
            "name": TARGET, "deletionPolicy": policy, "authorizationKey": "authorization", "expiresAtKey": "expires",
            "labels": {"team": "payments"}, "annotations": {"example.com/note": "kept"},
        }})
    }

    /// By how much the operator's clock was behind that brought it about: the token is that much older now.
    fn clock_of_the_past(self, live: bool) -> Clock {
        match self {
            // A token that is due is replaced before anything changes.
            Self::Suspended | Self::Deleted if live => Clock::SYSTEM,
            Self::Interfered | Self::Usurped => Clock::new(|| days_ago(25), boot),
            Self::Due
            | Self::Refused
            | Self::Suspended
            | Self::Deleted
            | Self::DeletedInFlight
            | Self::RetainedInFlight => Clock::new(|| days_ago(25), boot),
            Self::Expired => Clock::new(|| days_ago(31), boot),
            _ => Clock::SYSTEM,
        }
    }

    /// Whether there was an operator before.
    fn has_past(self) -> bool {
        !matches!(self, Self::New | Self::Conflicting | Self::Adopted)
    }

    /// Whether the change can be made under a running operator: the endpoint's mind must be made up before.
    #[must_use]
    pub fn may_be_live(self) -> bool {
        self != Self::Refused
    }

    /// The scene in which it begins: an object at rest, or none. `live`: the change is made under a running operator.
    ///
    /// # Errors
    /// Where it cannot be set.
    pub async fn prepare(self, world: &World, provider: Provider, live: bool) -> anyhow::Result<Cell<'_>> {
        let cell = Cell::open(world, provider).await?;
        if matches!(self, Self::Conflicting | Self::Adopted) {
            cell.apply_secret(&foreign(self == Self::Adopted)).await?;
        }
        if !self.has_past() {
            return Ok(cell);
        }
        cell.subscribe(NAME, &self.spec(), json!({})).await?;
        if self == Self::Failing {
            cell.moneygo().set_secret(&cell.client_of(NAME), "another");
            cell.run_until_refused().await?;
        } else {
            cell.set_up(self.clock_of_the_past(live), None).await?;
        }
        Ok(cell)
    }

    /// What happens to it then.
    ///
    /// # Errors
    /// Where the API server refuses.
    pub async fn change(self, cell: &Cell<'_>) -> anyhow::Result<()> {
        match self {
            Self::New | Self::Conflicting | Self::Adopted => cell.subscribe(NAME, &self.spec(), json!({})).await,
            Self::Failing | Self::Rotated => cell.rotate(NAME).await,
            Self::Refused => {
                cell.moneygo().set_secret(&cell.client_of(NAME), "another");
                Ok(())
            }
            Self::Tampered => {
                let data = json!({"stringData": {"access_token": "not-the-token"}});
                cell.patch_secret(TARGET, data).await
            }
            Self::Stripped => {
                let [issued, expires, hmac] =
                    [annotation::ISSUED_AT, annotation::EXPIRES_AT, annotation::CREDENTIALS_HMAC];
                let stripped = json!({"metadata": {
                    "labels": {"app.kubernetes.io/name": null}, "annotations": {issued: null, expires: null, hmac: null},
                }});
                cell.patch_secret(TARGET, stripped).await
            }
            Self::Gone => cell.delete_secret(TARGET).await,
            Self::Suspended => cell.patch(NAME, json!({"spec": {"suspend": true}})).await,
            Self::Deleted => {
                cell.patch(NAME, json!({"metadata": {"finalizers": ["example.com/hold"]}})).await?;
                cell.delete(NAME).await
            }
            Self::Retained => {
                cell.delete(NAME).await?;
                cell.create_object(NAME, &self.spec(), json!({})).await
            }
            Self::Requested => {
                let asked = json!({"metadata": {"annotations": {annotation::REFRESH_REQUESTED: "now"}}});
                cell.patch(NAME, asked).await
            }
            Self::Rescoped => cell.patch(NAME, json!({"spec": {"scope": "api:read"}})).await,
            Self::Renamed => cell.patch(NAME, json!({"spec": {"target": {"accessTokenKey": "token"}}})).await,
            Self::Fresh
            | Self::Due
            | Self::Expired
            | Self::DeletedInFlight
            | Self::RetainedInFlight
            | Self::Interfered
            | Self::Usurped => Ok(()),
        }
    }

    /// Whether what is seen is what is expected.
    ///
    /// # Errors
    /// What is not.
    pub fn check(self, scene: &Scene) -> Result<(), String> {
        let Expected { ready, refreshed, .. } = self.expected();
        let object = scene.objects.get(NAME);
        let Some((status, reason)) = ready else {
            let is_collected = self == Self::RetainedInFlight || !scene.secrets.contains_key(TARGET);
            let is_gone = object.is_none() && is_collected;
            return is_gone.then_some(()).ok_or_else(|| "the object or its Secret is still there".to_owned());
        };
        let object = object.ok_or("there is no object")?;
        let found = condition(object, "Ready").ok_or("no Ready")?;
        if found["status"] != status || found["reason"] != reason {
            return Err(format!("Ready is {} {}", found["status"], found["reason"]));
        }
        let found = condition(object, "Refreshed").ok_or("no Refreshed")?;
        if found["reason"] != refreshed {
            return Err(format!("Refreshed is {}", found["reason"]));
        }
        Ok(())
    }
}

impl Cell<'_> {
    /// Runs an operator until it has been refused.
    async fn run_until_refused(&self) -> anyhow::Result<()> {
        let interposer = crate::interposer::Interposer::new(self.world.admin.clone());
        let replica = crate::replica::Replica::start(interposer, self.config())?;
        let refused = |scene: &Scene| {
            let object = scene.objects.get(NAME).ok_or("no object")?;
            let found = condition(object, "Refreshed").ok_or("no Refreshed")?;
            if found["reason"] == "InvalidClient" { Ok(()) } else { Err("not refused".to_owned()) }
        };
        self.settle(&replica, crate::cell::QUIET / 2, Duration::from_mins(1), refused).await?;
        replica.crash().await;
        Ok(())
    }
}

fn foreign(adopted: bool) -> Secret {
    let annotations = if adopted { vec![(annotation::ADOPT.to_owned(), NAME.to_owned())] } else { Vec::new() };
    Secret {
        metadata: ObjectMeta {
            name: Some(TARGET.to_owned()),
            annotations: Some(annotations.into_iter().collect()),
            ..ObjectMeta::default()
        },
        data: Some([("theirs".to_owned(), ByteString(b"kept".to_vec()))].into()),
        ..Secret::default()
    }
}

fn days_ago(days: i64) -> Timestamp {
    let now = Clock::SYSTEM.now();
    now.saturating_sub(SignedDuration::from_hours(24 * days)).unwrap_or(now)
}

fn boot() -> Duration {
    Clock::SYSTEM.moment().boot
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = format!("{self:?}");
        let mut text = String::new();
        for (index, letter) in name.char_indices() {
            if letter.is_uppercase() && index > 0 {
                text.push('-');
            }
            text.push(letter.to_ascii_lowercase());
        }
        f.write_str(&text)
    }
}

impl FromStr for Scenario {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        match Self::ALL.iter().find(|scenario| scenario.to_string() == text) {
            Some(scenario) => Ok(*scenario),
            None => bail!("no scenario: {text}"),
        }
    }
}
