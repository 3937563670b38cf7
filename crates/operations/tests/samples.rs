//! What earlier releases wrote, read for ever by later ones. The JSON samples were written by hand from
//! `docs/formats`; the log frame was put together from the samples of its two parts.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::fs;
use std::path::{Path, PathBuf};

use borealis_base::{Branch, LineageId, Position};
use borealis_operations::base_backup::facts::ServerState;
use borealis_operations::protect::log_frame;
use borealis_operations::restore::recovery_file::{RECOVERY_FILE, RecoveryFile, State};
use borealis_pg_format::index::{CarryState, LogIndex};
use borealis_pg_server::data_dir::config_files::Role;
use borealis_pg_server::names::Names;

fn sample(name: &str) -> Vec<u8> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/samples");
    fs::read(directory.join(name)).unwrap()
}

#[test]
fn a_log_frame_of_format_1_is_still_read() {
    let parts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../pg-format/tests/data");
    let part = |name: &str| fs::read(parts.join(name)).unwrap();
    let frame = sample("log-frame-1.bin");
    assert_eq!(
        log_frame::index("the sample", &frame).unwrap(),
        LogIndex::decode(&part("log-index-1.bin")).unwrap()
    );
    assert_eq!(
        log_frame::carry("the sample", &frame).unwrap(),
        CarryState::decode(&part("carry-state-1.bin")).unwrap()
    );
}

#[test]
fn a_server_state_of_format_1_is_still_read() {
    let state = ServerState::decode("the sample", &sample("server-state-1.json")).unwrap();
    assert_eq!(state.major(), 15);
    // More than a double can hold.
    assert_eq!(state.system_id, 17_446_744_073_709_551_615);
    assert_eq!(state.wal_segment_bytes, 16 << 20);
    assert_eq!(
        (state.page_bytes, state.relation_segment_pages),
        (8192, 131_072)
    );
    assert!(state.data_checksums);
    assert_eq!(state.superuser, "postgres");
    assert_eq!(state.data_directory_mode, 0o700);
    assert_eq!(state.settings.number("shared_buffers"), Some(16_384));
    assert_eq!(state.config.setting("work_mem").as_deref(), Some("8MB"));
    let roles: Vec<Role> = state.config.files.iter().map(|file| file.role).collect();
    let expected = [
        Role::Main,
        Role::Included,
        Role::Auto,
        Role::Access,
        Role::Identity,
    ];
    assert_eq!(roles, expected);
    assert_eq!(state.config.missing.len(), 1);
    assert_eq!(state.tablespaces[0].path, PathBuf::from("/srv/fast"));
    assert_eq!(
        state.databases[0].collation_version.as_deref(),
        Some("2.36")
    );
    assert_eq!(state.databases[0].actual_collation_version, None);
    assert_eq!(state.catalog.indexes[0].index, "public.names");
    assert_eq!(state.catalog.collations[0].provider, "i");
    assert_eq!(state.catalog.extensions[0].name, "plpgsql");
    assert_eq!(state.catalog.preload_libraries, ["auto_explain"]);
    assert_eq!(state.catalog.unread[0].0, "secret");
    assert_eq!(state.host.glibc.as_deref(), Some("2.36"));
    assert_eq!(state.host.icu, None);
    assert!(state.damaged.is_empty());
}

#[test]
fn a_restore_file_of_format_1_is_still_read() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(
        directory.path().join(RECOVERY_FILE),
        sample("restore-file-1.json"),
    )
    .unwrap();
    let expected = RecoveryFile {
        state: State::Unfinished,
        cluster: "sales".to_owned(),
        lineage: LineageId([7; 16]),
        repository: "/srv/backup".to_owned(),
        key_file: Some(PathBuf::from("/root/borealis.key")),
        key: None,
        branch: Branch(2),
        log_start: Position(0x0100_0028),
        log_in_place: None,
        log_end: Some(Position(0x16_B374_D848)),
        segment_size: 16 << 20,
        directory: None,
    };
    assert_eq!(
        RecoveryFile::load(directory.path()).unwrap(),
        Some(expected)
    );
}

#[test]
fn names_of_format_1_are_still_read() {
    let names: Names = serde_json::from_slice(&sample("names-1.json")).unwrap();
    assert_eq!(names.tablespaces[0].name, "fast");
    let [skipped, unread, read] = names.databases.as_slice() else {
        panic!("{names:?}");
    };
    assert_eq!((&skipped.relations, &skipped.unread), (&None, &None));
    assert_eq!(unread.unread.as_deref(), Some("it allows no connections"));
    assert_eq!((read.name.as_str(), read.tablespace), ("Größe", 16_500));
    let relations = read.relations.as_ref().unwrap();
    let short: Vec<_> = (relations.iter())
        .map(|r| (r.oid, r.kind.as_str(), r.tablespace, r.file, r.owner))
        .collect();
    assert_eq!(
        short,
        [
            (16_401, "r", 0, 30_000, 0),
            (16_405, "t", 0, 30_001, 16_401),
            (16_406, "p", 0, 0, 0),
            (16_407, "r", 1663, 16_407, 16_406),
        ]
    );
    assert!(relations[3].partition && relations[3].unlogged);
    assert!(!relations[0].partition && !relations[0].unlogged);
}
