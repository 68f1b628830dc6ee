//! Keeps Money-Go access tokens fresh in Kubernetes Secrets.

pub mod crd;
pub mod schedule;
pub mod token;
