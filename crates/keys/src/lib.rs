//! Root keys and the envelope: what turns one small secret into the keys of every stored object.
//!
//! ```text
//! root key (key file, AWS KMS, Vault transit)
//!   └─ wraps the key of an owner: the repository's catalog, or one lineage
//!        └─ wraps data keys
//!             └─ derive one key per stored object (in `borealis-repository`)
//! ```
//!
//! Changing a root key rewraps the repository's small key ring and touches no backup. A root key is named
//! by a [`KeyUrl`] and used through a [`KeyProvider`]; a key service shows it to nobody.
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
mod kms;
mod secret;
mod service;
mod url;
mod vault;

use std::sync::Arc;

use borealis_base::{Clock, Entropy};

pub use data::{DataKey, DataKeyId, DataKeys, KeySource};
pub use envelope::{KeyProvider, Purpose, WrapContext, WrappedKey, unwrap, wrap};
pub use error::{Error, Why};
pub use file::FileKey;
pub use kms::KmsKey;
pub use secret::{KEY_BYTES, KeyId, SecretKey, derive};
pub use url::{KeyUrl, KmsUrl, VaultUrl};
pub use vault::VaultKey;

/// What a key provider works with.
#[derive(Clone)]
pub struct Outfit {
    /// What time it is, for signatures.
    pub clock: Arc<dyn Clock>,
    /// Where the jitter of pauses comes from.
    pub entropy: Arc<dyn Entropy>,
}

/// Finds the root key that `url` names.
///
/// # Errors
/// See [`Error`]: a key file that can't be read, a key service that gives no answer or says no.
pub async fn open(url: &KeyUrl, outfit: &Outfit) -> Result<Arc<dyn KeyProvider>, Error> {
    Ok(match url {
        KeyUrl::File(path) => Arc::new(FileKey::read(path)?),
        KeyUrl::AwsKms(url) => Arc::new(KmsKey::open(url, outfit).await?),
        KeyUrl::Vault(url) => Arc::new(VaultKey::open(url, outfit)?),
    })
}
