//! What a person sees and what is run for them.

use std::{
    env,
    ffi::OsStr,
    io::{IsTerminal, stdout},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::checkout;

/// Prints what begins now, in bold on a terminal.
pub fn heading(text: &str) {
    println!("{}", bold(&format!("==> {text}")));
}

/// The text in bold, if standard output is a terminal that may be coloured (<https://no-color.org>).
pub fn bold(text: &str) -> String {
    styled(text, "1")
}

/// The text in red, under the same condition.
pub fn red(text: &str) -> String {
    styled(text, "31")
}

fn styled(text: &str, style: &str) -> String {
    if stdout().is_terminal() && env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()) {
        return format!("\x1b[{style}m{text}\x1b[0m");
    }
    text.to_owned()
}

/// A duration as people read it: `7.2 s`, `12 min 7 s`.
pub fn time(elapsed: Duration) -> String {
    let secs = elapsed.as_secs();
    if secs < 60 {
        return format!("{:.1} s", elapsed.as_secs_f32());
    }
    format!("{} min {} s", secs / 60, secs % 60)
}

/// Cargo, in the checkout, as if called by hand.
///
/// Without the variables of the `cargo run` that started this process: build scripts look at them, and what was compiled
/// by hand would be compiled again.
pub fn cargo(checkout: &Path) -> Command {
    plain(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()), checkout)
}

/// Where cargo puts what it builds of this checkout.
pub fn target_folder() -> PathBuf {
    let set = env::var_os("CARGO_TARGET_DIR").filter(|folder| !folder.is_empty());
    checkout().join(set.map_or_else(|| "target".into(), PathBuf::from))
}

/// Any program, in the checkout, without the variables of the `cargo run` that started this process.
pub fn plain(program: impl AsRef<OsStr>, checkout: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command.current_dir(checkout);
    command
}

/// A number of bytes in MiB.
#[expect(clippy::cast_precision_loss, reason = "it is shown with a decimal or two")]
pub fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        assert_eq!(time(Duration::from_millis(7_230)), "7.2 s");
        assert_eq!(time(Duration::from_secs(727)), "12 min 7 s");
    }
}
