//! Other programs, each with a limit to its time; they end with whoever waits for them.

use std::{
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

/// A command of the user's, with one more argument.
pub fn shell(command: &str, argument: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{command} \"$1\""), "sh", argument]);
    shell
}

/// Runs it, and returns what it printed. Where it fails, the error is what it complained about.
pub async fn printed(command: &mut Command, limit: Duration) -> anyhow::Result<String> {
    fed(command, "", limit).await
}

/// The same, with something to read on its standard input.
pub async fn fed(command: &mut Command, input: &str, limit: Duration) -> anyhow::Result<String> {
    let name = name(command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().with_context(|| format!("cannot run {name}"))?;
    let mut stdin = child.stdin.take().with_context(|| format!("{name} has no input"))?;
    let whole = async {
        // It may have ended without reading it all, and says why itself.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        child.wait_with_output().await
    };
    let output =
        timeout(limit, whole).await.with_context(|| format!("{name} did not end in {} s", limit.as_secs()))??;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    bail!("{name}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())
}

/// Runs it, with its output where ours goes.
pub async fn shown(command: &mut Command, limit: Duration) -> anyhow::Result<ExitStatus> {
    let name = name(command);
    let mut child = command.stdin(Stdio::null()).kill_on_drop(true).spawn();
    let child = child.as_mut().map_err(|error| anyhow::anyhow!("cannot run {name}: {error}"))?;
    Ok(timeout(limit, child.wait()).await.with_context(|| format!("{name} did not end in {} s", limit.as_secs()))??)
}

fn name(command: &Command) -> String {
    command.as_std().get_program().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_users_command_gets_one_more_argument() -> anyhow::Result<()> {
        assert_eq!(printed(&mut shell("echo a", "b  c"), LIMIT).await?, "a b  c\n");
        assert_eq!(fed(&mut shell("cat", "-"), "fed", LIMIT).await?, "fed");
        Ok(())
    }

    #[tokio::test]
    async fn failures_say_why() -> anyhow::Result<()> {
        let failed = printed(&mut shell("echo why >&2; exit 3;", ""), LIMIT).await;
        let said = failed.map_or_else(|error| error.to_string(), |_| String::new());
        assert!(said.contains("exit status: 3") && said.ends_with("why"), "{said}");
        let late = printed(&mut shell("sleep 60; echo", ""), Duration::from_millis(10)).await;
        assert!(late.is_err());
        Ok(())
    }
}
