//! Base backups: what to read, reading it, and putting it together.

pub mod blobs;
pub mod copies;
pub mod facts;
mod gathering;
pub mod parent;
pub mod plan;
pub mod read;
pub mod read_set;
pub mod take;
mod witness;
