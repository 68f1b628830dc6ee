//! What the terminal can show: colours, characters, a spinner.

use std::borrow::Cow;
use std::io::{IsTerminal, Write as _};
use std::time::Duration;

/// How text is to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Colours: on a terminal only, and not where `NO_COLOR` is set or `TERM` is `dumb`.
    pub colour: bool,
    /// Characters beyond ASCII: where the locale is UTF-8. A pipe has them, too, so that a pager shows what a terminal shows.
    pub utf8: bool,
}

impl Look {
    /// That of standard output.
    #[must_use]
    pub fn of_stdout() -> Self {
        Self::of(std::io::stdout().is_terminal(), |name| std::env::var(name).ok())
    }

    /// That of standard error.
    #[must_use]
    pub fn of_stderr() -> Self {
        Self::of(std::io::stderr().is_terminal(), |name| std::env::var(name).ok())
    }

    fn of(is_terminal: bool, variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name| variable(name).filter(|value| !value.is_empty());
        let colour = is_terminal && set("NO_COLOR").is_none() && set("TERM").as_deref() != Some("dumb");
        // As setlocale(3) does it: the first that is set decides.
        let locale = set("LC_ALL").or_else(|| set("LC_CTYPE")).or_else(|| set("LANG")).unwrap_or_default();
        let locale = locale.to_ascii_lowercase();
        Self { colour, utf8: locale.contains("utf-8") || locale.contains("utf8") }
    }

    /// Text in a colour, if there are colours.
    #[must_use]
    pub fn paint(self, colour: Colour, text: &str) -> String {
        if self.colour { format!("\x1b[{}m{text}\x1b[0m", colour.code()) } else { text.to_owned() }
    }

    /// One of two, by what can be shown.
    #[must_use]
    pub fn either<T>(self, utf8: T, ascii: T) -> T {
        if self.utf8 { utf8 } else { ascii }
    }
}

/// A line to standard error, which may be a pipe that nobody reads: then there is nobody to tell. `mark` stands before it, and may be painted.
pub fn tell(mark: &str, line: &str) {
    let gap = if mark.is_empty() { "" } else { " " };
    let _ = writeln!(std::io::stderr(), "{mark}{gap}{}", harmless(line));
}

/// Text of others' objects, which must neither move a terminal's cursor nor begin a line of its own.
#[must_use]
pub fn harmless(text: &str) -> Cow<'_, str> {
    if text.contains(char::is_control) { text.replace(char::is_control, " ").into() } else { text.into() }
}

/// The few colours, by what they mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    Good,
    Doubtful,
    Bad,
    Faint,
    Strong,
}

impl Colour {
    fn code(self) -> &'static str {
        match self {
            Self::Good => "32",
            Self::Doubtful => "33",
            Self::Bad => "31",
            Self::Faint => "2",
            Self::Strong => "1",
        }
    }
}

/// A line on standard error that moves while something is waited for; nothing where that is no terminal.
pub struct Spinner {
    frames: Option<&'static [&'static str]>,
    shown: usize,
}

impl Spinner {
    /// How often it moves.
    pub const PACE: Duration = Duration::from_millis(100);

    /// It is not shown yet.
    #[must_use]
    pub fn new() -> Self {
        let is_terminal = std::io::stderr().is_terminal() && std::env::var("TERM").as_deref() != Ok("dumb");
        let frames: &'static [&'static str] =
            Look::of_stderr().either(&["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"], &["|", "/", "-", "\\"]);
        Self { frames: is_terminal.then_some(frames), shown: 0 }
    }

    /// Shows the next frame beside `text`.
    pub fn turn(&mut self, text: &str) {
        let Some(frames) = self.frames else { return };
        let _ = write!(std::io::stderr(), "\r\x1b[K{} {text}", frames[self.shown % frames.len()]);
        self.shown += 1;
    }

    /// Takes the line away, so that another can be printed.
    pub fn clear(&mut self) {
        if self.frames.is_some() && self.shown > 0 {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Columns of text, each as wide as its widest cell; cells are measured without their colours. The last is not filled up.
#[must_use]
pub fn columns(rows: &[Vec<Cell>]) -> String {
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(Cell::width).max().unwrap_or(0);
    let widths: Vec<_> = (0..rows.iter().map(Vec::len).max().unwrap_or(0)).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&cell.shown);
            line.extend(std::iter::repeat_n(' ', width - cell.width() + 3));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A cell of a table.
#[derive(Debug, Clone)]
pub struct Cell {
    shown: String,
    width: usize,
}

impl Cell {
    /// Plain text.
    pub fn plain(text: impl Into<String>) -> Self {
        let shown = harmless(&text.into()).into_owned();
        Self { width: shown.chars().count(), shown }
    }

    /// Text in a colour.
    #[must_use]
    pub fn painted(look: Look, colour: Colour, text: &str) -> Self {
        Self { width: text.chars().count(), shown: look.paint(colour, &harmless(text)) }
    }

    fn width(&self) -> usize {
        self.width
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(is_terminal: bool, variables: &[(&str, &str)]) -> Look {
        let found = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Look::of(is_terminal, found)
    }

    #[test]
    fn colours_are_for_terminals_that_want_them() {
        assert!(look(true, &[]).colour);
        assert!(look(true, &[("NO_COLOR", "")]).colour);
        assert!(!look(true, &[("NO_COLOR", "1")]).colour);
        assert!(!look(true, &[("TERM", "dumb")]).colour);
        assert!(!look(false, &[]).colour);
    }

    #[test]
    fn characters_follow_the_locale_on_a_pipe_too() {
        assert!(look(false, &[("LANG", "de_DE.UTF-8")]).utf8);
        assert!(look(true, &[("LC_ALL", "C.utf8"), ("LANG", "C")]).utf8);
        assert!(!look(true, &[("LC_ALL", "C"), ("LANG", "de_DE.UTF-8")]).utf8);
        assert!(look(true, &[("LC_ALL", ""), ("LANG", "C.UTF-8")]).utf8);
        assert!(!look(true, &[]).utf8);
    }

    #[test]
    fn columns_stand_below_each_other() {
        let coloured = Look { colour: true, utf8: true };
        let rows = [
            vec![Cell::plain("A"), Cell::plain("B")],
            vec![Cell::painted(coloured, Colour::Bad, "long"), Cell::plain("x")],
        ];
        assert_eq!(columns(&rows), "A      B\n\x1b[31mlong\x1b[0m   x\n");
    }

    #[test]
    fn text_of_others_moves_no_cursor() {
        let plain = Look { colour: false, utf8: true };
        let rows = [vec![Cell::plain("\x1b[2Ja"), Cell::painted(plain, Colour::Bad, "b\n✓ c"), Cell::plain("d\u{9b}")]];
        assert_eq!(columns(&rows), " [2Ja   b ✓ c   d\n");
    }
}
