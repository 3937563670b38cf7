//! Maintaining a lineage from its store alone: small log pieces become large ones, and the floor rises.
//!
//! ```text
//! LineageState ── plan_merges ──> groups ── merge ──> one object each, read back ── LogMerged
//!              └─ everything below a checkpoint done ──> baseline, floor
//! floor, older than the grace period ──> entries below it that its baseline does not name: removed
//! LineageState ── what no promise holds ──> Expired: hidden ── grace ──> Checked ──> objects deleted ── Deleted
//! ```
//!
//! Whoever does it needs no server; without the right to delete all is done but the last. Killed at any moment it leaves at
//! most an object that nobody names. Of two at once the one that opened later wins.

mod expire;
pub mod merge;
pub mod plan;
mod turn;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub use plan::{Group, Limits, MergePlan, plan_merges};
pub use turn::{Bounds, GRACE, Turn, Upkeep};
