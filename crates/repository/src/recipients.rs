//! Who can open a repository, and how its keys are followed by others.
//!
//! A change of recipients writes one small ring. It takes nothing back: the rings before it stay, and
//! whoever holds a key that was a recipient can open those, and with them what was sealed until then. Only
//! [`Repository::renew`] shuts such a holder out of what is sealed from then on.

use std::sync::Arc;

use borealis_base::Timestamp;
use borealis_keys::{DataKeys, KeyId, KeyProvider};

use crate::catalog::Lineage;
use crate::keychain::{Keychain, RecipientState, is_due};
use crate::keyring::{Draft, OwnerWrap};
use crate::open::Repository;
use crate::plan::LineageState;
use crate::{Error, Result};

/// About how many bytes a lineage has been given since `since`, by what its ledger says: log pieces, names
/// and base backups.
pub fn sealed_since(state: &LineageState, since: Timestamp) -> u64 {
    let pieces = (state.pieces.iter().rev())
        .take_while(|piece| piece.recorded_at >= since)
        .map(|piece| piece.stored_bytes);
    let names = (state.names.iter().rev())
        .take_while(|names| names.taken_at >= since)
        .map(|names| names.stored_bytes);
    let backups = (state.base_backups.iter().rev())
        .take_while(|backup| backup.recorded_at >= since)
        .map(|backup| backup.new_bytes);
    pieces.chain(names).chain(backups).sum()
}

/// What is to be changed in the repository's ring.
pub(crate) enum Change<'a> {
    /// One more recipient.
    Add(&'a dyn KeyProvider),
    /// One less.
    Remove(KeyId),
    /// The recipient at hand wraps anew.
    Rewrap,
    /// The repository's key and the catalog's data key are followed by others, and these root keys wrap for
    /// the recipients that are not at hand.
    Renew(&'a [Arc<dyn KeyProvider>]),
    /// No lineage needs the former keys any more.
    EndRenewal,
    /// The catalog's data key is followed by another, if it has come of age.
    NextDataKey,
}

impl Change<'_> {
    /// Changes what the next ring is made of; false where there is nothing to change.
    pub(crate) async fn apply(&self, keychain: &Keychain, draft: &mut Draft) -> Result<bool> {
        let before = draft.wraps.len();
        match self {
            Self::Add(provider) => {
                let key = provider.key_id();
                if draft.wraps.iter().any(|wrap| wrap.recipient.key == key) {
                    return Ok(false);
                }
                let wrap = keychain.wrap_for(draft, *provider).await?;
                draft.wraps.push(wrap);
            }
            Self::Remove(key) => {
                draft.wraps.retain(|wrap| wrap.recipient.key != *key);
                return Ok(draft.wraps.len() < before);
            }
            Self::Rewrap => {
                let own = keychain.provider_id();
                let fresh = keychain.wrap_for(draft, &**keychain.provider()).await?;
                for wrap in &mut draft.wraps {
                    if wrap.recipient.key == own {
                        *wrap = fresh.clone();
                    }
                }
            }
            Self::Renew(others) => {
                let former = std::mem::replace(&mut draft.owner_key, keychain.new_owner_key());
                draft.former_keys.insert(0, former);
                draft.data_keys = next_keys(&draft.data_keys, keychain.new_data_key());
                draft.wraps = wrap_for_all(keychain, draft, others).await?;
            }
            Self::EndRenewal => draft.former_keys.clear(),
            Self::NextDataKey => {
                if !is_due(draft.data_keys.current().created, 0, keychain.now()) {
                    return Ok(false);
                }
                draft.data_keys = next_keys(&draft.data_keys, keychain.new_data_key());
            }
        }
        Ok(true)
    }
}

/// Wraps the new key of the repository for each of its recipients.
async fn wrap_for_all(
    keychain: &Keychain,
    draft: &Draft,
    others: &[Arc<dyn KeyProvider>],
) -> Result<Vec<OwnerWrap>> {
    let mut wraps = Vec::with_capacity(draft.wraps.len());
    for wrap in &draft.wraps {
        let wanted = wrap.recipient.key;
        let mut known = std::iter::once(keychain.provider()).chain(others);
        let provider = known.find(|provider| provider.key_id() == wanted);
        let provider = provider.ok_or_else(|| {
            Error::refused(
                format!("{} is a recipient too, and is not at hand", wrap.recipient),
                "Name it with --recipient, or remove it from the recipients first.",
            )
        })?;
        wraps.push(keychain.wrap_for(draft, &**provider).await?);
    }
    Ok(wraps)
}

impl Repository {
    /// Who can open it.
    pub async fn recipients(&self) -> Result<Vec<RecipientState>> {
        self.keychain().recipients().await
    }

    /// Asks the root key's service whether the key still opens the newest ring, and takes over what has been
    /// changed there; that of `lineage` too, where one is named.
    ///
    /// # Errors
    /// Whatever the key's service says; refused where the key is a recipient no more.
    pub async fn check_key(&self, lineage: Option<&Lineage>) -> Result<()> {
        self.keychain().refresh().await?;
        if let Some(lineage) = lineage {
            let (_, open) = self.keychain().open_lineage(lineage.id()).await?;
            lineage.keys().renew(&open.data_keys);
        }
        Ok(())
    }

    /// Lets one more key open the repository, once it has shown that it does. False where it could already.
    ///
    /// # Errors
    /// Whatever its service says; nothing is written then.
    pub async fn add_recipient(&self, provider: Arc<dyn KeyProvider>) -> Result<bool> {
        self.keychain().amend(&Change::Add(&*provider)).await
    }

    /// Lets a key open no newer ring.
    ///
    /// # Errors
    /// Refused for the key that this repository was opened with, which is what keeps the last one: whoever
    /// removes a key has shown that another one opens.
    pub async fn remove_recipient(&self, key: KeyId) -> Result<()> {
        if key == self.keychain().provider_id() {
            return Err(Error::refused(
                format!("key {key} is the one that this repository was opened with"),
                "Open it with the key of a recipient that stays: that shows that one is left.",
            ));
        }
        if self.keychain().amend(&Change::Remove(key)).await? {
            return Ok(());
        }
        Err(Error::NotFound {
            what: format!("a recipient with key {key}"),
        })
    }

    /// Has the key that opened this wrap the repository's key anew, with its service's newest version.
    pub async fn rewrap(&self) -> Result<()> {
        self.keychain().amend(&Change::Rewrap).await.map(|_| ())
    }

    /// Makes every key below the root keys anew, so that what is sealed from now on opens with none that was
    /// known before. `others` are the root keys of the other recipients, which have to wrap the new key.
    ///
    /// The repository's new key comes first, with the former one in its ring, so that every lineage can be
    /// opened at each moment; then each lineage's; then the former one goes. Ended early, it is run again.
    ///
    /// # Errors
    /// Refused where a recipient is not among `others`; nothing is written then.
    pub async fn renew(&self, others: &[Arc<dyn KeyProvider>]) -> Result<()> {
        let keychain = self.keychain();
        keychain.amend(&Change::Renew(others)).await?;
        for cluster in self.clusters().await? {
            for record in &cluster.lineages {
                let lineage = record.lineage;
                keychain
                    .amend_lineage(lineage, |draft| {
                        draft.owner_key = keychain.new_owner_key();
                        draft.wraps = vec![keychain.wrap_lineage(lineage, &draft.owner_key)];
                        draft.data_keys = next_keys(&draft.data_keys, keychain.new_data_key());
                        true
                    })
                    .await?;
            }
        }
        keychain.amend(&Change::EndRenewal).await.map(|_| ())
    }

    /// Has another data key seal what is new in the catalog and in `lineage`, where the present one has come
    /// of age or has sealed about `sealed_bytes`, too many. Its ring is stored before it seals anything.
    pub async fn follow_data_keys(&self, lineage: &Lineage, sealed_bytes: u64) -> Result<bool> {
        let keychain = self.keychain();
        let due = |keys: &DataKeys, sealed| is_due(keys.current().created, sealed, keychain.now());
        if due(keychain.catalog_keys(), 0) {
            keychain.amend(&Change::NextDataKey).await?;
        }
        if !due(lineage.keys(), sealed_bytes) {
            return Ok(false);
        }
        let known = lineage.keys().current().id;
        let keys = keychain
            .amend_lineage(lineage.id(), |draft| {
                // Another writer may have been faster.
                let due =
                    draft.data_keys.current().id == known && due(&draft.data_keys, sealed_bytes);
                if due {
                    draft.data_keys = next_keys(&draft.data_keys, keychain.new_data_key());
                }
                due
            })
            .await?;
        lineage.keys().renew(&keys);
        Ok(lineage.keys().current().id != known)
    }
}

/// `keys`, and `current` that seals from now on.
fn next_keys(keys: &DataKeys, current: borealis_keys::DataKey) -> DataKeys {
    let next = DataKeys::new(current);
    for key in keys.all() {
        next.add(key);
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyring::wrap_for_repository;
    use crate::layout;
    use crate::open::Environment;
    use crate::store::{MemoryStore, Store};
    use borealis_base::{ErrorKind, ManualClock, SystemEntropy};
    use borealis_keys::{DataKey, FileKey, SecretKey};
    use bytes::Bytes;

    /// A key that stayed would open the new rings for whoever has it from the old ones.
    #[tokio::test]
    async fn a_renewal_makes_every_key_anew() {
        let key = FileKey::in_memory(&SystemEntropy);
        let environment = Environment {
            store: Arc::new(MemoryStore::default()),
            clock: Arc::new(ManualClock::new(Timestamp(1))),
            entropy: Arc::new(SystemEntropy),
        };
        let repository = Repository::init(environment, &[&key]).await.unwrap();
        let lineage = repository
            .create_cluster("shop", Bytes::new())
            .await
            .unwrap()
            .id();
        let keychain = repository.keychain();
        let keys = async || {
            let (_, open) = keychain.open_lineage(lineage).await.unwrap();
            [
                keychain.key(),
                keychain.catalog_keys().current().secret,
                open.owner_key,
                open.data_keys.current().secret,
            ]
        };
        let before = keys().await;
        repository.renew(&[]).await.unwrap();
        for (level, (before, after)) in before.iter().zip(keys().await).enumerate() {
            assert_ne!(before.expose(), after.expose(), "level {level}");
        }
    }

    /// Whoever has learnt a former key of the repository, and may write to the store, could else have new
    /// backups sealed with a key of his own.
    #[tokio::test]
    async fn a_ring_forged_with_a_former_key_of_the_repository_is_refused() {
        let store = Arc::new(MemoryStore::default());
        let key = FileKey::in_memory(&SystemEntropy);
        let environment = Environment {
            store: store.clone(),
            clock: Arc::new(ManualClock::new(Timestamp(1))),
            entropy: Arc::new(SystemEntropy),
        };
        let repository = Repository::init(environment.clone(), &[&key])
            .await
            .unwrap();
        let lineage = repository
            .create_cluster("shop", Bytes::new())
            .await
            .unwrap();
        let leaked = repository.keychain().key();
        repository.renew(&[]).await.unwrap();

        let owner_key = SecretKey::random(&SystemEntropy);
        let owner = lineage.id().0;
        let forged = Draft {
            owner,
            number: 3,
            wraps: vec![wrap_for_repository(
                owner,
                &owner_key,
                &leaked,
                Timestamp(1),
                &SystemEntropy,
            )],
            owner_key,
            former_keys: Vec::new(),
            data_keys: DataKeys::new(DataKey::random(&SystemEntropy)),
        };
        let name = layout::lineage_keys(lineage.id(), 3);
        store
            .create(&name, forged.seal(&SystemEntropy))
            .await
            .unwrap();
        let fresh = Repository::open(environment, &key).await.unwrap();
        let error = fresh.lineage(lineage.id()).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
        assert!(error.to_string().contains(&name), "{error}");
    }
}
