//! Where a token is asked for: the client secret goes there, so that it is the operator's own endpoint and no guess.

use std::collections::BTreeSet;

use anyhow::bail;
use futures::future::join_all;

use crate::cluster::Cluster;
use crate::doctor::facts::Lookup;
use crate::doctor::gather;
use crate::doctor::operators::{self, DEFAULT_TOKEN_URL, LABELS, Operator};

const GIVE: &str = "give --token-url URL";

/// A URL, and who named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub url: String,
    /// In words: whose URL it is.
    pub whose: String,
    /// What makes it doubtful.
    pub warning: Option<String>,
}

impl Endpoint {
    /// What the flag or its variable says, else the default.
    pub fn given(url: Option<&str>) -> Self {
        let whose = if url.is_some() { "as --token-url says" } else { "the default" };
        Self { url: url.unwrap_or(DEFAULT_TOKEN_URL).to_owned(), whose: whose.to_owned(), warning: None }
    }

    /// Where the operator asks that works for the namespace that is looked at.
    ///
    /// # Errors
    /// If that cannot be told for certain, though there may be an operator.
    pub async fn of_operators(cluster: &Cluster, operator_namespace: Option<&str>) -> anyhow::Result<Self> {
        let operators = operators::gather(&cluster.client, operator_namespace).await;
        let asking = asking(&operators, &cluster.namespace)?;
        let endpoint = Self::among(&asking)?;
        // Whoever may make a Deployment anywhere could send the client secret anywhere. Whoever reads it anyway gains nothing.
        if operator_namespace.is_none() && endpoint.url != DEFAULT_TOKEN_URL {
            let reads = asking.iter().map(|one| gather::reads_secrets(&cluster.client, one, &cluster.namespace));
            if !join_all(reads).await.iter().any(|reads| reads.found() == Some(&true)) {
                bail!(
                    "nothing shows that {} is this namespace's operator, as it says: whether its account may read Secrets here is \
                     denied or unknown: {GIVE}, or vouch for it with --operator-namespace",
                    places(&asking)
                );
            }
        }
        Ok(endpoint)
    }

    fn among(asking: &[&Operator]) -> anyhow::Result<Self> {
        let mut urls = BTreeSet::new();
        for operator in asking {
            match &operator.token_url {
                Lookup::Found(url) => drop(urls.insert(url.as_str())),
                Lookup::Unknown(why) => {
                    bail!("cannot tell which token endpoint the operator {} uses: {why}: {GIVE}", operator.place())
                }
                Lookup::Missing => {}
            }
        }
        let mut urls = urls.into_iter();
        match (urls.next(), urls.next()) {
            (None, _) => Ok(Self {
                warning: Some(format!(
                    "no Deployment of an operator was found (label {}): an operator elsewhere may use another endpoint",
                    LABELS.join(" or ")
                )),
                ..Self::given(None)
            }),
            (Some(url), None) => {
                Ok(Self { url: url.to_owned(), whose: format!("as {} does", places(asking)), warning: None })
            }
            (Some(_), Some(_)) => {
                let uses = |operator: &&Operator| {
                    let url = operator.token_url.found().map(|url| bare(url)).unwrap_or_default();
                    format!("{} asks {url}", operator.place())
                };
                let uses: Vec<_> = asking.iter().map(uses).collect();
                bail!("the operators use different token endpoints ({}): {GIVE}", uses.join(", "))
            }
        }
    }

    /// The URL and whose it is.
    pub fn words(&self) -> String {
        format!("{} ({})", bare(&self.url), self.whose)
    }
}

/// The operators that may work for a namespace.
fn asking<'a>(operators: &'a Lookup<Vec<Operator>>, namespace: &str) -> anyhow::Result<Vec<&'a Operator>> {
    let all = match operators {
        Lookup::Unknown(why) => bail!(
            "cannot tell which token endpoint the operator uses, for its Deployment cannot be looked at: {why}: {GIVE}"
        ),
        Lookup::Missing => return Ok(Vec::new()),
        Lookup::Found(all) => all,
    };
    let watching: Vec<_> = all.iter().filter(|operator| operator.watches(namespace)).collect();
    Ok(if watching.is_empty() { all.iter().collect() } else { watching })
}

fn places(operators: &[&Operator]) -> String {
    operators.iter().map(|operator| operator.place()).collect::<Vec<_>>().join(", ")
}

/// Without what may be a key of a gateway.
fn bare(url: &str) -> String {
    url.split_once('?').map_or_else(|| url.to_owned(), |(bare, _)| format!("{bare}?…"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SANDBOX: &str = "https://sandbox.money-go.com/token";

    fn operator(name: &str, watched: &[&str], url: Lookup<String>) -> Operator {
        let watched = watched.iter().map(ToString::to_string).collect();
        Operator {
            namespace: "system".to_owned(),
            name: name.to_owned(),
            watched,
            token_url: url,
            ..Operator::default()
        }
    }

    fn found(url: &str) -> Lookup<String> {
        Lookup::Found(url.to_owned())
    }

    fn among(operators: Vec<Operator>) -> Result<Endpoint, String> {
        let operators = Lookup::Found(operators);
        asking(&operators, "n").and_then(|asking| Endpoint::among(&asking)).map_err(|error| error.to_string())
    }

    #[test]
    fn the_operators_endpoint_is_asked() {
        let endpoint = among(vec![operator("a", &[], found(SANDBOX))]).unwrap();
        assert_eq!(endpoint.words(), "https://sandbox.money-go.com/token (as system/a does)");
        let other = || operator("b", &["m"], found("https://gateway/token"));
        let endpoint = among(vec![operator("a", &["n"], found(SANDBOX)), other()]).unwrap();
        assert_eq!(endpoint.url, SANDBOX, "of the operator that watches the namespace");
        assert_eq!(among(vec![other()]).unwrap().url, "https://gateway/token", "there is no other");
    }

    #[test]
    fn no_endpoint_is_guessed() {
        let other = operator("b", &[], found("https://gateway/token?key=1"));
        let error = among(vec![operator("a", &[], found(SANDBOX)), other]).unwrap_err();
        assert!(error.contains("system/b asks https://gateway/token?…") && error.contains("--token-url"), "{error}");
        let elsewhere = Lookup::Unknown("its envFrom may hold it".to_owned());
        let error = among(vec![operator("a", &[], elsewhere)]).unwrap_err();
        assert!(error.contains("envFrom") && error.contains("--token-url"), "{error}");
        let blind = Lookup::Unknown("you have no right to it".to_owned());
        assert!(asking(&blind, "n").unwrap_err().to_string().contains("--token-url"));
        let default = among(Vec::new()).unwrap();
        assert_eq!(default.words(), "https://api.money-go.com/token (the default)");
        assert!(default.warning.unwrap().contains("no Deployment"));
    }
}
