//! What can go wrong between the operator and the API server, and how it is retried.

use std::time::Duration;

/// The bound on every call of the API server that is no watch.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);

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
        /// `Status.reason`, as `Forbidden`.
        reason: String,
        /// What RBAC says, if it is RBAC's.
        detail: String,
    },
    /// There was no answer in time.
    #[error("cannot {doing}: no answer from the API server within {} s", CALL_TIMEOUT.as_secs())]
    Timeout {
        /// What was being done.
        doing: &'static str,
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
        let of_rbac = status.message.contains(" cannot ") && status.message.contains("in API group");
        let detail = if of_rbac { format!(": {}", status.message) } else { String::new() };
        Self::Api { doing, code: status.code, reason: status.reason.clone(), detail }
    }

    /// What the API server answered, without its words.
    #[must_use]
    pub fn answer(&self) -> String {
        match self {
            Self::Api { code, .. } => format!("HTTP {code}"),
            Self::Timeout { .. } => format!("no answer within {} s", CALL_TIMEOUT.as_secs()),
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

    /// The object is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Api { code: 404, .. })
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

#[cfg(test)]
mod tests;
