//! Key files and the envelope: what turns one small secret that a person keeps into the keys of
//! every stored object.
//!
//! ```text
//! root key (key file, later a key service)
//!   └─ wraps the key of an owner: the repository's catalog, or one lineage
//!        └─ wraps data keys
//!             └─ derive one key per stored object (in `borealis-repository`)
//! ```
//!
//! Rotating a root key rewraps the small key rings and touches no backup.
//!
//! ```
//! # use borealis_keys::{FileKey, KeyProvider};
//! # use borealis_base::SystemEntropy;
//! let dir = tempfile::tempdir()?;
//! let path = dir.path().join("borealis.key");
//! let made = FileKey::create(&path, &SystemEntropy)?;
//! assert_eq!(FileKey::read(&path)?.key_id(), made.key_id());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod data;
mod envelope;
mod error;
mod file;
mod secret;

pub use data::{DataKey, DataKeyId, DataKeys};
pub use envelope::{KeyProvider, Purpose, WrapContext, WrappedKey, unwrap, wrap};
pub use error::Error;
pub use file::FileKey;
pub use secret::{KEY_BYTES, KeyId, SecretKey, derive};
