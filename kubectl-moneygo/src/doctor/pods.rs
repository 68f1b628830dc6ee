//! How Pods use a Secret. Pure.

use k8s_openapi::api::core::v1::{Container, Pod, Volume};
use kube::ResourceExt as _;

/// More Pods of a namespace are not looked at.
pub const PODS_MAX: usize = 5_000;

/// One way in which one Pod uses one Secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Use {
    pub pod: String,
    pub secret: String,
    pub how: How,
}

/// How.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum How {
    /// As files. `keys` are those that it names, if it does.
    Files { keys: Vec<String>, sub_path: bool, optional: bool },
    /// As an environment variable of one key.
    Variable { name: String, key: String, optional: bool },
    /// As environment variables of all keys.
    AllVariables,
}

/// The uses of Secrets by a Pod that has not ended.
#[must_use]
pub fn uses_of(pod: &Pod) -> Vec<Use> {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let Some(spec) = pod.spec.as_ref().filter(|_| !matches!(phase, Some("Succeeded" | "Failed"))) else {
        return Vec::new();
    };
    let containers: Vec<_> = spec.containers.iter().chain(spec.init_containers.iter().flatten()).collect();
    let files = spec.volumes.iter().flatten().flat_map(|volume| of_volume(volume, &containers));
    let variables = containers.iter().flat_map(|container| of_container(container));
    let pod = pod.name_any();
    files.chain(variables).map(|(secret, how)| Use { pod: pod.clone(), secret, how }).collect()
}

fn of_volume(volume: &Volume, containers: &[&Container]) -> Vec<(String, How)> {
    let mounts: Vec<_> = containers
        .iter()
        .flat_map(|container| container.volume_mounts.iter().flatten())
        .filter(|mount| mount.name == volume.name)
        .collect();
    if mounts.is_empty() {
        return Vec::new();
    }
    let sub_path = mounts.iter().any(|mount| mount.sub_path.is_some() || mount.sub_path_expr.is_some());
    // Of a volume without items, a subPath names a key.
    let named = || mounts.iter().filter_map(|mount| mount.sub_path.clone()).collect::<Vec<_>>();
    let files = |keys: Vec<String>, optional: Option<bool>| How::Files {
        keys: if keys.is_empty() { named() } else { keys },
        sub_path,
        optional: optional.unwrap_or_default(),
    };
    let mut found = Vec::new();
    if let Some(source) = &volume.secret {
        let keys = source.items.iter().flatten().map(|item| item.key.clone()).collect();
        found.extend(source.secret_name.clone().map(|name| (name, files(keys, source.optional))));
    }
    let projected = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    for source in projected.filter_map(|source| source.secret.as_ref()) {
        let keys: Vec<_> = source.items.iter().flatten().map(|item| item.key.clone()).collect();
        // What else is projected may be what the subPath names.
        let how = How::Files { keys, sub_path, optional: source.optional.unwrap_or_default() };
        found.push((source.name.clone(), how));
    }
    found
}

fn of_container(container: &Container) -> Vec<(String, How)> {
    let all = container.env_from.iter().flatten().filter_map(|from| from.secret_ref.as_ref());
    let all = all.map(|reference| (reference.name.clone(), How::AllVariables));
    let one = container.env.iter().flatten().filter_map(|variable| {
        let source = variable.value_from.as_ref()?.secret_key_ref.as_ref()?;
        let (name, key) = (variable.name.clone(), source.key.clone());
        Some((source.name.clone(), How::Variable { name, key, optional: source.optional.unwrap_or_default() }))
    });
    all.chain(one).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "a table of literals reads better")]
    fn uses(spec: Value) -> Vec<How> {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        uses_of(&pod).into_iter().filter(|one| one.secret == "t").map(|one| one.how).collect()
    }

    #[test]
    fn every_use_is_seen() {
        let volume = |volume: Value, mount: Value| json!({"containers": [{"name": "c", "volumeMounts": [mount]}], "volumes": [volume]});
        let mount = json!({"name": "v", "mountPath": "/t"});
        let whole = json!({"name": "v", "secret": {"secretName": "t"}});
        let files = |keys: &[&str], sub_path, optional| {
            vec![How::Files { keys: keys.iter().map(ToString::to_string).collect(), sub_path, optional }]
        };
        assert_eq!(uses(volume(whole.clone(), mount.clone())), files(&[], false, false));
        let sub_path = json!({"name": "v", "mountPath": "/t", "subPath": "k"});
        assert_eq!(uses(volume(whole.clone(), sub_path)), files(&["k"], true, false));
        let items =
            json!({"name": "v", "secret": {"secretName": "t", "optional": true, "items": [{"key": "k", "path": "p"}]}});
        assert_eq!(uses(volume(items, mount.clone())), files(&["k"], false, true));
        let projected =
            json!({"name": "v", "projected": {"sources": [{"secret": {"name": "t"}}, {"secret": {"name": "x"}}]}});
        assert_eq!(uses(volume(projected, mount.clone())), files(&[], false, false));
        assert_eq!(uses(volume(whole, json!({"name": "other", "mountPath": "/t"}))), []);
        let other = json!({"name": "v", "secret": {"secretName": "x"}});
        assert_eq!(uses(volume(other, mount)), []);

        let variable = json!({"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "t", "key": "k"}}});
        let expected = How::Variable { name: "TOKEN".to_owned(), key: "k".to_owned(), optional: false };
        assert_eq!(uses(json!({"containers": [], "initContainers": [{"name": "c", "env": [variable]}]})), [expected]);
        let from = json!({"containers": [{"name": "c", "envFrom": [{"secretRef": {"name": "t"}}]}]});
        assert_eq!(uses(from), [How::AllVariables]);
    }

    #[test]
    fn what_has_ended_uses_nothing() {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "status": {"phase": "Succeeded"},
            "spec": {"containers": [{"name": "c", "envFrom": [{"secretRef": {"name": "t"}}]}]}});
        assert_eq!(uses_of(&serde_json::from_value(pod).unwrap()), []);
    }
}
