//! The keys of an open repository: held in memory, followed as new rings appear, and changed.
//!
//! State: the repository's key and the number of the ring it came from, the catalog's data keys, and the
//! root key's provider, which is asked again whenever somebody wants to know whether it still opens. Nothing
//! of it is stored but the rings. To change a ring is to read the newest, to make the next number from it and
//! to create that if it is absent; whoever loses begins again from the winner's, so that no change is lost.

use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use async_trait::async_trait;
use borealis_base::{Clock, Entropy, LineageId, RepositoryId, Timestamp};
use borealis_keys::{DataKey, DataKeys, KeyId, KeyProvider, KeySource, SecretKey};
use bytes::Bytes;

use crate::keyring::{
    Draft, KeyRing, OpenRing, OwnerWrap, Recipient, wrap_for_repository, wrap_for_root,
};
use crate::numbered::highest;
use crate::open::Environment;
use crate::recipients::Change;
use crate::store::{Created, Store};
use crate::{Error, Result, layout};

/// A data key seals nothing new when it is older than this, so that whoever learns it learns little.
pub const DATA_KEY_AGE_MAX: Duration = Duration::from_hours(30 * 24);
/// Nor when about this much was sealed with it: `docs/formats/keys.md` says why it is this number.
pub const DATA_KEY_BYTES_MAX: u64 = 1 << 46;
/// Rivals that may win before a change of a ring gives up.
const RACES_MAX: u32 = 16;

/// Who can open a repository, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecipientState {
    /// The key.
    pub recipient: Recipient,
    /// Which version of it has wrapped, where its key service has versions.
    pub version: String,
    /// Since when it is a recipient, or was last wrapped for anew.
    pub since: Timestamp,
    /// Whether this is the key that opened the repository here.
    pub opened_this: bool,
}

pub(crate) struct Keychain {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    repository: RepositoryId,
    provider: Arc<dyn KeyProvider>,
    held: RwLock<Held>,
    catalog_keys: Arc<DataKeys>,
}

struct Held {
    number: u64,
    key: SecretKey,
    former_keys: Vec<SecretKey>,
}

/// Where newer data keys of the catalog are.
struct CatalogSource(Weak<Keychain>);

/// Where newer data keys of a lineage are.
struct LineageSource {
    keychain: Arc<Keychain>,
    lineage: LineageId,
}

type Refreshed = Result<(), Box<dyn std::error::Error + Send + Sync>>;

#[async_trait]
impl KeySource for CatalogSource {
    async fn refresh(&self, _keys: &DataKeys) -> Refreshed {
        match self.0.upgrade() {
            Some(keychain) => Ok(keychain.refresh().await?),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl KeySource for LineageSource {
    async fn refresh(&self, keys: &DataKeys) -> Refreshed {
        let (_, open) = self.keychain.open_lineage(self.lineage).await?;
        keys.renew(&open.data_keys);
        Ok(())
    }
}

/// Whether a data key made at `created` is to be followed by another.
pub(crate) fn is_due(created: Timestamp, sealed_bytes: u64, now: Timestamp) -> bool {
    created.plus(DATA_KEY_AGE_MAX) <= now || sealed_bytes >= DATA_KEY_BYTES_MAX
}

/// The newest ring of the repository.
async fn newest_ring(store: &dyn Store, repository: RepositoryId, known: u64) -> Result<KeyRing> {
    let number = highest(store, layout::catalog_keys, known).await?;
    let name = layout::catalog_keys(number);
    let ring = KeyRing::read(store, &name, number)
        .await
        .map_err(|error| error.named_by(layout::DESCRIPTOR))?;
    if ring.owner()? != repository.0 {
        return Err(Error::damaged(name, "it belongs to another repository"));
    }
    Ok(ring)
}

async fn open_with(
    ring: &KeyRing,
    repository: RepositoryId,
    provider: &dyn KeyProvider,
) -> Result<OpenRing> {
    let open = ring.open_with_root(provider).await?;
    open.ok_or_else(|| Error::WrongRootKey {
        repository,
        wanted: ring.recipients(),
        place: provider.place(),
        held: provider.key_id(),
    })
}

impl Keychain {
    /// Opens the newest ring.
    ///
    /// # Errors
    /// Refused where the key is none of its recipients'; whatever the key's service says.
    pub(crate) async fn open(
        environment: &Environment,
        repository: RepositoryId,
        provider: Arc<dyn KeyProvider>,
    ) -> Result<Arc<Self>> {
        let ring = newest_ring(&*environment.store, repository, 1).await?;
        let open = open_with(&ring, repository, &*provider).await?;
        Ok(Arc::new_cyclic(|own| Self {
            store: environment.store.clone(),
            clock: environment.clock.clone(),
            entropy: environment.entropy.clone(),
            repository,
            provider,
            held: RwLock::new(Held {
                number: ring.number(),
                key: open.owner_key,
                former_keys: open.former_keys,
            }),
            catalog_keys: Arc::new(
                open.data_keys
                    .with_source(Arc::new(CatalogSource(own.clone()))),
            ),
        }))
    }

    pub(crate) fn catalog_keys(&self) -> &Arc<DataKeys> {
        &self.catalog_keys
    }

    /// The repository's key.
    pub(crate) fn key(&self) -> SecretKey {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        held.key.clone()
    }

    fn number(&self) -> u64 {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        held.number
    }

    /// The keys that may have wrapped a lineage's: the repository's, and those before it while a renewal is
    /// under way.
    fn wrapping_keys(&self) -> Vec<SecretKey> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        let former = held.former_keys.iter();
        std::iter::once(&held.key).chain(former).cloned().collect()
    }

    fn hold(&self, number: u64, open: OpenRing) {
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        // A slower look must not bring back what a faster one has replaced.
        if number >= held.number {
            self.catalog_keys.renew(&open.data_keys);
            *held = Held {
                number,
                key: open.owner_key,
                former_keys: open.former_keys,
            };
        }
    }

    /// Reads the newest ring and has the root key open it: the answer is that of its key service now.
    ///
    /// # Errors
    /// See [`Self::open`].
    pub(crate) async fn refresh(&self) -> Result<()> {
        let ring = newest_ring(&*self.store, self.repository, self.number()).await?;
        let open = open_with(&ring, self.repository, &*self.provider).await?;
        self.hold(ring.number(), open);
        Ok(())
    }

    /// The newest ring of a lineage, opened.
    pub(crate) async fn open_lineage(&self, lineage: LineageId) -> Result<(KeyRing, OpenRing)> {
        let store = &*self.store;
        let number = highest(store, |n| layout::lineage_keys(lineage, n), 1).await?;
        let name = layout::lineage_keys(lineage, number);
        let ring = KeyRing::read(store, &name, number)
            .await
            .map_err(|error| error.named_by("the catalog"))?;
        if ring.owner()? != lineage.0 {
            return Err(Error::damaged(name, "it belongs to another lineage"));
        }
        if let Some(open) = self.open_ring_of_lineage(&ring)? {
            return Ok((ring, open));
        }
        // The repository's key may have been renewed since.
        self.refresh().await?;
        match self.open_ring_of_lineage(&ring)? {
            Some(open) => Ok((ring, open)),
            None => Err(Error::damaged(
                name,
                "the repository's key does not open it",
            )),
        }
    }

    fn open_ring_of_lineage(&self, ring: &KeyRing) -> Result<Option<OpenRing>> {
        for key in self.wrapping_keys() {
            if let Some(open) = ring.open_with_repository(&key)? {
                return Ok(Some(open));
            }
        }
        Ok(None)
    }

    /// The data keys of a lineage, which look for newer ones where they meet an unknown one.
    pub(crate) fn followed(self: &Arc<Self>, lineage: LineageId, keys: DataKeys) -> DataKeys {
        keys.with_source(Arc::new(LineageSource {
            keychain: self.clone(),
            lineage,
        }))
    }

    /// Creates a ring; false where another one has taken its number.
    async fn publish(&self, name: &str, draft: &Draft) -> Result<bool> {
        let bytes = draft.seal(&*self.entropy);
        create_own(&*self.store, name, bytes).await
    }

    /// Makes the next ring of the repository by `change`; false where there is nothing to change.
    pub(crate) async fn amend(&self, change: &Change<'_>) -> Result<bool> {
        for _ in 0..RACES_MAX {
            let ring = newest_ring(&*self.store, self.repository, self.number()).await?;
            let open = open_with(&ring, self.repository, &*self.provider).await?;
            let mut draft = ring.next(open)?;
            if !change.apply(self, &mut draft).await? {
                return Ok(false);
            }
            let name = layout::catalog_keys(draft.number);
            if self.publish(&name, &draft).await? {
                self.hold(draft.number, opened(draft));
                return Ok(true);
            }
        }
        Err(lost_races(&layout::catalog_keys(0)))
    }

    /// Makes the next ring of a lineage by `change`, which says whether there is anything to change.
    pub(crate) async fn amend_lineage(
        &self,
        lineage: LineageId,
        mut change: impl FnMut(&mut Draft) -> bool,
    ) -> Result<DataKeys> {
        for _ in 0..RACES_MAX {
            let (ring, open) = self.open_lineage(lineage).await?;
            let mut draft = ring.next(open)?;
            if !change(&mut draft)
                || self
                    .publish(&layout::lineage_keys(lineage, draft.number), &draft)
                    .await?
            {
                return Ok(draft.data_keys);
            }
        }
        Err(lost_races(&layout::lineage_keys(lineage, 0)))
    }

    /// Wraps the repository's key for a provider's root key, once that has shown that it opens it.
    pub(crate) async fn wrap_for(
        &self,
        draft: &Draft,
        provider: &dyn KeyProvider,
    ) -> Result<OwnerWrap> {
        let (owner, key) = (self.repository.0, &draft.owner_key);
        wrap_for_root(owner, key, provider, self.clock.now(), &*self.entropy).await
    }

    /// Wraps a lineage's key with the repository's.
    pub(crate) fn wrap_lineage(&self, lineage: LineageId, key: &SecretKey) -> OwnerWrap {
        let now = self.clock.now();
        wrap_for_repository(lineage.0, key, &self.key(), now, &*self.entropy)
    }

    /// A new data key.
    pub(crate) fn new_data_key(&self) -> DataKey {
        DataKey::made(self.clock.now(), &*self.entropy)
    }

    /// A new owner key.
    pub(crate) fn new_owner_key(&self) -> SecretKey {
        SecretKey::random(&*self.entropy)
    }

    /// Who can open the newest ring.
    pub(crate) async fn recipients(&self) -> Result<Vec<RecipientState>> {
        let ring = newest_ring(&*self.store, self.repository, self.number()).await?;
        let own = self.provider.key_id();
        Ok((ring.wraps().into_iter())
            .map(|wrap| RecipientState {
                opened_this: wrap.recipient.key == own,
                recipient: wrap.recipient,
                version: wrap.wrapped.version,
                since: wrap.created,
            })
            .collect())
    }

    pub(crate) fn provider(&self) -> &Arc<dyn KeyProvider> {
        &self.provider
    }

    pub(crate) fn provider_id(&self) -> KeyId {
        self.provider.key_id()
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Publishes the first ring of a lineage that is made.
    pub(crate) async fn begin_lineage(&self, draft: &Draft) -> Result<()> {
        let name = layout::lineage_keys(LineageId(draft.owner), draft.number);
        if self.publish(&name, draft).await? {
            return Ok(());
        }
        Err(Error::Bug {
            what: format!("random name {name} exists"),
        })
    }

    /// A lineage was made while the repository's key was renewed: its key is wrapped anew, since the former
    /// key opens nothing once the renewal has ended.
    pub(crate) async fn see_to_new_lineage(&self, mut draft: Draft) -> Result<()> {
        let newest = newest_ring(&*self.store, self.repository, self.number()).await?;
        if newest.number() == self.number() {
            return Ok(());
        }
        self.refresh().await?;
        let lineage = LineageId(draft.owner);
        let key = self.key().id();
        if draft.wraps.iter().any(|wrap| wrap.recipient.key == key) {
            return Ok(());
        }
        draft.wraps = vec![self.wrap_lineage(lineage, &draft.owner_key)];
        draft.number += 1;
        let name = layout::lineage_keys(lineage, draft.number);
        if !self.publish(&name, &draft).await? {
            // The renewal itself has found it.
            tracing::debug!(%name, "wrapped anew by the renewal");
        }
        Ok(())
    }
}

/// Creates an object of random content; false where another's stands there.
async fn create_own(store: &dyn Store, name: &str, bytes: Bytes) -> Result<bool> {
    // What exists may be this very object, from a create whose reply was lost.
    Ok(
        store.create(name, bytes.clone()).await? == Created::New
            || store.read(name).await? == bytes,
    )
}

fn opened(draft: Draft) -> OpenRing {
    OpenRing {
        owner_key: draft.owner_key,
        former_keys: draft.former_keys,
        data_keys: draft.data_keys,
    }
}

fn lost_races(name: &str) -> Error {
    Error::refused(
        format!("changing the key ring {name} lost {RACES_MAX} races"),
        "Others change the keys at the same moment; try again.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_key_is_followed_by_another_by_age_and_by_volume() {
        let made = Timestamp(1_700_000_000_000_000);
        let day = Duration::from_hours(24);
        assert!(!is_due(made, 0, made));
        assert!(!is_due(made, 0, made.plus(day * 29)));
        assert!(is_due(made, 0, made.plus(day * 30)));
        assert!(!is_due(made, DATA_KEY_BYTES_MAX - 1, made));
        assert!(is_due(made, DATA_KEY_BYTES_MAX, made));
        // A clock that stepped back is no reason.
        assert!(!is_due(made.plus(day * 365), 0, made));
        // Whose age nobody knows is old.
        assert!(is_due(Timestamp(0), 0, made));
    }
}
