use std::{
    env,
    fmt::Write,
    fs,
    net::Ipv4Addr,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use http::{HeaderMap, HeaderName, HeaderValue};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{self, JoinHandle},
    time,
};
use tokio_rustls::TlsAcceptor;

use jiff::Timestamp;

use super::*;

const SECRET: &str = "canary-secret";
const CLIENT: &str = "canary-client";
const TOKEN: &str = "canary-token.~+/=";
/// 1994-11-06T08:49:00Z, 37 s before the date in RFC 9110's examples.
const NOW_SECS: i64 = 784_111_740;
/// No test waits longer than this for what must happen.
const PATIENCE: Duration = Duration::from_secs(20);

fn now() -> Timestamp {
    Timestamp::from_second(NOW_SECS).unwrap()
}

fn clock() -> Clock {
    Clock::new(now, || Duration::ZERO)
}

fn credentials() -> ClientCredentials {
    ClientCredentials::new(CLIENT.to_owned(), SECRET.to_owned())
}

fn config(url: &str) -> TokenClientConfig {
    TokenClientConfig { url: url.to_owned(), allow_insecure: false, ca_file: None, timeout: PATIENCE }
}

fn client(url: &str) -> TokenClient {
    TokenClient::new(&config(url), clock()).unwrap()
}

fn config_error(config: &TokenClientConfig) -> ConfigError {
    TokenClient::new(config, clock()).err().expect("a configuration that cannot work")
}

/// What is compared of an outcome; a grant's token in the clear.
type Outcome = Result<(String, Lifetime), TokenError>;

fn outcome(result: Result<Grant, TokenError>) -> Outcome {
    result.map(|grant| (grant.token.expose().to_owned(), grant.lifetime))
}

#[track_caller]
fn assert_tells_nothing(name: &str, result: &Result<Grant, TokenError>) {
    let shown = match result {
        Ok(grant) => format!("{grant:?}"),
        Err(error) => format!("{error:?} {error}"),
    };
    assert!(!shown.contains("canary"), "{name}: {shown}");
    assert!(!shown.contains("127.0.0.1"), "{name}: {shown}");
}

// ---- The table of answers -------------------------------------------------------------------------------------------

struct Row {
    name: &'static str,
    status: u16,
    headers: Vec<(&'static str, &'static str)>,
    body: Vec<u8>,
    expected: Outcome,
}

fn row(
    name: &'static str,
    status: u16,
    headers: &[(&'static str, &'static str)],
    body: impl AsRef<[u8]>,
    expected: Outcome,
) -> Row {
    Row { name, status, headers: headers.to_vec(), body: body.as_ref().to_vec(), expected }
}

#[expect(clippy::unnecessary_wraps, reason = "an outcome, as its siblings give")]
fn granted(token: &str, secs: u64, source: LifetimeSource) -> Outcome {
    Ok((token.to_owned(), Lifetime { length: Duration::from_secs(secs), source }))
}

fn rejected(status: u16, code: Option<OAuthError>) -> Outcome {
    Err(TokenError::Rejected { status, code })
}

fn limited(retry_after_secs: Option<u64>) -> Outcome {
    Err(TokenError::RateLimited { retry_after: retry_after_secs.map(Duration::from_secs) })
}

fn reported(status: u16, retry_after_secs: Option<u64>) -> Outcome {
    let retry_after = retry_after_secs.map(Duration::from_secs);
    Err(TokenError::Unavailable { status: Some(status), cause: Unavailability::Reported, retry_after })
}

fn bad(status: u16, problem: BadResponse) -> Outcome {
    Err(TokenError::BadResponse { status, problem })
}

fn expires_in_rows() -> Vec<Row> {
    use LifetimeSource::{Assumed, Capped, Stated};
    let max = MAX_LIFETIME.as_secs();
    let good = |name, expires_in: &str, secs, source| {
        let body = format!(r#"{{"access_token":"{TOKEN}","token_type":"Bearer","expires_in":{expires_in}}}"#);
        row(name, 200, &[], body, granted(TOKEN, secs, source))
    };
    let refused = |name, expires_in: &str| {
        let body = format!(r#"{{"access_token":"{TOKEN}","expires_in":{expires_in}}}"#);
        row(name, 200, &[], body, bad(200, BadResponse::ExpiresIn))
    };
    vec![
        good("expires_in: as documented", "2592000", 2_592_000, Stated),
        good("expires_in: one second", "1", 1, Stated),
        good("expires_in: fractional", "3600.7", 3600, Stated),
        good("expires_in: just above one", "1.999999", 1, Stated),
        good("expires_in: exponent", "3.6e3", 3600, Stated),
        good("expires_in: capital exponent", "36E+2", 3600, Stated),
        good("expires_in: string", r#""3600""#, 3600, Stated),
        good("expires_in: string with spaces", r#"" 3600 ""#, 3600, Stated),
        good("expires_in: fractional string", r#""3600.9""#, 3600, Stated),
        good("expires_in: escaped string", r#""\u0033600""#, 3600, Stated),
        good("expires_in: null", "null", 3600, Assumed),
        good("expires_in: the longest", "31622400", max, Stated),
        good("expires_in: a second more", "31622401", max, Capped),
        good("expires_in: u64::MAX", "18446744073709551615", max, Capped),
        good("expires_in: 2^64", "18446744073709551616", max, Capped),
        good("expires_in: 1e400", "1e400", max, Capped),
        good("expires_in: monstrous exponent", "1e99999999999999999999", max, Capped),
        good("expires_in: 400 digits", &"9".repeat(400), max, Capped),
        good("expires_in: huge string", r#""1e400""#, max, Capped),
        refused("expires_in: zero", "0"),
        refused("expires_in: minus zero", "-0"),
        refused("expires_in: 0.999", "0.999"),
        refused("expires_in: tiny", "1e-400"),
        refused("expires_in: negative", "-3600"),
        refused("expires_in: -1e400", "-1e400"),
        refused("expires_in: negative string", r#""-1""#),
        refused("expires_in: empty string", r#""""#),
        refused("expires_in: words", r#""canary hours""#),
        refused("expires_in: NaN string", r#""NaN""#),
        refused("expires_in: infinite string", r#""inf""#),
        refused("expires_in: plus sign", r#""+3600""#),
        refused("expires_in: hexadecimal", r#""0x10""#),
        refused("expires_in: nested string", r#""\"3600\"""#),
        refused("expires_in: date", r#""2030-01-01T00:00:00Z""#),
        refused("expires_in: broken escape", r#""\ud800""#),
        refused("expires_in: true", "true"),
        refused("expires_in: array", "[3600]"),
        refused("expires_in: object", r#"{"seconds":3600}"#),
        row(
            "expires_in: bare NaN",
            200,
            &[],
            r#"{"access_token":"t","expires_in":NaN}"#,
            bad(200, BadResponse::NotJson),
        ),
        row(
            "expires_in: bare word",
            200,
            &[],
            r#"{"access_token":"t","expires_in":1h}"#,
            bad(200, BadResponse::NotJson),
        ),
    ]
}

fn token_rows() -> Vec<Row> {
    let assumed = |token: &str| granted(token, 3600, LifetimeSource::Assumed);
    let token = |name, literal: &str, expected| {
        row(name, 200, &[], format!(r#"{{"access_token":{literal},"token_type":"bearer"}}"#), expected)
    };
    let malformed = || bad(200, BadResponse::MalformedToken);
    let no_token = || bad(200, BadResponse::NoToken);
    let longest = "x".repeat(MAX_TOKEN_BYTES);
    vec![
        token("token: plain", &format!(r#""{TOKEN}""#), assumed(TOKEN)),
        token("token: one character", r#""t""#, assumed("t")),
        token("token: escapes", r#""\u0063anary\/\"\\""#, assumed(r#"canary/"\"#)),
        token("token: inner space", r#""canary canary""#, assumed("canary canary")),
        token("token: the longest", &format!(r#""{longest}""#), assumed(&longest)),
        token("token: too long", &format!(r#""{longest}x""#), malformed()),
        token("token: space before", r#"" canary""#, malformed()),
        token("token: space after", r#""canary ""#, malformed()),
        token("token: only a space", r#"" ""#, malformed()),
        token("token: line break", r#""canary\r\nX-Injected: 1""#, malformed()),
        token("token: NUL", r#""canary\u0000""#, malformed()),
        token("token: DEL", r#""canary\u007f""#, malformed()),
        token("token: umlaut", r#""canäry""#, malformed()),
        token("token: emoji escape", r#""canary\ud83d\ude00""#, malformed()),
        token("token: lone surrogate", r#""canary\ud800""#, malformed()),
        token("token: number", "12345", malformed()),
        token("token: object", r#"{"canary":1}"#, malformed()),
        token("token: false", "false", malformed()),
        token("token: null", "null", no_token()),
        token("token: empty", r#""""#, no_token()),
        token("token: raw line break", "\"canary\n\"", bad(200, BadResponse::NotJson)),
        row("token: raw bytes", 200, &[], b"{\"access_token\":\"canary\xff\"}", bad(200, BadResponse::NotJson)),
        row("token: missing", 200, &[], r#"{"token_type":"Bearer","expires_in":3600}"#, no_token()),
        row("token: other case", 200, &[], r#"{"Access_Token":"canary"}"#, no_token()),
        row("token: in an envelope", 200, &[], r#"{"data":{"access_token":"canary"}}"#, no_token()),
    ]
}

fn token_type_rows() -> Vec<Row> {
    let kind = |name, literal: &str, expected| {
        row(name, 200, &[], format!(r#"{{"token_type":{literal},"access_token":"t","expires_in":60}}"#), expected)
    };
    let good = || granted("t", 60, LifetimeSource::Stated);
    let wrong = || bad(200, BadResponse::TokenType);
    vec![
        kind("token_type: upper case", r#""BEARER""#, good()),
        kind("token_type: null", "null", good()),
        row("token_type: missing", 200, &[], r#"{"access_token":"t","expires_in":60}"#, good()),
        kind("token_type: mac", r#""mac""#, wrong()),
        kind("token_type: DPoP", r#""DPoP canary""#, wrong()),
        kind("token_type: empty", r#""""#, wrong()),
        kind("token_type: number", "1", wrong()),
    ]
}

fn body_rows() -> Vec<Row> {
    let not_json = || bad(200, BadResponse::NotJson);
    let good = || granted("t", 60, LifetimeSource::Stated);
    let fields = r#""access_token":"t","expires_in":60"#;
    let deep = format!(r#"{{"x":{}{},{fields}}}"#, "[".repeat(30_000), "]".repeat(30_000));
    let padded = |len: usize| {
        let mut body = format!("{{{fields}}}");
        body.push_str(&" ".repeat(len - body.len()));
        body
    };
    vec![
        row("body: empty", 200, &[], "", not_json()),
        row("body: white space", 200, &[], " \r\n", not_json()),
        row("body: HTML", 200, &[("content-type", "text/html")], "<html>canary</html>", not_json()),
        row("body: form", 200, &[], "access_token=canary&expires_in=60", not_json()),
        row("body: null", 200, &[], "null", not_json()),
        row("body: string", 200, &[], r#""canary""#, not_json()),
        row("body: array of the fields", 200, &[], r#"["canary","Bearer",60,null]"#, not_json()),
        row("body: array", 200, &[], format!("[{{{fields}}}]"), not_json()),
        row("body: byte order mark", 200, &[], format!("\u{feff}{{{fields}}}"), not_json()),
        row("body: UTF-16", 200, &[], b"{\0}\0", not_json()),
        row("body: trailing bytes", 200, &[], format!("{{{fields}}}canary"), not_json()),
        row("body: two objects", 200, &[], format!("{{{fields}}}{{{fields}}}"), not_json()),
        row("body: unfinished", 200, &[], format!("{{{fields}"), not_json()),
        row("body: trailing comma", 200, &[], format!("{{{fields},}}"), not_json()),
        row("body: repeated token", 200, &[], format!(r#"{{{fields},"access_token":"canary"}}"#), not_json()),
        row("body: repeated lifetime", 200, &[], format!(r#"{{{fields},"expires_in":61}}"#), not_json()),
        row("body: repeated unknown field", 200, &[], format!(r#"{{"x":1,"x":2,{fields}}}"#), good()),
        row("body: deep", 200, &[], deep, good()),
        row("body: unclosed depth", 200, &[], format!(r#"{{"x":{}"#, "[".repeat(60_000)), not_json()),
        row("body: unknown huge number", 200, &[], format!(r#"{{"x":1e999,{fields}}}"#), good()),
        row("body: white space around", 200, &[], format!("\r\n\t {{{fields}}}\n"), good()),
        row("body: wrong content type", 200, &[("content-type", "text/plain")], format!("{{{fields}}}"), good()),
        row("body: the largest", 200, &[], padded(MAX_BODY_BYTES), good()),
        row("body: too large", 200, &[], padded(MAX_BODY_BYTES + 1), bad(200, BadResponse::TooLarge)),
        row("body: far too large", 200, &[], padded(16 * MAX_BODY_BYTES), bad(200, BadResponse::TooLarge)),
        row("body: identity", 200, &[("content-encoding", "Identity")], format!("{{{fields}}}"), good()),
        row("body: gzip", 200, &[("content-encoding", "gzip")], b"\x1f\x8b\x08", bad(200, BadResponse::Encoded)),
        row("body: brotli", 200, &[("content-encoding", "identity, br")], "x", bad(200, BadResponse::Encoded)),
    ]
}

fn error_rows() -> Vec<Row> {
    use OAuthError::{
        InvalidClient, InvalidGrant, InvalidRequest, InvalidScope, UnauthorizedClient, UnsupportedGrantType,
    };
    let error = |code: &str| format!(r#"{{"error":"{code}","error_description":"canary"}}"#);
    let gzip = [("content-encoding", "gzip")];
    vec![
        row(
            "error: 401",
            401,
            &[("www-authenticate", "Basic")],
            error("invalid_client"),
            rejected(401, Some(InvalidClient)),
        ),
        row("error: 401, no body", 401, &[], "", rejected(401, None)),
        row("error: 401, HTML", 401, &[], "<html>canary</html>", rejected(401, None)),
        row("error: 401, unknown code", 401, &[], error("canary"), rejected(401, None)),
        row("error: 401, code in capitals", 401, &[], error("INVALID_CLIENT"), rejected(401, None)),
        row("error: 401, large", 401, &[], "canary".repeat(20_000), rejected(401, None)),
        row("error: 401, gzip", 401, &gzip, error("invalid_client"), rejected(401, None)),
        row("error: 403", 403, &[], "", rejected(403, None)),
        row("error: 403, scope", 403, &[], error("invalid_scope"), rejected(403, Some(InvalidScope))),
        row("error: 400", 400, &[], "", rejected(400, None)),
        row("error: 400, client", 400, &[], error("invalid_client"), rejected(400, Some(InvalidClient))),
        row("error: 400, request", 400, &[], error("invalid_request"), rejected(400, Some(InvalidRequest))),
        row("error: 400, grant", 400, &[], error("invalid_grant"), rejected(400, Some(InvalidGrant))),
        row(
            "error: 400, unauthorized",
            400,
            &[],
            error("unauthorized_client"),
            rejected(400, Some(UnauthorizedClient)),
        ),
        row("error: 400, type", 400, &[], error("unsupported_grant_type"), rejected(400, Some(UnsupportedGrantType))),
        row("error: 400, escaped", 400, &[], r#"{"error":"invalid\u005fscope"}"#, rejected(400, Some(InvalidScope))),
        row("error: 400, object", 400, &[], r#"{"error":{"code":"invalid_client"}}"#, rejected(400, None)),
        row("error: 400, repeated", 400, &[], r#"{"error":"invalid_scope","error":"canary"}"#, rejected(400, None)),
        row("error: 400, with a token", 400, &[], r#"{"access_token":"canary"}"#, rejected(400, None)),
        row(
            "error: 400, passing",
            400,
            &[("retry-after", "7")],
            error("temporarily_unavailable"),
            reported(400, Some(7)),
        ),
        row("error: 400, server", 400, &[], error("server_error"), reported(400, None)),
        row("error: 400, slow down", 400, &[("retry-after", "7")], error("slow_down"), limited(Some(7))),
        row("error: 200", 200, &[], error("invalid_client"), rejected(200, Some(InvalidClient))),
        row("error: 200, unknown code", 200, &[], error("canary"), rejected(200, None)),
        row("error: 200, passing", 200, &[], error("temporarily_unavailable"), reported(200, None)),
        row(
            "error: 200, empty token",
            200,
            &[],
            r#"{"error":"invalid_client","access_token":""}"#,
            rejected(200, Some(InvalidClient)),
        ),
        row("error: 200, null", 200, &[], r#"{"error":null}"#, bad(200, BadResponse::NoToken)),
        row("error: 200, object", 200, &[], r#"{"error":{"message":"canary"}}"#, bad(200, BadResponse::NoToken)),
        row(
            "error: 200, beside a token",
            200,
            &[],
            r#"{"error":"invalid_scope","access_token":"t"}"#,
            granted("t", 3600, LifetimeSource::Assumed),
        ),
    ]
}

fn status_rows() -> Vec<Row> {
    let unexpected = |status| bad(status, BadResponse::UnexpectedStatus);
    let redirect = |status| bad(status, BadResponse::Redirect);
    let good = r#"{"access_token":"canary","expires_in":60}"#;
    let elsewhere = [("location", "https://canary.invalid/token")];
    vec![
        row("status: 201 with a token", 201, &[], good, unexpected(201)),
        row("status: 204", 204, &[], "", unexpected(204)),
        row("status: 206", 206, &[], good, unexpected(206)),
        row("status: 300", 300, &[], "", redirect(300)),
        row("status: 301", 301, &elsewhere, "", redirect(301)),
        row("status: 302", 302, &elsewhere, good, redirect(302)),
        row("status: 303 without location", 303, &[], "", redirect(303)),
        row("status: 304", 304, &[], "", redirect(304)),
        row("status: 308", 308, &elsewhere, "", redirect(308)),
        row("status: 402", 402, &[], "canary", unexpected(402)),
        row("status: 404", 404, &[], r#"{"error":"invalid_client"}"#, unexpected(404)),
        row("status: 405", 405, &[], "", unexpected(405)),
        row("status: 407", 407, &[("proxy-authenticate", "Basic")], "", unexpected(407)),
        row("status: 415", 415, &[], "", unexpected(415)),
        row("status: 418", 418, &[], good, unexpected(418)),
        row("status: 600", 600, &[], good, unexpected(600)),
        row("status: 999", 999, &[], "", unexpected(999)),
        row("status: 408", 408, &[], "", reported(408, None)),
        row("status: 500", 500, &[], good, reported(500, None)),
        row("status: 502", 502, &[], "<html>canary</html>", reported(502, None)),
        row("status: 503", 503, &[("retry-after", "30")], "", reported(503, Some(30))),
        row("status: 504", 504, &[], "", reported(504, None)),
        row("status: 599", 599, &[], "", reported(599, None)),
    ]
}

fn retry_after_rows() -> Vec<Row> {
    let wait = |name, value, secs| row(name, 429, &[("retry-after", value)], "canary", limited(secs));
    vec![
        row("retry-after: none", 429, &[], "", limited(None)),
        wait("retry-after: seconds", "120", Some(120)),
        wait("retry-after: zero", "0", Some(0)),
        wait("retry-after: the cap", "3600", Some(3600)),
        wait("retry-after: beyond the cap", "86400", Some(3600)),
        wait("retry-after: beyond u64", "99999999999999999999999", Some(3600)),
        wait("retry-after: date", "Sun, 06 Nov 1994 08:49:37 GMT", Some(37)),
        wait("retry-after: RFC 850 date", "Sunday, 06-Nov-94 08:49:37 GMT", Some(37)),
        wait("retry-after: asctime date", "Sun Nov  6 08:49:37 1994", Some(37)),
        wait("retry-after: past date", "Sun, 06 Nov 1994 08:48:00 GMT", Some(0)),
        wait("retry-after: far date", "Fri, 31 Dec 9999 23:59:59 GMT", Some(3600)),
        wait("retry-after: negative", "-5", None),
        wait("retry-after: fractional", "1.5", None),
        wait("retry-after: words", "canary", None),
        wait("retry-after: empty", "", None),
        wait("retry-after: no such date", "Sun, 99 Nov 1994 08:49:37 GMT", None),
    ]
}

fn rows() -> Vec<Row> {
    let groups = [
        expires_in_rows(),
        token_rows(),
        token_type_rows(),
        body_rows(),
        error_rows(),
        status_rows(),
        retry_after_rows(),
    ];
    groups.into_iter().flatten().collect()
}

#[test]
fn reads_every_answer_of_the_table() {
    let rows = rows();
    assert!(rows.len() >= 60);
    for row in rows {
        let headers: HeaderMap = row
            .headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect();
        let result = read_answer(row.status, &headers, &row.body, now());
        if !matches!(&result, Ok(grant) if grant.token.expose() == "t") {
            assert_tells_nothing(row.name, &result);
        }
        assert_eq!(outcome(result), row.expected, "{}", row.name);
    }
}

#[tokio::test]
async fn meets_every_answer_of_the_table_on_the_wire() {
    let (listener, url) = listen().await;
    let client = client(&url);
    for row in rows() {
        let mut answer = format!("HTTP/1.1 {} Canary\r\ncontent-length: {}\r\n", row.status, row.body.len());
        for (name, value) in &row.headers {
            let _ = write!(answer, "{name}: {value}\r\n");
        }
        answer.push_str("connection: close\r\n\r\n");
        let answer = [answer.as_bytes(), &row.body].concat();
        let (result, _) = exchange(&client, &listener, &answer).await;
        assert_tells_nothing(row.name, &result);
        assert_eq!(outcome(result), row.expected, "{}", row.name);
    }
}

#[test]
fn survives_every_prefix_and_every_flipped_byte_of_an_answer() {
    let whole = format!(r#"{{"access_token":"{TOKEN}","token_type":"Bearer","expires_in":3.6e3,"error":"x\u00e9"}}"#);
    let whole = whole.as_bytes();
    for at in 0..whole.len() {
        let _ = read_answer(200, &HeaderMap::new(), &whole[..at], now());
        for byte in [0x00, b'"', b'\\', b'{', b'9', 0x80, 0xff] {
            let mut broken = whole.to_vec();
            broken[at] = byte;
            let _ = read_answer(200, &HeaderMap::new(), &broken, now());
        }
    }
}

#[test]
fn lifetimes_are_never_below_a_second_nor_above_the_cap() {
    for exponent in -330..330 {
        for digits in ["1", "9.999999999999999999", "-1"] {
            let body = format!(r#"{{"access_token":"t","expires_in":{digits}e{exponent}}}"#);
            if let Ok(grant) = read_answer(200, &HeaderMap::new(), body.as_bytes(), now()) {
                let length = grant.lifetime.length;
                assert!(length >= Duration::from_secs(1) && length <= MAX_LIFETIME, "{digits}e{exponent}: {length:?}");
            }
        }
    }
}

#[test]
fn says_who_is_to_blame_and_what_to_do() {
    let rejected = |status, code| TokenError::Rejected { status, code };
    let blamed = [
        rejected(401, None),
        rejected(403, None),
        rejected(400, Some(OAuthError::InvalidClient)),
        rejected(200, Some(OAuthError::UnauthorizedClient)),
    ];
    assert!(blamed.iter().all(TokenError::refuses_client));
    let others = [
        rejected(400, None),
        rejected(403, Some(OAuthError::InvalidScope)),
        TokenError::RateLimited { retry_after: None },
        TokenError::BadResponse { status: 404, problem: BadResponse::UnexpectedStatus },
    ];
    assert!(!others.iter().any(TokenError::refuses_client));
    assert_eq!(
        rejected(401, Some(OAuthError::InvalidClient)).to_string(),
        "the token endpoint refused the request (HTTP 401, invalid_client): correct the client id and secret"
    );
    assert_eq!(
        TokenError::Unavailable { status: Some(503), cause: Unavailability::Reported, retry_after: None }.to_string(),
        "the token endpoint is unavailable (HTTP 503): it reports a fault of its own, which has to pass"
    );
    assert_eq!(
        TokenError::BadResponse { status: 307, problem: BadResponse::Redirect }.to_string(),
        "the token endpoint gave an answer that cannot be used (HTTP 307): redirects are not followed: \
         set --token-url to the final address"
    );
    let wait = Some(Duration::from_secs(9));
    assert_eq!(TokenError::RateLimited { retry_after: wait }.retry_after(), wait);
    assert_eq!(rejected(400, None).retry_after(), None);
    assert_eq!(OAuthError::SlowDown.to_string(), "slow_down");
}

#[test]
fn debug_shows_no_secret() {
    assert_eq!(format!("{:?}", credentials()), "ClientCredentials([redacted])");
    assert_eq!(credentials().expose().0, CLIENT);
    let token = AccessToken::new(TOKEN.to_owned()).unwrap();
    assert_eq!(format!("{:?}", token.clone()), "AccessToken([redacted])");
}

// ---- On the wire ----------------------------------------------------------------------------------------------------

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("http://{}/token", listener.local_addr().unwrap());
    (listener, url)
}

/// Reads one request, up to the end of the body that its Content-Length announces.
async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut request = Vec::new();
    loop {
        if let Some(end) = request.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&request[..end]).to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if request.len() >= end + 4 + length.map_or(0, |length| length.parse::<usize>().unwrap()) {
                break;
            }
        }
        assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0, "the request ends early");
    }
    String::from_utf8(request).unwrap()
}

async fn accept(listener: &TcpListener) -> TcpStream {
    time::timeout(PATIENCE, listener.accept()).await.expect("a connection").unwrap().0
}

/// Answers one request with these bytes, then closes. The client may have had enough before.
async fn answer_once(listener: &TcpListener, answer: &[u8]) -> String {
    let mut stream = accept(listener).await;
    let request = read_request(&mut stream).await;
    let _ = stream.write_all(answer).await;
    let _ = stream.shutdown().await;
    request
}

async fn exchange(client: &TokenClient, listener: &TcpListener, answer: &[u8]) -> (Result<Grant, TokenError>, String) {
    let credentials = credentials();
    tokio::join!(client.request(&credentials, "api"), answer_once(listener, answer))
}

/// One exchange with a fresh server.
async fn answered(answer: &str) -> Result<Grant, TokenError> {
    let (listener, url) = listen().await;
    let (result, _) = exchange(&client(&url), &listener, answer.as_bytes()).await;
    assert_tells_nothing(answer, &result);
    result
}

/// Serves one connection by `serve`, while a client with this timeout makes a request.
async fn served<S: Future<Output = ()> + Send + 'static>(
    timeout: Duration,
    serve: impl FnOnce(TcpStream) -> S + Send + 'static,
) -> Result<Grant, TokenError> {
    let (listener, url) = listen().await;
    let server = task::spawn(async move {
        let mut stream = accept(&listener).await;
        read_request(&mut stream).await;
        serve(stream).await;
    });
    let client = TokenClient::new(&TokenClientConfig { timeout, ..config(&url) }, clock()).unwrap();
    let result = time::timeout(PATIENCE, client.request(&credentials(), "api")).await.expect("an end");
    assert_tells_nothing("served", &result);
    server.abort();
    result
}

fn unavailable_with(status: Option<u16>, cause: Unavailability) -> Outcome {
    Err(TokenError::Unavailable { status, cause, retry_after: None })
}

#[tokio::test]
async fn sends_what_the_documentation_asks_for() {
    let (listener, url) = listen().await;
    let credentials = ClientCredentials::new("id \"quoted\"".to_owned(), "sécret\u{1}\\".to_owned());
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n{\"access_token\":\"t\"}";
    let client = client(&url);
    let (result, request) = tokio::join!(client.request(&credentials, "api"), answer_once(&listener, answer));
    result.unwrap();
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /token HTTP/1.1\r\n"), "{head}");
    for line in [
        "content-type: application/json",
        "accept: application/json",
        "accept-encoding: identity",
        concat!("user-agent: moneygo-operator/", env!("CARGO_PKG_VERSION")),
    ] {
        assert!(head.lines().any(|header| header == line), "{line} in {head}");
    }
    assert!(!head.contains("authorization"), "{head}");
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    let expected = serde_json::json!({
        "grant_type": "client_credentials", "client_id": "id \"quoted\"", "client_secret": "sécret\u{1}\\", "scope": "api"
    });
    assert_eq!(body, expected);
}

#[tokio::test]
async fn keeps_a_connection_for_a_burst() {
    let (listener, url) = listen().await;
    let client = client(&url);
    let server = async {
        let mut stream = accept(&listener).await;
        for _ in 0..3 {
            read_request(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n{\"access_token\":\"t\"}").await.unwrap();
        }
    };
    let credentials = credentials();
    let requests = async {
        for _ in 0..3 {
            client.request(&credentials, "api").await.unwrap();
        }
    };
    time::timeout(PATIENCE, async { tokio::join!(server, requests) }).await.expect("one connection for all");
}

#[tokio::test]
async fn reads_chunked_answers() {
    let result = answered(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
         e\r\n{\"access_token\r\n6\r\n\":\"t\"}\r\n0\r\n\r\n",
    );
    assert_eq!(outcome(result.await), granted("t", 3600, LifetimeSource::Assumed));
    let result = answered("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\ncanary\r\n{}\r\n0\r\n\r\n");
    assert_eq!(outcome(result.await), unavailable_with(Some(200), Unavailability::Interrupted));
}

#[tokio::test]
async fn takes_a_body_that_ends_with_the_connection() {
    let result = answered("HTTP/1.1 200 OK\r\n\r\n{\"access_token\":\"t\"}").await;
    assert_eq!(outcome(result), granted("t", 3600, LifetimeSource::Assumed));
    // Cut within, it is no JSON.
    let result = answered("HTTP/1.1 200 OK\r\n\r\n{\"access_token\":\"canary").await;
    assert_eq!(outcome(result), bad(200, BadResponse::NotJson));
}

#[tokio::test]
async fn tells_cuts_apart() {
    let interrupted = |status| unavailable_with(status, Unavailability::Interrupted);
    assert_eq!(outcome(answered("").await), interrupted(None));
    assert_eq!(outcome(answered("HTTP/1.1 200 O").await), interrupted(None));
    assert_eq!(outcome(answered("HTTP/1.1 200 OK\r\ncontent-length: 99\r\n").await), interrupted(None));
    let cut = "HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{\"access_token\":\"canary\"}";
    assert_eq!(outcome(answered(cut).await), interrupted(Some(200)));
    let cut = "HTTP/1.1 401 Unauthorized\r\ncontent-length: 99\r\n\r\n{\"error\":\"invalid_client\"}";
    assert_eq!(outcome(answered(cut).await), rejected(401, None));
    let cut = "HTTP/1.1 503 Busy\r\nretry-after: 5\r\ncontent-length: 99\r\n\r\n";
    assert_eq!(outcome(answered(cut).await), reported(503, Some(5)));
}

#[tokio::test]
async fn tells_what_is_not_http() {
    let expected = unavailable_with(None, Unavailability::NotHttp);
    assert_eq!(outcome(answered("SSH-2.0-OpenSSH_canary\r\n\r\n").await), expected);
    assert_eq!(outcome(answered("HTTP/1.1 canary OK\r\n\r\n").await), expected);
    let flood = format!("HTTP/1.1 200 OK\r\nx-flood: {}\r\n\r\n", "canary".repeat(200_000));
    assert_eq!(outcome(answered(&flood).await), expected);
}

#[tokio::test]
async fn tells_a_refused_connection() {
    let (listener, url) = listen().await;
    drop(listener);
    let result = client(&url).request(&credentials(), "api").await;
    assert_tells_nothing("refused", &result);
    assert_eq!(outcome(result), unavailable_with(None, Unavailability::Connect));
}

#[tokio::test]
async fn stops_reading_an_endless_body() {
    let (listener, url) = listen().await;
    let server: JoinHandle<()> = task::spawn(async move {
        let mut stream = accept(&listener).await;
        read_request(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
        let chunk = [b"1000\r\n".as_slice(), &[b' '; 0x1000], b"\r\n"].concat();
        while stream.write_all(&chunk).await.is_ok() {}
    });
    let result = client(&url).request(&credentials(), "api").await;
    assert_eq!(outcome(result), bad(200, BadResponse::TooLarge));
    time::timeout(PATIENCE, server).await.expect("the client hangs up").unwrap();
}

#[tokio::test]
async fn the_deadline_covers_the_whole_exchange() {
    let timeout = Duration::from_millis(250);
    let timed_out = |status| unavailable_with(status, Unavailability::Timeout);

    let silent = |stream: TcpStream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    };
    assert_eq!(outcome(served(timeout, silent).await), timed_out(None));

    let head = "HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n";
    assert_eq!(outcome(served(timeout, |stream| drip(stream, head, "x-canary: x\r\n")).await), timed_out(Some(200)));
    assert_eq!(
        outcome(served(timeout, |stream| drip(stream, "HTTP/1.1 200 OK\r\n", "x: y\r\n")).await),
        timed_out(None)
    );
    let head = "HTTP/1.1 401 No\r\ncontent-length: 9999\r\n\r\n";
    assert_eq!(outcome(served(timeout, |stream| drip(stream, head, "{")).await), rejected(401, None));
}

/// Writes the head at once, then a little for ever, each well within the deadline.
async fn drip(mut stream: TcpStream, head: &'static str, drop: &'static str) {
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut interval = time::interval(Duration::from_millis(40));
    while stream.write_all(drop.as_bytes()).await.is_ok() {
        interval.tick().await;
    }
}

#[tokio::test]
async fn follows_no_redirect_and_sends_the_secret_once() {
    let (elsewhere, target) = listen().await;
    let (listener, url) = listen().await;
    let client = client(&url);
    for status in [301, 302, 303, 307, 308] {
        let answer = format!("HTTP/1.1 {status} Moved\r\nlocation: {target}\r\ncontent-length: 0\r\n\r\n");
        let (result, _) = exchange(&client, &listener, answer.as_bytes()).await;
        assert_eq!(outcome(result), bad(status, BadResponse::Redirect));
    }
    assert_no_connection(&elsewhere).await;
    assert_no_connection(&listener).await;
}

/// A listener hands out connections in their order: ours comes first if there is no other.
async fn assert_no_connection(listener: &TcpListener) {
    let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    assert_eq!(accept(listener).await.peer_addr().unwrap(), ours.local_addr().unwrap(), "another connection");
}

#[tokio::test]
async fn does_not_retry() {
    let (listener, url) = listen().await;
    let client = client(&url);
    for answer in ["", "HTTP/1.1 503 Busy\r\nretry-after: 0\r\ncontent-length: 0\r\n\r\n", "HTTP/1.1 408 Late\r\n\r\n"]
    {
        let (result, _) = exchange(&client, &listener, answer.as_bytes()).await;
        assert!(matches!(result, Err(TokenError::Unavailable { .. })), "{answer}");
    }
    assert_no_connection(&listener).await;
}

// ---- The proxy ------------------------------------------------------------------------------------------------------

/// Makes one request to the URL in the environment; run by the test below as a process of its own, since proxies come
/// from a process's environment and changing one's own is not safe.
#[tokio::test]
#[ignore = "the child of obeys_the_proxy_variables_but_not_for_loopback"]
async fn request_as_a_child() {
    if let Ok(url) = env::var("TOKEN_URL_OF_CHILD") {
        let config = TokenClientConfig { allow_insecure: true, ..config(&url) };
        let _ = TokenClient::new(&config, clock()).unwrap().request(&credentials(), "api").await;
    }
}

async fn run_child(url: String, proxy: String) {
    let child = task::spawn_blocking(move || {
        let mut child = Command::new(env::current_exe().unwrap());
        child.args(["--exact", "token::tests::request_as_a_child", "--ignored"]).env("TOKEN_URL_OF_CHILD", url);
        for name in ["NO_PROXY", "no_proxy", "REQUEST_METHOD"] {
            child.env_remove(name);
        }
        for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
            child.env(name, &proxy);
        }
        child.output().unwrap()
    });
    let output = time::timeout(PATIENCE, child).await.expect("an end").unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && printed.contains("1 passed"), "{printed}");
}

#[tokio::test]
async fn obeys_the_proxy_variables_but_not_for_loopback() {
    let refusal = b"HTTP/1.1 403 No\r\ncontent-length: 0\r\n\r\n";
    let (listener, url) = listen().await;
    let (proxy_listener, proxy) = listen().await;
    let proxy = proxy.trim_end_matches("/token").to_owned();

    let (request, ()) = tokio::join!(answer_once(&listener, refusal), run_child(url, proxy.clone()));
    assert!(request.starts_with("POST /token HTTP/1.1\r\n"), "{request}");
    assert_no_connection(&proxy_listener).await;

    let plain = "http://canary.invalid/token".to_owned();
    let (request, ()) = tokio::join!(answer_once(&proxy_listener, refusal), run_child(plain, proxy.clone()));
    assert!(request.starts_with("POST http://canary.invalid/token HTTP/1.1\r\n"), "{request}");

    let https = "https://canary.invalid/token".to_owned();
    let (request, ()) = tokio::join!(answer_once(&proxy_listener, refusal), run_child(https, proxy));
    assert!(request.starts_with("CONNECT canary.invalid:443 HTTP/1.1\r\n"), "{request}");
    assert!(!request.contains(SECRET), "{request}");
}

// ---- TLS ------------------------------------------------------------------------------------------------------------

/// A file in the temporary directory, removed when dropped.
struct TempFile(PathBuf);

impl TempFile {
    fn new(content: impl AsRef<[u8]>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("moneygo-token-{}-{}.pem", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = env::temp_dir().join(name);
        fs::write(&path, content).unwrap();
        Self(path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

type Ca = CertifiedIssuer<'static, KeyPair>;

fn certificate_authority() -> Ca {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn acceptor(ca: &Ca, name: &str) -> TlsAcceptor {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, ca).unwrap();
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

/// One exchange over TLS between a server with a certificate for `name` and a client that asks for 127.0.0.1.
async fn exchange_over_tls(server_ca: &Ca, name: &str, trusted: &Ca) -> Result<Grant, TokenError> {
    let (listener, url) = listen().await;
    let acceptor = acceptor(server_ca, name);
    let server = task::spawn(async move {
        // Refused handshakes end here.
        let Ok(mut stream) = acceptor.accept(accept(&listener).await).await else {
            return;
        };
        read_request(&mut stream).await;
        answer_over_tls(&mut stream).await;
    });
    let ca_file = TempFile::new(trusted.pem());
    let config = TokenClientConfig { ca_file: Some(ca_file.0.clone()), ..config(&url.replace("http:", "https:")) };
    let result = TokenClient::new(&config, clock()).unwrap().request(&credentials(), "api").await;
    assert_tells_nothing(name, &result);
    time::timeout(PATIENCE, server).await.expect("an end").unwrap();
    result
}

async fn answer_over_tls(stream: &mut (impl AsyncWrite + Unpin)) {
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n{\"access_token\":\"t\"}").await.unwrap();
    stream.flush().await.unwrap();
}

#[tokio::test]
async fn trusts_the_given_authority_and_no_other() {
    let (ca, other) = (certificate_authority(), certificate_authority());
    let granted = granted("t", 3600, LifetimeSource::Assumed);
    assert_eq!(outcome(exchange_over_tls(&ca, "127.0.0.1", &ca).await), granted);
    let untrusted = unavailable_with(None, Unavailability::Certificate);
    assert_eq!(outcome(exchange_over_tls(&ca, "127.0.0.1", &other).await), untrusted);
    assert_eq!(outcome(exchange_over_tls(&ca, "token.example", &ca).await), untrusted);
}

#[test]
fn tells_a_signature_that_cannot_be_checked_from_a_certificate_that_is_not_trusted() {
    let cause = |error| classify(&rustls::Error::InvalidCertificate(error));
    let unknown = CertificateError::UnsupportedSignatureAlgorithmContext {
        signature_algorithm_id: b"ecdsa-with-SHA512".to_vec(),
        supported_algorithms: Vec::new(),
    };
    assert_eq!(cause(unknown), Unavailability::CertificateSignature);
    let other_key = CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext {
        signature_algorithm_id: b"ecdsa-with-SHA256".to_vec(),
        public_key_algorithm_id: b"P-521".to_vec(),
    };
    assert_eq!(cause(other_key), Unavailability::CertificateSignature);
    assert_eq!(cause(CertificateError::UnknownIssuer), Unavailability::Certificate);
}

#[tokio::test]
async fn tells_https_to_a_server_without_tls() {
    let (listener, url) = listen().await;
    let ca_file = TempFile::new(certificate_authority().pem());
    let config = TokenClientConfig { ca_file: Some(ca_file.0.clone()), ..config(&url.replace("http:", "https:")) };
    let client = TokenClient::new(&config, clock()).unwrap();
    let server = async {
        let mut stream = accept(&listener).await;
        let mut hello = [0; 64];
        stream.read_exact(&mut hello).await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    };
    let credentials = credentials();
    let (result, ()) = tokio::join!(client.request(&credentials, "api"), server);
    assert_eq!(outcome(result), unavailable_with(None, Unavailability::Tls));
}

#[test]
fn refuses_unusable_ca_files() {
    let refused = |content: &[u8]| {
        let file = TempFile::new(content);
        let config = TokenClientConfig { ca_file: Some(file.0.clone()), ..config("https://token.example/token") };
        let error = config_error(&config);
        assert!(error.to_string().starts_with(&format!("--token-ca-file {}: ", file.0.display())), "{error}");
        match error {
            ConfigError::CaFile { problem, .. } => problem,
            other => panic!("{other}"),
        }
    };
    assert_eq!(refused(b""), CaFileProblem::Empty);
    assert_eq!(refused(b"canary"), CaFileProblem::Empty);
    assert_eq!(refused(KeyPair::generate().unwrap().serialize_pem().as_bytes()), CaFileProblem::Empty);
    let broken = |inside| format!("-----BEGIN CERTIFICATE-----\n{inside}\n-----END CERTIFICATE-----\n");
    assert_eq!(refused(broken("!!!!").as_bytes()), CaFileProblem::Malformed);
    assert_eq!(refused(broken("Y2FuYXJ5").as_bytes()), CaFileProblem::Malformed);
    assert_eq!(refused(&vec![b'#'; 1024 * 1024 + 1]), CaFileProblem::TooLarge);

    let missing =
        TokenClientConfig { ca_file: Some("/nowhere/ca.pem".into()), ..config("https://token.example/token") };
    let error = config_error(&missing).to_string();
    assert_eq!(error, "--token-ca-file /nowhere/ca.pem: cannot be read (entity not found)");
}

// ---- The URL --------------------------------------------------------------------------------------------------------

#[test]
fn accepts_https_and_loopback() {
    for url in [
        "https://api.money-go.com/token",
        "https://api.money-go.com",
        "https://api.money-go.com:8443/v1/token?tenant=a",
        "http://localhost:8080/token",
        "http://LOCALHOST/token",
        "http://127.0.0.1:1/token",
        "http://127.255.255.254/token",
        "http://2130706433/token",
        "http://[::1]:8080/token",
    ] {
        assert_eq!(parse_url(url, false).err(), None, "{url}");
    }
    assert_eq!(parse_url("http://moneygo.example/token", true).err(), None);
}

#[test]
fn refuses_other_urls_without_repeating_them() {
    for (url, expected) in [
        ("", ConfigError::Url),
        ("canary", ConfigError::Url),
        ("/token", ConfigError::Url),
        ("https://", ConfigError::Url),
        ("https://canary:port/token", ConfigError::Url),
        ("http://canary.example/token", ConfigError::Insecure),
        ("http://localhost.example/token", ConfigError::Insecure),
        ("http://127.0.0.1.example/token", ConfigError::Insecure),
        ("http://10.0.0.1/token", ConfigError::Insecure),
        ("http://0.0.0.0/token", ConfigError::Insecure),
        ("http://[::ffff:127.0.0.1]/token", ConfigError::Insecure),
        ("ftp://localhost/token", ConfigError::Scheme),
        ("unix:/run/canary.sock", ConfigError::Scheme),
        ("https://canary@api.example/token", ConfigError::UserInfo),
        ("https://id:canary@api.example/token", ConfigError::UserInfo),
        ("https://:canary@api.example/token", ConfigError::UserInfo),
        ("http://127.0.0.1@api.example/token", ConfigError::UserInfo),
        ("https://api.example/token#canary", ConfigError::Fragment),
    ] {
        let error = config_error(&config(url));
        assert_eq!(error, expected, "{url}");
        assert!(!format!("{error:?} {error}").contains("canary"), "{url}");
    }
}

#[test]
fn refuses_a_proxy_that_would_be_passed_by() {
    let check = |url: &str, variables: &[(&str, &str)]| {
        let variable = |name: &str| variables.iter().find(|(other, _)| *other == name).map(|(_, value)| value.into());
        proxy::check(&url.parse().unwrap(), variable)
    };
    let (url, good) = ("https://api.example/token", "http://id:canary@proxy.example:3128");
    for variables in [
        &[][..],
        &[("HTTPS_PROXY", "")],
        &[("HTTPS_PROXY", good)],
        &[("https_proxy", "proxy.example:3128")],
        &[("ALL_PROXY", good), ("HTTP_PROXY", "canary\n")],
        // Not used.
        &[("HTTPS_PROXY", good), ("ALL_PROXY", "socks5://canary.example:1080")],
        &[("HTTPS_PROXY", good), ("https_proxy", "canary\n")],
        // As curl does not, and reqwest does.
        &[("HTTPS_PROXY", "canary\n"), ("ALL_PROXY", good)],
        &[("HTTPS_PROXY", "canary\n"), ("NO_PROXY", "other.example,.example")],
        &[("HTTPS_PROXY", "canary\n"), ("no_proxy", "*")],
    ] {
        assert_eq!(check(url, variables), Ok(()), "{variables:?}");
    }
    for (name, value) in [
        ("HTTPS_PROXY", "http://id:canary@proxy.example:3128\n"),
        ("https_proxy", " http://id:canary@proxy.example:3128"),
        ("ALL_PROXY", "socks5h://canary.example:1080"),
        ("all_proxy", "ftp://canary.example"),
        ("HTTPS_PROXY", "http://"),
        ("HTTPS_PROXY", "/canary"),
        ("HTTPS_PROXY", "http://canary\u{fffd}.example"),
    ] {
        let error = check(url, &[(name, value), ("NO_PROXY", "other.example")]).unwrap_err();
        assert!(matches!(error, ConfigError::Proxy(told) if told == name), "{value}: {error:?}");
        assert!(!format!("{error:?} {error}").contains("canary"), "{value}");
    }
    assert!(check("http://api.example/token", &[("HTTPS_PROXY", "canary\n"), ("HTTP_PROXY", good)]).is_ok());
    assert!(check("http://api.example/token", &[("HTTP_PROXY", "canary\n")]).is_err());
}

#[test]
fn bounds_the_deadline() {
    let with = |timeout| TokenClientConfig { timeout, ..config("http://localhost/token") };
    assert_eq!(config_error(&with(Duration::ZERO)), ConfigError::Timeout);
    assert_eq!(config_error(&with(Duration::MAX)), ConfigError::Timeout);
    assert!(TokenClient::new(&with(MAX_TIMEOUT), clock()).is_ok());
}
