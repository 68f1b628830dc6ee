//! The stand-in over real HTTP on loopback, feature by feature.
#![expect(clippy::disallowed_methods, reason = "tokens are judged by the wall clock")]
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::io::ErrorKind;
use std::time::{Duration, Instant, SystemTime};

use fake_moneygo::{FakeMoneyGo, Mode, Outage, Pace, ProtectedCounts, RateLimit, RetryAfter, Script, TokenState};
use reqwest::{Client, Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const SOON: Duration = Duration::from_secs(10);

fn http() -> Client {
    builder().build().unwrap()
}

fn builder() -> reqwest::ClientBuilder {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().no_proxy().timeout(SOON).redirect(reqwest::redirect::Policy::none())
}

async fn fake() -> FakeMoneyGo {
    FakeMoneyGo::builder().client("a", "sesame").client("b", "sesame").start().await.unwrap()
}

fn body(client: &str) -> Value {
    json!({
        "grant_type": "client_credentials",
        "client_id": client,
        "client_secret": "sesame",
        "scope": "api",
    })
}

async fn post(fake: &FakeMoneyGo, body: &Value) -> reqwest::Result<Response> {
    http().post(fake.token_url()).header("content-type", "application/json").body(body.to_string()).send().await
}

async fn ask(fake: &FakeMoneyGo, client: &str) -> reqwest::Result<Response> {
    post(fake, &body(client)).await
}

async fn status(fake: &FakeMoneyGo, client: &str) -> u16 {
    ask(fake, client).await.unwrap().status().as_u16()
}

async fn answered(response: Response) -> Value {
    serde_json::from_str(&response.text().await.unwrap()).unwrap()
}

async fn token(fake: &FakeMoneyGo, client: &str) -> String {
    let answer = answered(ask(fake, client).await.unwrap()).await;
    answer["access_token"].as_str().unwrap().to_owned()
}

/// What a socket sees from a request to its end: the bytes, and how it ended.
async fn raw(fake: &FakeMoneyGo, client: &str) -> (String, Option<ErrorKind>) {
    let mut stream = TcpStream::connect(fake.address()).await.unwrap();
    let body = body(client).to_string();
    let head = "POST /token HTTP/1.1\r\nhost: x\r\ncontent-type: application/json";
    let request = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let end = tokio::time::timeout(SOON, stream.read_to_end(&mut bytes)).await.unwrap();
    (String::from_utf8(bytes).unwrap(), end.err().map(|error| error.kind()))
}

#[tokio::test]
async fn a_grant_is_as_documented_and_in_the_ledger() {
    let fake = fake().await;
    fake.set_expires_in_of("b", Some(Duration::from_millis(1500)));
    let before = SystemTime::now();
    let response = ask(&fake, "a").await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(response.headers()["cache-control"], "no-store");
    let grant = fake.grants_of("a").remove(0);
    let wanted = json!({"token_type": "Bearer", "expires_in": 2_592_000, "access_token": grant.token});
    assert_eq!(answered(response).await, wanted);
    assert!(grant.token.starts_with("mgt_1_"));
    assert!(before <= grant.issued && grant.issued <= SystemTime::now());
    assert_eq!(grant.expires, grant.issued + Duration::from_hours(30 * 24));
    assert_eq!(answered(ask(&fake, "b").await.unwrap()).await["expires_in"], 1.5);
    fake.set_expires_in_of("b", None);
    fake.set_expires_in(Duration::from_secs(40));
    assert_eq!(answered(ask(&fake, "b").await.unwrap()).await["expires_in"], 40);
    assert_eq!(fake.ledger().len(), 3);
    assert_eq!(fake.state_of(&grant.token, grant.expires), TokenState::Expired);
    let request = fake.requests_of("a").remove(0);
    assert_eq!((request.status, request.grant), (Some(200), Some(1)));
    assert!(!format!("{fake:?} {:?} {:?}", fake.requests(), fake.ledger()).contains("sesame"));
}

#[tokio::test]
async fn bad_requests_are_refused_as_the_documentation_of_the_crate_says() {
    let fake = fake().await;
    let with = |field: &str, value: Value| {
        let mut body = body("a");
        body[field] = value;
        body
    };
    let mut cases = vec![
        (json!([]), 400, "invalid_request"),
        (with("grant_type", json!("password")), 400, "unsupported_grant_type"),
        (with("client_id", json!("nobody")), 401, "invalid_client"),
        (with("client_secret", json!("wrong")), 401, "invalid_client"),
        (with("scope", json!("")), 400, "invalid_scope"),
        (with("scope", json!("api admin")), 400, "invalid_scope"),
        (with("scope", json!("x".repeat(70_000))), 413, "invalid_request"),
    ];
    for field in ["grant_type", "client_id", "client_secret", "scope"] {
        cases.push((with(field, json!(1)), 400, "invalid_request"));
        let mut without = body("a");
        without.as_object_mut().unwrap().remove(field);
        cases.push((without, 400, "invalid_request"));
    }
    for (body, status, error) in &cases {
        let response = post(&fake, body).await.unwrap();
        assert_eq!(response.status().as_u16(), *status, "{error}");
        assert_eq!(answered(response).await["error"], *error);
    }
    let form = http().post(fake.token_url()).header("content-type", "text/plain").body("{}");
    assert_eq!(form.send().await.unwrap().status(), 415);
    let broken = http().post(fake.token_url()).header("content-type", "application/json");
    assert_eq!(broken.body("{").send().await.unwrap().status(), 400);
    let got = http().get(fake.token_url()).send().await.unwrap();
    assert_eq!((got.status().as_u16(), got.headers()["allow"].as_bytes()), (405, &b"POST"[..]));
    assert_eq!(http().get(format!("{}/_admin/ledger", fake.url())).send().await.unwrap().status(), 404);
    assert!(fake.ledger().is_empty());
    assert_eq!(fake.request_count(), cases.len() + 4);
    assert_eq!(fake.status_counts()[&Some(401)], 2);
}

#[tokio::test]
async fn clients_and_scopes_change_at_any_time() {
    let fake = fake().await;
    fake.set_secret("a", "other");
    assert_eq!(status(&fake, "a").await, 401);
    fake.add_client("a", "sesame");
    fake.add_client("c", "sesame");
    assert_eq!((status(&fake, "a").await, status(&fake, "c").await), (200, 200));
    fake.remove_client("c");
    assert_eq!(status(&fake, "c").await, 401);
    fake.set_any_client(true);
    fake.set_secret("a", "other");
    assert_eq!((status(&fake, "a").await, status(&fake, "c").await), (401, 200));
    fake.set_scopes(Some(&["else"]));
    assert_eq!(status(&fake, "c").await, 400);
    fake.set_scopes(None);
    assert_eq!(status(&fake, "c").await, 200);
}

#[tokio::test]
async fn protected_wants_a_live_token() {
    let fake = fake().await;
    let first = token(&fake, "a").await;
    let get = async |token: &str| {
        let request = http().get(fake.protected_url()).bearer_auth(token);
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!((get(&first).await, get("mgt_no").await), (200, 401));
    fake.set_mode(Mode::RevokePrevious);
    let second = token(&fake, "a").await;
    assert_eq!((get(&first).await, get(&second).await), (401, 200));
    assert_eq!(fake.protected_counts(), ProtectedCounts { accepted: 2, refused: 2 });
    let posted = http().request(Method::POST, fake.protected_url()).send().await.unwrap();
    assert_eq!((posted.status().as_u16(), posted.headers()["allow"].as_bytes()), (405, &b"GET"[..]));
}

#[tokio::test]
async fn the_same_token_comes_with_the_lifetime_that_is_left() {
    let fake = fake().await;
    fake.set_mode(Mode::SameWhileAlive);
    let first = answered(ask(&fake, "a").await.unwrap()).await;
    let again = answered(ask(&fake, "a").await.unwrap()).await;
    assert_eq!(first["access_token"], again["access_token"]);
    let left = again["expires_in"].as_u64().unwrap();
    assert!((2_591_900..2_592_000).contains(&left), "{left}");
    assert_ne!(token(&fake, "b").await, first["access_token"].as_str().unwrap());
}

#[tokio::test]
async fn a_rate_limit_is_a_clients_own_and_says_when_to_come_back() {
    let fake = fake().await;
    let limit = |retry_after| Some(RateLimit { requests: 2, window: Duration::from_mins(1), retry_after });
    fake.set_rate_limit(limit(RetryAfter::Seconds));
    assert_eq!((status(&fake, "a").await, status(&fake, "a").await), (200, 200));
    let refused = ask(&fake, "a").await.unwrap();
    assert_eq!(refused.status(), 429);
    let secs: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((50..=60).contains(&secs), "{secs}");
    assert_eq!(status(&fake, "b").await, 200);
    fake.set_rate_limit(limit(RetryAfter::HttpDate));
    let refused = ask(&fake, "a").await.unwrap();
    let date = refused.headers()["retry-after"].to_str().unwrap();
    let wait = httpdate::parse_http_date(date).unwrap().duration_since(SystemTime::now()).unwrap();
    assert!(wait > Duration::from_secs(49) && wait <= Duration::from_secs(61), "{wait:?}");
    fake.set_rate_limit(limit(RetryAfter::Absent));
    assert!(!ask(&fake, "a").await.unwrap().headers().contains_key("retry-after"));
    fake.set_rate_limit(None);
    assert_eq!(status(&fake, "a").await, 200);
}

#[tokio::test]
async fn scripts_answer_in_place_of_the_endpoint() {
    let fake = fake().await;
    fake.script("a", Script::endpoint());
    fake.script("a", Script::canned(502, "<html>").header("content-type", "text/html").times(2));
    fake.script("a", Script::redirect(307, "http://127.0.0.1:1/token"));
    fake.script_all(Script::json(200, r#"{"error":"oops"}"#).forever());
    let mut seen = Vec::new();
    for client in ["a", "a", "a", "a", "a", "b"] {
        seen.push(status(&fake, client).await);
    }
    assert_eq!(seen, [200, 502, 502, 307, 200, 200]);
    assert_eq!(fake.ledger().len(), 1);
    fake.clear_scripts();
    fake.script("a", Script::gzip(&b"\x1f\x8bnot"[..]));
    let gzip = ask(&fake, "a").await.unwrap();
    assert_eq!(gzip.headers()["content-encoding"], "gzip");
    assert_eq!(&gzip.bytes().await.unwrap()[..], b"\x1f\x8bnot");
    fake.script("a", Script::status(200).header("no name", "x"));
    assert_eq!(ask(&fake, "a").await.unwrap().text().await.unwrap(), "invalid script");
    let start = SystemTime::now();
    fake.script_all(Script::status(503).forever().when(move |now| now < start));
    fake.script("a", Script::status(503).forever());
    fake.clear_scripts_of("a");
    assert_eq!(status(&fake, "a").await, 200);
}

#[tokio::test]
async fn an_answer_may_be_late_slow_or_cut() {
    let fake = fake().await;
    let start = Instant::now();
    fake.script("a", Script::endpoint().delay(Duration::from_millis(200)));
    assert_eq!(status(&fake, "a").await, 200);
    assert!(start.elapsed() >= Duration::from_millis(200));

    let start = Instant::now();
    let interval = Duration::from_millis(20);
    fake.script("a", Script::json(200, "0123456789").pace(Pace::Drip { chunk_bytes: 2, interval }));
    assert_eq!(ask(&fake, "a").await.unwrap().text().await.unwrap(), "0123456789");
    assert!(start.elapsed() >= interval * 5);

    fake.script("a", Script::endpoint().pace(Pace::CutAfter { bytes: 5 }));
    let (answer, end) = raw(&fake, "a").await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("content-length: "));
    assert_eq!((body.len(), end), (5, None));

    fake.script("a", Script::endpoint().pace(Pace::CutAfter { bytes: 0 }));
    let (answer, end) = raw(&fake, "a").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n") && end.is_none());

    fake.script("a", Script::endpoint().pace(Pace::ResetAfter { bytes: 5 }));
    assert_eq!(raw(&fake, "a").await.1, Some(ErrorKind::ConnectionReset));

    fake.script("a", Script::endpoint().pace(Pace::CutAfter { bytes: 5 }));
    assert!(ask(&fake, "a").await.unwrap().bytes().await.is_err());
    assert_eq!(fake.grants_of("a").len(), 5);
}

#[tokio::test]
async fn a_body_may_hang_or_never_end() {
    let fake = fake().await;
    fake.script("a", Script::json(200, "0123456789").pace(Pace::HangAfter { bytes: 4 }));
    let mut response = ask(&fake, "a").await.unwrap();
    assert_eq!(&response.chunk().await.unwrap().unwrap()[..], b"0123");
    let more = tokio::time::timeout(Duration::from_millis(100), response.chunk()).await;
    assert!(more.is_err());

    fake.script("a", Script::json(200, "{").pace(Pace::Endless));
    let mut response = ask(&fake, "a").await.unwrap();
    let mut read = 0;
    while read < 1_000_000 {
        read += response.chunk().await.unwrap().unwrap().len();
    }
}

#[tokio::test]
async fn a_connection_may_end_without_an_answer() {
    let fake = fake().await;
    fake.script("a", Script::close());
    assert_eq!(raw(&fake, "a").await, (String::new(), None));
    fake.script("a", Script::reset());
    assert_eq!(raw(&fake, "a").await, (String::new(), Some(ErrorKind::ConnectionReset)));
    fake.script("a", Script::raw("HTTP/9 what\r\n"));
    assert_eq!(raw(&fake, "a").await, ("HTTP/9 what\r\n".to_owned(), None));
    fake.script("a", Script::hang());
    tokio::select! {
        _ = ask(&fake, "a") => panic!("an answer"),
        arrived = fake.wait_for_requests("a", 4, SOON) => drop(arrived.unwrap()),
    }
    assert_eq!(fake.request_count_of("a"), 4);
    assert_eq!(fake.status_counts()[&None], 4);
}

#[tokio::test]
async fn a_token_may_be_issued_and_its_answer_lost() {
    let fake = fake().await;
    fake.script("a", Script::status(500).after_grant());
    fake.script("a", Script::close().after_grant());
    let odd = r#"{"access_token":"{token}","expires_in":"40"}"#;
    fake.script("a", Script::json(200, odd).after_grant());
    assert_eq!(status(&fake, "a").await, 500);
    assert_eq!(raw(&fake, "a").await.0, "");
    let answer = answered(ask(&fake, "a").await.unwrap()).await;
    let grants = fake.wait_for_grants("a", 3, SOON).await.unwrap();
    assert_eq!(answer["access_token"], grants[2].token);
    fake.script("nobody", Script::status(500).after_grant());
    assert_eq!(status(&fake, "nobody").await, 401);
}

#[tokio::test]
async fn held_requests_wait_for_their_release() {
    let fake = std::sync::Arc::new(fake().await);
    let ask_both = || {
        ["a", "b"].map(|client| {
            let fake = std::sync::Arc::clone(&fake);
            tokio::spawn(async move { status(&fake, client).await })
        })
    };
    fake.hold();
    let asked = ask_both();
    fake.wait_for_held(2, SOON).await.unwrap();
    assert!(fake.ledger().is_empty());
    fake.release();
    fake.hold_answers();
    fake.wait_for_total_grants(2, SOON).await.unwrap();
    fake.wait_for_held(2, SOON).await.unwrap();
    assert_eq!(fake.status_counts()[&None], 2);
    fake.release();
    for answer in asked {
        assert_eq!(answer.await.unwrap(), 200);
    }
    assert_eq!(fake.held(), 0);

    fake.hold();
    let [one, other] = ask_both();
    fake.wait_for_held(2, SOON).await.unwrap();
    one.abort();
    other.abort();
    let quick = Duration::from_millis(1);
    assert!(fake.wait_for_grants("a", 2, quick).await.unwrap_err().to_string().contains("2 grants"));
}

#[tokio::test]
async fn waiting_ends_when_it_comes_about() {
    let fake = fake().await;
    let (requests, refused, _) =
        tokio::join!(fake.wait_for_requests("a", 2, SOON), fake.wait_for_status("a", 401, 1, SOON), async {
            status(&fake, "a").await;
            fake.set_secret("a", "other");
            status(&fake, "a").await
        },);
    assert_eq!((requests.unwrap().len(), refused.unwrap()[0].sequence), (2, 2));
}

#[tokio::test]
async fn an_outage_comes_and_goes() {
    let fake = fake().await;
    fake.set_outage(Some(Outage::Unavailable)).await.unwrap();
    assert_eq!(status(&fake, "a").await, 503);
    fake.set_outage(Some(Outage::Closed)).await.unwrap();
    assert_eq!(raw(&fake, "a").await, (String::new(), None));
    fake.set_outage(Some(Outage::Refused)).await.unwrap();
    let refused = TcpStream::connect(fake.address()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    fake.set_outage(None).await.unwrap();
    assert_eq!(status(&fake, "a").await, 200);
}

#[tokio::test]
async fn connections_are_counted() {
    let fake = fake().await;
    let pooling = http();
    for _ in 0..2 {
        pooling.get(fake.protected_url()).send().await.unwrap().bytes().await.unwrap();
    }
    assert_eq!(fake.connections(), 1);
    http().get(fake.protected_url()).send().await.unwrap();
    assert_eq!(fake.connections(), 2);
}

#[tokio::test]
async fn tls_is_trusted_through_its_own_authority_alone() {
    let fake = FakeMoneyGo::builder().any_client().tls_names(["fake.test"]).start().await.unwrap();
    let root = reqwest::Certificate::from_pem(fake.ca_pem().unwrap().as_bytes()).unwrap();
    let trusting = builder().tls_certs_only([root]).resolve("fake.test", fake.address()).build().unwrap();
    let port = fake.address().port();
    for host in ["127.0.0.1", "localhost", "fake.test"] {
        let url = format!("https://{host}:{port}/protected");
        assert_eq!(trusting.get(url).send().await.unwrap().status(), 401);
    }
    let stranger = builder().tls_certs_only([]).build().unwrap();
    assert!(stranger.get(fake.protected_url()).send().await.unwrap_err().is_connect());
    fake.script_all(Script::reset());
    assert!(trusting.post(fake.token_url()).body("{}").send().await.is_err());
    fake.script_all(Script::endpoint().pace(Pace::CutAfter { bytes: 3 }));
    let request = trusting.post(fake.token_url()).header("content-type", "application/json");
    let cut = request.body(body("a").to_string()).send().await.unwrap();
    assert!(cut.bytes().await.is_err());
    assert_eq!(fake.grants_of("a").len(), 1);
}

#[tokio::test]
async fn it_ends_with_its_handle() {
    let fake = fake().await;
    let address = fake.address();
    let mut open = TcpStream::connect(address).await.unwrap();
    fake.shutdown().await;
    assert!(TcpStream::connect(address).await.is_err());
    let end = tokio::time::timeout(SOON, open.read(&mut [0])).await.unwrap();
    assert!(matches!(end, Ok(0) | Err(_)));
}
