//! How much memory the operator has in its Pods.

use std::{fmt, fs, path::Path};

use anyhow::Context;
use serde_json::Value;

use super::cluster::Cluster;
use crate::terminal::mebibytes;

/// Of one Pod's container.
pub struct Memory {
    /// What counts against the container's limit, in the kubelet's words.
    working_set_bytes: u64,
    /// `VmRSS` of proc(5), the pages of the binary included; `None` where the Pod's node is another machine.
    resident_bytes: Option<u64>,
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} (", mebibytes(self.working_set_bytes))?;
        match self.resident_bytes {
            Some(bytes) => write!(f, "{:.1})", mebibytes(bytes)),
            None => f.write_str("not to be seen from here)"),
        }
    }
}

/// Asks the kubelets, and looks for the processes on this machine.
pub async fn of_pods(cluster: &Cluster, pods: &[Value]) -> anyhow::Result<Vec<Memory>> {
    let mut found = Vec::new();
    for pod in pods {
        let node = pod["spec"]["nodeName"].as_str().context("a Pod has no node")?;
        let uid = pod["metadata"]["uid"].as_str().context("a Pod has no uid")?;
        let stats = cluster.raw(&format!("/api/v1/nodes/{node}/proxy/stats/summary")).await?;
        let all = stats["pods"].as_array().context("the kubelet tells of no Pods")?;
        let stats = all.iter().find(|stats| stats["podRef"]["uid"] == uid);
        let memory = &stats.context("the kubelet does not tell of the Pod")?["containers"][0]["memory"];
        let working_set_bytes =
            memory["workingSetBytes"].as_u64().context("the kubelet does not tell of its memory")?;
        found.push(Memory { working_set_bytes, resident_bytes: resident_bytes(uid) });
    }
    Ok(found)
}

/// Of the operator's process in that Pod.
fn resident_bytes(pod_uid: &str) -> Option<u64> {
    // As kubelets of either cgroup driver write it.
    let uids = [pod_uid.to_owned(), pod_uid.replace('-', "_")];
    let is_ours = |process: &Path| {
        let read = |file| fs::read_to_string(process.join(file)).unwrap_or_default();
        let cgroup = read("cgroup");
        uids.iter().any(|uid| cgroup.contains(uid)) && read("cmdline").starts_with("/moneygo-operator")
    };
    let process =
        fs::read_dir("/proc").ok()?.filter_map(|entry| Some(entry.ok()?.path())).find(|path| is_ours(path))?;
    let status = fs::read_to_string(process.join("status")).ok()?;
    let kibibytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"))?;
    Some(kibibytes.trim().parse::<u64>().ok()? * 1024)
}
