//! Protect.
pub mod control;
pub mod cutter;
pub mod receive;
pub mod schedule;
pub mod slot_policy;
