//! A watch's stream of events, with faults.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::bail;
use bytes::{Buf as _, Bytes, BytesMut};
use futures::StreamExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, BodyStream, StreamBody};
use hyper::body::Frame;
use serde_json::Value;
use tokio::sync::mpsc;
use tower::BoxError;

use crate::interposer::{Interposer, gone};

type AnswerBody = UnsyncBoxBody<Bytes, BoxError>;

/// How long a cache is behind.
const BEHIND: Duration = Duration::from_millis(400);
/// How long all caches stand still.
const FROZEN: Duration = Duration::from_millis(1500);
/// How long a dropped event is missing, until the watch is told that its version is too old and lists again.
const MISSING: Duration = Duration::from_millis(300);

/// What happens at an event of a watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamFault {
    /// It does not arrive; a little later the watch is cut with 410, and lists anew.
    Drop,
    /// It arrives twice.
    Duplicate,
    /// It and the one that follows arrive, then both once more: the watch goes back in time, as after a change of API servers.
    Replay,
    /// It and all that follow on this watch arrive later, so that the other watches are ahead.
    Delay,
    /// From it on, nothing arrives on any watch for a while.
    Freeze,
    /// In its place comes 410.
    Gone,
    /// In its place the connection ends.
    Cut,
}

impl StreamFault {
    /// Each of them.
    pub const ALL: [Self; 7] =
        [Self::Drop, Self::Duplicate, Self::Replay, Self::Delay, Self::Freeze, Self::Gone, Self::Cut];
}

impl fmt::Display for StreamFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Drop => "drop",
            Self::Duplicate => "duplicate",
            Self::Replay => "replay",
            Self::Delay => "delay",
            Self::Freeze => "freeze",
            Self::Gone => "gone",
            Self::Cut => "cut",
        })
    }
}

impl FromStr for StreamFault {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        match Self::ALL.iter().find(|fault| fault.to_string() == text) {
            Some(fault) => Ok(*fault),
            None => bail!("no fault of a stream: {text}"),
        }
    }
}

/// The body of a watch's answer, through the faults that are injected.
pub(crate) fn interposed(interposer: &Interposer, resource: &str, body: AnswerBody) -> AnswerBody {
    let (sender, receiver) = mpsc::unbounded_channel();
    let watch = Watch { interposer: interposer.clone(), resource: resource.to_owned(), sender, again: VecDeque::new() };
    let killed = interposer.killed();
    interposer.harness().spawn(async move { killed.run_until_cancelled(watch.forward(body)).await });
    let frames = futures::stream::unfold(receiver, |mut receiver| async move {
        let line: Bytes = receiver.recv().await?;
        Some((Ok::<_, BoxError>(Frame::data(line)), receiver))
    });
    BodyExt::boxed_unsync(StreamBody::new(frames))
}

struct Watch {
    interposer: Interposer,
    resource: String,
    sender: mpsc::UnboundedSender<Bytes>,
    again: VecDeque<Bytes>,
}

impl Watch {
    async fn forward(mut self, body: AnswerBody) {
        let mut body = BodyStream::new(body);
        let mut buffer = BytesMut::new();
        while let Some(Ok(frame)) = body.next().await {
            let Ok(data) = frame.into_data() else { continue };
            buffer.extend_from_slice(&data);
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line = buffer.split_to(end + 1).freeze();
                if !self.line(line).await {
                    return;
                }
            }
        }
    }

    /// Whether the watch goes on.
    async fn line(&mut self, line: Bytes) -> bool {
        if !self.interposer.connected().await {
            return false;
        }
        if self.sender.is_closed() {
            return false;
        }
        if !is_change(&line) {
            return self.hand_on(line);
        }
        let fault = self.interposer.event(&self.resource);
        if fault == Some(StreamFault::Freeze) {
            self.interposer.freeze_caches(FROZEN);
        }
        self.interposer.caches_thawed().await;
        match fault {
            None | Some(StreamFault::Freeze) => self.hand_on(line),
            Some(StreamFault::Duplicate) => self.hand_on(line.clone()) && self.hand_on(line),
            Some(StreamFault::Replay) => {
                let goes_on = self.hand_on(line.clone());
                self.again.push_back(line);
                goes_on
            }
            Some(StreamFault::Delay) => {
                self.interposer.hold_event(BEHIND).await;
                self.hand_on(line)
            }
            Some(StreamFault::Drop) => {
                self.interposer.hold_event(MISSING).await;
                self.gone()
            }
            Some(StreamFault::Gone) => self.gone(),
            Some(StreamFault::Cut) => false,
        }
    }

    fn gone(&self) -> bool {
        let _ = self.sender.send(Bytes::from(format!("{}\n", gone())));
        false
    }

    fn hand_on(&mut self, line: Bytes) -> bool {
        let earlier = if is_change(&line) { self.again.pop_front() } else { None };
        let went = self.sender.send(line.clone()).is_ok();
        went && earlier.is_none_or(|earlier| self.sender.send(earlier).is_ok() && self.sender.send(line).is_ok())
    }
}

/// Not a bookmark or an error.
fn is_change(line: &Bytes) -> bool {
    let event: Value = serde_json::from_reader(line.clone().reader()).unwrap_or_default();
    matches!(event["type"].as_str(), Some("ADDED" | "MODIFIED" | "DELETED"))
}
