//! The command `check`: one grant, from here, with the operator's own client of the endpoint.

mod endpoint;

use std::io::{Read as _, Write as _};
use std::path::Path;

use anyhow::{Context as _, anyhow, bail};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt as _};
use moneygo_operator::clock::Clock;
use moneygo_operator::crd::{CLIENT_ID_KEY, CLIENT_SECRET_KEY, SCOPE};
use moneygo_operator::token::{
    AccessToken, ClientCredentials, Grant, LifetimeSource, TokenClient, TokenClientConfig, TokenError,
};

use crate::args::{CheckArgs, ClusterArgs};
use crate::cluster::{self, Cluster};
use crate::doctor::facts::KeyState;
use crate::terminal::{Colour, Look, tell};
use crate::{Verdict, words};
use endpoint::Endpoint;

/// Where the client secret may come from, beside a file and a Secret.
const SECRET_VARIABLE: &str = "MONEYGO_CLIENT_SECRET";
/// The longest client secret that is read.
const SECRET_BYTES_MAX: u64 = 64 * 1024;
/// No more of a token is shown, and nothing of one that is not much longer.
const SHOWN: usize = 4;

/// What is tried.
struct Trial {
    credentials: ClientCredentials,
    scope: String,
    /// In words.
    source: String,
    endpoint: Endpoint,
}

/// Tries the grant.
pub async fn run(args: &ClusterArgs, wanted: &CheckArgs) -> anyhow::Result<Verdict> {
    let look = Look::of_stderr();
    let trial = match trial(args, wanted).await? {
        Ok(trial) => trial,
        Err(unusable) => return Ok(refuse(look, &unusable)),
    };
    let config = TokenClientConfig {
        url: trial.endpoint.url.clone(),
        allow_insecure: wanted.allow_insecure_token_url,
        ca_file: wanted.token_ca_file.clone(),
        timeout: wanted.token_timeout,
    };
    let client = TokenClient::new(&config, Clock::SYSTEM).with_context(|| trial.endpoint.whose.clone())?;
    if let Some(warning) = &trial.endpoint.warning {
        tell(&look.paint(Colour::Doubtful, "warning:"), warning);
    }
    tell(
        "",
        &format!("Asking {} for a token with {}, scope \"{}\".", trial.endpoint.words(), trial.source, trial.scope),
    );
    match client.request(&trial.credentials, &trial.scope).await {
        Ok(grant) => {
            let (good, _) = look.either(("✓", ""), ("ok", ""));
            tell(&look.paint(Colour::Good, good), &granted(&grant));
            if wanted.show_token {
                show(&grant.token)?;
            }
            Ok(Verdict::Well)
        }
        Err(error) => Ok(refuse(look, &with_advice(&error))),
    }
}

fn refuse(look: Look, why: &str) -> Verdict {
    let bad = look.either("✗", "FAILED");
    tell(&look.paint(Colour::Bad, bad), why);
    Verdict::Unwell
}

/// To standard output alone: what was asked for.
fn show(token: &AccessToken) -> anyhow::Result<()> {
    let mut output = std::io::stdout().lock();
    output.write_all(token.expose().as_bytes())?;
    output.write_all(b"\n")?;
    Ok(output.flush()?)
}

fn granted(grant: &Grant) -> String {
    let length = words::length_of(grant.lifetime.length);
    let secs = grant.lifetime.length.as_secs();
    let source = match grant.lifetime.source {
        LifetimeSource::Stated => "",
        LifetimeSource::Assumed => " (assumed: the answer states no expires_in)",
        LifetimeSource::Capped => " (cut: the answer states more)",
    };
    format!("a token came: {}, expires_in {secs} s, which is {length}{source}", masked(grant.token.expose()))
}

/// Its beginning, where that tells little of the whole, and its length.
fn masked(token: &str) -> String {
    let beginning = if token.len() >= 8 * SHOWN { &token[..SHOWN] } else { "" };
    format!("{beginning}… ({} characters)", token.len())
}

fn with_advice(error: &TokenError) -> String {
    let advice = match error {
        TokenError::Rejected { .. } | TokenError::BadResponse { .. } => "",
        TokenError::RateLimited { .. } => ". Wait, and try again",
        TokenError::Unavailable { .. } => ". This is seen from here: the operator may reach it by another way",
    };
    format!("no token: {error}{advice}")
}

/// The inner error is what is wrong with the credentials, for people; the outer, that they could not be read.
async fn trial(args: &ClusterArgs, wanted: &CheckArgs) -> anyhow::Result<Result<Trial, String>> {
    if let Some(id) = &wanted.client_id {
        let secret = given_secret(wanted.client_secret_file.as_deref())?;
        let scope = wanted.scope.clone().unwrap_or_else(|| SCOPE.to_owned());
        let credentials = ClientCredentials::new(id.clone(), secret);
        let endpoint = Endpoint::given(wanted.token_url.as_deref());
        return Ok(Ok(Trial { credentials, scope, source: "the client that was given".to_owned(), endpoint }));
    }
    let cluster = Cluster::connect(args).await?;
    if cluster.everywhere {
        bail!("a name belongs to one namespace: give -n");
    }
    let (name, id_key, secret_key, scope) = match (&wanted.from_secret, &wanted.name) {
        (Some(secret), _) => {
            (secret.clone(), wanted.client_id_key.clone(), wanted.client_secret_key.clone(), SCOPE.to_owned())
        }
        (None, name) => {
            let found = cluster.find(name.as_deref(), None).await?;
            let object = found.first().context("there is no such MoneyGoCredential")?;
            let reference = object.spec.credentials_ref.clone();
            let scope = object.spec.scope.clone().unwrap_or_else(|| SCOPE.to_owned());
            let id_key = reference.client_id_key.unwrap_or_else(|| CLIENT_ID_KEY.to_owned());
            let secret_key = reference.client_secret_key.unwrap_or_else(|| CLIENT_SECRET_KEY.to_owned());
            (reference.name, id_key, secret_key, scope)
        }
    };
    let scope = wanted.scope.clone().unwrap_or(scope);
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let secret = secrets.get_opt(&name).await;
    let secret =
        secret.map_err(|error| cluster::explain(&format!("read the Secret {}/{name}", cluster.namespace), &error))?;
    let Some(secret) = secret else {
        return Ok(Err(format!(
            "there is no Secret \"{name}\" in namespace {}: create it, with the keys \"{id_key}\" and \"{secret_key}\"",
            cluster.namespace
        )));
    };
    let values = value(&secret, &id_key).and_then(|id| Ok((id, value(&secret, &secret_key)?)));
    let source = format!("the client in the Secret \"{name}\"");
    let (id, secret) = match values {
        Ok(values) => values,
        Err(unusable) => return Ok(Err(unusable)),
    };
    let endpoint = match &wanted.token_url {
        Some(url) => Endpoint::given(Some(url)),
        None => Endpoint::of_operators(&cluster, wanted.operator.operator_namespace.as_deref()).await?,
    };
    Ok(Ok(Trial { credentials: ClientCredentials::new(id, secret), scope, source, endpoint }))
}

/// As the operator takes it: text, with no white space at an end.
fn value(secret: &Secret, key: &str) -> Result<String, String> {
    let name = secret.name_any();
    match KeyState::of(secret, key) {
        KeyState::Good => {
            let bytes = secret.data.as_ref().and_then(|data| data.get(key)).map(|value| value.0.clone());
            String::from_utf8(bytes.unwrap_or_default()).map_err(|_| format!("\"{key}\" is not text"))
        }
        wrong => Err(format!("the Secret \"{name}\": its key \"{key}\" {}", wrong.words())),
    }
}

fn given_secret(file: Option<&Path>) -> anyhow::Result<String> {
    let text = match file {
        Some(path) if path == Path::new("-") => whole(std::io::stdin()).context("cannot read standard input")?,
        Some(path) => {
            let unreadable = || format!("cannot read {}", path.display());
            whole(std::fs::File::open(path).with_context(unreadable)?).with_context(unreadable)?
        }
        None => std::env::var(SECRET_VARIABLE).map_err(|_| {
            anyhow!("there is no client secret: give --client-secret-file FILE (- for standard input), or set {SECRET_VARIABLE}")
        })?,
    };
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() {
        bail!("the client secret is empty");
    }
    Ok(line.to_owned())
}

/// All of it, or nothing: half a client secret is a wrong one.
fn whole(source: impl std::io::Read) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    source.take(SECRET_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > SECRET_BYTES_MAX {
        bail!("it is longer than {} KiB: that is no client secret", SECRET_BYTES_MAX / 1024);
    }
    // The error would hold the bytes.
    String::from_utf8(bytes).map_err(|_| anyhow!("it is not UTF-8 text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_of_a_token_is_shown() {
        assert_eq!(masked(&"abcdefgh".repeat(4)), "abcd… (32 characters)");
        assert_eq!(masked(&"a".repeat(31)), "… (31 characters)");
    }

    #[test]
    fn a_client_secret_is_read_whole_or_not_at_all() {
        let longest = "a".repeat(64 * 1024);
        assert_eq!(whole(longest.as_bytes()).unwrap(), longest);
        assert!(whole(format!("{longest}a").as_bytes()).unwrap_err().to_string().contains("64 KiB"));
        assert!(whole(&b"\xff"[..]).unwrap_err().to_string().contains("UTF-8"));
    }
}
