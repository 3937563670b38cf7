//! Base backups as the server sees them: between [`BackupSession::start`] and
//! [`BackupSession::stop`] it writes whole pages into the log, so that pages read meanwhile may be
//! torn or newer and replay from the start makes them right.
//!
//! One session owns a backup. Dropping it closes the connection and the server abandons the backup
//! by itself (`do_pg_abort_backup` in `xlog.c`): nothing is left behind, whatever was killed.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use borealis_base::{Branch, Position, Progress, Unit};

use crate::conninfo::ConnInfo;
use crate::error::{Error, Result};
use crate::link::{SqlLink, quote_literal};

/// How often the progress of the waiting checkpoint is looked at.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// How long a cancelled statement may take to end before its connection is dropped.
const CANCEL_WAIT: Duration = Duration::from_secs(5);

/// Where a backup began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackupStart {
    /// The redo position of its checkpoint: replay begins here.
    pub position: Position,
    /// The timeline.
    pub branch: Branch,
}

/// What the end of a backup gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupStop {
    /// Log up to here must be replayed before the pages are consistent.
    pub position: Position,
    /// The content of `backup_label`.
    pub label: String,
    /// The content of `tablespace_map`; empty where there are no tablespaces.
    pub tablespace_map: String,
}

/// A running backup.
#[derive(Debug)]
pub struct BackupSession {
    link: SqlLink,
    start: BackupStart,
}

impl BackupSession {
    /// Begins a backup on a session of its own.
    ///
    /// With `fast` the server makes a checkpoint at once; else it spreads one, which may take most of
    /// `checkpoint_timeout`. The wait reports its progress and ends with `Interrupted` when `cancel`
    /// completes.
    pub async fn start(
        info: &ConnInfo,
        label: &str,
        fast: bool,
        progress: &dyn Progress,
        cancel: impl Future<Output = ()> + Send,
    ) -> Result<Self> {
        let link = SqlLink::connect(info).await?;
        // The checkpoint has no bound of its own, and neither has the reading that follows.
        link.run("SET statement_timeout = 0; SET lock_timeout = 0")
            .await?;
        let call = if link.major() >= 15 {
            format!("pg_backup_start({}, {fast})", quote_literal(label))
        } else {
            format!("pg_start_backup({}, {fast}, false)", quote_literal(label))
        };
        // The timeline is read after the start: a standby may have followed another before it.
        let sql = format!("SELECT {call} AS position");
        let row = {
            let begin = link.row(&sql);
            let watch = watch_checkpoint(info, progress);
            tokio::pin!(begin, watch, cancel);
            tokio::select! {
                row = &mut begin => row?,
                // Progress is a comfort: where it cannot be read, the wait goes on without.
                never = &mut watch => match never {},
                () = &mut cancel => {
                    link.canceller().cancel().await?;
                    let _ = tokio::time::timeout(CANCEL_WAIT, &mut begin).await;
                    return Err(Error::Cancelled("start of the backup"));
                }
            }
        };
        let position = row.position("position")?;
        let branch = Branch(
            link.value("SELECT timeline_id FROM pg_control_checkpoint()")
                .await?,
        );
        Ok(Self {
            link,
            start: BackupStart { position, branch },
        })
    }

    /// Where it began.
    pub fn started(&self) -> BackupStart {
        self.start
    }

    /// Whether the session is gone, and the backup with it. What was read since cannot be used.
    pub fn is_lost(&self) -> bool {
        self.link.is_closed()
    }

    /// The backup's own session, for short questions while it runs.
    pub fn link(&self) -> &SqlLink {
        &self.link
    }

    /// Ends the backup. Does not wait for an archive: whether the log is durable is ours to know.
    pub async fn stop(self) -> Result<BackupStop> {
        let call = if self.link.major() >= 15 {
            "pg_backup_stop(false)"
        } else {
            "pg_stop_backup(false, false)"
        };
        let row = self
            .link
            .row(&format!("SELECT lsn, labelfile, spcmapfile FROM {call}"))
            .await?;
        Ok(BackupStop {
            position: row.position("lsn")?,
            label: row.get("labelfile")?,
            tablespace_map: row.text("spcmapfile").unwrap_or_default().to_owned(),
        })
    }
}

/// Reports how the checkpoint that a starting backup waits for comes along; never ends.
async fn watch_checkpoint(info: &ConnInfo, progress: &dyn Progress) -> Infallible {
    progress.phase("checkpoint", Unit::Items, None);
    if let Ok(link) = SqlLink::connect(info).await {
        let mut tick = tokio::time::interval(PROGRESS_INTERVAL);
        loop {
            tick.tick().await;
            let Ok(seconds) = link
                .value::<f64>(
                    "SELECT coalesce(max(extract(epoch FROM clock_timestamp() - query_start)), 0) \
                     FROM pg_stat_activity WHERE wait_event IN ('CheckpointStart', 'CheckpointDone')",
                )
                .await
            else {
                break;
            };
            if seconds > 0.0 {
                progress.note(&format!("waiting for the checkpoint for {seconds:.0} s"));
            }
        }
    }
    std::future::pending().await
}
