//! A data directory read through SQL, beside the same one read from the disk.

use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use borealis_base::ErrorKind;
use borealis_pg_format::page::checksum;
use borealis_pg_format::{Fork, Lsn, Relation, Version};
use borealis_pg_server::conninfo::ConnInfo;
use borealis_pg_server::data_dir::config_files::gather;
use borealis_pg_server::data_dir::page_reader::{PageRead, PageReader, RETRIES_MAX, Wanted};
use borealis_pg_server::data_dir::{
    Access, Agentless, AgentlessDataDir, DataDir, FilePart, LocalDataDir, choose,
};
use borealis_pg_server::link::SqlLink;
use borealis_testkit::TestServer;
use borealis_testkit::server::ServerOptions;
use rustix::fs::{Mode, OFlags};

/// What `check` has granted for reading through SQL.
const GRANTS: &str = "CREATE ROLE backup LOGIN; GRANT pg_read_all_settings TO backup; \
     GRANT EXECUTE ON FUNCTION pg_read_binary_file(text,bigint,bigint,boolean), \
     pg_ls_dir(text,boolean,boolean), pg_stat_file(text,boolean) TO backup";

const PAGE: usize = 8192;

struct World {
    server: TestServer,
    local: Arc<dyn DataDir>,
    agentless: Arc<dyn DataDir>,
}

impl World {
    async fn new(options: ServerOptions) -> Self {
        let server = TestServer::start(options).await;
        server.sql(GRANTS).await;
        Self {
            local: Arc::new(LocalDataDir::new(server.data_dir())),
            agentless: open(&backup_role(&server)).await,
            server,
        }
    }

    fn tablespace_directory(&self) -> String {
        Version::from_major(self.server.binaries().major)
            .expect("is known")
            .tablespace_directory()
    }

    fn both(&self) -> [(&'static str, Arc<dyn DataDir>); 2] {
        [
            ("local", self.local.clone()),
            ("agentless", self.agentless.clone()),
        ]
    }
}

fn backup_role(server: &TestServer) -> ConnInfo {
    let mut info = server.info();
    "backup".clone_into(&mut info.user);
    info
}

async fn open(info: &ConnInfo) -> Arc<dyn DataDir> {
    let link = SqlLink::connect(info).await.expect("it may log in");
    Arc::new(AgentlessDataDir::open(&link).await.expect("it answers"))
}

/// Runs what blocks where it may.
async fn with<T: Send + 'static>(
    dir: &Arc<dyn DataDir>,
    work: impl FnOnce(&dyn DataDir) -> T + Send + 'static,
) -> T {
    let dir = dir.clone();
    tokio::task::spawn_blocking(move || work(&*dir))
        .await
        .expect("no panic")
}

fn part(path: &str, offset: u64, bytes: usize) -> FilePart {
    FilePart {
        path: path.into(),
        offset,
        bytes,
    }
}

fn read(dir: &dyn DataDir, parts: &[FilePart]) -> Vec<Option<Vec<u8>>> {
    let mut found = Vec::new();
    dir.read_parts(parts, &mut |at, bytes| {
        assert_eq!(at, found.len(), "in order");
        found.push(bytes.map(<[u8]>::to_vec));
        Ok(())
    })
    .expect("readable");
    found
}

#[tokio::test]
async fn both_ways_list_and_read_the_same() {
    let world = World::new(ServerOptions::default().with("autovacuum", "off")).await;
    let (server, space) = (&world.server, world.server.scratch("space"));
    server
        .sql(&format!(
            "CREATE TABLESPACE extra LOCATION '{}'",
            space.display()
        ))
        .await;
    server
        .sql(
            "CREATE UNLOGGED TABLE u (i int); CREATE TABLE t TABLESPACE extra AS \
             SELECT generate_series(1, 100000) AS i",
        )
        .await;
    server.sql("VACUUM t").await;
    server.sql("CHECKPOINT").await;
    let own = server.data_dir().join("own");
    let inner = own.join("it's a \"quoted\" \\ dir");
    for dir in [&own, &inner] {
        std::fs::create_dir(dir).expect("root or owner");
        std::fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .expect("ours");
        borealis_testkit::server::give_to(dir, borealis_testkit::server::system_user().as_ref());
    }
    let odd = [
        (inner.join("new\nline é 中 %s $1 -- ;"), 3),
        (own.join("empty"), 0),
        (own.join("$HOME"), 9000),
        (own.join(OsStr::from_bytes(b"not \xff utf-8")), 1),
    ];
    for (path, bytes) in &odd {
        std::fs::write(path, vec![7; *bytes]).expect("ours");
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .expect("ours");
        borealis_testkit::server::give_to(path, borealis_testkit::server::system_user().as_ref());
    }
    let inside = world.tablespace_directory();
    let mut listings = Vec::new();
    for (_, dir) in world.both() {
        let inside = inside.clone();
        listings.push(with(&dir, move |dir| dir.listing(&inside).expect("readable")).await);
    }
    let [local, agentless] = &listings[..] else {
        panic!("two")
    };
    assert_eq!(agentless, local);
    assert_eq!(local.tablespaces.len(), 1);
    assert_eq!(local.skipped.len(), 1, "{:?}", local.skipped);
    let parts: Vec<FilePart> = local
        .files
        .iter()
        .map(|file| part(&file.path, 0, 300_000))
        .collect();
    let mut contents = Vec::new();
    for (_, dir) in world.both() {
        let parts = parts.clone();
        contents.push(with(&dir, move |dir| read(dir, &parts)).await);
    }
    for (at, file) in local.files.iter().enumerate() {
        let [here, there] = [&contents[0][at], &contents[1][at]];
        assert!(here == there, "{}", file.path);
        let len = here.as_ref().expect("it is there").len() as u64;
        assert_eq!(len, file.bytes.min(300_000), "{}", file.path);
    }
    // The configuration as well, as far as the role may see it.
    let data_dir = server.data_dir().to_owned();
    let mut found = Vec::new();
    for (_, dir) in world.both() {
        let data_dir = data_dir.clone();
        let config = with(&dir, move |dir| gather(&data_dir, [None; 3], dir)).await;
        found.push(config.expect("it ends"));
    }
    assert_eq!(found[0], found[1]);
    assert_eq!(found[0].files.len(), 4);
}

#[tokio::test]
async fn a_missing_file_an_ended_one_and_a_short_one_are_told_apart() {
    let world = World::new(ServerOptions::default()).await;
    std::fs::write(world.server.data_dir().join("ten"), b"0123456789").expect("ours");
    for (name, dir) in world.both() {
        let found = with(&dir, |dir| {
            read(
                dir,
                &[
                    part("ten", 0, 4),
                    part("ten", 8, 4),
                    part("ten", 10, 4),
                    part("ten", 1 << 40, 4),
                    part("none", 0, 4),
                    part("no/such/directory", 0, 4),
                ],
            )
        })
        .await;
        let some = |bytes: &[u8]| Some(bytes.to_vec());
        assert_eq!(
            found,
            [some(b"0123"), some(b"89"), some(b""), some(b""), None, None],
            "{name}"
        );
    }
}

#[tokio::test]
async fn unchanged_files_are_found_by_their_hash_on_the_server() {
    let world = World::new(ServerOptions::default()).await;
    for (name, content) in [("ten", "0123456789"), ("grown", "0123456789+")] {
        std::fs::write(world.server.data_dir().join(name), content).expect("ours");
    }
    let found = with(&world.agentless, |dir| {
        let files = ["ten", "grown", "none"].map(|name| (name.into(), 10));
        dir.digests(&files).expect("readable").expect("it is cheap")
    })
    .await;
    let sha256 = world
        .server
        .value(
            "SELECT '[' || trim(trailing ', ' FROM \
             regexp_replace(encode(sha256('0123456789'), 'hex'), '(..)', '\\1, ', 'g')) || ']'",
        )
        .await;
    let ten = found[0].as_ref().expect("it is there");
    let hash = &ten.sha256[..];
    assert_eq!((ten.bytes, format!("{hash:02x?}")), (10, sha256));
    assert_eq!(found[1].map(|digest| digest.bytes), Some(11));
    assert_eq!(found[2], None);
}

/// A page as `PageInit` makes it, with a position, a filling and its checksum.
fn page(block: u32, lsn: u32, filling: u8) -> Vec<u8> {
    let mut page = vec![filling; PAGE];
    page[..24].fill(0);
    page[4..8].copy_from_slice(&lsn.to_le_bytes());
    page[12..14].copy_from_slice(&24_u16.to_le_bytes());
    page[14..16].copy_from_slice(&8192_u16.to_le_bytes());
    page[16..18].copy_from_slice(&8192_u16.to_le_bytes());
    page[18..20].copy_from_slice(&(8192_u16 | 4).to_le_bytes());
    let sum = checksum(&page, block);
    page[8..10].copy_from_slice(&sum.to_le_bytes());
    page
}

fn pages(
    dir: &dyn DataDir,
    number: u32,
    range: Range<u32>,
    pause: &(dyn Fn(Duration) + Sync),
) -> Vec<PageRead> {
    let reader = PageReader {
        dir,
        tablespace_directory: "unused".to_owned(),
        page_bytes: PAGE,
        segment_pages: 4,
        checksums: true,
        start: Lsn(1000),
        pause,
    };
    let mut found = vec![None; range.len()];
    let wanted = Wanted {
        relation: Relation {
            tablespace: 1664,
            database: 0,
            number,
        },
        fork: Fork::Main,
        ranges: &[range],
    };
    reader
        .read(&[wanted], &mut |at, state, _| {
            assert_eq!(found[at].replace(state), None, "block {at} came twice");
            Ok(())
        })
        .expect("readable");
    let all = found.into_iter();
    all.map(|state| state.expect("every block comes")).collect()
}

/// The relation shrinks, grows and vanishes while it is read, and pages are met half written.
#[tokio::test]
async fn pages_that_change_while_they_are_read_are_judged_alike() {
    let world = World::new(ServerOptions::default()).await;
    let global = world.server.data_dir().join("global");
    for (name, dir) in world.both() {
        let put = |file: &str, bytes: &[Vec<u8>]| {
            std::fs::write(global.join(file), bytes.concat()).expect("ours");
        };
        let torn = [&page(1, 900, 1)[..PAGE / 2], &page(1, 950, 2)[PAGE / 2..]].concat();
        let whole: Vec<_> = (0..4).map(|block| page(block, 10 + block, 1)).collect();
        let good = |lsn| PageRead::Good(Lsn(lsn));
        let (four, three) = (global.join("900001"), global.join("900001.1"));

        put("900001", &whole);
        put("900001.1", &[page(4, 14, 1), vec![0; PAGE]]);
        let found = with(&dir, |dir| {
            pages(dir, 900_001, 2..9, &|_| panic!("no page is invalid"))
        })
        .await;
        let expected = [
            good(12),
            good(13),
            good(14),
            PageRead::New,
            PageRead::PastEnd,
            PageRead::PastEnd,
            PageRead::Missing,
        ];
        assert_eq!(found, expected, "{name}");

        // Made whole by the server meanwhile.
        put("900001", &[page(0, 10, 1), torn.clone(), page(2, 12, 1)]);
        let file = four.clone();
        let found = with(&dir, move |dir| {
            let looks = AtomicUsize::new(0);
            let found = pages(dir, 900_001, 0..3, &|_| {
                if looks.fetch_add(1, Ordering::Relaxed) == 1 {
                    let whole = [page(0, 10, 1), page(1, 950, 2), page(2, 12, 1)].concat();
                    std::fs::write(&file, whole).expect("ours");
                }
            });
            (found, looks.into_inner())
        })
        .await;
        assert_eq!(found, (vec![good(10), good(950), good(12)], 2), "{name}");

        // Truncated, or dropped, while it is looked at again.
        for drop in [false, true] {
            put("900001", &[page(0, 10, 1), torn.clone()]);
            let file = four.clone();
            let found = with(&dir, move |dir| {
                pages(dir, 900_001, 0..2, &|_| {
                    if drop {
                        let _ = std::fs::remove_file(&file);
                    } else {
                        std::fs::write(&file, page(0, 10, 1)).expect("ours");
                    }
                })
            })
            .await;
            let end = if drop {
                PageRead::Missing
            } else {
                PageRead::PastEnd
            };
            assert_eq!(found, [good(10), end], "{name}");
        }

        // Growing: half a page is there, then all of it.
        put("900001", &whole);
        put("900001.1", &[page(4, 14, 1)[..100].to_vec()]);
        let file = three.clone();
        let found = with(&dir, move |dir| {
            pages(dir, 900_001, 3..6, &|_| {
                std::fs::write(&file, page(4, 14, 1)).expect("ours");
            })
        })
        .await;
        assert_eq!(found, [good(13), good(14), PageRead::PastEnd], "{name}");

        // Torn for good.
        for (lsn, newer) in [(999, false), (1000, true)] {
            let mut bytes = page(0, lsn, 1);
            bytes[5000] ^= 1;
            put("900001", &[bytes]);
            let (found, looks) = with(&dir, |dir| {
                let looks = AtomicUsize::new(0);
                let found = pages(dir, 900_001, 0..1, &|_| {
                    looks.fetch_add(1, Ordering::Relaxed);
                });
                (found, looks.into_inner())
            })
            .await;
            assert_eq!(looks, RETRIES_MAX as usize, "{name}");
            let is_newer = matches!(found[..], [PageRead::Newer(_)]);
            let is_damaged = matches!(found[..], [PageRead::Damaged(_)]);
            assert_eq!((is_newer, is_damaged), (newer, !newer), "{name}: {found:?}");
        }
        for file in [four, three] {
            std::fs::remove_file(file).expect("ours");
        }
    }
}

/// Time limits of the role end sessions, statements and transactions; a schema of another role's may hold
/// functions with the same names.
#[tokio::test]
async fn settings_of_the_role_do_not_reach_the_sessions_that_read() {
    let server = TestServer::start(ServerOptions::default()).await;
    server.sql(GRANTS).await;
    server
        .sql(
            "CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO backup; \
             CREATE FUNCTION evil.pg_read_binary_file(text, bigint, bigint, boolean) \
             RETURNS bytea LANGUAGE sql AS $$ SELECT '\\xdead'::bytea $$; \
             ALTER ROLE backup SET search_path = evil, pg_catalog; \
             ALTER ROLE backup SET statement_timeout = '500ms'; \
             ALTER ROLE backup SET lock_timeout = '1ms'; \
             ALTER ROLE backup SET idle_session_timeout = '1s'; \
             ALTER ROLE backup SET idle_in_transaction_session_timeout = '1ms'; \
             ALTER ROLE backup SET default_transaction_isolation = 'serializable'; \
             ALTER ROLE backup SET default_transaction_read_only = on; \
             ALTER ROLE backup SET default_transaction_deferrable = on; \
             ALTER ROLE backup SET bytea_output = 'escape'; \
             ALTER ROLE backup SET client_encoding = 'LATIN1'",
        )
        .await;
    let dir = open(&backup_role(&server)).await;
    let version = std::fs::read(server.data_dir().join("PG_VERSION")).expect("it is there");
    let expected = [Some(version)];
    for _ in 0..2 {
        let found = with(&dir, |dir| read(dir, &[part("PG_VERSION", 0, 100)])).await;
        assert_eq!(found, expected);
        // Longer than the limit for idle sessions.
        server.let_pass(Duration::from_millis(1500)).await;
    }
    one_session(&server).await;
    let role = SqlLink::connect(&backup_role(&server))
        .await
        .expect("it may");
    let limits = "SELECT current_setting('statement_timeout') || \
         coalesce(current_setting('transaction_timeout', true), '0')";
    assert_eq!(role.value::<String>(limits).await.expect("shown"), "1min0");
}

/// Waits until the role has the session that reads, and no other: the one that opened the directory is
/// closed, but the server may not have noticed yet.
async fn one_session(server: &TestServer) {
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'backup'";
    borealis_testkit::wait_until("one session", Duration::from_secs(30), async || {
        (server.value(sessions).await == "1").then_some(())
    })
    .await;
}

const CUT: &str =
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'backup'";

#[tokio::test]
async fn a_session_that_is_cut_is_opened_again() {
    let world = World::new(ServerOptions::default()).await;
    let ask = |dir: &dyn DataDir| read(dir, &[part("PG_VERSION", 0, 100)]);
    let before = with(&world.agentless, ask).await;
    one_session(&world.server).await;
    assert_eq!(world.server.value(CUT).await, "1");
    assert_eq!(with(&world.agentless, ask).await, before);
}

#[tokio::test]
async fn pages_of_another_run_of_the_server_are_refused() {
    let mut world = World::new(ServerOptions::default()).await;
    world.server.restart().await;
    let error = with(&world.agentless, |dir| {
        dir.read_parts(&[part("PG_VERSION", 0, 100)], &mut |_, _| {
            panic!("nothing of it may be used")
        })
    })
    .await
    .expect_err("it is another run");
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(error.to_string().contains("was begun on"), "{error}");
}

/// A server that does not answer holds up nobody who has stopped waiting.
#[tokio::test]
async fn reading_that_nobody_waits_for_ends_at_once() {
    let mut world = World::new(ServerOptions::default()).await;
    world.server.allow_in_log("could not seek in file \"pipe\"");
    // The server opens it for reading, and waits for somebody who writes.
    let pipe = world.server.data_dir().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("coreutils").success());
    std::fs::set_permissions(&pipe, std::os::unix::fs::PermissionsExt::from_mode(0o666))
        .expect("ours");
    let dir = world.agentless.clone();
    let reading = tokio::task::spawn_blocking(move || {
        dir.read_parts(&[part("pipe", 0, 1)], &mut |_, _| Ok(()))
    });
    // Not merely active: the session may still be about to be opened.
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'backup' AND state = 'active' \
         AND query ~ 'pg_read_binary_file.*pipe'";
    borealis_testkit::wait_until("the server to wait", Duration::from_secs(30), async || {
        (world.server.value(waits).await == "1").then_some(())
    })
    .await;
    world.agentless.close();
    let error = reading.await.expect("no panic").expect_err("it was closed");
    assert_eq!(error.kind(), ErrorKind::Interrupted);
    // Lets the server's process go on, which finds that it is no file. Without waiting, should nobody read.
    borealis_testkit::wait_until("a reader", Duration::from_secs(30), async || {
        let flags = OFlags::WRONLY | OFlags::NONBLOCK;
        rustix::fs::open(&pipe, flags, Mode::empty()).ok()
    })
    .await;
}

#[tokio::test]
async fn what_the_sink_refuses_is_not_asked_again() {
    let world = World::new(ServerOptions::default()).await;
    let (error, calls) = with(&world.agentless, |dir| {
        let mut calls = 0;
        let error = dir.read_parts(&[part("PG_VERSION", 0, 9), part("x", 0, 9)], &mut |_, _| {
            calls += 1;
            Err(borealis_pg_server::Error::Refused("no".to_owned()))
        });
        (error.expect_err("it was refused"), calls)
    })
    .await;
    assert_eq!((error.to_string().as_str(), calls), ("no", 1));
}

#[tokio::test]
async fn a_right_that_is_taken_away_is_told() {
    let mut world = World::new(ServerOptions::default()).await;
    world.server.allow_in_log("permission denied for function");
    world
        .server
        .sql("REVOKE EXECUTE ON FUNCTION pg_ls_dir(text,boolean,boolean) FROM backup")
        .await;
    let inside = world.tablespace_directory();
    let error = with(&world.agentless, move |dir| {
        dir.listing(&inside).map(|_| ())
    })
    .await
    .expect_err("it may not");
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("pg_ls_dir"), "{error}");
}

async fn chosen(link: &SqlLink, named: Option<&Path>, said: &Path, agentless: Agentless) -> Access {
    choose(link, named, Some(said), agentless)
        .await
        .expect("it answers")
        .expect("the directory is known")
}

/// A standby's directory, a clone's or an old copy has the same system identifier, and on the machine of a
/// standby the same path.
#[tokio::test]
async fn files_are_read_here_only_where_the_server_runs_on_them() {
    let server = TestServer::start(ServerOptions::default()).await;
    server.sql(GRANTS).await;
    let link = SqlLink::connect(&backup_role(&server)).await.expect("may");
    let live = server.data_dir();
    let copy = server.scratch("copy");
    std::fs::create_dir(copy.join("global")).expect("ours");
    std::fs::copy(
        live.join("global/pg_control"),
        copy.join("global/pg_control"),
    )
    .expect("ours");
    // The server's own file is written in whole seconds.
    server.let_pass(Duration::from_millis(1100)).await;
    server.sql("CHECKPOINT").await;

    let local = |dir: &Path| Access::Local(dir.to_owned());
    let auto = Agentless::Auto;
    assert_eq!(chosen(&link, None, live, auto).await, local(live));
    for (said, why) in [
        (&*copy, "a copy, or another server"),
        (Path::new("/nonexistent"), "No such file"),
    ] {
        match chosen(&link, None, said, auto).await {
            Access::Agentless { because } => assert!(because.contains(why), "{because}"),
            Access::Local(dir) => panic!("{}", dir.display()),
        }
        // Forbidden, and named: then it is for `check` to judge.
        let never = Agentless::Never;
        assert_eq!(chosen(&link, None, said, never).await, local(said));
        assert_eq!(chosen(&link, Some(said), live, auto).await, local(said));
    }
    match chosen(&link, None, live, Agentless::Always).await {
        Access::Agentless { because } => assert_eq!(because, "asked for"),
        Access::Local(dir) => panic!("{}", dir.display()),
    }
    let nobody_says = choose(&link, None, None, auto).await.expect("it answers");
    assert_eq!(nobody_says, None);
}
