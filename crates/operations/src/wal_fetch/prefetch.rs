//! Fetches log ahead of a recovering server: one process that opens the repository once and stays as
//! long as the server takes what it fetches.
//!
//! It follows the file `next` of the [spool](super::spool) and ends by itself: when the log goes no
//! further, when nothing was taken for a while, or when recovery has ended. It may be killed at any
//! instant; what is missing then is fetched by the call that needs it.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use borealis_base::{ErrorKind, Position};
use borealis_pg_format::segment::SegmentSize;
use borealis_repository::Lineage;

use super::spool::{Lock, Spool};
use super::{is_recovering, refuse_promoted, refuse_tablespaces, whole};
use crate::error::{Error, Result};
use crate::restore::log::fill_segment;
use crate::restore::recovery_file::RecoveryFile;

/// How often the server's next request is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// How many looks without a change end the process: ten seconds.
const IDLE_LOOKS_MAX: u32 = 500;

/// Fetches ahead until there is nothing more to do; returns how many segments that were.
pub async fn fetch_ahead(
    lineage: &Lineage,
    plan: &RecoveryFile,
    size: SegmentSize,
    data_dir: &Path,
    lock: &Lock,
) -> Result<u64> {
    let spool = Spool::of(data_dir, plan, size);
    let mut state = lineage.load_stored_state().await?;
    refuse_promoted(data_dir, plan, size, &state)?;
    let mut is_fresh = true;
    let (mut fetched, mut idle) = (0, 0);
    while let Some(next) = spool.expected() {
        if idle > IDLE_LOOKS_MAX || !is_recovering(data_dir) {
            break;
        }
        let window: BTreeSet<_> = spool.window(next).collect();
        spool.keep_only(&window)?;
        let Some(missing) = window.into_iter().find(|segment| !spool.holds(*segment)) else {
            idle += 1;
            tokio::time::sleep(LOOK_INTERVAL).await;
            continue;
        };
        idle = 0;
        let Some(pieces) = whole(&state, plan, size, missing) else {
            if is_fresh {
                break;
            }
            state = lineage.load_stored_state().await?;
            is_fresh = true;
            continue;
        };
        is_fresh = false;
        refuse_tablespaces(lineage, plan, data_dir, &pieces).await?;
        let (start, staged) = (spool.start_of(missing), spool.staged(missing));
        let (crc, len) = fill_segment(lineage, pieces, start, size, &staged).await?;
        check_length(start, len, size)?;
        spool.put(lock, missing, crc)?;
        fetched += 1;
    }
    Ok(fetched)
}

fn check_length(start: Position, len: u64, size: SegmentSize) -> Result<()> {
    if len == size.bytes() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Bug,
        format!("the log from {start} has {len} bytes and not those of a segment"),
    ))
}
