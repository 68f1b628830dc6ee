//! What the demo applies: the smallest sample, with its client or the given one.

use std::{collections::BTreeMap, env, fs, time::Duration};

use anyhow::Context;
use fake_moneygo::FakeMoneyGo;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt, api::PostParams};
use moneygo_operator::crd::{CLIENT_ID_KEY, CLIENT_SECRET_KEY, MoneyGoCredential};
use serde::Deserialize;
use serde_yaml::{Deserializer, Value};

use super::cluster::Cluster;
use crate::{checkout, terminal};

const FILE: &str = "docs/samples/minimal.yaml";
/// So that a refresh is seen within half a minute.
const LIFETIME: Duration = Duration::from_secs(40);

/// A client and an object that asks for its token.
pub struct Sample {
    client: Secret,
    object: MoneyGoCredential,
}

impl Sample {
    /// Reads the sample. With a client of one's own: the client is that of the environment.
    pub fn read(own_client: bool) -> anyhow::Result<Self> {
        let text = fs::read_to_string(checkout().join(FILE)).with_context(|| format!("cannot read {FILE}"))?;
        let mut documents = Deserializer::from_str(&text).map(Value::deserialize);
        let mut next = || documents.next().with_context(|| format!("{FILE} has fewer than two documents"));
        let mut client: Secret = serde_yaml::from_value(next()??)?;
        let object = serde_yaml::from_value(next()??)?;
        if own_client {
            client.string_data = Some(own()?);
        }
        Ok(Self { client, object })
    }

    /// The object's name.
    pub fn name(&self) -> String {
        self.object.name_any()
    }

    /// A stand-in for Money-Go that knows the client.
    pub async fn stand_in(&self) -> anyhow::Result<FakeMoneyGo> {
        terminal::heading(&format!("Starting a stand-in for Money-Go; its tokens live for {} s", LIFETIME.as_secs()));
        let value = |key| self.client.string_data.as_ref().and_then(|data| data.get(key)).cloned().unwrap_or_default();
        // No prefix: only the beginning of a token is shown, and two of them are to be told apart by it.
        let builder = FakeMoneyGo::builder().expires_in(LIFETIME).token_prefix("");
        let builder = builder.client(&value(CLIENT_ID_KEY), &value(CLIENT_SECRET_KEY));
        let stand_in = builder.start().await.context("cannot start the stand-in")?;
        println!("    {}", stand_in.token_url());
        Ok(stand_in)
    }

    /// Creates both.
    pub async fn apply(&self, cluster: &Cluster) -> anyhow::Result<()> {
        terminal::heading("Applying a client and a MoneyGoCredential");
        println!("    {FILE}, in the namespace {}", cluster.namespace());
        let (client, namespace, sent) = (cluster.client(), cluster.namespace(), PostParams::default());
        let (secrets, objects) =
            (Api::namespaced(client.clone(), namespace), Api::namespaced(client.clone(), namespace));
        secrets.create(&sent, &self.client).await.context("cannot create the client's Secret")?;
        objects.create(&sent, &self.object).await.context("cannot create the MoneyGoCredential")?;
        Ok(())
    }
}

fn own() -> anyhow::Result<BTreeMap<String, String>> {
    let variable = |name| env::var(name).with_context(|| format!("--token-url needs your client: set {name}"));
    Ok(BTreeMap::from([
        (CLIENT_ID_KEY.to_owned(), variable("MONEYGO_CLIENT_ID")?),
        (CLIENT_SECRET_KEY.to_owned(), variable("MONEYGO_CLIENT_SECRET")?),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_has_a_client_for_its_object() -> anyhow::Result<()> {
        let sample = Sample::read(false)?;
        assert_eq!(sample.object.spec.credentials_ref.name, sample.client.name_any());
        let data = sample.client.string_data.unwrap_or_default();
        assert!(data.contains_key(CLIENT_ID_KEY) && data.contains_key(CLIENT_SECRET_KEY));
        Ok(())
    }
}
