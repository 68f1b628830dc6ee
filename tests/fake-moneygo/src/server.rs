//! Connections, and the way of a request through the gates, the outage, the scripts and the endpoint.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Response, header, request};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::admin;
use crate::endpoint::{self, Asked, Refusal, json_answer};
use crate::ledger::TokenState;
use crate::script::{Answer, AnswerBody, Canned, Pace, Script};
use crate::state::{Outage, Request, Shared, now};

const MAX_BODY_BYTES: usize = 64 * 1024;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const LISTEN_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Serves until it is dropped, and ends its connections then.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    mut listener: TcpListener,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
) {
    let mut outage = shared.outage.subscribe();
    loop {
        let mut connections = JoinSet::new();
        tokio::select! {
            () = accept(&shared, &listener, tls.as_ref(), &mut connections) => {}
            _ = outage.wait_for(|now| *now == Some(Outage::Refused)) => {}
        }
        drop(listener);
        connections.shutdown().await;
        shared.listening.send_replace(false);
        let _ = outage.wait_for(|now| *now != Some(Outage::Refused)).await;
        listener = listen_again(address).await;
        shared.listening.send_replace(true);
    }
}

async fn accept(
    shared: &Arc<Shared>,
    listener: &TcpListener,
    tls: Option<&TlsAcceptor>,
    connections: &mut JoinSet<()>,
) {
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let number = shared.connections.fetch_add(1, Ordering::SeqCst) + 1;
                connections.spawn(connection(Arc::clone(shared), stream, number, tls.cloned()));
            }
            // Out of file descriptors, most likely: some come back as connections end.
            Err(_) => tokio::time::sleep(LISTEN_AGAIN_AFTER).await,
        }
    }
}

async fn listen_again(address: SocketAddr) -> TcpListener {
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(_) => tokio::time::sleep(LISTEN_AGAIN_AFTER).await,
        }
    }
}

async fn connection(shared: Arc<Shared>, stream: TcpStream, number: u64, tls: Option<TlsAcceptor>) {
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else {
        return converse(shared, stream, number).await;
    };
    if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
        converse(shared, stream, number).await;
    }
}

/// How a connection ends that HTTP does not end.
#[derive(Default)]
enum Ending {
    #[default]
    Close,
    Reset,
    Raw(Bytes),
}

type SharedEnding = Arc<Mutex<Ending>>;

/// The request gets no HTTP answer.
#[derive(Debug, thiserror::Error)]
#[error("the connection ends without an answer")]
struct NoAnswer;

trait Transport: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    fn tcp(&self) -> &TcpStream;
}

impl Transport for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Transport for TlsStream<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0
    }
}

async fn converse(shared: Arc<Shared>, stream: impl Transport, number: u64) {
    let ending = SharedEnding::default();
    let service = service_fn(|request| {
        let (shared, ending) = (Arc::clone(&shared), Arc::clone(&ending));
        let answer: Pin<Box<dyn Future<Output = _> + Send>> =
            Box::pin(async move { route(&shared, request, number, &ending).await });
        answer
    });
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    if (&mut connection).await.is_ok() {
        return;
    }
    let mut stream = connection.into_parts().io.into_inner();
    let ending = std::mem::take(&mut *ending.lock().unwrap_or_else(PoisonError::into_inner));
    // The client may be gone: nothing to be done about it.
    let _ = match ending {
        Ending::Close => Ok(()),
        Ending::Reset => stream.tcp().set_zero_linger(),
        Ending::Raw(bytes) => send_raw(&mut stream, &bytes).await,
    };
}

async fn send_raw(stream: &mut impl Transport, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.shutdown().await
}

async fn route(
    shared: &Arc<Shared>,
    request: http::Request<Incoming>,
    connection: u64,
    ending: &SharedEnding,
) -> Result<Response<AnswerBody>, NoAnswer> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, MAX_BODY_BYTES).collect().await.map(http_body_util::Collected::to_bytes);
    let body = match body {
        Ok(body) => Some(body),
        Err(error) if error.is::<LengthLimitError>() => None,
        Err(_) => return Err(NoAnswer),
    };
    if head.uri.path().starts_with(admin::PREFIX) && shared.read(|state| state.settings.admin) {
        return Ok(admin::answer(shared, &head, &body.unwrap_or_default()).respond(Pace::Whole));
    }
    if head.uri.path() == "/protected" && head.method == Method::GET {
        return protected(shared, &head.headers);
    }
    let asked = Arrived { json: body.as_deref().and_then(parse), too_large: body.is_none(), head };
    let number = record(shared, &asked, connection);
    let answer = answer(shared, &asked, number, ending).await?;
    let status = answer.status().as_u16();
    shared.write(|state| {
        if let Some(request) = recorded(&mut state.requests, number) {
            request.status = Some(status);
            request.answered_at = Some(now());
        }
    });
    Ok(answer)
}

struct Arrived {
    head: request::Parts,
    json: Option<Value>,
    too_large: bool,
}

impl Arrived {
    fn client(&self) -> Option<&str> {
        self.json.as_ref()?.get("client_id")?.as_str()
    }
}

fn parse(body: &[u8]) -> Option<Value> {
    serde_json::from_slice(body).ok()
}

fn record(shared: &Shared, asked: &Arrived, connection: u64) -> u64 {
    let mut headers = asked.head.headers.clone();
    if let Some(credentials) = headers.get_mut(header::AUTHORIZATION) {
        credentials.set_sensitive(true);
    }
    shared.write(|state| {
        let sequence = state.requests.len() as u64 + 1;
        state.requests.push(Request {
            sequence,
            connection,
            received_at: now(),
            method: asked.head.method.to_string(),
            path: asked.head.uri.path().to_owned(),
            headers,
            client: asked.client().map(str::to_owned),
            grant: None,
            status: None,
            answered_at: None,
        });
        sequence
    })
}

fn recorded(requests: &mut [Request], number: u64) -> Option<&mut Request> {
    requests.get_mut(usize::try_from(number).ok()?.checked_sub(1)?)
}

async fn answer(
    shared: &Shared,
    asked: &Arrived,
    number: u64,
    ending: &SharedEnding,
) -> Result<Response<AnswerBody>, NoAnswer> {
    if let Err(refusal) = check_head(asked) {
        return Ok(Canned::from(refusal).respond(Pace::Whole));
    }
    shared.gates.pass(&shared.gates.requests).await;
    if let Some(answer) = away(shared) {
        return answer;
    }
    let script = shared.write(|state| state.scripts.take(asked.client(), now()));
    let script = script.unwrap_or_else(Script::endpoint);
    let answer = resolve(shared, asked, number, script.answer, script.after_grant);
    shared.gates.pass(&shared.gates.answers).await;
    if !script.delay.is_zero() {
        tokio::time::sleep(script.delay).await;
    }
    send(answer, script.pace, ending).await
}

fn check_head(asked: &Arrived) -> Result<(), Refusal> {
    let right_method = match asked.head.uri.path() {
        "/token" => Method::POST,
        "/protected" => Method::GET,
        _ => return Err(Refusal::new(404, "not_found", "no such path")),
    };
    if asked.head.method != right_method {
        let refusal = Refusal::new(405, "method_not_allowed", "another method is needed");
        return Err(refusal.header("allow", right_method.as_str()));
    }
    if asked.too_large {
        return Err(Refusal::new(413, "invalid_request", "the body is over 64 KiB"));
    }
    Ok(())
}

fn away(shared: &Shared) -> Option<Result<Response<AnswerBody>, NoAnswer>> {
    match (*shared.outage.borrow())? {
        Outage::Unavailable => {
            let refusal = Refusal::new(503, "temporarily_unavailable", "an outage");
            Some(Ok(Canned::from(refusal).respond(Pace::Whole)))
        }
        Outage::Closed | Outage::Refused => Some(Err(NoAnswer)),
    }
}

/// The script's answer, with the grant made where it calls for one.
fn resolve(shared: &Shared, asked: &Arrived, number: u64, answer: Answer, after_grant: bool) -> Answer {
    if !after_grant && !matches!(answer, Answer::Endpoint) {
        return answer;
    }
    let granted = shared.write(|state| {
        let now = now();
        let asked = Asked { headers: &asked.head.headers, body: asked.json.as_ref() };
        let grant = endpoint::grant(state, &asked, now)?;
        if let Some(request) = recorded(&mut state.requests, number) {
            request.grant = Some(grant.sequence);
        }
        Ok::<_, Refusal>((endpoint::success(&grant), grant))
    });
    match (granted, answer) {
        (Err(refusal), _) => Answer::Canned(refusal.into()),
        (Ok((success, _)), Answer::Endpoint) => Answer::Canned(success),
        (Ok((_, grant)), Answer::Canned(mut canned)) => {
            canned.fill_in(&grant.token);
            Answer::Canned(canned)
        }
        (Ok(_), other) => other,
    }
}

async fn send(answer: Answer, pace: Pace, ending: &SharedEnding) -> Result<Response<AnswerBody>, NoAnswer> {
    let set_ending = |how| *ending.lock().unwrap_or_else(PoisonError::into_inner) = how;
    match answer {
        Answer::Canned(canned) => {
            if matches!(pace, Pace::ResetAfter { .. }) {
                set_ending(Ending::Reset);
            }
            return Ok(canned.respond(pace));
        }
        Answer::Raw(bytes) => set_ending(Ending::Raw(bytes)),
        Answer::Reset => set_ending(Ending::Reset),
        // `resolve` leaves no `Endpoint`.
        Answer::Close | Answer::Endpoint => {}
        Answer::Hang => match std::future::pending::<Infallible>().await {},
    }
    Err(NoAnswer)
}

fn protected(shared: &Shared, headers: &HeaderMap) -> Result<Response<AnswerBody>, NoAnswer> {
    if let Some(answer) = away(shared) {
        return answer;
    }
    let token = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    let answer = shared.write(|state| {
        let alive = token.is_some_and(|token| state.ledger.state_of(token, now()) == TokenState::Alive);
        if alive {
            state.protected.accepted += 1;
            json_answer(200, &json!({ "ok": true }))
        } else {
            state.protected.refused += 1;
            let refusal = Refusal::new(401, "invalid_token", "no live token");
            refusal.header("www-authenticate", "Bearer error=\"invalid_token\"").into()
        }
    });
    Ok(answer.respond(Pace::Whole))
}
