//! Whose turn it is to write a lineage: takes an epoch, or refuses while another's holder lives.

use std::time::Duration;

use borealis_repository::ledger::{Decision, Holder, LedgerWriter, Opening, Presence, decide};
use borealis_repository::{Lineage, sealed_since};

use super::control;
use super::supervise::Options;
use super::unfenced;
use crate::error::{Error, Result};
use crate::host::ProcessIdentity;
use crate::site::Site;

pub(super) async fn open_writer(
    site: &Site,
    lineage: &Lineage,
    options: &Options,
    log_unit: u64,
) -> Result<LedgerWriter> {
    let me = ProcessIdentity::current()?;
    let reader = lineage.reader().await?;
    let sealed = sealed_since(reader.state(), lineage.keys().current().created);
    let present = reader.presence().await?;
    let alive = present
        .as_ref()
        .and_then(|present| process_of(&present.holder).is_alive());
    let now = site.clock().now();
    let decision = decide(present.as_ref(), alive, now, options.take_over);
    if let Decision::Refuse {
        silent_for,
        dead_after,
    } = decision
    {
        return Err(refused_while_alive(
            present.as_ref(),
            silent_for,
            dead_after,
        ));
    }
    let single_writer =
        unfenced::follow(lineage.store().as_ref(), &decision, options.take_over).await?;
    // Before anything is sealed: whoever reads it looks for the newest ring.
    site.repository.follow_data_keys(lineage, sealed).await?;
    let opening = Opening {
        holder: Holder {
            host: format!("{} {}", me.host, me.process_space),
            pid: me.pid,
            process_start: me.started_ticks,
            control: control::socket_path(lineage.id()).display().to_string(),
            program: format!("borealis {}", env!("CARGO_PKG_VERSION")),
            single_writer,
        },
        log_unit,
        expected_epoch: (!options.take_over).then(|| present.map_or(0, |present| present.epoch)),
    };
    Ok(lineage.open_writer(opening).await?)
}

/// The process that a ledger's holder names.
pub(crate) fn process_of(holder: &Holder) -> ProcessIdentity {
    let (host, space) = holder.host.split_once(' ').unwrap_or((&holder.host, ""));
    ProcessIdentity {
        host: host.to_owned(),
        process_space: space.to_owned(),
        pid: holder.pid,
        started_ticks: holder.process_start,
    }
}

pub(super) fn refused_while_alive(
    present: Option<&Presence>,
    silent_for: Duration,
    dead_after: Option<Duration>,
) -> Error {
    let who = present.map_or_else(String::new, |present| {
        let process = process_of(&present.holder);
        format!(
            "process {} on {} protects this cluster; its last sign of life was at {}, {} ago",
            process.pid,
            process.host,
            present.last_sign,
            borealis_base::show_duration(silent_for)
        )
    });
    let wait = dead_after.map_or_else(String::new, |after| {
        format!(
            " If it is dead, it is replaced after {}.",
            borealis_base::show_duration(after)
        )
    });
    Error::refused(
        who,
        format!("Stop it first, or take over from it with --take-over.{wait}"),
    )
}
