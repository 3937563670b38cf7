//! Physical replication against a real server.

use std::sync::Arc;
use std::time::Duration;

use borealis_base::{Branch, Clock, ErrorKind, Position, SystemClock};
use borealis_pg_format::ControlFile;
use borealis_pg_server::link::replication::{Event, Message, Started};
use borealis_pg_server::link::{Feedback, ReplicationLink, ReplicationStream};
use borealis_pg_server::source;
use borealis_testkit::server::ServerOptions;
use borealis_testkit::{TestServer, wait_until};
use rustix::process::{Pid, Signal, kill_process};

const DEADLINE: Duration = Duration::from_secs(30);
const SEGMENT: u64 = 16 << 20;

async fn stream_from(
    server: &TestServer,
    slot: Option<&str>,
    start: Position,
    branch: Branch,
    silence: Duration,
) -> (ReplicationStream, Feedback) {
    let link = ReplicationLink::connect(&server.info())
        .await
        .expect("connects");
    match link
        .start_physical(slot, start, branch, silence, Arc::new(SystemClock))
        .await
        .expect("starts")
    {
        Started::Streaming(stream, feedback) => (stream, feedback),
        Started::AlreadyEnded(..) => panic!("the timeline has ended"),
    }
}

/// Reads log up to `until`; checks that it has no gaps.
async fn read_until(stream: &mut ReplicationStream, start: Position, until: Position) -> Vec<u8> {
    let mut log = Vec::new();
    while start.plus(log.len() as u64) < until {
        let event = tokio::time::timeout(DEADLINE, stream.next())
            .await
            .expect("log comes in time")
            .expect("the stream lives");
        if let Event::Message(Message::Log {
            start: at,
            bytes,
            end,
            ..
        }) = event
        {
            assert_eq!(at, start.plus(log.len() as u64), "a gap");
            assert!(end >= at.plus(bytes.len() as u64));
            log.extend_from_slice(&bytes);
        }
    }
    log
}

async fn flushed(server: &TestServer) -> Position {
    let text = server.value("SELECT pg_current_wal_flush_lsn()").await;
    text.parse().expect("a position")
}

#[tokio::test]
async fn streamed_bytes_equal_the_segment_files() {
    let server = TestServer::start(ServerOptions::default()).await;
    let mut link = ReplicationLink::connect(&server.info())
        .await
        .expect("connects");
    let system = link.identify_system().await.expect("answers");
    let id = server
        .value("SELECT system_identifier FROM pg_control_system()")
        .await;
    assert_eq!(system.system_id.to_string(), id);
    assert_eq!(system.branch, Branch(1));
    link.create_slot("bytes", true).await.expect("created");
    let start = system.flushed.align_down(SEGMENT);
    server
        .sql(
            "CREATE TABLE t AS SELECT g, md5(g::text) AS x FROM generate_series(1, 300000) g; \
             SELECT pg_switch_wal(); INSERT INTO t VALUES (0, 'after the switch')",
        )
        .await;
    let until = flushed(&server).await;
    assert!(until.since(start) > SEGMENT, "more than one segment");
    let (mut stream, _feedback) = stream_from(&server, None, start, Branch(1), DEADLINE).await;
    let log = read_until(&mut stream, start, until).await;
    stream.close().await.expect("closes");
    for (at, part) in log.chunks(SEGMENT as usize).enumerate() {
        let number = start.0 / SEGMENT + at as u64;
        let name = format!("{:08X}{:08X}{:08X}", 1, number >> 8, number & 0xFF);
        let file = std::fs::read(server.data_dir().join("pg_wal").join(&name)).expect("exists");
        assert!(file[..part.len()] == *part, "segment {name} differs");
    }
}

/// Many small messages, as thousands of commits make them, and a large one.
#[tokio::test]
async fn messages_that_gather_are_read_in_order_and_whole() {
    let server = TestServer::start(ServerOptions::default()).await;
    server.sql("CREATE TABLE t (x int)").await;
    let start = flushed(&server).await;
    let (stream, _feedback) = stream_from(&server, None, start, Branch(1), DEADLINE).await;
    let mut stream = stream.gathering(Duration::from_millis(20));
    let commits =
        "DO $$ BEGIN FOR n IN 1..1000 LOOP INSERT INTO t VALUES (n); COMMIT; END LOOP; END $$";
    for sql in [commits, "INSERT INTO t SELECT generate_series(1, 50000)"] {
        server.sql(sql).await;
    }
    let until = flushed(&server).await;
    let log = read_until(&mut stream, start, until).await;
    stream.close().await.expect("closes");
    let path = format!("00000001{:08X}{:08X}", 0, start.0 / SEGMENT);
    let file = std::fs::read(server.data_dir().join("pg_wal").join(path)).expect("exists");
    let at = (start.0 % SEGMENT) as usize;
    assert!(log[..] == file[at..at + log.len()]);
}

#[tokio::test]
async fn keepalives_are_answered_while_the_reader_is_blocked() {
    let server = TestServer::start(ServerOptions::default().with("wal_sender_timeout", "2s")).await;
    let start = flushed(&server).await;
    let (mut stream, feedback) = stream_from(&server, None, start, Branch(1), DEADLINE).await;
    // Far more log than socket buffers hold, so that the server itself is blocked.
    server
        .sql("CREATE TABLE t AS SELECT g, repeat(md5(g::text), 20) AS x FROM generate_series(1, 100000) g")
        .await;
    let until = flushed(&server).await;
    feedback.report(start, start, Position::ZERO);
    let begin = SystemClock.elapsed();
    // The reader reads nothing for three times the server's timeout, and the server goes on to hear
    // from us.
    wait_until("six seconds of silence", DEADLINE, async || {
        let walsenders = server
            .value("SELECT count(*) FROM pg_stat_replication")
            .await;
        assert_eq!(walsenders, "1", "the server dropped the connection");
        (SystemClock.elapsed().saturating_sub(begin) > Duration::from_secs(6)).then_some(())
    })
    .await;
    let log = read_until(&mut stream, start, until).await;
    assert!(log.len() > 50 << 20);
}

#[tokio::test]
async fn idle_stream_shows_signs_of_life_and_a_dead_peer_does_not() {
    let mut server = TestServer::start(ServerOptions::default()).await;
    server.allow_in_log("terminating walsender");
    let start = flushed(&server).await;
    let limit = Duration::from_millis(1500);
    let (mut stream, _feedback) = stream_from(&server, None, start, Branch(1), limit).await;
    let begin = SystemClock.elapsed();
    while SystemClock.elapsed().saturating_sub(begin) < limit * 2 {
        stream.next().await.expect("an idle server answers");
    }
    let pid: i32 = server
        .value("SELECT pid FROM pg_stat_replication")
        .await
        .parse()
        .expect("a number");
    let pid = Pid::from_raw(pid).expect("a process");
    kill_process(pid, Signal::STOP).expect("is ours");
    let error = wait_until("silence", DEADLINE, async || stream.next().await.err()).await;
    kill_process(pid, Signal::CONT).expect("is ours");
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(error.to_string().contains("no message"), "{error}");
}

async fn slot(server: &TestServer) -> Option<source::SlotState> {
    let sql = server.session("postgres").await;
    source::slot_state(&sql, "ours").await.expect("answers")
}

#[tokio::test]
async fn slot_holds_the_reported_position_and_survives_a_restart() {
    let mut server = TestServer::start(ServerOptions::default()).await;
    server.allow_in_log("replication slot \"ours\" already exists");
    server.allow_in_log("replication slot \"ours\" does not exist");
    let mut link = ReplicationLink::connect(&server.info())
        .await
        .expect("connects");
    assert_eq!(slot(&server).await, None);
    link.create_slot("ours", true).await.expect("created");
    let again = link.create_slot("ours", true).await.expect_err("exists");
    assert_eq!(again.sqlstate(), Some("42710"));
    let made = slot(&server).await.expect("exists");
    let start = made.restart.expect("reserved at once");
    server
        .sql("CREATE TABLE t (x int); INSERT INTO t VALUES (1)")
        .await;
    let until = flushed(&server).await;
    let (mut stream, feedback) =
        stream_from(&server, Some("ours"), start, Branch(1), DEADLINE).await;
    read_until(&mut stream, start, until).await;
    let state = slot(&server).await.expect("exists");
    assert!(state.active && state.is_permanent_physical);
    assert_eq!(state.hold, Some(source::SlotHold::Reserved));
    assert_eq!(state.restart, Some(start), "nothing was reported yet");
    feedback.report(until, until, Position::ZERO);
    // What is reported later with less never takes it back.
    feedback.report(start, start, Position::ZERO);
    wait_until("the slot to move", DEADLINE, async || {
        let state = slot(&server).await?;
        (state.restart == Some(until)).then_some(())
    })
    .await;
    stream.close().await.expect("closes");
    server.restart().await;
    let mut link = ReplicationLink::connect(&server.info())
        .await
        .expect("connects");
    let survived = slot(&server).await.expect("survives");
    assert_eq!(survived.restart, Some(until));
    link.drop_slot("ours").await.expect("dropped");
    assert_eq!(slot(&server).await, None);
    let absent = link.drop_slot("ours").await.expect_err("absent");
    assert_eq!(absent.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn removed_log_is_not_found_rather_than_unreachable() {
    let mut server = TestServer::start(ServerOptions::default()).await;
    server.allow_in_log("has already been removed");
    let link = ReplicationLink::connect(&server.info())
        .await
        .expect("connects");
    // `initdb` begins with segment 1; it is gone after a few switches and checkpoints.
    for _ in 0..3 {
        server
            .sql("CREATE TABLE t (x int); DROP TABLE t; SELECT pg_switch_wal(); CHECKPOINT")
            .await;
    }
    let start = link
        .start_physical(
            None,
            Position(SEGMENT),
            Branch(1),
            DEADLINE,
            Arc::new(SystemClock),
        )
        .await;
    let error = match start.expect("the command itself is accepted") {
        Started::Streaming(mut stream, _feedback) => {
            wait_until("the refusal", DEADLINE, async || stream.next().await.err()).await
        }
        Started::AlreadyEnded(..) => panic!("the timeline goes on"),
    };
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

#[tokio::test]
async fn end_of_a_timeline_leads_to_the_next() {
    let mut server = TestServer::start(ServerOptions::default().with("wal_keep_size", "1GB")).await;
    let start = flushed(&server).await.align_down(SEGMENT);
    server.stop().await;
    server.start_standby().await;
    server.promote().await;

    let mut link = ReplicationLink::connect(&server.info())
        .await
        .expect("connects");
    assert_eq!(
        link.identify_system().await.expect("answers").branch,
        Branch(2)
    );
    let (name, content) = link.timeline_history(Branch(2)).await.expect("exists");
    assert_eq!(name, "00000002.history");
    let file = std::fs::read(server.data_dir().join("pg_wal").join(&name)).expect("exists");
    assert_eq!(content, file);

    let (mut stream, _feedback) = stream_from(&server, None, start, Branch(1), DEADLINE).await;
    let mut reached = start;
    let end = loop {
        match stream.next().await.expect("the stream lives") {
            Event::Message(Message::Log { start, bytes, .. }) => {
                reached = start.plus(bytes.len() as u64);
            }
            Event::Message(Message::KeepAlive { .. }) => {}
            Event::EndOfTimeline(end) => break end,
        }
    };
    assert_eq!((end.next, end.position), (Branch(2), reached));
    let history = String::from_utf8_lossy(&content).into_owned();
    assert!(history.contains(&end.position.to_string()), "{history}");

    // The same session goes on with the next timeline.
    let link = stream.into_link().expect("the timeline ended");
    let Started::Streaming(mut stream, _feedback) = link
        .start_physical(
            None,
            end.position,
            Branch(2),
            DEADLINE,
            Arc::new(SystemClock),
        )
        .await
        .expect("starts")
    else {
        panic!("timeline 2 goes on");
    };
    let until = flushed(&server).await;
    read_until(&mut stream, end.position, until).await;

    // Asked to start exactly at its end, the old timeline has nothing to stream.
    let link = ReplicationLink::connect(&server.info())
        .await
        .expect("connects");
    let started = link
        .start_physical(
            None,
            end.position,
            Branch(1),
            DEADLINE,
            Arc::new(SystemClock),
        )
        .await
        .expect("answers");
    match started {
        Started::AlreadyEnded(mut link, again) => {
            assert_eq!(again, end);
            link.identify_system().await.expect("the session is usable");
        }
        Started::Streaming(..) => panic!("nothing is left of timeline 1"),
    }
}

#[tokio::test]
async fn shutdown_of_the_server_is_seen_with_all_its_log() {
    let mut server = TestServer::start(ServerOptions::default()).await;
    let start = flushed(&server).await;
    let (mut stream, feedback) = stream_from(&server, None, start, Branch(1), DEADLINE).await;
    // A wal sender that has accepted the command and not yet sent anything is
    // ended like any session, without the rest of the log (`replication_active`
    // in walsender.c): the server stops only after some log has come.
    server
        .sql("CREATE TABLE t (x int); INSERT INTO t VALUES (1)")
        .await;
    read_until(&mut stream, start, start.plus(1)).await;
    let reader = tokio::spawn(async move {
        let mut reached = start;
        loop {
            match stream.next().await {
                Ok(Event::Message(Message::Log { start, bytes, .. })) => {
                    reached = start.plus(bytes.len() as u64);
                    feedback.report(reached, reached, Position::ZERO);
                }
                Ok(_) => {}
                Err(error) => return (reached, error),
            }
        }
    });
    server.stop().await;
    let (reached, error) = reader.await.expect("the reader ends");
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    let control = std::fs::read(server.data_dir().join("global/pg_control")).expect("is there");
    let control = ControlFile::parse(&control).expect("is valid");
    let checkpoint = Position(control.checkpoint_lsn.0);
    assert!(
        reached > checkpoint,
        "the shutdown checkpoint at {checkpoint} was not streamed"
    );
}
