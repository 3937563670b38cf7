//! Base backups: what to read, reading it, and putting it together.

pub mod blobs;
pub mod facts;
pub mod plan;
pub mod read;
pub mod read_set;
pub mod take;
mod witness;
