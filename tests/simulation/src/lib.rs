//! The operator's own code in a simulated world: time, an API server in memory, Money-Go as a model, and faults drawn from a
//! seed. A seed decides all of it: the same seed gives the same run.
//!
//! | module | what it is for |
//! |---|---|
//! | [`random`], [`time`] | numbers from a seed; the clocks |
//! | [`schedule`] | what a seed makes: the world, and what goes wrong in it |
//! | [`store`] | what an API server keeps, and its rules |
//! | [`moneygo`] | the provider and its ledger of tokens |
//! | [`world`], [`happenings`] | both, and what disturbances do to them |
//! | [`wire`] | what the operator's two clients speak to |
//! | [`node`] | a replica: started, crashed, frozen |
//! | [`oracle`] | the promises |
//! | [`logs`] | the operator's log |
//! | [`run`], [`search`] | one run; many, and the smallest that fails |
//! | [`scenario`] | runs that are written down |

pub mod happenings;
pub mod logs;
pub mod moneygo;
pub mod node;
pub mod oracle;
pub mod random;
pub mod run;
pub mod scenario;
pub mod schedule;
pub mod search;
pub mod store;
pub mod time;
pub mod wire;
pub mod world;
