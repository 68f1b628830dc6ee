//! Every state of the small settings.

use moneygo_model::search::explore;
use moneygo_model::setting::{Provider, Setting};

const MOST_STATES: usize = 100_000;

#[test]
fn every_promise_is_kept_in_every_state() {
    let mut states = 0;
    for setting in Setting::small() {
        let found = explore(&setting, MOST_STATES);
        assert!(found.is_whole, "{setting}: more than {MOST_STATES} states");
        assert!(found.rests > 0, "{setting}: nobody ever rests");
        assert!(found.violations.is_empty(), "{setting}: {:#?}", found.violations);
        // One process alone is never left with a token of which it cannot know that it was revoked, nor is anyone where none is.
        let revokes = matches!(setting.provider, Provider::Revoking | Provider::TwoAlive);
        assert!(found.unknowable == 0 || revokes && setting.replicas == 2, "{setting}: {:?}", found.way_to_unknowable);
        states += found.states;
    }
    println!("{states} states");
}
