//! A server of each major that ran a broad workload, seen before and after.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use borealis_pg_format::files::{self, FileKind, RelationFile};
use borealis_pg_format::index::{ForkKey, LogIndex, LogIndexer};
use borealis_pg_format::segment::{LogFile, SegmentSize};
use borealis_pg_format::wal::{LogEvent, LogFormat, Start, WalReader};
use borealis_pg_format::{ControlFile, Lsn, Timeline, Version};

use crate::server::Server;
use crate::witness::{Witness, witness};

pub const PAGE: usize = 8192;

/// Every page of every relation's fork.
pub type Pages = HashMap<ForkKey, Vec<[u8; PAGE]>>;

/// What a server left that ran a workload and was stopped, seen before and after.
pub struct Fixture {
    pub version: Version,
    pub before: Pages,
    pub after: Pages,
    /// The log from its first kept segment to its end.
    pub log: (Lsn, Vec<u8>),
    /// What PostgreSQL's own reader says of the log.
    pub theirs: Witness,
    /// The shutdown checkpoint that `before` was seen at.
    pub from: Lsn,
    pub label: String,
    /// The files of the data directory.
    pub files: BTreeSet<String>,
    /// The control file of the running server, and what the server says of it.
    pub control: (ControlFile, BTreeMap<String, String>),
}

pub fn fixture(version: Version) -> &'static Fixture {
    static FIXTURES: [OnceLock<Fixture>; 5] = [const { OnceLock::new() }; 5];
    FIXTURES[version as usize].get_or_init(|| {
        let mut server = Server::create(
            version,
            "wal_keep_size = 4GB\nmax_wal_size = 8GB\nmax_prepared_transactions = 10\n\
             track_commit_timestamp = on\ncheckpoint_timeout = 1h\nwal_recycle = off\n",
        );
        server.start();
        server.script(include_str!("../data/before.sql"));
        server.run("pgbench", &["-i", "-q", "-s", "2"]);
        server.stop();
        let before = pages(&server.data());
        let from = control_file(&server.data()).checkpoint_lsn;
        server.start();
        let label = run_workload(&server);
        let control = (control_file(&server.data()), control_functions(&server));
        server.stop();
        let after = pages(&server.data());
        let mut files = BTreeSet::new();
        each_file(&server.data(), "", &mut |path, _| {
            files.insert(path.to_owned());
        });
        let log = read_log(&server.data());
        let (first, end) = extent(version, &log);
        let theirs = witness(&mut server, Timeline(1), (log.0, &log.1), (first, end));
        Fixture {
            version,
            before,
            after,
            log,
            theirs,
            from,
            label,
            files,
            control,
        }
    })
}

/// The start of the first record of a log, and the end of its last.
pub fn extent(version: Version, (start, log): &(Lsn, Vec<u8>)) -> (Lsn, Lsn) {
    let mut first = None;
    let mut reader = WalReader::new(LogFormat::new(version), *start, Start::Anywhere, None);
    reader.push(*start, log, &mut |event| {
        if let LogEvent::Record(record) = event {
            first.get_or_insert(record.start);
        }
    });
    let (_, end) = reader.last_record().expect("a record");
    (first.expect("a record"), end)
}

/// What the server says of its control file, and of the settings that are kept in it.
fn control_functions(server: &Server) -> BTreeMap<String, String> {
    let rows = server.sql(&[
        "SELECT key, value FROM (SELECT to_jsonb(s) || to_jsonb(c) || to_jsonb(r) || to_jsonb(i) AS all \
         FROM pg_control_system() s, pg_control_checkpoint() c, pg_control_recovery() r, pg_control_init() i) AS f, \
         jsonb_each_text(f.all)",
        "SELECT name, setting FROM pg_settings WHERE name IN ('max_connections', 'max_worker_processes', \
         'max_wal_senders', 'max_prepared_transactions', 'max_locks_per_transaction', 'wal_level', \
         'wal_log_hints', 'track_commit_timestamp')",
        "SELECT 'checkpoint_seconds', extract(epoch FROM checkpoint_time)::bigint FROM pg_control_checkpoint()",
    ]);
    let pairs = rows.lines().filter_map(|line| line.split_once('|'));
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn run_workload(server: &Server) -> String {
    let mut script = String::new();
    for name in ["elsewhere", "short_lived"] {
        let directory = server.home().join(name);
        server.run(
            "psql",
            &[
                "-X",
                "-q",
                "-c",
                &format!(
                    "COPY (SELECT 1) TO PROGRAM 'mkdir {} && cat >/dev/null'",
                    directory.display()
                ),
            ],
        );
        writeln!(script, "\\set {name} '{}'", directory.display()).expect("a string grows");
    }
    server.script(&(script + include_str!("../data/during.sql")));
    server.script(include_str!("../data/rare.sql"));
    let mut bench = server
        .command("pgbench")
        .args(["-n", "-c", "4", "-t", "300"])
        .spawn()
        .expect("pgbench starts");
    // Locks shared by several transactions need several sessions.
    let mut lockers: Vec<_> = (0..3)
        .map(|_| {
            server
                .command("psql")
                .args(["-X", "-q", "-c"])
                .arg("BEGIN; SELECT count(*) FROM (SELECT * FROM parent FOR KEY SHARE) AS p; SELECT pg_sleep(0.5); COMMIT")
                .stdout(std::process::Stdio::null())
                .spawn()
                .expect("psql starts")
        })
        .collect();
    for locker in &mut lockers {
        assert!(locker.wait().expect("psql ends").success());
    }
    assert!(bench.wait().expect("pgbench ends").success());
    server.script("VACUUM; UPDATE visible SET v = 0 WHERE id % 500 = 0; ALTER SYSTEM SET full_page_writes = off; SELECT pg_reload_conf();");
    server.script("ALTER SYSTEM RESET full_page_writes; SELECT pg_reload_conf();");
    if server.version() == Version::V14 {
        return server.sql(&[
            "SELECT FROM pg_start_backup('a label', true, false)",
            "SELECT labelfile FROM pg_stop_backup(false, false)",
        ]);
    }
    server.sql(&[
        "SELECT FROM pg_backup_start('a label', true)",
        "SELECT labelfile FROM pg_backup_stop(false)",
    ])
}

pub fn control_file(data: &Path) -> ControlFile {
    let bytes = fs::read(data.join("global/pg_control")).expect("the control file is read");
    ControlFile::parse(&bytes).expect("a valid control file")
}

fn each_file(directory: &Path, prefix: &str, visit: &mut impl FnMut(&str, &Path)) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let entry = entry.expect("an entry");
        let name = entry.file_name().into_string().expect("UTF-8");
        let path = if prefix.is_empty() {
            name
        } else {
            format!("{prefix}/{name}")
        };
        if entry.path().is_dir() {
            each_file(&entry.path(), &path, visit);
        } else {
            visit(&path, &entry.path());
        }
    }
}

fn pages(data: &Path) -> Pages {
    let mut segments: BTreeMap<(ForkKey, u32), Vec<u8>> = BTreeMap::new();
    each_file(data, "", &mut |path, file| {
        if let FileKind::Relation(RelationFile {
            relation,
            fork,
            segment,
        }) = files::classify(path)
        {
            let bytes = fs::read(file).expect("a relation is read");
            segments.insert((ForkKey { relation, fork }, segment), bytes);
        }
    });
    let mut pages = Pages::new();
    for ((key, segment), bytes) in segments {
        assert_eq!(segment, 0, "this workload needs no second segment");
        let (whole, rest) = bytes.as_chunks::<PAGE>();
        assert!(rest.is_empty(), "a stopped server leaves whole pages");
        pages.entry(key).or_default().extend_from_slice(whole);
    }
    pages
}

fn read_log(data: &Path) -> (Lsn, Vec<u8>) {
    let mut segments = BTreeMap::new();
    for entry in fs::read_dir(data.join("pg_wal")).expect("pg_wal") {
        let entry = entry.expect("an entry");
        let name = entry.file_name().into_string().expect("UTF-8");
        if let Some(LogFile::Segment { number, .. }) = LogFile::parse(&name, SegmentSize::DEFAULT) {
            segments.insert(number, fs::read(entry.path()).expect("a segment"));
        }
    }
    let first = *segments.keys().next().expect("a segment");
    let mut bytes = Vec::new();
    for (index, (number, segment)) in segments.into_iter().enumerate() {
        assert_eq!(number, first + index as u64, "no segment is missing");
        bytes.extend(segment);
    }
    (SegmentSize::DEFAULT.start_of(first), bytes)
}

pub fn whole_index(version: Version) -> &'static LogIndex {
    static INDEXES: [OnceLock<LogIndex>; 5] = [const { OnceLock::new() }; 5];
    INDEXES[version as usize].get_or_init(|| {
        let fixture = fixture(version);
        let mut indexer = LogIndexer::new(LogFormat::new(version), fixture.from, Start::Record);
        indexer.push(fixture.from, fixture.tested());
        indexer.cut().index
    })
}

impl Fixture {
    /// The log from the checkpoint that `before` was seen at to the end of its last record.
    pub fn tested(&self) -> &[u8] {
        let (start, log) = &self.log;
        let (_, end) = extent(self.version, &self.log);
        &log[self.from.since(*start) as usize..end.since(*start) as usize]
    }
}
