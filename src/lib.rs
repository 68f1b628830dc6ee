//! Keeps Money-Go access tokens fresh in Kubernetes Secrets.

pub mod crd;
pub mod digest;
pub mod plan;
pub mod schedule;
pub mod secret;
pub mod status;
