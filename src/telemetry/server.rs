//! The HTTP server of probes and metrics.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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

/// Connections served at once; more wait to be accepted.
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
    let connections = TaskTracker::new();
    let accepting = async {
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
                return;
            };
            let stream = accept(&listener).await;
            let (probes, metrics, stop) = (Arc::clone(&probes), Arc::clone(&metrics), shutdown.clone());
            let scrapes = Arc::clone(&scrapes);
            connections.spawn(async move {
                stop.run_until_cancelled(serve_connection(stream, &probes, &metrics, &scrapes)).await;
                drop(slot);
            });
        }
    };
    shutdown.run_until_cancelled(accepting).await;
    connections.close();
    connections.wait().await;
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

async fn serve_connection(stream: TcpStream, probes: &Probes, metrics: &Arc<Metrics>, scrapes: &Arc<Semaphore>) {
    let is_scrape = AtomicBool::new(false);
    let service = service_fn(async |request: Request<Incoming>| {
        let accept = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
        let format = Format::accepted(accept);
        let turn = (request.uri().path() == METRICS).then(|| Arc::clone(scrapes).try_acquire_owned().ok()).flatten();
        is_scrape.store(turn.is_some(), Ordering::Relaxed);
        Ok::<_, Infallible>(respond(request.method(), request.uri().path(), format, probes, metrics, turn))
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ_LIMIT)
        .max_buf_size(REQUEST_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    // What a client gets wrong, or that it left, is of no interest to anyone.
    let is_over = time::timeout(CONNECTION_LIMIT, &mut connection).await.is_ok();
    if !is_over && is_scrape.load(Ordering::Relaxed) {
        drop(time::timeout(SCRAPE_LIMIT, connection).await);
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
    async fn idle_connections_hold_no_slot_for_ever_and_no_shutdown() {
        let server = Server::start().await;
        let mut idle = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            idle.push(TcpStream::connect(server.address).await.unwrap());
        }
        assert!(server.get("/healthz").await.starts_with("HTTP/1.1 200"), "served once the idle ones were cut off");
        let held = TcpStream::connect(server.address).await.unwrap();
        server.stop().await;
        drop(held);
    }
}
