//! The two text formats in which metrics are served.

use std::fmt::Write as _;

/// How metrics are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// Prometheus' own, 0.0.4: what a person or a simple client gets.
    Classic,
    /// `OpenMetrics` 1.0.0, for whoever says that it takes it.
    OpenMetrics,
}

impl Format {
    /// What a client takes, by its header `Accept`.
    pub fn accepted(accept: Option<&str>) -> Self {
        let is_open = accept.is_some_and(|accept| accept.contains("application/openmetrics-text"));
        if is_open { Self::OpenMetrics } else { Self::Classic }
    }

    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// What stands at the end of all.
    pub const fn end(self) -> &'static str {
        match self {
            Self::Classic => "",
            Self::OpenMetrics => "# EOF\n",
        }
    }
}

/// `OpenMetrics` text in Prometheus' own format: there a counter's name has its suffix in the head, too, and an info is a gauge.
pub(super) fn classic(text: &str) -> String {
    let mut written = String::with_capacity(text.len());
    let mut help = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                _ => ("", kind),
            };
            if let Some((_, meaning)) = help.take().filter(|(of, _)| *of == name) {
                let _ = writeln!(written, "# HELP {name}{suffix} {meaning}");
            }
            let _ = writeln!(written, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with("# ") {
            written.push_str(line);
            written.push('\n');
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_metrics_are_for_whoever_takes_them() {
        let prometheus = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(Format::accepted(Some(prometheus)), Format::OpenMetrics);
        for other in [None, Some("*/*"), Some("text/plain")] {
            assert_eq!(Format::accepted(other), Format::Classic);
        }
    }

    #[test]
    fn the_classic_format_names_what_is_there() {
        let open = "# HELP a_build A.\n# TYPE a_build info\na_build_info{v=\"1\"} 1\n# HELP b B. Twice.\n# TYPE b counter\n# UNIT b x\nb_total 2\n# HELP c C.\n# TYPE c gauge\nc 3\n# EOF\n";
        let expected = "# HELP a_build_info A.\n# TYPE a_build_info gauge\na_build_info{v=\"1\"} 1\n# HELP b_total B. Twice.\n# TYPE b_total counter\nb_total 2\n# HELP c C.\n# TYPE c gauge\nc 3\n";
        assert_eq!(classic(open), expected);
    }
}
