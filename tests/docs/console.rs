//! Whether a terminal shows what a page says that it does. Times and ages may differ, and so may the width of columns; `…` stands for
//! anything.

/// A command, and what the page shows of its output.
pub struct Shown {
    /// What is typed.
    pub command: String,
    /// The lines that follow.
    pub output: String,
}

/// The commands of a `console` block. Panics where it does not begin with one.
pub fn commands(block: &str) -> Vec<Shown> {
    let mut shown: Vec<Shown> = Vec::new();
    for line in block.lines() {
        if let Some(command) = line.strip_prefix("$ ") {
            shown.push(Shown { command: command.to_owned(), output: String::new() });
        } else {
            let last = shown.last_mut().expect("a console block begins with `$ `");
            last.output += line;
            last.output += "\n";
        }
    }
    shown
}

/// Whether the output is as shown.
pub fn is_as_shown(shown: &str, output: &str) -> bool {
    let (shown, output) = (lines(shown), lines(output));
    let is_gap = |line: &Vec<String>| line.len() == 1 && line[0] == "…";
    agree(&shown, &output, is_gap, |shown, line| {
        agree(shown, line, |word| word == "…", |one, other| is_word(one, other))
    })
}

fn lines(text: &str) -> Vec<Vec<String>> {
    text.trim_end().lines().map(|line| line.split_whitespace().map(word).collect()).collect()
}

/// A word, or what stands for every time or age.
fn word(word: &str) -> String {
    if word.parse::<jiff::Timestamp>().is_ok() {
        return "TIME".to_owned();
    }
    let is_age = word.starts_with(|c: char| c.is_ascii_digit())
        && word.ends_with(['s', 'm', 'h', 'd'])
        && word.chars().all(|c| c.is_ascii_digit() || "smhd".contains(c));
    if is_age { "AGE".to_owned() } else { word.to_owned() }
}

fn is_word(shown: &str, word: &str) -> bool {
    match shown.split_once('…') {
        Some((start, end)) => word.len() >= start.len() + end.len() && word.starts_with(start) && word.ends_with(end),
        None => shown == word,
    }
}

/// Whether each shown item agrees with one, in order, where a gap is any number of them.
fn agree<T>(
    shown: &[T],
    found: &[T],
    is_gap: impl Fn(&T) -> bool + Copy,
    is_same: impl Fn(&T, &T) -> bool + Copy,
) -> bool {
    match (shown, found) {
        ([], []) => true,
        ([gap, rest @ ..], _) if is_gap(gap) => {
            (0..=found.len()).any(|skipped| agree(rest, &found[skipped..], is_gap, is_same))
        }
        ([one, shown @ ..], [other, found @ ..]) => is_same(one, other) && agree(shown, found, is_gap, is_same),
        _ => false,
    }
}
