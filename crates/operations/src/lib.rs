//! Joins a server to a repository: each module is one thing that people ask for.
//!
//! - continuous backup ([`protect`]): replication stream → cut → log index → seal → ledger; the durable
//!   position goes back to the server.
//! - base backup ([`base_backup`]): start → blocks changed since the last one's start → check → pack → seal;
//!   stop → log durable past the stop → ledger.
//! - restore ([`restore`]): moment → position → base backup and log → files, control file last → recovery
//!   → ready. [`wal_fetch`] answers the recovering server.
//! - [`find`]: log indexes and names → what was dropped, truncated, deleted → the command that restores to before.
//! - [`drill`]: random moment → restore into a scratch directory, isolated → checks → recovery time, recorded.
//! - [`scrub`]: everything live, slowly and for ever → damage → what it costs, and what heals it.
//! - [`retention`]: what is kept, by which promise, what goes when, and what it takes.
//! - [`snapshot`], [`status`], [`verify`] and [`inspect`] read what the repository holds.
//!
//! A [`Site`] is an open repository; everything here starts from one.

pub mod base_backup;
pub mod drill;
pub mod error;
pub mod find;
pub mod host;
pub mod inspect;
pub mod maintain;
pub mod protect;
pub mod restore;
pub mod retention;
pub mod scrub;
pub mod site;
pub mod snapshot;
pub mod status;
pub mod verify;
pub mod wal_fetch;

pub use error::{Error, Result};
pub use site::Site;
