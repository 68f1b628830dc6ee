//! Any `Retry-After`: ignored, or a wait within the bound.
#![no_main]

use http::header::{HeaderMap, HeaderValue, RETRY_AFTER};
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use moneygo_operator::token::{MAX_RETRY_AFTER, TokenError, read_answer};

fuzz_target!(|input: (i64, Vec<u8>)| {
    let (now, value) = input;
    let Ok(header) = HeaderValue::from_bytes(&value) else { return };
    let now = Timestamp::from_second(now).unwrap_or(Timestamp::UNIX_EPOCH);
    let headers = HeaderMap::from_iter([(RETRY_AFTER, header)]);
    for status in [429, 503] {
        let wait = match read_answer(status, &headers, b"", now) {
            Err(TokenError::RateLimited { retry_after } | TokenError::Unavailable { retry_after, .. }) => retry_after,
            other => panic!("{status} is read as {other:?}"),
        };
        assert!(wait.is_none_or(|wait| wait <= MAX_RETRY_AFTER));
        let text = std::str::from_utf8(&value).unwrap_or_default().trim_ascii();
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            let secs = text.parse().unwrap_or(u64::MAX).min(MAX_RETRY_AFTER.as_secs());
            assert_eq!(wait.map(|wait| wait.as_secs()), Some(secs), "{text}");
        }
    }
});
