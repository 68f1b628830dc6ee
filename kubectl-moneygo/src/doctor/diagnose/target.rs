//! The token's Secret, and the token in it.

use jiff::SignedDuration;
use kube::ResourceExt as _;
use moneygo_operator::crd::{ConditionType, MoneyGoCredentialStatus, Reason, Resolved, annotation};
use moneygo_operator::secret::{self, Claim, FIELD_MANAGER, Facts as Meta, Owner, Seal, winner};
use moneygo_operator::status::{condition, says_ready};

use super::Walk;
use crate::doctor::facts::{Lookup, Neighbour, Target};
use crate::doctor::finding::{Cause, Finding, Severity};
use crate::life;
use crate::words;

/// So long a refresh may be late while nothing is said to have failed.
const UNTOLD: SignedDuration = SignedDuration::from_mins(1);
/// What no object's status tells.
const ENDPOINT_DOWN: &str = "where nothing is, the endpoint may be down for everyone, the queue before it long, or the API server not let the Secrets \
                             be read or written: look for EndpointDown and \"trying again\" in the operator's log, and at its moneygo_token_endpoint_up \
                             and moneygo_token_requests_waiting";

impl Walk<'_> {
    pub(super) fn target(&self, spec: &Resolved, findings: &mut Vec<Finding>) {
        if let Some(earlier) = self.status().target_name.filter(|earlier| *earlier != spec.target) {
            findings.push(Finding::new(
                Severity::Error,
                Cause::TargetRenamed,
                format!("spec.target.name was \"{earlier}\" and is \"{}\"", spec.target),
                "it is immutable: the operator writes neither Secret",
                format!(
                    "set it back ({}), or create another MoneyGoCredential",
                    self.kubectl(&format!("edit mgc {}", self.name))
                ),
            ));
            return;
        }
        let rivals = self.rivals(spec);
        if !rivals.is_empty() {
            findings.push(self.rivalry(spec, &rivals));
        }
        match &self.facts.target {
            Lookup::Unknown(why) => {
                findings.push(Finding::unchecked(&format!("the target Secret \"{}\"", spec.target), why));
                self.target_by_hearsay(&rivals, findings);
            }
            Lookup::Missing => self.missing(spec, findings),
            Lookup::Found(target) => self.present(spec, target, !rivals.is_empty(), findings),
        }
        self.refused_writes(spec, findings);
    }

    fn rivals(&self, spec: &Resolved) -> Vec<&Neighbour> {
        self.others().filter(|other| other.target == spec.target).collect()
    }

    fn rivalry(&self, spec: &Resolved, rivals: &[&Neighbour]) -> Finding {
        let own = Neighbour::of(&self.facts.object);
        let all = rivals.iter().copied().chain([&own]);
        let contenders: Vec<_> = all.map(|object| object.contender.clone()).collect();
        let metadata = self.facts.target.found().map(|target| Meta::of(&target.metadata));
        let writes = winner(&contenders, metadata.as_ref()).map(|one| one.name.clone()).unwrap_or_default();
        let is_ours = writes == self.name;
        let names: Vec<_> = rivals.iter().map(|rival| format!("\"{}\"", rival.contender.name)).collect();
        Finding::new(
            if is_ours { Severity::Warning } else { Severity::Error },
            Cause::TargetRival,
            format!(
                "the Secret \"{}\" is the target of {}, too; \"{writes}\" writes it",
                spec.target,
                names.join(", ")
            ),
            if is_ours { "the other object gets no token" } else { "this object gets no token" },
            "give one of them another target.name (it is immutable: delete that object, and create it anew)",
        )
    }

    fn missing(&self, spec: &Resolved, findings: &mut Vec<Finding>) {
        if self.status().issued_at.is_some() {
            findings.push(Finding::new(
                Severity::Error,
                Cause::TargetMissing,
                format!("there is no Secret \"{}\", though a token was issued", spec.target),
                "Pods that mount it do not start; the operator makes it anew, at once, where it works",
                self.kubectl(&format!("get events --field-selector involvedObject.name={}", self.name)),
            ));
        }
    }

    /// What the operator says of a Secret that the user may not read.
    fn target_by_hearsay(&self, rivals: &[&Neighbour], findings: &mut Vec<Finding>) {
        let Some((reason, message)) = self.failure() else { return };
        let cause = match reason {
            Reason::TargetConflict if rivals.is_empty() => Cause::TargetForeign,
            Reason::TargetImmutable => Cause::TargetImmutable,
            _ => return,
        };
        findings.push(Finding::new(Severity::Error, cause, message, self.until_expiry(), reason.description()));
    }

    fn present(&self, spec: &Resolved, target: &Target, contested: bool, findings: &mut Vec<Finding>) {
        let metadata = Meta::of(&target.metadata);
        let owner = Owner {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            uid: self.facts.object.uid().unwrap_or_default(),
        };
        let is_live = |uid: &str| self.others().any(|other| other.contender.uid == uid);
        if secret::claim(&metadata, &owner, is_live) == Claim::Foreign {
            if !contested {
                findings.push(self.foreign(spec, &metadata));
            }
            return;
        }
        let delete = self.kubectl(&format!("delete secret {}", spec.target));
        if target.immutable {
            findings.push(Finding::new(
                self.grave(),
                Cause::TargetImmutable,
                format!("the Secret \"{}\" has immutable: true", spec.target),
                "no token can be written to it",
                format!("{delete}; it is made anew at once"),
            ));
        }
        self.content(spec, target, &metadata, findings);
    }

    fn foreign(&self, spec: &Resolved, metadata: &Meta) -> Finding {
        let (whose, remedy) = match metadata.controller() {
            Some(controller) => (
                format!("belongs to the {}", secret::in_words(controller)),
                "choose another target.name: delete this object, and create it anew with one".to_owned(),
            ),
            None => (
                "is not of this object".to_owned(),
                format!(
                    "hand it over: {}; or choose another target.name",
                    self.kubectl(&format!(
                        "annotate --overwrite secret {} {}={}",
                        spec.target,
                        annotation::ADOPT,
                        self.name
                    ))
                ),
            ),
        };
        Finding::new(
            Severity::Error,
            Cause::TargetForeign,
            format!("the Secret \"{}\" exists and {whose}", spec.target),
            "the operator touches no Secret of others, and asks for no token on its account",
            remedy,
        )
    }

    fn content(&self, spec: &Resolved, target: &Target, metadata: &Meta, findings: &mut Vec<Finding>) {
        let edited = match &metadata.seal {
            Seal::Broken(manager) if !self.was_found_good(target, metadata, manager.as_deref()) => {
                Some(manager.clone().unwrap_or_else(|| "somebody".to_owned()))
            }
            Seal::Broken(_) | Seal::Intact | Seal::Unknown => None,
        };
        let wrote_token = metadata.marks.applied.is_some() || metadata.marks.life.is_some();
        if !wrote_token {
            return;
        }
        let delete = self.kubectl(&format!("delete secret {}", spec.target));
        let wanted = [Some(&spec.access_token_key), spec.authorization_key.as_ref(), spec.expires_at_key.as_ref()];
        let lost: Vec<_> =
            wanted.into_iter().flatten().filter(|key| target.keys.get(*key).is_none_or(|len| *len == 0)).collect();
        if !lost.is_empty() {
            let lost: Vec<_> = lost.iter().map(|key| format!("\"{key}\"")).collect();
            findings.push(Finding::new(
                Severity::Error,
                Cause::TargetKeyMissing,
                format!("the Secret \"{}\" lacks its key {}, or it is empty", spec.target, lost.join(", ")),
                "Pods find no token there; the operator writes it anew where it works",
                format!("if it stays so: {delete}; it is made anew"),
            ));
        } else if let Some(manager) = edited {
            findings.push(Finding::new(
                Severity::Error,
                Cause::TargetEdited,
                format!(
                    "the token in the Secret \"{}\" was overwritten by the field manager \"{manager}\"",
                    spec.target
                ),
                "Pods send what is no token of Money-Go's; the operator replaces it where it works, ever more slowly",
                format!(
                    "make \"{manager}\" leave the Secret alone; then kubectl moneygo refresh -n {} {}",
                    self.namespace, self.name
                ),
            ));
        }
    }

    /// Whether the operator has written the Secret since, and left the token in it: that of a backup which was restored, by its digest.
    fn was_found_good(&self, target: &Target, metadata: &Meta, manager: Option<&str>) -> bool {
        let last_of = |manager: Option<&str>| {
            let entries = target.metadata.managed_fields.iter().flatten();
            let times = entries.filter(|entry| entry.manager.as_deref() == manager);
            times.filter_map(|entry| entry.time.as_ref().map(|time| time.0)).max()
        };
        let status = self.status();
        let told = status.issued_at;
        let is_told_of = told.is_some() && told == metadata.marks.life.map(|life| life.issued_at);
        let was_written_since = last_of(Some(FIELD_MANAGER)) >= last_of(manager) && last_of(manager).is_some();
        is_told_of && was_written_since && says_ready(&status)
    }

    fn refused_writes(&self, spec: &Resolved, findings: &mut Vec<Finding>) {
        let Some((reason, message)) = self.failure() else { return };
        let (cause, remedy) = match reason {
            Reason::TargetForbidden => (
                Cause::TargetForbidden,
                format!(
                    "look at quotas ({}), at admission policies and at the operator's Role",
                    self.kubectl("describe resourcequota")
                ),
            ),
            Reason::SecretsUnavailable => (
                Cause::SecretsUnavailable,
                format!(
                    "look at admission webhooks for Secrets ({}), at the API server and at the operator's Role",
                    self.kubectl("get validatingwebhookconfigurations,mutatingwebhookconfigurations")
                ),
            ),
            Reason::TargetOverwritten => (
                Cause::TargetOverwritten,
                format!(
                    "make them stop, or choose another target.name; who it is: {}",
                    self.kubectl(&format!("get secret {} --show-managed-fields -o yaml | grep manager:", spec.target))
                ),
            ),
            _ => return,
        };
        findings.push(Finding::new(self.grave(), cause, message, self.until_expiry(), remedy));
    }

    /// Where the token stands in its life.
    pub(super) fn token(&self, findings: &mut Vec<Finding>) {
        let (status, now) = (self.status(), self.facts.now);
        let is_ending = self.facts.object.metadata.deletion_timestamp.is_some();
        let is_explained = findings.iter().any(|finding| finding.severity == Severity::Error);
        let ended_at = status.expires_at.filter(|at| *at <= now);
        if !self.has_token() && !is_ending && !is_explained && ended_at.is_none() {
            findings.push(pending(&status));
        }
        let refresh = format!("kubectl moneygo refresh -n {} {}", self.namespace, self.name);
        if let Some(at) = ended_at {
            findings.push(Finding::new(
                Severity::Error,
                Cause::TokenExpired,
                format!("the token expired {} ({at})", words::from_now(at, now)),
                "calls with it get 401",
                format!("mend what is above; then {refresh}"),
            ));
        } else if self.is_overdue(&status) && self.facts.object.spec.suspend != Some(true) {
            let (refresh_at, expires_at) = (status.refresh_at.unwrap_or(now), status.expires_at.unwrap_or(now));
            findings.push(Finding::new(
                Severity::Warning,
                Cause::RefreshOverdue,
                format!("the token should have been replaced {}", words::from_now(refresh_at, now)),
                format!("it ends {}", words::from_now(expires_at, now)),
                if self.failure().is_some() {
                    format!("mend what is above; then {refresh}")
                } else {
                    format!("mend what is above; {ENDPOINT_DOWN}")
                },
            ));
        }
    }

    /// In an outage no request is made, so that none fails: then the status tells of nothing but the time that has passed.
    fn is_overdue(&self, status: &MoneyGoCredentialStatus) -> bool {
        let late = status.refresh_at.is_some_and(|at| self.facts.now.duration_since(at) > UNTOLD);
        life::is_overdue(status, self.facts.now) || (late && self.failure().is_none())
    }
}

/// It waits for its turn, for its first look, or for a clock.
fn pending(status: &MoneyGoCredentialStatus) -> Finding {
    let says = condition(status, ConditionType::Ready).map(|ready| format!("{}: {}", ready.reason, ready.message));
    Finding::new(
        Severity::Error,
        Cause::TokenPending,
        says.unwrap_or_else(|| "no operator has looked at the object yet".to_owned()),
        "there is no valid token",
        format!("ask again in a while; {ENDPOINT_DOWN}"),
    )
}
