//! The cluster, the namespace and the operator.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ObjectMeta};
use moneygo_operator::crd::annotation;

use super::Walk;
use crate::doctor::facts::Lookup;
use crate::doctor::finding::{Cause, Finding, Severity};
use crate::doctor::operators::{LABELS, Operator};
use crate::words;

/// So long an operator may take for a look at an object.
const LOOK_SECS: i64 = 10;
/// And for the answer to a refresh request.
const ANSWER_SECS: i64 = 60;
const VERSION: &str = "v1alpha1";

impl Walk<'_> {
    pub(super) fn surroundings(&self, findings: &mut Vec<Finding>) {
        match &self.facts.served_versions {
            Lookup::Unknown(why) => findings.push(Finding::unchecked("the definition's versions", why)),
            Lookup::Found(versions) if !versions.iter().any(|version| version == VERSION) => {
                findings.push(Finding::new(
                    Severity::Error,
                    Cause::DefinitionOld,
                    format!("the definition serves {} and not {VERSION}", versions.join(", ")),
                    "the operator reads and writes that version",
                    "helm upgrade the chart, or kubectl apply --server-side -f crds/",
                ));
            }
            Lookup::Found(_) | Lookup::Missing => {}
        }
        match &self.facts.namespace_ends {
            Lookup::Unknown(why) => findings.push(Finding::unchecked("whether the namespace is being deleted", why)),
            Lookup::Found(true) => findings.push(Finding::new(
                Severity::Error,
                Cause::NamespaceEnding,
                format!("the namespace {} is being deleted", self.namespace),
                "no token is asked for there, and nothing can be created",
                format!("wait until it is gone; what holds it: kubectl get namespace {} -o yaml", self.namespace),
            )),
            Lookup::Found(false) | Lookup::Missing => {}
        }
        if self.facts.object.metadata.deletion_timestamp.is_some() {
            let finalizers = self.facts.object.metadata.finalizers.clone().unwrap_or_default();
            findings.push(Finding::new(
                Severity::Error,
                Cause::ObjectEnding,
                format!("the object is being deleted (finalizers: {})", list(&finalizers)),
                "no token is asked for any more; the operator itself sets no finalizer",
                "find out who set the finalizer, and let them finish",
            ));
        }
    }

    pub(super) fn operators(&self, findings: &mut Vec<Finding>) {
        let all = match &self.facts.operators {
            Lookup::Unknown(why) => {
                findings.push(Finding::unchecked("the operator's Deployment", why));
                return;
            }
            Lookup::Missing => &Vec::new(),
            Lookup::Found(all) => all,
        };
        if all.is_empty() {
            // It may run without the chart: then it shows by what it does.
            let severity = if self.was_seen() { Severity::Warning } else { Severity::Error };
            findings.push(Finding::new(
                severity,
                Cause::OperatorMissing,
                format!("no Deployment of an operator was found (label {})", LABELS.join(" or ")),
                "nobody asks for tokens, unless an operator runs without its chart",
                "helm install moneygo-operator charts/moneygo-operator --namespace moneygo-system --create-namespace",
            ));
            return;
        }
        let watching: Vec<_> = all.iter().filter(|one| one.watches(&self.namespace)).collect();
        let selecting: Vec<_> = watching.iter().copied().filter(|one| one.selects != Some(false)).collect();
        match (watching.as_slice(), selecting.as_slice()) {
            ([], _) => findings.push(self.not_watched(all)),
            (watching, []) => findings.push(self.not_selected(watching)),
            (_, selecting) => self.working(selecting, findings),
        }
        for operator in watching {
            self.may_not(operator, findings);
        }
    }

    fn was_seen(&self) -> bool {
        self.facts.object.status.as_ref().is_some_and(|status| !status.conditions.is_empty())
    }

    fn not_watched(&self, all: &[Operator]) -> Finding {
        let watched: Vec<_> = all.iter().flat_map(|one| one.watched.clone()).collect();
        let places: Vec<_> = all.iter().map(Operator::place).collect();
        Finding::new(
            Severity::Error,
            Cause::NotWatched,
            format!(
                "no operator watches the namespace {}: {} watches {}",
                self.namespace,
                list(&places),
                list(&watched)
            ),
            "nobody looks at the object",
            match all {
                [one] if !one.is_shard => format!(
                    "add it to the chart's watchNamespaces: helm upgrade … --set 'watchNamespaces={{{}}}'",
                    list_of(&watched, &self.namespace)
                ),
                // In the values of two it would be looked after twice.
                _ => format!(
                    "add {} to the watchNamespaces of one of them: of a release, or of one of its shards",
                    self.namespace
                ),
            },
        )
    }

    fn not_selected(&self, watching: &[&Operator]) -> Finding {
        let selectors: Vec<_> = watching.iter().filter_map(|one| one.label_selector.clone()).collect();
        // `KEY=VALUE` is a label and a selector; all else is a selector alone.
        let is_label = |one: &&String| one.matches('=').count() == 1 && !one.contains([',', '!', ' ', '(']);
        let label = selectors.iter().find(is_label).cloned();
        let label = label.unwrap_or_else(|| "KEY=VALUE".to_owned());
        Finding::new(
            Severity::Error,
            Cause::NotSelected,
            format!("the object's labels are not those that the operator looks for: {}", list(&selectors)),
            "nobody looks at the object",
            self.kubectl(&format!("label mgc {} {label}", self.name)),
        )
    }

    fn working(&self, operators: &[&Operator], findings: &mut Vec<Finding>) {
        let wanted: Vec<_> = operators.iter().filter(|one| one.wanted_replicas > 0).collect();
        if wanted.len() > 1 {
            let places: Vec<_> = wanted.iter().map(|one| one.place()).collect();
            findings.push(Finding::new(
                Severity::Warning,
                Cause::TwoOperators,
                format!("{} operators look at the object: {}", wanted.len(), list(&places)),
                "each asks for tokens, and they fight over the Secret",
                "give each namespaces of its own (watchNamespaces, shards), or remove one: helm uninstall",
            ));
        }
        // Of one that is not ready, an earlier one, say, that was scaled to nothing, there is nothing to say where another works.
        let is_served = operators.iter().any(|one| one.ready_replicas > 0);
        for operator in operators.iter().filter(|one| one.ready_replicas > 0 || !is_served) {
            if operator.ready_replicas == 0 {
                findings.push(Finding::new(
                    self.grave(),
                    Cause::OperatorNotReady,
                    format!(
                        "the Deployment {} has no ready replica, of {} that are wanted",
                        operator.place(),
                        operator.wanted_replicas
                    ),
                    "nobody asks for tokens",
                    if operator.wanted_replicas == 0 {
                        // Without a Lease two would ask for tokens of their own.
                        let replicas = if operator.lease.is_some() { 2 } else { 1 };
                        format!(
                            "kubectl -n {} scale deployment {} --replicas {replicas}",
                            operator.namespace, operator.name
                        )
                    } else {
                        format!(
                            "kubectl -n {0} describe deployment {1}; kubectl -n {0} logs deployment/{1}",
                            operator.namespace, operator.name
                        )
                    },
                ));
            } else if let Some(why) = operator.leaderless(self.facts.now, self.facts.clocks_differ) {
                findings.push(Finding::new(
                    self.grave(),
                    Cause::NobodyLeads,
                    why,
                    "no replica leads, and those that do not lead ask for no token",
                    format!("kubectl -n {0} logs deployment/{1} | grep -i lease", operator.namespace, operator.name),
                ));
            }
            if let Some(Lookup::Unknown(why)) = operator.lease.as_ref().map(|lease| &lease.held) {
                findings.push(Finding::unchecked("who leads", why));
            }
        }
    }

    fn may_not(&self, operator: &Operator, findings: &mut Vec<Finding>) {
        let account = format!("{}/{}", operator.namespace, operator.service_account);
        let rights = self.facts.rights.iter().filter(|right| right.account == account);
        let (mut missing, mut unknown, mut severity) = (Vec::new(), None, Severity::Warning);
        for right in rights {
            match &right.allowed {
                Lookup::Found(true) => {}
                Lookup::Found(false) | Lookup::Missing => {
                    let place = Some(right.namespace.as_str()).filter(|place| !place.is_empty());
                    missing.push(format!("{} {} in {}", right.verb, right.resource, place.unwrap_or("the cluster")));
                    if !right.is_minor {
                        severity = Severity::Error;
                    }
                }
                Lookup::Unknown(why) => unknown = Some(why),
            }
        }
        if let Some(why) = unknown {
            findings.push(Finding::unchecked(&format!("what the operator's account {account} may do"), why));
        }
        if !missing.is_empty() {
            findings.push(Finding::new(
                severity,
                Cause::OperatorMayNot,
                format!("the operator's account {account} may not {}", missing.join(", ")),
                match severity {
                    Severity::Error => "it cannot read the credentials, write the token, or say what it did",
                    _ => "tokens come; what is missed without it: docs/security.md",
                },
                "helm upgrade the chart with rbac.create=true, or apply docs/rbac for this account",
            ));
        }
    }

    /// Whether anybody has looked at the object as it is now.
    pub(super) fn attention(&self, findings: &mut Vec<Finding>) {
        let metadata = &self.facts.object.metadata;
        let status = self.status();
        let age = |at: Option<jiff::Timestamp>| at.map_or(i64::MAX, |at| self.facts.now.duration_since(at).as_secs());
        if !self.was_seen() {
            if age(created(metadata)) > LOOK_SECS {
                findings.push(Finding::new(
                    Severity::Error,
                    Cause::NeverLookedAt,
                    "no operator has ever looked at the object: it has no status",
                    "no token is asked for",
                    "see above; where nothing is: the operator's log",
                ));
            }
            return;
        }
        if status.observed_generation < metadata.generation && age(changed(metadata)) > LOOK_SECS {
            findings.push(Finding::new(
                self.grave(),
                Cause::StatusBehind,
                format!(
                    "the status is about generation {} of the object, which is at {}",
                    status.observed_generation.unwrap_or_default(),
                    metadata.generation.unwrap_or_default()
                ),
                "the last change of the spec was not looked at",
                "see above; where nothing is: the operator's log",
            ));
        }
        let asked = metadata.annotations.as_ref().and_then(|all| all.get(annotation::REFRESH_REQUESTED));
        let waits = asked.is_some() && asked != status.last_handled_refresh.as_ref();
        if waits && self.failure().is_none() && self.facts.object.spec.suspend != Some(true) {
            // The value is what somebody chose, as the output of date(1).
            let since = requested(metadata).or_else(|| asked.and_then(|value| value.parse().ok()));
            if age(since.or_else(|| changed(metadata))) > ANSWER_SECS {
                findings.push(Finding::new(
                    Severity::Warning,
                    Cause::RefreshUnanswered,
                    "a refresh that was asked for is not answered",
                    "the token is the old one",
                    format!("kubectl moneygo refresh -n {} {}", self.namespace, self.name),
                ));
            }
        }
    }

    pub(super) fn suspension(&self, findings: &mut Vec<Finding>) {
        if self.facts.object.spec.suspend == Some(true) {
            let why = match self.status().expires_at.filter(|_| self.has_token()) {
                Some(at) => {
                    format!("no new token is asked for; the present one ends {}", words::from_now(at, self.facts.now))
                }
                None => "no token is asked for, and there is no valid one".to_owned(),
            };
            findings.push(Finding::new(
                self.grave(),
                Cause::Suspended,
                "spec.suspend is true",
                why,
                format!("kubectl moneygo resume -n {} {}", self.namespace, self.name),
            ));
        }
    }
}

fn created(metadata: &ObjectMeta) -> Option<jiff::Timestamp> {
    metadata.creation_timestamp.as_ref().map(|time| time.0)
}

/// When somebody other than the operator wrote the object last.
fn changed(metadata: &ObjectMeta) -> Option<jiff::Timestamp> {
    let writes = metadata.managed_fields.iter().flatten().filter(|entry| entry.subresource.is_none());
    writes.filter_map(|entry| entry.time.as_ref().map(|time| time.0)).max().or_else(|| created(metadata))
}

/// When whoever owns the refresh annotation wrote the object last.
fn requested(metadata: &ObjectMeta) -> Option<jiff::Timestamp> {
    let annotation = format!("f:{}", annotation::REFRESH_REQUESTED);
    let path = ["f:metadata", "f:annotations", annotation.as_str()];
    let owns = |fields: &FieldsV1| path.iter().try_fold(&fields.0, |at, key| at.get(key)).is_some();
    let writes = metadata.managed_fields.iter().flatten().filter(|entry| entry.fields_v1.as_ref().is_some_and(owns));
    writes.filter_map(|entry| entry.time.as_ref().map(|time| time.0)).max()
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn list_of(names: &[String], one_more: &str) -> String {
    names.iter().map(String::as_str).chain([one_more]).collect::<Vec<_>>().join(",")
}
