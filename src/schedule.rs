//! When to refresh and when to retry. Pure arithmetic: no clock is read here.

use std::time::Duration;

/// How long before its expiry a token is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renew {
    /// When a third of the lifetime is left: ten days of thirty.
    ThirdLeft,
    /// When this much of the lifetime is left, in percent (5 to 90).
    PercentLeft(u8),
    /// This long before expiry.
    Before(Duration),
}
