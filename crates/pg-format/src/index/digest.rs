//! A few bytes that say of a log index what `find` looks for, so that it need not read most indexes.

use super::{Event, EventKind, LogIndex};

/// Bytes of an encoded digest. It is repeated in the ledger's recaps and checkpoints.
pub const DIGEST_LEN_MAX: usize = 512;

/// What of an index is worth a look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventDigest {
    /// The rules that made the index.
    pub rule_set: u32,
    /// Its events that tell of something dropped, truncated, rewritten or of many rows changed, as
    /// many as fit, in log order.
    pub events: Vec<Event>,
    /// What of such events is missing here; `None` if none is.
    pub left_out: Option<LeftOut>,
    /// See [`LogIndex::catalogs_changed`].
    pub catalogs_changed: Vec<u32>,
}

/// Which events an index holds that its digest does not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// The most rows that one of the transactions deleted and updated.
    pub rows: u64,
    /// Whether relation files, databases or tablespaces went away.
    pub drops: bool,
}

impl LeftOut {
    fn add(&mut self, kind: &EventKind) {
        match notable_rows(kind) {
            Some(rows) => self.rows = self.rows.max(rows),
            None => self.drops = true,
        }
    }
}

/// How many rows of an event were deleted or updated; `None` for another kind of event.
pub fn notable_rows(kind: &EventKind) -> Option<u64> {
    let EventKind::RowsChanged { relations, .. } = kind else {
        return None;
    };
    Some(relations.iter().fold(0, |sum: u64, rows| {
        sum.saturating_add(rows.updated)
            .saturating_add(rows.deleted)
    }))
}

/// Whether a person may want to restore to before such an event.
pub const fn is_digested(kind: &EventKind) -> bool {
    matches!(
        kind,
        EventKind::RelationsDropped { .. }
            | EventKind::RowsChanged { .. }
            | EventKind::DropCommitted { .. }
    )
}

impl LogIndex {
    /// Whether something may have happened that this index does not tell as an event.
    pub fn lacks_events(&self) -> bool {
        self.events_left_out > 0 || self.transactions_left_out > 0 || !self.unparsed.is_empty()
    }

    /// The digest of this index: at most [`DIGEST_LEN_MAX`] bytes when encoded.
    pub fn digest(&self) -> EventDigest {
        let mut digest = EventDigest {
            rule_set: self.rule_set,
            events: Vec::new(),
            left_out: None,
            catalogs_changed: self.catalogs_changed.clone(),
        };
        if self.lacks_events() {
            // Whoever reads the index can tell how many.
            digest.left_out = Some(LeftOut {
                rows: u64::MAX,
                drops: true,
            });
        }
        // What says that events are left out takes room, too.
        let mut room = DIGEST_LEN_MAX.saturating_sub(digest.encode().len() + LEFT_OUT_LEN_MAX);
        for event in self.events.iter().filter(|event| is_digested(&event.kind)) {
            let len = super::wire::digest_event_len(event);
            if len <= room {
                room -= len;
                digest.events.push(event.clone());
            } else {
                let left_out = digest.left_out.get_or_insert_default();
                left_out.add(&event.kind);
            }
        }
        digest
    }
}

/// Tag, length, a ten-byte number and a flag, each with its tag.
const LEFT_OUT_LEN_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use borealis_base::{RecordSpan, Timestamp};

    use super::*;
    use crate::index::{MANY_DATABASES, RelationRows};
    use crate::{Lsn, Relation};

    fn rows(at: u64, deleted: u64) -> Event {
        let relation = Relation {
            tablespace: 1663,
            database: 5,
            number: 16_384,
        };
        Event {
            record: RecordSpan {
                start: Lsn(at),
                end: Lsn(at + 8),
            },
            kind: EventKind::RowsChanged {
                xid: 9,
                time: Timestamp(1_700_000_000_000_000),
                relations: vec![RelationRows {
                    relation,
                    deleted,
                    ..RelationRows::default()
                }],
            },
        }
    }

    #[test]
    fn what_does_not_fit_is_told_by_what_it_could_be() {
        let index = LogIndex {
            rule_set: 2,
            events: (0..40).map(|n| rows(n * 8, 1000 + n)).collect(),
            catalogs_changed: vec![0, 5, 16_400],
            ..LogIndex::default()
        };
        let digest = index.digest();
        assert!(digest.events.len() > 4 && digest.events.len() < 40);
        let left_out = LeftOut {
            rows: 1039,
            drops: false,
        };
        assert_eq!(digest.left_out, Some(left_out));
        let bytes = digest.encode();
        assert!(bytes.len() <= DIGEST_LEN_MAX, "{}", bytes.len());
        assert_eq!(EventDigest::decode(&bytes).unwrap(), digest);
    }

    #[test]
    fn an_index_without_such_events_has_a_digest_of_a_few_bytes() {
        let index = LogIndex {
            rule_set: 2,
            events: vec![Event {
                record: rows(0, 1).record,
                kind: EventKind::TablespaceDropped { tablespace: 1 },
            }],
            ..LogIndex::default()
        };
        let bytes = index.digest().encode();
        assert_eq!(bytes.len(), 2);
        let decoded = EventDigest::decode(&bytes).unwrap();
        assert_eq!((decoded.events.len(), decoded.left_out), (0, None));
    }

    #[test]
    fn an_index_that_lacks_events_is_always_worth_a_look() {
        let index = LogIndex {
            rule_set: 2,
            events_left_out: 1,
            catalogs_changed: vec![MANY_DATABASES],
            ..LogIndex::default()
        };
        let left_out = index.digest().left_out.unwrap();
        assert_eq!((left_out.rows, left_out.drops), (u64::MAX, true));
    }
}
