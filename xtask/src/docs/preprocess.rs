//! mdBook's preprocessor: a link that leaves docs/, or leads to a folder, leads to the repository in the book.

use std::io::{self, Read as _};

use anyhow::Context;
use pulldown_cmark::{Event, Tag};
use serde_json::Value;

use super::links::{REPOSITORY, parser, resolve};
use crate::checkout;

/// From standard input to standard output, as mdBook has it: its context and the book in, the book out.
///
/// # Errors
/// If what is read is no book.
pub fn run() -> anyhow::Result<()> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    let (_, mut book): (Value, Value) = serde_json::from_str(&text).context("mdBook gave no book")?;
    rewrite_all(&mut book);
    println!("{book}");
    Ok(())
}

fn rewrite_all(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(rewrite_all),
        Value::Object(fields) => {
            if let (Some(Value::String(path)), Some(Value::String(content))) =
                (fields.get("source_path"), fields.get("content"))
            {
                let rewritten = rewrite(&format!("docs/{path}"), content);
                fields.insert("content".to_owned(), rewritten.into());
            }
            fields.values_mut().for_each(rewrite_all);
        }
        _ => {}
    }
}

/// The text of a page whose path in the checkout is given.
fn rewrite(page: &str, content: &str) -> String {
    let mut text = content.to_owned();
    let links: Vec<_> = parser(content).into_offset_iter().collect();
    // From the last to the first, so that those before stay where they are.
    for (event, range) in links.into_iter().rev() {
        let Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) = event else {
            continue;
        };
        let written = format!("]({dest_url}");
        let place = content.get(range.clone()).and_then(|link| link.rfind(&written));
        if let (Some(place), Some(shown)) = (place, in_the_repository(page, &dest_url)) {
            let start = range.start + place;
            text.replace_range(start..start + written.len(), &format!("]({shown}"));
        }
    }
    text
}

fn in_the_repository(page: &str, link: &str) -> Option<String> {
    let (path, anchor) = link.split_at(link.find('#').unwrap_or(link.len()));
    if path.is_empty() || path.contains(':') {
        return None;
    }
    let target = resolve(page, path)?;
    let is_in_the_book = target.starts_with("docs/") && !checkout().join(&target).is_dir();
    (!is_in_the_book).then(|| format!("{REPOSITORY}{target}{anchor}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_leave_the_book_lead_to_the_repository() {
        let page =
            "A [b](../install.md#upgrade), ![c](../performance/growth.svg), [d](../../src/crd.rs) and [e](../samples);
`[f](../../README.md)`, [g](https://kubernetes.io), [h](#here)";
        let expected = page
            .replace("](../../src", &format!("]({REPOSITORY}src"))
            .replace("](../samples)", &format!("]({REPOSITORY}docs/samples)"));
        assert_eq!(rewrite("docs/how-to/page.md", page), expected);
        assert_eq!(rewrite("docs/page.md", "[a](../README.md#more)"), format!("[a]({REPOSITORY}README.md#more)"));
    }
}
