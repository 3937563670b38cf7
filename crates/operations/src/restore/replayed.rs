//! What the log that will be replayed says of itself, read from its indexes before anything is written.

use borealis_base::Position;
use borealis_pg_format::index::{EventKind, LogIndex};
use borealis_repository::Lineage;
use borealis_repository::log::LogReader;
use borealis_repository::plan::RestorePlan;
use futures::{StreamExt, TryStreamExt};

use super::tablespaces::{CreatedTablespace, created_in};
use crate::error::Result;
use crate::protect::log_frame;

/// Log indexes read at a time.
const INDEXES_AT_ONCE: usize = 8;

/// What a restore must know of the log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replayed {
    /// The largest values that it sets of the parameters that recovery compares, in the order of
    /// `STANDBY_PARAMETERS`.
    pub parameters: [i64; 5],
    /// The tablespaces that it creates outside the data directory, in order.
    pub tablespaces: Vec<CreatedTablespace>,
    /// Whether it creates one inside the data directory (`allow_in_place_tablespaces`).
    pub in_place: bool,
}

/// Reads it.
pub async fn replayed(lineage: &Lineage, plan: &RestorePlan) -> Result<Replayed> {
    let reader = &LogReader::of(lineage);
    let (redo, stop) = (plan.base_backup.start, plan.stop.end);
    futures::stream::iter(plan.pieces.clone())
        .map(|part| async move {
            let stored = reader.piece(&part.piece).await?;
            let indexes = stored.indexes(part.from, part.to).await?;
            Ok::<_, crate::error::Error>((stored.head().name().to_owned(), indexes))
        })
        .buffered(INDEXES_AT_ONCE)
        .try_fold(Replayed::default(), |mut all, (name, indexes)| async move {
            for bytes in indexes {
                all = add(all, &log_frame::index(&name, &bytes)?, redo, stop);
            }
            Ok(all)
        })
        .await
}

fn add(mut all: Replayed, index: &LogIndex, redo: Position, stop: Position) -> Replayed {
    for change in index
        .parameter_changes
        .iter()
        .filter(|change| change.record.end <= stop)
    {
        let parameters = &change.parameters;
        let values = [
            parameters.max_connections,
            parameters.max_worker_processes,
            parameters.max_wal_senders,
            parameters.max_prepared_transactions,
            parameters.max_locks_per_transaction,
        ];
        for (most, value) in all.parameters.iter_mut().zip(values) {
            *most = (*most).max(i64::from(value));
        }
    }
    all.in_place |= index.events.iter().any(
        |event| matches!(&event.kind, EventKind::TablespaceCreated { path, .. } if path.is_empty()),
    );
    let made = created_in(index).filter(|made| made.at >= redo && made.end <= stop);
    for made in made {
        // Pieces may overlap.
        if !all.tablespaces.contains(&made) {
            all.tablespaces.push(made);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_base::RecordSpan;
    use borealis_pg_format::index::Event;

    #[test]
    fn only_tablespaces_created_between_redo_and_target_count() {
        let created = |start: u64, path: &str| Event {
            record: RecordSpan {
                start: Position(start),
                end: Position(start + 48),
            },
            kind: EventKind::TablespaceCreated {
                tablespace: 16400,
                path: path.as_bytes().to_vec(),
            },
        };
        let index = LogIndex {
            events: vec![
                created(100, "/before"),
                created(200, "/within"),
                // Inside the data directory: it goes where that goes.
                created(260, ""),
                created(300, "/after"),
            ],
            ..LogIndex::default()
        };
        let all = add(Replayed::default(), &index, Position(200), Position(330));
        let all = add(all, &index, Position(200), Position(330));
        let paths: Vec<_> = all
            .tablespaces
            .iter()
            .map(|made| made.path.clone())
            .collect();
        assert_eq!(paths, [std::path::PathBuf::from("/within")]);
        assert!(all.in_place);
    }
}
