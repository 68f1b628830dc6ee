//! Plots as SVG, drawn by hand. Each has its own background, and another one where the reader prefers dark.

use std::fmt::Write as _;

const STYLE: &str = "text{font:12px system-ui,sans-serif;fill:#24292f}.title{font-weight:600}.axis{stroke:#8c959f}\
.grid{stroke:#d8dee4}.paper{fill:#ffffff}.operator{stroke:#0969da;fill:#0969da}.floor{stroke:#bc4c00;fill:#bc4c00}\
.line{fill:none;stroke-width:2}.bar{stroke:none}.whisker{stroke:#24292f;stroke-width:1.5}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.axis{stroke:#8b949e}.grid{stroke:#30363d}.paper{fill:#0d1117}\
.operator{stroke:#58a6ff;fill:#58a6ff}.floor{stroke:#f0883e;fill:#f0883e}.whisker{stroke:#e6edf3}}";

/// Where a panel's lines begin and end, within its place.
const LEFT: f64 = 56.0;
const TOP: f64 = 34.0;
const RIGHT: f64 = 26.0;
const BOTTOM: f64 = 58.0;

/// Who a line or bar is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// The operator.
    Operator,
    /// The floor.
    Floor,
}

impl Of {
    fn class(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Floor => "floor",
        }
    }
}

/// A line of points, with its name.
pub struct Series {
    /// Whose it is.
    pub of: Of,
    /// What the legend says.
    pub name: String,
    /// In any order that makes a line.
    pub points: Vec<(f64, f64)>,
    /// Whether each point is marked.
    pub marked: bool,
}

/// One diagram of lines.
pub struct Panel {
    /// Above it.
    pub title: String,
    /// Below it.
    pub across: &'static str,
    /// Whether y is logarithmic; x always is.
    pub log_y: bool,
    /// Its lines.
    pub series: Vec<Series>,
}

/// A bar with the spread of what it is the median of.
pub struct Bar {
    /// What it is of.
    pub name: String,
    /// Whose it is.
    pub of: Of,
    /// Its length.
    pub median: f64,
    /// The ends of the spread.
    pub ends: (f64, f64),
}

/// Panels beside each other.
#[must_use]
pub fn panels(panels: &[Panel]) -> String {
    let (width, height) = (330.0, 280.0);
    let mut body = String::new();
    let mut left = 0.0;
    for panel in panels {
        let _ = write!(body, "<g transform=\"translate({left} 0)\">{}</g>", draw(panel, width, height));
        left += width;
    }
    document(left.max(width), height, &body)
}

/// Horizontal bars, one below the other.
#[must_use]
pub fn bars(title: &str, unit: &str, bars: &[Bar]) -> String {
    let (name_width, length, step) = (260.0, 420.0, 22.0);
    let most = bars.iter().map(|bar| bar.ends.1.max(bar.median)).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let mut body = text(12.0, 20.0, "start", "title", title);
    let mut top = 34.0;
    for bar in bars {
        let at = |value: f64| name_width + value / most * length;
        let (middle, class) = (top + 8.0, bar.of.class());
        body += &text(name_width - 8.0, middle + 4.0, "end", "", &bar.name);
        let long = at(bar.median) - name_width;
        let _ = write!(
            body,
            "<rect class=\"bar {class}\" x=\"{name_width}\" y=\"{top}\" width=\"{long:.1}\" height=\"16\"/>"
        );
        body += &line("whisker", (at(bar.ends.0), middle), (at(bar.ends.1), middle));
        let label = format!("{} {unit}", short(bar.median));
        body += &text(at(bar.ends.1.max(bar.median)) + 8.0, middle + 4.0, "start", "", &label);
        top += step;
    }
    document(name_width + length + 90.0, top + 12.0, &body)
}

fn document(width: f64, height: f64, body: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\">\
         <style>{STYLE}</style><rect class=\"paper\" width=\"100%\" height=\"100%\"/>{body}</svg>\n"
    )
}

/// A scale from values to a length, with the values that are named on it.
struct Scale {
    log: bool,
    from: f64,
    to: f64,
}

impl Scale {
    fn over(values: impl Iterator<Item = f64> + Clone, log: bool) -> Self {
        let least = values.clone().fold(f64::INFINITY, f64::min);
        let most = values.fold(f64::NEG_INFINITY, f64::max);
        if !log {
            return Self { log, from: 0.0, to: if most > 0.0 { most } else { 1.0 } };
        }
        if !(least > 0.0 && most.is_finite()) {
            return Self { log, from: 1.0, to: 10.0 };
        }
        let from = 10_f64.powf(least.log10().floor());
        Self { log, from, to: 10_f64.powf(most.log10().ceil()).max(from * 10.0) }
    }

    fn at(&self, value: f64) -> f64 {
        let value = value.clamp(self.from, self.to);
        if self.log {
            return (value / self.from).log10() / (self.to / self.from).log10();
        }
        (value - self.from) / (self.to - self.from)
    }

    fn ticks(&self) -> Vec<f64> {
        if !self.log {
            return [0.0, 0.25, 0.5, 0.75, 1.0].map(|share| self.from + share * (self.to - self.from)).to_vec();
        }
        std::iter::successors(Some(self.from), |tick| Some(tick * 10.0))
            .take_while(|tick| *tick <= self.to * 1.01)
            .collect()
    }
}

fn draw(panel: &Panel, width: f64, height: f64) -> String {
    let points = panel.series.iter().flat_map(|series| &series.points);
    let across = Scale::over(points.clone().map(|point| point.0), true);
    let up = Scale::over(points.map(|point| point.1), panel.log_y);
    let x = |value: f64| LEFT + across.at(value) * (width - LEFT - RIGHT);
    let y = |value: f64| height - BOTTOM - up.at(value) * (height - TOP - BOTTOM);
    let (bottom, right) = (height - BOTTOM, width - RIGHT);
    let mut drawn = text(LEFT, 20.0, "start", "title", &panel.title);
    for tick in across.ticks() {
        drawn += &line("grid", (x(tick), TOP), (x(tick), bottom));
        drawn += &text(x(tick), bottom + 16.0, "middle", "", &short(tick));
    }
    for tick in up.ticks() {
        drawn += &line("grid", (LEFT, y(tick)), (right, y(tick)));
        drawn += &text(LEFT - 6.0, y(tick) + 4.0, "end", "", &short(tick));
    }
    drawn += &line("axis", (LEFT, TOP), (LEFT, bottom));
    drawn += &line("axis", (LEFT, bottom), (right, bottom));
    drawn += &text(f64::midpoint(LEFT, right), bottom + 32.0, "middle", "", panel.across);
    let mut legend = LEFT;
    for series in &panel.series {
        drawn += &polyline(series, x, y);
        let class = series.of.class();
        let _ = write!(
            drawn,
            "<rect class=\"bar {class}\" x=\"{legend}\" y=\"{:.1}\" width=\"10\" height=\"10\"/>",
            height - 16.0
        );
        drawn += &text(legend + 14.0, height - 7.0, "start", "", &series.name);
        legend += (width - LEFT) / 2.0;
    }
    drawn
}

fn polyline(series: &Series, x: impl Fn(f64) -> f64, y: impl Fn(f64) -> f64) -> String {
    let class = series.of.class();
    let mut drawn = format!("<polyline class=\"{class} line\" style=\"fill:none\" points=\"");
    for (across, up) in &series.points {
        let _ = write!(drawn, "{:.1},{:.1} ", x(*across), y(*up));
    }
    drawn += "\"/>";
    for (across, up) in series.points.iter().filter(|_| series.marked) {
        let _ = write!(drawn, "<circle class=\"{class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"/>", x(*across), y(*up));
    }
    drawn
}

fn line(class: &str, from: (f64, f64), to: (f64, f64)) -> String {
    format!("<line class=\"{class}\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>", from.0, from.1, to.0, to.1)
}

fn text(x: f64, y: f64, anchor: &str, class: &str, words: &str) -> String {
    let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    format!("<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>")
}

/// As few digits as tell it.
#[must_use]
pub fn short(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 100.0 || size == 0.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 0.1 => 2,
        _ => 3,
    };
    let written = format!("{value:.digits$}");
    if digits == 0 { written } else { written.trim_end_matches('0').trim_end_matches('.').to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tags are closed in the order in which they were opened, and nothing that means something else in XML is left.
    fn is_well_formed(svg: &str) -> bool {
        let mut open = Vec::new();
        for part in svg.split('<').skip(1) {
            let Some((tag, rest)) = part.split_once('>') else { return false };
            let name = tag.trim_start_matches('/').split_whitespace().next().unwrap_or_default();
            match (tag.starts_with('/'), tag.ends_with('/')) {
                (true, _) if open.pop() != Some(name) => return false,
                (false, false) => open.push(name),
                _ => {}
            }
            if rest.contains('>') || tag.matches('"').count() % 2 == 1 || tag.contains("NaN") {
                return false;
            }
        }
        open.is_empty()
    }

    fn panel(points: Vec<(f64, f64)>) -> Panel {
        let series = Series { of: Of::Operator, name: "a < b & c".to_owned(), points, marked: true };
        Panel { title: "<title>".to_owned(), across: "x", log_y: true, series: vec![series] }
    }

    #[test]
    fn plots_are_well_formed() {
        for points in [vec![], vec![(1000.0, 5.0)], vec![(1e3, 5.0), (1e4, 50.0), (5e4, 0.0)]] {
            let drawn = panels(&[panel(points.clone()), panel(points)]);
            assert!(is_well_formed(&drawn), "{drawn}");
        }
        let bar = Bar { name: "p>q".to_owned(), of: Of::Floor, median: 2.0, ends: (1.0, 3.0) };
        assert!(is_well_formed(&bars("a & b", "ms", &[bar])));
        assert!(is_well_formed(&bars("none", "ms", &[])));
        assert!(!is_well_formed("<a><b></a></b>"));
    }

    #[test]
    fn scales_reach_from_end_to_end() {
        let scale = Scale::over([20.0, 700.0].into_iter(), true);
        assert_eq!(scale.ticks(), [10.0, 100.0, 1000.0]);
        assert!((scale.at(100.0) - 0.5).abs() < 1e-9 && scale.at(1.0).abs() < 1e-9);
        assert!((Scale::over([8.0].into_iter(), false).at(2.0) - 0.25).abs() < 1e-9);
    }

    #[test]
    fn figures_are_short() {
        assert_eq!([1000.0, 99.95, 0.85, 0.0312, 0.0, 3.0].map(short), ["1000", "100", "0.85", "0.031", "0", "3"]);
    }
}
