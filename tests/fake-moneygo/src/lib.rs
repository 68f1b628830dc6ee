//! A stand-in for Money-Go's token endpoint: real HTTP/1.1 (and TLS) on a real socket, with a ledger of every token it issued.
//!
//! Tests run it in process ([`FakeMoneyGo`]); the demo and containers run the binary of the same name, whose ledger, scripts and modes
//! are reached over HTTP below `/_admin/` (`admin.rs` lists the paths).
//!
//! # What it serves
//! - `POST /token`, as Money-Go documents it: a JSON body with `grant_type`, `client_id`, `client_secret` and `scope`.
//! - `GET /protected`: 200 for `Authorization: Bearer <live token>`, else 401.
//!
//! # How it refuses
//! Money-Go's documentation is silent about errors; these have the form of RFC 6749 §5.2, in the order of the checks:
//!
//! | what is wrong | status | `error` |
//! |---|---|---|
//! | another path | 404 | `not_found` |
//! | another method (`Allow` names the right one) | 405 | `method_not_allowed` |
//! | a body over 64 KiB | 413 | `invalid_request` |
//! | content type other than `application/json` | 415 | `invalid_request` |
//! | not a JSON object; a field missing or not a string | 400 | `invalid_request` |
//! | `grant_type` | 400 | `unsupported_grant_type` |
//! | too many requests (see [`RateLimit`]) | 429 | `rate_limited` |
//! | unknown client, wrong secret | 401 | `invalid_client` |
//! | `scope` empty or not among the allowed | 400 | `invalid_scope` |
//!
//! # Codemap
//! `fake` is the handle that tests hold, `server` the connections and the way of a request, `endpoint` the checks of `POST /token`, `ledger`
//! the tokens, `script` the answers that a test wrote, `admin` the same over HTTP, `state` what they share. `ledger` and
//! `endpoint` do no IO and read no clock. Every grant and request is kept until the server ends: it lives for one test or one demo.

mod admin;
mod endpoint;
mod fake;
mod ledger;
mod script;
mod server;
mod state;
mod tls;

pub use fake::{Builder, FakeMoneyGo};
pub use ledger::{Grant, Mode, TokenState};
pub use script::{Pace, Script};
pub use state::{Outage, ProtectedCounts, RateLimit, Request, RetryAfter, TimedOut};
