//! The client of Money-Go's token endpoint: one `POST /token`, one token. Knows no Kubernetes and keeps nothing.
//!
//! A request is sent once: no redirect is followed (307 and 308 would carry the secret along) and nothing is retried
//! here, since every request may mint a token. The one exception is hyper's: a request of which not a byte was written,
//! because the kept connection had been closed, goes out on a new one.

mod answer;
mod error;
mod proxy;
#[cfg(test)]
mod tests;

use std::{
    error::Error,
    fmt,
    fs::File,
    io::{self, Read},
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, HeaderValue};
use hyper::body::Bytes;
use reqwest::{Certificate, Client, ClientBuilder, Method, Request, Response, Url, redirect, retry};
use rustls::CertificateError;
use secrecy::{ExposeSecret, SecretString, zeroize::Zeroizing};
use serde::Serialize;
use tokio::time::{Instant, timeout_at};
use tower::{BoxError, Layer, Service, ServiceExt as _, util::BoxCloneSyncService};

use crate::clock::Clock;
use crate::schedule;

pub use crate::access_token::{AccessToken, MAX_TOKEN_BYTES};
pub use answer::read_answer;
pub use error::{BadResponse, CaFileProblem, ConfigError, OAuthError, TokenError, Unavailability};

/// The longest lifetime that is believed: a year and a day, so that no answer makes a token live for ever.
pub const MAX_LIFETIME: Duration = schedule::MAX_LIFETIME.unsigned_abs();
/// What is taken for the lifetime where an answer states none (RFC 6749 §5.1 allows that): short enough for most
/// providers.
pub const ASSUMED_LIFETIME: Duration = Duration::from_hours(1);
/// The longest `Retry-After` that is obeyed.
pub const MAX_RETRY_AFTER: Duration = schedule::MAX_RETRY_AFTER.unsigned_abs();
/// No more than this is read of an answer's body.
pub const MAX_BODY_BYTES: usize = 64 * 1024;
/// The longest deadline that can be asked for.
pub const MAX_TIMEOUT: Duration = Duration::from_mins(10);
/// The largest file of CA certificates that is read.
pub const MAX_CA_FILE_BYTES: u64 = 1024 * 1024;

/// Below the keep-alive of common servers (Apache's is 5 s): a connection that the server closes while a request is on
/// its way costs that request, and perhaps a token. Long enough to serve a burst.
const IDLE_CONNECTION_TIMEOUT: Duration = Duration::from_secs(4);
const MAX_IDLE_CONNECTIONS: usize = 16;

/// A client's id and secret. `Debug` shows neither; both are wiped from memory when dropped.
#[derive(Clone)]
pub struct ClientCredentials {
    id: SecretString,
    secret: SecretString,
}

impl ClientCredentials {
    /// Takes them as they are: whether they are well-formed is the caller's to check.
    #[must_use]
    pub fn new(id: String, secret: String) -> Self {
        Self { id: id.into(), secret: secret.into() }
    }

    /// Id and secret in the clear, for a digest of both. Not for any output.
    #[must_use]
    pub fn expose(&self) -> (&str, &str) {
        (self.id.expose_secret(), self.secret.expose_secret())
    }
}

impl fmt::Debug for ClientCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientCredentials([redacted])")
    }
}

/// What the endpoint granted.
#[derive(Debug, Clone)]
pub struct Grant {
    /// The token.
    pub token: AccessToken,
    /// How long it lives, counted from just before the request was sent.
    pub lifetime: Lifetime,
}

/// How long a token lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// Whole seconds, from 1 s to [`MAX_LIFETIME`].
    pub length: Duration,
    /// Where the length comes from.
    pub source: LifetimeSource,
}

/// Where a [`Lifetime`] comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LifetimeSource {
    /// From the answer's `expires_in`, rounded down.
    Stated,
    /// From [`ASSUMED_LIFETIME`]: the answer states none.
    Assumed,
    /// From [`MAX_LIFETIME`]: the answer states more.
    Capped,
}

/// Where and how tokens are asked for.
#[derive(Clone)]
pub struct TokenClientConfig {
    /// The endpoint: https, or http where the host is loopback (`localhost`, 127.0.0.0/8, `::1`); no user name,
    /// password or fragment.
    pub url: String,
    /// Allow http to any host.
    pub allow_insecure: bool,
    /// A PEM file of CA certificates that are trusted beside the platform's, at most [`MAX_CA_FILE_BYTES`]. Read once,
    /// by [`TokenClient::new`].
    pub ca_file: Option<PathBuf>,
    /// The deadline for a whole exchange: name resolution, connection, TLS, request and answer. At most
    /// [`MAX_TIMEOUT`].
    pub timeout: Duration,
}

/// What a request goes through: reqwest's client, and what [`TokenClient::layered`] put around it.
pub type Transport = BoxCloneSyncService<Request, Response, BoxError>;

/// Asks Money-Go for tokens, over HTTP/1.1 and a small pool of connections. Cheap to clone.
#[derive(Clone)]
pub struct TokenClient {
    transport: Transport,
    url: Url,
    timeout: Duration,
    clock: Clock,
}

/// The request's body (Money-Go's documentation: JSON, unlike RFC 6749's form).
#[derive(Serialize)]
struct GrantRequest<'a> {
    grant_type: &'static str,
    client_id: &'a str,
    client_secret: &'a str,
    scope: &'a str,
}

impl TokenClient {
    /// Prepares a client. `clock` serves a `Retry-After` that is a date, and nothing else.
    ///
    /// `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` are obeyed as curl does, but never for a loopback host:
    /// http is allowed to it because nothing leaves the machine, and to a proxy it would. Makes ring the process's TLS
    /// provider if there is none yet.
    ///
    /// # Errors
    /// When the configuration cannot work: see [`ConfigError`].
    pub fn new(config: &TokenClientConfig, clock: Clock) -> Result<Self, ConfigError> {
        let url = parse_url(&config.url, config.allow_insecure)?;
        if config.timeout.is_zero() || config.timeout > MAX_TIMEOUT {
            return Err(ConfigError::Timeout);
        }
        // reqwest panics without a provider. One that the process already chose is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = restrict(Client::builder(), config.timeout);
        let builder = if is_loopback(&url) {
            builder.no_proxy()
        } else {
            proxy::check(&url, |name| std::env::var_os(name))?;
            builder
        };
        let http = trust(builder, &url, config.ca_file.as_deref())?;
        let transport = BoxCloneSyncService::new(http.map_err(BoxError::from));
        Ok(Self { transport, url, timeout: config.timeout, clock })
    }

    /// Puts a layer around the transport. The deadline of an exchange covers it, too.
    #[must_use]
    pub fn layered<L>(mut self, layer: &L) -> Self
    where
        L: Layer<Transport>,
        L::Service:
            Service<Request, Response = Response, Error = BoxError, Future: Send> + Clone + Send + Sync + 'static,
    {
        self.transport = BoxCloneSyncService::new(layer.layer(self.transport));
        self
    }

    /// Asks for one token. Dropping the future may lose a token that was just issued.
    ///
    /// # Errors
    /// When no usable token came: see [`TokenError`].
    pub async fn request(&self, credentials: &ClientCredentials, scope: &str) -> Result<Grant, TokenError> {
        let deadline = Instant::now() + self.timeout;
        let answer = timeout_at(deadline, self.send(credentials, scope)).await;
        let answer = answer.unwrap_or(Err(Unavailability::Timeout));
        let mut response = answer.map_err(|cause| unavailable(None, cause))?;

        let status = response.status().as_u16();
        let mut body = Zeroizing::new(Vec::with_capacity(MAX_BODY_BYTES + 1));
        if answer::has_body_of_interest(status) {
            let end = timeout_at(deadline, read_body(&mut response, &mut body)).await;
            match end.unwrap_or(Err(Unavailability::Timeout)) {
                Err(cause) if status == 200 => return Err(unavailable(Some(status), cause)),
                // An error's status says enough.
                Err(_) => body.clear(),
                Ok(()) => {}
            }
        }
        read_answer(status, response.headers(), &body, self.clock.now())
    }

    async fn send(&self, credentials: &ClientCredentials, scope: &str) -> Result<Response, Unavailability> {
        let mut request = Request::new(Method::POST, self.url.clone());
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        *request.body_mut() = Some(request_body(credentials, scope).into());
        self.transport.clone().oneshot(request).await.map_err(|error| classify(error.as_ref()))
    }
}

fn parse_url(url: &str, allow_insecure: bool) -> Result<Url, ConfigError> {
    let url = Url::parse(url).map_err(|_| ConfigError::Url)?;
    check_url(&url, allow_insecure)?;
    Ok(url)
}

/// Whether tokens may be asked for at a URL.
///
/// # Errors
/// That it is not https (but for a loopback host, or where that is allowed), or holds what has no place there. No error repeats it.
pub fn check_url(url: &Url, allow_insecure: bool) -> Result<(), ConfigError> {
    if !url.username().is_empty() || url.password().is_some() {
        return Err(ConfigError::UserInfo);
    }
    if url.fragment().is_some() {
        return Err(ConfigError::Fragment);
    }
    match url.scheme() {
        "https" => {}
        "http" if allow_insecure || is_loopback(url) => {}
        "http" => return Err(ConfigError::Insecure),
        _ => return Err(ConfigError::Scheme),
    }
    // What is sent is an http::Uri, which has a grammar of its own.
    url.as_str().parse::<http::Uri>().map_err(|_| ConfigError::Url)?;
    Ok(())
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// HTTP/1.1 alone: on HTTP/2 every grant would hang with one dead connection until the kernel gives it up.
fn restrict(builder: ClientBuilder, timeout: Duration) -> ClientBuilder {
    builder
        .user_agent(concat!("moneygo-operator/", env!("CARGO_PKG_VERSION")))
        .http1_only()
        .redirect(redirect::Policy::none())
        .referer(false)
        .retry(retry::never())
        // The deadline ends the wait for a connection; this ends an attempt that goes on in the background.
        .connect_timeout(timeout)
        .pool_idle_timeout(IDLE_CONNECTION_TIMEOUT)
        .pool_max_idle_per_host(MAX_IDLE_CONNECTIONS)
}

fn trust(builder: ClientBuilder, url: &Url, ca_file: Option<&Path>) -> Result<Client, ConfigError> {
    let Some(path) = ca_file else {
        let builder = match url.scheme() {
            // No TLS here, not even to a proxy: works where no CA certificates are installed.
            "http" if is_loopback(url) => builder.tls_certs_only([]),
            _ => builder,
        };
        return builder.build().map_err(|_| ConfigError::NoRoots);
    };
    let unusable = |problem| ConfigError::CaFile { path: path.to_owned(), problem };
    let certificates = read_certificates(path).map_err(unusable)?;
    // The certificates are parsed only here, and nothing else can fail: roots are there.
    builder.tls_certs_merge(certificates).build().map_err(|_| unusable(CaFileProblem::Malformed))
}

fn read_certificates(path: &Path) -> Result<Vec<Certificate>, CaFileProblem> {
    let unreadable = |error: io::Error| CaFileProblem::Unreadable(error.kind());
    let mut pem = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(MAX_CA_FILE_BYTES + 1).read_to_end(&mut pem).map_err(unreadable)?;
    if u64::try_from(pem.len()).unwrap_or(u64::MAX) > MAX_CA_FILE_BYTES {
        return Err(CaFileProblem::TooLarge);
    }
    let certificates = Certificate::from_pem_bundle(&pem).map_err(|_| CaFileProblem::Malformed)?;
    if certificates.is_empty() { Err(CaFileProblem::Empty) } else { Ok(certificates) }
}

/// The body is wiped from memory when it was sent.
fn request_body(credentials: &ClientCredentials, scope: &str) -> Bytes {
    let (client_id, client_secret) = credentials.expose();
    // Room for every character as \u0000: growing would leave copies behind.
    let room = 128 + 6 * (client_id.len() + client_secret.len() + scope.len());
    let mut body = Zeroizing::new(Vec::with_capacity(room));
    let request = GrantRequest { grant_type: "client_credentials", client_id, client_secret, scope };
    // Strings into memory: neither can fail.
    let _ = serde_json::to_writer(&mut *body, &request);
    Bytes::from_owner(body)
}

/// Reads the body into `body`, and of what exceeds [`MAX_BODY_BYTES`] one byte, to tell.
async fn read_body(response: &mut Response, body: &mut Vec<u8>) -> Result<(), Unavailability> {
    while let Some(chunk) = response.chunk().await.map_err(|error| classify(&error))? {
        let room = MAX_BODY_BYTES + 1 - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if body.len() > MAX_BODY_BYTES {
            break;
        }
    }
    Ok(())
}

fn unavailable(status: Option<u16>, cause: Unavailability) -> TokenError {
    TokenError::Unavailable { status, cause, retry_after: None }
}

/// What a transport error means. Its text is not used: it holds the URL.
fn classify(error: &(dyn Error + 'static)) -> Unavailability {
    let mut cause = Some(error);
    while let Some(error) = cause {
        match error.downcast_ref() {
            Some(rustls::Error::InvalidCertificate(
                CertificateError::UnsupportedSignatureAlgorithmContext { .. }
                | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. },
            )) => return Unavailability::CertificateSignature,
            Some(rustls::Error::InvalidCertificate(_)) => return Unavailability::Certificate,
            Some(_) => return Unavailability::Tls,
            None => {}
        }
        if error.downcast_ref().is_some_and(hyper::Error::is_parse) {
            return Unavailability::NotHttp;
        }
        cause = next_cause(error);
    }
    match error.downcast_ref::<reqwest::Error>() {
        Some(error) if error.is_timeout() => Unavailability::Timeout,
        Some(error) if error.is_connect() => Unavailability::Connect,
        _ => Unavailability::Interrupted,
    }
}

/// As `source`, but an `io::Error` made of another error hides that one from it.
fn next_cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}
