//! Joins a server to a repository.
pub mod base_backup;
pub mod error;
pub mod host;
pub mod protect;
pub mod restore;
pub mod site;
pub mod snapshot;
pub mod status;
pub mod verify;
pub mod wal_fetch;
pub use error::{Error, Result};
pub use site::Site;
