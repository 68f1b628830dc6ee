//! The command `doctor`: facts are gathered ([`gather`]), judged ([`diagnose`]) and shown ([`report`]).

mod diagnose;
pub mod facts;
mod finding;
pub mod gather;
pub mod operators;
mod pods;
mod report;

use crate::Verdict;
use crate::args::{ClusterArgs, DoctorArgs};
use crate::cluster::Cluster;
use crate::terminal::Look;
use finding::Severity;
use report::Diagnosis;

/// Looks at the objects, and shows what is wrong with each.
pub async fn run(args: &ClusterArgs, wanted: &DoctorArgs) -> anyhow::Result<Verdict> {
    let cluster = Cluster::connect(args).await?;
    let diagnoses = if let Some(finding) = gather::undefined(&cluster).await {
        vec![Diagnosis { object: None, findings: vec![finding] }]
    } else {
        // Of each object its findings are kept, and no facts: there may be very many.
        let judge = |facts: facts::Facts| Diagnosis::of(&facts.object, diagnose::diagnose(&facts));
        gather::each(&cluster, wanted, judge).await?
    };
    let look = Look::of_stdout();
    crate::status::show(&report::text(&diagnoses, wanted.output, look)?)?;
    let is_ill = |diagnosis: &Diagnosis| diagnosis.findings.iter().any(|one| one.severity == Severity::Error);
    Ok(if diagnoses.iter().any(is_ill) { Verdict::Unwell } else { Verdict::Well })
}
