//! Every token that was issued, and what became of it. No IO and no clock: each call is told the time.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// What a new grant does to the tokens that its client already has. Money-Go's documentation does not say which of these it does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Tokens live independently of one another.
    #[default]
    Independent,
    /// A new grant revokes every live token of its client.
    RevokePrevious,
    /// The same token again for the same client and scope while it lives, with the lifetime that is left in whole seconds (rounded
    /// down, so 0 in its last second).
    SameWhileAlive,
    /// As [`Mode::SameWhileAlive`], but each answer states the whole lifetime, as a cache before the endpoint would: the token ends when it first was to.
    SameUndiminished,
    /// As [`Mode::SameWhileAlive`], but the token lives for its whole lifetime anew.
    SameProlonged,
    /// At most this many live tokens a client (0 counts as 1): issuing beyond it revokes the oldest.
    MaxLive(usize),
}

/// One successful answer to `POST /token`, whether or not it reached the client.
///
/// `Debug` leaves the token out.
#[derive(Clone, PartialEq, Eq)]
pub struct Grant {
    /// The grant's number, from 1, in the order of issuing over all clients.
    pub sequence: u64,
    /// The client's id.
    pub client: String,
    /// The scope asked for.
    pub scope: String,
    /// The access token.
    pub token: String,
    /// When this grant was made.
    pub issued: SystemTime,
    /// The first instant at which the token is no longer good.
    pub expires: SystemTime,
    /// The lifetime that the answer states.
    pub stated: Duration,
    /// When a later grant revoked the token.
    pub revoked_at: Option<SystemTime>,
    /// Whether an earlier grant gave out the same token ([`Mode::SameWhileAlive`]).
    pub repeated: bool,
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grant")
            .field("sequence", &self.sequence)
            .field("client", &self.client)
            .field("scope", &self.scope)
            .field("issued", &self.issued)
            .field("expires", &self.expires)
            .field("stated", &self.stated)
            .field("revoked_at", &self.revoked_at)
            .field("repeated", &self.repeated)
            .finish_non_exhaustive()
    }
}

impl Grant {
    /// What the token was at `at`.
    #[must_use]
    pub fn state_at(&self, at: SystemTime) -> TokenState {
        match self.revoked_at {
            Some(since) if since <= at => TokenState::Revoked { since },
            _ if self.expires <= at => TokenState::Expired,
            _ => TokenState::Alive,
        }
    }

    fn is_alive(&self, at: SystemTime) -> bool {
        self.state_at(at) == TokenState::Alive
    }
}

/// What a token was at some instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenState {
    /// Good.
    Alive,
    /// Its lifetime had ended.
    Expired,
    /// A later grant had revoked it; remains so after its lifetime's end.
    Revoked {
        /// When it was revoked.
        since: SystemTime,
    },
    /// Never issued, or not yet.
    Unknown,
}

#[derive(Default)]
pub(crate) struct Ledger {
    grants: Vec<Grant>,
    by_client: HashMap<String, Vec<usize>>,
    by_token: HashMap<String, Vec<usize>>,
}

/// What is asked of the ledger: who, for what, and for how long.
pub(crate) struct Ask<'a> {
    pub client: &'a str,
    pub scope: &'a str,
    pub lifetime: Duration,
}

impl Ledger {
    pub fn grants(&self) -> &[Grant] {
        &self.grants
    }

    pub fn grants_of(&self, client: &str) -> Vec<Grant> {
        self.of(client).map(|i| self.grants[i].clone()).collect()
    }

    pub fn count_of(&self, client: &str) -> usize {
        self.by_client.get(client).map_or(0, Vec::len)
    }

    pub fn state_of(&self, token: &str, at: SystemTime) -> TokenState {
        self.by_token
            .get(token)
            .and_then(|indices| indices.first())
            .map(|&first| &self.grants[first])
            .filter(|grant| grant.issued <= at)
            .map_or(TokenState::Unknown, |grant| grant.state_at(at))
    }

    /// Records a grant as `mode` has it; `fresh` makes a token from the grant's number.
    pub fn issue(&mut self, ask: &Ask<'_>, mode: Mode, now: SystemTime, fresh: impl FnOnce(u64) -> String) -> Grant {
        let is_repeating = matches!(mode, Mode::SameWhileAlive | Mode::SameUndiminished | Mode::SameProlonged);
        if is_repeating && let Some(living) = self.living(ask, now) {
            return self.repeat(living, ask.lifetime, mode, now);
        }
        match mode {
            Mode::RevokePrevious => self.revoke_beyond(ask.client, 0, now),
            Mode::MaxLive(most) => self.revoke_beyond(ask.client, most.max(1) - 1, now),
            Mode::Independent | Mode::SameWhileAlive | Mode::SameUndiminished | Mode::SameProlonged => {}
        }
        let sequence = self.next_sequence();
        self.push(Grant {
            sequence,
            client: ask.client.to_owned(),
            scope: ask.scope.to_owned(),
            token: fresh(sequence),
            issued: now,
            expires: now.checked_add(ask.lifetime).unwrap_or(now),
            stated: ask.lifetime,
            revoked_at: None,
            repeated: false,
        })
    }

    fn living(&self, ask: &Ask<'_>, now: SystemTime) -> Option<usize> {
        self.of(ask.client).rev().find(|&i| self.grants[i].scope == ask.scope && self.grants[i].is_alive(now))
    }

    fn repeat(&mut self, living: usize, lifetime: Duration, mode: Mode, now: SystemTime) -> Grant {
        let before = self.grants[living].clone();
        let stated = match mode {
            Mode::SameUndiminished | Mode::SameProlonged => lifetime,
            _ => Duration::from_secs(before.expires.duration_since(now).unwrap_or_default().as_secs()),
        };
        let expires = if mode == Mode::SameProlonged { now + lifetime } else { before.expires };
        for &i in self.by_token.get(&before.token).into_iter().flatten() {
            self.grants[i].expires = expires;
        }
        let sequence = self.next_sequence();
        self.push(Grant { sequence, issued: now, expires, stated, repeated: true, ..before })
    }

    /// Revokes the oldest live tokens of a client until `keep` are left.
    fn revoke_beyond(&mut self, client: &str, keep: usize, now: SystemTime) {
        let live: Vec<String> = self
            .of(client)
            .map(|i| &self.grants[i])
            .filter(|grant| !grant.repeated && grant.is_alive(now))
            .map(|grant| grant.token.clone())
            .collect();
        for token in live.iter().take(live.len().saturating_sub(keep)) {
            for &i in self.by_token.get(token).into_iter().flatten() {
                self.grants[i].revoked_at = Some(now);
            }
        }
    }

    fn push(&mut self, grant: Grant) -> Grant {
        let index = self.grants.len();
        self.by_client.entry(grant.client.clone()).or_default().push(index);
        self.by_token.entry(grant.token.clone()).or_default().push(index);
        self.grants.push(grant.clone());
        grant
    }

    fn of(&self, client: &str) -> impl DoubleEndedIterator<Item = usize> + '_ {
        self.by_client.get(client).into_iter().flatten().copied()
    }

    fn next_sequence(&self) -> u64 {
        self.grants.len() as u64 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(millis)
    }

    fn issue(ledger: &mut Ledger, mode: Mode, scope: &str, now: SystemTime) -> Grant {
        let ask = Ask { client: "a", scope, lifetime: Duration::from_secs(10) };
        ledger.issue(&ask, mode, now, |n| format!("t{n}"))
    }

    #[test]
    fn a_token_lives_from_issued_until_just_before_expires() {
        let mut ledger = Ledger::default();
        issue(&mut ledger, Mode::Independent, "api", at(1000));
        for (millis, state) in [
            (999, TokenState::Unknown),
            (1000, TokenState::Alive),
            (10_999, TokenState::Alive),
            (11_000, TokenState::Expired),
        ] {
            assert_eq!(ledger.state_of("t1", at(millis)), state, "at {millis}");
        }
        assert_eq!(ledger.state_of("t2", at(1000)), TokenState::Unknown);
    }

    #[test]
    fn revoking_spares_other_clients_and_what_has_expired() {
        let mut ledger = Ledger::default();
        issue(&mut ledger, Mode::Independent, "api", at(0));
        let other = Ask { client: "b", scope: "api", lifetime: Duration::from_secs(100) };
        ledger.issue(&other, Mode::Independent, at(0), |_| "other".into());
        issue(&mut ledger, Mode::Independent, "other", at(5000));
        issue(&mut ledger, Mode::RevokePrevious, "api", at(12_000));
        assert_eq!(ledger.state_of("t1", at(12_000)), TokenState::Expired);
        assert_eq!(ledger.state_of("other", at(12_000)), TokenState::Alive);
        assert_eq!(ledger.state_of("t3", at(11_999)), TokenState::Alive);
        assert_eq!(ledger.state_of("t3", at(20_000)), TokenState::Revoked { since: at(12_000) });
        assert_eq!(ledger.state_of("t4", at(12_000)), TokenState::Alive);
    }

    #[test]
    fn the_same_token_while_it_lives_and_for_its_scope_alone() {
        let mut ledger = Ledger::default();
        let first = issue(&mut ledger, Mode::SameWhileAlive, "api", at(0));
        let again = issue(&mut ledger, Mode::SameWhileAlive, "api", at(9999));
        assert_eq!((again.token, again.expires, again.repeated), (first.token, first.expires, true));
        assert_eq!(issue(&mut ledger, Mode::SameWhileAlive, "b", at(9999)).token, "t3");
        assert_eq!(issue(&mut ledger, Mode::SameWhileAlive, "api", at(10_000)).token, "t4");
        assert_eq!(ledger.grants_of("a").len(), 4);
        assert_eq!(ledger.grants().len(), ledger.count_of("a"));
    }

    #[test]
    fn a_repeated_token_ends_when_it_was_to_or_is_prolonged_and_either_states_the_whole_lifetime() {
        for (mode, ends) in [(Mode::SameUndiminished, at(10_000)), (Mode::SameProlonged, at(16_000))] {
            let mut ledger = Ledger::default();
            let first = issue(&mut ledger, mode, "api", at(0));
            let again = issue(&mut ledger, mode, "api", at(6000));
            assert_eq!((again.token, again.expires, again.stated), (first.token, ends, Duration::from_secs(10)));
            let last = ends - Duration::from_millis(1);
            assert_eq!([last, ends].map(|at| ledger.state_of("t1", at)), [TokenState::Alive, TokenState::Expired]);
        }
    }

    #[test]
    fn revoking_a_repeated_token_revokes_each_of_its_grants() {
        let mut ledger = Ledger::default();
        issue(&mut ledger, Mode::SameWhileAlive, "api", at(0));
        issue(&mut ledger, Mode::SameWhileAlive, "api", at(1));
        issue(&mut ledger, Mode::RevokePrevious, "api", at(2));
        let revoked: Vec<_> = ledger.grants().iter().map(|grant| grant.revoked_at).collect();
        assert_eq!(revoked, [Some(at(2)), Some(at(2)), None]);
    }

    #[test]
    fn beyond_the_limit_the_oldest_goes() {
        let mut ledger = Ledger::default();
        for n in 0..4 {
            issue(&mut ledger, Mode::MaxLive(2), "api", at(n));
        }
        let alive: Vec<_> = ledger.grants().iter().map(|grant| grant.is_alive(at(4))).collect();
        assert_eq!(alive, [false, false, true, true]);
        issue(&mut ledger, Mode::MaxLive(0), "api", at(5));
        assert_eq!(ledger.grants().iter().filter(|grant| grant.is_alive(at(5))).count(), 1);
    }

    #[test]
    fn debug_shows_no_token() {
        let mut ledger = Ledger::default();
        let grant = issue(&mut ledger, Mode::Independent, "api", at(0));
        assert!(!format!("{grant:?}").contains("t1"));
    }
}
