//! A log with many writers and no epochs: the catalog, and the pins of a lineage.
//!
//! To append is to read to the end, decide on what was read, and create the next number. Whoever
//! loses the race reads the winner's entry and decides anew, so a condition such as "no other of
//! this name" holds without locks.

use std::sync::Arc;

use borealis_base::{Clock, Entropy, ObjectId, WriteId};
use bytes::Bytes;

use super::{Chain, EntryHead, Item, Patience, Track};
use crate::store::Created;
use crate::{Error, Result};

/// Rivals that may win before an append gives up; more at once is not use but a loop.
const RACES_MAX: u32 = 64;

/// What a log's entries add up to.
pub trait Logged: Default + Send {
    /// Takes the next entry.
    fn apply(&mut self, item: &Item) -> Result<()>;
}

/// A log folded into `S`.
pub struct NumberedLog<S> {
    track: Track,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    patience: Patience,
    chain: Chain,
    recent: Vec<Item>,
    state: S,
}

impl<S: Logged> NumberedLog<S> {
    /// Reads the log to its end.
    pub(crate) async fn load(
        track: Track,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self> {
        let mut log = Self {
            chain: Chain::new(track.owner),
            track,
            clock,
            entropy,
            patience: Patience::default(),
            recent: Vec::new(),
            state: S::default(),
        };
        log.refresh().await?;
        log.track.check_end(log.chain.head).await?;
        Ok(log)
    }

    /// What the entries add up to.
    pub fn state(&self) -> &S {
        &self.state
    }

    /// The number of the last entry; zero if there is none.
    pub fn head(&self) -> u64 {
        self.chain.head
    }

    /// Reads what was appended since.
    pub async fn refresh(&mut self) -> Result<()> {
        loop {
            let mut chain = self.chain.clone();
            let stop_at = chain.head + self.track.entries_per_recap;
            let got = self.track.collect(&mut chain, stop_at).await?;
            if let Some(error) = got.misfit {
                return Err(error);
            }
            for item in got.items {
                self.take(item)?;
            }
            if got.at_end {
                return Ok(());
            }
        }
    }

    fn take(&mut self, item: Item) -> Result<()> {
        let name = self.track.name.entry(item.head.number);
        self.chain.accept(&name, &item)?;
        self.state.apply(&item)?;
        if self.recent.len() as u64 >= self.track.entries_per_recap {
            self.recent.remove(0);
        }
        self.recent.push(item);
        Ok(())
    }

    /// Appends what `decide` makes of the log's present state, and returns its number. `decide` is
    /// asked again each time a rival was first.
    ///
    /// # Errors
    /// What `decide` answers; unreachable where the store gave no answer, after which the entry may
    /// exist all the same.
    pub async fn append(&mut self, mut decide: impl FnMut(&S) -> Result<Bytes>) -> Result<u64> {
        self.refresh().await?;
        for _ in 0..RACES_MAX {
            let body = decide(&self.state)?;
            let head = EntryHead {
                owner: self.track.owner,
                number: self.chain.head + 1,
                epoch: 0,
                write_id: WriteId::random(self.entropy.as_ref()),
                previous: self.chain.digest,
                recorded_at: self.clock.now(),
                read_back: 0,
            };
            let (number, write_id) = (head.number, head.write_id);
            let object = ObjectId::random(self.entropy.as_ref());
            let entry = self
                .track
                .seal(object, head, body, Vec::new(), &self.recent);
            if self.create(number, &entry.object.bytes).await? == Created::New {
                self.take(entry.item)?;
                return Ok(number);
            }
            self.refresh().await?;
            // The entry may be our own, from a create whose reply was lost.
            let found = self.track.read(number).await?;
            if found.is_some_and(|entry| entry.item.head.write_id == write_id) {
                return Ok(number);
            }
        }
        Err(Error::refused(
            format!(
                "appending to {} lost {RACES_MAX} races",
                self.track.name.entry(0)
            ),
            "Many writers append at the same moment; try again.",
        ))
    }

    async fn create(&self, number: u64, bytes: &Bytes) -> Result<Created> {
        let name = self.track.name.entry(number);
        let mut attempt = 1;
        loop {
            match self.track.store.create(&name, bytes.clone()).await {
                Err(error) if error.is_transient() && self.patience.wait(attempt).await => {
                    attempt += 1;
                }
                other => return Ok(other?),
            }
        }
    }
}
