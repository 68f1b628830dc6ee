//! The client's Secret, and what the endpoint said of it.

use moneygo_operator::crd::{Reason, Resolved};

use super::Walk;
use crate::doctor::facts::{Credentials, KeyState, Lookup};
use crate::doctor::finding::{Cause, Finding, Severity};

impl Walk<'_> {
    pub(super) fn credentials(&self, spec: &Resolved, findings: &mut Vec<Finding>) {
        let name = &spec.credentials;
        match &self.facts.credentials {
            Lookup::Unknown(why) => {
                findings.push(Finding::unchecked(&format!("the credentials Secret \"{name}\""), why));
                self.credentials_by_hearsay(spec, findings);
            }
            Lookup::Missing => findings.push(self.no_credentials(spec, self.grave())),
            Lookup::Found(credentials) => {
                let keys = [(&spec.client_id_key, credentials.id), (&spec.client_secret_key, credentials.secret)];
                findings.extend(keys.iter().filter_map(|(key, state)| self.key(name, key, *state, credentials)));
            }
        }
        self.shared_credentials(name, findings);
    }

    fn no_credentials(&self, spec: &Resolved, severity: Severity) -> Finding {
        Finding::new(
            severity,
            Cause::CredentialsNotFound,
            format!("there is no Secret \"{}\", which spec.credentialsRef names", spec.credentials),
            self.until_expiry(),
            self.kubectl(&format!(
                "create secret generic {} --from-literal={}=… --from-literal={}=…",
                spec.credentials, spec.client_id_key, spec.client_secret_key
            )),
        )
    }

    /// What the operator says of a Secret that the user may not read.
    fn credentials_by_hearsay(&self, spec: &Resolved, findings: &mut Vec<Finding>) {
        let Some((reason, message)) = self.failure() else { return };
        let cause = match reason {
            Reason::CredentialsNotFound => return findings.push(self.no_credentials(spec, self.grave())),
            Reason::CredentialsIncomplete => Cause::CredentialsKeyMissing,
            Reason::CredentialsMalformed => Cause::CredentialsWhiteSpace,
            _ => return,
        };
        findings.push(Finding::new(self.grave(), cause, message, self.until_expiry(), reason.description()));
    }

    fn key(&self, secret: &str, key: &str, state: KeyState, credentials: &Credentials) -> Option<Finding> {
        let cause = match state {
            KeyState::Good => return None,
            KeyState::Missing => Cause::CredentialsKeyMissing,
            KeyState::Empty => Cause::CredentialsEmpty,
            KeyState::NotText | KeyState::ByteOrderMark => Cause::CredentialsNotText,
            KeyState::WhiteSpace => Cause::CredentialsWhiteSpace,
        };
        let others = match state {
            KeyState::Missing if credentials.keys.is_empty() => " (it has no keys)".to_owned(),
            KeyState::Missing => format!(" (its keys are {})", credentials.keys.join(", ")),
            _ => String::new(),
        };
        let remedy = match state {
            KeyState::Missing => format!(
                "name the right key in spec.credentialsRef, or add it: {}",
                self.kubectl(&format!("edit secret {secret}"))
            ),
            _ => format!(
                "store the value again, with nothing around it: printf %s \"$VALUE\" | base64 -w0, then {}",
                self.kubectl(&format!("edit secret {secret}"))
            ),
        };
        let what = format!("in the Secret \"{secret}\" the key \"{key}\" {}{others}", state.words());
        Some(Finding::new(self.grave(), cause, what, self.until_expiry(), remedy))
    }

    fn shared_credentials(&self, name: &str, findings: &mut Vec<Finding>) {
        let same = self.others().filter(|other| other.credentials == name);
        let same: Vec<_> = same.map(|other| format!("\"{}\"", other.contender.name)).collect();
        if !same.is_empty() {
            findings.push(Finding::new(
                Severity::Warning,
                Cause::CredentialsShared,
                format!("the MoneyGoCredential {} has the same credentials Secret \"{name}\"", same.join(", ")),
                "where the provider revokes a client's last token when it gives a new one, each refresh ends the other's token",
                "give each a client of its own, or let the Pods of both use one Secret",
            ));
        }
    }

    /// What the endpoint answered, by the operator's word.
    pub(super) fn endpoint(&self, findings: &mut Vec<Finding>) {
        let Some((reason, message)) = self.failure() else { return };
        let secret = &self.facts.object.spec.credentials_ref.name;
        // It takes the URL from the Deployment, as long as it finds the same one.
        let place = self.facts.operator_namespace.as_deref();
        let place = place.map_or_else(String::new, |place| format!(" --operator-namespace {place}"));
        let check = format!("kubectl moneygo check -n {} {}{place}", self.namespace, self.name);
        let (cause, remedy) = match reason {
            Reason::InvalidClient => (
                Cause::ClientRejected,
                format!(
                    "correct the client id and secret: {}; then try them: {check}",
                    self.kubectl(&format!("edit secret {secret}"))
                ),
            ),
            Reason::RequestRejected => (
                Cause::RequestRejected,
                format!(
                    "correct spec.scope: {}, or ask Money-Go to allow it; try another: {check} --scope SCOPE",
                    self.kubectl(&format!("edit mgc {}", self.name))
                ),
            ),
            Reason::RateLimited => {
                (Cause::RateLimited, "wait; if it stays so, lower the chart's moneyGo.requestsPerSecond".to_owned())
            }
            Reason::EndpointUnavailable => (
                Cause::EndpointUnavailable,
                format!("look at the network policy, the proxy, DNS and Money-Go's status; from here: {check}"),
            ),
            Reason::BadResponse => (
                Cause::BadResponse,
                format!("look at the operator's --token-url and at gateways before it; from here: {check}"),
            ),
            _ => return,
        };
        let next = self.status().next_attempt_at.filter(|at| *at > self.facts.now);
        let again = next.map_or_else(String::new, |at| {
            format!("; it is tried again {}", crate::words::from_now(at, self.facts.now))
        });
        findings.push(Finding::new(self.grave(), cause, message, format!("{}{again}", self.until_expiry()), remedy));
    }
}
