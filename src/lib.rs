//! Keeps Money-Go access tokens fresh in Kubernetes Secrets.
//!
//! # The rooms
//!
//! | module | what it is for | what is not in it |
//! |---|---|---|
//! | [`crd`] | spec and status, CEL rules, names of conditions, reasons and annotations | IO |
//! | [`schedule`] | when to refresh, when to retry, allowances | clocks, randomness |
//! | [`digest`] | keyed digests of secrets | the secrets themselves |
//! | [`access_token`] | the token, and what can be one | where it comes from |
//! | [`secret`] | the target Secret: what it should be, what its metadata tells, whose it is | IO |
//! | [`status`] | an outcome → the status | IO |
//! | [`plan`] | `plan(&Observed) -> Plan` | `async`, a client, a clock |
//! | [`token`] | `POST /token`, its answers and errors | Kubernetes |
//! | [`grants`] | the queue of grants, the limiter, the endpoint's health | Kubernetes |
//! | [`work`] | the work queue: who is to be looked at, and when | IO, clocks |
//! | [`lease`] | leader election | what a leader does |
//! | [`apply`] | reads and conditional writes | HTTP to Money-Go, decisions |
//! | [`watch`] | lists of objects, and watches of them | what is made of them |
//! | [`caches`] | what the watches have shown, folded | requests, decisions |
//! | [`memory`] | what this process alone remembers of an object | anything that must survive it |
//! | [`events`] | Kubernetes events, best effort | decisions |
//! | [`clock`] | the clocks | timers (tokio's) |
//! | [`controller`] | where the others meet: observe → plan → mint → apply → report | rules of its own |
//! | [`error`] | what a call of the API server can end in | errors of the token endpoint ([`token::TokenError`]) |
//! | [`telemetry`] | logs, metrics, probes | secrets |
//! | [`traces`] | spans for OpenTelemetry, with the feature `otlp` | secrets, spans of other crates |
//!
//! Dependencies point one way: `controller → {grants → token, apply, lease, watch, caches, memory, events, work}`, `controller → plan →
//! {secret, status} → {schedule, digest, crd, access_token}`, `controller → telemetry → {caches, grants}`. Nothing imports `controller`.
//!
//! # Invariants
//!
//! - The wall clock is read in [`clock`] alone; `clippy.toml` forbids it elsewhere.
//! - A target is written only after it was read for the purpose, and conditionally on that very version.
//! - A token that was issued is in [`memory`] until the write that stores it has succeeded.
//! - No type that holds a secret shows it in `Debug`, and no error carries text of a response.

pub mod access_token;
pub mod apply;
pub mod caches;
pub mod clock;
pub mod controller;
pub mod crd;
pub mod digest;
pub mod error;
pub mod events;
pub mod grants;
pub mod lease;
pub mod memory;
pub mod plan;
pub mod schedule;
pub mod secret;
pub mod status;
pub mod telemetry;
pub mod token;
pub mod traces;
pub mod watch;
pub mod work;
