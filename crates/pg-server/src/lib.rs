//! A PostgreSQL server as Borealis meets it: how to reach it, what it says about itself, its log as it
//! comes, its files, and running one on restored files.
//!
//! ```text
//! conninfo   a connection string, completed as libpq does
//!    ▼
//! link       one way to open a stream (TLS, login), two protocols over it:
//!    ├─ SqlLink            → source, catalog, check   facts, grants, what to paste
//!    │                     → names                    what the log's numbers stand for
//!    │                     → backup                   start and stop in one session
//!    └─ ReplicationLink    → ReplicationStream        log, never acknowledged before it is durable
//!
//! data_dir   files below a running server: listing, pages, configuration
//! recovery   the configuration of a restored cluster, as a pure function
//! instance   programs, system users, and a server from start to end
//! ```
//!
//! Nothing is installed on the server and nothing of it is written to, but for a slot and restore
//! points. A password comes from the surroundings, never from an argument:
//!
//! ```
//! use borealis_pg_server::conninfo::{ConnInfo, Surroundings};
//!
//! let surroundings = Surroundings {
//!     variables: [("PGPASSWORD".to_owned(), "secret".to_owned())].into(),
//!     home: None,
//!     os_user: None,
//!     read: &|_| Err(std::io::ErrorKind::NotFound.into()),
//! };
//! let info = ConnInfo::resolve("postgresql://ann@db.example/shop", &surroundings)?;
//! assert_eq!((info.user.as_str(), info.database.as_str()), ("ann", "shop"));
//! assert!(ConnInfo::resolve("password=secret", &surroundings).is_err());
//! # Ok::<(), borealis_pg_server::Error>(())
//! ```

pub mod backup;
pub mod catalog;
pub mod check;
pub mod conninfo;
pub mod data_dir;
pub mod error;
pub mod instance;
pub mod link;
pub mod names;
pub mod recovery;
pub mod source;

pub use conninfo::ConnInfo;
pub use error::{Error, Result};
pub use link::{ReplicationLink, SqlLink};
