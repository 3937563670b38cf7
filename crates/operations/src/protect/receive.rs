//! Receives log from the server and hands it on, in order and without gaps, across broken
//! connections. Keeps no state that must survive: the slot on the server is the spool (law 1).

use std::sync::Arc;
use std::time::Duration;

use borealis_base::{Branch, Clock, ErrorKind, Position};
use borealis_pg_format::segment::{LogFile, SegmentSize};
use borealis_pg_server::conninfo::ConnInfo;
use borealis_pg_server::link::replication::{
    Event, Feedback, Message, ReplicationLink, ReplicationStream, Started,
};
use bytes::{Bytes, BytesMut};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::pulse::Pulse;
use super::ship::Durable;
use crate::error::{Error, Result};

/// Stretches between receiver and cutter, of [`STRETCH_BYTES`] and a message: at most 24 MiB wait here.
pub const STRETCHES_MAX: usize = 64;
/// A stretch of so many bytes goes on although more is at hand. A message adds at most 128 KiB to it
/// (`MAX_SEND_SIZE` in `walsender.c`).
const STRETCH_BYTES: usize = 256 << 10;
/// How long the server may be silent before the connection counts as broken.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);
/// The first and the longest pause between two attempts to connect.
const RETRY_PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// SQLSTATEs of "requested WAL segment has already been removed". The server takes them from an error
/// number that one of its two checks (`CheckXLogRemoved` in `xlog.c`) has not set, so that the second
/// one comes too; the segment's name in the message, which is in any language, tells it from others.
const LOG_REMOVED: [&str; 2] = ["58P01", "XX000"];
/// SQLSTATE of a slot that another connection uses, such as our own one that the server has not
/// given up yet.
const SLOT_IN_USE: &str = "55006";
/// SQLSTATE of a slot that is not there, or that was invalidated.
const SLOT_UNUSABLE: [&str; 2] = ["42704", "55000"];

/// A stretch of log.
#[derive(Debug)]
pub struct Stretch {
    /// Position of the first byte.
    pub start: Position,
    /// The bytes, in the portions in which they came.
    pub portions: Vec<Bytes>,
    /// Whether the connection that they came over began here, so that nothing of what was there before
    /// was asked for again and compared: whether they follow it, only they themselves tell.
    pub uncompared: bool,
}

impl Stretch {
    fn len(&self) -> usize {
        self.portions.iter().map(Bytes::len).sum()
    }
}

/// How long small messages gather in the connection: short beside the time that log waits to fill a piece.
const GATHER_PAUSE: Duration = Duration::from_millis(10);

/// Where and what to receive.
#[derive(Clone)]
pub struct From {
    /// The server.
    pub info: ConnInfo,
    /// The slot, if there is one.
    pub slot: Option<String>,
    /// The cluster that the log must come from.
    pub system_id: u64,
    /// The branch of the log.
    pub branch: Branch,
    /// The branch that the server is on: the same, or one that came later.
    pub server_branch: Branch,
    /// Whether there are other servers to go to if this one can't be reached.
    pub has_others: bool,
    /// The first byte wanted.
    pub position: Position,
    /// Bytes of a log segment.
    pub segment_size: SegmentSize,
    /// The bytes just before `position`, as many of them as are known; asked for again at each connection
    /// and compared, so that a server whose log was rewritten is noticed before its bytes are mixed in.
    pub tail: Bytes,
}

/// Bytes before the next one wanted that are asked for again. A log page: its records carry checksums,
/// transaction numbers and times, and two histories do not agree in them by chance.
const OVERLAP_BYTES: u64 = 8192;

/// Where an overlap before `position` begins. It never leaves the segment: the server keeps whole
/// segments, and the one before may be gone.
pub fn overlap_start(position: Position, segment_size: SegmentSize) -> Position {
    let segment = position.align_down(segment_size.bytes());
    Position(position.0.saturating_sub(OVERLAP_BYTES)).max(segment)
}

impl From {
    /// Where to ask the server to begin.
    fn ask_from(&self) -> Position {
        let known = Position(self.position.0 - self.tail.len() as u64);
        overlap_start(self.position, self.segment_size).max(known)
    }

    /// Takes a message: compares what is known already, and returns what is new.
    fn take(&mut self, start: Position, bytes: &Bytes) -> Result<Bytes> {
        let known = usize::try_from(self.position.since(start)).unwrap_or(usize::MAX);
        let (old, new) = (
            bytes.slice(..known.min(bytes.len())),
            bytes.slice(known.min(bytes.len())..),
        );
        let tail_start = Position(self.position.0 - self.tail.len() as u64);
        let at = usize::try_from(start.since(tail_start)).unwrap_or(usize::MAX);
        let ours = self.tail.get(at..).and_then(|ours| ours.get(..old.len()));
        if !old.is_empty() && ours != Some(&old[..]) {
            return Err(rewritten(start, self.position));
        }
        if !new.is_empty() {
            self.tail = tail_of(&self.tail, &new);
            self.position = self.position.plus(new.len() as u64);
        }
        Ok(new)
    }

    /// The end of the name of the segment that is wanted next, whichever timeline stands before it: the
    /// segment in which a timeline ends is read from the file of the next one (`WalSndSegmentOpen`).
    fn segment_name(&self) -> String {
        let number = self.segment_size.number_of(self.position);
        let name = LogFile::Segment {
            timeline: self.branch,
            number,
        }
        .name(self.segment_size);
        name.get(8..).unwrap_or_default().to_owned()
    }
}

/// The last bytes, as many as an overlap compares, of `new` behind `old`. A copy: a slice would keep the
/// whole message in memory.
fn tail_of(old: &Bytes, new: &Bytes) -> Bytes {
    let keep = usize::try_from(OVERLAP_BYTES).unwrap_or(usize::MAX);
    let from_new = new.slice(new.len().saturating_sub(keep)..);
    let from_old = old.slice(old.len().saturating_sub(keep - from_new.len())..);
    let mut tail = BytesMut::with_capacity(from_old.len() + from_new.len());
    tail.extend_from_slice(&from_old);
    tail.extend_from_slice(&from_new);
    tail.freeze()
}

/// Why receiving ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// It was asked to.
    Stopped,
    /// The server no longer has the log at this position: there is a gap.
    Missing {
        /// The first byte that is missing.
        at: Position,
        /// What the server said.
        reason: String,
    },
    /// The branch ended here; the server goes on on another.
    BranchEnded {
        /// Where.
        at: Position,
        /// The branch that follows.
        next: Branch,
    },
    /// The server can't be gone on with as it was: another may have to be found.
    LookAgain(String),
}

enum Streamed {
    End(End),
    Broken(Error),
}

/// Receives until stopped. Reports the durable position to the server from a task of its own, so that
/// a slow store never looks like a dead client. It has a thread of its own, which sleeps while messages gather.
pub fn receive(
    from: From,
    out: mpsc::Sender<Stretch>,
    durable: watch::Receiver<Durable>,
    clock: Arc<dyn Clock>,
    pulse: &Pulse,
    stop: CancellationToken,
) -> Result<End> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::new(ErrorKind::Bug, format!("no runtime: {error}")))?;
    let end = runtime.block_on(receive_patiently(from, out, durable, clock, pulse, stop));
    pulse.waits_for_shipper();
    end
}

async fn receive_patiently(
    mut from: From,
    out: mpsc::Sender<Stretch>,
    durable: watch::Receiver<Durable>,
    clock: Arc<dyn Clock>,
    pulse: &Pulse,
    stop: CancellationToken,
) -> Result<End> {
    let mut pause = RETRY_PAUSE.0;
    loop {
        pulse.waits_for_server();
        let before = from.position;
        let attempt = async {
            match connect(&from, clock.clone()).await? {
                Connected::Ended(end) => Ok(Streamed::End(end)),
                Connected::Streaming(stream, feedback) => Ok(stream_until_broken(
                    &mut from, stream, feedback, &out, &durable, pulse, &stop,
                )
                .await),
            }
        };
        let (broken, was_connected) = tokio::select! {
            () = stop.cancelled() => return Ok(End::Stopped),
            streamed = attempt => match streamed {
                Ok(Streamed::End(end)) => return Ok(end),
                Ok(Streamed::Broken(error)) => (error, true),
                Err(error) => (error, false),
            },
        };
        if let Some(end) = as_missing(&broken, &from) {
            return Ok(end);
        }
        if !may_pass(&broken) {
            return Err(broken);
        }
        // A connection that was cut is made again; a server that can't be reached may have been replaced.
        if from.has_others && !was_connected && broken.kind() == ErrorKind::Unreachable {
            return Ok(End::LookAgain(broken.to_string()));
        }
        if from.position > before {
            pause = RETRY_PAUSE.0;
        }
        tracing::warn!(error = %broken, next = %from.position, "log stream broken; connecting again");
        pulse.say(format!("log stream broken; connecting again: {broken}"));
        tokio::select! {
            () = stop.cancelled() => return Ok(End::Stopped),
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(RETRY_PAUSE.1),
        }
    }
}

pub(super) fn rewritten(from: Position, to: Position) -> Error {
    Error::Rewritten(format!(
        "the server's log between {from} and {to} is not what it was: the server was put back to an older state and has written on"
    ))
}

enum Connected {
    Streaming(ReplicationStream, Feedback),
    Ended(End),
}

async fn connect(from: &From, clock: Arc<dyn Clock>) -> Result<Connected> {
    let mut link = ReplicationLink::connect(&from.info).await?;
    let system = link.identify_system().await?;
    let changed = if system.system_id != from.system_id {
        Some("it is another cluster now".to_owned())
    } else if system.branch != from.server_branch {
        Some(format!("it is on timeline {} now", system.branch))
    } else if system.branch == from.branch && system.flushed < from.position {
        Some(format!(
            "its log ends at {}, before {} that it had sent already",
            system.flushed, from.position
        ))
    } else {
        None
    };
    if let Some(reason) = changed {
        return Ok(Connected::Ended(End::LookAgain(reason)));
    }
    let started = link
        .start_physical(
            from.slot.as_deref(),
            from.ask_from(),
            from.branch,
            SILENCE_LIMIT,
            clock,
        )
        .await?;
    Ok(match started {
        Started::Streaming(stream, feedback) => {
            Connected::Streaming(stream.gathering(GATHER_PAUSE), feedback)
        }
        Started::AlreadyEnded(_, end) => Connected::Ended(End::BranchEnded {
            at: end.position,
            next: end.next,
        }),
    })
}

async fn stream_until_broken(
    from: &mut From,
    mut stream: ReplicationStream,
    feedback: Feedback,
    out: &mpsc::Sender<Stretch>,
    durable: &watch::Receiver<Durable>,
    pulse: &Pulse,
    stop: &CancellationToken,
) -> Streamed {
    pulse.streams(from.position);
    let reporting = tokio::spawn(report_durable(feedback, durable.clone()));
    let mut uncompared = from.ask_from() == from.position;
    let mut gathered: Option<Stretch> = None;
    let streamed = loop {
        // What came together goes on together: each time costs two tasks a turn.
        let whole =
            |stretch: &mut Stretch| !stream.holds_message() || stretch.len() >= STRETCH_BYTES;
        if let Some(stretch) = gathered.take_if(whole) {
            pulse.waits_for_shipper();
            let sent = out.send(stretch).await;
            pulse.waits_for_server();
            if sent.is_err() {
                break Streamed::End(End::Stopped);
            }
        }
        let event = tokio::select! {
            () = stop.cancelled() => break Streamed::End(End::Stopped),
            event = stream.next() => event,
        };
        match event {
            Ok(Event::Message(Message::Log { start, bytes, .. })) => {
                let next = from.position;
                match from.take(start, &bytes) {
                    Ok(new) if new.is_empty() => pulse.waits_for_server(),
                    Ok(new) => gathered
                        .get_or_insert_with(|| Stretch {
                            start: next,
                            portions: Vec::new(),
                            uncompared: std::mem::take(&mut uncompared),
                        })
                        .portions
                        .push(new),
                    Err(error) => break Streamed::Broken(error),
                }
            }
            Ok(Event::Message(Message::KeepAlive { .. })) => pulse.waits_for_server(),
            Ok(Event::EndOfTimeline(end)) => {
                break Streamed::End(End::BranchEnded {
                    at: end.position,
                    next: end.next,
                });
            }
            Err(error) => break Streamed::Broken(error.into()),
        }
    };
    // It counts as received. A shipper that has ended needs it no more.
    if let Some(stretch) = gathered {
        let _ = out.send(stretch).await;
    }
    reporting.abort();
    if matches!(streamed, Streamed::End(End::Stopped)) {
        // The last report goes out with the close; a server that is gone gets none.
        if let Err(error) = stream.close().await {
            tracing::debug!(%error, "the log stream was not closed cleanly");
        }
    }
    streamed
}

/// Law 1: what is reported as flushed is what the repository durably holds, and nothing else.
async fn report_durable(feedback: Feedback, mut durable: watch::Receiver<Durable>) {
    loop {
        let position = durable.borrow_and_update().position;
        feedback.report(position, position, Position::ZERO);
        if durable.changed().await.is_err() {
            return;
        }
    }
}

fn sqlstate(error: &Error) -> Option<&str> {
    match error {
        Error::Server(error) => error.sqlstate(),
        _ => None,
    }
}

fn as_missing(error: &Error, from: &From) -> Option<End> {
    let state = sqlstate(error)?;
    let reason = error.to_string();
    let removed = LOG_REMOVED.contains(&state) && reason.contains(&from.segment_name());
    (removed || SLOT_UNUSABLE.contains(&state)).then_some(End::Missing {
        at: from.position,
        reason,
    })
}

/// Whether trying again may help.
fn may_pass(error: &Error) -> bool {
    error.kind() == ErrorKind::Unreachable || sqlstate(error) == Some(SLOT_IN_USE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(position: u64) -> From {
        From {
            info: ConnInfo::from_process("host=/nowhere user=x dbname=x").unwrap(),
            slot: None,
            system_id: 1,
            branch: Branch(1),
            server_branch: Branch(1),
            has_others: false,
            position: Position(position),
            segment_size: SegmentSize::DEFAULT,
            tail: Bytes::new(),
        }
    }

    #[test]
    fn history_that_was_rewritten_is_not_mixed_in() {
        let mut from = wanted(0x0300_0000);
        let bytes = |fill: u8, len: usize| Bytes::from(vec![fill; len]);
        assert_eq!(from.ask_from(), from.position);
        assert_eq!(
            from.take(Position(0x0300_0000), &bytes(1, 10_000))
                .unwrap()
                .len(),
            10_000
        );
        assert_eq!(from.position, Position(0x0300_2710));
        assert_eq!(from.ask_from(), Position(0x0300_0710));
        // The same bytes again, and new ones after them.
        let mut again = BytesMut::from(&bytes(1, 8192)[..]);
        again.extend_from_slice(&bytes(2, 5));
        assert_eq!(
            from.take(Position(0x0300_0710), &again.freeze()).unwrap(),
            bytes(2, 5)
        );
        // One byte differs.
        let mut other = BytesMut::from(&bytes(1, 8187)[..]);
        other.extend_from_slice(&bytes(3, 5));
        let ask = from.ask_from();
        let refused = from.take(ask, &other.freeze()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Refused);
        assert_eq!(from.position, Position(0x0300_2715));
    }

    #[test]
    fn overlap_stays_within_the_segment_that_the_server_keeps() {
        let start = |position| overlap_start(Position(position), SegmentSize::DEFAULT);
        assert_eq!(start(0x0300_0000), Position(0x0300_0000));
        assert_eq!(start(0x0300_0100), Position(0x0300_0000));
        assert_eq!(start(0x0300_8000), Position(0x0300_6000));
    }

    fn told(sqlstate: &str, message: &str) -> Error {
        Error::Server(borealis_pg_server::Error::Server {
            severity: "ERROR".into(),
            sqlstate: sqlstate.into(),
            message: message.into(),
            detail: None,
            hint: None,
        })
    }

    #[test]
    fn removed_log_is_a_gap_whichever_of_the_servers_checks_finds_it() {
        let message = "das angeforderte WAL-Segment 000000010000000000000003 wurde schon entfernt";
        for state in LOG_REMOVED {
            let end = as_missing(&told(state, message), &wanted(0x0300_0000));
            assert!(
                matches!(
                    end,
                    Some(End::Missing {
                        at: Position(0x0300_0000),
                        ..
                    })
                ),
                "{state}"
            );
        }
        assert_eq!(
            as_missing(&told("XX000", "invalid memory"), &wanted(0x0300_0000)),
            None
        );
        assert_eq!(
            as_missing(&told("XX000", message), &wanted(0x0400_0000)),
            None
        );
    }
}
