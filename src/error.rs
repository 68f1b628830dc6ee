//! What can go wrong between the operator and the API server, and how it is retried.

use std::time::Duration;

use kube::client::AuthError;

/// The bound on every call of the API server that is no watch.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// The bound on the write of a Secret after one that was not answered within [`CALL_TIMEOUT`]: above the 34 s after which the API server ends a request itself.
/// It waits for webhooks that do not answer one after the other, also where they may be passed over (`failurePolicy: Ignore`), and does not carry out a
/// request whose sender has gone.
pub const LONGEST_WRITE: Duration = Duration::from_secs(36);
/// How much is repeated of what another program says of a cause, in characters.
const LONGEST_CAUSE: usize = 200;

/// A call of the API server that did not do what it should.
///
/// `Display` holds no text of a response but a refusal by RBAC, which names a user, a verb and a resource: what a server or
/// a parser says of an object could hold a Secret's data.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server answered with an error.
    #[error("cannot {doing}: the API server answered {code} {reason}{detail}")]
    Api {
        /// What was being done.
        doing: &'static str,
        /// The HTTP status.
        code: u16,
        /// `Status.reason`, as `Forbidden`, where it is one of Kubernetes' own.
        reason: &'static str,
        /// What RBAC says, if it is RBAC's.
        detail: String,
    },
    /// There was no answer in time.
    #[error("cannot {doing}: no answer from the API server within {} s", within.as_secs())]
    Timeout {
        /// What was being done.
        doing: &'static str,
        /// For how long it was waited for.
        within: Duration,
    },
    /// There was no answer that could be read.
    #[error("cannot {doing}: the API server cannot be reached, or its answer cannot be read")]
    Unreachable {
        /// What was being done.
        doing: &'static str,
    },
}

impl Error {
    /// What a failed call of kube's client means. Its own text is dropped.
    #[must_use]
    pub fn of(doing: &'static str, error: &kube::Error) -> Self {
        let kube::Error::Api(status) = error else { return Self::Unreachable { doing } };
        let reason = reason_of(&status.reason);
        let detail = if is_of_rbac(status.code, reason, &status.message) {
            format!(": {}", status.message)
        } else {
            String::new()
        };
        Self::Api { doing, code: status.code, reason, detail }
    }

    /// What the API server answered, without its words.
    #[must_use]
    pub fn answer(&self) -> String {
        match self {
            Self::Api { code, .. } => format!("HTTP {code}"),
            Self::Timeout { within, .. } => format!("no answer within {} s", within.as_secs()),
            Self::Unreachable { .. } => "no answer that can be read".to_owned(),
        }
    }

    /// What came of a call, in a word: [`Self::OK`], or why it failed.
    #[must_use]
    pub fn outcome<T>(result: &Result<T, Self>) -> &'static str {
        result.as_ref().err().map_or(Self::OK, Self::reason)
    }

    /// The outcome of what did not fail.
    pub const OK: &str = "Ok";

    /// Every [`Self::reason`].
    pub const REASONS: [&str; 6] = ["Conflict", "NotFound", "Refused", "ApiError", "Timeout", "Unreachable"];

    /// For a metric's label and a log's field. One of [`Self::REASONS`].
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Api { .. } if self.is_conflict() => "Conflict",
            Self::Api { .. } if self.is_not_found() => "NotFound",
            Self::Api { .. } if self.is_refusal() => "Refused",
            Self::Api { .. } => "ApiError",
            Self::Timeout { .. } => "Timeout",
            Self::Unreachable { .. } => "Unreachable",
        }
    }

    /// The object is another version than the one that was read, or is there already.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Api { code: 409, .. })
    }

    /// The object is not there, or a part of it: its status where the CRD has none.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Api { code, reason, .. } if is_not_found(*code, reason))
    }

    /// The API server will not have it (RBAC, quota, admission, validation), and will not if it is asked again.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Api { code: 400 | 403 | 405 | 413 | 422, .. })
    }

    /// Whether this is a 403.
    #[must_use]
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Api { code: 403, .. })
    }
}

/// What is told of a reason that is none of Kubernetes' own: an admission webhook may put whatever it likes there, and a gateway has no word for it.
const OTHER_REASON: &str = "for another reason";

/// `Status.reason`, where it is one of Kubernetes' own (`k8s.io/apimachinery/pkg/apis/meta/v1`, `StatusReason`).
#[must_use]
pub fn reason_of(reason: &str) -> &'static str {
    const KNOWN: [&str; 19] = [
        "Unauthorized",
        "Forbidden",
        "NotFound",
        "AlreadyExists",
        "Conflict",
        "Gone",
        "Invalid",
        "ServerTimeout",
        "StoreReadError",
        "Timeout",
        "TooManyRequests",
        "BadRequest",
        "MethodNotAllowed",
        "NotAcceptable",
        "RequestEntityTooLarge",
        "UnsupportedMediaType",
        "InternalError",
        "Expired",
        "ServiceUnavailable",
    ];
    KNOWN.into_iter().find(|known| *known == reason).unwrap_or(OTHER_REASON)
}

/// Whether a message is RBAC's own. A webhook that denies a request may say the same, and more.
fn is_of_rbac(code: u16, reason: &str, message: &str) -> bool {
    let is_refusal = (code, reason) == (403, "Forbidden") && !message.starts_with("admission webhook");
    is_refusal
        && message.contains(" is forbidden: User \"")
        && message.contains(" cannot ")
        && message.contains("in API group")
}

/// What the API server itself says of an object that is not there. A gateway before it has 404s of its own.
fn is_not_found(code: u16, reason: &str) -> bool {
    code == 404 && reason == "NotFound"
}

/// `None` where the API server itself says that there is no such object: a gateway's own 404 says nothing of it, whatever kube's `get_opt` makes of that.
///
/// # Errors
/// Whatever else the call ended in.
pub fn if_there<T>(found: kube::Result<T>) -> kube::Result<Option<T>> {
    match found {
        Err(kube::Error::Api(status)) if is_not_found(status.code, &status.reason) => Ok(None),
        found => found.map(Some),
    }
}

/// Whether the API server answered with this HTTP status.
#[must_use]
pub fn has_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

/// The innermost cause ("Connection refused"), not the names of the layers around it. Of what can quote credentials (an exec plugin's
/// environment and output, a key), no more than what it is about.
#[must_use]
pub fn innermost(error: &kube::Error) -> String {
    match error {
        kube::Error::SerdeError(_) => return "the answer is not that of a Kubernetes API server".to_owned(),
        kube::Error::ProxyProtocolUnsupported { .. } | kube::Error::ProxyProtocolDisabled { .. } => {
            return "the kubeconfig's proxy-url is not one of http".to_owned();
        }
        kube::Error::RustlsTls(_) => {
            return "the client's certificate or key, or the CA's certificate, cannot be used".to_owned();
        }
        _ => {}
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
        if cause.is::<AuthError>() {
            return "the credentials for the cluster cannot be had: look at the kubeconfig's exec plugin or auth provider"
                .to_owned();
        }
    }
    cause.to_string().chars().take(LONGEST_CAUSE).collect()
}

#[cfg(test)]
mod tests;
