//! What can be seen from outside: logs, metrics, `/healthz`, `/readyz` and `/metrics`.
//!
//! Secrets stay out of all of it. Crates that can print a request, a response or a parser's excerpt are held below
//! the level at which they do, whatever the user asks for; panics are reported without their payload;
//! metric labels are fixed words.

mod catalogue;
mod exposition;
mod logs;
mod metrics;
mod objects;
mod probes;
mod process;
mod server;

pub use catalogue::{CATALOGUE, Described, Kind};
#[cfg(feature = "otlp")]
pub use logs::init_logging_and_traces;
#[cfg(test)]
pub(crate) use logs::tests::Lines;
pub use logs::{LogError, LogFormat, LogLevel, hide_panic_payloads, init_logging};
pub use metrics::Metrics;
pub use probes::{HEARTBEAT_LIMIT, Probes};
pub use server::serve;
