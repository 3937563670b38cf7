//! A repository: made, opened, and asked for its clusters.
//!
//! Making one writes the catalog's key ring first and the descriptor last. Without the descriptor
//! there is no repository; making it again goes on with the key ring that is there.

use std::sync::Arc;

use borealis_base::{Clock, Entropy, ErrorKind, LineageId, ObjectId, RepositoryId, Timestamp};
use borealis_keys::{DataKey, DataKeyId, DataKeys, KeyId, KeyProvider, SecretKey};
use bytes::Bytes;
use prost::Message;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::catalog::{CatalogBody, CatalogState, Cluster, Lineage, Parent, check_cluster_name};
use crate::keychain::Keychain;
use crate::keyring::{Draft, KeyRing, Recipient, wrap_for_root};
use crate::numbered::{ENTRIES_PER_RECAP, EntryHead, NumberedLog, Track, TrackName};
use crate::object::{ObjectBuilder, ObjectKind, ObjectView, fetch, fetch_with};
use crate::store::Store;
use crate::{Error, Result, layout};

/// What a repository works with.
#[derive(Clone)]
pub struct Environment {
    /// Where the objects are.
    pub store: Arc<dyn Store>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Where ids and keys come from.
    pub entropy: Arc<dyn Entropy>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RecipientMessage {
    #[prost(string, tag = "1")]
    scheme: String,
    #[prost(bytes = "bytes", tag = "2")]
    key: Bytes,
    #[prost(string, tag = "3")]
    label: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DescriptorMessage {
    #[prost(bytes = "bytes", tag = "1")]
    repository: Bytes,
    #[prost(sint64, tag = "2")]
    created: i64,
    #[prost(message, repeated, tag = "3")]
    recipients: Vec<RecipientMessage>,
}

/// What can be told about a repository without any key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// Its id.
    pub repository: RepositoryId,
    /// When it was made.
    pub created: Timestamp,
    /// The root keys that could open it when it was made.
    pub recipients: Vec<Recipient>,
}

/// An open repository.
pub struct Repository {
    environment: Environment,
    descriptor: Descriptor,
    keychain: Arc<Keychain>,
    catalog: Mutex<NumberedLog<CatalogState>>,
}

/// Reads the descriptor: what can be told without a key.
pub async fn describe(store: &dyn Store) -> Result<Descriptor> {
    let view = match fetch(store, layout::DESCRIPTOR, ObjectKind::Descriptor).await {
        Err(error) if error.is_absent() => {
            return Err(Error::NotFound {
                what: format!("a repository at {}", store.url()),
            });
        }
        other => other?,
    };
    read_descriptor(&view)
}

fn read_descriptor(view: &ObjectView) -> Result<Descriptor> {
    let malformed = || view.head().damaged("its content is malformed");
    let message =
        DescriptorMessage::decode(view.head().clear().clone()).map_err(|_| malformed())?;
    Ok(Descriptor {
        repository: RepositoryId::from_slice(&message.repository).ok_or_else(malformed)?,
        created: Timestamp(message.created),
        recipients: (message.recipients.into_iter())
            .map(|r| {
                Some(Recipient {
                    key: KeyId::from_slice(&r.key)?,
                    scheme: r.scheme,
                    label: r.label,
                })
            })
            .collect::<Option<_>>()
            .ok_or_else(malformed)?,
    })
}

/// A descriptor, for people.
pub(crate) fn inspect_descriptor(view: &ObjectView) -> Result<Value> {
    let descriptor = read_descriptor(view)?;
    let recipients: Vec<Value> = (descriptor.recipients.iter())
        .map(|r| json!({"scheme": r.scheme, "key": r.key.to_string(), "label": r.label}))
        .collect();
    Ok(json!({
        "repository": descriptor.repository,
        "created": descriptor.created,
        "recipients": recipients,
    }))
}

impl Repository {
    /// Makes a repository that each of `providers` can open. Killed at any moment, it can be run again.
    ///
    /// # Errors
    /// Refused where one exists, or where one was half made for other keys.
    pub async fn init<P>(environment: Environment, providers: &[P]) -> Result<Self>
    where
        P: Clone + Into<Arc<dyn KeyProvider>>,
    {
        let providers: Vec<Arc<dyn KeyProvider>> =
            providers.iter().cloned().map(Into::into).collect();
        let Some(first) = providers.first() else {
            return Err(Error::Usage {
                what: "a repository needs at least one key".to_owned(),
            });
        };
        let store = environment.store.as_ref();
        if store.stat(layout::DESCRIPTOR).await?.is_some() {
            return Err(Error::refused(
                format!("a repository exists at {}", store.url()),
                "Use it, or name another place.",
            ));
        }
        let name = layout::catalog_keys(1);
        if store.stat(&name).await?.is_none() {
            let ring = new_catalog_ring(&environment, &providers).await?;
            store.create(&name, ring).await?;
        }
        // Read back: it may be another's, who makes this repository at the same moment or who was
        // killed while making it.
        let ring = KeyRing::read(store, &name, 1).await?;
        let recipients = ring.recipients();
        let wanted: Vec<KeyId> = recipients.iter().map(|recipient| recipient.key).collect();
        let same = providers.len() == wanted.len()
            && providers
                .iter()
                .all(|provider| wanted.contains(&provider.key_id()));
        if !same || ring.open_with_root(&**first).await?.is_none() {
            return Err(Error::refused(
                format!("a repository at {} was begun with other keys", store.url()),
                "Name the same key files as then, or another place.",
            ));
        }
        let descriptor = DescriptorMessage {
            repository: Bytes::copy_from_slice(&ring.owner()?),
            created: environment.clock.now().0,
            recipients: (recipients.iter())
                .map(|recipient| RecipientMessage {
                    scheme: recipient.scheme.clone(),
                    label: recipient.label.clone(),
                    key: Bytes::copy_from_slice(&recipient.key.0),
                })
                .collect(),
        };
        let id = ObjectId::random(environment.entropy.as_ref());
        let mut builder = ObjectBuilder::new(ObjectKind::Descriptor, id, None::<DataKey>);
        builder.clear(descriptor.encode_to_vec());
        store
            .create(layout::DESCRIPTOR, builder.seal().bytes)
            .await?;
        Self::open(environment, first.clone()).await
    }

    /// Opens a repository.
    ///
    /// # Errors
    /// Not found where there is none; refused where the key is none of its recipients'.
    pub async fn open(
        environment: Environment,
        provider: impl Into<Arc<dyn KeyProvider>>,
    ) -> Result<Self> {
        let descriptor = describe(environment.store.as_ref()).await?;
        let keychain = Keychain::open(&environment, descriptor.repository, provider.into()).await?;
        let track = Track {
            store: environment.store.clone(),
            keys: keychain.catalog_keys().clone(),
            owner: descriptor.repository.0,
            name: TrackName::Catalog,
            entries_per_recap: ENTRIES_PER_RECAP,
        };
        let (clock, entropy) = (environment.clock.clone(), environment.entropy.clone());
        Ok(Self {
            catalog: Mutex::new(NumberedLog::load(track, clock, entropy).await?),
            environment,
            descriptor,
            keychain,
        })
    }

    pub(crate) fn keychain(&self) -> &Arc<Keychain> {
        &self.keychain
    }

    /// The data keys of the catalog.
    pub fn catalog_keys(&self) -> &Arc<DataKeys> {
        self.keychain.catalog_keys()
    }

    /// What can be told without a key.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// Its id.
    pub fn id(&self) -> RepositoryId {
        self.descriptor.repository
    }

    /// What it works with.
    pub fn environment(&self) -> &Environment {
        &self.environment
    }

    /// All clusters, retired ones included, in the order of their birth.
    pub async fn clusters(&self) -> Result<Vec<Cluster>> {
        let mut catalog = self.catalog.lock().await;
        catalog.refresh().await?;
        Ok(catalog.state().clusters.clone())
    }

    /// The cluster of this name that is not retired.
    pub async fn cluster(&self, name: &str) -> Result<Cluster> {
        let clusters = self.clusters().await?;
        let mut live = clusters
            .into_iter()
            .filter(|cluster| cluster.retired_at.is_none());
        live.find(|cluster| cluster.name == name)
            .ok_or_else(|| no_cluster(name))
    }

    /// Reads and authenticates every entry of the catalog; returns those that are lost or damaged.
    pub async fn read_catalog(&self) -> Result<Vec<(String, Error)>> {
        let mut catalog = self.catalog.lock().await;
        catalog.refresh().await?;
        let mut wrong = Vec::new();
        for number in 1..=catalog.head() {
            let name = layout::catalog(number);
            let read = async {
                let store = self.environment.store.as_ref();
                let keys = self.catalog_keys();
                let view = fetch_with(store, keys, &name, ObjectKind::CatalogEntry).await?;
                let head = EntryHead::decode(view.head().clear());
                let owner = self.descriptor.repository.0;
                if !head.is_some_and(|head| head.number == number && head.owner == owner) {
                    return Err(view.head().damaged("it holds another entry"));
                }
                view.authenticate(keys)
            };
            match read.await {
                Err(error) if error.kind() == ErrorKind::Damaged || error.is_absent() => {
                    wrong.push((name, error));
                }
                other => other?,
            }
        }
        Ok(wrong)
    }

    /// Makes a cluster with its first lineage.
    ///
    /// # Errors
    /// Refused where a cluster of this name exists; of two that are made at once, one is refused.
    pub async fn create_cluster(&self, name: &str, engine: Bytes) -> Result<Lineage> {
        check_cluster_name(name)?;
        let draft = self.new_lineage(None).await?;
        let lineage = LineageId(draft.owner);
        let body = CatalogBody::ClusterCreated {
            name: name.to_owned(),
            lineage,
            engine,
        }
        .encode();
        let mut catalog = self.catalog.lock().await;
        catalog
            .append(|state| match state.live(name) {
                None => Ok(body.clone()),
                Some(_) => Err(Error::refused(
                    format!("a cluster `{name}` exists"),
                    "Choose another name.",
                )),
            })
            .await?;
        self.begun(draft).await
    }

    /// Makes a lineage of a cluster, born of another one, whose objects it can read.
    pub async fn add_lineage(&self, cluster: &str, parent: Parent) -> Result<Lineage> {
        let parent_keys = self.lineage(parent.lineage).await?.keys().as_ref().clone();
        let draft = self.new_lineage(Some(&parent_keys)).await?;
        let lineage = LineageId(draft.owner);
        let body = CatalogBody::LineageAdded {
            cluster: cluster.to_owned(),
            lineage,
            parent: Some(parent),
            engine: Bytes::new(),
        }
        .encode();
        let mut catalog = self.catalog.lock().await;
        catalog
            .append(|state| match state.live(cluster) {
                Some(_) => Ok(body.clone()),
                None => Err(no_cluster(cluster)),
            })
            .await?;
        self.begun(draft).await
    }

    /// Makes a lineage of a cluster that has nothing in common with those before it.
    ///
    /// # Errors
    /// Refused where `newest` is not the newest one any more: somebody else has begun another.
    pub async fn begin_lineage(
        &self,
        cluster: &str,
        newest: LineageId,
        engine: Bytes,
    ) -> Result<Lineage> {
        let draft = self.new_lineage(None).await?;
        let lineage = LineageId(draft.owner);
        let body = CatalogBody::LineageAdded {
            cluster: cluster.to_owned(),
            lineage,
            parent: None,
            engine,
        }
        .encode();
        let mut catalog = self.catalog.lock().await;
        catalog
            .append(|state| match state.live(cluster) {
                Some(found) if found.newest_lineage().lineage == newest => Ok(body.clone()),
                Some(_) => Err(Error::refused(
                    format!("another lineage of cluster `{cluster}` was begun meanwhile"),
                    "Run it again.",
                )),
                None => Err(no_cluster(cluster)),
            })
            .await?;
        self.begun(draft).await
    }

    /// Retires a cluster: its name is free again, and its backups stay until retention removes them.
    pub async fn retire_cluster(&self, name: &str) -> Result<()> {
        let body = CatalogBody::ClusterRetired {
            cluster: name.to_owned(),
        }
        .encode();
        let mut catalog = self.catalog.lock().await;
        catalog
            .append(|state| match state.live(name) {
                Some(_) => Ok(body.clone()),
                None => Err(no_cluster(name)),
            })
            .await
            .map(|_| ())
    }

    /// Appends what `decide` makes of the cluster as it stands; returns the entry's number.
    pub(crate) async fn change(
        &self,
        name: &str,
        decide: impl Fn(&Cluster) -> Result<CatalogBody>,
    ) -> Result<u64> {
        let mut catalog = self.catalog.lock().await;
        catalog
            .append(|state| {
                let cluster = state.live(name).ok_or_else(|| no_cluster(name))?;
                Ok(decide(cluster)?.encode())
            })
            .await
    }

    /// Opens a lineage of the catalog.
    pub async fn lineage(&self, lineage: LineageId) -> Result<Lineage> {
        let mut catalog = self.catalog.lock().await;
        if catalog.state().record(lineage).is_none() {
            catalog.refresh().await?;
        }
        if catalog.state().record(lineage).is_none() {
            return Err(Error::NotFound {
                what: format!("lineage {lineage}"),
            });
        }
        drop(catalog);
        let (_, open) = self.keychain.open_lineage(lineage).await?;
        Ok(self.handle(lineage, open.data_keys))
    }

    /// The key ring that holds data key `key`, the catalog's or a lineage's; `None` where none does.
    pub async fn keys_with(&self, key: DataKeyId) -> Result<Option<Arc<DataKeys>>> {
        let catalog_keys = self.catalog_keys();
        if catalog_keys.get(key).is_some() {
            return Ok(Some(catalog_keys.clone()));
        }
        for cluster in self.clusters().await? {
            for record in &cluster.lineages {
                let lineage = self.lineage(record.lineage).await?;
                if lineage.keys().get(key).is_some() {
                    return Ok(Some(lineage.keys().clone()));
                }
            }
        }
        Ok(None)
    }

    fn handle(&self, lineage: LineageId, keys: DataKeys) -> Lineage {
        let Environment {
            store,
            clock,
            entropy,
        } = self.environment.clone();
        let keys = self.keychain.followed(lineage, keys);
        Lineage::new(lineage, store, keys, clock, entropy)
    }

    /// Writes the key ring of a new lineage. Until the catalog names it, it is of no effect.
    async fn new_lineage(&self, parent: Option<&DataKeys>) -> Result<Draft> {
        let entropy = self.environment.entropy.as_ref();
        let lineage = LineageId::random(entropy);
        let owner_key = self.keychain.new_owner_key();
        let data_keys = DataKeys::new(self.keychain.new_data_key());
        for key in parent.into_iter().flat_map(DataKeys::all) {
            data_keys.add(key);
        }
        let draft = Draft {
            owner: lineage.0,
            number: 1,
            wraps: vec![self.keychain.wrap_lineage(lineage, &owner_key)],
            owner_key,
            former_keys: Vec::new(),
            data_keys,
        };
        self.keychain.begin_lineage(&draft).await?;
        Ok(draft)
    }

    /// The handle of a lineage that the catalog names now.
    async fn begun(&self, draft: Draft) -> Result<Lineage> {
        let (lineage, keys) = (LineageId(draft.owner), draft.data_keys.clone());
        self.keychain.see_to_new_lineage(draft).await?;
        Ok(self.handle(lineage, keys))
    }
}

fn no_cluster(name: &str) -> Error {
    Error::NotFound {
        what: format!("cluster `{name}`"),
    }
}

async fn new_catalog_ring(
    environment: &Environment,
    providers: &[Arc<dyn KeyProvider>],
) -> Result<Bytes> {
    let entropy = environment.entropy.as_ref();
    let owner = RepositoryId::random(entropy).0;
    let owner_key = SecretKey::random(entropy);
    let now = environment.clock.now();
    let mut wraps = Vec::with_capacity(providers.len());
    for provider in providers {
        wraps.push(wrap_for_root(owner, &owner_key, &**provider, now, entropy).await?);
    }
    let draft = Draft {
        owner,
        number: 1,
        owner_key,
        former_keys: Vec::new(),
        wraps,
        data_keys: DataKeys::new(DataKey::made(now, entropy)),
    };
    Ok(draft.seal(entropy))
}
