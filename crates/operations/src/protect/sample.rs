//! Samples the server's clock with its insert position, each second, so that an idle server's latest
//! restorable time advances too (facts, 1).

use std::time::Duration;

use borealis_base::{Branch, Position};
use borealis_pg_server::conninfo::ConnInfo;
use borealis_pg_server::link::SqlLink;
use borealis_pg_server::source::{ClockSample, clock_sample};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::ship::Durable;

/// How often.
pub const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// Samples that wait to be taken.
pub const SAMPLES_MAX: usize = 64;
/// Samples in a row that find log inserted but never flushed before the server is asked to flush.
/// Some log, such as the image of a page that a reader set hints on, is flushed only when something
/// else commits; until then nothing newer could be settled.
const UNFLUSHED_SAMPLES_MAX: u32 = 3;

/// Where samples come from, and of which log they must speak.
#[derive(Debug, Clone)]
pub struct Sampled {
    /// A primary. A standby knows no insert position: where the source names no primary beside it, none
    /// is asked, and moments are settled by the commits in the log alone.
    pub primary: Option<ConnInfo>,
    /// Whether it may be made to flush its log, which takes a transaction: only where it is the source.
    pub may_write: bool,
    /// The cluster that it must be.
    pub system_id: u64,
    /// The branch that is captured.
    pub branch: Branch,
}

/// Samples until stopped; a broken connection only leaves moments unsampled. What another cluster says or
/// a server on another branch is dropped: its positions are not those of the log that is captured.
pub async fn sample(
    from: Sampled,
    out: mpsc::Sender<ClockSample>,
    durable: watch::Receiver<Durable>,
    stop: CancellationToken,
) {
    let Some(info) = &from.primary else {
        return;
    };
    let mut tick = tokio::time::interval(SAMPLE_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut link: Option<SqlLink> = None;
    let mut unflushed = Unflushed::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let open = match link.take().filter(|link| !link.is_closed()) {
            Some(open) => open,
            None => match SqlLink::connect(info).await {
                Ok(open) => open,
                Err(error) => {
                    tracing::debug!(%error, "no clock sample");
                    continue;
                }
            },
        };
        match clock_sample(&open).await {
            Ok(sample) if (sample.branch, sample.system_id) != (from.branch, from.system_id) => {
                tracing::debug!(branch = %sample.branch, "a clock sample of another history is dropped");
            }
            Ok(sample) => {
                if unflushed.see(sample.position, durable.borrow().position) && from.may_write {
                    // A transaction number that is committed flushes all log before it.
                    if let Err(error) = open.run("SELECT pg_current_xact_id()").await {
                        tracing::debug!(%error, "the server was not made to flush");
                    }
                }
                // A full queue means that log is being shipped: moments are settled by commits.
                let _ = out.try_send(sample);
                link = Some(open);
            }
            Err(error) => tracing::debug!(%error, "no clock sample"),
        }
    }
}

/// Counts samples that find the same unflushed log.
#[derive(Debug, Default)]
struct Unflushed {
    at: Position,
    samples: u32,
}

impl Unflushed {
    /// Whether the server is to be made to flush.
    fn see(&mut self, inserted: Position, durable: Position) -> bool {
        if inserted != self.at || covers(durable, inserted) {
            *self = Self {
                at: inserted,
                samples: 0,
            };
            return false;
        }
        self.samples += 1;
        self.samples == UNFLUSHED_SAMPLES_MAX
    }
}

/// Bytes of the longest header of a log page (`XLogLongPageHeaderData`).
const PAGE_HEADER_BYTES_MAX: u64 = 40;
const LOG_PAGE_BYTES: u64 = 8192;

/// Whether log up to `end` is all that an insert position speaks of. At a page boundary the insert
/// position already counts the header of a page that is not there yet.
pub fn covers(end: Position, inserted: Position) -> bool {
    inserted <= end
        || (end.0.is_multiple_of(LOG_PAGE_BYTES) && inserted.since(end) <= PAGE_HEADER_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_insert_position_behind_a_page_header_is_covered_by_the_page_boundary() {
        assert!(covers(Position(8192), Position(8192)));
        assert!(covers(Position(8192), Position(8216)));
        assert!(covers(Position(16 << 20), Position((16 << 20) + 40)));
        assert!(!covers(Position(8192), Position(8240)));
        assert!(!covers(Position(8200), Position(8216)));
    }

    #[test]
    fn log_that_is_never_flushed_is_asked_for_once() {
        let mut unflushed = Unflushed::default();
        let seen: Vec<bool> = (0..6)
            .map(|_| unflushed.see(Position(500), Position(400)))
            .collect();
        assert_eq!(seen, [false, false, false, true, false, false]);
        assert!(!unflushed.see(Position(500), Position(500)));
    }
}
