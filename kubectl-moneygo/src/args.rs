//! The command line.

#![allow(clippy::doc_markdown, reason = "the help is read on a terminal")]

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as Group, Parser, Subcommand, ValueEnum};

/// See Money-Go tokens, refresh them, and find out what is wrong with them.
///
/// Uses your kubeconfig and your rights. Never prints a token or a client secret, but for `check --show-token`.
///
/// Exit codes: 0 all is well; 1 something is not, or what was asked for did not come about; 2 it could not be found out
/// or done (no cluster, no right, a wrong flag).
#[derive(Debug, Parser)]
#[command(name = "kubectl-moneygo", bin_name = "kubectl moneygo", version, max_term_width = 100)]
pub struct Args {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    #[command(subcommand)]
    pub command: Command,
}

/// Which cluster, and which namespace of it: as kubectl has it.
#[derive(Debug, Clone, Group)]
pub struct ClusterArgs {
    /// The kubeconfig file; that of KUBECONFIG, or ~/.kube/config, where it is not given.
    #[arg(long, global = true, value_name = "FILE", help_heading = "Cluster")]
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig.
    #[arg(long, global = true, value_name = "NAME", help_heading = "Cluster")]
    pub context: Option<String>,
    /// The namespace; the context's where it is not given.
    #[arg(long, short, global = true, value_name = "NAMESPACE", help_heading = "Cluster")]
    pub namespace: Option<String>,
    /// All namespaces.
    #[arg(long, short = 'A', global = true, conflicts_with = "namespace", help_heading = "Cluster")]
    pub all_namespaces: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show each token's life: issued, now, refresh, expiry.
    ///
    /// Exit code 1 where an object has no valid token.
    Status(StatusArgs),
    /// Ask for new tokens now, wait for them, and say what came of it.
    ///
    /// Exit code 1 where one did not come.
    Refresh(RefreshArgs),
    /// Ask for no new token until `resume`. The token that is there stays.
    Suspend(Which),
    /// Ask for tokens again after `suspend`.
    Resume(Which),
    /// Find out what is wrong, from the credentials to the Pods that use the token, and what to do.
    ///
    /// Exit code 1 where something is: a finding of severity error.
    Doctor(DoctorArgs),
    /// Ask for a token once, from here, with the operator's own client of the endpoint.
    ///
    /// The token is thrown away. A provider that revokes the last token on a new grant revokes the one in use: then
    /// `refresh` afterwards. The client secret is read from a file, from standard input, from an environment variable
    /// or from a Secret; it is never an argument. Exit code 1 where no token came.
    Check(CheckArgs),
    /// Print a completion script for a shell.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// What `kubectl_complete-moneygo` calls: the completions of the last word, as kubectl reads them.
    #[command(name = "__complete", hide = true)]
    Complete {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Print the version.
    Version,
}

#[derive(Debug, Group)]
pub struct StatusArgs {
    /// The object; all of the namespace where it is not given.
    pub name: Option<String>,
    /// Those with these labels.
    #[arg(long, short = 'l', value_name = "SELECTOR", conflicts_with = "name")]
    pub selector: Option<String>,
    /// More columns, or a form for programs.
    #[arg(long, short, value_enum)]
    pub output: Option<Output>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For programs.
    Json,
    /// For programs.
    Yaml,
    /// More columns.
    Wide,
}

/// Which objects: by name, all of the namespace, or by label.
#[derive(Debug, Group)]
#[group(id = "which")]
pub struct Which {
    /// The objects.
    #[arg(required_unless_present_any = ["all", "selector"])]
    pub names: Vec<String>,
    /// All of the namespace, or with -A of the cluster.
    #[arg(long, conflicts_with = "names")]
    pub all: bool,
    /// Those with these labels.
    #[arg(long, short = 'l', value_name = "SELECTOR", conflicts_with_all = ["names", "all"])]
    pub selector: Option<String>,
}

#[derive(Debug, Group)]
pub struct RefreshArgs {
    #[command(flatten)]
    pub which: Which,
    /// How long to wait for the answers, as in 30s or 2m; 1m and a second more for each 10 objects where it is not given.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
    #[command(flatten)]
    pub operator: OperatorArgs,
}

/// Where the operator is.
#[derive(Debug, Clone, Group)]
pub struct OperatorArgs {
    /// The operator's namespace; looked for in all where it is not given.
    #[arg(long, value_name = "NAMESPACE", help_heading = "Operator")]
    pub operator_namespace: Option<String>,
}

#[derive(Debug, Group)]
pub struct DoctorArgs {
    /// The object; all of the namespace where it is not given.
    pub name: Option<String>,
    /// A form for programs.
    #[arg(long, short, value_enum)]
    pub output: Option<ReportOutput>,
    #[command(flatten)]
    pub operator: OperatorArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReportOutput {
    /// For programs.
    Json,
    /// For programs.
    Yaml,
}

#[derive(Debug, Group)]
pub struct CheckArgs {
    /// The object whose credentials and scope are tried.
    #[arg(conflicts_with_all = ["client_id", "from_secret"], required_unless_present_any = ["client_id", "from_secret"])]
    pub name: Option<String>,
    /// The client id to try. Its secret comes from --client-secret-file or MONEYGO_CLIENT_SECRET.
    #[arg(long, value_name = "ID", conflicts_with = "from_secret")]
    pub client_id: Option<String>,
    /// The file with the client secret; - is standard input. One newline at its end is not part of it.
    #[arg(long, value_name = "FILE", requires = "client_id")]
    pub client_secret_file: Option<PathBuf>,
    /// The Secret to take the client id and secret from.
    #[arg(long, value_name = "NAME")]
    pub from_secret: Option<String>,
    /// Its key of the client id.
    #[arg(long, value_name = "KEY", default_value = "client_id", requires = "from_secret")]
    pub client_id_key: String,
    /// Its key of the client secret.
    #[arg(long, value_name = "KEY", default_value = "client_secret", requires = "from_secret")]
    pub client_secret_key: String,
    /// The scope to ask for; the object's, or api, where it is not given.
    #[arg(long)]
    pub scope: Option<String>,
    /// Where the token is asked for. Of an object or a Secret, where the operator's Deployment asks; else, and where
    /// there is no such Deployment, `https://api.money-go.com/token`.
    #[arg(long, value_name = "URL", env = "MONEYGO_TOKEN_URL", hide_env_values = true)]
    pub token_url: Option<String>,
    /// Accept a plain http URL on any host. The client secret then crosses the network in the clear.
    #[arg(long)]
    pub allow_insecure_token_url: bool,
    /// PEM file of certificate authorities to trust besides the usual ones.
    #[arg(long, value_name = "FILE", env = "MONEYGO_TOKEN_CA_FILE")]
    pub token_ca_file: Option<PathBuf>,
    /// How long the request may take in all, as in 10s.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    pub token_timeout: Duration,
    /// Print the token alone on standard output, in the clear.
    #[arg(long)]
    pub show_token: bool,
    #[command(flatten)]
    pub operator: OperatorArgs,
}

/// The longest that is waited for anything.
const DURATION_MAX: Duration = Duration::from_hours(1);

fn parse_duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let secs_each = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err("write a number and s, m or h, as in 30s".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "write a number and s, m or h, as in 30s".to_owned())?;
    let duration = Duration::from_secs(number.saturating_mul(secs_each));
    if (Duration::from_secs(1)..=DURATION_MAX).contains(&duration) {
        Ok(duration)
    } else {
        Err("must be from 1s to 1h".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_mins(2)));
        for bad in ["", "5", "s", "0s", "2h", "-1s", "1d", "99999999999999999999s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_client_secret_is_no_argument() {
        let command = Args::command();
        let check = command.find_subcommand("check").unwrap();
        assert!(check.get_arguments().all(|argument| argument.get_long() != Some("client-secret")));
    }

    #[test]
    fn what_is_meant_must_be_said() {
        for bad in [
            &["refresh"][..],
            &["refresh", "a", "--all"],
            &["suspend", "--all", "-l", "a=b"],
            &["check"],
            &["check", "a", "--client-id", "b"],
            &["status", "-A", "-n", "x"],
        ] {
            assert!(Args::try_parse_from(["x"].iter().chain(bad)).is_err(), "{bad:?}");
        }
        for good in [&["refresh", "a", "b"][..], &["-n", "x", "resume", "--all"], &["status", "-A", "-o", "wide"]] {
            assert!(Args::try_parse_from(["x"].iter().chain(good)).is_ok(), "{good:?}");
        }
    }
}
