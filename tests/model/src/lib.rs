//! A model check of the operator: its own `plan()`, for every order in which two replicas, their API server, Money-Go, people
//! and a few faults can act, within the bounds of a [`setting::Setting`].

pub mod promises;
pub mod replica;
pub mod search;
pub mod setting;
pub mod shared;
pub mod step;
pub mod turn;
pub mod world;
