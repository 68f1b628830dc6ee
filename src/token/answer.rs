//! Reading an answer of the token endpoint. Pure: bytes in, a grant or an error out, for every possible input.

use std::time::{Duration, SystemTime};

use http::{
    HeaderMap,
    header::{CONTENT_ENCODING, RETRY_AFTER},
};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    ASSUMED_LIFETIME, AccessToken, BadResponse, Grant, Lifetime, LifetimeSource, MAX_BODY_BYTES, MAX_LIFETIME,
    MAX_RETRY_AFTER, OAuthError, TokenError, Unavailability,
};

/// The fields that are read. Raw, so that a number beyond every range (`1e400`) costs no token, and nesting no
/// stack.
#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    access_token: Option<&'a RawValue>,
    #[serde(borrow)]
    token_type: Option<&'a RawValue>,
    #[serde(borrow)]
    expires_in: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

/// Reads one answer of the token endpoint. `now` is when it came, for a `Retry-After` that is a date.
///
/// # Errors
/// As [`TokenError`] says, for every answer that is not a 200 with a usable token.
pub fn read_answer(status: u16, headers: &HeaderMap, body: &[u8], now: Timestamp) -> Result<Grant, TokenError> {
    match status {
        200 => parse_grant(headers, body, now),
        400 | 401 | 403 => Err(refusal(status, known_error(headers, body), headers, now)),
        429 => Err(TokenError::RateLimited { retry_after: retry_after(headers, now) }),
        408 | 500..=599 => Err(TokenError::Unavailable {
            status: Some(status),
            cause: Unavailability::Reported,
            retry_after: retry_after(headers, now),
        }),
        300..=399 => Err(TokenError::BadResponse { status, problem: BadResponse::Redirect }),
        _ => Err(TokenError::BadResponse { status, problem: BadResponse::UnexpectedStatus }),
    }
}

/// Whether the body matters to [`read_answer`]; another's need not be waited for.
pub(super) fn has_body_of_interest(status: u16) -> bool {
    matches!(status, 200 | 400 | 401 | 403)
}

fn parse_grant(headers: &HeaderMap, body: &[u8], now: Timestamp) -> Result<Grant, TokenError> {
    let bad = |problem| TokenError::BadResponse { status: 200, problem };
    let answer = decode(headers, body).map_err(bad)?;
    let granted = grant(&answer);
    // Only without a token: one that was issued beside an error must not be lost.
    if matches!(granted, Err(BadResponse::NoToken))
        && let Some(code) = error(&answer)
    {
        return Err(refusal(200, OAuthError::from_code(&code), headers, now));
    }
    granted.map_err(bad)
}

fn grant(answer: &Answer) -> Result<Grant, BadResponse> {
    let token = token(answer.access_token)?;
    require_bearer(answer.token_type)?;
    Ok(Grant { token, lifetime: lifetime(answer.expires_in)? })
}

/// The `error` in an answer, known or not.
fn error(answer: &Answer) -> Option<String> {
    answer.error.and_then(text).filter(|code| !code.is_empty())
}

fn known_error(headers: &HeaderMap, body: &[u8]) -> Option<OAuthError> {
    OAuthError::from_code(&error(&decode(headers, body).ok()?)?)
}

fn refusal(status: u16, code: Option<OAuthError>, headers: &HeaderMap, now: Timestamp) -> TokenError {
    match code {
        Some(OAuthError::SlowDown) => TokenError::RateLimited { retry_after: retry_after(headers, now) },
        Some(OAuthError::ServerError | OAuthError::TemporarilyUnavailable) => TokenError::Unavailable {
            status: Some(status),
            cause: Unavailability::Reported,
            retry_after: retry_after(headers, now),
        },
        _ => TokenError::Rejected { status, code },
    }
}

fn decode<'a>(headers: &HeaderMap, body: &'a [u8]) -> Result<Answer<'a>, BadResponse> {
    if headers.get_all(CONTENT_ENCODING).iter().any(|coding| !is_identity(coding.as_bytes())) {
        return Err(BadResponse::Encoded);
    }
    if body.len() > MAX_BODY_BYTES {
        return Err(BadResponse::TooLarge);
    }
    let body = std::str::from_utf8(body).map_err(|_| BadResponse::NotJson)?;
    // serde reads an array as a struct, too, field by field.
    if !body.trim_ascii_start().starts_with('{') {
        return Err(BadResponse::NotJson);
    }
    serde_json::from_str(body).map_err(|_| BadResponse::NotJson)
}

fn is_identity(coding: &[u8]) -> bool {
    let coding = coding.trim_ascii();
    coding.is_empty() || coding.eq_ignore_ascii_case(b"identity")
}

/// A JSON string's text; none for every other value and for broken escapes.
fn text(raw: &RawValue) -> Option<String> {
    serde_json::from_str(raw.get()).ok()
}

fn token(raw: Option<&RawValue>) -> Result<AccessToken, BadResponse> {
    let text = text(raw.ok_or(BadResponse::NoToken)?).ok_or(BadResponse::MalformedToken)?;
    if text.is_empty() {
        return Err(BadResponse::NoToken);
    }
    AccessToken::new(text).ok_or(BadResponse::MalformedToken)
}

fn require_bearer(token_type: Option<&RawValue>) -> Result<(), BadResponse> {
    let is_bearer = token_type.is_none_or(|raw| text(raw).is_some_and(|kind| kind.eq_ignore_ascii_case("Bearer")));
    if is_bearer { Ok(()) } else { Err(BadResponse::TokenType) }
}

/// RFC 6749 §5.1 only recommends `expires_in`, so its absence is no fault; what cannot be a lifetime is one.
fn lifetime(expires_in: Option<&RawValue>) -> Result<Lifetime, BadResponse> {
    let Some(raw) = expires_in else {
        return Ok(Lifetime { length: ASSUMED_LIFETIME, source: LifetimeSource::Assumed });
    };
    let secs = number(raw).filter(|secs| *secs >= 1.0).ok_or(BadResponse::ExpiresIn)?;
    let stated = Duration::try_from_secs_f64(secs.trunc()).unwrap_or(Duration::MAX);
    Ok(if stated > MAX_LIFETIME {
        Lifetime { length: MAX_LIFETIME, source: LifetimeSource::Capped }
    } else {
        Lifetime { length: stated, source: LifetimeSource::Stated }
    })
}

/// A JSON number, or a string that holds one; beyond a float's range it is infinite.
fn number(raw: &RawValue) -> Option<f64> {
    let quoted = text(raw);
    let literal = quoted.as_deref().unwrap_or(raw.get()).trim_ascii();
    // Rust's floats take more than JSON's grammar: "inf", "+1", ".5".
    let number = serde_json::from_str::<&RawValue>(literal).ok()?.get();
    number.parse().ok().filter(|_| number.starts_with(|first: char| first == '-' || first.is_ascii_digit()))
}

/// RFC 9110 §10.2.3: seconds or an HTTP-date. What is neither is ignored.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim_ascii();
    let wait = if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        Duration::from_secs(value.parse().unwrap_or(u64::MAX))
    } else {
        let until = httpdate::parse_http_date(value).ok()?;
        until.duration_since(SystemTime::from(now)).unwrap_or_default()
    };
    Some(wait.min(MAX_RETRY_AFTER))
}
