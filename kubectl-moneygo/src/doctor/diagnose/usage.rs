//! The Pods that use the token.

use std::collections::BTreeSet;

use moneygo_operator::crd::Resolved;

use super::Walk;
use crate::doctor::facts::Lookup;
use crate::doctor::finding::{Cause, Finding, Severity};
use crate::doctor::pods::{How, PODS_MAX, Use};

/// So many Pods are named; of the rest, their number.
const NAMED: usize = 3;

impl Walk<'_> {
    pub(super) fn pods(&self, spec: &Resolved, findings: &mut Vec<Finding>) {
        let uses = match &self.facts.uses {
            Lookup::Unknown(why) => return findings.push(Finding::unchecked("the Pods that use the token", why)),
            Lookup::Missing => return,
            Lookup::Found(uses) => uses,
        };
        let (token, client): (Vec<_>, Vec<_>) = uses.iter().partition(|one| one.secret == spec.target);
        self.missing_keys(spec, &token, findings);
        if let Some(pods) = named(client.iter().copied()) {
            findings.push(Finding::new(
                Severity::Warning,
                Cause::PodUsesCredentials,
                format!("{pods} uses the credentials Secret \"{}\"", spec.credentials),
                "a Pod needs the token alone: whoever breaks into it gets the client secret, and keeps it",
                format!("let it use the Secret \"{}\"", spec.target),
            ));
        }
        let by_sub_path = token.iter().filter(|one| matches!(one.how, How::Files { sub_path: true, .. }));
        if let Some(pods) = named(by_sub_path.copied()) {
            findings.push(Finding::new(
                Severity::Warning,
                Cause::PodSubPath,
                format!("{pods} mounts the token by subPath"),
                "the kubelet never replaces such a file: after the first token's end, calls get 401 until the Pod is restarted",
                "mount the whole volume at a folder, and read the file in it",
            ));
        }
        let by_variable = token.iter().filter(|one| matches!(one.how, How::Variable { .. } | How::AllVariables));
        if let Some(pods) = named(by_variable.copied()) {
            findings.push(Finding::new(
                Severity::Warning,
                Cause::PodVariable,
                format!("{pods} has the token in an environment variable"),
                "it keeps the token that it started with: after that one's end, calls get 401",
                "mount the Secret as files, or let a reloader restart the Pod: its annotation goes into spec.target.annotations",
            ));
        }
        if self.facts.pods_left_out {
            let why = format!("the namespace has more than {PODS_MAX}: whether one of them uses the token is unknown");
            findings.push(Finding::unchecked("all Pods", &why));
        } else if token.is_empty() {
            findings.push(Finding::new(
                Severity::Note,
                Cause::NoPodUses,
                format!("no Pod uses the Secret \"{}\"", spec.target),
                "a token that nobody uses is still refreshed",
                format!(
                    "volumes: [{{name: token, secret: {{secretName: {}}}}}] in the Pod, and a volumeMount",
                    spec.target
                ),
            ));
        }
    }

    /// A Pod that names a key which is not there does not start.
    fn missing_keys(&self, spec: &Resolved, uses: &[&Use], findings: &mut Vec<Finding>) {
        // Those that will be there, where they are not yet.
        let written = [Some(&spec.access_token_key), spec.authorization_key.as_ref(), spec.expires_at_key.as_ref()];
        let written = written.into_iter().flatten();
        let there = self.facts.target.found().into_iter().flat_map(|target| target.keys.keys());
        let known: BTreeSet<_> = written.chain(there).map(String::as_str).collect();
        if matches!(self.facts.target, Lookup::Unknown(_)) {
            return;
        }
        let mut absent: BTreeSet<&str> = BTreeSet::new();
        let mut pods = Vec::new();
        // The kubelet makes a folder of a subPath that is not there.
        let mut all_by_sub_path = true;
        for one in uses {
            let lacking: Vec<_> = needed(&one.how).filter(|key| !known.contains(key)).collect();
            if !lacking.is_empty() {
                absent.extend(lacking);
                all_by_sub_path &= matches!(one.how, How::Files { sub_path: true, .. });
                pods.push(*one);
            }
        }
        if let Some(pods) = named(pods.into_iter()) {
            let keys =
                |keys: &BTreeSet<&str>| keys.iter().map(|key| format!("\"{key}\"")).collect::<Vec<_>>().join(", ");
            findings.push(Finding::new(
                Severity::Error,
                Cause::PodKeyMissing,
                format!(
                    "{pods} names the key {} of the Secret \"{}\", which it does not have",
                    keys(&absent),
                    spec.target
                ),
                if all_by_sub_path { "in its place is an empty folder" } else { "the Pod does not start" },
                format!("name one of {} there, or set spec.target.accessTokenKey or authorizationKey", keys(&known)),
            ));
        }
    }
}

/// The keys without which a Pod does not start.
fn needed(how: &How) -> impl Iterator<Item = &str> {
    let (files, variable) = match how {
        How::Files { keys, optional: false, .. } => (keys.as_slice(), None),
        How::Variable { key, optional: false, .. } => (&[][..], Some(key.as_str())),
        _ => (&[][..], None),
    };
    files.iter().map(String::as_str).chain(variable)
}

/// `the Pod "a"`, `the Pods "a", "b"`, and of many the first and how many more. None where there is none.
fn named<'a>(uses: impl Iterator<Item = &'a Use>) -> Option<String> {
    let pods: BTreeSet<_> = uses.map(|one| one.pod.as_str()).collect();
    let first: Vec<_> = pods.iter().take(NAMED).map(|pod| format!("\"{pod}\"")).collect();
    match pods.len() {
        0 => None,
        1 => Some(format!("the Pod {}", first.join(", "))),
        number if number <= NAMED => Some(format!("each of the Pods {}", first.join(", "))),
        number => Some(format!("each of the Pods {} and {} more", first.join(", "), number - NAMED)),
    }
}
