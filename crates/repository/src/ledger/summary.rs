//! From what an entry says to what the state keeps of it, and back.

use borealis_base::Timestamp;
use bytes::Bytes;

use super::body::{
    BaseBackup, BranchStarted, EntryBody, Gap, LogPiece, Names, PartialBaseBackup, Settled,
};
use crate::object::HeadDigest;
use crate::plan::{
    BaseBackupSummary, BranchSummary, GapSummary, Merged, NamesSummary, PartialSummary,
    PieceSummary, Run, SettledSummary,
};

/// Which entry says something, and how it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) entry: u64,
    pub(super) recorded_at: Timestamp,
    pub(super) len: u64,
    pub(super) digest: HeadDigest,
}

impl Stored {
    const fn unknown(entry: u64, recorded_at: Timestamp) -> Self {
        Self {
            entry,
            recorded_at,
            len: 0,
            digest: [0; 32],
        }
    }
}

pub(super) fn piece(stored: Stored, piece: LogPiece, merged: Option<Merged>) -> PieceSummary {
    PieceSummary {
        entry: stored.entry,
        recorded_at: stored.recorded_at,
        branch: piece.branch,
        start: piece.start,
        end: piece.end,
        settled_before: piece.settled_before,
        settled_after: piece.settled_after,
        last_record: piece.last_record,
        resume_at: piece.resume_at,
        stored_bytes: stored.len,
        head_digest: stored.digest,
        // A slice would keep all that was read with it.
        engine: (piece.engine).map(|engine| Bytes::copy_from_slice(&engine)),
        merged,
    }
}

pub(super) fn of_piece(piece: &PieceSummary) -> (Stored, EntryBody) {
    let stored = Stored {
        entry: piece.entry,
        recorded_at: piece.recorded_at,
        len: piece.stored_bytes,
        digest: piece.head_digest,
    };
    let body = EntryBody::LogPiece(LogPiece {
        branch: piece.branch,
        start: piece.start,
        end: piece.end,
        settled_before: piece.settled_before,
        settled_after: piece.settled_after,
        last_record: piece.last_record,
        resume_at: piece.resume_at,
        engine: piece.engine.clone(),
    });
    (stored, body)
}

pub(super) fn base_backup(stored: Stored, backup: &BaseBackup) -> BaseBackupSummary {
    BaseBackupSummary {
        entry: stored.entry,
        recorded_at: stored.recorded_at,
        manifest: backup.manifest,
        branch: backup.branch,
        start: backup.start,
        end: backup.end,
        started_at: backup.started_at,
        ended_at: backup.ended_at,
        new_bytes: backup.new_bytes,
        total_pages: backup.total_pages,
        rule_set: backup.rule_set,
    }
}

/// Without the engine's own record, which stays in the manifest.
pub(super) fn of_base_backup(backup: &BaseBackupSummary) -> (Stored, EntryBody) {
    let body = EntryBody::BaseBackup(BaseBackup {
        manifest: backup.manifest,
        branch: backup.branch,
        start: backup.start,
        end: backup.end,
        started_at: backup.started_at,
        ended_at: backup.ended_at,
        new_bytes: backup.new_bytes,
        total_pages: backup.total_pages,
        rule_set: backup.rule_set,
        engine: Bytes::new(),
    });
    (Stored::unknown(backup.entry, backup.recorded_at), body)
}

pub(super) fn partial(stored: Stored, partial: &PartialBaseBackup) -> PartialSummary {
    PartialSummary {
        entry: stored.entry,
        recorded_at: stored.recorded_at,
        manifest: partial.manifest,
        branch: partial.branch,
        start: partial.start,
        started_at: partial.started_at,
        new_bytes: partial.new_bytes,
        stored_pages: partial.stored_pages,
        missing_pages: partial.missing_pages,
        rule_set: partial.rule_set,
    }
}

pub(super) fn of_partial(partial: &PartialSummary) -> (Stored, EntryBody) {
    let body = EntryBody::PartialBaseBackup(PartialBaseBackup {
        manifest: partial.manifest,
        branch: partial.branch,
        start: partial.start,
        started_at: partial.started_at,
        new_bytes: partial.new_bytes,
        stored_pages: partial.stored_pages,
        missing_pages: partial.missing_pages,
        rule_set: partial.rule_set,
    });
    (Stored::unknown(partial.entry, partial.recorded_at), body)
}

pub(super) fn settled(stored: Stored, settled: &Settled) -> SettledSummary {
    SettledSummary {
        entry: stored.entry,
        recorded_at: stored.recorded_at,
        branch: settled.branch,
        through: settled.through,
        last_record: settled.last_record,
        run: Run::at(stored.recorded_at),
    }
}

pub(super) fn of_settled(settled: &SettledSummary) -> (Stored, EntryBody) {
    let body = EntryBody::Settled(Settled {
        branch: settled.branch,
        through: settled.through,
        last_record: settled.last_record,
    });
    (Stored::unknown(settled.entry, settled.recorded_at), body)
}

pub(super) fn gap(stored: Stored, gap: Gap) -> GapSummary {
    GapSummary {
        entry: stored.entry,
        branch: gap.branch,
        from: gap.from,
        to: gap.to,
        reason: gap.reason,
    }
}

pub(super) fn of_gap(gap: &GapSummary) -> (Stored, EntryBody) {
    let body = EntryBody::Gap(Gap {
        branch: gap.branch,
        from: gap.from,
        to: gap.to,
        reason: gap.reason.clone(),
    });
    (Stored::unknown(gap.entry, Timestamp(0)), body)
}

pub(super) fn branch(stored: Stored, started: BranchStarted) -> BranchSummary {
    BranchSummary {
        entry: stored.entry,
        parent: started.parent,
        at: started.at,
        history: started.history,
    }
}

pub(super) fn of_branch(
    branch: borealis_base::Branch,
    summary: &BranchSummary,
) -> (Stored, EntryBody) {
    let body = EntryBody::BranchStarted(BranchStarted {
        branch,
        parent: summary.parent,
        at: summary.at,
        history: summary.history.clone(),
    });
    (Stored::unknown(summary.entry, Timestamp(0)), body)
}

pub(super) fn names(stored: Stored, names: &Names) -> NamesSummary {
    NamesSummary {
        entry: stored.entry,
        branch: names.branch,
        from: names.from,
        to: names.to,
        taken_at: names.taken_at,
        whole: names.whole,
        stored_bytes: stored.len,
        head_digest: stored.digest,
    }
}

pub(super) fn of_names(names: &NamesSummary) -> (Stored, EntryBody) {
    let stored = Stored {
        entry: names.entry,
        recorded_at: Timestamp(0),
        len: names.stored_bytes,
        digest: names.head_digest,
    };
    let body = EntryBody::Names(Names {
        branch: names.branch,
        from: names.from,
        to: names.to,
        taken_at: names.taken_at,
        whole: names.whole,
    });
    (stored, body)
}
