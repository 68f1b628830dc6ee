//! What was counted and measured, and which promises it breaks.

use std::time::Duration;

use jiff::Timestamp;
use token_consumer::Report;

use super::memory::Memory;

/// Calls that may fail for other reasons than the token, in a thousand: a network is a network.
const FAILED_PER_MILLE: u64 = 10;

/// A token is replaced after 30 s, or up to a tenth of that earlier, rounded down. One grant too many lies within 15 s of another.
const BETWEEN_GRANTS: Duration = Duration::from_secs(20);

/// All that was counted.
pub struct Counts {
    /// How many refreshes were to be seen.
    pub wanted: usize,
    /// What the consumer told last.
    pub report: Report,
    /// Seconds from a refresh to the file.
    pub delays_secs: Vec<f64>,
    /// Requests with a dead token, as the stand-in counted them.
    pub refused: u64,
    /// When the stand-in gave tokens, while refreshes were waited for.
    pub grants: Vec<Timestamp>,
    /// From the start of the operator's container to its being Ready, for each Pod.
    pub start_to_ready_secs: Vec<f64>,
    /// From the install to all Pods being Ready.
    pub install_to_ready: Duration,
    /// From the deletion of the leader's Pod to another leader.
    pub new_leader: Option<Duration>,
    /// How long the API server was away; `None` where it cannot be stopped.
    pub outage: Option<Duration>,
    /// Restarts of the operator's containers.
    pub restarts: u64,
    /// Of each of the operator's Pods, or why it cannot be told.
    pub memory: Result<Vec<Memory>, String>,
}

impl Counts {
    /// Nothing counted yet.
    pub fn new(wanted: usize) -> Self {
        Self {
            wanted,
            report: Report::default(),
            delays_secs: Vec::new(),
            refused: 0,
            grants: Vec::new(),
            start_to_ready_secs: Vec::new(),
            install_to_ready: Duration::ZERO,
            new_leader: None,
            outage: None,
            restarts: 0,
            memory: Ok(Vec::new()),
        }
    }

    fn refreshes(&self) -> usize {
        self.report.seen.len().saturating_sub(1)
    }

    fn shortest_between_grants_secs(&self) -> f64 {
        let between = self.grants.windows(2).map(|two| two[1].duration_since(two[0]).as_secs_f64());
        between.fold(f64::INFINITY, f64::min)
    }

    fn calls(&self) -> u64 {
        self.report.accepted + self.report.unauthorized + self.report.failed
    }

    /// Two columns.
    pub fn table(&self) -> String {
        let report = &self.report;
        let [least, median, most] = spread(&self.delays_secs);
        let outage =
            self.outage.map_or("left out: the cluster cannot stop it".into(), |outage| seconds(outage.as_secs_f64()));
        let memory = match &self.memory {
            Ok(pods) => pods.iter().map(Memory::to_string).collect::<Vec<_>>().join(", "),
            Err(why) => format!("cannot be told: {why}"),
        };
        let starts: Vec<_> = self.start_to_ready_secs.iter().map(|secs| format!("{secs:.0}")).collect();
        let rows = [
            ("refreshes seen by the consumer", self.refreshes().to_string()),
            (
                "its calls",
                format!(
                    "{} ({} accepted, {} failed, {} without a token to read)",
                    self.calls(),
                    report.accepted,
                    report.failed,
                    report.unreadable
                ),
            ),
            ("401s", report.unauthorized.to_string()),
            ("401s, as the stand-in counted them", self.refused.to_string()),
            ("tokens given by the stand-in", self.grants.len().to_string()),
            ("least time between two of them, s", format!("{:.1}", self.shortest_between_grants_secs())),
            ("from the refresh to the file, s", format!("{least:.1} at least, {median:.1} median, {most:.1} at most")),
            (
                "least life left of a used token, s",
                report.least_left_secs.map_or("unknown".into(), |left| format!("{left:.1}")),
            ),
            ("from the install to two Ready Pods", seconds(self.install_to_ready.as_secs_f64())),
            ("from a container's start to Ready, s", starts.join(", ")),
            ("working set (resident memory), MiB", memory),
            ("restarts of the operator", self.restarts.to_string()),
            ("a new leader after", self.new_leader.map_or("unknown".into(), |time| seconds(time.as_secs_f64()))),
            ("the API server was away for", outage),
        ];
        rows.map(|(what, count)| format!("    {what:<37}{count}")).join("\n")
    }

    /// Each promise that does not hold.
    pub fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        let mut check = |holds: bool, what: String| {
            if !holds {
                broken.push(what);
            }
        };
        let seen = self.refreshes();
        check(seen >= self.wanted, format!("{} refreshes were to be seen, and {seen} were", self.wanted));
        check(self.report.unauthorized == 0, format!("the consumer got {} 401s", self.report.unauthorized));
        check(self.refused == 0, format!("the stand-in refused {} calls", self.refused));
        let left = self.report.least_left_secs.unwrap_or_default();
        check(left > 0.0, format!("a token was used {:.1} s after its end", -left));
        let (failed, calls) = (self.report.failed, self.calls());
        check(failed * 1000 <= calls * FAILED_PER_MILLE && calls > 0, format!("{failed} of {calls} calls failed"));
        let shortest = self.shortest_between_grants_secs();
        // A restart, a failover, another leader: none of them is a reason to ask again.
        check(shortest >= BETWEEN_GRANTS.as_secs_f64(), format!("two tokens were asked for within {shortest:.1} s"));
        broken
    }
}

fn seconds(secs: f64) -> String {
    format!("{secs:.1} s")
}

/// The least, the median and the most; zeros of nothing.
fn spread(values: &[f64]) -> [f64; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
    [at(0), at(sorted.len() / 2), at(sorted.len().saturating_sub(1))]
}

#[cfg(test)]
mod tests {
    use token_consumer::Seen;

    use super::*;

    fn every(secs: i64) -> Vec<Timestamp> {
        (0..12).filter_map(|count| Timestamp::from_second(count * secs).ok()).collect()
    }

    fn good() -> Counts {
        let seen = vec![Seen { at: Timestamp::UNIX_EPOCH, expires_at: Timestamp::UNIX_EPOCH }; 11];
        let report = Report { accepted: 1000, failed: 1, least_left_secs: Some(99.0), seen, ..Report::default() };
        Counts { report, grants: every(27), ..Counts::new(10) }
    }

    #[test]
    fn promises_are_checked() {
        assert_eq!(good().broken(), [""; 0]);
        let bad: [fn(&mut Counts); 7] = [
            |counts| counts.wanted = 11,
            |counts| counts.report.unauthorized = 1,
            |counts| counts.refused = 1,
            |counts| counts.report.least_left_secs = Some(-0.1),
            |counts| counts.report.failed = 100,
            |counts| counts.grants = every(19),
            |counts| counts.report.accepted = 0,
        ];
        for make_bad in bad {
            let mut counts = good();
            make_bad(&mut counts);
            assert_eq!(counts.broken().len(), 1, "{:?}", counts.broken());
        }
    }

    #[test]
    fn what_is_not_known_is_said() {
        let mut counts = good();
        counts.memory = Err("no".into());
        let table = counts.table();
        assert!(table.contains("cannot be told: no") && table.contains("left out"), "{table}");
        assert_eq!(spread(&[3.0, 1.0, 2.0]).map(seconds), ["1.0 s", "2.0 s", "3.0 s"]);
        assert_eq!(spread(&[]).map(seconds), ["0.0 s"; 3]);
    }
}
