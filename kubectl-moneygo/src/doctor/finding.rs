//! What the doctor finds.

use serde::Serialize;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// There is no valid token, there will be none, or a Pod cannot use it.
    Error,
    /// It works now, and will not always.
    Warning,
    /// Nothing is wrong: something to know.
    Note,
    /// It could not be looked at.
    Unchecked,
}

/// What is wrong, in one word: for programs, and for the headline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Cause {
    DefinitionMissing,
    DefinitionOld,
    NamespaceEnding,
    ObjectEnding,
    OperatorMissing,
    OperatorNotReady,
    NotWatched,
    NotSelected,
    TwoOperators,
    NobodyLeads,
    OperatorMayNot,
    NeverLookedAt,
    StatusBehind,
    Suspended,
    InvalidSpec,
    CredentialsNotFound,
    CredentialsKeyMissing,
    CredentialsEmpty,
    CredentialsNotText,
    CredentialsWhiteSpace,
    CredentialsShared,
    ClientRejected,
    RequestRejected,
    RateLimited,
    EndpointUnavailable,
    BadResponse,
    TargetRenamed,
    TargetRival,
    TargetForeign,
    TargetImmutable,
    TargetForbidden,
    TargetOverwritten,
    TargetMissing,
    TargetKeyMissing,
    TargetEdited,
    TokenExpired,
    RefreshOverdue,
    RefreshUnanswered,
    PodKeyMissing,
    PodUsesCredentials,
    PodSubPath,
    PodVariable,
    NoPodUses,
    Unchecked,
}

/// One thing that is wrong, or that could not be looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    pub severity: Severity,
    pub cause: Cause,
    /// What was found.
    pub what: String,
    /// Why it matters.
    pub why: String,
    /// What to do; a command where there is one.
    pub remedy: String,
}

impl Finding {
    /// A finding.
    pub fn new(
        severity: Severity,
        cause: Cause,
        what: impl Into<String>,
        why: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { severity, cause, what: what.into(), why: why.into(), remedy: remedy.into() }
    }

    /// Of something that the user may not see.
    pub fn unchecked(what: &str, why: &str) -> Self {
        Self::new(
            Severity::Unchecked,
            Cause::Unchecked,
            format!("could not check {what}: {why}"),
            "something may be wrong there",
            "ask someone who may look there to run kubectl moneygo doctor",
        )
    }
}
