//! Continuous protection of one cluster.
//!
//! ```text
//! receive ──▶ ship (cut ▶ index ▶ seal ▶ ledger) ──▶ durable position ──▶ back to the server
//! sample  ──▶  │                                          │
//! control ──▶  │                                          ▼
//!                                   base backups (when due, after the log they start at is durable)
//! ```
//!
//! Who owns what: the epoch of the lineage's ledger belongs to this process; the slot belongs to the
//! lineage. What survives a crash: the ledger and the slot, and nothing else is needed. How it stops:
//! the receiver ends, what was received is shipped, a running base backup is given up, the ledger is
//! closed.

mod base_backups;
pub mod begin;
pub mod captured;
mod cluster;
pub mod control;
pub mod cutter;
mod epoch;
pub mod ledger;
pub mod log_frame;
mod preflight;
pub mod receive;
pub mod sample;
pub mod schedule;
pub mod ship;
pub mod slot_policy;
mod slot_watch;
mod supervise;
mod unprotect;

pub(crate) use epoch::process_of;
pub use supervise::{Options, Stopped, protect};
pub use unprotect::unprotect;
