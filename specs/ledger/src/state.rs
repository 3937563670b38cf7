//! What there is at one moment.

/// Epochs a search can take, at most.
pub const EPOCHS_MAX: usize = 4;
/// Ledger slots of a search, at most.
pub const SLOTS_MAX: usize = 6;
/// Writers of a search, at most.
pub const WRITERS_MAX: usize = 3;
/// Creates that the store may deliver late, at most.
pub const LATE_MAX: usize = 2;
/// Write ids per incarnation of a writer.
pub const WRITES_PER_INCARNATION: u8 = 8;

/// The bounds of a search, and what is left out of the protocol.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Writers that may run at the same time, up to [`WRITERS_MAX`].
    pub writers: usize,
    /// How often a writer may start, over all writers; restarts count.
    pub starts: u8,
    /// Slots of the ledger, up to [`SLOTS_MAX`]. A writer that needs one more halts.
    pub slots: u8,
    /// Creates that may be delivered late, up to [`LATE_MAX`]. Each may land at any later moment, and
    /// again after its object was removed.
    pub late: usize,
    /// Whether a reply to a create that took place may be lost.
    pub lost_replies: bool,
    /// Whether there is a deleter.
    pub deleter: bool,
    /// How many times a reader may read the ledger.
    pub readings: u8,
    /// What is left out.
    pub mutant: Option<Mutant>,
}

/// A rule of the protocol left out, to see that the search would notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// A create is reported as committed without looking for a newer epoch.
    NoProbe,
    /// The probe for a newer epoch comes before the create instead of after it.
    ProbeBeforeCreate,
    /// A writer opens after reading the head, without appending its own first entry.
    NoFence,
    /// Entries are removed before the floor has risen above them.
    RemoveBeforeFloor,
    /// "Exists" is taken for one's own lost reply, without comparing the write id.
    ExistsIsOwn,
    /// "Exists" is always taken for a rival's. Safe; only unavailable.
    ExistsIsRival,
    /// A starting writer goes on with the highest epoch there is.
    ReuseEpoch,
    /// Whoever reads the ledger takes what it read, and the first missing entry for its end, without
    /// looking at the floor again.
    NoFloorRecheck,
    /// A writer that has created its first entry does not look at the floor again.
    NoFloorProbeAtFence,
    /// A starting writer that reads an entry of a newer epoch goes on.
    GoesOnPastNewerEpoch,
}

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Violation {
    /// A committed entry at or above the floor is not there, or is another one.
    CommittedEntryLost,
    /// An entry was reported as committed at a moment when no reader could see it.
    CommittedHidden,
    /// A writer's entry was reported as committed after a writer of a newer epoch had opened.
    CommittedAfterTakeover,
    /// An entry was committed below one that had been committed earlier.
    OrderReversed,
    /// An entry's predecessor is not the entry before it, or an epoch is lower than an earlier one's.
    ChainBroken,
    /// There is an entry above a hole.
    Hole,
    /// An entry of an older epoch stands where an open writer's ledger had ended.
    LedgerMovedUnderWriter,
    /// Two writers hold one epoch.
    EpochShared,
    /// A reader missed an entry that had been committed before it began.
    ReaderMissedCommitted,
    /// A reader found the chain broken though the floor had not moved.
    ReaderSawDamage,
}

/// An object of the ledger. `id` stands for its write id and its digest; zero is no entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Entry {
    pub(crate) id: u8,
    pub(crate) epoch: u8,
    pub(crate) previous: u8,
}

/// A create that the store may deliver at any moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Late {
    Epoch { number: u8, owner: u8 },
    Entry { slot: u8, entry: Entry },
}

/// Where a writer stands. Between any two steps it may stall for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum At {
    Down,
    TakeEpoch,
    ReadFloor,
    ReadNext,
    RecheckFloor,
    /// Only with [`Mutant::ProbeBeforeCreate`].
    EarlyProbe,
    Create,
    Probe,
    /// Only with the fence: the entry may stand below a floor that has risen meanwhile.
    ProbeFloor,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Writer {
    pub(crate) at: At,
    /// Which start this is, from 1; also what it writes into its epoch.
    pub(crate) incarnation: u8,
    pub(crate) epoch: u8,
    /// The floor it began to read at.
    pub(crate) from: u8,
    /// The slot it reads, or creates, next.
    pub(crate) slot: u8,
    /// The id of the entry before that slot.
    pub(crate) previous: u8,
    pub(crate) previous_epoch: u8,
    /// Its write ids used so far.
    pub(crate) writes: u8,
    /// Whether its first entry is committed.
    pub(crate) fenced_in: bool,
    /// Whether reading found something that does not fit.
    pub(crate) misfit: bool,
}

impl Writer {
    pub(crate) const DOWN: Self = Self {
        at: At::Down,
        incarnation: 0,
        epoch: 0,
        from: 0,
        slot: 0,
        previous: 0,
        previous_epoch: 0,
        writes: 0,
        fenced_in: false,
        misfit: false,
    };

    pub(crate) fn entry(&self) -> Entry {
        assert!(
            self.writes < WRITES_PER_INCARNATION,
            "write ids are distinct"
        );
        Entry {
            id: self.incarnation * WRITES_PER_INCARNATION + self.writes,
            epoch: self.epoch,
            previous: self.previous,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ReaderAt {
    Idle,
    Next,
    Recheck,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Reader {
    pub(crate) at: ReaderAt,
    pub(crate) readings: u8,
    pub(crate) from: u8,
    pub(crate) slot: u8,
    pub(crate) misfit: bool,
    pub(crate) seen: [u8; SLOTS_MAX + 2],
    /// What had been committed when it began.
    pub(crate) committed: [u8; SLOTS_MAX + 2],
    pub(crate) previous_epoch: u8,
}

/// Everything at one moment. Index 0 of each array is not used.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    /// Owner of each epoch; zero where it is not taken.
    pub(crate) epochs: [u8; EPOCHS_MAX + 2],
    pub(crate) slots: [Entry; SLOTS_MAX + 2],
    /// The lowest entry kept.
    pub(crate) floor: u8,
    /// With [`Mutant::RemoveBeforeFloor`]: what the deleter means to raise the floor to.
    pub(crate) planned_floor: u8,
    pub(crate) late: [Option<Late>; LATE_MAX],
    pub(crate) starts: u8,
    pub(crate) writers: [Writer; WRITERS_MAX],
    pub(crate) reader: Reader,
    /// What was reported as committed, by slot.
    pub(crate) committed: [u8; SLOTS_MAX + 2],
    /// The highest slot reported as committed.
    pub(crate) committed_max: u8,
    /// The first slot after what each open epoch's writer had read.
    pub(crate) opened_at: [u8; EPOCHS_MAX + 2],
}

impl State {
    pub(crate) const START: Self = Self {
        epochs: [0; EPOCHS_MAX + 2],
        slots: [Entry {
            id: 0,
            epoch: 0,
            previous: 0,
        }; SLOTS_MAX + 2],
        floor: 1,
        planned_floor: 1,
        late: [None; LATE_MAX],
        starts: 0,
        writers: [Writer::DOWN; WRITERS_MAX],
        reader: Reader {
            at: ReaderAt::Idle,
            readings: 0,
            from: 0,
            slot: 0,
            misfit: false,
            seen: [0; SLOTS_MAX + 2],
            committed: [0; SLOTS_MAX + 2],
            previous_epoch: 0,
        },
        committed: [0; SLOTS_MAX + 2],
        committed_max: 0,
        opened_at: [0; EPOCHS_MAX + 2],
    };

    /// The last entry of the run that begins at the floor.
    pub(crate) fn head(&self) -> u8 {
        let mut slot = self.floor;
        while self.slots[slot as usize].id != 0 {
            slot += 1;
        }
        slot - 1
    }

    pub(crate) fn highest_epoch(&self) -> u8 {
        (1..=EPOCHS_MAX as u8)
            .rev()
            .find(|epoch| self.epochs[*epoch as usize] != 0)
            .unwrap_or(0)
    }

    pub(crate) fn highest_open(&self) -> u8 {
        (1..=EPOCHS_MAX as u8)
            .rev()
            .find(|epoch| self.opened_at[*epoch as usize] != 0)
            .unwrap_or(0)
    }

    /// Clears what no rule looks at any more, so that states that differ in it alone are one.
    pub(crate) fn normalize(&mut self) {
        for slot in 0..self.floor as usize {
            self.committed[slot] = 0;
            self.reader.committed[slot] = 0;
        }
    }

    /// What this state breaks by itself; what a step breaks, the step reports.
    pub(crate) fn check(&self) -> Option<Violation> {
        let from = self.floor as usize;
        for slot in from..self.slots.len() {
            let (entry, committed) = (self.slots[slot], self.committed[slot]);
            if committed != 0 && entry.id != committed {
                return Some(Violation::CommittedEntryLost);
            }
            if slot == from || entry.id == 0 {
                continue;
            }
            let before = self.slots[slot - 1];
            if before.id == 0 {
                return Some(Violation::Hole);
            }
            if entry.previous != before.id || entry.epoch < before.epoch {
                return Some(Violation::ChainBroken);
            }
        }
        for (epoch, opened) in self.opened_at.iter().enumerate() {
            let first = from.max(*opened as usize);
            let moved = |entry: &Entry| entry.id != 0 && (entry.epoch as usize) < epoch;
            if *opened != 0 && self.slots[first..].iter().any(moved) {
                return Some(Violation::LedgerMovedUnderWriter);
            }
        }
        None
    }
}
