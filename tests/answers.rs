//! Every kind of bad answer of the token endpoint, and the good ones that look odd: the conditions, reasons and waits that
//! docs/api.md promises, with the last good token in place.
//!
//! Each answer is given to a client of its own. What makes an endpoint look as if it were away is given to one client after
//! another with a good answer in between, since several such clients in a row are an outage, which is shared.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod stage;

use std::net::TcpListener;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, SystemTime};

use fake_moneygo::{FakeMoneyGo, Outage, Pace, Script};
use futures::FutureExt as _;
use futures::future::join_all;
use futures::stream::{self, StreamExt as _};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use moneygo_operator::crd::{MoneyGoCredential, MoneyGoCredentialStatus, Reason};
use serde_json::json;
use stage::{SOON, Scene, Stage, condition, is_newer};

/// Stands in every body, token and client secret, and may stand nowhere else.
const CANARY: &str = "canary";
const TOKEN: &str = "canary-token.~+/=";
/// `--token-timeout`.
const TIMEOUT: &str = "2s";
/// How many rows are played at the same time.
const AT_ONCE: usize = 12;
/// The longest lifetime that is believed.
const LONGEST_SECS: i64 = 366 * 24 * 3600;
const HOUR_SECS: i64 = 3600;

struct Row {
    /// The object's name, too.
    name: &'static str,
    script: Script,
    expected: Expected,
}

#[derive(Clone, Copy)]
enum Expected {
    /// A token that lives so long.
    Token { secs: i64 },
    /// None, for this reason, and the next attempt then.
    Failure(Reason, Wait),
}

/// Until the next attempt, from the failure on.
#[derive(Clone, Copy, PartialEq)]
enum Wait {
    /// The first of the waits that docs/api.md names for the reason, and up to a fifth more.
    First,
    /// What `Retry-After` says.
    Asked(i64),
    /// Until the moment that `Retry-After` names.
    Until(SystemTime),
    /// This part of what the token has left.
    Share(i32),
}

/// What an object has as the answer comes.
#[derive(Clone, Copy, PartialEq)]
enum Has {
    Nothing,
    Token,
}

fn first_wait(reason: Reason) -> SignedDuration {
    match reason {
        Reason::InvalidClient | Reason::RequestRejected => SignedDuration::from_mins(5),
        _ => SignedDuration::from_secs(5),
    }
}

fn is_hopeless(reason: Reason) -> bool {
    matches!(reason, Reason::InvalidClient | Reason::RequestRejected)
}

// ---- The rows ---------------------------------------------------------------------------------------------------------

fn fails(name: &'static str, script: Script, reason: Reason) -> Row {
    Row { name, script, expected: Expected::Failure(reason, Wait::First) }
}

fn fails_until(name: &'static str, script: Script, reason: Reason, wait: Wait) -> Row {
    Row { name, script, expected: Expected::Failure(reason, wait) }
}

fn gives(name: &'static str, script: Script, secs: i64) -> Row {
    Row { name, script, expected: Expected::Token { secs } }
}

fn error(code: &str) -> String {
    format!(r#"{{"error":"{code}","error_description":"{CANARY}"}}"#)
}

fn html(status: u16) -> Script {
    Script::canned(status, format!("<html><h1>{CANARY}</h1></html>")).header("content-type", "text/html")
}

/// A 200 with these fields beside a good token.
fn beside(fields: &str) -> Script {
    Script::json(200, format!(r#"{{"access_token":"{TOKEN}",{fields}}}"#))
}

fn expires_in(literal: &str) -> Script {
    beside(&format!(r#""token_type":"Bearer","expires_in":{literal}"#))
}

/// A 200 with this as the token.
fn token(literal: &str) -> Script {
    Script::json(200, format!(r#"{{"access_token":{literal},"token_type":"Bearer","expires_in":3600}}"#))
}

fn good() -> String {
    format!(r#"{{"access_token":"{TOKEN}","token_type":"Bearer","expires_in":3600}}"#)
}

fn raw(head: &str) -> Script {
    Script::raw(format!("HTTP/1.1 {head}\r\n\r\n"))
}

fn refused_rows() -> Vec<Row> {
    use Reason::{InvalidClient, RequestRejected};
    let json = |status, code: &str| Script::json(status, error(code));
    vec![
        fails("401-invalid-client", json(401, "invalid_client"), InvalidClient),
        fails("401-empty", Script::status(401), InvalidClient),
        fails("401-html", html(401), InvalidClient),
        fails("401-unknown-code", json(401, "canary_code"), InvalidClient),
        fails("401-invalid-scope", json(401, "invalid_scope"), RequestRejected),
        fails("401-retry-after-means-nothing", json(401, "invalid_client").header("retry-after", "7"), InvalidClient),
        fails("401-large", Script::json(401, CANARY.repeat(20_000)), InvalidClient),
        fails("401-cut", json(401, "invalid_client").pace(Pace::CutAfter { bytes: 5 }), InvalidClient),
        fails("401-hangs", json(401, "invalid_client").pace(Pace::HangAfter { bytes: 5 }), InvalidClient),
        fails("403-empty", Script::status(403), InvalidClient),
        fails("403-html", html(403), InvalidClient),
        fails("403-unauthorized-client", json(403, "unauthorized_client"), InvalidClient),
        fails("400-empty", Script::status(400), RequestRejected),
        fails("400-html", html(400), RequestRejected),
        fails("400-invalid-request", json(400, "invalid_request"), RequestRejected),
        fails("400-invalid-client", json(400, "invalid_client"), InvalidClient),
        fails("400-invalid-grant", json(400, "invalid_grant"), RequestRejected),
        fails("400-unauthorized-client", json(400, "unauthorized_client"), InvalidClient),
        fails("400-unsupported-grant-type", json(400, "unsupported_grant_type"), RequestRejected),
        fails("400-invalid-scope", json(400, "invalid_scope"), RequestRejected),
        fails(
            "400-repeated-code",
            Script::json(400, r#"{"error":"invalid_client","error":"canary"}"#),
            RequestRejected,
        ),
        fails("400-beside-a-token", Script::json(400, good()), RequestRejected),
        fails("200-invalid-client", json(200, "invalid_client"), InvalidClient),
        fails("200-invalid-scope", json(200, "invalid_scope"), RequestRejected),
        fails("200-unknown-code", json(200, "canary_code"), RequestRejected),
        fails(
            "200-code-and-empty-token",
            Script::json(200, r#"{"error":"invalid_client","access_token":""}"#),
            InvalidClient,
        ),
        gives("200-code-beside-a-token", beside(r#""expires_in":3600,"error":"invalid_client""#), HOUR_SECS),
    ]
}

fn status_rows(elsewhere: &str) -> Vec<Row> {
    use Reason::BadResponse;
    let redirect = |status| Script::redirect(status, elsewhere);
    vec![
        fails("101", raw("101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: canary"), BadResponse),
        gives(
            "103-then-200",
            raw(&format!(
                "103 Early Hints\r\nlink: </canary>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{}",
                good().len(),
                good()
            )),
            HOUR_SECS,
        ),
        fails("201-with-a-token", Script::json(201, good()), BadResponse),
        fails("202-empty", Script::status(202), BadResponse),
        fails("204", raw("204 No Content"), BadResponse),
        fails("206-with-a-token", Script::json(206, good()).header("content-range", "bytes 0-9/10"), BadResponse),
        fails("300", Script::status(300), BadResponse),
        fails("301", redirect(301), BadResponse),
        fails("302", redirect(302), BadResponse),
        fails("303", redirect(303), BadResponse),
        fails("304", raw("304 Not Modified"), BadResponse),
        fails("307", redirect(307), BadResponse),
        fails("308", redirect(308), BadResponse),
        fails("307-without-location", Script::status(307), BadResponse),
        fails("402", Script::json(402, error("invalid_client")), BadResponse),
        fails("404-html", html(404), BadResponse),
        fails("404-retry-after-means-nothing", Script::status(404).header("retry-after", "7"), BadResponse),
        fails("405", Script::status(405).header("allow", "GET"), BadResponse),
        fails("407", Script::status(407).header("proxy-authenticate", "Basic realm=canary"), BadResponse),
        fails("413", Script::status(413), BadResponse),
        fails("418", Script::json(418, good()), BadResponse),
        fails("451", Script::status(451), BadResponse),
        fails("600", Script::json(600, good()), BadResponse),
        fails("999", Script::status(999), BadResponse),
    ]
}

fn rate_limit_rows() -> Vec<Row> {
    let limited = || Script::json(429, error("rate_limited"));
    let after =
        |name, value: &str, wait| fails_until(name, limited().header("retry-after", value), Reason::RateLimited, wait);
    let in_half_an_hour = SystemTime::from(Timestamp::from_second(stage_now().as_second() + 1800).unwrap());
    let imf = httpdate::fmt_http_date(in_half_an_hour);
    vec![
        after("429", "", Wait::First),
        fails("429-html", html(429), Reason::RateLimited),
        after("429-seconds", "120", Wait::Asked(120)),
        after("429-zero", "0", Wait::Asked(1)),
        after("429-an-hour", "3600", Wait::Asked(HOUR_SECS)),
        after("429-a-day", "86400", Wait::Asked(HOUR_SECS)),
        after("429-beyond-every-number", "99999999999999999999999999", Wait::Asked(HOUR_SECS)),
        after("429-date", &imf, Wait::Until(in_half_an_hour)),
        after("429-past-date", "Sun, 06 Nov 1994 08:49:37 GMT", Wait::Asked(1)),
        after("429-past-date-of-rfc-850", "Sunday, 06-Nov-94 08:49:37 GMT", Wait::Asked(1)),
        after("429-past-date-of-asctime", "Sun Nov  6 08:49:37 1994", Wait::Asked(1)),
        after("429-far-date", "Fri, 31 Dec 9999 23:59:59 GMT", Wait::Asked(HOUR_SECS)),
        after("429-no-such-date", "Sun, 99 Nov 1994 08:49:37 GMT", Wait::First),
        after("429-negative", "-5", Wait::First),
        after("429-fraction", "1.5", Wait::First),
        after("429-words", "canary minutes", Wait::First),
        fails_until(
            "400-slow-down",
            Script::json(400, error("slow_down")).header("retry-after", "90"),
            Reason::RateLimited,
            Wait::Asked(90),
        ),
        fails("200-slow-down", Script::json(200, error("slow_down")), Reason::RateLimited),
    ]
}

fn expires_in_rows() -> Vec<Row> {
    let bad = |name, literal: &str| fails(name, expires_in(literal), Reason::BadResponse);
    let good = |name, literal: &str, secs| gives(name, expires_in(literal), secs);
    vec![
        gives("lifetime-missing", beside(r#""token_type":"Bearer""#), HOUR_SECS),
        good("lifetime-null", "null", HOUR_SECS),
        good("lifetime-string", r#""7200""#, 7200),
        good("lifetime-string-with-spaces", r#"" 7200 ""#, 7200),
        good("lifetime-fraction", "7200.9", 7200),
        good("lifetime-exponent", "7.2e3", 7200),
        good("lifetime-longest", "31622400", LONGEST_SECS),
        good("lifetime-a-second-too-long", "31622401", LONGEST_SECS),
        good("lifetime-2-64", "18446744073709551616", LONGEST_SECS),
        good("lifetime-1e400", "1e400", LONGEST_SECS),
        good("lifetime-string-1e400", r#""1e400""#, LONGEST_SECS),
        good("lifetime-monstrous-exponent", "1e99999999999999999999", LONGEST_SECS),
        bad("lifetime-zero", "0"),
        bad("lifetime-minus-zero", "-0"),
        bad("lifetime-below-one", "0.999"),
        bad("lifetime-tiny", "1e-400"),
        bad("lifetime-negative", "-3600"),
        bad("lifetime-minus-1e400", "-1e400"),
        bad("lifetime-negative-string", r#""-1""#),
        fails("lifetime-over-before-it-came", expires_in("1").delay(Duration::from_millis(1500)), Reason::BadResponse),
        bad("lifetime-empty-string", r#""""#),
        bad("lifetime-words", r#""canary hours""#),
        bad("lifetime-nan-string", r#""NaN""#),
        bad("lifetime-infinite-string", r#""inf""#),
        bad("lifetime-plus-sign", r#""+3600""#),
        bad("lifetime-date", r#""2030-01-01T00:00:00Z""#),
        bad("lifetime-true", "true"),
        bad("lifetime-array", "[3600]"),
        bad("lifetime-object", r#"{"seconds":3600}"#),
        bad("lifetime-bare-nan", "NaN"),
        bad("lifetime-hexadecimal", "0x10"),
    ]
}

fn token_rows() -> Vec<Row> {
    let bad = |name, literal: &str| fails(name, token(literal), Reason::BadResponse);
    let too_long = format!(r#""{}""#, "canary-x".repeat(4096) + "x");
    vec![
        bad("token-missing-but-null", "null"),
        fails("token-missing", Script::json(200, r#"{"token_type":"Bearer","expires_in":3600}"#), Reason::BadResponse),
        fails("token-in-an-envelope", Script::json(200, format!(r#"{{"data":{}}}"#, good())), Reason::BadResponse),
        fails("token-under-another-case", Script::json(200, r#"{"Access_Token":"canary"}"#), Reason::BadResponse),
        bad("token-empty", r#""""#),
        bad("token-number", "12345"),
        bad("token-object", r#"{"canary":1}"#),
        bad("token-array", r#"["canary"]"#),
        bad("token-false", "false"),
        bad("token-newline", r#""canary\r\nX-Injected: 1""#),
        bad("token-tab", r#""canary\tcanary""#),
        bad("token-nul", r#""canary\u0000""#),
        bad("token-escape", r#""canary\u001b[31m""#),
        bad("token-delete", r#""canary\u007f""#),
        bad("token-umlaut", r#""canäry-canary""#),
        bad("token-emoji", r#""canary\ud83d\ude00""#),
        bad("token-lone-surrogate", r#""canary\ud800""#),
        bad("token-space-before", r#"" canary""#),
        bad("token-space-after", r#""canary ""#),
        bad("token-only-a-space", r#"" ""#),
        bad("token-too-long", &too_long),
        bad("type-mac", r#""canary","token_type":"mac""#),
        fails("type-wrong", beside(r#""token_type":"DPoP","expires_in":3600"#), Reason::BadResponse),
        fails("type-empty", beside(r#""token_type":"","expires_in":3600"#), Reason::BadResponse),
        fails("type-number", beside(r#""token_type":1,"expires_in":3600"#), Reason::BadResponse),
        gives("type-upper-case", beside(r#""token_type":"BEARER","expires_in":7200"#), 7200),
        gives("type-lower-case", beside(r#""token_type":"bearer","expires_in":7200"#), 7200),
        gives("type-missing", beside(r#""expires_in":7200"#), 7200),
        gives("type-null", beside(r#""token_type":null,"expires_in":7200"#), 7200),
    ]
}

fn body_rows() -> Vec<Row> {
    let bad = |name, body: &[u8]| fails(name, Script::json(200, body.to_vec()), Reason::BadResponse);
    let of = |bytes: usize| format!("{}{}", good(), " ".repeat(bytes - good().len()));
    let nested = |opened: usize, closed: usize| {
        let (open, close) = ("[".repeat(opened), "]".repeat(closed));
        format!(r#"{{"x":{open}{close},{}"#, &good()[1..])
    };
    let bomb = [b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03".as_slice(), &vec![0; 1 << 20]].concat();
    vec![
        bad("body-empty", b""),
        bad("body-white-space", b" \r\n\t"),
        fails("body-html", html(200), Reason::BadResponse),
        bad("body-form", b"access_token=canary&expires_in=3600"),
        bad("body-null", b"null"),
        bad("body-string", b"\"canary\""),
        bad("body-array", format!("[{}]", good()).as_bytes()),
        bad("body-array-of-the-fields", br#"["canary","Bearer",3600,null]"#),
        bad("body-empty-object", b"{}"),
        bad("body-truncated", &good().as_bytes()[..good().len() - 1]),
        bad("body-trailing-comma", format!("{},}}", &good()[..good().len() - 1]).as_bytes()),
        bad("body-two-objects", format!("{}{}", good(), good()).as_bytes()),
        bad("body-something-after", format!("{}canary", good()).as_bytes()),
        bad("body-nul-after", format!("{}\0", good()).as_bytes()),
        bad("body-nul-within", b"{\"access_token\":\"canary\0\"}"),
        bad("body-byte-order-mark", format!("\u{feff}{}", good()).as_bytes()),
        bad("body-utf-16", &good().encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>()),
        bad("body-not-utf-8", b"{\"access_token\":\"canary\xff\"}"),
        bad("body-raw-line-break-in-token", b"{\"access_token\":\"canary\n\"}"),
        bad("body-two-tokens", format!(r#"{{"access_token":"canary",{}"#, &good()[1..]).as_bytes()),
        bad("body-two-lifetimes", format!(r#"{{"expires_in":1,{}"#, &good()[1..]).as_bytes()),
        bad("body-two-types", format!(r#"{{"token_type":"mac",{}"#, &good()[1..]).as_bytes()),
        bad("body-deep-and-unclosed", nested(60_000, 0).as_bytes()),
        bad("body-64-kib-and-one", of(64 * 1024 + 1).as_bytes()),
        bad("body-a-mebibyte", of(1 << 20).as_bytes()),
        fails("body-endless", Script::json(200, "").pace(Pace::Endless), Reason::BadResponse),
        fails("body-endless-after-a-token", Script::json(200, good()).pace(Pace::Endless), Reason::BadResponse),
        fails("body-gzip", Script::gzip(bomb.clone()), Reason::BadResponse),
        fails(
            "body-gzip-of-an-error",
            Script::json(200, bomb).header("content-encoding", "identity, gzip"),
            Reason::BadResponse,
        ),
        fails("body-brotli", Script::json(200, good()).header("content-encoding", "br"), Reason::BadResponse),
        gives("body-identity", Script::json(200, good()).header("content-encoding", "identity"), HOUR_SECS),
        gives("body-64-kib", Script::json(200, of(64 * 1024)), HOUR_SECS),
        gives("body-deep", Script::json(200, nested(30_000, 30_000)), HOUR_SECS),
        gives("body-wrong-content-type", Script::canned(200, good()).header("content-type", "image/png"), HOUR_SECS),
        gives("body-no-content-type", Script::canned(200, good()), HOUR_SECS),
        gives(
            "body-slow-but-in-time",
            Script::json(200, good()).pace(Pace::Drip { chunk_bytes: 30, interval: Duration::from_millis(20) }),
            HOUR_SECS,
        ),
        gives(
            "body-chunked",
            raw(&format!("200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{}\r\n0", good().len(), good())),
            HOUR_SECS,
        ),
        gives("body-until-the-end", Script::raw(format!("HTTP/1.1 200 OK\r\n\r\n{}", good())), HOUR_SECS),
    ]
}

/// What looks as if the endpoint were away.
fn unavailable_rows() -> Vec<Row> {
    use Reason::EndpointUnavailable;
    let drip = Pace::Drip { chunk_bytes: 1, interval: Duration::from_millis(100) };
    let away = |name, script| fails(name, script, EndpointUnavailable);
    let json = |pace| Script::json(200, good()).pace(pace);
    vec![
        away("100-then-nothing", raw("100 Continue")),
        away("408", Script::status(408)),
        away("500-with-a-token", Script::json(500, good())),
        away("500-html", html(500)),
        away("501", Script::status(501)),
        away("502-html", html(502)),
        away("503-html", html(503)),
        away("504-html", html(504)),
        away("599", Script::status(599)),
        away("503-cut", html(503).pace(Pace::CutAfter { bytes: 5 })),
        away("503-hangs", html(503).pace(Pace::HangAfter { bytes: 5 })),
        away("400-server-error", Script::json(400, error("server_error"))),
        away("200-temporarily-unavailable", Script::json(200, error("temporarily_unavailable"))),
        fails_until("503-seconds", html(503).header("retry-after", "40"), EndpointUnavailable, Wait::Asked(40)),
        fails_until("503-a-day", html(503).header("retry-after", "86400"), EndpointUnavailable, Wait::Asked(HOUR_SECS)),
        fails_until("503-zero", html(503).header("retry-after", "0"), EndpointUnavailable, Wait::Asked(1)),
        away("503-garbage", html(503).header("retry-after", "canary")),
        away("close", Script::close()),
        away("reset", Script::reset()),
        away("hang", Script::hang()),
        away("late", Script::json(200, good()).delay(Duration::from_secs(30))),
        away("head-alone", json(Pace::HangAfter { bytes: 0 })),
        away("drip-beyond-the-deadline", json(drip)),
        away("cut-at-once", json(Pace::CutAfter { bytes: 0 })),
        away("cut-within", json(Pace::CutAfter { bytes: 20 })),
        away("reset-within", json(Pace::ResetAfter { bytes: 20 })),
        away("cut-head", Script::raw("HTTP/1.1 200 O")),
        away("garbage", Script::raw("canary canary canary\r\n\r\n")),
        away("ssh", Script::raw("SSH-2.0-canary\r\n")),
        away("http-2", Script::raw(b"\0\0\x12\x04\0\0\0\0\0".as_slice())),
        away("bad-status-line", Script::raw("HTTP/1.1 canary OK\r\n\r\n")),
        away("bad-chunk", raw("200 OK\r\ntransfer-encoding: chunked\r\n\r\ncanary\r\n{}\r\n0")),
        away("huge-head", Script::raw(format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", CANARY.repeat(200_000)))),
    ]
}

fn rows(elsewhere: &str) -> Vec<Row> {
    let groups =
        [refused_rows(), status_rows(elsewhere), rate_limit_rows(), expires_in_rows(), token_rows(), body_rows()];
    groups.into_iter().flatten().collect()
}

// ---- The play ---------------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_answer_leaves_a_good_token_in_place() {
    play_all("answers-living", Has::Token).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_answer_to_a_new_object_is_told() {
    play_all("answers-new", Has::Nothing).await;
}

async fn play_all(name: &str, has: Has) {
    let stage = Stage::new(name).await;
    let elsewhere = FakeMoneyGo::builder().any_client().start().await.unwrap();
    let flags = ["--token-requests-per-second=1000", "--token-concurrency=64"];
    let operator = flags.into_iter().fold(stage.operator(), stage::OperatorBuilder::flag);
    let operator = operator.flag(format!("--token-timeout={TIMEOUT}")).start().await;
    let (concurrent, one_by_one) = (rows(&elsewhere.token_url()), unavailable_rows());
    let mut tally = Tally::default();
    let mut plays = stream::iter(&concurrent).map(|row| played(&stage, row, has)).buffer_unordered(AT_ONCE);
    while let Some((row, passed)) = plays.next().await {
        // Retries would only be in the way of the next.
        stage.moneygo.clear_scripts_of(row.name);
        tally.add(row, passed);
    }
    drop(plays);
    for (index, row) in one_by_one.iter().enumerate() {
        let (row, passed) = played(&stage, row, has).await;
        tally.add(row, passed);
        // Somebody's success tells that the endpoint is there.
        stage.moneygo.clear_scripts_of(row.name);
        let well = format!("well-{index}");
        stage.subscribe(&well, json!({})).await;
        stage.ready(&well).await;
    }
    assert_eq!(elsewhere.connections(), 0, "a redirect was followed");
    assert_told_nothing(&stage, &operator.log()).await;
    operator.stop().await;
    tally.close(name);
}

/// Plays a row; what it panics with is printed as it does.
async fn played<'a>(stage: &Stage, row: &'a Row, has: Has) -> (&'a Row, bool) {
    let outcome = AssertUnwindSafe(play(stage, row, has)).catch_unwind().await;
    (row, outcome.is_ok())
}

#[derive(Default)]
struct Tally {
    rows: usize,
    bad_answers: usize,
    failed: Vec<&'static str>,
}

impl Tally {
    fn add(&mut self, row: &Row, passed: bool) {
        self.rows += 1;
        self.bad_answers += usize::from(matches!(row.expected, Expected::Failure(..)));
        if !passed {
            self.failed.push(row.name);
        }
    }

    fn close(self, name: &str) {
        let Self { rows, bad_answers, failed } = self;
        println!(
            "{name}: {rows} answers, {bad_answers} of them bad; {} passed, {} failed",
            rows - failed.len(),
            failed.len()
        );
        assert!(failed.is_empty(), "failed: {failed:?}");
    }
}

async fn play(stage: &Stage, row: &Row, has: Has) {
    let before = match has {
        Has::Nothing => {
            stage.moneygo.script(row.name, row.script.clone().forever());
            stage.subscribe(row.name, json!({})).await;
            None
        }
        Has::Token => {
            stage.subscribe(row.name, json!({})).await;
            stage.ready(row.name).await;
            let before = (stage.get(row.name).await, stage.secret(row.name).await);
            stage.moneygo.script(row.name, row.script.clone().forever());
            stage.request_refresh(row.name, "now").await;
            Some(before)
        }
    };
    let asked_before = usize::from(before.is_some());
    match row.expected {
        Expected::Failure(reason, wait) => {
            let what = format!("{} has failed", row.name);
            let has_failed = |object: &MoneyGoCredential| status(object).failed_attempts.is_some();
            let object = stage.until(&what, SOON, |scene| scene.credential(row.name).filter(has_failed)).await;
            let requests = stage.moneygo.request_count_of(row.name);
            assert_eq!(requests, asked_before + 1, "{}: requests", row.name);
            check_conditions(row.name, &object, reason, before.is_some());
            check_wait(row.name, &object, reason, wait);
            check_target(stage, row.name, &object, before).await;
        }
        Expected::Token { secs } => {
            let what = format!("{} has the token", row.name);
            let object = stage.until(&what, SOON, |scene| {
                let is_there = scene.token(row.name).as_deref() == Some(TOKEN);
                let old = before.as_ref().map(|(object, _)| status(object).issued_at);
                let is_new =
                    |object: &MoneyGoCredential| stage::is_ready(object) && Some(status(object).issued_at) != old;
                scene.credential(row.name).filter(is_new).filter(|_| is_there)
            });
            check_token(row.name, &object.await, secs);
        }
    }
}

fn status(object: &MoneyGoCredential) -> MoneyGoCredentialStatus {
    object.status.clone().unwrap_or_default()
}

fn check_conditions(name: &str, object: &MoneyGoCredential, reason: Reason, has_token: bool) {
    let told = |kind| {
        let found = condition(object, kind).unwrap();
        assert_eq!(found.observed_generation, object.metadata.generation, "{name}: {kind}");
        (found.status, found.reason)
    };
    let expected = |status: &str, reason: Reason| (status.to_owned(), reason.as_str().to_owned());
    assert_eq!(told("Refreshed"), expected("False", reason), "{name}");
    let ready = if has_token { expected("True", Reason::TokenValid) } else { expected("False", reason) };
    assert_eq!(told("Ready"), ready, "{name}");
    let is_stalled = !has_token && is_hopeless(reason);
    let stalled = if is_stalled { expected("True", reason) } else { expected("False", Reason::AsExpected) };
    assert_eq!(told("Stalled"), stalled, "{name}");
    assert_eq!(status(object).failed_attempts, Some(1), "{name}");
    let message = condition(object, "Refreshed").unwrap().message;
    assert!((10..300).contains(&message.len()), "{name}: {message}");
    let whole = serde_json::to_string(object).unwrap();
    assert!(!whole.contains(CANARY) && !message.contains("127.0.0.1"), "{name}: {whole}");
}

fn check_wait(name: &str, object: &MoneyGoCredential, reason: Reason, wait: Wait) {
    let status = status(object);
    let (failed_at, next) = (status.last_failure_time.unwrap(), status.next_attempt_at.unwrap());
    let waits = next.duration_since(failed_at);
    let rounding = SignedDuration::from_millis(2);
    let (least, most) = match wait {
        Wait::First => (first_wait(reason), first_wait(reason) * 6 / 5),
        Wait::Asked(secs) => (SignedDuration::from_secs(secs), SignedDuration::from_secs(secs)),
        Wait::Until(date) => {
            let left = Timestamp::try_from(date).unwrap().duration_since(failed_at);
            (left, left + SignedDuration::from_secs(1))
        }
        Wait::Share(part) => {
            let share = status.expires_at.unwrap().duration_since(failed_at) / part;
            (share, share)
        }
    };
    let in_bounds = least - rounding <= waits && waits <= most + rounding;
    assert!(in_bounds, "{name}: waits {waits:#} and not {least:#} to {most:#}");
}

async fn check_target(
    stage: &Stage,
    name: &str,
    object: &MoneyGoCredential,
    before: Option<(MoneyGoCredential, Secret)>,
) {
    let secret = stage.secrets().get_opt(name).await.unwrap();
    let Some((earlier, had)) = before else {
        assert!(secret.is_none(), "{name}: there is a target");
        return;
    };
    let has = secret.unwrap();
    assert_eq!(has.data, had.data, "{name}: the target's data");
    assert_eq!(has.metadata.resource_version, had.metadata.resource_version, "{name}: the target was written");
    let (earlier, status) = (status_times(&earlier), status_times(object));
    assert_eq!(status, earlier, "{name}: the token's times");
    assert_eq!(self::status(object).last_handled_refresh, None, "{name}: the request is not answered");
}

fn status_times(object: &MoneyGoCredential) -> [Option<Timestamp>; 3] {
    let status = status(object);
    [status.issued_at, status.expires_at, status.refresh_at]
}

fn check_token(name: &str, object: &MoneyGoCredential, secs: i64) {
    let status = status(object);
    let lifetime = status.expires_at.unwrap().duration_since(status.issued_at.unwrap());
    let expected = SignedDuration::from_secs(secs);
    // The expiry is rounded down to a whole second.
    let is_right = lifetime <= expected && lifetime > expected - SignedDuration::from_secs(1);
    assert!(is_right, "{name}: lives {lifetime:#} and not {expected:#}");
    let refreshed = condition(object, "Refreshed").unwrap();
    assert_eq!((refreshed.status.as_str(), refreshed.reason.as_str()), ("True", "Succeeded"), "{name}");
    assert_eq!((status.failed_attempts, status.next_attempt_at), (None, None), "{name}");
}

// ---- What the time left, the number of attempts and the other clients change ---------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn retries_are_sooner_while_a_token_is_about_to_end() {
    const LIFETIME: Duration = Duration::from_secs(9);
    let stage = Stage::setup("answers-dying").moneygo(|moneygo| moneygo.expires_in(LIFETIME)).open().await;
    let operator = stage.operator().start().await;
    let share = |name, script, reason| {
        let part = if is_hopeless(reason) { 2 } else { 4 };
        fails_until(name, script, reason, Wait::Share(part))
    };
    let asked =
        |name, script: Script, reason| fails_until(name, script.header("retry-after", "100"), reason, Wait::Asked(100));
    let rows = [
        share("dying-401", Script::status(401), Reason::InvalidClient),
        share("dying-400", Script::status(400), Reason::RequestRejected),
        share("dying-404", Script::status(404), Reason::BadResponse),
        share("dying-429", Script::status(429), Reason::RateLimited),
        asked("dying-429-asked", Script::status(429), Reason::RateLimited),
        share("dying-503", html(503), Reason::EndpointUnavailable),
    ];
    let mut tally = Tally::default();
    for (row, passed) in join_all(rows.iter().map(|row| played(&stage, row, Has::Token))).await {
        tally.add(row, passed);
    }
    let tokens = join_all(rows.iter().map(|row| stage.secret(row.name))).await;
    for (row, had) in rows.iter().zip(tokens) {
        let Expected::Failure(reason, _) = row.expected else { continue };
        let object = stage.says(row.name, "Ready", "False", Reason::TokenExpired.as_str()).await;
        let refreshed = condition(&object, "Refreshed").unwrap();
        assert_eq!((refreshed.status.as_str(), refreshed.reason.as_str()), ("False", reason.as_str()), "{}", row.name);
        let stalled = condition(&object, "Stalled").unwrap();
        assert_eq!(stalled.status == "True", is_hopeless(reason), "{}", row.name);
        assert_eq!(stage.secret(row.name).await.data, had.data, "{}: what has expired stays, too", row.name);
    }
    operator.stop().await;
    tally.close("answers-dying");
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_grow_up_to_a_limit_for_each_reason() {
    let stage = Stage::new("answers-longest").await;
    let operator = stage.operator().start().await;
    let (secs, mins, hours) = (SignedDuration::from_secs, SignedDuration::from_mins, SignedDuration::from_hours);
    // The endpoint's own comes first, while no other client has had an answer.
    let rows = [
        ("longest-503", html(503), secs(25), secs(30)),
        ("longest-503-of-one-client", html(503), secs(500), mins(10)),
        ("longest-404", html(404), secs(500), mins(10)),
        ("longest-429", html(429), secs(500), mins(10)),
        ("longest-400", html(400), hours(5), hours(6)),
        ("longest-401", html(401), hours(5), hours(6)),
    ];
    for (name, script, least, most) in rows.clone() {
        stage.moneygo.script(name, script.forever());
        stage.subscribe(name, json!({})).await;
        let attempts = |object: &MoneyGoCredential| status(object).failed_attempts;
        let failed = |count| move |object: &MoneyGoCredential| attempts(object) == Some(count);
        stage.until("it has failed", SOON, |scene| scene.credential(name).filter(failed(1))).await;
        if name != rows[0].0 {
            let well = format!("{name}-well");
            stage.subscribe(&well, json!({})).await;
            stage.ready(&well).await;
        }
        // An attempt that was under way just then counts on from where it began.
        let object = loop {
            // The last wait was the longest already.
            let now = stage_now();
            let patch = json!({"status": {"failedAttempts": 9, "lastFailureTime": now - least, "nextAttemptAt": now}});
            let patched = stage.patch_status(name, patch).await;
            let is_next = |object: &MoneyGoCredential| is_newer(object, &patched) && attempts(object) != Some(9);
            let again = |scene: &Scene| scene.credential(name).filter(is_next);
            let object = stage.until("it has failed again", SOON, again).await;
            if attempts(&object) == Some(10) {
                break object;
            }
        };
        let waits = status(&object).next_attempt_at.unwrap().duration_since(status(&object).last_failure_time.unwrap());
        assert!(least <= waits && waits <= most, "{name}: {waits:#}");
        stage.moneygo.clear_scripts_of(name);
        stage.delete(name).await;
    }
    operator.stop().await;
    println!("answers-longest: {} passed", rows.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_told_once_and_ends_for_all_at_once() {
    let stage = Stage::new("answers-outage").await;
    let operator = stage.operator().start().await;
    let names = ["first", "second", "third", "fourth"];
    join_all(names.map(|name| stage.subscribe(name, json!({})))).await;
    join_all(names.map(|name| stage.ready(name))).await;
    stage.moneygo.set_outage(Some(Outage::Unavailable)).await.unwrap();
    join_all(names.map(|name| stage.request_refresh(name, "now"))).await;
    // One alone does not know whether it is the endpoint; from the second on it is.
    let has_failed = |object: &MoneyGoCredential| status(object).failed_attempts.is_some();
    stage.until("one has failed", SOON, |scene| scene.credentials().find(has_failed)).await;
    let refused = || stage.moneygo.status_counts().get(&Some(503)).copied().unwrap_or_default();
    let probed = async {
        while refused() < 3 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, probed).await.expect("a probe");
    let scene = stage.scene();
    assert_eq!(scene.credentials().filter(has_failed).count(), 1, "only one is told of it");
    assert!(scene.credentials().all(|object| stage::is_ready(&object)));
    stage.subscribe("new", json!({})).await;
    stage.says("new", "Ready", "False", Reason::EndpointUnavailable.as_str()).await;
    assert!(refused() <= names.len() + 2, "{} requests", refused());
    stage.moneygo.set_outage(None).await.unwrap();
    stage.ready("new").await;
    for grants in join_all(names.map(|name| stage.moneygo.wait_for_grants(name, 2, SOON))).await {
        grants.expect("a new token");
    }
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_is_not_there_is_told() {
    let stage = Stage::new("answers-nowhere").await;
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let tls = FakeMoneyGo::builder().any_client().tls().start().await.unwrap();
    let other_name = FakeMoneyGo::builder().any_client().tls().listen("127.0.0.2:0".parse().unwrap()).start().await;
    let other_name = other_name.unwrap();
    let ca = |fake: &FakeMoneyGo, name: &str| {
        let file = stage.plane.folder().join(format!("answers-{name}.pem"));
        std::fs::write(&file, fake.ca_pem().unwrap()).unwrap();
        Some(file)
    };
    let plain = stage.moneygo.address();
    let away = Reason::EndpointUnavailable;
    let rows = [
        ("refused", format!("http://{closed}/token"), None, away, "no connection"),
        ("no-such-name", "https://moneygo.invalid/token".to_owned(), None, away, "no connection"),
        ("tls-to-plain-http", format!("https://{plain}/token"), None, away, "TLS failed"),
        ("plain-http-to-tls", format!("http://{}/token", tls.address()), None, away, ""),
        ("untrusted", tls.token_url(), None, away, "certificate is not trusted"),
        ("another-name", other_name.token_url(), ca(&other_name, "other"), away, "for another name"),
        ("another-path", format!("http://{plain}/nothing"), None, Reason::BadResponse, "HTTP 404"),
    ];
    for (name, url, ca_file, reason, part) in rows.clone() {
        let mut builder = stage.operator().without_flag("--token-url").flag(format!("--token-url={url}"));
        if let Some(file) = ca_file {
            builder = builder.flag(format!("--token-ca-file={}", file.display()));
        }
        let operator = builder.flag(format!("--token-timeout={TIMEOUT}")).start().await;
        stage.subscribe(name, json!({})).await;
        let object = stage.says(name, "Refreshed", "False", reason.as_str()).await;
        check_conditions(name, &object, reason, false);
        check_wait(name, &object, reason, Wait::First);
        let message = condition(&object, "Refreshed").unwrap().message;
        assert!(message.contains(part) && !message.contains("moneygo.invalid"), "{name}: {message}");
        stage.delete(name).await;
        operator.stop().await;
    }
    assert_eq!(
        tls.request_count() + other_name.request_count(),
        0,
        "a client secret went to a server that is not trusted"
    );
    println!("answers-nowhere: {} passed", rows.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_request_after_a_restart_is_tried_at_once() {
    let stage = Stage::new("answers-restart").await;
    stage.moneygo.script("payments", Script::status(401));
    let operator = stage.operator().start().await;
    stage.subscribe("payments", json!({})).await;
    stage.says("payments", "Refreshed", "False", Reason::InvalidClient.as_str()).await;
    operator.stop().await;
    let operator = stage.operator().start().await;
    stage.request_refresh("payments", "now").await;
    stage.ready("payments").await;
    operator.stop().await;
}

// ---- The documentation --------------------------------------------------------------------------------------------------

#[test]
fn the_documentation_names_every_reason_and_wait() {
    let document = include_str!("../docs/api.md");
    let (before, section) = document.split_once("\n## Answers of the token endpoint\n").expect("the section");
    for row in rows("").iter().chain(&unavailable_rows()) {
        let Expected::Failure(reason, _) = row.expected else { continue };
        let reason = format!("`{}`", reason.as_str());
        assert!(before.contains(&format!("\n| {reason} | ")), "{}: {reason} is explained", row.name);
        let has_answer =
            section.lines().any(|line| line.starts_with('|') && line.trim_end_matches(" |").ends_with(&reason));
        assert!(has_answer, "{}: {reason} is the reason of an answer", row.name);
    }
    for (reason, wait) in [
        ("InvalidClient", "5 min, doubling up to 6 h"),
        ("RequestRejected", "5 min, doubling up to 6 h"),
        ("RateLimited", "5 s, doubling up to 10 min"),
        ("BadResponse", "5 s, doubling up to 10 min"),
        ("EndpointUnavailable", "5 s, doubling up to 30 s"),
    ] {
        let row = section.lines().find(|line| line.starts_with(&format!("| `{reason}` |"))).expect(reason);
        assert!(row.contains(wait), "{row}");
    }
}

async fn assert_told_nothing(stage: &Stage, log: &str) {
    let line = log.lines().find(|line| line.contains(CANARY));
    assert_eq!(line, None, "in the log");
    let events: kube::Api<k8s_openapi::api::events::v1::Event> =
        kube::Api::namespaced(stage.admin.clone(), &stage.namespace);
    for event in events.list(&kube::api::ListParams::default()).await.unwrap() {
        let text = serde_json::to_string(&event).unwrap();
        assert!(!text.contains(CANARY), "in an event: {text}");
    }
}

#[allow(clippy::disallowed_methods, reason = "a test measures")]
fn stage_now() -> Timestamp {
    Timestamp::now()
}
