//! The HTTP server of probes and metrics.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::{StreamExt as _, stream};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::exposition::{Format, classic};
use super::{Metrics, Probes, objects};

/// Connections served at once. Who comes then takes the place of whoever has been silent the longest; where nobody is, it waits to be accepted.
const CONNECTIONS_MAX: usize = 64;
/// From accepting a connection until its request's headers are there.
const HEADER_READ_LIMIT: Duration = Duration::from_secs(2);
/// From accepting a connection until it is closed.
const CONNECTION_LIMIT: Duration = Duration::from_secs(10);
/// How much longer a scrape may take, which is of megabytes where there are thousands of objects. Prometheus waits no longer than its interval.
const SCRAPE_LIMIT: Duration = Duration::from_mins(1);
/// Scrapes at once: slow ones must leave the probes their connections.
const SCRAPES_MAX: usize = 8;
/// Of a request's line and headers (the least that hyper takes).
const REQUEST_BYTES_MAX: usize = 8 * 1024;
/// Before accepting again after the system refused (out of file descriptors, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

const METRICS: &str = "/metrics";
const TEXT: &str = "text/plain; charset=utf-8";

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Serves `/healthz`, `/readyz` and `/metrics` by GET and HEAD until `shutdown` is cancelled. One request a connection,
/// and a limit on everything a client can hold on to.
pub async fn serve(listener: TcpListener, probes: Arc<Probes>, metrics: Arc<Metrics>, shutdown: CancellationToken) {
    let (slots, scrapes) = (Arc::new(Semaphore::new(CONNECTIONS_MAX)), Arc::new(Semaphore::new(SCRAPES_MAX)));
    let (connections, mut silent) = (TaskTracker::new(), Silent::default());
    let accepting = async {
        loop {
            let stream = accept(&listener).await;
            if slots.available_permits() == 0 {
                silent.close_oldest();
            }
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
                return;
            };
            let (probes, metrics, connection) = (Arc::clone(&probes), Arc::clone(&metrics), silent.add(&shutdown));
            let scrapes = Arc::clone(&scrapes);
            connections.spawn(async move {
                let serving = serve_connection(stream, &connection, &probes, &metrics, &scrapes);
                connection.stop.run_until_cancelled(serving).await;
                drop(slot);
            });
        }
    };
    shutdown.run_until_cancelled(accepting).await;
    connections.close();
    connections.wait().await;
}

/// What the accepting and the serving side know of a connection.
struct Connection {
    stop: CancellationToken,
    /// Whether a request has come by it.
    has_asked: AtomicBool,
}

/// Connections that no request has come by when they were last looked at, the oldest first. Whoever can reach the port could keep all places otherwise,
/// and the probes from theirs, without a word.
#[derive(Default)]
struct Silent(VecDeque<Weak<Connection>>);

impl Silent {
    fn add(&mut self, shutdown: &CancellationToken) -> Arc<Connection> {
        let connection = Arc::new(Connection { stop: shutdown.child_token(), has_asked: AtomicBool::new(false) });
        // Those that are over, or have asked, are dropped here: there are never more than there are places.
        self.0.retain(|other| Self::still(other).is_some());
        self.0.push_back(Arc::downgrade(&connection));
        connection
    }

    fn close_oldest(&mut self) {
        let mut connections = std::iter::from_fn(|| self.0.pop_front());
        if let Some(oldest) = connections.find_map(|connection| Self::still(&connection)) {
            oldest.stop.cancel();
        }
    }

    /// The connection, if it is open and silent as before.
    fn still(connection: &Weak<Connection>) -> Option<Arc<Connection>> {
        connection.upgrade().filter(|connection| !connection.has_asked.load(Ordering::Relaxed))
    }
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection");
                time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_connection(
    stream: TcpStream,
    connection: &Connection,
    probes: &Probes,
    metrics: &Arc<Metrics>,
    scrapes: &Arc<Semaphore>,
) {
    let is_scrape = AtomicBool::new(false);
    let service = service_fn(async |request: Request<Incoming>| {
        connection.has_asked.store(true, Ordering::Relaxed);
        let accept = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
        let format = Format::accepted(accept);
        let turn = (request.uri().path() == METRICS).then(|| Arc::clone(scrapes).try_acquire_owned().ok()).flatten();
        is_scrape.store(turn.is_some(), Ordering::Relaxed);
        Ok::<_, Infallible>(respond(request.method(), request.uri().path(), format, probes, metrics, turn))
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ_LIMIT)
        .max_buf_size(REQUEST_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = pin!(serving);
    // What a client gets wrong, or that it left, is of no interest to anyone.
    let is_over = time::timeout(CONNECTION_LIMIT, &mut serving).await.is_ok();
    if !is_over && is_scrape.load(Ordering::Relaxed) {
        drop(time::timeout(SCRAPE_LIMIT, serving).await);
    }
}

fn respond(
    method: &Method,
    path: &str,
    format: Format,
    probes: &Probes,
    metrics: &Arc<Metrics>,
    turn: Option<OwnedSemaphorePermit>,
) -> Response<Body> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut refusal = answer(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET and HEAD only\n");
        refusal.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD"));
        return refusal;
    }
    match path {
        "/healthz" if probes.is_alive() => answer(StatusCode::OK, TEXT, "ok\n"),
        "/healthz" => answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, "the controller's loop has stopped\n"),
        "/readyz" if probes.is_ready() => answer(StatusCode::OK, TEXT, "ok\n"),
        "/readyz" => answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, "not ready\n"),
        METRICS => match turn {
            Some(turn) => scrape(format, metrics, turn),
            None => answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, "too many ask for the metrics at once\n"),
        },
        _ => answer(StatusCode::NOT_FOUND, TEXT, "only /healthz, /readyz and /metrics are here\n"),
    }
}

/// In pieces: of ten thousand objects there are megabytes.
fn scrape(format: Format, metrics: &Arc<Metrics>, turn: OwnedSemaphorePermit) -> Response<Body> {
    let Ok(text) = metrics.encode() else {
        return answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "metrics cannot be written\n");
    };
    let of_process = if format == Format::OpenMetrics { text } else { classic(&text) };
    let of_objects = objects::pieces(Arc::clone(metrics));
    let all = stream::iter([of_process]).chain(of_objects).chain(stream::iter([format.end().to_owned()]));
    let frames = all.map(move |piece| {
        let _until_the_end = &turn;
        Ok::<_, Infallible>(Frame::data(Bytes::from(piece)))
    });
    response(StatusCode::OK, format.content_type(), StreamBody::new(frames).boxed_unsync())
}

fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    response(status, content_type, Full::new(body.into()).boxed_unsync())
}

fn response(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    struct Server {
        address: SocketAddr,
        probes: Arc<Probes>,
        shutdown: CancellationToken,
        running: tokio::task::JoinHandle<()>,
    }

    impl Server {
        async fn start() -> Self {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
            let address = listener.local_addr().unwrap();
            let (probes, shutdown) = (Arc::new(Probes::default()), CancellationToken::new());
            let serving = serve(listener, Arc::clone(&probes), Arc::new(Metrics::new()), shutdown.clone());
            Self { address, probes, shutdown, running: tokio::spawn(serving) }
        }

        async fn send(&self, request: &str) -> String {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            let read = stream.read_to_string(&mut answer);
            time::timeout(CONNECTION_LIMIT * 2, read).await.unwrap().unwrap();
            answer
        }

        async fn get(&self, path: &str) -> String {
            self.send(&format!("GET {path} HTTP/1.1\r\nHost: here\r\n\r\n")).await
        }

        async fn stop(self) {
            self.shutdown.cancel();
            time::timeout(Duration::from_secs(5), self.running).await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn probes_and_metrics_are_served() {
        let server = Server::start().await;
        assert!(server.get("/healthz").await.starts_with("HTTP/1.1 200"));
        assert!(server.get("/readyz").await.starts_with("HTTP/1.1 503"));
        server.probes.set_ready(true);
        assert!(server.get("/readyz?verbose").await.starts_with("HTTP/1.1 200"));
        let open = "GET /metrics HTTP/1.0\r\nAccept: application/openmetrics-text\r\n\r\n";
        for (request, content_type, end) in [
            (open, Format::OpenMetrics.content_type(), "# EOF\n"),
            ("GET /metrics HTTP/1.0\r\n\r\n", Format::Classic.content_type(), "\n"),
        ] {
            let metrics = server.send(request).await;
            assert!(metrics.contains(&format!("content-type: {content_type}\r\n")), "{metrics}");
            assert!(metrics.contains("\nmoneygo_leader 0\n") && metrics.ends_with(end), "{metrics}");
            assert_eq!(metrics.contains("# EOF"), request == open);
        }
        server.stop().await;
    }

    #[test]
    fn one_scrape_too_many_is_refused_and_no_probe() {
        let (probes, metrics) = (Probes::default(), Arc::new(Metrics::new()));
        let ask = |path: &str, turn| respond(&Method::GET, path, Format::Classic, &probes, &metrics, turn).status();
        let scrapes = Arc::new(Semaphore::new(1));
        let turn = || Arc::clone(&scrapes).try_acquire_owned().ok();
        let scrape = respond(&Method::GET, METRICS, Format::Classic, &probes, &metrics, turn());
        assert_eq!(ask(METRICS, turn()), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(ask("/healthz", None), StatusCode::OK);
        drop(scrape);
        assert_eq!(ask(METRICS, turn()), StatusCode::OK);
    }

    #[tokio::test]
    async fn all_else_is_refused() {
        let server = Server::start().await;
        for path in ["/", "/metrics/", "/debug", "/healthz/x"] {
            assert!(server.get(path).await.starts_with("HTTP/1.1 404"), "{path}");
        }
        let post = server.send("POST /healthz HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\n\r\n").await;
        assert!(post.starts_with("HTTP/1.1 405") && post.contains("allow: GET, HEAD"), "{post}");
        let head = server.send("HEAD /healthz HTTP/1.1\r\nHost: here\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(2 * REQUEST_BYTES_MAX));
        assert!(!server.send(&long).await.starts_with("HTTP/1.1 200"));
        server.stop().await;
    }

    #[tokio::test]
    async fn silent_connections_give_way_and_hold_no_shutdown() {
        const ROUNDS: usize = 6;
        let server = Server::start().await;
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS_MAX * ROUNDS {
            silent.push(TcpStream::connect(server.address).await.unwrap());
        }
        let started = time::Instant::now();
        assert!(server.get("/healthz").await.starts_with("HTTP/1.1 200"));
        let if_each_were_waited_for = HEADER_READ_LIMIT * u32::try_from(ROUNDS).unwrap();
        assert!(started.elapsed() < if_each_were_waited_for / 2, "{:?}", started.elapsed());
        server.stop().await;
        drop(silent);
    }

    #[test]
    fn the_oldest_that_has_not_asked_gives_way() {
        let (mut silent, shutdown) = (Silent::default(), CancellationToken::new());
        let mut connections: Vec<_> = (0..5).map(|_| silent.add(&shutdown)).collect();
        let is_over = connections.remove(0);
        drop(is_over);
        connections[0].has_asked.store(true, Ordering::Relaxed);
        silent.close_oldest();
        silent.close_oldest();
        let closed: Vec<_> = connections.iter().map(|connection| connection.stop.is_cancelled()).collect();
        assert_eq!(closed, [false, true, true, false]);
        silent.close_oldest();
        silent.close_oldest();
        assert!(!connections[0].stop.is_cancelled() && !shutdown.is_cancelled(), "who has asked is served");
    }
}
