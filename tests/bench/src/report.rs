//! The page and its plots.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::fill::{Figure, Filling};
use crate::plot::{self, Bar, Of, Panel, Series, short};
use crate::results::{Pair, Results};
use crate::stats::{Spread, mebibytes, quantile, real};
use crate::verdicts::{self, GROWING, Line};

mod text;

/// The folder of the plots and of what people write.
const FOLDER: &str = "performance";
/// What a person writes; the page ends with it.
const PROFILE: &str = "profile.md";

/// Writes performance.md and performance/*.svg into a folder.
///
/// # Errors
/// If they cannot be written.
pub fn write(results: &Results, peer: Option<&Results>, into: &Path) -> Result<()> {
    let folder = into.join(FOLDER);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for (name, drawn) in plots(results) {
        fs::write(folder.join(name), drawn)?;
    }
    let profile = fs::read_to_string(folder.join(PROFILE)).unwrap_or_default();
    let page = page(results, peer, &profile);
    fs::write(into.join("performance.md"), page).with_context(|| format!("cannot write into {}", into.display()))
}

fn page(results: &Results, peer: Option<&Results>, profile: &str) -> String {
    let mut page = text::head(results);
    page += "\n## What must be shown\n\n";
    page += &table_of(&verdicts::all(results), "floor");
    page += text::AFTER_VERDICTS;
    page += &peer.map(beside_peer).unwrap_or_default();
    let sections =
        [filling(results), requests(results), latency(results), reactions(results), memory(results), events(results)];
    page += &sections.concat();
    if !results.missing.is_empty() {
        page += "\n## Could not be measured\n\n";
        page.extend(results.missing.iter().map(|missing| format!("- {}\n", missing.replace('\n', " "))));
    }
    if !profile.is_empty() {
        page += "\n";
        page += profile;
    }
    page
}

/// What a run beside the peer found.
fn beside_peer(results: &Results) -> String {
    let rate = |fillings: &[Filling]| spread(fillings.iter().map(Filling::rate));
    let row = |(objects, pair): (&usize, &Pair<Vec<Filling>>)| {
        let peer = results.peer.get(objects).map(Vec::as_slice).unwrap_or_default();
        vec![objects.to_string(), rate(&pair.operator), rate(&pair.floor), rate(peer)]
    };
    let head = ["tokens a second, filling", "operator", "floor", "External Secrets"].map(str::to_owned);
    let rates = table(&head, results.fillings.iter().map(row));
    let lines = table_of(&verdicts::beside_peer(results), "External Secrets");
    text::PEER.replace("{date}", &results.began.strftime("%Y-%m-%d").to_string()) + &rates + "\n" + &lines
}

/// A table of verdicts, for the page and for a terminal, that names whom the operator is compared with.
#[must_use]
pub fn table_of(lines: &[Line], beside: &str) -> String {
    let head = ["what", "operator", beside, "ratio", "must be", ""].map(str::to_owned);
    let rows = lines.iter().map(|line| {
        let figure = |figure: Option<f64>| figure.map_or_else(|| "–".to_owned(), short);
        let ratio = line.ratio().map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}"));
        let verdict = line.verdict.words().to_owned();
        [line.what.clone(), figure(line.operator), figure(line.beside), ratio, line.limit.to_owned(), verdict].to_vec()
    });
    table(&head, rows)
}

/// Columns are as wide as they must be, so that it can be read as it is.
fn table(head: &[String], rows: impl Iterator<Item = Vec<String>>) -> String {
    let rows: Vec<Vec<String>> = rows.collect();
    let wide = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).chain(head.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..head.len()).map(wide).collect();
    let row = |cells: &[String]| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!(" {cell:<width$} |"));
        format!("|{}\n", padded.collect::<String>())
    };
    let rule: Vec<String> = widths.iter().map(|width| "-".repeat(width + 2)).collect();
    let mut text = row(head) + "|" + &rule.join("|") + "|\n";
    text.extend(rows.iter().map(|cells| row(cells)));
    text
}

/// The median, and the ends where they differ.
fn spread(values: impl IntoIterator<Item = f64>) -> String {
    let Some(spread) = Spread::of(values) else { return "–".to_owned() };
    let (least, median, most) = (short(spread.least), short(spread.median), short(spread.most));
    if least == most { median } else { format!("{median} ({least}–{most})") }
}

fn filling(results: &Results) -> String {
    let figures: [Figure; 10] = [
        ("tokens a second", Filling::rate),
        ("seconds", |filling| filling.seconds),
        ("CPU a token, ms", |filling| filling.cpu_millis),
        ("API server's CPU a token, ms", |filling| filling.apiserver_cpu_millis),
        ("etcd's CPU a token, ms", |filling| filling.etcd_cpu_millis),
        ("peak memory, MiB", |filling| mebibytes(filling.peak_bytes)),
        ("resident at the end, MiB", |filling| mebibytes(filling.resident_bytes)),
        ("resident a while after, MiB", |filling| mebibytes(filling.settled_bytes)),
        ("reconciles a token", |filling| filling.reconciles),
        ("longest time without a token, ms", |filling| filling.longest_pause_millis),
    ];
    let mut head = vec!["filling".to_owned()];
    for (objects, pair) in &results.fillings {
        head.push(format!("{objects}: operator ({})", pair.operator.len()));
        head.push(format!("floor ({})", pair.floor.len()));
    }
    let row = |(name, of): Figure| {
        let each = |fillings: &[Filling]| spread(fillings.iter().map(of));
        let cells = results.fillings.values().flat_map(|pair| [each(&pair.operator), each(&pair.floor)]);
        std::iter::once(name.to_owned()).chain(cells).collect()
    };
    let tried = results.concurrencies.iter().map(|(at_once, rate)| format!("{at_once}: {}", short(*rate)));
    let tried = tried.collect::<Vec<_>>().join(", ");
    text::FILLING.replace("{tried}", &tried).replace("{best}", &results.concurrency.to_string())
        + &table(&head, figures.into_iter().map(row))
        + "\n![Growth of time, CPU and memory](performance/growth.svg)\n"
}

fn requests(results: &Results) -> String {
    let Some(pair) = results.fillings.get(&results.sizes.1) else { return String::new() };
    let last = pair.map(|fillings: &Vec<Filling>| fillings.last().cloned().unwrap_or_default());
    let mut kinds: Vec<&String> = last.operator.requests.keys().chain(last.floor.requests.keys()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let count = |filling: &Filling, kind: &String| filling.requests.get(kind).copied().unwrap_or_default().to_string();
    let rows = kinds.iter().map(|kind| vec![(*kind).clone(), count(&last.operator, kind), count(&last.floor, kind)]);
    let head = ["request", "operator", "floor"].map(str::to_owned);
    format!("\n### Requests of the API server, filling {}\n\n{}", results.sizes.1, table(&head, rows))
}

fn latency(results: &Results) -> String {
    let row = |name: String, rounds: &[Vec<f64>]| {
        let at = |share: f64| spread(rounds.iter().filter_map(|round| quantile(round, share)));
        let count: usize = rounds.iter().map(Vec::len).sum();
        vec![name, count.to_string(), at(0.5), at(0.99), at(1.0)]
    };
    let mut rows = vec![
        row("idle: operator".to_owned(), &results.one_by_one.operator),
        row("idle: floor".to_owned(), &results.one_by_one.floor),
    ];
    for (objects, pair) in &results.fillings {
        let rounds = meanwhile(pair);
        rows.push(row(format!("while filling {objects}: operator"), &rounds.operator));
        rows.push(row(format!("while filling {objects}: floor"), &rounds.floor));
    }
    let head = ["from manifest to Secret, ms", "objects", "p50", "p99", "slowest"].map(str::to_owned);
    text::LATENCY.replace("{main}", &results.sizes.1.to_string())
        + &table(&head, rows.into_iter())
        + "\n![From manifest to Secret](performance/latency.svg)\n"
}

fn meanwhile(pair: &Pair<Vec<Filling>>) -> Pair<Vec<Vec<f64>>> {
    pair.map(|fillings| fillings.iter().map(|filling| filling.meanwhile_millis.clone()).collect())
}

fn reactions(results: &Results) -> String {
    let row = |name: String, objects: usize, rounds: &[Vec<f64>]| {
        let at = |share: f64| spread(rounds.iter().filter_map(|round| quantile(round, share)));
        let count: usize = rounds.iter().map(Vec::len).sum();
        vec![name, objects.to_string(), count.to_string(), at(0.5), at(1.0)]
    };
    let mut rows = Vec::new();
    for reactions in &results.reactions {
        let name = reactions.change.words();
        rows.push(row(name.to_owned(), reactions.objects, &reactions.rounds.operator));
        if !reactions.rounds.floor.is_empty() {
            rows.push(row(format!("{name}: floor"), reactions.objects, &reactions.rounds.floor));
        }
    }
    let head = ["from the change to the Secret, ms", "beside", "times", "median", "slowest"].map(str::to_owned);
    text::REACTIONS.to_owned()
        + &table(&head, rows.into_iter())
        + "\n![Medians of the reactions](performance/reactions.svg)\n"
}

fn memory(results: &Results) -> String {
    let megabytes = |bytes: Vec<u64>| spread(bytes.into_iter().map(mebibytes));
    let empty = |of: fn(&crate::memory::Empty) -> u64| megabytes(results.empty.iter().map(of).collect());
    let mut rows =
        vec![vec!["no objects".to_owned(), empty(|empty| empty.resident_bytes), empty(|empty| empty.peak_bytes)]];
    for (objects, pair) in &results.fillings {
        let of = |of: fn(&Filling) -> u64| megabytes(pair.operator.iter().map(of).collect());
        let name = format!("{objects} objects, after they were filled");
        rows.push(vec![name, of(|filling| filling.settled_bytes), of(|filling| filling.peak_bytes)]);
    }
    let again = |of: fn(&crate::restart::Restart) -> u64| megabytes(results.restarts.iter().map(of).collect());
    let name = format!("{} objects, after a restart", results.sizes.1);
    rows.push(vec![name, again(|restart| restart.whole.resident_bytes), again(|restart| restart.whole.peak_bytes)]);
    for foreign in &results.foreign {
        let beside = format!("{} objects", results.sizes.0);
        let name = format!("{beside} beside {} foreign Secrets of {} bytes", foreign.count, foreign.bytes);
        rows.push(vec![name, megabytes(vec![foreign.with_bytes]), "–".to_owned()]);
        let restarted = megabytes(vec![foreign.restarted_bytes]);
        rows.push(vec!["… after a restart".to_owned(), restarted, megabytes(vec![foreign.peak_bytes])]);
        let gone = format!("… when those are gone (before: {})", short(mebibytes(foreign.before_bytes)));
        rows.push(vec![gone, megabytes(vec![foreign.after_bytes]), "–".to_owned()]);
    }
    let head = ["operator's memory, MiB", "resident", "peak"].map(str::to_owned);
    text::MEMORY.to_owned() + &table(&head, rows.into_iter()) + "\n![Memory](performance/memory.svg)\n"
}

/// Starts, restarts, idling, failovers and the burst.
fn events(results: &Results) -> String {
    let restart = |of: fn(&crate::restart::Restart) -> f64| spread(results.restarts.iter().map(of));
    let idle = |of: fn(&crate::idle::Idling) -> f64| spread(results.idling.iter().map(of));
    let (main, mut rows) = (results.sizes.1, Vec::new());
    let mut add = |what: String, figure: String| rows.push(vec![what, figure]);
    add("start to ready without objects, ms".into(), spread(results.empty.iter().map(|empty| empty.ready_millis)));
    add(format!("restart at {main}: ready, ms"), restart(|restart| restart.ready_millis));
    add("… a bare client that lists the same, ms".into(), spread(results.bare_lists.clone()));
    add(format!("restart at {main}: steady, ms"), restart(|restart| restart.whole.steady_millis));
    add(format!("restart at {main}: CPU, ms"), restart(|restart| restart.whole.cpu_millis));
    add(format!("restart at {main}: grants"), restart(|restart| real(restart.whole.grants)));
    add(format!("idle at {main}: seconds"), idle(|idling| idling.seconds));
    add(format!("idle at {main}: % of a core"), idle(|idling| idling.core_share * 100.0));
    if let Some(failovers) = &results.failovers {
        add(format!("failover at {main}, the leader killed, ms"), spread(failovers.crash_millis.clone()));
        add(format!("failover at {main}, the leader stopped, ms"), spread(failovers.orderly_millis.clone()));
        add("grants on account of the failovers".into(), failovers.grants_beyond.to_string());
    }
    if let Some(burst) = &results.burst {
        let limits =
            format!("{} due at once, {} a second and {} at once allowed", burst.objects, burst.rate, burst.concurrency);
        add(format!("{limits}: seconds"), short(burst.seconds));
        add("… requests for tokens".into(), burst.requests.to_string());
        add("… most in any second".into(), burst.most_in_a_second.to_string());
        add("… most at once".into(), burst.most_at_once.to_string());
        add("… longest time without one, ms".into(), short(burst.longest_pause_millis));
        add("… CPU a token, ms".into(), short(burst.cpu_millis));
        add("… peak memory, MiB".into(), short(mebibytes(burst.peak_bytes)));
    }
    text::EVENTS.to_owned() + &table(&["what", "operator"].map(str::to_owned), rows.into_iter())
}

fn plots(results: &Results) -> [(&'static str, String); 4] {
    [
        ("growth.svg", plot::panels(&GROWING.map(|(what, figure)| growth_of(results, what, figure)))),
        ("latency.svg", plot::panels(&latency_panels(results))),
        ("reactions.svg", plot::bars("From the change to the Secret, medians", "ms", &reaction_bars(results))),
        ("memory.svg", plot::bars("The operator's resident memory", "MiB", &memory_bars(results))),
    ]
}

fn growth_of(results: &Results, what: &str, figure: fn(&Filling) -> f64) -> Panel {
    let (points, exponents) = (verdicts::points(results, figure), verdicts::exponents(results, figure));
    let series = |of, name: &str, points, exponent: Option<f64>| {
        let exponent = exponent.map_or_else(String::new, |exponent| format!(": n^{exponent:.2}"));
        Series { of, name: format!("{name}{exponent}"), points, marked: true }
    };
    let unit = if what == "memory" { "MiB" } else { "seconds" };
    Panel {
        title: format!("{what}, {unit}"),
        across: "objects",
        log_y: true,
        series: vec![
            series(Of::Operator, "operator", points.operator, exponents.operator),
            series(Of::Floor, "floor", points.floor, exponents.floor),
        ],
    }
}

fn latency_panels(results: &Results) -> Vec<Panel> {
    let of = |title: String, rounds: Pair<Vec<Vec<f64>>>| {
        let series = |of, name: &str, rounds: &[Vec<f64>]| Series {
            of,
            name: name.to_owned(),
            points: cumulated(rounds.concat()),
            marked: false,
        };
        let series =
            vec![series(Of::Operator, "operator", &rounds.operator), series(Of::Floor, "floor", &rounds.floor)];
        Panel { title, across: "ms from manifest to Secret", log_y: false, series }
    };
    let while_filling = results.fillings.get(&results.sizes.1).map(meanwhile).unwrap_or_default();
    vec![
        of(format!("share served, idle beside {}", results.sizes.1), results.one_by_one.clone()),
        of(format!("share served, while filling {}", results.sizes.1), while_filling),
    ]
}

/// The share of all at or below each value.
fn cumulated(mut values: Vec<f64>) -> Vec<(f64, f64)> {
    values.sort_by(f64::total_cmp);
    let count = real(values.len());
    values.into_iter().enumerate().map(|(index, value)| (value.max(0.1), real(index + 1) / count)).collect()
}

fn reaction_bars(results: &Results) -> Vec<Bar> {
    let bar = |name: String, of: Of, rounds: &[Vec<f64>]| {
        let spread = Spread::of(rounds.iter().filter_map(|round| quantile(round, 0.5)))?;
        Some(Bar { name, of, median: spread.median, ends: (spread.least, spread.most) })
    };
    let both = results.reactions.iter().flat_map(|reactions| {
        let name = format!("{}, beside {}", reactions.change.words(), reactions.objects);
        [
            bar(name.clone(), Of::Operator, &reactions.rounds.operator),
            bar(format!("{name}: floor"), Of::Floor, &reactions.rounds.floor),
        ]
    });
    both.flatten().collect()
}

fn memory_bars(results: &Results) -> Vec<Bar> {
    let bar = |name: String, values: Vec<u64>| {
        let spread = Spread::of(values.into_iter().map(mebibytes))?;
        Some(Bar { name, of: Of::Operator, median: spread.median, ends: (spread.least, spread.most) })
    };
    let mut bars = vec![bar("no objects".to_owned(), results.empty.iter().map(|empty| empty.resident_bytes).collect())];
    for (objects, pair) in &results.fillings {
        let settled = pair.operator.iter().map(|filling| filling.settled_bytes).collect();
        let peak = pair.operator.iter().map(|filling| filling.peak_bytes).collect();
        bars.push(bar(format!("{objects} objects, settled"), settled));
        bars.push(bar(format!("{objects} objects, peak"), peak));
    }
    for foreign in &results.foreign {
        let name = format!("{} foreign of {} bytes", foreign.count, foreign.bytes);
        bars.push(bar(format!("before {name}"), vec![foreign.before_bytes]));
        bars.push(bar(format!("beside {name}"), vec![foreign.with_bytes, foreign.restarted_bytes]));
    }
    bars.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_measured_nothing_has_a_page() {
        let page = page(&Results::default(), None, "## What was found by profiling\n\nNothing yet.\n");
        assert!(page.starts_with("# Performance") && page.ends_with("Nothing yet.\n"), "{page}");
        assert!(!page.contains("NaN") && !page.contains('{'), "{page}");
    }

    #[test]
    fn tables_are_aligned() {
        let rows = [vec!["a".to_owned(), "long".to_owned()], vec!["–".to_owned(), "b".to_owned()]];
        let text = table(&["x".to_owned(), "y".to_owned()], rows.into_iter());
        assert_eq!(text, "| x | y    |\n|---|------|\n| a | long |\n| – | b    |\n");
    }

    #[test]
    fn spreads_are_told_where_there_is_one() {
        assert_eq!(spread([2.0, 1.0, 4.0]), "2 (1–4)");
        assert_eq!(spread([2.0]), "2");
        assert_eq!(spread([]), "–");
    }
}
