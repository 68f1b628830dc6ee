//! What must be shown, and whether it was. No IO.

use crate::fill::{Figure, Filling};
use crate::memory::Foreign;
use crate::reactions::Change;
use crate::restart::Settled;
use crate::results::{Pair, Results};
use crate::stats::{Spread, exponent, mebibytes, quantile, real};

/// The size at which it must be shown. A run that goes no further shows its figures, without a verdict.
const SIZE: usize = 10_000;
const LARGE: usize = 50_000;
const WRITES: [&str; 3] = ["create", "update", "patch"];

/// Whether a figure is what it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is.
    Met,
    /// It is not.
    NotMet,
    /// There is no figure, or not at the size that counts.
    NotMeasured,
    /// It is shown, and nothing is asked of it.
    Shown,
}

impl Verdict {
    /// In words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::NotMet => "NOT MET",
            Self::NotMeasured => "not measured",
            Self::Shown => "",
        }
    }
}

/// A line of the table.
#[derive(Clone, Debug)]
pub struct Line {
    /// What is looked at, with its unit.
    pub what: String,
    /// The operator's figure.
    pub operator: Option<f64>,
    /// That of the floor, or of the peer: of whom it is compared with.
    pub beside: Option<f64>,
    /// What it must be.
    pub limit: &'static str,
    /// Whether it is.
    pub verdict: Verdict,
}

/// What is asked of a figure.
#[derive(Clone, Copy)]
enum Limit {
    Most(f64),
    LeastRatio(f64),
    MostRatio(f64),
    None,
}

impl Line {
    fn new(what: impl Into<String>, figures: Pair<Option<f64>>, limit: Limit, words: &'static str) -> Self {
        Self::beside(what.into(), figures.operator, figures.floor, limit, words)
    }

    fn beside(what: String, operator: Option<f64>, beside: Option<f64>, limit: Limit, words: &'static str) -> Self {
        let mut line = Self { what, operator, beside, limit: words, verdict: Verdict::Shown };
        let holds = match limit {
            Limit::Most(most) => operator.map(|figure| figure <= most),
            Limit::LeastRatio(least) => line.ratio().map(|ratio| ratio >= least),
            Limit::MostRatio(most) => line.ratio().map(|ratio| ratio <= most),
            Limit::None => return line,
        };
        line.verdict = match holds {
            Some(true) => Verdict::Met,
            Some(false) => Verdict::NotMet,
            None => Verdict::NotMeasured,
        };
        line
    }

    /// For a figure that tells nothing at a smaller size.
    fn only_if(mut self, counts: bool) -> Self {
        if !counts && self.verdict != Verdict::Shown {
            self.verdict = Verdict::NotMeasured;
        }
        self
    }

    /// The operator's figure by the other.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        let (operator, beside) = (self.operator?, self.beside?);
        (beside > 0.0).then(|| operator / beside)
    }
}

/// Every line, in the order of the issue that asked for them.
#[must_use]
pub fn all(results: &Results) -> Vec<Line> {
    let mut lines = filling(results);
    lines.extend(per_token(results));
    lines.extend(memory(results));
    lines.extend(beside_many(results));
    lines.extend(growth(results));
    lines
}

/// What is asked of the operator beside the peer.
#[must_use]
pub fn beside_peer(results: &Results) -> Vec<Line> {
    let main = results.sizes.1;
    let line = |what: &str, figure: fn(&Filling) -> f64, limit, words| {
        let peer = results.peer.get(&main).into_iter().flatten().map(figure);
        let peer = Spread::of(peer).map(|spread| spread.median);
        let operator = in_main(results, figure).operator;
        Line::beside(format!("{what}, filling {main}"), operator, peer, limit, words).only_if(main == SIZE)
    };
    let start = |what: &str, figure: fn(&Settled) -> f64, limit, words| {
        let operator = Spread::of(results.restarts.iter().map(|restart| figure(&restart.whole)));
        let peer = Spread::of(results.peer_restarts.iter().map(figure));
        let [operator, peer] = [operator, peer].map(|spread| spread.map(|spread| spread.median));
        Line::beside(format!("{what}, after a restart at {main}"), operator, peer, limit, words).only_if(main == SIZE)
    };
    vec![
        line("1 tokens a second", Filling::rate, Limit::LeastRatio(5.0), "ratio at least 5"),
        line("2 CPU a token, ms", |filling| filling.cpu_millis, Limit::MostRatio(1.0 / 9.0), "ratio at most 0.11"),
        line("API server's CPU a token, ms", |filling| filling.apiserver_cpu_millis, Limit::None, ""),
        line("etcd's CPU a token, ms", |filling| filling.etcd_cpu_millis, Limit::None, ""),
        line("writes a token", |filling| rounded(filling.each(&WRITES)), Limit::None, ""),
        line("reads a token", |filling| rounded(filling.each(&["get"])), Limit::None, ""),
        line("requests for tokens", |filling| real(filling.grants), Limit::None, ""),
        line("resident at the end, MiB", |filling| mebibytes(filling.resident_bytes), Limit::None, ""),
        line("longest time without a token, ms", |filling| filling.longest_pause_millis, Limit::None, ""),
        start("5 steady, ms", |start| start.steady_millis, Limit::MostRatio(1.0 / 6.2), "ratio at most 0.16"),
        start("CPU, ms", |start| start.cpu_millis, Limit::None, ""),
        start("reads of single objects", |start| start.reads, Limit::None, ""),
    ]
}

fn alone(figure: Option<f64>) -> Pair<Option<f64>> {
    Pair { operator: figure, floor: None }
}

fn median(spread: Pair<Option<Spread>>) -> Pair<Option<f64>> {
    spread.map(|spread| spread.map(|spread| spread.median))
}

fn in_main(results: &Results, figure: impl Fn(&Filling) -> f64) -> Pair<Option<f64>> {
    results.fillings.get(&results.sizes.1).map(|pair| median(pair.spread(figure))).unwrap_or_default()
}

fn filling(results: &Results) -> Vec<Line> {
    let (main, counts) = (results.sizes.1, results.sizes.1 == SIZE);
    let meanwhile = |pair: &Pair<Vec<Filling>>| {
        let worst = |fillings: &Vec<Filling>| {
            let all: Vec<f64> = fillings.iter().flat_map(|filling| filling.meanwhile_millis.clone()).collect();
            quantile(&all, 1.0)
        };
        pair.map(worst)
    };
    let meanwhile = results.fillings.get(&main).map(meanwhile).unwrap_or_default();
    let rate = in_main(results, Filling::rate);
    let pause = in_main(results, |filling| filling.longest_pause_millis);
    vec![
        Line::new(format!("1 filling {main}: tokens a second"), rate, Limit::LeastRatio(0.85), "ratio at least 0.85")
            .only_if(counts),
        Line::new("1 longest time without a token, ms", pause, Limit::Most(1000.0), "no starvation: at most 1000")
            .only_if(counts),
        Line::new("1 object made meanwhile: slowest, ms", meanwhile, Limit::Most(1000.0), "at most 1000")
            .only_if(counts),
    ]
}

fn per_token(results: &Results) -> Vec<Line> {
    let figure = |of: fn(&Filling) -> f64| in_main(results, of);
    let reconciles = alone(figure(|filling| filling.reconciles).operator);
    let apiserver = figure(|filling| filling.apiserver_cpu_millis);
    let counts = results.sizes.1 == SIZE;
    vec![
        Line::new("2 writes a token", figure(|filling| rounded(filling.each(&WRITES))), Limit::Most(3.0), "at most 3"),
        Line::new("2 reads a token", figure(|filling| rounded(filling.each(&["get"]))), Limit::Most(2.0), "at most 2"),
        Line::new("2 reconciles a token", reconciles, Limit::Most(1.5), "at most 1.5"),
        Line::new("2 CPU a token, ms", figure(|filling| filling.cpu_millis), Limit::None, ""),
        Line::new("2 API server's CPU a token, ms", apiserver, Limit::MostRatio(1.1), "ratio at most 1.1")
            .only_if(counts),
        Line::new("2 etcd's CPU a token, ms", figure(|filling| filling.etcd_cpu_millis), Limit::None, ""),
    ]
}

/// To hundredths: one call that was repeated among thousands of tokens is no call a token.
fn rounded(figure: f64) -> f64 {
    (figure * 100.0).round() / 100.0
}

fn memory(results: &Results) -> Vec<Line> {
    let (main, counts) = (results.sizes.1, results.sizes.1 == SIZE);
    let empty = Spread::of(results.empty.iter().map(|empty| mebibytes(empty.resident_bytes)));
    let settled = |size: usize| {
        let pair = results.fillings.get(&size)?.spread(|filling| mebibytes(filling.settled_bytes));
        Some(median(pair))
    };
    let beyond = settled(main).zip(settled(LARGE)).map(|(main_size, large)| {
        let each = |less: Option<f64>, more: Option<f64>| Some((more? - less?) * 1024.0 / real(LARGE - main));
        Pair { operator: each(main_size.operator, large.operator), floor: each(main_size.floor, large.floor) }
    });
    let mut lines = vec![
        Line::new(
            "3 resident without objects, MiB",
            alone(empty.map(|empty| empty.median)),
            Limit::Most(16.0),
            "at most 16",
        ),
        Line::new(
            format!("3 resident at {main}, MiB"),
            settled(main).unwrap_or_default(),
            Limit::Most(40.0),
            "at most 40",
        )
        .only_if(counts),
        Line::new("3 each object beyond, KiB", beyond.unwrap_or_default(), Limit::Most(2.5), "at most 2.5")
            .only_if(counts),
    ];
    let needed = Spread::of(results.restarts.iter().map(|restart| mebibytes(restart.whole.resident_bytes)));
    // The API server closes connections after a minute and a half without a request: they are a part of what a burst took.
    let rested = results.idling.last().map(|idling| mebibytes(idling.resident_bytes)).filter(|rested| *rested > 0.0);
    let rested = rested.or_else(|| settled(main)?.operator);
    let kept_of_filling = rested.and_then(|rested| Some(rested / needed?.median));
    let limit = Limit::Most(1.15);
    let line =
        Line::new("3 after filling, by after a restart", alone(kept_of_filling), limit, "given back: at most 1.15");
    lines.push(line.only_if(counts));
    lines.extend(results.foreign.iter().map(|foreign| foreign_line(foreign, counts)));
    lines.extend(results.foreign.last().map(|foreign| {
        Line::new(
            "3 kept of that when they are gone",
            alone(kept(foreign)),
            Limit::Most(0.2),
            "given back: at most 0.2",
        )
        .only_if(counts)
    }));
    lines
}

fn foreign_line(foreign: &Foreign, counts: bool) -> Line {
    let what = format!("3 each foreign Secret of {} bytes, KiB", foreign.bytes);
    Line::new(what, alone(Some(foreign.each() / 1024.0)), Limit::Most(0.3), "at most 0.3").only_if(counts)
}

/// The share of what was taken at the peak that was not given back.
#[expect(clippy::cast_precision_loss, reason = "bytes of a process")]
fn kept(foreign: &Foreign) -> Option<f64> {
    let taken = foreign.peak_bytes.checked_sub(foreign.before_bytes).filter(|taken| *taken > 0)?;
    Some(foreign.after_bytes.saturating_sub(foreign.before_bytes) as f64 / taken as f64)
}

fn beside_many(results: &Results) -> Vec<Line> {
    let counts = results.sizes.1 == SIZE;
    let tail = results.one_by_one.map(|rounds| quantile(&rounds.concat(), 0.99));
    let middle = results.one_by_one.map(|rounds| quantile(&rounds.concat(), 0.5));
    let worst = |of: fn(&crate::restart::Restart) -> f64| alone(results.restarts.iter().map(of).reduce(f64::max));
    let lists = results.bare_lists.iter().copied().reduce(f64::max);
    let ready = Pair { floor: lists, ..worst(|restart| restart.ready_millis) };
    let idling = |of: fn(&crate::idle::Idling) -> f64| alone(results.idling.iter().map(of).reduce(f64::max));
    #[expect(clippy::cast_precision_loss, reason = "a count of requests")]
    let beyond = idling(|idling| idling.beyond as f64);
    let mut lines = vec![
        Line::new("4 manifest to Secret, p50, ms", middle, Limit::None, ""),
        Line::new("4 manifest to Secret, p99, ms", tail, Limit::MostRatio(1.5), "ratio at most 1.5"),
        Line::new("5 restart: grants", worst(|restart| real(restart.whole.grants)), Limit::Most(0.0), "0"),
        Line::new("5 restart: writes", worst(|restart| restart.whole.writes), Limit::Most(0.0), "0"),
        Line::new("5 restart: reads of single objects", worst(|restart| restart.whole.reads), Limit::Most(0.0), "0"),
        Line::new("5 restart: ready, ms", ready, Limit::Most(1000.0), "at most 1000"),
        Line::new(
            "5 restart: steady, ms",
            worst(|restart| restart.whole.steady_millis),
            Limit::Most(1000.0),
            "at most 1000",
        ),
        Line::new("6 idle: requests but watches and Lease", beyond, Limit::Most(0.0), "0"),
        Line::new(
            "6 idle: CPU, % of a core",
            idling(|idling| idling.core_share * 100.0),
            Limit::Most(0.05),
            "at most 0.05",
        ),
    ];
    lines.extend([results.sizes.0, results.sizes.1].map(|size| deleted(results, size)));
    lines.into_iter().map(|line| line.only_if(counts)).collect()
}

fn deleted(results: &Results, size: usize) -> Line {
    let reactions = results.reactions_to(Change::TargetDeleted, size);
    let figures = reactions.map(|reactions| reactions.rounds.map(|rounds| quantile(&rounds.concat(), 0.5)));
    let what = format!("7 deleted target is back at {size}, median, ms");
    Line::new(what, figures.unwrap_or_default(), Limit::Most(6.0), "at most 6")
}

fn growth(results: &Results) -> Vec<Line> {
    let counts = results.fillings.contains_key(&LARGE);
    let line = |(what, figure): Figure| {
        let what = format!("8 growth of {what}: exponent");
        Line::new(what, exponents(results, figure), Limit::Most(1.05), "at most 1.05").only_if(counts)
    };
    let mut lines: Vec<Line> = GROWING.into_iter().map(line).collect();
    let binary = alone(Some(mebibytes(results.machine.binary_bytes)));
    lines.push(Line::new("9 binary, MiB", binary, Limit::Most(10.0), "at most 10"));
    lines
}

/// What grows with the objects.
pub const GROWING: [Figure; 3] = [
    ("time", |filling| filling.seconds),
    ("CPU", |filling| filling.cpu_millis * real(filling.objects) / 1000.0),
    ("memory", |filling| mebibytes(filling.settled_bytes)),
];

/// The medians of a figure by the number of objects.
#[must_use]
pub fn points(results: &Results, figure: impl Fn(&Filling) -> f64 + Copy) -> Pair<Vec<(f64, f64)>> {
    let medians = |of: fn(&Pair<Vec<Filling>>) -> &Vec<Filling>| {
        let point = |(objects, pair): (&usize, &Pair<Vec<Filling>>)| {
            Spread::of(of(pair).iter().map(figure)).map(|spread| (real(*objects), spread.median))
        };
        results.fillings.iter().filter_map(point).collect()
    };
    Pair { operator: medians(|pair| &pair.operator), floor: medians(|pair| &pair.floor) }
}

/// The exponents with which a figure grows.
#[must_use]
pub fn exponents(results: &Results, figure: impl Fn(&Filling) -> f64 + Copy) -> Pair<Option<f64>> {
    points(results, figure).map(|points| exponent(points))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(operator: f64, floor: f64) -> Pair<Option<f64>> {
        Pair { operator: Some(operator), floor: Some(floor) }
    }

    #[test]
    fn limits_are_kept_to_the_edge() {
        let verdict = |figures, limit| Line::new("", figures, limit, "").verdict;
        assert_eq!(verdict(pair(3.0, 9.0), Limit::Most(3.0)), Verdict::Met);
        assert_eq!(verdict(pair(3.1, 9.0), Limit::Most(3.0)), Verdict::NotMet);
        assert_eq!(verdict(pair(85.0, 100.0), Limit::LeastRatio(0.85)), Verdict::Met);
        assert_eq!(verdict(pair(84.0, 100.0), Limit::LeastRatio(0.85)), Verdict::NotMet);
        assert_eq!(verdict(pair(16.0, 10.0), Limit::MostRatio(1.5)), Verdict::NotMet);
        assert_eq!(verdict(pair(1.0, 0.0), Limit::MostRatio(1.5)), Verdict::NotMeasured);
        assert_eq!(verdict(alone(None), Limit::Most(3.0)), Verdict::NotMeasured);
        assert_eq!(verdict(alone(None), Limit::None), Verdict::Shown);
    }

    #[test]
    fn a_small_run_has_no_verdict_on_what_is_asked_of_a_large_one() {
        let line = Line::new("", pair(1.0, 1.0), Limit::Most(2.0), "");
        assert_eq!(line.clone().only_if(true).verdict, Verdict::Met);
        assert_eq!(line.only_if(false).verdict, Verdict::NotMeasured);
    }

    #[test]
    fn nothing_measured_is_nothing_met() {
        let lines = all(&Results::default());
        let others: Vec<_> = lines.iter().filter(|line| line.verdict == Verdict::NotMet).collect();
        assert!(others.is_empty(), "{others:?}");
        // A binary of 0 bytes is small.
        assert_eq!(lines.iter().filter(|line| line.verdict == Verdict::Met).count(), 1);
    }

    #[test]
    fn what_is_kept_is_a_share_of_the_peak() {
        let foreign = Foreign {
            count: 10,
            bytes: 64,
            before_bytes: 100,
            with_bytes: 150,
            restarted_bytes: 160,
            peak_bytes: 200,
            after_bytes: 120,
        };
        assert_eq!(kept(&foreign), Some(0.2));
        assert_eq!(kept(&Foreign { peak_bytes: 100, ..foreign }), None);
    }
}
