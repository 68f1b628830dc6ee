//! What stands between an operator and the two servers that it talks to, and injects faults.
//!
//! Every request of one operator passes [`Interposer`]: those to the API server as the service under kube's client, those to
//! the token endpoint as a layer of [`TokenClient`](moneygo_operator::token::TokenClient). A request is named by a [`Point`]:
//! what it does to what, and which of its kind it is. What is sent is driven to its end by a task of the harness, so that it is
//! committed even where the operator does not live to see the answer.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::str::FromStr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use kube::Client;
use kube::client::Body;
use moneygo_operator::token::Transport;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tower::{BoxError, Layer, Service, ServiceExt as _};

use crate::canary;
use crate::stream::{self, StreamFault};

/// What the request for a token is called.
pub const TOKEN: &str = "post token";

/// One request, or one event of a watch: what it is, and which of its kind since the faults were armed, from 1.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Point {
    /// `put secrets/payments`, `post token`, `event secrets`, …
    pub what: String,
    /// Which of its kind.
    pub nth: usize,
}

impl Point {
    /// Names one.
    #[must_use]
    pub fn new(what: &str, nth: usize) -> Self {
        Self { what: what.to_owned(), nth }
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.what, self.nth)
    }
}

impl FromStr for Point {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (what, nth) = text.rsplit_once('#').context("a point is WHAT#N")?;
        Ok(Self::new(what, nth.parse()?))
    }
}

/// When, with regard to a request, something happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Moment {
    /// It is not sent.
    Before,
    /// It is committed, and its answer does not arrive.
    Unanswered,
    /// Its answer has arrived.
    After,
}

/// How an operator is cut off from the API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cut {
    /// Nothing is answered.
    Silent,
    /// Connections fail.
    Refused,
}

/// What happens at a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The operator ends, at once and for good.
    Crash(Moment),
    /// It stands still, as after SIGSTOP, until [`Interposer::release`].
    Freeze(Moment),
    /// It is cut off from the API server, but not from the token endpoint, until [`Interposer::release`].
    Partition(Cut, Moment),
    /// The request is committed, and the connection breaks before its answer.
    Lose,
    /// The request is not sent, and answered with this status.
    Answer(u16),
    /// The request is held for this long, then sent.
    Hold(Duration),
    /// The request is committed, and its answer arrives this much later.
    Late(Duration),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moment = |moment: &Moment| match moment {
            Moment::Before => "before",
            Moment::Unanswered => "unanswered",
            Moment::After => "after",
        };
        match self {
            Self::Crash(at) => write!(f, "crash-{}", moment(at)),
            Self::Freeze(at) => write!(f, "freeze-{}", moment(at)),
            Self::Partition(Cut::Silent, at) => write!(f, "silence-{}", moment(at)),
            Self::Partition(Cut::Refused, at) => write!(f, "refusal-{}", moment(at)),
            Self::Lose => f.write_str("lose"),
            Self::Answer(status) => write!(f, "answer-{status}"),
            Self::Hold(time) => write!(f, "hold-{}", time.as_millis()),
            Self::Late(time) => write!(f, "late-{}", time.as_millis()),
        }
    }
}

impl FromStr for Fault {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (kind, rest) = text.split_once('-').unwrap_or((text, ""));
        let moment = || match rest {
            "before" => Ok(Moment::Before),
            "unanswered" => Ok(Moment::Unanswered),
            "after" => Ok(Moment::After),
            _ => bail!("no moment: {text}"),
        };
        Ok(match kind {
            "crash" => Self::Crash(moment()?),
            "freeze" => Self::Freeze(moment()?),
            "silence" => Self::Partition(Cut::Silent, moment()?),
            "refusal" => Self::Partition(Cut::Refused, moment()?),
            "lose" => Self::Lose,
            "answer" => Self::Answer(rest.parse()?),
            "hold" => Self::Hold(Duration::from_millis(rest.parse()?)),
            "late" => Self::Late(Duration::from_millis(rest.parse()?)),
            _ => bail!("no fault: {text}"),
        })
    }
}

/// A request as it was seen.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Which it was.
    pub point: Point,
    /// The status of its answer, once there was one.
    pub status: Option<u16>,
}

/// What a rule applies to.
type Applies = Arc<dyn Fn(&Point) -> bool + Send + Sync>;
/// What the world does, once, before a request is answered.
type Intervention = BoxFuture<'static, ()>;

#[derive(Default)]
struct State {
    counts: HashMap<String, usize>,
    seen: Vec<Seen>,
    rules: Vec<(Applies, Fault)>,
    hits: usize,
    interventions: Vec<(Point, Moment, Intervention)>,
    cut: Option<Cut>,
    frozen: bool,
    caches_frozen_until: Option<Instant>,
    in_flight: usize,
    last_activity: Option<Instant>,
    events: Vec<Point>,
    stream_faults: Vec<(Point, StreamFault)>,
}

struct Inner {
    harness: Handle,
    base: Client,
    state: Mutex<State>,
    thawed: Condvar,
    changed: watch::Sender<u64>,
    killed: CancellationToken,
}

/// See the module.
#[derive(Clone)]
pub struct Interposer(Arc<Inner>);

type AnswerBody = UnsyncBoxBody<Bytes, BoxError>;

struct Call {
    what: String,
    is_watch: bool,
    of_api: bool,
}

impl Call {
    fn of(parts: &http::request::Parts) -> Self {
        let query = parts.uri.query().unwrap_or_default();
        let is_watch = query.split('&').any(|pair| pair == "watch=true" || pair == "watch=1");
        let path = parts.uri.path().trim_start_matches('/');
        let mut segments: Vec<&str> = path.split('/').collect();
        segments.drain(..if path.starts_with("apis/") { 3 } else { 2 }.min(segments.len()));
        let resource = match segments.as_slice() {
            ["namespaces", _] => "namespaces".to_owned(),
            ["namespaces", _, rest @ ..] | rest => rest.join("/"),
        };
        let is_list = parts.method == http::Method::GET && !resource.contains('/') && resource != "namespaces";
        let verb = match () {
            () if is_watch => "watch".to_owned(),
            () if is_list => "list".to_owned(),
            () => parts.method.as_str().to_lowercase(),
        };
        Self { what: format!("{verb} {resource}"), is_watch, of_api: true }
    }
}

/// What is to become of a call, decided before it is sent.
enum Verdict {
    Send(Option<Fault>),
    Answer(u16),
    Refuse,
    Wait,
    Never,
}

impl Interposer {
    /// Before `base`. What is sent runs on the current runtime, whatever becomes of the operator.
    #[must_use]
    pub fn new(base: Client) -> Self {
        Self(Arc::new(Inner {
            harness: Handle::current(),
            base,
            state: Mutex::default(),
            thawed: Condvar::new(),
            changed: watch::Sender::default(),
            killed: CancellationToken::new(),
        }))
    }

    /// A client whose every request passes here. To be called on the operator's own runtime.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(ApiService(self.clone()), "default")
    }

    /// The runtime on which requests are driven to their end.
    pub(crate) fn harness(&self) -> &Handle {
        &self.0.harness
    }

    /// Is cancelled as the operator crashes.
    #[must_use]
    pub fn killed(&self) -> CancellationToken {
        self.0.killed.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state());
        self.0.changed.send_modify(|version| *version += 1);
        result
    }

    /// Injects a fault at one point.
    pub fn inject(&self, at: Point, fault: Fault) {
        self.inject_where(move |point| *point == at, fault);
    }

    /// Injects a fault wherever `applies`.
    pub fn inject_where(&self, applies: impl Fn(&Point) -> bool + Send + Sync + 'static, fault: Fault) {
        self.state().rules.push((Arc::new(applies), fault));
    }

    /// Injects a fault at one event of a watch.
    pub fn inject_in_stream(&self, at: Point, fault: StreamFault) {
        self.state().stream_faults.push((at, fault));
    }

    /// Does something, once, between a request and its end: before it is sent, or before its answer is handed on. The 0th of a
    /// kind is the first that is sent.
    pub fn intervene(&self, at: Point, moment: Moment, what: impl Future<Output = ()> + Send + 'static) {
        self.state().interventions.push((at, moment, what.boxed()));
    }

    /// Counts points from here on, and forgets what was seen.
    pub fn restart_count(&self) {
        let mut state = self.state();
        state.counts.clear();
        state.seen.clear();
        state.events.clear();
    }

    /// No fault any more.
    pub fn disarm(&self) {
        let mut state = self.state();
        state.rules.clear();
        state.stream_faults.clear();
    }

    /// How many faults were injected.
    #[must_use]
    pub fn hits(&self) -> usize {
        self.state().hits
    }

    /// The requests since the count began, but for lists and watches.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.state().seen.clone()
    }

    /// The events that watches have shown since the count began.
    #[must_use]
    pub fn events(&self) -> Vec<Point> {
        self.state().events.clone()
    }

    /// Ends the operator at once. Nothing that it does from here on gets anywhere.
    pub fn kill(&self) {
        self.0.killed.cancel();
        self.release();
    }

    /// Ends a freeze and a partition.
    pub fn release(&self) {
        self.change(|state| {
            state.frozen = false;
            state.cut = None;
        });
        self.0.thawed.notify_all();
    }

    /// Waits until a fault was injected.
    pub async fn hit(&self, limit: Duration) -> bool {
        self.wait(limit, |state| state.hits > 0).await
    }

    /// Waits until nothing that was sent is without an answer.
    pub async fn drained(&self, limit: Duration) -> bool {
        self.wait(limit, |state| state.in_flight == 0).await
    }

    async fn wait(&self, limit: Duration, mut holds: impl FnMut(&State) -> bool) -> bool {
        let mut changed = self.0.changed.subscribe();
        let waiting = async {
            loop {
                if holds(&self.state()) {
                    return;
                }
                // The sender is ours, so it cannot be gone.
                let _ = changed.changed().await;
            }
        };
        tokio::time::timeout(limit, waiting).await.is_ok()
    }

    /// How long it is since the last request or event; none while a request is under way.
    #[must_use]
    pub fn quiet(&self) -> Option<Duration> {
        let state = self.state();
        (state.in_flight == 0).then(|| state.last_activity.map(|at| at.elapsed()).unwrap_or_default())
    }

    fn is_dead(&self) -> bool {
        self.0.killed.is_cancelled()
    }

    /// Takes note of a call and decides on it.
    fn judge(&self, call: &Call) -> (Point, Verdict) {
        self.change(|state| {
            if !is_of_the_lease(&call.what) {
                state.last_activity = Some(Instant::now());
            }
            let count = state.counts.entry(call.what.clone()).or_default();
            *count += 1;
            let point = Point::new(&call.what, *count);
            if !call.what.starts_with("watch ") && !call.what.starts_with("list ") && !is_of_the_lease(&call.what) {
                state.seen.push(Seen { point: point.clone(), status: None });
            }
            if self.is_dead() {
                return (point, Verdict::Never);
            }
            match state.cut.filter(|_| call.of_api) {
                Some(Cut::Silent) => return (point, Verdict::Wait),
                Some(Cut::Refused) => return (point, Verdict::Refuse),
                None => {}
            }
            let fault = state.rules.iter().find(|(applies, _)| applies(&point)).map(|(_, fault)| *fault);
            if fault.is_some() {
                state.hits += 1;
            }
            let verdict = match fault {
                Some(Fault::Answer(status)) => Verdict::Answer(status),
                Some(Fault::Crash(Moment::Before)) => Verdict::Never,
                Some(Fault::Partition(cut, Moment::Before)) => {
                    state.cut = Some(cut);
                    match (call.of_api, cut) {
                        (true, Cut::Silent) => Verdict::Wait,
                        (true, Cut::Refused) => Verdict::Refuse,
                        (false, _) => Verdict::Send(None),
                    }
                }
                Some(Fault::Freeze(Moment::Before)) => {
                    state.frozen = true;
                    Verdict::Send(None)
                }
                other => Verdict::Send(other),
            };
            (point, verdict)
        })
    }

    fn intervention(&self, point: &Point, moment: Moment) -> Option<Intervention> {
        let mut state = self.state();
        let is_it = |at: &Point| at.what == point.what && (at.nth == 0 || at.nth == point.nth);
        let index = state.interventions.iter().position(|(at, when, _)| is_it(at) && *when == moment)?;
        Some(state.interventions.remove(index).2)
    }

    /// Blocks the operator's only thread for as long as it is frozen.
    fn stand_still(&self) {
        let mut state = self.state();
        while state.frozen && !self.is_dead() {
            state = self.0.thawed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for the end of a partition.
    async fn reconnected(&self) {
        self.wait(Duration::MAX, |state| state.cut.is_none()).await;
    }

    /// Sends a request, and does on the way whatever is to be injected.
    async fn pass<T: Send + 'static>(
        &self,
        call: Call,
        send: impl Future<Output = Result<T, BoxError>> + Send + 'static,
        status: fn(&T) -> u16,
        answer: impl FnOnce(u16) -> T,
    ) -> Result<T, BoxError> {
        let (point, verdict) = self.judge(&call);
        let fault = match verdict {
            Verdict::Send(fault) => fault,
            Verdict::Answer(status) => return Ok(answer(status)),
            Verdict::Refuse => return Err("the connection was refused".into()),
            Verdict::Wait => {
                self.reconnected().await;
                return Err("the connection was silent for too long".into());
            }
            Verdict::Never => {
                self.kill();
                return std::future::pending().await;
            }
        };
        self.stand_still();
        if let Some(Fault::Hold(time)) = fault {
            tokio::time::sleep(time).await;
        }
        let result = self.send(point.clone(), fault, send, status).await;
        self.stand_still();
        if self.is_dead() {
            return std::future::pending().await;
        }
        match fault {
            Some(Fault::Crash(Moment::After)) => self.kill(),
            Some(Fault::Lose | Fault::Partition(Cut::Refused, Moment::Unanswered)) => {
                return Err("the connection broke".into());
            }
            Some(Fault::Partition(Cut::Silent, Moment::Unanswered)) if call.of_api => {
                self.reconnected().await;
                return Err("the connection was silent for too long".into());
            }
            _ => {}
        }
        result
    }

    async fn send<T: Send + 'static>(
        &self,
        point: Point,
        fault: Option<Fault>,
        send: impl Future<Output = Result<T, BoxError>> + Send + 'static,
        status: fn(&T) -> u16,
    ) -> Result<T, BoxError> {
        let (tell, told) = oneshot::channel();
        let this = self.clone();
        let counts = usize::from(!is_of_the_lease(&point.what));
        self.change(|state| state.in_flight += counts);
        self.0.harness.spawn(async move {
            if let Some(first) = this.intervention(&point, Moment::Before) {
                first.await;
            }
            let result = send.await;
            if let Some(Fault::Late(time)) = fault {
                tokio::time::sleep(time).await;
            }
            if let Some(then) = this.intervention(&point, Moment::Unanswered) {
                then.await;
            }
            if fault == Some(Fault::Crash(Moment::Unanswered)) {
                this.kill();
            }
            this.change(|state| {
                state.in_flight -= counts;
                if counts > 0 {
                    state.last_activity = Some(Instant::now());
                }
                if let Some(seen) = state.seen.iter_mut().find(|seen| seen.point == point) {
                    seen.status = result.as_ref().ok().map(status);
                }
                match fault {
                    Some(Fault::Freeze(Moment::Unanswered | Moment::After)) => state.frozen = true,
                    Some(Fault::Partition(cut, Moment::Unanswered | Moment::After)) => state.cut = Some(cut),
                    _ => {}
                }
            });
            let _ = tell.send(result);
        });
        told.await.unwrap_or_else(|_| Err("the harness has ended".into()))
    }

    async fn api(self, request: Request<Body>) -> Result<Response<AnswerBody>, BoxError> {
        let (parts, body) = request.into_parts();
        let body = body.collect_bytes().await?;
        let call = Call::of(&parts);
        canary::in_request(&parts, &body);
        let (base, is_watch, what) = (self.0.base.clone(), call.is_watch, call.what.clone());
        let send = async move { Ok(base.send(Request::from_parts(parts, Body::from(body))).await?) };
        let response = self.pass(call, send, |answer| answer.status().as_u16(), refusal).await?;
        let response = response.map(|body| body.map_err(BoxError::from).boxed_unsync());
        if !is_watch || !response.status().is_success() {
            return Ok(response);
        }
        let resource = what.trim_start_matches("watch ").to_owned();
        Ok(response.map(|body| stream::interposed(&self, &resource, body)))
    }

    /// Takes note of an event of a watch, and tells what is to become of it.
    pub(crate) fn event(&self, resource: &str) -> Option<StreamFault> {
        self.change(|state| {
            state.last_activity = Some(Instant::now());
            let what = format!("event {resource}");
            let count = state.counts.entry(what.clone()).or_default();
            *count += 1;
            let point = Point::new(&what, *count);
            state.events.push(point.clone());
            let fault = state.stream_faults.iter().find(|(at, _)| *at == point).map(|(_, fault)| *fault);
            state.hits += usize::from(fault.is_some());
            fault
        })
    }

    /// Holds the events of all watches for this long.
    pub(crate) fn freeze_caches(&self, time: Duration) {
        self.change(|state| state.caches_frozen_until = Some(Instant::now() + time));
    }

    /// Waits until the caches stand still no more.
    pub(crate) async fn caches_thawed(&self) {
        let until = self.state().caches_frozen_until;
        let left = until.map(|until| until.saturating_duration_since(Instant::now())).unwrap_or_default();
        if !left.is_zero() {
            self.hold_event(left).await;
        }
    }

    /// Keeps an event back. As long as it is, something is still to come.
    pub(crate) async fn hold_event(&self, time: Duration) {
        self.change(|state| state.in_flight += 1);
        tokio::time::sleep(time).await;
        self.change(|state| {
            state.in_flight -= 1;
            state.last_activity = Some(Instant::now());
        });
    }

    /// Holds a watch's events during a partition. Whether the connection outlived it.
    pub(crate) async fn connected(&self) -> bool {
        let cut = self.state().cut;
        if cut == Some(Cut::Silent) {
            self.reconnected().await;
        }
        cut != Some(Cut::Refused)
    }
}

/// Renewing it goes on for ever, and is no sign that anything is still to be done.
fn is_of_the_lease(what: &str) -> bool {
    what.contains("leases")
}

fn refusal(status: u16) -> Response<Body> {
    let reason = match status {
        403 => "Forbidden",
        409 => "Conflict",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "InternalError",
    };
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "injected", "reason": reason, "code": status,
    });
    let mut response = Response::new(Body::from(body.to_string().into_bytes()));
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

/// The API server, as an operator reaches it.
#[derive(Clone)]
struct ApiService(Interposer);

impl Service<Request<Body>> for ApiService {
    type Response = Response<AnswerBody>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.0.clone().api(request).boxed()
    }
}

impl Layer<Transport> for Interposer {
    type Service = TokenService;

    fn layer(&self, inner: Transport) -> TokenService {
        TokenService { interposer: self.clone(), inner }
    }
}

/// The token endpoint, as an operator reaches it.
#[derive(Clone)]
pub struct TokenService {
    interposer: Interposer,
    inner: Transport,
}

impl Service<reqwest::Request> for TokenService {
    type Response = reqwest::Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<reqwest::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: reqwest::Request) -> Self::Future {
        let (interposer, inner) = (self.interposer.clone(), self.inner.clone());
        async move {
            let call = Call { what: TOKEN.to_owned(), is_watch: false, of_api: false };
            interposer.pass(call, inner.oneshot(request), |answer| answer.status().as_u16(), token_refusal).await
        }
        .boxed()
    }
}

fn token_refusal(status: u16) -> reqwest::Response {
    let body = if status == 401 { r#"{"error":"invalid_client"}"# } else { "" };
    let mut response = Response::new(body);
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    response.into()
}

/// The `ERROR` event by which a watch says that its version is too old.
pub(crate) fn gone() -> Value {
    json!({"type": "ERROR", "object": {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "too old resource version: injected",
        "reason": "Expired", "code": 410,
    }})
}
