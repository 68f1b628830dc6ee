//! Prints the `CustomResourceDefinition` as YAML.

use std::io::Write as _;

use moneygo_operator::crd;

fn main() -> anyhow::Result<()> {
    let definition = serde_yaml::to_string(&crd::crd())?;
    write!(std::io::stdout(), "{}{definition}", crd::GENERATED)?;
    Ok(())
}
