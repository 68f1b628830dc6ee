//! Facts → findings. Pure. Each part adds what it finds in the order of the walk: what causes something stands before it.

mod client;
mod operator;
mod target;
mod usage;

use kube::ResourceExt as _;
use moneygo_operator::crd::{ConditionType, MoneyGoCredentialStatus, Reason};
use moneygo_operator::status::{condition, says_ready};

use super::facts::{Facts, Neighbour};
use super::finding::{Cause, Finding, Severity};

/// What is wrong.
#[must_use]
pub fn diagnose(facts: &Facts) -> Vec<Finding> {
    let walk = Walk { facts, namespace: facts.object.namespace().unwrap_or_default(), name: facts.object.name_any() };
    let mut findings = Vec::new();
    walk.surroundings(&mut findings);
    walk.operators(&mut findings);
    walk.attention(&mut findings);
    let resolved = match facts.object.resolve() {
        Ok(resolved) => resolved,
        Err(problem) => {
            findings.push(Finding::new(
                Severity::Error,
                Cause::InvalidSpec,
                if facts.object.spec.credentials_ref.name.is_empty() {
                    "a field of it cannot be read: kubectl explain mgc.spec tells what each may hold".to_owned()
                } else {
                    problem.to_string()
                },
                "another schema let the object in; the operator does nothing for it",
                format!("kubectl -n {} edit mgc {}", walk.namespace, walk.name),
            ));
            return findings;
        }
    };
    walk.suspension(&mut findings);
    walk.credentials(&resolved, &mut findings);
    walk.endpoint(&mut findings);
    walk.target(&resolved, &mut findings);
    walk.token(&mut findings);
    walk.pods(&resolved, &mut findings);
    findings
}

/// The facts, and what every part needs of them.
struct Walk<'a> {
    facts: &'a Facts,
    namespace: String,
    name: String,
}

impl Walk<'_> {
    fn status(&self) -> MoneyGoCredentialStatus {
        self.facts.object.status.clone().unwrap_or_default()
    }

    /// Why the last attempt failed, with the operator's message.
    fn failure(&self) -> Option<(Reason, String)> {
        let status = self.status();
        let refreshed = condition(&status, ConditionType::Refreshed).filter(|refreshed| refreshed.status == "False")?;
        Some((Reason::of(&refreshed.reason)?, refreshed.message.clone()))
    }

    /// Whether the operator says so, and the clock here agrees.
    fn has_token(&self) -> bool {
        let status = self.status();
        says_ready(&status) && status.expires_at.is_some_and(|at| at > self.facts.now)
    }

    /// A failure is an error once there is no valid token, and a warning before.
    fn grave(&self) -> Severity {
        if self.has_token() { Severity::Warning } else { Severity::Error }
    }

    /// Why a failure matters, as long as the token lives.
    fn until_expiry(&self) -> String {
        match self.status().expires_at.filter(|_| self.has_token()) {
            Some(at) => {
                format!("no new token comes; the present one ends {}", crate::words::from_now(at, self.facts.now))
            }
            None => "there is no valid token".to_owned(),
        }
    }

    /// The other objects of the namespace.
    fn others(&self) -> impl Iterator<Item = &Neighbour> {
        let uid = self.facts.object.metadata.uid.as_deref().unwrap_or_default();
        let all = self.facts.neighbours.found().into_iter().flat_map(|all| all.iter());
        all.filter(move |one| one.contender.uid != uid)
    }

    /// kubectl for the object's namespace, and what follows.
    fn kubectl(&self, rest: &str) -> String {
        format!("kubectl -n {} {rest}", self.namespace)
    }
}

#[cfg(test)]
mod tests;
