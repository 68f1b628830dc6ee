//! What a violation prints is what `--replay` reads.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use moneygo_faults::edits::Sequence;
use moneygo_faults::failover::{Clocks, Round};
use moneygo_faults::matrix::Plot;
use moneygo_faults::outages;
use moneygo_faults::scenario::Scenario;
use moneygo_faults::stream::StreamFault;
use moneygo_faults::world::Provider;

fn is_read_back<T: std::str::FromStr + std::fmt::Display>(name: &str)
where
    T::Err: std::fmt::Debug,
{
    assert_eq!(name.parse::<T>().unwrap().to_string(), name);
}

#[test]
fn cells_are_read_back() {
    let faults = ["crash-before", "crash-unanswered", "crash-after", "lose", "answer-409", "hold-300", "late-1500"];
    for scenario in Scenario::ALL {
        is_read_back::<Plot>(&format!("matrix:{scenario}:none:none"));
        for fault in faults {
            is_read_back::<Plot>(&format!("matrix:{scenario}:put secrets/payments-token#2:{fault}"));
        }
        for fault in StreamFault::ALL {
            is_read_back::<Plot>(&format!("events:{scenario}:event secrets#1:{fault}"));
        }
    }
}

#[test]
fn failovers_edits_and_outages_are_read_back() {
    for provider in Provider::ALL {
        for number in 0..100 {
            is_read_back::<Round>(&Round::numbered(provider, Clocks::Behind, number, 7).to_string());
        }
    }
    is_read_back::<Sequence>("edits:17");
    for outage in outages::all() {
        is_read_back::<outages::Outage>(&outage.to_string());
    }
}
