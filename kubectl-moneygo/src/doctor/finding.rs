//! What the doctor finds.

use serde::Serialize;

use crate::terminal::harmless;

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

macro_rules! causes {
    ($($name:ident: $description:literal,)*) => {
        /// What is wrong, in one word: for programs, and for the headline. In the order of the walk.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
        pub enum Cause {
            $(#[doc = $description] $name,)*
        }

        #[cfg(test)]
        impl Cause {
            /// Every cause, with what it means: what the documentation lists.
            pub const ALL: &[(Self, &str)] = &[$((Self::$name, $description)),*];
        }
    };
}

causes! {
    DefinitionMissing: "the cluster has no definition of these objects",
    DefinitionOld: "the definition does not serve the version that the operator uses",
    NamespaceEnding: "the namespace is being deleted",
    ObjectEnding: "the object is being deleted, and somebody's finalizer holds it",
    OperatorMissing: "no Deployment of an operator was found",
    NotWatched: "no operator watches the namespace",
    NotSelected: "the operator's label selector does not find the object",
    TwoOperators: "two operators look at the object",
    OperatorNotReady: "the operator's Deployment has no ready replica",
    NobodyLeads: "the operator's Lease is not held, or was not renewed",
    OperatorMayNot: "the operator's account lacks a right",
    NeverLookedAt: "the object has no status",
    StatusBehind: "the last change of the spec was not looked at",
    RefreshUnanswered: "a refresh that was asked for is not answered",
    InvalidSpec: "an older schema let the object in",
    Suspended: "spec.suspend is true",
    CredentialsNotFound: "the credentials Secret does not exist",
    CredentialsKeyMissing: "it lacks a key",
    CredentialsEmpty: "a value of it is empty",
    CredentialsNotText: "a value of it is not UTF-8, or begins with a byte order mark",
    CredentialsWhiteSpace: "a value of it has white space at an end",
    CredentialsShared: "another object has the same credentials Secret",
    ClientRejected: "the endpoint does not accept the client",
    RequestRejected: "the endpoint refuses the request, as for its scope",
    RateLimited: "the endpoint asks for fewer requests",
    EndpointUnavailable: "the endpoint cannot be reached, or has a fault",
    BadResponse: "what answers is not the endpoint",
    TargetRenamed: "target.name was changed",
    TargetRival: "another object has the same target Secret",
    TargetMissing: "the target Secret is gone",
    TargetForeign: "the target Secret is somebody else's",
    TargetImmutable: "the target Secret is immutable",
    TargetKeyMissing: "a key of the target Secret is gone or empty",
    TargetEdited: "the token was overwritten",
    TargetForbidden: "the API server refuses the write of the target Secret",
    SecretsUnavailable: "the API server does not let the Secrets be read or written",
    TargetOverwritten: "somebody keeps overwriting the token",
    TokenPending: "there is no valid token yet, and nothing above says why",
    TokenExpired: "the token has expired",
    RefreshOverdue: "the token should have been replaced",
    PodKeyMissing: "a Pod names a key that the target Secret does not have",
    PodUsesCredentials: "a Pod uses the credentials Secret",
    PodSubPath: "a Pod mounts the token by subPath",
    PodVariable: "a Pod has the token in an environment variable",
    NoPodUses: "no Pod uses the token",
    Unchecked: "something could not be looked at",
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
        Self {
            severity,
            cause,
            what: harmless(&what.into()).into_owned(),
            why: harmless(&why.into()).into_owned(),
            remedy: harmless(&remedy.into()).into_owned(),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_is_documented() {
        let page = include_str!("../../../docs/kubectl-moneygo.md");
        for (cause, description) in Cause::ALL {
            let row = format!("| `{cause:?}` | {description} |");
            assert!(page.contains(&row), "docs/kubectl-moneygo.md lacks the row {row}");
        }
        assert_eq!(page.matches("\n| `").count(), Cause::ALL.len(), "a row of docs/kubectl-moneygo.md is no cause");
    }
}
