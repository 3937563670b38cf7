//! What maintenance entries say of expiry: what no promise holds is marked and hidden, checked after the grace
//! period, and deleted.
//!
//! ```text
//! Expired (the mark) ──> Dated ── grace ──> Checked ── objects deleted ──> Deleted
//!   hidden from readers    └─ Kept            └─ what is promised after all comes back
//! ```

use std::ops::RangeInclusive;

use borealis_base::Timestamp;

use crate::plan::selection::Runs;
use crate::plan::{Forgotten, LineageState, Selected, Selection};
use crate::{Error, Result};

/// See [`MaintenanceBody::Expired`](super::MaintenanceBody::Expired).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expired {
    /// What no promise held.
    pub selection: Selection,
    /// Which moments that had settled.
    pub forgotten: Vec<Forgotten>,
}

/// See [`MaintenanceBody::Dated`](super::MaintenanceBody::Dated).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dated {
    /// The last mark that is meant, with those before it that have no date.
    pub through: u64,
    /// The time by the store's clock at which they were there.
    pub at: Timestamp,
}

/// See [`MaintenanceBody::Kept`](super::MaintenanceBody::Kept) and
/// [`MaintenanceBody::Checked`](super::MaintenanceBody::Checked).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The mark.
    pub mark: u64,
    /// What some promise holds after all.
    pub kept: Selection,
}

/// See [`MaintenanceBody::Deleted`](super::MaintenanceBody::Deleted).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deleted {
    /// The mark.
    pub mark: u64,
}

/// What has expired with one entry and is not deleted yet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mark {
    /// The maintenance entry.
    pub number: u64,
    /// What is hidden; once it is checked, what is to be deleted.
    pub selected: Selected,
    /// A time by the store's clock at which the entry was there.
    pub dated: Option<Timestamp>,
    /// Whether the grace period has passed and nothing promised is left in it.
    pub checked: bool,
}

/// The marks of a lineage, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Marks(pub(super) Vec<Mark>);

impl Marks {
    /// The ledger entries that are hidden and may come back.
    fn hidden(&self) -> impl Iterator<Item = u64> {
        let unchecked = self.0.iter().filter(|mark| !mark.checked);
        unchecked.flat_map(|mark| {
            let pieces = mark.selected.pieces.iter().map(|it| it.entry);
            pieces.chain(mark.selected.settled.iter().map(|it| it.entry))
        })
    }

    pub(super) fn expire(&mut self, number: u64, expired: &Expired, state: &mut LineageState) {
        self.0.push(Mark {
            number,
            selected: state.take(&expired.selection),
            dated: None,
            checked: false,
        });
        state.forget(&expired.forgotten, self.hidden());
    }

    pub(super) fn date(&mut self, dated: &Dated) {
        let undated = self.0.iter_mut().filter(|mark| mark.dated.is_none());
        for mark in undated.filter(|mark| mark.number <= dated.through) {
            mark.dated = Some(dated.at);
        }
    }

    /// Brings back what is promised after all; with `last` the rest never comes back.
    pub(super) fn keep(
        &mut self,
        name: &str,
        it: &Kept,
        last: bool,
        state: &mut LineageState,
    ) -> Result<()> {
        let mark = self.0.iter_mut().find(|mark| mark.number == it.mark);
        let Some(mark) = mark.filter(|mark| !mark.checked) else {
            return Err(no_mark(name, it.mark));
        };
        mark.checked = last;
        state.put_back(mark.selected.take(&it.kept));
        Ok(())
    }

    pub(super) fn delete(
        &mut self,
        name: &str,
        deleted: Deleted,
        state: &mut LineageState,
    ) -> Result<()> {
        let at = (self.0.iter()).position(|it| it.number == deleted.mark && it.checked);
        let Some(at) = at else {
            return Err(no_mark(name, deleted.mark));
        };
        self.0.remove(at);
        state.forget(&[], self.hidden());
        Ok(())
    }
}

fn no_mark(name: &str, mark: u64) -> Error {
    Error::damaged(
        name,
        format!("it speaks of what expired with maintenance entry {mark}, where that is not"),
    )
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct RunMessage {
    #[prost(uint64, tag = "1")]
    first: u64,
    #[prost(uint64, tag = "2")]
    last: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SelectionMessage {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<RunMessage>,
    #[prost(message, repeated, tag = "2")]
    settled: Vec<RunMessage>,
    #[prost(message, repeated, tag = "3")]
    names: Vec<RunMessage>,
    #[prost(uint64, repeated, tag = "4")]
    base_backups: Vec<u64>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct ForgottenMessage {
    #[prost(uint64, tag = "1")]
    entry: u64,
    #[prost(sint64, tag = "2")]
    through: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ExpiredMessage {
    #[prost(message, optional, tag = "1")]
    selection: Option<SelectionMessage>,
    #[prost(message, repeated, tag = "2")]
    forgotten: Vec<ForgottenMessage>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct DatedMessage {
    #[prost(uint64, tag = "1")]
    through: u64,
    #[prost(sint64, tag = "2")]
    at: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct KeptMessage {
    #[prost(uint64, tag = "1")]
    mark: u64,
    #[prost(message, optional, tag = "2")]
    kept: Option<SelectionMessage>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct DeletedMessage {
    #[prost(uint64, tag = "1")]
    mark: u64,
}

/// What a baseline says of a mark besides its rows.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct MarkMessage {
    #[prost(uint64, tag = "1")]
    number: u64,
    #[prost(sint64, optional, tag = "2")]
    dated: Option<i64>,
    #[prost(bool, tag = "3")]
    checked: bool,
}

fn runs(runs: &[RangeInclusive<u64>]) -> Vec<RunMessage> {
    let message = |run: &RangeInclusive<u64>| RunMessage {
        first: *run.start(),
        last: *run.end(),
    };
    runs.iter().map(message).collect()
}

/// Runs in order and apart, of entries that exist; `None` where they are not.
fn read_runs(messages: &[RunMessage]) -> Option<Runs> {
    let (mut runs, mut before) = (Runs::new(), 0);
    for run in messages {
        if run.first <= before || run.last < run.first {
            return None;
        }
        runs.push(run.first..=run.last);
        before = run.last;
    }
    Some(runs)
}

impl SelectionMessage {
    fn of(selection: &Selection) -> Self {
        Self {
            pieces: runs(&selection.pieces),
            settled: runs(&selection.settled),
            names: runs(&selection.names),
            base_backups: selection.base_backups.iter().copied().collect(),
        }
    }

    fn read(&self) -> Option<Selection> {
        Some(Selection {
            base_backups: self.base_backups.iter().copied().collect(),
            pieces: read_runs(&self.pieces)?,
            settled: read_runs(&self.settled)?,
            names: read_runs(&self.names)?,
        })
    }
}

impl ForgottenMessage {
    pub(super) fn of(forgotten: &Forgotten) -> Self {
        Self {
            entry: forgotten.entry,
            through: forgotten.through.0,
        }
    }

    pub(super) fn read(&self) -> Forgotten {
        Forgotten {
            entry: self.entry,
            through: Timestamp(self.through),
        }
    }
}

impl ExpiredMessage {
    pub(super) fn of(expired: &Expired) -> Self {
        Self {
            selection: Some(SelectionMessage::of(&expired.selection)),
            forgotten: expired.forgotten.iter().map(ForgottenMessage::of).collect(),
        }
    }

    pub(super) fn read(&self) -> Option<Expired> {
        Some(Expired {
            selection: self.selection.as_ref()?.read()?,
            forgotten: self.forgotten.iter().map(ForgottenMessage::read).collect(),
        })
    }
}

impl DatedMessage {
    pub(super) fn of(dated: &Dated) -> Self {
        Self {
            through: dated.through,
            at: dated.at.0,
        }
    }

    pub(super) fn read(&self) -> Dated {
        Dated {
            through: self.through,
            at: Timestamp(self.at),
        }
    }
}

impl KeptMessage {
    pub(super) fn of(it: &Kept) -> Self {
        Self {
            mark: it.mark,
            kept: Some(SelectionMessage::of(&it.kept)),
        }
    }

    pub(super) fn read(&self) -> Option<Kept> {
        Some(Kept {
            mark: self.mark,
            kept: self.kept.as_ref()?.read()?,
        })
    }
}

impl DeletedMessage {
    pub(super) fn of(deleted: Deleted) -> Self {
        Self { mark: deleted.mark }
    }

    pub(super) fn read(self) -> Deleted {
        Deleted { mark: self.mark }
    }
}

impl MarkMessage {
    pub(super) fn of(mark: &Mark) -> Self {
        Self {
            number: mark.number,
            dated: mark.dated.map(|at| at.0),
            checked: mark.checked,
        }
    }

    /// The mark, with nothing in it.
    pub(super) fn read(&self) -> Mark {
        Mark {
            number: self.number,
            selected: Selected::default(),
            dated: self.dated.map(Timestamp),
            checked: self.checked,
        }
    }
}
