//! What a person is told through Kubernetes events. Best effort: an event that cannot be written holds up nothing and
//! hides no error.

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::Resource as _;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;

use crate::crd::{MoneyGoCredential, Reason};
use crate::error::CALL_TIMEOUT;
use crate::secret::{FIELD_MANAGER, Owner};

/// Events that wait to be written. What comes on top of a full queue is dropped.
const QUEUE: usize = 2048;
/// Events that are being written.
const AT_ONCE: usize = 8;

/// What an event is about. docs/events.md has a row for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventReason {
    /// The target got its first token, or one in place of a token that was taken away.
    TokenIssued,
    /// A token took the place of the one before.
    TokenRefreshed,
    /// What a warning told of is over: `Refreshed` was False, and is True again.
    Recovered,
    /// A Secret that was there before belongs to the object from now on.
    TargetAdopted,
    /// Another object has the same credentials Secret.
    SharedCredentials,
    /// The API server refuses to change the target's owner.
    OwnerRefused,
    /// A condition says from now on that something fails, and this is its reason.
    Failed(Reason),
}

/// Why `Refreshed` can be False; and that the token has expired, which may be long after the first failure.
pub const FAILURES: [Reason; 15] = [
    Reason::CredentialsNotFound,
    Reason::CredentialsIncomplete,
    Reason::CredentialsMalformed,
    Reason::InvalidClient,
    Reason::RequestRejected,
    Reason::RateLimited,
    Reason::EndpointUnavailable,
    Reason::BadResponse,
    Reason::TargetConflict,
    Reason::TargetImmutable,
    Reason::TargetForbidden,
    Reason::SecretsUnavailable,
    Reason::TargetOverwritten,
    Reason::InvalidSpec,
    Reason::TokenExpired,
];

impl EventReason {
    /// Every reason.
    pub fn all() -> impl Iterator<Item = Self> {
        let of_their_own = [
            Self::TokenIssued,
            Self::TokenRefreshed,
            Self::Recovered,
            Self::TargetAdopted,
            Self::SharedCredentials,
            Self::OwnerRefused,
        ];
        of_their_own.into_iter().chain(FAILURES.map(Self::Failed))
    }

    /// The event's `reason`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TokenIssued => "TokenIssued",
            Self::TokenRefreshed => "TokenRefreshed",
            Self::Recovered => "Recovered",
            Self::TargetAdopted => "TargetAdopted",
            Self::SharedCredentials => "SharedCredentials",
            Self::OwnerRefused => "OwnerRefused",
            Self::Failed(reason) => reason.as_str(),
        }
    }

    /// Whether someone should look at it.
    #[must_use]
    pub const fn is_warning(self) -> bool {
        matches!(self, Self::SharedCredentials | Self::OwnerRefused | Self::Failed(_))
    }

    /// Whether it happens once for each token. Everything else may come again, and is counted in one event.
    const fn is_of_one_token(self) -> bool {
        matches!(self, Self::TokenIssued | Self::TokenRefreshed)
    }
}

/// What happened to an object, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The object.
    pub owner: Owner,
    /// What happened.
    pub reason: EventReason,
    /// Fixed text and names of objects. Never a secret.
    pub note: String,
}

/// Where notices are put.
#[derive(Clone)]
pub struct Notices(mpsc::Sender<Notice>);

impl Notices {
    /// A queue, and the end that [`publish`] writes from.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Notice>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(sender), receiver)
    }

    /// Queues a notice. Never waits.
    pub fn put(&self, notice: Notice) {
        if self.0.try_send(notice).is_err() {
            tracing::debug!("an event is dropped: too many wait");
        }
    }
}

/// Writes notices as events until every [`Notices`] is gone.
pub async fn publish(client: Client, mut notices: mpsc::Receiver<Notice>) {
    let aggregating = recorder(&client);
    let notices = futures::stream::poll_fn(move |cx| notices.poll_recv(cx));
    notices
        .for_each_concurrent(AT_ONCE, async |notice| {
            // A token is issued once. A recorder that has known nothing before has no memory to search and to keep.
            let recorder = if notice.reason.is_of_one_token() { recorder(&client) } else { aggregating.clone() };
            write(&recorder, &notice).await;
        })
        .await;
}

fn recorder(client: &Client) -> Recorder {
    Recorder::new(client.clone(), Reporter { controller: FIELD_MANAGER.to_owned(), instance: None })
}

async fn write(recorder: &Recorder, notice: &Notice) {
    let (event, regarding) = (event(notice), regarding(&notice.owner));
    let published = tokio::time::timeout(CALL_TIMEOUT, recorder.publish(&event, &regarding)).await;
    if !matches!(published, Ok(Ok(()))) {
        tracing::debug!(namespace = %notice.owner.namespace, name = %notice.owner.name, reason = notice.reason.as_str(), "an event could not be written");
    }
}

fn event(notice: &Notice) -> Event {
    Event {
        type_: if notice.reason.is_warning() { EventType::Warning } else { EventType::Normal },
        reason: notice.reason.as_str().to_owned(),
        note: Some(notice.note.clone()),
        action: "Reconcile".to_owned(),
        secondary: None,
    }
}

/// What an event of an object is about.
#[must_use]
pub fn regarding(owner: &Owner) -> ObjectReference {
    ObjectReference {
        api_version: Some(MoneyGoCredential::api_version(&()).into_owned()),
        kind: Some(MoneyGoCredential::kind(&()).into_owned()),
        namespace: Some(owner.namespace.clone()),
        name: Some(owner.name.clone()),
        uid: Some(owner.uid.clone()),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Of each row of the table in docs/events.md: the reason, and the type.
    fn rows() -> Vec<(&'static str, &'static str)> {
        let lines = include_str!("../docs/events.md").lines();
        let rows = lines.filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
        rows.map(|(reason, rest)| (reason, rest.split(" | ").next().unwrap_or_default())).collect()
    }

    #[test]
    fn every_reason_has_a_row_and_every_row_a_reason() {
        let kind = |reason: EventReason| if reason.is_warning() { "Warning" } else { "Normal" };
        let wanted: BTreeMap<_, _> = EventReason::all().map(|reason| (reason.as_str(), kind(reason))).collect();
        let rows = rows();
        assert_eq!(rows.iter().copied().collect::<BTreeMap<_, _>>(), wanted);
        assert_eq!(rows.len(), wanted.len(), "a reason has two rows");
    }

    #[test]
    fn every_reason_of_a_condition_is_a_failure_or_known_to_be_none() {
        use Reason::{AsExpected, Pending, Succeeded, Suspended, TokenValid};
        let harmless = [TokenValid, Pending, Succeeded, Suspended, AsExpected];
        for reason in Reason::ALL {
            assert_ne!(FAILURES.contains(reason), harmless.contains(reason), "{reason:?}");
        }
    }

    #[test]
    fn each_row_says_when_and_what_to_do() {
        for line in include_str!("../docs/events.md").lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
            assert!(cells.len() == 4 && cells.iter().all(|cell| !cell.is_empty()), "{line}");
        }
    }
}
