//! Store, objects, ledger and keys of one repository: immutable objects in an object store, and
//! per lineage a ledger of numbered entries that says which of them count.
//!
//! ```text
//! Repository ── catalog ──> lineage ── LedgerWriter ──> ledger entries, epochs, checkpoints
//!                                  ├── Maintainer ──> maintenance entries, floors, baselines, merged log
//!                                  └── LedgerReader ──> LineageState
//! every object: ObjectBuilder ──> seal ──> Store::create        (never overwritten)
//!               Store::read   ──> ObjectView ──> open_frame     (authenticated before use)
//! ```
//!
//! Nothing here knows which database it serves: a log of positioned bytes, page files and blobs.
//! The formats are in `docs/formats/`.

pub mod catalog;
pub mod drills;
pub mod error;
pub mod inspect;
mod keychain;
mod keyring;
pub mod layout;
pub mod ledger;
pub mod log;
pub mod maintenance;
pub mod numbered;
pub mod object;
pub mod open;
pub mod pages;
pub mod pins;
pub mod plan;
mod recipients;
pub mod retention;
pub mod scrub;
pub mod scrubs;
pub mod store;
pub mod verify;
pub mod wire;

pub use catalog::{Cluster, Lineage, Parent};
pub use error::{Error, Result};
pub use keychain::{DATA_KEY_AGE_MAX, DATA_KEY_BYTES_MAX, RecipientState};
pub use keyring::Recipient;
pub use open::{Descriptor, Environment, Repository, describe};
pub use recipients::sealed_since;
