//! Maintaining a lineage from its store alone: small log pieces become large ones, and the floor rises.
//!
//! ```text
//! LineageState ── plan_merges ──> groups ── merge ──> one object each, read back ── LogMerged
//!              └─ everything below a checkpoint done ──> baseline, floor
//! ```
//!
//! Whoever does it needs no server and no right but to create and read. Killed at any moment it leaves at
//! most an object that nobody names. Of two at once the one that opened later wins.

pub mod merge;
pub mod plan;
mod turn;

#[cfg(test)]
mod tests;

pub use plan::{Group, Limits, MergePlan, plan_merges};
pub use turn::{Bounds, Turn, Upkeep};
