//! Injects faults at every request and every watch event of the operator, on a real API server and etcd, and judges what is left.
//!
//! # Codemap
//! | module | what it is for |
//! |---|---|
//! | [`interposer`] | knows each request of an operator, and what is to happen at it |
//! | [`stream`] | the same for the events of its watches |
//! | [`replica`] | an operator on a thread of its own: crashed or stopped like a process |
//! | [`world`] | the servers, the providers, and all that was ever seen in a Secret |
//! | [`cell`] | a namespace for one scenario, and its picture without times and tokens |
//! | [`scenario`] | every state of an object, and what is to come of it |
//! | [`matrix`] | every fault at every request, and at every event, in every state |
//! | [`failover`] | two replicas, the leader stopped or cut off at a request |
//! | [`edits`] | sequences of edits of the spec |
//! | [`outages`] | servers that are away, writes that are refused, an endpoint that wants to be left alone |
//! | [`random`] | draws that a seed decides |
//! | [`canary`] | secrets where none may be |
//! | [`tally`] | the counts |
//!
//! `cargo xtask faults` runs it all; `docs/reliability.md` says what it shows.

pub mod canary;
pub mod cell;
pub mod edits;
pub mod failover;
pub mod interposer;
pub mod matrix;
pub mod outages;
pub mod random;
pub mod replica;
pub mod scenario;
pub mod stream;
pub mod tally;
pub mod world;
