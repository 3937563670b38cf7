//! Watches what the slot holds back on the server.

use std::path::Path;
use std::time::Duration;

use borealis_pg_server::conninfo::ConnInfo;
use borealis_pg_server::link::SqlLink;
use borealis_pg_server::source::{ServerFacts, slot_state};
use borealis_repository::Lineage;

use super::slot_policy::{Policy, Slot, Verdict, judge};
use crate::error::Result;

/// How often the slot and the disk are looked at.
const SLOT_INTERVAL: Duration = Duration::from_secs(10);

/// A slot under watch.
pub(super) struct SlotWatch<'a> {
    pub(super) slot: &'a str,
    pub(super) info: &'a ConnInfo,
    pub(super) facts: &'a ServerFacts,
    /// Where its log's file system can be looked at from here.
    pub(super) data_dir: Option<&'a Path>,
    pub(super) policy: Policy,
}

impl SlotWatch<'_> {
    /// Returns the reason when the slot has to be let go.
    pub(super) async fn let_go(&self) -> String {
        let mut tick = tokio::time::interval(SLOT_INTERVAL);
        let mut link: Option<SqlLink> = None;
        loop {
            tick.tick().await;
            match self.look(&mut link).await {
                Ok(Verdict::Keep) => {}
                Ok(Verdict::Warn(what)) => tracing::warn!("{what}"),
                Ok(Verdict::LetGo(reason)) => return reason,
                Err(error) => tracing::debug!(%error, "the slot could not be looked at"),
            }
        }
    }

    async fn look(&self, link: &mut Option<SqlLink>) -> Result<Verdict> {
        let open = match link.take().filter(|link| !link.is_closed()) {
            Some(open) => open,
            None => SqlLink::connect(self.info).await?,
        };
        let state = slot_state(&open, self.slot).await?;
        *link = Some(open);
        let retained = state.and_then(|state| state.held_bytes).unwrap_or(0);
        let bound = self
            .facts
            .settings
            .number("max_slot_wal_keep_size")
            .filter(|mib| *mib >= 0);
        Ok(judge(
            self.policy,
            &Slot {
                retained: retained.max(0).unsigned_abs(),
                server_bound: bound.map(|mib| mib.unsigned_abs() << 20),
                disk: (self.data_dir).and_then(|data_dir| disk_space(&data_dir.join("pg_wal"))),
            },
        ))
    }
}

/// Free and total bytes of the file system of `path`.
fn disk_space(path: &Path) -> Option<(u64, u64)> {
    let space = rustix::fs::statvfs(path).ok()?;
    Some((
        space.f_bavail * space.f_frsize,
        space.f_blocks * space.f_frsize,
    ))
}

/// The name of a lineage's slot.
pub(super) fn slot_name(lineage: &Lineage) -> String {
    let id = lineage.id().to_string();
    format!("borealis_{}", id.get(..12).unwrap_or(&id))
}
