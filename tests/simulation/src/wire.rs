//! What the operator's clients speak to: the API server's HTTP as a tower service, and Money-Go's as a layer.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::stream;
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::{sleep, sleep_until};
use tower::{BoxError, Layer, Service};

use crate::oracle;
use crate::schedule::{Away, Phase, RetryAfter};
use crate::store::{Kind, Refusal, is_in, metadata_of, name};
use crate::time::{self, Millis, SECOND};
use crate::world::{Fate, Odd, SILENCE_LIMIT, Shared, World, lock};

/// A watch says at least this often that it lives.
const BOOKMARK_EVERY: Millis = 60 * SECOND;
const WATCH_LIMIT: Millis = 290 * SECOND;

/// A request to the API server.
#[derive(Debug)]
pub struct Call {
    /// Its method.
    pub method: Method,
    /// Of what.
    pub kind: Kind,
    /// Where.
    pub namespace: Option<String>,
    /// Which; none for a list, a watch and a creation.
    pub name: Option<String>,
    /// Of its status.
    pub is_status: bool,
    /// Metadata alone is asked for.
    pub is_metadata: bool,
    /// A watch from that resource version on.
    pub watch_from: Option<u64>,
    /// The field manager.
    pub manager: String,
    /// What is written.
    pub body: Value,
}

impl Call {
    fn parse(parts: &http::request::Parts, body: &[u8]) -> Option<Self> {
        let mut segments = parts.uri.path().trim_matches('/').split('/');
        if segments.next()? == "apis" {
            segments.next()?;
        }
        segments.next()?;
        let mut rest: Vec<&str> = segments.collect();
        let namespace =
            (rest.len() > 2 && rest.first() == Some(&"namespaces")).then(|| rest.get(1).map(ToString::to_string));
        if namespace.is_some() {
            rest.drain(..2);
        }
        let mut rest = rest.into_iter();
        let kind = Kind::of_plural(rest.next()?)?;
        let name = rest.next().map(ToOwned::to_owned);
        let query = |field: &str| {
            let pairs = parts.uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
            pairs.filter(|(key, _)| *key == field).map(|(_, value)| value.to_owned()).next()
        };
        let accept = parts.headers.get(http::header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let is_watch = query("watch").is_some_and(|value| value == "true" || value == "1");
        let from = query("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
        Some(Self {
            method: parts.method.clone(),
            kind,
            namespace: namespace.flatten(),
            name,
            is_status: rest.next() == Some("status"),
            is_metadata: accept.contains("PartialObjectMeta"),
            watch_from: is_watch.then_some(from),
            manager: query("fieldManager").unwrap_or_else(|| "unknown".to_owned()),
            body: serde_json::from_slice(body).unwrap_or_default(),
        })
    }

    /// For traces, and for what is drawn for it.
    #[must_use]
    pub fn text(&self) -> String {
        let mut what = self.name.as_deref().unwrap_or_else(|| name(&self.body));
        if self.kind == Kind::Event {
            // The rest of its name is the machine's own time.
            what = what.split('.').next().unwrap_or_default();
        }
        let watch = if self.watch_from.is_some() { " watch" } else { "" };
        let status = if self.is_status { "/status" } else { "" };
        format!("{} {:?} {what}{status}{watch}", self.method, self.kind)
    }
}

type Answer = UnsyncBoxBody<Bytes, io::Error>;

/// A client of the API server for a node.
#[must_use]
pub fn client(world: &Shared, node: usize) -> kube::Client {
    let world = world.clone();
    let service = tower::service_fn(move |request: Request<Body>| serve(world.clone(), node, request));
    kube::Client::new(service, crate::world::OWN_NAMESPACE)
}

async fn serve(world: Shared, node: usize, request: Request<Body>) -> Result<Response<Answer>, BoxError> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let Some(call) = Call::parse(&parts, &body) else {
        lock(&world).violate("only what is known is asked", time::now(node), parts.uri.path().to_owned());
        return Err(refused());
    };
    run_on(&world, node).await;
    let fate = {
        let mut world = lock(&world);
        world.counts.requests += 1;
        oracle::look_at_request(&mut world, node, &call, parts.uri.path());
        let is_secret_write = call.kind == Kind::Secret && call.method != Method::GET;
        world.fate_of_call(node, &call.text(), is_secret_write)
    };
    travel(&world, node, fate, Phase::Before, &call.text()).await;
    wait_while_hanging(&world, node).await;
    if let Some(failure) = fail_before(&fate) {
        let (shown, at) = (fate.away, time::now(node));
        lock(&world).note(at, || format!("node {node}: {} -> {shown:?}", call.text()));
        return failure;
    }
    let answer = {
        let mut world = lock(&world);
        let now = time::now(node);
        let answer = oracle::carry_out(&mut world, node, &call, now);
        world.pulse.notify_waiters();
        let code = answer.as_ref().map_or_else(|refusal| refusal.code, |_| 200);
        if call.kind != Kind::Lease || code != 200 {
            world.note(now, || format!("node {node}: {} -> {code}", call.text()));
        }
        answer
    };
    travel(&world, node, fate, Phase::Committed, &call.text()).await;
    if fate.away == Some(Away::AnswersLost) {
        return Err(io::Error::from(io::ErrorKind::ConnectionReset).into());
    }
    if let (Some(from), Ok(_)) = (call.watch_from, &answer) {
        let watch = Watch::new(&world, node, &call, from);
        return Ok(Response::new(watch.body()));
    }
    if call.method == Method::GET && call.kind == Kind::Secret && call.name.is_some() {
        let name = call.name.clone().unwrap_or_default();
        lock(&world).has_read(node, &name);
    }
    Ok(respond(answer))
}

/// Waits while the node's processes do not run.
async fn run_on(world: &Shared, node: usize) {
    wait_until(world, |world| !world.is_stopped(node)).await;
}

async fn wait_until(world: &Shared, is_so: impl Fn(&World) -> bool) {
    let pulse = Arc::clone(&lock(world).pulse);
    loop {
        let mut next = std::pin::pin!(pulse.notified());
        next.as_mut().enable();
        if is_so(&lock(world)) {
            return;
        }
        next.await;
    }
}

/// The way there, or back; a blow may strike on it.
async fn travel(world: &Shared, node: usize, fate: Fate, phase: Phase, what: &str) {
    let length = if phase == Phase::Before { fate.before } else { fate.after };
    if phase == Phase::Before {
        strike(world, node, fate, Phase::Before, what);
        run_on(world, node).await;
    } else {
        strike(world, node, fate, Phase::Committed, what);
    }
    sleep(std::time::Duration::from_millis(length)).await;
    run_on(world, node).await;
    if phase == Phase::Committed {
        strike(world, node, fate, Phase::After, what);
    }
}

fn strike(world: &Shared, node: usize, fate: Fate, phase: Phase, what: &str) {
    if let Some((_, blow, lasts)) = fate.strike.filter(|(at, ..)| *at == phase) {
        let mut world = lock(world);
        let now = time::now(node);
        world.note(now, || format!("node {node}: struck ({phase:?}) by {what}"));
        world.strike(node, blow, lasts, now);
    }
}

fn refused() -> BoxError {
    io::Error::from(io::ErrorKind::ConnectionRefused).into()
}

/// What was sent into the void arrives when it is none any more; the operator has mostly turned away by then.
async fn wait_while_hanging(world: &Shared, node: usize) {
    wait_until(world, |world| world.away(node) != Some(Away::Hangs)).await;
    run_on(world, node).await;
}

fn fail_before(fate: &Fate) -> Option<Result<Response<Answer>, BoxError>> {
    match fate.away? {
        Away::Refused => Some(Err(refused())),
        Away::Status(code) => Some(Ok(respond(Err(Refusal { code, reason: reason(code) })))),
        Away::AnswersLost | Away::Hangs => None,
    }
}

fn reason(code: u16) -> &'static str {
    match code {
        403 => "Forbidden",
        409 => "Conflict",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        _ => "InternalError",
    }
}

fn respond(answer: Result<Value, Refusal>) -> Response<Answer> {
    let (code, value) = match answer {
        Ok(value) => (200, value),
        Err(refusal) => (refusal.code, status(refusal)),
    };
    let mut response =
        Response::new(Full::new(Bytes::from(value.to_string())).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = http::StatusCode::from_u16(code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    response
}

fn status(refusal: Refusal) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "simulated", "reason": refusal.reason, "code": refusal.code})
}

/// One watch.
struct Watch {
    world: Shared,
    node: usize,
    kind: Kind,
    namespace: Option<String>,
    is_metadata: bool,
    /// The next change to look at.
    place: usize,
    revision: u64,
    /// Changes are shown in their order.
    shown_at: Millis,
    started: Millis,
    heard: Millis,
    cuts: u64,
    ended: bool,
    pulse: Arc<Notify>,
}

enum Step {
    Show(Value),
    Break,
    End,
    WaitUntil(Millis),
}

impl Watch {
    fn new(world: &Shared, node: usize, call: &Call, from: u64) -> Self {
        let now = time::now(node);
        let held = lock(world);
        Self {
            world: world.clone(),
            node,
            kind: call.kind,
            namespace: call.namespace.clone(),
            is_metadata: call.is_metadata,
            place: held.store.place_after(from),
            revision: from,
            shown_at: now,
            started: now,
            heard: now,
            cuts: held.cuts.get(&call.kind).map_or(0, |cut| cut.0),
            ended: false,
            pulse: Arc::clone(&held.pulse),
        }
    }

    fn body(self) -> Answer {
        let lines = stream::unfold(self, |mut watch| async move {
            let line = watch.next().await?;
            Some((line.map(http_body::Frame::data), watch))
        });
        StreamBody::new(lines).boxed_unsync()
    }

    async fn next(&mut self) -> Option<Result<Bytes, io::Error>> {
        if self.ended {
            return None;
        }
        loop {
            let pulse = Arc::clone(&self.pulse);
            let mut next = std::pin::pin!(pulse.notified());
            next.as_mut().enable();
            let step = self.step(time::now(self.node));
            match step {
                Step::Show(event) => return Some(Ok(Bytes::from(format!("{event}\n")))),
                Step::Break => {
                    self.ended = true;
                    return Some(Err(io::Error::from(io::ErrorKind::ConnectionReset)));
                }
                Step::End => return None,
                Step::WaitUntil(at) => {
                    tokio::select! {
                        biased;
                        () = next => {}
                        () = sleep_until(time::instant(self.node, at)) => {}
                    }
                }
            }
        }
    }

    fn step(&mut self, now: Millis) -> Step {
        let shared = self.world.clone();
        let world = lock(&shared);
        let silent_until = self.heard + SILENCE_LIMIT;
        if world.is_stopped(self.node) {
            // What runs on is only this simulation.
            self.heard = now;
            return Step::WaitUntil(now + BOOKMARK_EVERY);
        }
        let (cuts, gone) = world.cuts.get(&self.kind).copied().unwrap_or_default();
        if cuts > self.cuts {
            self.ended = true;
            let expired = status(Refusal { code: 410, reason: "Expired" });
            return if gone { Step::Show(json!({"type": "ERROR", "object": expired})) } else { Step::End };
        }
        match world.away(self.node) {
            Some(Away::Hangs) if now >= silent_until => return Step::Break,
            Some(Away::Hangs) => return Step::WaitUntil(silent_until),
            Some(_) => return Step::Break,
            None => {}
        }
        let limit = WATCH_LIMIT * if world.setting.lifetime > time::HOUR { 6 } else { 1 };
        if now >= self.started + limit {
            return Step::End;
        }
        let next = self.next_change(&world, now);
        match next {
            Some(Ok(event)) => {
                self.heard = now;
                Step::Show(event)
            }
            _ if now >= self.heard + BOOKMARK_EVERY => {
                self.heard = now;
                Step::Show(self.bookmark())
            }
            Some(Err(at)) => Step::WaitUntil(at.min(self.heard + BOOKMARK_EVERY)),
            None => Step::WaitUntil((self.heard + BOOKMARK_EVERY).min(self.started + limit)),
        }
    }

    /// The next event, or when it comes.
    fn next_change(&mut self, world: &World, now: Millis) -> Option<Result<Value, Millis>> {
        let slow = world.watch_delay(self.kind);
        for change in world.store.log(self.place) {
            let is_ours = change.kind == self.kind && is_in(&change.object, self.namespace.as_deref());
            if is_ours {
                let Some(slow) = slow else { return Some(Err(now + SECOND * 3600)) };
                let delay = crate::random::mix(&[world.setting.seed, change.revision, self.node as u64]) % slow.max(1);
                let at = self.shown_at.max(change.at + 1 + delay);
                if at > now {
                    return Some(Err(at));
                }
                self.shown_at = at;
                self.place += 1;
                self.revision = change.revision;
                let object = if self.is_metadata { metadata_of(&change.object) } else { Value::clone(&change.object) };
                return Some(Ok(json!({"type": change.event, "object": object})));
            }
            self.place += 1;
            self.revision = change.revision;
        }
        None
    }

    fn bookmark(&self) -> Value {
        let (version, kind) =
            if self.is_metadata { ("meta.k8s.io/v1", "PartialObjectMetadata") } else { self.kind.names() };
        json!({"type": "BOOKMARK", "object": {"apiVersion": version, "kind": kind, "metadata": {"resourceVersion": self.revision.to_string(), "creationTimestamp": null}}})
    }
}

/// Puts the model in the place of the network.
#[derive(Clone)]
pub struct MoneyGo {
    /// The world that it is in.
    pub world: Shared,
    /// Who asks.
    pub node: usize,
}

impl<S> Layer<S> for MoneyGo {
    type Service = Self;

    fn layer(&self, _network: S) -> Self {
        self.clone()
    }
}

type Answered = Result<reqwest::Response, BoxError>;

impl Service<reqwest::Request> for MoneyGo {
    type Response = reqwest::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Answered> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: reqwest::Request) -> Self::Future {
        let body: Value = request
            .body()
            .and_then(reqwest::Body::as_bytes)
            .and_then(|body| serde_json::from_slice(body).ok())
            .unwrap_or_default();
        Box::pin(grant(self.world.clone(), self.node, body))
    }
}

async fn grant(world: Shared, node: usize, body: Value) -> Answered {
    run_on(&world, node).await;
    let field = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    let (client, secret, scope) = (field("client_id"), field("client_secret"), field("scope"));
    let what = format!("POST /token {client}");
    let (fate, odd) = {
        let mut world = lock(&world);
        let now = time::now(node);
        oracle::look_at_post(&mut world, node, &client, now);
        world.fate_of_grant(node)
    };
    travel(&world, node, fate, Phase::Before, &what).await;
    match fate.away {
        Some(Away::Refused) => return fail(&world, node, &what, io::ErrorKind::ConnectionRefused),
        Some(Away::Hangs) => return std::future::pending().await,
        Some(Away::Status(code)) => {
            return Ok(reply(&world, node, &what, code, None, "<html>gateway</html>".to_owned()));
        }
        _ => {}
    }
    match odd {
        Some(Odd::RateLimited(after)) => {
            let after = retry_after(after, time::now(node));
            return Ok(reply(&world, node, &what, 429, after, String::new()));
        }
        Some(Odd::Bad) => return Ok(reply(&world, node, &what, 200, None, "<html>hello</html>".to_owned())),
        None => {}
    }
    let (answer, lost) = {
        let mut world = lock(&world);
        let now = time::now(node);
        let answer = world.provider.ask(&client, &secret, &scope, now);
        let lost = answer.is_some() && world.to_lose > 0;
        world.to_lose -= u64::from(lost);
        world.counts.grants += u64::from(answer.is_some());
        if answer.is_none() && fate.away == Some(Away::AnswersLost) {
            // Who does not hear that it is refused tries again as in any outage.
            world.provider.forget_refusal(&client);
        }
        oracle::look_at_grant(&mut world, &client, answer.is_some(), now);
        if lost {
            world.lost(now);
        }
        (answer, lost)
    };
    travel(&world, node, fate, Phase::Committed, &what).await;
    if lost || fate.away == Some(Away::AnswersLost) {
        return fail(&world, node, &what, io::ErrorKind::ConnectionReset);
    }
    let Some(answer) = answer else {
        return Ok(reply(&world, node, &what, 401, None, json!({"error": "invalid_client"}).to_string()));
    };
    oracle::delivered(&mut lock(&world), &client, &answer);
    let token = json!({"token_type": "Bearer", "expires_in": answer.expires_in, "access_token": answer.token});
    Ok(reply(&world, node, &what, 200, None, token.to_string()))
}

fn fail(world: &Shared, node: usize, what: &str, kind: io::ErrorKind) -> Answered {
    let now = time::now(node);
    lock(world).note(now, || format!("node {node}: {what} -> {kind:?}"));
    Err(io::Error::from(kind).into())
}

fn reply(
    world: &Shared,
    node: usize,
    what: &str,
    code: u16,
    retry_after: Option<String>,
    body: String,
) -> reqwest::Response {
    let now = time::now(node);
    lock(world).note(now, || format!("node {node}: {what} -> {code}"));
    let mut response = Response::new(body);
    *response.status_mut() = http::StatusCode::from_u16(code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    if let Some(value) = retry_after.and_then(|value| value.parse().ok()) {
        response.headers_mut().insert(http::header::RETRY_AFTER, value);
    }
    response.into()
}

fn retry_after(after: RetryAfter, now: Millis) -> Option<String> {
    match after {
        RetryAfter::Missing => None,
        RetryAfter::Seconds(secs) => Some(secs.to_string()),
        RetryAfter::Date(secs) => {
            let date = jiff::fmt::rfc2822::DateTimePrinter::new()
                .timestamp_to_rfc9110_string(&time::timestamp(now + secs * SECOND));
            date.ok()
        }
        RetryAfter::Nonsense => Some("soon".to_owned()),
    }
}
