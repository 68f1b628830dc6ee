//! `cargo xtask docs`: the book of docs/, with no warning and no dead link, neither in the book nor on the repository's pages.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};

use crate::{checkout, terminal, tools};

mod links;
mod preprocess;

/// Where the book is built, in the checkout. docs/book.toml says the same.
const BOOK: &str = "target/book";
/// What another page includes.
const PARTS: [&str; 1] = ["docs/performance/profile.md"];

/// What is to be done with the book.
#[derive(clap::Args, Default)]
pub struct Options {
    /// Read a book from standard input and write it with links to the repository where a link leaves docs/, for mdBook itself
    #[arg(long)]
    preprocess: bool,
    /// What mdBook asks a preprocessor: whether it supports a renderer
    #[arg(requires = "preprocess", hide = true)]
    question: Vec<String>,
}

/// Builds the book and looks at every link, or does mdBook's bidding.
///
/// # Errors
/// If mdBook warns, a page is in no table of contents, or a link is dead.
pub fn run(options: &Options) -> anyhow::Result<()> {
    if options.preprocess {
        // It supports whatever it is asked for.
        return if options.question.is_empty() { preprocess::run() } else { Ok(()) };
    }
    let pages = links::pages(checkout())?;
    let found = links::check(checkout(), &pages);
    let unlisted = unlisted(&pages)?;
    ensure!(unlisted.is_empty(), "not in docs/SUMMARY.md: {}", unlisted.join(", "));
    build()?;
    let dead_in_the_book = dead_in_the_book()?;
    for dead in found.dead.iter().chain(&dead_in_the_book) {
        println!("    dead: {dead}");
    }
    let dead = found.dead.len() + dead_in_the_book.len();
    println!(
        "    pages: {} in the book, {} in the checkout; links: {} between files, {} to elsewhere (their form alone); dead links: {dead}",
        pages.iter().filter(|page| is_of_the_book(&page.path)).count(),
        pages.len(),
        found.within,
        found.elsewhere,
    );
    ensure!(dead == 0, "{dead} dead links: see above");
    Ok(())
}

fn is_of_the_book(path: &str) -> bool {
    path.starts_with("docs/") && path != "docs/SUMMARY.md" && !PARTS.contains(&path)
}

fn unlisted(pages: &[links::Page]) -> anyhow::Result<Vec<String>> {
    let summary = pages.iter().find(|page| page.path == "docs/SUMMARY.md").context("there is no docs/SUMMARY.md")?;
    let listed: BTreeSet<_> = summary.links.iter().map(|link| format!("docs/{link}")).collect();
    let pages = pages.iter().map(|page| page.path.clone());
    Ok(pages.filter(|path| is_of_the_book(path) && !listed.contains(path)).collect())
}

fn build() -> anyhow::Result<()> {
    match fs::remove_dir_all(checkout().join(BOOK)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).context("cannot remove the old book");
        }
        _ => {}
    }
    let mut mdbook = terminal::plain(tools::MDBOOK.executable()?, checkout());
    let output = mdbook.args(["build", "docs"]).output().context("cannot run mdbook")?;
    let said = String::from_utf8_lossy(&output.stderr);
    eprint!("{said}");
    ensure!(output.status.success(), "mdbook: {}", output.status);
    ensure!(!said.contains("WARN"), "mdbook warns: see above");
    Ok(())
}

/// Follows the links of the book's pages, by their own addresses and anchors: says how many there are, and returns those that are dead.
fn dead_in_the_book() -> anyhow::Result<Vec<String>> {
    let mut hyperlink = Command::new(tools::HYPERLINK.executable()?);
    hyperlink.args(["--check-anchors", "."]).current_dir(checkout().join(BOOK));
    let output = hyperlink.output().context("cannot run hyperlink")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let (mut page, mut dead) = ("", Vec::new());
    for line in said.lines() {
        if let Some(problem) = line.trim().strip_prefix("error: ") {
            dead.push(format!("{page}: {problem}"));
        } else if line.starts_with("./") {
            page = line;
        } else if line.starts_with("Checking") {
            println!("    the book: {}", line.to_lowercase());
        }
    }
    let is_understood = output.status.success() == dead.is_empty();
    ensure!(is_understood, "hyperlink: {}\n{said}{}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(dead)
}

/// The files of a folder and of those within it, in order.
fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?;
    paths.sort();
    let mut found = Vec::new();
    for path in paths {
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}
