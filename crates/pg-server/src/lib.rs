//! Links to a PostgreSQL server, its data directory, and running one.

pub mod backup;
pub mod catalog;
pub mod check;
pub mod conninfo;
pub mod data_dir;
pub mod error;
pub mod instance;
pub mod link;
pub mod recovery;
pub mod source;

pub use error::{Error, Result};
