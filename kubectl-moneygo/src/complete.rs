//! Completion: a script for each shell, and what kubectl asks a plugin for.

use std::time::Duration;

use clap::CommandFactory as _;

use crate::Verdict;
use crate::args::{Args, ClusterArgs};
use crate::cluster::Cluster;
use crate::status::print;

/// Nobody waits longer for the names of objects.
const NAMES_LIMIT: Duration = Duration::from_secs(2);
/// What takes the name of an object.
const NAMED: [&str; 6] = ["status", "refresh", "suspend", "resume", "doctor", "check"];

/// Prints the script for a shell, for a binary called by its own name.
pub fn script(shell: clap_complete::Shell) -> anyhow::Result<Verdict> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "kubectl-moneygo", &mut script);
    print(&String::from_utf8(script)?)?;
    Ok(Verdict::Well)
}

/// Prints the completions of the last word, one a line, and `:4`: no file names (cobra's `ShellCompDirectiveNoFileComp`).
pub async fn words(args: &ClusterArgs, words: &[String]) -> anyhow::Result<Verdict> {
    let (last, before) = words.split_last().map_or(("", &[][..]), |(last, before)| (last.as_str(), before));
    let mut found = commands_and_flags(last, before);
    let command = before.iter().find(|word| NAMED.contains(&word.as_str()));
    if command.is_some() && !last.starts_with('-') {
        found.extend(names(args, before).await);
    }
    found.retain(|word| word.starts_with(last));
    found.push(":4".to_owned());
    print(&(found.join("\n") + "\n"))?;
    Ok(Verdict::Well)
}

fn commands_and_flags(last: &str, before: &[String]) -> Vec<String> {
    let root = Args::command();
    let sub = before.iter().find_map(|word| root.find_subcommand(word));
    if last.starts_with('-') {
        let flags = root.get_arguments().chain(sub.into_iter().flat_map(clap::Command::get_arguments));
        return flags.filter_map(|flag| flag.get_long()).map(|flag| format!("--{flag}")).collect();
    }
    match sub {
        Some(_) => Vec::new(),
        None => root.get_subcommands().filter(|sub| !sub.is_hide_set()).map(|sub| sub.get_name().to_owned()).collect(),
    }
}

/// Where they cannot be had, there are none.
async fn names(args: &ClusterArgs, before: &[String]) -> Vec<String> {
    let value = |long: &str, short: Option<&str>| {
        let at = before.iter().position(|word| word == long || Some(word.as_str()) == short)?;
        before.get(at + 1).cloned()
    };
    let args = ClusterArgs {
        kubeconfig: value("--kubeconfig", None).map(Into::into).or_else(|| args.kubeconfig.clone()),
        context: value("--context", None).or_else(|| args.context.clone()),
        namespace: value("--namespace", Some("-n")).or_else(|| args.namespace.clone()),
        all_namespaces: false,
    };
    let asking = async { Cluster::connect(&args).await?.find(None, None).await };
    let found = tokio::time::timeout(NAMES_LIMIT, asking).await;
    found.ok().and_then(Result::ok).unwrap_or_default().iter().map(kube::ResourceExt::name_any).collect()
}

/// Prints the version.
pub fn version() -> anyhow::Result<Verdict> {
    print(&format!("kubectl-moneygo {}\n", env!("CARGO_PKG_VERSION")))?;
    Ok(Verdict::Well)
}
