//! One lineage: the handle through which everything of it is read and written.

use std::sync::Arc;

use borealis_base::{Clock, Entropy, LineageId};
use borealis_keys::DataKeys;

use crate::Result;
#[cfg(test)]
use crate::ledger::Rule;
use crate::ledger::{Context, LedgerReader, LedgerWriter, Maintainer, Opening, Shape};
use crate::numbered::{Patience, Track, TrackName};
use crate::pins::Pins;
use crate::plan::LineageState;
use crate::store::Store;

/// A lineage with its keys. Cheap to clone.
#[derive(Clone)]
pub struct Lineage {
    id: LineageId,
    store: Arc<dyn Store>,
    keys: Arc<DataKeys>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    patience: Patience,
    shape: Shape,
    #[cfg(test)]
    without: Option<Rule>,
}

impl Lineage {
    pub(crate) fn new(
        id: LineageId,
        store: Arc<dyn Store>,
        keys: DataKeys,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        Self {
            id,
            store,
            keys: Arc::new(keys),
            clock,
            entropy,
            patience: Patience::default(),
            shape: Shape::default(),
            #[cfg(test)]
            without: None,
        }
    }

    /// The same lineage with recaps and checkpoints of another size.
    #[cfg(test)]
    pub(crate) fn with_shape(mut self, shape: Shape) -> Self {
        self.shape = shape;
        self
    }

    /// The same lineage, a rule of the protocol left out.
    #[cfg(test)]
    pub(crate) fn without(mut self, rule: Option<Rule>) -> Self {
        self.without = rule;
        self
    }

    /// The same lineage with another patience towards a store that does not answer.
    #[must_use]
    pub fn with_patience(mut self, patience: Patience) -> Self {
        self.patience = patience;
        self
    }

    /// Its id.
    pub fn id(&self) -> LineageId {
        self.id
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Its data keys, its ancestors' included.
    pub fn keys(&self) -> &Arc<DataKeys> {
        &self.keys
    }

    /// The clock.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// The source of randomness.
    pub fn entropy(&self) -> &Arc<dyn Entropy> {
        &self.entropy
    }

    pub(crate) fn context(&self) -> Context {
        Context {
            store: self.store.clone(),
            keys: self.keys.clone(),
            lineage: self.id,
            clock: self.clock.clone(),
            entropy: self.entropy.clone(),
            shape: self.shape,
            patience: self.patience,
            #[cfg(test)]
            without: self.without,
        }
    }

    /// Reads the ledger.
    pub async fn reader(&self) -> Result<LedgerReader> {
        LedgerReader::load(self.context()).await
    }

    /// Opens the ledger for writing; see [`LedgerWriter`]. Whoever wrote it before is fenced.
    pub async fn open_writer(&self, opening: Opening) -> Result<LedgerWriter> {
        LedgerWriter::open(self.context(), opening).await
    }

    /// Opens the maintenance for writing; see [`Maintainer`]. Whoever maintained it before is fenced, and
    /// the ledger's writer is not.
    pub async fn open_maintainer(&self, opening: Opening) -> Result<Maintainer> {
        Maintainer::open(self.context(), opening).await
    }

    /// Reads the pins.
    pub async fn pins(&self) -> Result<Pins> {
        let track = Track {
            store: self.store.clone(),
            keys: self.keys.clone(),
            owner: self.id.0,
            name: TrackName::Pins(self.id),
            entries_per_recap: crate::numbered::ENTRIES_PER_RECAP,
        };
        Pins::load(track, self.clock.clone(), self.entropy.clone()).await
    }

    /// Everything the ledger and the pins say.
    pub async fn load_state(&self) -> Result<LineageState> {
        let mut state = self.reader().await?.state().clone();
        state.pins = self.pins().await?.all().to_vec();
        Ok(state)
    }
}
