//! Answers that a test wrote: what is sent in place of the genuine answer, when, and how fast.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use http::{Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;

pub(crate) type AnswerBody = UnsyncBoxBody<Bytes, io::Error>;

/// The size of each chunk of a body that has no end, in bytes.
const ENDLESS_CHUNK_BYTES: usize = 16 * 1024;

/// One scripted answer to `POST /token`. It is given once, unless [`times`](Self::times) or [`forever`](Self::forever) says otherwise.
///
/// Scripts stand in a queue, one for each client and one for all; the first whose [`when`](Self::when) holds is taken, a client's own
/// before the one for all. Without a script the endpoint answers genuinely.
#[derive(Clone)]
pub struct Script {
    pub(crate) answer: Answer,
    pub(crate) after_grant: bool,
    pub(crate) delay: Duration,
    pub(crate) pace: Pace,
    remaining: Option<u32>,
    when: Option<Predicate>,
}

type Predicate = Arc<dyn Fn(SystemTime) -> bool + Send + Sync>;

#[derive(Clone)]
pub(crate) enum Answer {
    Endpoint,
    Canned(Canned),
    Raw(Bytes),
    Close,
    Reset,
    Hang,
}

#[derive(Clone, Debug)]
pub(crate) struct Canned {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

/// How a body travels. `Content-Length` promises all of it, unless the script's headers have a `Content-Length` or
/// `Transfer-Encoding` of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pace {
    /// At once.
    #[default]
    Whole,
    /// A few bytes at a time.
    Drip {
        /// Bytes in each piece (0 counts as 1).
        chunk_bytes: usize,
        /// The wait before each piece.
        interval: Duration,
    },
    /// The head and the first bytes, then the connection is closed.
    CutAfter {
        /// Bytes of the body that are sent.
        bytes: usize,
    },
    /// As `CutAfter`, but ended with a TCP reset.
    ResetAfter {
        /// Bytes of the body that are sent.
        bytes: usize,
    },
    /// The head and the first bytes, then nothing more on an open connection.
    HangAfter {
        /// Bytes of the body that are sent.
        bytes: usize,
    },
    /// The body, then spaces for ever (chunked, as no length could be promised).
    Endless,
}

impl Script {
    fn new(answer: Answer) -> Self {
        Self { answer, after_grant: false, delay: Duration::ZERO, pace: Pace::Whole, remaining: Some(1), when: None }
    }

    /// The genuine answer, to be late, cut or slow; or to let a number of requests pass before the next script.
    #[must_use]
    pub fn endpoint() -> Self {
        Self::new(Answer::Endpoint)
    }

    /// This status (200 to 999), with no headers and this body. What cannot be sent is answered with 500 and `invalid script`.
    #[must_use]
    pub fn canned(status: u16, body: impl Into<Bytes>) -> Self {
        Self::new(Answer::Canned(Canned { status, headers: Vec::new(), body: body.into() }))
    }

    /// This status with an empty body.
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self::canned(status, Bytes::new())
    }

    /// This status with this text as `application/json`; the text need not be JSON.
    #[must_use]
    pub fn json(status: u16, body: impl Into<Bytes>) -> Self {
        Self::canned(status, body).header("content-type", "application/json")
    }

    /// 200 with a body that is said to be gzip; the bytes are sent as they are given.
    #[must_use]
    pub fn gzip(body: impl Into<Bytes>) -> Self {
        Self::json(200, body).header("content-encoding", "gzip")
    }

    /// A redirect with this status (302, 307, 308, …).
    #[must_use]
    pub fn redirect(status: u16, location: &str) -> Self {
        Self::status(status).header("location", location)
    }

    /// These bytes in place of an HTTP answer, then the connection is closed.
    #[must_use]
    pub fn raw(bytes: impl Into<Bytes>) -> Self {
        Self::new(Answer::Raw(bytes.into()))
    }

    /// The connection is closed before any answer (over TLS without `close_notify`).
    #[must_use]
    pub fn close() -> Self {
        Self::new(Answer::Close)
    }

    /// The connection is reset before any answer.
    #[must_use]
    pub fn reset() -> Self {
        Self::new(Answer::Reset)
    }

    /// No answer, on a connection that stays open until the client leaves.
    #[must_use]
    pub fn hang() -> Self {
        Self::new(Answer::Hang)
    }

    /// Adds a header to a canned answer; without effect on the others.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        if let Answer::Canned(canned) = &mut self.answer {
            canned.headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    /// Makes a genuine grant first, which the ledger keeps, then gives this answer in its place: a token that was issued and lost.
    /// `{token}` in a canned body becomes the token. A request that the endpoint refuses gets the refusal (and uses the script up).
    #[must_use]
    pub fn after_grant(mut self) -> Self {
        self.after_grant = true;
        self
    }

    /// Waits before answering; a grant is made before the wait.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// How the body travels.
    #[must_use]
    pub fn pace(mut self, pace: Pace) -> Self {
        self.pace = pace;
        self
    }

    /// Answers this many requests instead of one.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.remaining = Some(times);
        self
    }

    /// Answers every request until the scripts are cleared.
    #[must_use]
    pub fn forever(mut self) -> Self {
        self.remaining = None;
        self
    }

    /// Applies only while this holds of the time at which the request is answered.
    #[must_use]
    pub fn when(mut self, holds: impl Fn(SystemTime) -> bool + Send + Sync + 'static) -> Self {
        self.when = Some(Arc::new(holds));
        self
    }

    fn applies(&self, now: SystemTime) -> bool {
        self.remaining != Some(0) && self.when.as_ref().is_none_or(|holds| holds(now))
    }
}

/// The scripts that wait for requests.
#[derive(Default)]
pub(crate) struct Scripts {
    by_client: HashMap<String, VecDeque<Script>>,
    for_all: VecDeque<Script>,
}

impl Scripts {
    pub fn push(&mut self, client: Option<&str>, script: Script) {
        match client {
            Some(client) => self.by_client.entry(client.to_owned()).or_default().push_back(script),
            None => self.for_all.push_back(script),
        }
    }

    pub fn clear(&mut self, client: Option<&str>) {
        match client {
            Some(client) => drop(self.by_client.remove(client)),
            None => *self = Self::default(),
        }
    }

    pub fn take(&mut self, client: Option<&str>, now: SystemTime) -> Option<Script> {
        client
            .and_then(|client| self.by_client.get_mut(client))
            .and_then(|queue| take_from(queue, now))
            .or_else(|| take_from(&mut self.for_all, now))
    }
}

fn take_from(queue: &mut VecDeque<Script>, now: SystemTime) -> Option<Script> {
    queue.retain(|script| script.remaining != Some(0));
    let script = queue.iter_mut().find(|script| script.applies(now))?;
    script.remaining = script.remaining.map(|left| left - 1);
    Some(script.clone())
}

impl Canned {
    pub fn fill_in(&mut self, token: &str) {
        if let Ok(text) = std::str::from_utf8(&self.body) {
            self.body = text.replace("{token}", token).into();
        }
    }

    /// The answer on its way, at its pace.
    pub fn respond(self, pace: Pace) -> Response<AnswerBody> {
        let mut head = Response::builder().status(self.status);
        for (name, value) in &self.headers {
            head = head.header(name, value);
        }
        let length = self.body.len();
        let mut response = match head.body(paced(self.body, pace)) {
            Ok(response) if response.status().as_u16() >= 200 => response,
            Ok(_) | Err(_) => return invalid_script(),
        };
        let headers = response.headers_mut();
        let framed = headers.contains_key(header::TRANSFER_ENCODING) || headers.contains_key(header::CONTENT_LENGTH);
        if pace != Pace::Endless && !framed {
            headers.insert(header::CONTENT_LENGTH, length.into());
        }
        response
    }
}

fn invalid_script() -> Response<AnswerBody> {
    let mut response = Response::new(paced(Bytes::from_static(b"invalid script"), Pace::Whole));
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}

fn paced(body: Bytes, pace: Pace) -> AnswerBody {
    match pace {
        Pace::Whole => Full::new(body).map_err(|never| match never {}).boxed_unsync(),
        Pace::Drip { chunk_bytes, interval } => streamed(drip(body, chunk_bytes.max(1), interval)),
        Pace::CutAfter { bytes } | Pace::ResetAfter { bytes } => {
            streamed(first(&body, bytes).chain(stream::once(cut())))
        }
        Pace::HangAfter { bytes } => streamed(first(&body, bytes).chain(stream::pending())),
        Pace::Endless => streamed(first(&body, body.len()).chain(spaces())),
    }
}

fn streamed(pieces: impl stream::Stream<Item = io::Result<Bytes>> + Send + 'static) -> AnswerBody {
    StreamBody::new(pieces.map(|piece| piece.map(Frame::data))).boxed_unsync()
}

fn first(body: &Bytes, bytes: usize) -> impl stream::Stream<Item = io::Result<Bytes>> + use<> {
    let piece = body.slice(..bytes.min(body.len()));
    stream::iter((!piece.is_empty()).then_some(Ok(piece)))
}

/// hyper writes out what it holds only when the body has nothing ready: without the yield, the cut would swallow the bytes before it.
async fn cut() -> io::Result<Bytes> {
    tokio::task::yield_now().await;
    Err(io::ErrorKind::ConnectionAborted.into())
}

fn drip(body: Bytes, chunk_bytes: usize, interval: Duration) -> impl stream::Stream<Item = io::Result<Bytes>> {
    stream::unfold(body, move |mut rest| async move {
        if rest.is_empty() {
            return None;
        }
        tokio::time::sleep(interval).await;
        let piece = rest.split_to(chunk_bytes.min(rest.len()));
        Some((Ok(piece), rest))
    })
}

fn spaces() -> impl stream::Stream<Item = io::Result<Bytes>> {
    const SPACES: &[u8] = &[b' '; ENDLESS_CHUNK_BYTES];
    stream::repeat_with(|| Ok(Bytes::from_static(SPACES)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn status_of(taken: Option<Script>) -> Option<u16> {
        match taken?.answer {
            Answer::Canned(canned) => Some(canned.status),
            _ => None,
        }
    }

    #[test]
    fn a_clients_own_scripts_come_first_each_as_often_as_it_says() {
        let mut scripts = Scripts::default();
        scripts.push(None, Script::status(500).forever());
        scripts.push(Some("a"), Script::status(401).times(2));
        scripts.push(Some("a"), Script::status(403));
        let mut next = |client| status_of(scripts.take(client, NOW));
        let given: Vec<_> = (0..4).map(|_| next(Some("a"))).collect();
        assert_eq!(given, [Some(401), Some(401), Some(403), Some(500)]);
        assert_eq!(next(Some("b")), Some(500));
        assert_eq!(next(None), Some(500));
        scripts.clear(None);
        assert!(scripts.take(Some("a"), NOW).is_none());
    }

    #[test]
    fn a_script_whose_time_has_not_come_is_passed_over() {
        let mut scripts = Scripts::default();
        scripts.push(None, Script::status(500).when(|now| now > NOW));
        scripts.push(None, Script::status(502));
        assert_eq!(status_of(scripts.take(None, NOW)), Some(502));
        assert_eq!(status_of(scripts.take(None, NOW)), None);
        assert_eq!(status_of(scripts.take(None, NOW + Duration::from_secs(1))), Some(500));
    }
}
