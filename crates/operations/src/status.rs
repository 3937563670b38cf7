//! What is protected, and to which moments it can be restored. Computed from what is stored (law 2),
//! never from what was asked for.

use std::time::Duration;

use borealis_base::{ByteLen, LineageId, Position, Timestamp};
use serde::Serialize;

/// The answer to `status`.
#[derive(Debug, Clone, Serialize)]
pub struct StatusReport {
    /// Where the repository is.
    pub repository: String,
    /// Its clusters.
    pub clusters: Vec<ClusterStatus>,
}

/// A cluster.
#[derive(Debug, Clone, Serialize)]
pub struct ClusterStatus {
    /// Its name.
    pub name: String,
    /// Its newest lineage.
    pub lineage: LineageId,
    /// Who protects it, or did so last.
    pub protector: Option<Protector>,
    /// Why it is no longer protected, if somebody said so.
    pub retired: Option<String>,
    /// The latest moment that can be restored to.
    pub latest_restorable_time: Option<Timestamp>,
    /// How far that is behind now.
    pub lag_seconds: Option<f64>,
    /// What can be restored.
    pub windows: Vec<WindowStatus>,
    /// How many base backups there are.
    pub base_backups: usize,
    /// The newest base backup.
    pub last_base_backup: Option<BaseBackupStatus>,
    /// How many snapshots stand.
    pub snapshots: usize,
    /// Stored bytes of log.
    pub log_bytes: u64,
    /// Stored bytes of base backups.
    pub base_backup_bytes: u64,
    /// Ranges of log that were never stored.
    pub gaps: Vec<GapStatus>,
    /// What else to know.
    pub notes: Vec<String>,
}

/// Who holds the newest epoch.
#[derive(Debug, Clone, Serialize)]
pub struct Protector {
    /// The machine.
    pub host: String,
    /// The process.
    pub pid: u32,
    /// Its epoch.
    pub epoch: u64,
    /// When it last wrote into the ledger.
    pub last_sign_of_life: Timestamp,
    /// Whether it runs; `None` if that can't be seen from here.
    pub running: Option<bool>,
}

/// A window.
#[derive(Debug, Clone, Serialize)]
pub struct WindowStatus {
    /// The branch.
    pub branch: u32,
    /// The first moment.
    pub earliest_time: Option<Timestamp>,
    /// The last moment.
    pub latest_time: Option<Timestamp>,
    /// The first position.
    pub earliest_position: Position,
    /// The last position.
    pub latest_position: Position,
}

/// A base backup.
#[derive(Debug, Clone, Serialize)]
pub struct BaseBackupStatus {
    /// Where replay begins.
    pub start: Position,
    /// Where it can be restored to.
    pub end: Position,
    /// When it ended.
    pub ended_at: Timestamp,
    /// Bytes that it added.
    pub new_bytes: u64,
}

/// A gap.
#[derive(Debug, Clone, Serialize)]
pub struct GapStatus {
    /// The branch.
    pub branch: u32,
    /// First missing position.
    pub from: Position,
    /// Where log goes on.
    pub to: Position,
    /// Why.
    pub reason: String,
}

impl StatusReport {
    /// The report for people.
    pub fn to_text(&self, now: Timestamp) -> String {
        let mut out = format!("repository {}\n", self.repository);
        if self.clusters.is_empty() {
            out += "no cluster yet: run borealis protect\n";
        }
        for cluster in &self.clusters {
            out += &cluster.to_text(now);
        }
        out
    }
}

impl ClusterStatus {
    fn to_text(&self, now: Timestamp) -> String {
        let mut lines = vec![format!("\ncluster {}", self.name)];
        lines.push(format!("  protected     {}", self.protection(now)));
        lines.push(match (self.latest_restorable_time, self.lag_seconds) {
            (Some(time), Some(lag)) => format!(
                "  latest        {time}, {} behind now",
                borealis_base::show_duration(Duration::from_secs_f64(lag.max(0.0)))
            ),
            _ => "  latest        nothing can be restored yet".to_owned(),
        });
        for window in &self.windows {
            lines.push(match (window.earliest_time, window.latest_time) {
                (Some(earliest), Some(latest)) => format!("  window        {earliest} to {latest}"),
                _ => "  window        no moment is settled yet".to_owned(),
            });
            lines.push(format!(
                "                {} to {} on timeline {}",
                window.earliest_position, window.latest_position, window.branch
            ));
        }
        for gap in &self.gaps {
            lines.push(format!(
                "  gap           {} to {}: {}",
                gap.from, gap.to, gap.reason
            ));
        }
        lines.push(match &self.last_base_backup {
            Some(base) => format!(
                "  base backups  {}, the last ended {} at {} and added {}",
                self.base_backups,
                base.ended_at,
                base.end,
                ByteLen(base.new_bytes)
            ),
            None => "  base backups  none yet".to_owned(),
        });
        lines.push(format!("  snapshots     {}", self.snapshots));
        lines.push(format!(
            "  stored        {} of base backups, {} of log",
            ByteLen(self.base_backup_bytes),
            ByteLen(self.log_bytes)
        ));
        lines.extend(
            self.notes
                .iter()
                .map(|note| format!("  note          {note}")),
        );
        lines.join("\n") + "\n"
    }

    fn protection(&self, now: Timestamp) -> String {
        if let Some(reason) = &self.retired {
            return format!("no longer: {reason}");
        }
        let Some(holder) = &self.protector else {
            return "not yet".to_owned();
        };
        let state = match holder.running {
            Some(true) => "running",
            Some(false) => "NOT running",
            None => "elsewhere",
        };
        format!(
            "{state}, process {} on {}, last sign of life {} ago",
            holder.pid,
            holder.host,
            borealis_base::show_duration(now.since(holder.last_sign_of_life))
        )
    }
}
