//! Any answer of the token endpoint: a grant that can be true, or an error that quotes nothing. The first byte chooses the
//! status, the rest is the body.
#![no_main]

use http::HeaderMap;
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use moneygo_operator::token::{Grant, MAX_BODY_BYTES, MAX_LIFETIME, MAX_TOKEN_BYTES, TokenError, read_answer};
use serde_json::Value;

const STATUSES: [u16; 12] = [200, 400, 401, 403, 429, 500, 503, 302, 204, 404, 408, 599];
/// Longer than any word of our own in an error, "unauthorized" among them.
const QUOTE: usize = 13;

fuzz_target!(|input: &[u8]| {
    let Some((choice, body)) = input.split_first() else { return };
    // Every second choice is 200: of the others less is read.
    let status = if choice % 2 == 0 { 200 } else { STATUSES[usize::from(choice / 2) % STATUSES.len()] };
    match read_answer(status, &HeaderMap::new(), body, Timestamp::UNIX_EPOCH) {
        Ok(grant) => check_grant(status, body, &grant),
        Err(error) => check_error(body, &error),
    }
});

fn check_grant(status: u16, body: &[u8], grant: &Grant) {
    assert_eq!(status, 200);
    assert!(body.len() <= MAX_BODY_BYTES);
    let token = grant.token.expose();
    assert!(!token.is_empty() && token.len() <= MAX_TOKEN_BYTES);
    // RFC 6749, appendix A.12.
    assert!(token.bytes().all(|byte| (0x20..=0x7e).contains(&byte)), "it goes into a header");
    let life = grant.lifetime.length;
    assert!(life.as_secs() >= 1 && life <= MAX_LIFETIME && life.subsec_nanos() == 0);
    assert!(!format!("{grant:?}").contains(token) || token.len() < QUOTE);
    // Another reader of the same JSON sees the same.
    let Ok(answer) = serde_json::from_slice::<Value>(body) else { return };
    assert_eq!(answer["access_token"], token);
    if let Some(secs) = answer["expires_in"].as_u64() {
        assert_eq!(life.as_secs(), secs.min(MAX_LIFETIME.as_secs()));
    }
}

fn check_error(body: &[u8], error: &TokenError) {
    let shown = error.to_string();
    for part in body.windows(QUOTE).filter(|part| part.iter().all(u8::is_ascii_alphanumeric)) {
        let part = std::str::from_utf8(part).unwrap_or_default();
        assert!(!shown.contains(part), "{shown} quotes {part}");
    }
}
