//! Links to a PostgreSQL server, its data directory, and running one.

pub mod conninfo;
pub mod error;
pub mod instance;
pub mod link;

pub use error::{Error, Result};
