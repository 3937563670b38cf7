//! The ledger's protocol as a state machine, and an exhaustive search of it.
//!
//! Writers take epochs, fence, append, stall anywhere, crash and start again; the store loses
//! replies and lets creates land late, even twice; a deleter raises the floor and removes entries; a
//! reader reads step by step in between. [`explore`] visits every state within the bounds of a
//! [`Config`] and reports which invariants a state breaks, each with a shortest trace. The protocol
//! is told in `README.md`; `crates/repository/src/ledger` is the code it models.
//!
//! [`maintenance`] is a model of its own: of both rows of a lineage, floors and what is removed below them. [`expiry`] is
//! a third one: of marking, keeping and deleting what no promise holds any more.

pub mod expiry;
mod explore;
pub mod maintenance;
mod state;
mod step;

pub use explore::{Report, Trace, explore};
pub use state::{Config, Mutant, State, Violation};
