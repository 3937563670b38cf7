//! Resolves what a person asks for to the last record to replay, looking up in the stored log what
//! the ledger's summaries do not tell.

use async_trait::async_trait;
use borealis_base::{Branch, Position, RecordSpan, TimeStep};
use borealis_pg_format::Version;
use borealis_pg_format::segment::SegmentSize;
use borealis_pg_format::wal::{LogEvent, LogFormat, Start, WalReader};
use borealis_repository::Lineage;
use borealis_repository::log::{LogReader, pieces_of};
use borealis_repository::plan::{LineageState, Lookup};
use futures::TryStreamExt;

use crate::base_backup::facts::ServerState;

/// Log pieces read ahead.
const PREFETCH: usize = 4;

/// Looks into the log of a lineage.
pub struct LogLookup<'a> {
    lineage: &'a Lineage,
    state: &'a LineageState,
    format: LogFormat,
}

/// The format of the log of a server, if this version of Borealis knows it.
pub fn log_format(server: &ServerState) -> Option<LogFormat> {
    Some(LogFormat {
        version: Version::from_major(server.major())?,
        segment_size: SegmentSize::new(u32::try_from(server.wal_segment_bytes).ok()?)?,
        page_size: server.page_bytes,
    })
}

impl<'a> LogLookup<'a> {
    /// Looks into the log that `state` describes.
    pub fn new(lineage: &'a Lineage, state: &'a LineageState, format: LogFormat) -> Self {
        Self {
            lineage,
            state,
            format,
        }
    }

    fn reader(&self) -> LogReader {
        LogReader::new(
            self.lineage.store().clone(),
            self.lineage.keys().clone(),
            self.lineage.id(),
        )
    }
}

#[async_trait]
impl Lookup for LogLookup<'_> {
    async fn time_steps(&self, entry: u64) -> borealis_repository::Result<Vec<TimeStep>> {
        let piece = self.state.pieces.iter().find(|piece| piece.entry == entry);
        let piece = piece.ok_or_else(|| borealis_repository::Error::NotFound {
            what: format!("a log piece in ledger entry {entry}"),
        })?;
        self.reader().piece(piece).await?.time_steps().await
    }

    async fn last_record(
        &self,
        branch: Branch,
        from: Position,
        through: Position,
    ) -> borealis_repository::Result<Option<RecordSpan>> {
        let mut parser = WalReader::new(self.format, from, Start::Record, None);
        let mut last = None;
        let pieces = pieces_of(self.state, branch, from, through)?;
        let mut log = std::pin::pin!(self.reader().stream(pieces, PREFETCH));
        while let Some(part) = log.try_next().await? {
            parser.push(part.position, &part.bytes, &mut |event| {
                if let LogEvent::Record(record) = event
                    && record.end <= through
                {
                    last = Some(RecordSpan {
                        start: record.start,
                        end: record.end,
                    });
                }
            });
        }
        Ok(last)
    }
}
