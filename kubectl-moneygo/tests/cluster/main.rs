//! The plugin on a real cluster: the API server, the operator and the stand-in for Money-Go that the operator's own tests have.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod broken;
mod commands;
mod plugin;
#[path = "../../../tests/stage/mod.rs"]
mod stage;
