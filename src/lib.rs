//! Keeps Money-Go access tokens fresh in Kubernetes Secrets.

pub mod lease;
pub mod schedule;
pub mod telemetry;
