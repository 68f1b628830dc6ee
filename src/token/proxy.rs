//! The proxy that the environment names. What reqwest cannot read of it, it goes without: the client secret past the proxy, and without a word.

use std::ffi::OsString;

use http::Uri;
use hyper_util::client::proxy::matcher::Matcher;
use reqwest::Url;

use super::ConfigError;

/// Refuses a proxy that would be passed by. `variable` looks into the environment; as with reqwest, a name in capitals comes first.
///
/// # Errors
/// [`ConfigError::Proxy`], with the name of the variable and not its value, which may hold a password.
pub(super) fn check(url: &Url, variable: impl Fn(&str) -> Option<OsString>) -> Result<(), ConfigError> {
    let Ok(destination) = url.as_str().parse::<Uri>() else { return Ok(()) };
    let set = |names: [&'static str; 2]| {
        let value = |name| Some((name, variable(name)?.to_string_lossy().into_owned()));
        names.into_iter().find_map(value).filter(|(_, value)| !value.is_empty())
    };
    let of_scheme = if url.scheme() == "https" { ["HTTPS_PROXY", "https_proxy"] } else { ["HTTP_PROXY", "http_proxy"] };
    let (own, all) = (set(of_scheme), set(["ALL_PROXY", "all_proxy"]));
    let Some((name, _)) = own.as_ref().or(all.as_ref()) else { return Ok(()) };
    let text = |variable: &Option<(&str, String)>| variable.as_ref().map(|(_, text)| text.clone()).unwrap_or_default();
    let exceptions = text(&set(["NO_PROXY", "no_proxy"]));
    let through = |own: String, all: String| {
        let matcher = Matcher::builder().https(own.clone()).http(own).all(all).no(exceptions.clone()).build();
        matcher.intercept(&destination)
    };
    let is_excepted = through("http://any.example".to_owned(), String::new()).is_none();
    let used = through(text(&own), text(&all));
    let is_spoken = used.is_some_and(|proxy| matches!(proxy.uri().scheme_str(), Some("http" | "https")));
    if is_excepted || is_spoken { Ok(()) } else { Err(ConfigError::Proxy(name)) }
}
