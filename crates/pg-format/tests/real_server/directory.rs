//! The files of a data directory: control file, pages, labels, kinds.

use std::collections::BTreeSet;

use borealis_pg_format::Version;
use borealis_pg_format::control_file::ServerState;
use borealis_pg_format::files::{self, FileKind};
use borealis_pg_format::index::visibility_map_block;
use borealis_pg_format::label::BackupLabel;
use borealis_pg_format::page::{self, PageState};

use crate::fixture::{PAGE, fixture, whole_index};

pub fn the_control_file_agrees(version: Version) {
    let (file, told) = &fixture(version).control;
    let checkpoint = &file.checkpoint;
    let on_off = |flag: bool| if flag { "on" } else { "off" }.to_owned();
    let parameters = &file.parameters;
    for (name, ours) in [
        ("pg_control_version", file.control_version.to_string()),
        ("catalog_version_no", file.catalog_version.to_string()),
        ("system_identifier", file.system_identifier.to_string()),
        ("checkpoint_lsn", file.checkpoint_lsn.to_string()),
        ("redo_lsn", checkpoint.redo.to_string()),
        ("timeline_id", checkpoint.timeline.to_string()),
        ("prev_timeline_id", checkpoint.previous_timeline.to_string()),
        ("full_page_writes", checkpoint.full_page_writes.to_string()),
        ("next_xid", format!("0:{}", checkpoint.next_xid)),
        ("next_oid", checkpoint.next_oid.to_string()),
        ("next_multixact_id", checkpoint.next_multi.to_string()),
        (
            "next_multi_offset",
            checkpoint.next_multi_offset.to_string(),
        ),
        ("oldest_xid", checkpoint.oldest_xid.to_string()),
        ("oldest_multi_xid", checkpoint.oldest_multi.to_string()),
        (
            "oldest_active_xid",
            checkpoint.oldest_active_xid.to_string(),
        ),
        (
            "checkpoint_seconds",
            (checkpoint.time.0 / 1_000_000).to_string(),
        ),
        ("min_recovery_end_lsn", file.min_recovery_point.to_string()),
        (
            "min_recovery_end_timeline",
            file.min_recovery_point_timeline.to_string(),
        ),
        ("backup_start_lsn", file.backup_start.to_string()),
        ("backup_end_lsn", file.backup_end.to_string()),
        (
            "end_of_backup_record_required",
            file.backup_end_required.to_string(),
        ),
        ("database_block_size", file.page_size.to_string()),
        (
            "blocks_per_segment",
            file.relation_segment_pages.to_string(),
        ),
        ("wal_block_size", file.wal_page_size.to_string()),
        (
            "bytes_per_wal_segment",
            file.wal_segment_size.bytes().to_string(),
        ),
        (
            "data_page_checksum_version",
            file.data_checksum_version.to_string(),
        ),
        ("max_connections", parameters.max_connections.to_string()),
        (
            "max_worker_processes",
            parameters.max_worker_processes.to_string(),
        ),
        ("max_wal_senders", parameters.max_wal_senders.to_string()),
        (
            "max_prepared_transactions",
            parameters.max_prepared_transactions.to_string(),
        ),
        (
            "max_locks_per_transaction",
            parameters.max_locks_per_transaction.to_string(),
        ),
        (
            "wal_level",
            format!("{:?}", parameters.wal_level).to_lowercase(),
        ),
        ("wal_log_hints", on_off(parameters.wal_log_hints)),
        (
            "track_commit_timestamp",
            on_off(parameters.track_commit_timestamp),
        ),
    ] {
        assert_eq!(told.get(name), Some(&ours), "{version:?}: {name}");
    }
    assert_eq!(file.version, version);
    assert_eq!(file.state, ServerState::InProduction);
    // The workload leaves none of these at its default.
    assert!(parameters.track_commit_timestamp && file.data_checksum_version == 1);
}

pub fn every_page_of_a_stopped_server_is_valid(version: Version) {
    let fixture = fixture(version);
    let mut valid = 0;
    for (key, pages) in &fixture.after {
        for (block, page) in pages.iter().enumerate() {
            match page::verify(page, block as u32, PAGE, true) {
                PageState::Valid(_) => valid += 1,
                PageState::New => {}
                PageState::Invalid(fault) => panic!("{key:?} block {block}: {fault}"),
            }
        }
    }
    assert!(valid > 3000, "{valid}");
    assert_eq!(visibility_map_block(0, 8192), 0);
}

pub fn every_file_of_a_data_directory_is_known(version: Version) {
    let blobs: BTreeSet<_> = fixture(version)
        .files
        .iter()
        .filter(|path| files::classify(path) == FileKind::Blob)
        .map(String::as_str)
        // 14 keeps statistics in a file for each database.
        .filter(|path| version > Version::V14 || !path.starts_with("pg_stat/db_"))
        .collect();
    let statistics = match version {
        Version::V14 => "pg_stat/global.stat",
        _ => "pg_stat/pgstat.stat",
    };
    let expected = [statistics, "pg_logical/replorigin_checkpoint"];
    assert_eq!(blobs, expected.into_iter().collect());
}

pub fn a_label_of_the_server_is_read(version: Version) {
    let fixture = fixture(version);
    let label = BackupLabel::parse(&fixture.label).expect("a valid label");
    assert_eq!(label.label, "a label");
    let checkpoint = whole_index(version)
        .redo_points
        .iter()
        .find(|point| point.record.start == label.checkpoint);
    assert_eq!(checkpoint.map(|point| point.redo), Some(label.start));
    assert_eq!(label.to_text().trim_end(), fixture.label);
}
