//! Links to a PostgreSQL server, its data directory, and running one.

pub mod backup;
pub mod conninfo;
pub mod error;
pub mod instance;
pub mod link;
pub mod source;

pub use error::{Error, Result};
