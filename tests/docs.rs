//! The documentation does what it says: every command is run, in the order of its page, against a real API server, the operator and a
//! stand-in for Money-Go, or a comment says why it is not; every manifest is taken; every reason has a section.
//!
//! In the source of a page:
//! - `<!-- not run by a test: why -->` or `<!-- run by another test: which -->` before a block;
//! - `<!-- test setup:`, commands, `-->`: what is there already where the page begins;
//! - `<!-- test: alone -->`: the page installs releases, which belong to the whole cluster.
//!
//! `MONEYGO_DOCS_PAGE=mount cargo test --test docs` tries the pages with that in their path alone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

#[path = "docs/blocks.rs"]
mod blocks;
#[path = "docs/console.rs"]
mod console;
#[path = "docs/manifests.rs"]
mod manifests;
#[path = "docs/shell.rs"]
mod shell;
mod stage;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use blocks::{Block, Fate, Page};
use console::Shown;
use futures::StreamExt as _;
use k8s_openapi::api::rbac::v1::PolicyRule;
use moneygo_controlplane::helm;
use moneygo_operator::crd::{ConditionType, Reason};
use serde::Deserialize as _;
use serde_yaml::Value;
use shell::Shell;
use stage::{SOON, Stage};
use tokio::task::spawn_blocking;

/// Takes away what a page installed.
const LEAVE: &str = "helm uninstall moneygo-operator --namespace moneygo-system --ignore-not-found
    kubectl delete clusterrole,clusterrolebinding moneygo-operator --ignore-not-found
    kubectl delete namespace moneygo-system --ignore-not-found";
/// How many pages are tried at once.
const AT_ONCE: usize = 3;

#[test]
fn every_condition_and_reason_has_a_section_and_no_other() {
    let text = include_str!("../docs/troubleshooting.md");
    let reasons = text.split_once("\n## The reasons\n").expect("a chapter for the reasons");
    let sections = |text: &str| -> Vec<String> {
        let chapter = text.split("\n## ").next().unwrap_or_default();
        chapter.lines().filter_map(|line| line.strip_prefix("### ")).map(ToOwned::to_owned).collect()
    };
    let conditions = reasons.0.split_once("\n## The conditions\n").expect("a chapter for the conditions");
    assert_eq!(sections(conditions.1), ConditionType::ALL.iter().map(|kind| kind.as_str()).collect::<Vec<_>>());
    assert_eq!(sections(reasons.1), Reason::ALL.iter().map(|reason| reason.as_str()).collect::<Vec<_>>());
}

/// docs/security.md tells of every right in docs/rbac.
#[test]
fn the_table_of_rights_is_whole() {
    let text = include_str!("../docs/security.md");
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| `")).collect();
    let manifests = [include_str!("../docs/rbac/cluster.yaml"), include_str!("../docs/rbac/namespaced.yaml")];
    let mut rights = 0;
    for manifest in manifests.into_iter().flat_map(serde_yaml::Deserializer::from_str) {
        let role = Value::deserialize(manifest).unwrap();
        let rules: Vec<PolicyRule> = serde_yaml::from_value(role["rules"].clone()).unwrap();
        for rule in rules {
            let resource = rule.resources.unwrap_or_default().join(",");
            for verb in rule.verbs {
                let tells = |row: &&str| row.starts_with(&format!("| `{resource}`")) && row.contains(&verb);
                assert!(rows.iter().any(tells), "no row of {resource} has {verb}");
                rights += 1;
            }
        }
    }
    assert!(rights > 20, "{rights}");
}

#[test]
fn a_terminal_must_show_what_a_page_shows() {
    let shown = "NAME   READY   AGE\na      True    1s\n";
    assert!(console::is_as_shown(shown, "NAME READY AGE\na    True  3m12s\n"));
    assert!(console::is_as_shown("2026-12-24T00:19:40Z", "2027-01-01T00:00:00Z"));
    assert!(console::is_as_shown("a\n…\nb …\n", "a\n1\n2\nb c d\n") && console::is_as_shown("…", ""));
    assert!(console::is_as_shown("gone from …-x namespace", "gone from docs-x namespace"));
    for other in ["NAME READY AGE\na False 1s\n", "NAME READY AGE\n", "NAME READY AGE\na True 1s\nb True 1s\n", ""] {
        assert!(!console::is_as_shown(shown, other), "{other}");
    }
    assert!(!console::is_as_shown("", "a") && !console::is_as_shown("gone …-x", "gone docs-y"));
}

#[test]
fn comments_say_what_is_not_run() {
    let text = "<!-- not run by a test: it\n  takes long -->\n\n```sh\na \\\n  b\n# c\nd\n```\n\n- e\n  ```yaml\n  f: g\n  ```\n<!-- test setup:\nh\n-->\n";
    let blocks = blocks::parse("page.md".to_owned(), text).blocks;
    let seen: Vec<_> =
        blocks.iter().map(|block| (block.language.as_str(), block.text.as_str(), block.commands())).collect();
    assert_eq!(seen, [("sh", "a \\\n  b\n# c\nd\n", 2), ("yaml", "f: g\n", 0), ("setup", "h\n", 0)]);
    let fates: Vec<_> = blocks.iter().map(|block| block.fate.clone()).collect();
    assert_eq!(fates, [Fate::Not("it takes long".to_owned()), Fate::Here, Fate::Here]);
    let text =
        "<!-- run by another test: a.rs -->\n```sh\na\n```\n<!-- run by another test: a.rs -->\nb\n```sh\na\n```\n";
    let fates: Vec<_> = blocks::parse("page.md".to_owned(), text).blocks.into_iter().map(|block| block.fate).collect();
    assert_eq!(fates, [Fate::Elsewhere("a.rs".to_owned()), Fate::Here]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_and_manifest_does_what_the_page_says() {
    let pages = Arc::new(blocks::pages());
    let helm = spawn_blocking(helm).await.unwrap().expect("a Helm");
    let (alone, together): (Vec<_>, Vec<_>) =
        pages.iter().filter(|page| is_to_be_tried(page)).partition(|page| page.is_alone);
    let trials = futures::stream::iter(together).map(|page| try_page(page, &helm)).buffer_unordered(AT_ONCE);
    let mut problems: Vec<String> = trials.filter_map(std::future::ready).collect().await;
    for page in alone {
        problems.extend(try_page(page, &helm).await);
    }
    // Past the harness, which keeps what a passed test prints to itself.
    writeln!(std::io::stdout().lock(), "{}", tally(&pages)).unwrap();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

fn is_to_be_tried(page: &Page) -> bool {
    let wanted = std::env::var("MONEYGO_DOCS_PAGE").unwrap_or_default();
    page.path.contains(&wanted) && page.blocks.iter().any(|block| block.is_for_readers() && block.fate == Fate::Here)
}

/// What is wrong with the first block of a page that does not do what it should.
async fn try_page(page: &Page, helm: &Path) -> Option<String> {
    let started = Instant::now();
    let name: String = page.path.trim_end_matches(".md").to_lowercase().replace('/', "-");
    let stage = Stage::setup(&name).moneygo(fake_moneygo::Builder::any_client).open().await;
    let operator = stage.operator().start().await;
    let (plane, namespace, helm, is_alone) = (stage.plane, stage.namespace.clone(), helm.to_owned(), page.is_alone);
    let shell = spawn_blocking(move || Shell::new(plane, &namespace, &helm, is_alone)).await.unwrap();
    let shell = Arc::new(shell);
    let mut problem = None;
    for block in page.blocks.iter().filter(|block| block.fate == Fate::Here) {
        let (language, text, shell) = (block.language.clone(), block.text.clone(), Arc::clone(&shell));
        let tried = spawn_blocking(move || try_block(&language, &text, &shell)).await.unwrap();
        if let Err(why) = tried {
            problem = Some(format!("{}:{}: {why}\n{}", page.path, block.line, stage.account()));
            break;
        }
    }
    if is_alone {
        spawn_blocking(move || shell.run(LEAVE, "")).await.unwrap().expect("the installation is gone");
    }
    operator.stop().await;
    println!("{}: {:.1} s", page.path, started.elapsed().as_secs_f32());
    problem
}

fn try_block(language: &str, text: &str, shell: &Shell) -> Result<(), String> {
    match language {
        "sh" | "setup" => shell.run(text, "").map(drop),
        "console" => console::commands(text).iter().try_for_each(|shown| try_command(shown, shell)),
        "yaml" => {
            if let Some(name) = manifests::file_name(text) {
                shell.write(name, text);
            }
            let trial = manifests::trial(text)?;
            shell.run(trial.command, &trial.input).map(drop)
        }
        "json" => text.lines().try_for_each(|line| match serde_json::from_str::<serde_json::Value>(line) {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("{error}: {line}")),
        }),
        "text" => Ok(()),
        other => Err(format!("no test knows what to do with {other:?}: run it, or say why not")),
    }
}

/// What a look shows may take a moment to be so.
fn try_command(shown: &Shown, shell: &Shell) -> Result<(), String> {
    let is_look = ["kubectl get ", "kubectl auth "].iter().any(|look| shown.command.starts_with(look));
    let started = Instant::now();
    loop {
        let result = shell.run(&shown.command, "");
        let (is_good, output) = match &result {
            Ok(output) => (console::is_as_shown(&shown.output, output), output.as_str()),
            // Some answer with their exit code, too.
            Err(output) => {
                let said = output.rsplit_once("exit status").map_or(output.as_str(), |(said, _)| said);
                (!shown.output.trim().is_empty() && console::is_as_shown(&shown.output, said), output.as_str())
            }
        };
        if is_good {
            return Ok(());
        }
        if !is_look || started.elapsed() > SOON {
            return Err(format!("$ {}\n{output}\nThe page shows:\n{}", shown.command, shown.output));
        }
    }
}

fn tally(pages: &[Page]) -> String {
    let all: Vec<(&Page, &Block)> =
        pages.iter().flat_map(|page| page.blocks.iter().map(move |block| (page, block))).collect();
    let count = |wanted: &dyn Fn(&Block) -> bool| -> usize {
        all.iter().filter(|(_, block)| wanted(block)).map(|(_, block)| block.commands()).sum()
    };
    let is_run = |block: &Block| !matches!(block.fate, Fate::Not(_));
    let (total, run, here) = (count(&|_| true), count(&is_run), count(&|block| block.fate == Fate::Here));
    let yaml = |wanted: &dyn Fn(&Block) -> bool| {
        all.iter().filter(|(_, block)| block.language == "yaml" && wanted(block)).count()
    };
    let mut text = format!(
        "commands run by tests {run} of {total} ({} by other tests); marked as not: {}. Blocks of YAML tried {} of {}",
        run - here,
        total - run,
        yaml(&is_run),
        yaml(&|_| true),
    );
    for (page, block) in all {
        if let Fate::Not(why) = &block.fate {
            write!(text, "\n    {}:{}: {} commands: {why}", page.path, block.line, block.commands()).unwrap();
        }
    }
    text
}
