//! Base backups.
pub mod facts;
pub mod plan;
pub mod read_set;
