//! Money-Go as a model: clients, and a ledger of every token that was granted.

use std::collections::BTreeMap;

use crate::schedule::Mode;
use crate::time::{Millis, SECOND};

/// One grant.
#[derive(Debug, Clone)]
pub struct Grant {
    /// The client's id.
    pub client: String,
    /// The scope asked for.
    pub scope: String,
    /// When.
    pub issued: Millis,
    /// The first moment at which the token is not good any more.
    pub expires: Millis,
    /// When a later grant revoked it.
    pub revoked: Option<Millis>,
    /// The answer came to a process that lived.
    pub delivered: bool,
}

impl Grant {
    /// Whether the token was good then.
    #[must_use]
    pub fn is_alive(&self, at: Millis) -> bool {
        at < self.expires && self.revoked.is_none_or(|revoked| at < revoked)
    }
}

/// A client as the provider knows it.
#[derive(Debug, Clone, Default)]
pub struct Client {
    /// The secrets that are right.
    pub secrets: Vec<String>,
    /// Refused whatever it says.
    pub blocked: bool,
    /// Requests that were refused, since the last that was not.
    pub refused: Vec<Millis>,
}

/// The model.
#[derive(Debug)]
pub struct Provider {
    mode: Mode,
    lifetime: Millis,
    /// By client id.
    pub clients: BTreeMap<String, Client>,
    /// In order of issue. A token's number is its place here, from 1 on.
    pub grants: Vec<Grant>,
}

/// What is answered with 200.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The place in [`Provider::grants`].
    pub grant: usize,
    /// The token.
    pub token: String,
    /// `expires_in`.
    pub expires_in: u64,
}

impl Provider {
    /// A provider without clients.
    #[must_use]
    pub fn new(mode: Mode, lifetime: Millis) -> Self {
        Self { mode, lifetime, clients: BTreeMap::new(), grants: Vec::new() }
    }

    /// The token with that number.
    fn token(number: usize) -> String {
        format!("token-canary-{:06}", number + 1)
    }

    /// The grant that gave a token.
    #[must_use]
    pub fn grant_of(&self, token: &str) -> Option<&Grant> {
        let number: usize = token.strip_prefix("token-canary-")?.parse().ok()?;
        self.grants.get(number.checked_sub(1)?)
    }

    /// The last refusal never arrived.
    pub fn forget_refusal(&mut self, client: &str) {
        if let Some(known) = self.clients.get_mut(client) {
            known.refused.pop();
        }
    }

    /// Answers a request; none where the client is refused.
    pub fn ask(&mut self, client: &str, secret: &str, scope: &str, now: Millis) -> Option<Answer> {
        let known = self.clients.entry(client.to_owned()).or_default();
        if known.blocked || !known.secrets.iter().any(|right| right == secret) {
            known.refused.push(now);
            return None;
        }
        known.refused.clear();
        let of_client = |grant: &Grant| grant.client == client && grant.is_alive(now);
        let living: Vec<usize> =
            self.grants.iter().enumerate().filter(|(_, grant)| of_client(grant)).map(|(place, _)| place).collect();
        let same =
            living.iter().rev().copied().find(|place| self.grants.get(*place).is_some_and(|it| it.scope == scope));
        if let (Mode::SameAgain, Some(place)) = (self.mode, same) {
            let left = self.grants.get(place).map_or(0, |grant| grant.expires - now);
            return Some(Answer { grant: place, token: Self::token(place), expires_in: left / SECOND });
        }
        let keep = match self.mode {
            Mode::RevokesLast => 0,
            Mode::AtMost(most) => most.saturating_sub(1),
            Mode::Independent | Mode::SameAgain => usize::MAX,
        };
        for place in living.iter().take(living.len().saturating_sub(keep)) {
            if let Some(grant) = self.grants.get_mut(*place) {
                grant.revoked = Some(now);
            }
        }
        let place = self.grants.len();
        self.grants.push(Grant {
            client: client.to_owned(),
            scope: scope.to_owned(),
            issued: now,
            expires: now + self.lifetime,
            revoked: None,
            delivered: false,
        });
        Some(Answer { grant: place, token: Self::token(place), expires_in: self.lifetime / SECOND })
    }
}
