//! Findings, for people and for programs.

use kube::ResourceExt as _;
use moneygo_operator::crd::MoneyGoCredential;
use serde::Serialize;

use super::finding::{Finding, Severity};
use crate::args::ReportOutput;
use crate::terminal::{Colour, Look};
use crate::words::count;

/// What was found of one object, the worst first.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Diagnosis {
    /// `namespace/name`; of the cluster where it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    pub findings: Vec<Finding>,
}

impl Diagnosis {
    /// Sorted: by severity, and then as the doctor walks, from causes to what follows from them.
    #[must_use]
    pub fn of(object: &MoneyGoCredential, mut findings: Vec<Finding>) -> Self {
        findings.sort_by_key(|finding| finding.severity);
        let object = Some(format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any()));
        Self { object, findings }
    }

    fn number(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.severity == severity).count()
    }
}

/// All of them, in the form that is wanted.
pub fn text(diagnoses: &[Diagnosis], form: Option<ReportOutput>, look: Look) -> anyhow::Result<String> {
    Ok(match form {
        Some(ReportOutput::Json) => serde_json::to_string_pretty(&as_object(diagnoses))? + "\n",
        Some(ReportOutput::Yaml) => serde_yaml::to_string(&as_object(diagnoses))?,
        None => diagnoses.iter().map(|diagnosis| for_people(diagnosis, look)).collect::<Vec<_>>().join("\n"),
    })
}

fn as_object(diagnoses: &[Diagnosis]) -> serde_json::Value {
    serde_json::json!({ "diagnoses": diagnoses })
}

fn for_people(diagnosis: &Diagnosis, look: Look) -> String {
    let name = diagnosis.object.as_deref().unwrap_or("the cluster");
    let mut text = format!("{}: {}\n", look.paint(Colour::Strong, name), headline(diagnosis));
    for finding in &diagnosis.findings {
        let (mark, colour) = mark(finding.severity, look);
        let cause = if finding.severity == Severity::Unchecked {
            String::new()
        } else {
            look.paint(colour, &format!("{:?}: ", finding.cause))
        };
        text.extend(["  ", &look.paint(colour, mark), " ", &cause, &finding.what, "\n"]);
        if finding.severity != Severity::Unchecked {
            let arrow = look.either("→", "->");
            text.extend([
                "      ",
                &look.paint(Colour::Faint, &finding.why),
                "
      ",
                arrow,
                " ",
                &finding.remedy,
                "
",
            ]);
        }
    }
    text
}

fn headline(diagnosis: &Diagnosis) -> String {
    let number = |severity, what| Some(diagnosis.number(severity)).filter(|n| *n > 0).map(|n| count(n, what));
    let found: Vec<_> =
        [number(Severity::Error, "error"), number(Severity::Warning, "warning")].into_iter().flatten().collect();
    let unchecked = diagnosis.number(Severity::Unchecked);
    let rest = if unchecked > 0 { format!(" ({} not looked at)", count(unchecked, "thing")) } else { String::new() };
    if found.is_empty() { format!("all is well{rest}") } else { found.join(", ") + &rest }
}

fn mark(severity: Severity, look: Look) -> (&'static str, Colour) {
    match severity {
        Severity::Error => (look.either("✗", "ERROR"), Colour::Bad),
        Severity::Warning => (look.either("!", "WARNING"), Colour::Doubtful),
        Severity::Note => (look.either("·", "NOTE"), Colour::Faint),
        Severity::Unchecked => (look.either("?", "UNCHECKED"), Colour::Faint),
    }
}
