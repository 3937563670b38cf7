//! Ends the protection of a cluster for good.

use borealis_base::ErrorKind;
use borealis_pg_server::conninfo::{ConnInfo, TargetSession};
use borealis_pg_server::link::SqlLink;
use borealis_pg_server::link::replication::ReplicationLink;
use borealis_pg_server::source::{ServerFacts, slot_state};
use borealis_repository::catalog::Cluster;
use borealis_repository::ledger::{Decision, EntryBody, Holder, Opening, Retired, decide};

use super::epoch::{process_of, refused_while_alive};
use super::slot_watch::slot_name;
use super::unfenced;
use crate::error::{Error, Result};
use crate::host::ProcessIdentity;
use crate::site::{ClusterIdentity, Site};

/// Stops protecting: drops the slot and says so in the ledger. The backups stay.
pub async fn unprotect(site: &Site, cluster: Option<&str>, info: &ConnInfo) -> Result<Vec<String>> {
    let cluster = site.cluster(cluster).await?;
    let lineage = site.lineage(&cluster).await?;
    let present = lineage.reader().await?.presence().await?;
    let alive = present
        .as_ref()
        .and_then(|present| process_of(&present.holder).is_alive());
    let decision = decide(present.as_ref(), alive, site.clock().now(), false);
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
    let single_writer = unfenced::follow(lineage.store().as_ref(), &decision, false).await?;
    let slot = slot_name(&lineage);
    let (mut done, mut segment_bytes, mut last) = (Vec::new(), None, None);
    for host in info.each_host() {
        match drop_slot(&cluster, &host, &slot).await {
            Ok((bytes, dropped)) => {
                segment_bytes = Some(bytes);
                done.extend(dropped.then(|| format!("slot {slot} dropped")));
            }
            Err(error) => {
                done.push(format!("slot {slot} may be left on a host: {error}"));
                last = Some(error);
            }
        }
    }
    let log_unit = match (segment_bytes, last) {
        (Some(bytes), _) => bytes,
        (None, Some(error)) => return Err(error),
        (None, None) => return Err(Error::new(ErrorKind::Usage, "the source names no host")),
    };
    let me = ProcessIdentity::current()?;
    let opening = Opening {
        holder: Holder {
            host: format!("{} {}", me.host, me.process_space),
            pid: me.pid,
            process_start: me.started_ticks,
            single_writer,
            ..Holder::default()
        },
        log_unit,
        expected_epoch: Some(present.map_or(0, |present| present.epoch)),
    };
    let mut writer = lineage.open_writer(opening).await?;
    let retired = Retired {
        reason: "unprotected on request".to_owned(),
    };
    writer
        .append(&EntryBody::Retired(retired), Vec::new())
        .await?;
    writer.close().await?;
    done.push(format!(
        "cluster {} is no longer protected; its backups stay",
        cluster.name
    ));
    Ok(done)
}

/// Drops the slot where there is one; returns the bytes of a log segment there, and whether there was one.
async fn drop_slot(cluster: &Cluster, info: &ConnInfo, slot: &str) -> Result<(u64, bool)> {
    let info = &info.with_target(TargetSession::Any);
    let sql = SqlLink::connect(info).await?;
    let facts = ServerFacts::read(&sql).await?;
    if facts.system_id != ClusterIdentity::of(cluster)?.system_id {
        return Err(Error::refused(
            format!("the server at the source is not cluster {}", cluster.name),
            "Name the cluster's own server with --source.",
        ));
    }
    let exists = slot_state(&sql, slot).await?.is_some();
    if exists {
        let mut link = ReplicationLink::connect(info).await?;
        link.drop_slot(slot).await?;
    }
    Ok((facts.segment_bytes, exists))
}
