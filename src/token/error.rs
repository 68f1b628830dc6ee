//! What can go wrong with a grant. Every text here is fixed but for an HTTP status and an allow-listed OAuth code: no
//! byte of an answer and no other crate's error text gets in, since either may hold a secret.

use std::{fmt, path::PathBuf, time::Duration};

/// Why no token came of a request.
///
/// `Display` is meant for people: it says what happened and, where that is known, what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The endpoint understood the request and said no: 400, 401, 403, or a 200 whose body is an OAuth error and no
    /// token.
    #[error("the token endpoint refused the request (HTTP {status}, {}): {}", code_text(*code), advice(*status, *code))]
    Rejected {
        /// The HTTP status.
        status: u16,
        /// The body's `error`, where it is one that is known.
        code: Option<OAuthError>,
    },
    /// 429, or the code `slow_down`.
    #[error("the token endpoint asks for fewer requests: lower --token-requests-per-second if this persists")]
    RateLimited {
        /// How long the endpoint asks to wait, at most [`MAX_RETRY_AFTER`](super::MAX_RETRY_AFTER).
        retry_after: Option<Duration>,
    },
    /// The endpoint was not reached, or reports a passing fault of its own. This is about the endpoint, not about one
    /// client.
    #[error("the token endpoint is unavailable{}: {cause}", status_text(*status))]
    Unavailable {
        /// The HTTP status, if an answer had begun.
        status: Option<u16>,
        /// What happened.
        cause: Unavailability,
        /// How long the endpoint asks to wait, at most [`MAX_RETRY_AFTER`](super::MAX_RETRY_AFTER).
        retry_after: Option<Duration>,
    },
    /// An answer that is none of those that RFC 6749 and Money-Go's documentation know.
    #[error("the token endpoint gave an answer that cannot be used (HTTP {status}): {problem}")]
    BadResponse {
        /// The HTTP status.
        status: u16,
        /// What is wrong with it.
        problem: BadResponse,
    },
}

impl TokenError {
    /// Whether the endpoint does not accept the client (its id, its secret, its right to this grant), rather than the
    /// request. A known code says more than the status: 403 with `invalid_scope` is about the scope.
    #[must_use]
    pub fn refuses_client(&self) -> bool {
        matches!(self, Self::Rejected { status, code } if blames_client(*status, *code))
    }

    /// How long the endpoint asked to wait, at most [`MAX_RETRY_AFTER`](super::MAX_RETRY_AFTER).
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after } | Self::Unavailable { retry_after, .. } => *retry_after,
            Self::Rejected { .. } | Self::BadResponse { .. } => None,
        }
    }
}

fn blames_client(status: u16, code: Option<OAuthError>) -> bool {
    match code {
        Some(code) => matches!(code, OAuthError::InvalidClient | OAuthError::UnauthorizedClient),
        None => matches!(status, 401 | 403),
    }
}

fn advice(status: u16, code: Option<OAuthError>) -> &'static str {
    match code {
        Some(OAuthError::UnauthorizedClient) => "ask Money-Go to allow this client the client_credentials grant",
        Some(OAuthError::InvalidScope) => "correct the scope, or ask Money-Go to allow it to this client",
        _ if blames_client(status, code) => "correct the client id and secret",
        _ => "check the client id, the secret, the scope and --token-url",
    }
}

fn code_text(code: Option<OAuthError>) -> &'static str {
    code.map_or("no known error code", OAuthError::as_str)
}

fn status_text(status: Option<u16>) -> String {
    status.map_or_else(String::new, |status| format!(" (HTTP {status})"))
}

/// The error codes that are repeated to people; any other counts as none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OAuthError {
    /// RFC 6749 §5.2.
    InvalidRequest,
    /// RFC 6749 §5.2.
    InvalidClient,
    /// RFC 6749 §5.2.
    InvalidGrant,
    /// RFC 6749 §5.2.
    UnauthorizedClient,
    /// RFC 6749 §5.2.
    UnsupportedGrantType,
    /// RFC 6749 §5.2.
    InvalidScope,
    /// RFC 6749 §4.1.2.1, sent by some token endpoints, too: read as a 500.
    ServerError,
    /// RFC 6749 §4.1.2.1, sent by some token endpoints, too: read as a 503.
    TemporarilyUnavailable,
    /// RFC 8628 §3.5, sent by some token endpoints for other grants, too: read as a 429.
    SlowDown,
}

impl OAuthError {
    const ALL: [Self; 9] = [
        Self::InvalidRequest,
        Self::InvalidClient,
        Self::InvalidGrant,
        Self::UnauthorizedClient,
        Self::UnsupportedGrantType,
        Self::InvalidScope,
        Self::ServerError,
        Self::TemporarilyUnavailable,
        Self::SlowDown,
    ];

    /// The code as it stands in an answer's `error`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::InvalidClient => "invalid_client",
            Self::InvalidGrant => "invalid_grant",
            Self::UnauthorizedClient => "unauthorized_client",
            Self::UnsupportedGrantType => "unsupported_grant_type",
            Self::InvalidScope => "invalid_scope",
            Self::ServerError => "server_error",
            Self::TemporarilyUnavailable => "temporarily_unavailable",
            Self::SlowDown => "slow_down",
        }
    }

    pub(super) fn from_code(code: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == code)
    }
}

impl fmt::Display for OAuthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How the endpoint is unavailable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unavailability {
    /// Its name was not resolved, or no connection made, directly or through the proxy.
    #[error("no connection: check --token-url, DNS, network policies and HTTPS_PROXY")]
    Connect,
    /// Its certificate was not accepted.
    #[error("its certificate is not trusted, not valid now or for another name: check --token-url and --token-ca-file")]
    Certificate,
    /// A signature in its certificates is of a kind that this program cannot check.
    #[error(
        "its certificate, or that of an authority above it, is signed in a way that is not supported, as ECDSA with SHA-512 or P-521: have it signed with RSA, or ECDSA with P-256 and SHA-256 or P-384 and SHA-384"
    )]
    CertificateSignature,
    /// The TLS handshake or the TLS stream failed otherwise.
    #[error("TLS failed: check that --token-url names an https server")]
    Tls,
    /// The deadline passed before the answer was complete.
    #[error("no complete answer in time: see --token-timeout")]
    Timeout,
    /// The connection ended before the answer was complete.
    #[error("the connection ended before the answer was complete")]
    Interrupted,
    /// What answered does not speak HTTP/1.
    #[error("what answers there does not speak HTTP/1.1: check --token-url")]
    NotHttp,
    /// It says so itself: 408, any 5xx, or the code `server_error` or `temporarily_unavailable`.
    #[error("it reports a fault of its own, which has to pass")]
    Reported,
}

/// What is wrong with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadResponse {
    /// A status that means nothing here: another 2xx or 4xx, or a number out of HTTP's range.
    #[error("such a status is not expected here: check --token-url")]
    UnexpectedStatus,
    /// A 3xx. Not followed: the client secret would go wherever it points.
    #[error("redirects are not followed: set --token-url to the final address")]
    Redirect,
    /// More than [`MAX_BODY_BYTES`](super::MAX_BODY_BYTES).
    #[error("the body is larger than 64 KiB")]
    TooLarge,
    /// A `Content-Encoding`, though none was accepted.
    #[error("the body is compressed, which was not asked for")]
    Encoded,
    /// Not one JSON object in UTF-8, or one that repeats a field (RFC 6749 §3.2 forbids that).
    #[error("the body is not one JSON object: check --token-url, and for a gateway that answers in Money-Go's place")]
    NotJson,
    /// `access_token` is missing, null or empty.
    #[error("there is no access_token in it")]
    NoToken,
    /// `access_token` is no string, longer than [`MAX_TOKEN_BYTES`](super::MAX_TOKEN_BYTES), or holds what cannot be
    /// sent.
    #[error("its access_token is not a string of at most 32 KiB of printable ASCII")]
    MalformedToken,
    /// `token_type` is something else than `Bearer`.
    #[error("its token_type is not Bearer")]
    TokenType,
    /// `expires_in` is no number, or below one second.
    #[error("its expires_in is not a number of seconds of at least 1")]
    ExpiresIn,
}

/// Why no [`TokenClient`](super::TokenClient) can be made of a configuration. The URL is never repeated: it may hold a
/// password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not a URL with a host.
    #[error("--token-url is not a URL such as https://api.money-go.com/token")]
    Url,
    /// Neither https nor http.
    #[error("--token-url must begin with https://")]
    Scheme,
    /// http to a host that is not loopback.
    #[error(
        "--token-url must begin with https://: client secrets would cross the network in the clear \
         (--allow-insecure-token-url permits it)"
    )]
    Insecure,
    /// A user name or password in the URL.
    #[error("--token-url must not hold a user name or password: the client's id and secret come from its Secret")]
    UserInfo,
    /// A `#fragment` in the URL (RFC 6749 §3.2).
    #[error("--token-url must not hold a fragment (#)")]
    Fragment,
    /// Zero, or above [`MAX_TIMEOUT`](super::MAX_TIMEOUT).
    #[error("--token-timeout must be above zero and at most 10 minutes")]
    Timeout,
    /// A variable of the environment names no proxy that can be used: it would be passed by.
    #[error(
        "{0} is not the URL of an HTTP proxy such as http://proxy.example:3128, and nothing is sent past it: correct it (a space or a line \
         break at its end counts; SOCKS is not spoken), or except the host of --token-url with NO_PROXY"
    )]
    Proxy(&'static str),
    /// The file with further CA certificates cannot be used.
    #[error("--token-ca-file {}: {problem}", .path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: CaFileProblem,
    },
    /// The platform's CA certificates were not found.
    #[error("no CA certificates are installed on this system: install them, or name a file with --token-ca-file")]
    NoRoots,
}

/// What is wrong with a file of CA certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CaFileProblem {
    /// It cannot be read.
    #[error("cannot be read ({0})")]
    Unreadable(std::io::ErrorKind),
    /// Larger than [`MAX_CA_FILE_BYTES`](super::MAX_CA_FILE_BYTES).
    #[error("is larger than 1 MiB")]
    TooLarge,
    /// Its PEM is broken, or what it holds is no certificate.
    #[error("holds something that is no certificate in PEM form")]
    Malformed,
    /// No certificate in it.
    #[error("holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)")]
    Empty,
}
