//! One lineage: the handle through which everything of it is read and written.

use std::sync::Arc;

use borealis_base::{Clock, Entropy, ErrorKind, LineageId};
use borealis_keys::DataKeys;

use crate::Result;
use crate::drills::Drills;
use crate::ledger::{Context, LedgerReader, LedgerWriter, Maintainer, Opening, Rule, Shape};
use crate::numbered::{Patience, Track, TrackName};
use crate::pins::Pins;
use crate::plan::{Damage, LineageState};
use crate::scrubs::Scrubs;
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

    /// Whether a rule of the protocol is kept, as it is but in simulations.
    pub(crate) fn keeps(&self, rule: Rule) -> bool {
        self.context().keeps(rule)
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

    fn track(&self, name: TrackName) -> Track {
        Track {
            store: self.store.clone(),
            keys: self.keys.clone(),
            owner: self.id.0,
            name,
            entries_per_recap: crate::numbered::ENTRIES_PER_RECAP,
        }
    }

    /// Reads the pins.
    pub async fn pins(&self) -> Result<Pins> {
        let track = self.track(TrackName::Pins(self.id));
        Pins::load(track, self.clock.clone(), self.entropy.clone()).await
    }

    /// Reads the log of drills.
    pub async fn drills(&self) -> Result<Drills> {
        let track = self.track(TrackName::Drills(self.id));
        Drills::load(track, self.clock.clone(), self.entropy.clone()).await
    }

    /// Reads the log of scrubs.
    pub async fn scrubs(&self) -> Result<Scrubs> {
        let track = self.track(TrackName::Scrubs(self.id));
        Scrubs::load(track, self.clock.clone(), self.entropy.clone()).await
    }

    /// What can be relied on: everything the ledger and the pins say, without what a scrub has found to
    /// be lost or damaged.
    pub async fn load_state(&self) -> Result<LineageState> {
        let mut state = self.load_stored_state().await?;
        state.withdraw(&self.known_damage().await?);
        Ok(state)
    }

    /// What scrubs have found lost or damaged. Where their own log is damaged, that is said, and nothing is known:
    /// whoever restores authenticates what it reads in any case.
    pub async fn known_damage(&self) -> Result<Vec<Damage>> {
        match self.scrubs().await {
            Ok(scrubs) => Ok(scrubs.damage().to_vec()),
            Err(error) if error.kind() == ErrorKind::Damaged => {
                tracing::warn!(%error, "what scrubs have found is not known");
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        }
    }

    /// Everything the ledger and the pins say, whatever scrubs have found.
    pub async fn load_stored_state(&self) -> Result<LineageState> {
        let mut state = self.reader().await?.state().clone();
        state.pins = self.pins().await?.all().to_vec();
        Ok(state)
    }
}
