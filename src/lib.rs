//! Keeps Money-Go access tokens fresh in Kubernetes Secrets.

pub mod apply;
pub mod caches;
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
