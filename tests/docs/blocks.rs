//! What stands in a page: its blocks, in order, and what its comments say of them.

use std::path::{Path, PathBuf};

/// Before a block that no test runs; the reason follows.
const NOT_RUN: &str = "<!-- not run by a test: ";
/// Before a block that is run, but not here; what runs it follows.
const ELSEWHERE: &str = "<!-- run by another test: ";
/// Before commands that readers do not see, because what they make is there already where the page begins.
const SETUP: &str = "<!-- test setup:";
/// Queries, which `tests/monitoring.rs` asks of Prometheus, are on these pages.
const QUERIES: (&str, &str) = ("docs/runbooks/", "promql");
/// At the head of a page that changes what the whole cluster has in common.
const ALONE: &str = "<!-- test: alone -->";

/// A page of the documentation.
pub struct Page {
    /// Its path in the checkout.
    pub path: String,
    /// Whether it needs the cluster for itself.
    pub is_alone: bool,
    /// In its order.
    pub blocks: Vec<Block>,
}

/// Commands, manifests or whatever else is set apart.
pub struct Block {
    /// Where it begins.
    pub line: usize,
    /// `sh`, `console`, `yaml`, or what else its fence says; `setup` for hidden commands.
    pub language: String,
    /// What is in it.
    pub text: String,
    /// Whether it is run.
    pub fate: Fate,
}

/// What becomes of a block.
#[derive(Clone, Debug, PartialEq)]
pub enum Fate {
    /// It is run in its place on the page.
    Here,
    /// What runs it.
    Elsewhere(String),
    /// Why no test runs it.
    Not(String),
}

impl Block {
    /// How many commands are in it.
    pub fn commands(&self) -> usize {
        match self.language.as_str() {
            "sh" => logical_lines(&self.text),
            "console" => self.text.lines().filter(|line| line.starts_with("$ ")).count(),
            _ => 0,
        }
    }

    /// Whether a reader is to type it, or apply it.
    pub fn is_for_readers(&self) -> bool {
        self.language != "setup" && self.language != "text"
    }
}

fn logical_lines(script: &str) -> usize {
    let (mut count, mut goes_on) = (0, false);
    for line in script.lines().map(str::trim) {
        count += usize::from(!goes_on && !line.is_empty() && !line.starts_with('#'));
        goes_on = line.ends_with('\\') || (goes_on && line.is_empty()) || line.ends_with('|');
    }
    count
}

/// Every page whose commands are looked at.
pub fn pages() -> Vec<Page> {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = vec![checkout.join("README.md"), checkout.join("charts/moneygo-operator/README.md")];
    markdown(&checkout.join("docs"), &mut paths);
    let read = |path: &PathBuf| {
        let name = path.strip_prefix(checkout).unwrap().to_string_lossy().into_owned();
        parse(name, &std::fs::read_to_string(path).unwrap())
    };
    paths.iter().map(read).collect()
}

fn markdown(folder: &Path, found: &mut Vec<PathBuf>) {
    let mut paths: Vec<_> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            markdown(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
}

/// Reads a page.
pub fn parse(path: String, text: &str) -> Page {
    let mut page = Page { path, is_alone: text.contains(ALONE), blocks: Vec::new() };
    let mut lines = text.lines().enumerate();
    let mut fate = Fate::Here;
    while let Some((number, line)) = lines.next() {
        let start = line.trim_start();
        if let Some(why) = start.strip_prefix(NOT_RUN).or_else(|| start.strip_prefix(ELSEWHERE)) {
            let mut why = why.to_owned();
            while !why.contains("-->") {
                why += " ";
                why += lines.next().expect("the end of a comment").1.trim();
            }
            let why = why.split("-->").next().unwrap_or_default().trim();
            assert!(!why.is_empty(), "{}:{}: why not?", page.path, number + 1);
            let is_run = start.starts_with(ELSEWHERE);
            fate = if is_run { Fate::Elsewhere(why.to_owned()) } else { Fate::Not(why.to_owned()) };
        } else if start.starts_with(SETUP) {
            let text = until(&mut lines, 0, "-->");
            page.blocks.push(Block { line: number + 1, language: "setup".to_owned(), text, fate: Fate::Here });
        } else if let Some(language) = start.strip_prefix("```") {
            let text = until(&mut lines, line.len() - start.len(), "```");
            let language = language.trim().to_owned();
            if page.path.starts_with(QUERIES.0) && language == QUERIES.1 {
                fate = Fate::Elsewhere("tests/monitoring.rs".to_owned());
            }
            page.blocks.push(Block {
                line: number + 1,
                language,
                text,
                fate: std::mem::replace(&mut fate, Fate::Here),
            });
        } else if !start.is_empty() {
            fate = Fate::Here;
        }
    }
    page
}

/// The lines until the one that ends a block, without their indentation.
fn until<'a>(lines: &mut impl Iterator<Item = (usize, &'a str)>, indentation: usize, end: &str) -> String {
    let lines = lines.map(|(_, line)| line).take_while(|line| line.trim() != end);
    lines.flat_map(|line| [line.get(indentation..).unwrap_or_default(), "\n"]).collect()
}
