//! Processes and a folder that do not outlive this process, even if it is killed.

use std::ffi::OsStr;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf, absolute};
use std::process::{Child, Command, Stdio};

/// Waits until its standard input closes, kills the process group `$1` and removes the folder `$2`.
///
/// A process that is being killed may still create a file while its folder is removed, hence the loop.
const SWEEPER: &str = r#"
trap '' HUP INT TERM
read -r _
kill -s KILL -- "-$1" 2>/dev/null
tries=100
until rm -rf -- "$2" 2>/dev/null || [ "$tries" -eq 0 ]; do
    tries=$((tries - 1))
    sleep 0.1
done
"#;

/// Ties processes and a folder to the life of this process.
///
/// Two shells in process groups of their own (Ctrl-C in a terminal does not reach them) hold a pipe to this process. Only
/// the kernel needs to notice that this process has ended, whether it returned, panicked or was sent SIGKILL: it closes the
/// pipes, and the second shell kills all that was tied and removes the folder. Tied processes share the first shell's
/// group, which they join before they run, so there is no moment at which one could escape.
pub struct Leash {
    folder: PathBuf,
    group: Child,
    sweeper: Child,
}

impl Leash {
    /// Creates `folder`, readable by this user alone, and whatever it takes to remove it again.
    ///
    /// # Errors
    /// If there is no `sh`, or if the folder exists or cannot be created.
    pub fn new(folder: PathBuf) -> io::Result<Self> {
        let folder = absolute(folder)?;
        let group = until_end_of_input("read -r _", &[])?;
        let sweeper = until_end_of_input(SWEEPER, &[group.id().to_string().as_ref(), folder.as_ref()])?;
        // Only now: the sweeper must be there before there is something to sweep.
        let leash = Self { folder, group, sweeper };
        DirBuilder::new().mode(0o700).create(&leash.folder)?;
        Ok(leash)
    }

    /// The folder that is removed in the end.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes a process, and those that it starts, end with this process or with the leash.
    ///
    /// It will be killed, not asked to stop: stop it yourself where it has something to finish.
    pub fn tie<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.process_group(self.group.id().cast_signed())
    }

    fn sweep(&mut self) -> io::Result<()> {
        drop(self.sweeper.stdin.take());
        self.sweeper.wait()?;
        drop(self.group.stdin.take());
        self.group.wait()?;
        Ok(())
    }
}

impl Drop for Leash {
    /// Kills what is tied, removes the folder, and returns when both are done.
    fn drop(&mut self) {
        let _ = self.sweep();
    }
}

fn until_end_of_input(script: &str, arguments: &[&OsStr]) -> io::Result<Child> {
    Command::new("/bin/sh")
        .args(["-c", script, "moneygo-controlplane-leash"])
        .args(arguments)
        // The folder of the caller may go away or be on a disk that is to be unmounted.
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::piped())
        // Whoever reads our output to its end must not wait for these.
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}
