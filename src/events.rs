//! What a person is told through Kubernetes events. Best effort: an event that cannot be written holds up nothing and
//! hides no error.

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::Resource as _;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;

use crate::crd::MoneyGoCredential;
use crate::error::CALL_TIMEOUT;
use crate::secret::{FIELD_MANAGER, Owner};

/// Events that wait to be written. What comes on top of a full queue is dropped.
const QUEUE: usize = 2048;
/// Events that are being written.
const AT_ONCE: usize = 12;

/// What happened to an object, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The object.
    pub owner: Owner,
    /// Whether someone should look at it.
    pub is_warning: bool,
    /// In `CamelCase`.
    pub reason: &'static str,
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
            let recorder = if notice.is_warning { aggregating.clone() } else { recorder(&client) };
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
        tracing::debug!(namespace = %notice.owner.namespace, name = %notice.owner.name, reason = notice.reason, "an event could not be written");
    }
}

fn event(notice: &Notice) -> Event {
    Event {
        type_: if notice.is_warning { EventType::Warning } else { EventType::Normal },
        reason: notice.reason.to_owned(),
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
