//! Spans that a collector gets by OTLP over HTTP: `cargo test --features otlp --test traces`. Without the feature there is nothing to test.

#![cfg(feature = "otlp")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod stage;

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use serde_json::json;
use stage::{Canaries, OperatorBuilder, SOON, Stage, client_secret_of, credentials_name};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// What came to a collector on loopback: each request's head and body.
struct Collector {
    endpoint: String,
    received: watch::Receiver<Vec<(String, Bytes)>>,
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (sender, received) = watch::channel(Vec::new());
        let sender = Arc::new(sender);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let sender = Arc::clone(&sender);
                let service = service_fn(move |request| take(request, Arc::clone(&sender)));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { endpoint, received }
    }

    /// Waits until `look` finds something in the spans that have come.
    async fn until<T>(&self, what: &str, mut look: impl FnMut(&[Span]) -> Option<T>) -> T {
        let mut received = self.received.clone();
        let mut found = None;
        let waiting = received.wait_for(|received| {
            found = look(&spans(received));
            found.is_some()
        });
        let in_time = tokio::time::timeout(SOON, waiting).await.is_ok();
        assert!(in_time, "{what}: {:#?}", spans(&self.received.borrow()));
        found.unwrap()
    }
}

type Received = watch::Sender<Vec<(String, Bytes)>>;

async fn take(request: Request<Incoming>, received: Arc<Received>) -> Result<Response<Full<Bytes>>, Infallible> {
    let head = format!("{} {} {:?}", request.method(), request.uri(), request.headers());
    let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    received.send_modify(|received| received.push((head, body)));
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::OK;
    Ok(response)
}

fn requests(received: &[(String, Bytes)]) -> impl Iterator<Item = ExportTraceServiceRequest> {
    received.iter().map(|(_, body)| ExportTraceServiceRequest::decode(body.clone()).expect("OTLP"))
}

fn spans(received: &[(String, Bytes)]) -> Vec<Span> {
    let resources = requests(received).flat_map(|request| request.resource_spans);
    resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans).collect()
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    match &found.value {
        Some(AnyValue { value: Some(Value::StringValue(text)) }) => Some(text.clone()),
        _ => None,
    }
}

/// The calls within the look at an object that asked for its `n`th token, in the order in which they ended.
fn calls_of_grant(spans: &[Span], object: &str, n: usize) -> Option<(Span, Vec<Span>)> {
    let looks = spans
        .iter()
        .filter(|span| span.name == "reconcile" && text(&span.attributes, "name").as_deref() == Some(object));
    let within = |look: &Span| -> Vec<Span> {
        spans
            .iter()
            .filter(|span| span.parent_span_id == look.span_id && span.trace_id == look.trace_id)
            .cloned()
            .collect()
    };
    let mut with_grant: Vec<_> = looks
        .map(|look| (look.clone(), within(look)))
        .filter(|(_, calls)| calls.iter().any(|call| call.name == "ask for a token"))
        .collect();
    with_grant.sort_by_key(|(look, _)| look.start_time_unix_nano);
    with_grant.into_iter().nth(n)
}

fn tracing_to<'a>(stage: &'a Stage, endpoint: &str) -> OperatorBuilder<'a> {
    stage
        .operator()
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        .env("OTEL_EXPORTER_OTLP_TIMEOUT", "1000")
        .env("OTEL_BSP_SCHEDULE_DELAY", "100")
        .env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        .env("MONEYGO_LOG_LEVEL", "trace")
}

#[tokio::test(flavor = "multi_thread")]
async fn traces_have_a_span_for_each_look_with_its_calls_and_no_secret_is_in_any() {
    let stage = Stage::new("traces").await;
    let collector = Collector::start().await;
    let operator = tracing_to(&stage, &collector.endpoint).start().await;
    let object = stage.subscribe("payments", json!({"target": {"authorizationKey": "authorization"}})).await;
    stage.ready("payments").await;
    let (look, calls) = collector.until("the issue", |spans| calls_of_grant(spans, "payments", 0)).await;
    assert_eq!(text(&look.attributes, "namespace").as_ref(), Some(&stage.namespace));
    assert_eq!(text(&look.attributes, "uid"), object.metadata.uid);
    assert_eq!(text(&look.attributes, "result").as_deref(), Some("Ok"));
    assert!(look.parent_span_id.is_empty(), "each look is a trace of its own");
    let names: Vec<_> = calls.iter().map(|call| call.name.as_str()).collect();
    assert_eq!(names.iter().filter(|name| **name == "read a Secret").count(), 2, "{names:?}");
    for name in ["ask for a token", "create a Secret", "write a status"] {
        assert!(names.contains(&name), "{names:?}");
    }
    for call in &calls {
        let is_within = look.start_time_unix_nano <= call.start_time_unix_nano
            && call.end_time_unix_nano <= look.end_time_unix_nano;
        assert!(is_within, "{call:#?}");
    }
    let issued = look.events.iter().find(|event| text(&event.attributes, "reason").as_deref() == Some("TokenIssued"));
    assert!(issued.is_some(), "the line of the log is there, too: {look:#?}");

    stage.request_refresh("payments", "once").await;
    let (refresh, calls) = collector.until("the refresh", |spans| calls_of_grant(spans, "payments", 1)).await;
    assert_ne!(refresh.trace_id, look.trace_id);
    assert!(calls.iter().any(|call| call.name == "replace a Secret"), "{calls:#?}");

    stage.client_secret(&credentials_name("payments"), "payments", "canary-wrong-secret").await;
    stage.says("payments", "Refreshed", "False", "InvalidClient").await;
    let (_, calls) = collector.until("the rejection", |spans| calls_of_grant(spans, "payments", 2)).await;
    let asked = calls.iter().find(|call| call.name == "ask for a token").unwrap();
    assert_eq!(text(&asked.attributes, "result").as_deref(), Some("InvalidClient"));
    assert_eq!(asked.status.as_ref().unwrap().code, 2, "an error");
    operator.stop().await;

    let received = collector.received.borrow().clone();
    let resource = requests(&received).next().unwrap().resource_spans.remove(0).resource.unwrap();
    assert_eq!(text(&resource.attributes, "service.name").as_deref(), Some("moneygo-operator"));
    assert_eq!(text(&resource.attributes, "deployment.environment.name").as_deref(), Some("test"));
    let known = [
        "reconcile",
        "ask for a token",
        "read a Secret",
        "read a namespace",
        "create a Secret",
        "replace a Secret",
        "write a status",
    ];
    for span in spans(&received) {
        assert!(known.contains(&span.name.as_str()), "nobody else's spans: {}", span.name);
    }
    let tokens: Vec<_> = stage.moneygo.ledger().into_iter().map(|grant| grant.token).collect();
    assert_eq!(tokens.len(), 2);
    let secrets = [client_secret_of("payments"), "canary-wrong-secret".to_owned()];
    let canaries = Canaries::of(tokens.iter().chain(&secrets).map(String::as_str));
    for (head, body) in &received {
        assert_eq!(canaries.find(head), None);
        assert_eq!(canaries.find(&String::from_utf8_lossy(body)), None);
    }
    let is_told_to_moneygo = |request: &fake_moneygo::Request| format!("{request:?}").contains("traceparent");
    assert!(!stage.moneygo.requests().iter().any(is_told_to_moneygo), "Money-Go is told of no trace");
}

#[tokio::test(flavor = "multi_thread")]
async fn traces_to_a_collector_that_does_not_answer_hold_nothing_up() {
    let stage = Stage::new("traces-dead").await;
    // It takes connections, and never a word.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let held = Arc::new(Mutex::new(Vec::new()));
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let holding = Arc::clone(&held);
    tokio::spawn(async move {
        while let Ok((stream, _)) = silent.accept().await {
            holding.lock().unwrap().push(stream);
        }
    });
    let operator = tracing_to(&stage, &endpoint).env("MONEYGO_LOG_LEVEL", "info").start().await;
    stage.subscribe("payments", json!({})).await;
    stage.ready("payments").await;
    let is_told = async {
        while !operator.log().contains("TracesLost") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, is_told).await.expect("it is told that traces are lost");
    stage.request_refresh("payments", "once").await;
    stage.moneygo.wait_for_grants("payments", 2, SOON).await.unwrap();
    stage.told("payments", "TokenRefreshed").await;
    let log = operator.log.clone();
    let stopped = operator.stop().await;
    assert!(stopped.elapsed < Duration::from_secs(5), "{:?}", stopped.elapsed);
    let log = std::fs::read_to_string(log).unwrap();
    assert_eq!(log.matches("TracesLost").count(), 1, "told once: {log}");
    assert!(!held.lock().unwrap().is_empty(), "it was tried");
}

#[tokio::test(flavor = "multi_thread")]
async fn traces_with_variables_that_cannot_be_used_are_told_and_stop_nothing() {
    let stage = Stage::new("traces-wrong").await;
    let operator = tracing_to(&stage, "http://127.0.0.1:1").env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc").start().await;
    stage.subscribe("payments", json!({})).await;
    stage.ready("payments").await;
    assert_eq!(operator.log().matches("NoTraces").count(), 1);
    operator.stop().await;
}
