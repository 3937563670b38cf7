//! Continuous protection of one cluster.
//!
//! ```text
//! receive ──▶ ship (cut ▶ index ▶ seal ▶ ledger) ──▶ durable position ──▶ back to the server
//! sample  ──▶  │                                       │        │
//! control ──▶  │                                       │        ▼
//!                                                      │     read back (each piece, soon after it was stored)
//!                                                      ▼
//!                                   base backups (when due, after the log they start at is durable)
//!                                   names (when shipped log says that catalogs changed)
//!
//! beside it: upkeep (scrubs slowly and for ever, drills each week)
//! maintain (every 10 minutes, from the store alone)
//! ```
//!
//! Who owns what: the epoch of the lineage's ledger belongs to this process; the slot belongs to the
//! lineage. What survives a crash: the ledger and the slot, and nothing else is needed. How it stops:
//! the receiver ends, what was received is shipped and read back, a running base backup is given up, the
//! ledger is closed.
//!
//! One server after the other is captured from: when one is lost or promoted, all hosts of the source are
//! asked, and the log goes on where the history that is stored leads ([`route`]), on the same branch or on
//! one that left it. A server whose history was rewritten begins a lineage of its own.
//!
//! The position reported to the server as flushed does not wait for the read-back: a server that names
//! this slot in `synchronous_standby_names` would otherwise pay a second trip to the store for each commit.

mod base_backups;
pub mod begin;
mod capture;
pub mod captured;
mod cluster;
pub mod control;
pub mod cutter;
mod epoch;
mod follow;
mod key_watch;
pub mod ledger;
pub mod log_frame;
pub mod names;
mod preflight;
pub mod pulse;
pub mod read_back;
pub mod receive;
mod route;
pub mod sample;
pub mod schedule;
pub mod ship;
pub mod slot_policy;
mod slot_watch;
mod source;
mod supervise;
mod unfenced;
mod unprotect;
pub mod upkeep;

pub(crate) use epoch::process_of;
pub use key_watch::KeyPatience;
pub use supervise::{Options, Stopped, protect};
pub use unprotect::unprotect;
