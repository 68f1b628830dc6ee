//! The links of the checkout's Markdown files, as the repository's pages show them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
};

use anyhow::Context;
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use super::files;

/// Where a file of the checkout is shown.
pub const REPOSITORY: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/");
/// Folders whose Markdown files are read, beside those of the checkout's own folder.
const FOLDERS: [&str; 2] = ["charts", "docs"];

/// A Markdown file.
pub struct Page {
    /// Its path in the checkout.
    pub path: String,
    /// Where its links lead, as they are written.
    pub links: Vec<String>,
    anchors: BTreeSet<String>,
}

/// What became of the links.
#[derive(Default)]
pub struct Found {
    /// How many lead to a file or an anchor of the checkout.
    pub within: usize,
    /// How many lead to other sites.
    pub elsewhere: usize,
    /// Those that lead nowhere: the page, the link and why.
    pub dead: Vec<String>,
}

/// Reads every page.
///
/// # Errors
/// If one cannot be read.
pub fn pages(checkout: &Path) -> anyhow::Result<Vec<Page>> {
    let mut paths: Vec<_> =
        fs::read_dir(checkout)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    paths.retain(|path| path.is_file());
    for folder in FOLDERS {
        paths.extend(files(&checkout.join(folder))?);
    }
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    paths.sort();
    paths.iter().map(|path| read(checkout, path)).collect()
}

fn read(checkout: &Path, path: &Path) -> anyhow::Result<Page> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(page(&path.strip_prefix(checkout).unwrap_or(path).to_string_lossy(), &text))
}

/// A parser of what the repository's site and mdBook both take.
pub fn parser(text: &str) -> Parser<'_> {
    Parser::new_ext(text, Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_TASKLISTS)
}

fn page(path: &str, text: &str) -> Page {
    let mut page = Page { path: path.to_owned(), links: Vec::new(), anchors: BTreeSet::new() };
    let mut heading: Option<String> = None;
    for event in parser(text) {
        match event {
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::End(TagEnd::Heading(_)) => {
                if let Some(heading) = heading.take() {
                    page.name(&slug(&heading));
                }
            }
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                page.links.push(dest_url.to_string());
            }
            Event::Text(text) | Event::Code(text) => {
                if let Some(heading) = &mut heading {
                    heading.push_str(&text);
                }
            }
            // Of HTML, links are not looked for: hence none may be there.
            Event::Html(html) | Event::InlineHtml(html) if html.contains("href=") || html.contains("src=") => {
                page.links.push(format!("html:{}", html.trim()));
            }
            _ => {}
        }
    }
    page
}

impl Page {
    fn name(&mut self, slug: &str) {
        let mut name = slug.to_owned();
        let mut count = 0;
        while !self.anchors.insert(name.clone()) {
            count += 1;
            name = format!("{slug}-{count}");
        }
    }
}

/// The anchor of a heading.
fn slug(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, '-' | '_' | ' ');
    heading.to_lowercase().chars().filter(kept).map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Follows every link of every page.
pub fn check(checkout: &Path, pages: &[Page]) -> Found {
    let by_path: BTreeMap<_, _> = pages.iter().map(|page| (page.path.as_str(), page)).collect();
    let mut found = Found::default();
    for page in pages {
        for link in &page.links {
            let problem = if is_elsewhere(link) {
                found.elsewhere += 1;
                malformed(link)
            } else {
                found.within += 1;
                dead(checkout, &by_path, page, link)
            };
            found.dead.extend(problem.map(|problem| format!("{}: {link}: {problem}", page.path)));
        }
    }
    found
}

fn is_elsewhere(link: &str) -> bool {
    link.contains(':') && !link.starts_with(REPOSITORY)
}

fn malformed(link: &str) -> Option<&'static str> {
    if link.starts_with("html:") {
        return Some("write it as Markdown: links in HTML are not looked at");
    }
    let uri: http::Uri = match link.parse() {
        Ok(uri) => uri,
        Err(_) => return Some("it is no URL"),
    };
    let is_good =
        matches!(uri.scheme_str(), Some("https" | "http")) && uri.host().is_some_and(|host| host.contains('.'));
    (!is_good).then_some("it is no URL of a web page")
}

fn dead(checkout: &Path, pages: &BTreeMap<&str, &Page>, page: &Page, link: &str) -> Option<&'static str> {
    let (path, anchor) = link.split_once('#').map_or((link, None), |(path, anchor)| (path, Some(anchor)));
    let target = match path.strip_prefix(REPOSITORY) {
        Some(path) => Some(path.to_owned()),
        None if path.is_empty() => Some(page.path.clone()),
        None => resolve(&page.path, path),
    };
    let Some(target) = target else {
        return Some("it leaves the checkout");
    };
    if !pages.contains_key(target.as_str()) && !checkout.join(&target).exists() {
        return Some("there is no such file");
    }
    let anchor = anchor?;
    let Some(target) = pages.get(target.as_str()) else {
        return Some("only Markdown has anchors");
    };
    (!target.anchors.contains(anchor)).then_some("there is no such heading")
}

/// The path in the checkout that a relative link of a page leads to; `None` outside of it.
pub fn resolve(page: &str, link: &str) -> Option<String> {
    let mut path = PathBuf::from(page);
    path.pop();
    for part in Path::new(link).components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            Component::ParentDir => {
                if !path.pop() {
                    return None;
                }
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(path.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        let pages = [page("docs/page.md", text), page("README.md", "# `A` first-page, of two\n## A\n## A\n")];
        check(crate::checkout(), &pages).dead
    }

    #[test]
    fn what_is_there_is_found() {
        let links = "# Here it is\n[a](#here-it-is) [b](../README.md#a-first-page-of-two) [c](../README.md#a-1) ![d](samples/minimal.yaml)
            [e](https://github.com/moneygo-operator/moneygo-operator/blob/main/src/crd.rs) [f](https://kubernetes.io/docs/#x) [g](samples)
            `[h](nowhere.md)`";
        assert_eq!(problems(links), Vec::<String>::new());
    }

    #[test]
    fn what_is_not_there_is_told() {
        for (link, why) in [
            ("[a](nowhere.md)", "no such file"),
            ("[a](#nowhere)", "no such heading"),
            ("[a](../README.md#a-2)", "no such heading"),
            ("[a](../../elsewhere.md)", "leaves the checkout"),
            ("[a](/docs/api.md)", "leaves the checkout"),
            ("[a](samples/minimal.yaml#L3)", "only Markdown"),
            ("[a](https://github.com/moneygo-operator/moneygo-operator/blob/main/src/nowhere.rs)", "no such file"),
            ("![a](nowhere.svg)", "no such file"),
            ("[a][b]\n\n[b]: nowhere.md", "no such file"),
            ("[a](https://nowhere)", "no URL"),
            ("<a href=\"nowhere.md\">a</a>", "HTML"),
        ] {
            let problems = problems(link);
            assert!(
                problems.len() == 1 && problems.iter().all(|problem| problem.contains(why)),
                "{link}: {problems:?}"
            );
        }
    }
}
