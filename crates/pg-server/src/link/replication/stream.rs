//! The running stream. Two owners share the connection: the reader, which may be as slow as the
//! store behind it, and the feedback task, which owns the writing half and sends a status update
//! whenever the durable position moves, when the server asks, and at least every quarter of the
//! server's timeout. The server's timeout counts from our last message, not from the last byte that
//! we read, so that a blocked reader costs nothing.
//!
//! Nothing here survives a crash: the slot on the server does. The task ends when the stream is
//! dropped.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use borealis_base::{Branch, Clock, Position};
use bytes::BytesMut;
use futures::FutureExt;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::wire::{self, Message, protocol};
use super::{ReplicationLink, end_of_timeline};
use crate::error::{Error, Result};
use crate::link::LinkStream;

/// The longest time between two status updates.
const STATUS_INTERVAL_MAX: Duration = Duration::from_secs(10);

/// The shortest; a server whose timeout is shorter than four of these is too impatient.
const STATUS_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// After so few bytes we read again only after a pause, in which more gathers in the socket: at thousands of
/// commits a second, being woken for each costs more than what is done with the log. A server that has much to
/// send is not held up: what gathers is more than this, and is read without a pause until no more comes.
const FEW_BYTES: usize = 64 << 10;

/// Requests that may wait for the feedback task: an answer and an end.
const REQUESTS_MAX: usize = 4;

/// `CopyDone`, framed.
const COPY_DONE: [u8; 5] = [b'c', 0, 0, 0, 4];

/// Where a timeline ends because another follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndOfTimeline {
    /// The timeline that follows.
    pub next: Branch,
    /// Where it begins.
    pub position: Position,
}

/// What the stream yields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Log, or a sign of life.
    Message(Message),
    /// No more log on this timeline; [`ReplicationStream::into_link`] gives the session back.
    EndOfTimeline(EndOfTimeline),
}

/// How far we are; all positions are ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Progress {
    write: Position,
    flush: Position,
    apply: Position,
}

/// Says how far the log has come; may be cloned and used from any task. Positions never go back.
#[derive(Debug, Clone)]
pub struct Feedback(Arc<watch::Sender<Progress>>);

impl Feedback {
    /// Reports that log before `write` was received, before `flush` is durable in the repository,
    /// and before `apply` is applied (zero where nothing is). The server may forget log before
    /// `flush` at once: it must never pass what the repository durably holds.
    pub fn report(&self, write: Position, flush: Position, apply: Position) {
        self.0.send_if_modified(|progress| {
            let next = Progress {
                write: progress.write.max(write),
                flush: progress.flush.max(flush),
                apply: progress.apply.max(apply),
            };
            let moved = next != *progress;
            *progress = next;
            moved
        });
    }
}

enum Request {
    /// The server wants an answer now.
    Answer,
    /// A last status, then `CopyDone`; the writing half comes back.
    Finish(oneshot::Sender<WriteHalf<LinkStream>>),
}

/// The feedback task of a dropped stream would keep the connection, and with it the slot, busy.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Log as it comes.
pub struct ReplicationStream {
    reader: ReadHalf<LinkStream>,
    buffer: BytesMut,
    to: String,
    parameters: BTreeMap<String, String>,
    silence_limit: Duration,
    gather: Option<Duration>,
    /// Bytes read since there was last nothing to read.
    gathered: usize,
    requests: mpsc::Sender<Request>,
    _task: AbortOnDrop,
    ended: Option<(WriteHalf<LinkStream>, EndOfTimeline)>,
}

impl ReplicationStream {
    pub(super) fn begin(
        link: ReplicationLink,
        silence_limit: Duration,
        sender_timeout: Option<Duration>,
        clock: Arc<dyn Clock>,
    ) -> (Self, Feedback) {
        let interval = sender_timeout
            .map_or(STATUS_INTERVAL_MAX, |timeout| timeout / 4)
            .min(silence_limit / 3)
            .clamp(STATUS_INTERVAL_MIN, STATUS_INTERVAL_MAX);
        let (reader, writer) = tokio::io::split(link.stream);
        let (progress, seen) = watch::channel(Progress {
            write: Position::ZERO,
            flush: Position::ZERO,
            apply: Position::ZERO,
        });
        let (requests, inbox) = mpsc::channel(REQUESTS_MAX);
        let task = tokio::spawn(report(writer, seen, inbox, interval, clock));
        let stream = Self {
            reader,
            buffer: link.buffer,
            to: link.to,
            parameters: link.parameters,
            silence_limit,
            gather: None,
            gathered: 0,
            requests,
            _task: AbortOnDrop(task),
            ended: None,
        };
        (stream, Feedback(Arc::new(progress)))
    }

    /// Pauses so long before it reads on whenever little has come. It *blocks its thread* meanwhile: a runtime
    /// that waits is woken by each message all the same. Such a stream, and the connection that it was started
    /// on, belong to a runtime with a thread of their own.
    #[must_use]
    pub fn gathering(self, pause: Duration) -> Self {
        Self {
            gather: Some(pause),
            ..self
        }
    }

    /// The next frame. May be dropped while it waits and called again.
    async fn read(&mut self) -> Result<wire::Frame> {
        loop {
            if let Some(frame) = wire::frame_of(&mut self.buffer, &self.to)? {
                return Ok(frame);
            }
            let at_once = wire::fill(&mut self.reader, &mut self.buffer, &self.to).now_or_never();
            if let Some(read) = at_once {
                self.gathered += read?;
                continue;
            }
            let few = (1..FEW_BYTES).contains(&self.gathered);
            self.gathered = 0;
            if let (true, Some(pause)) = (few, self.gather) {
                std::thread::sleep(pause);
                continue;
            }
            let read = wire::fill(&mut self.reader, &mut self.buffer, &self.to);
            self.gathered = tokio::time::timeout(self.silence_limit, read)
                .await
                .unwrap_or_else(|_| {
                    Err(Error::Silent {
                        to: self.to.clone(),
                        after: self.silence_limit,
                    })
                })?;
        }
    }

    /// Whether the next event is a message that is here already.
    pub fn holds_message(&self) -> bool {
        self.ended.is_none() && wire::holds_frame(&self.buffer, b'd')
    }

    /// The next event. May be dropped while it waits and called again, except while a timeline
    /// ends, which takes two messages.
    pub async fn next(&mut self) -> Result<Event> {
        if let Some((_, end)) = &self.ended {
            return Ok(Event::EndOfTimeline(*end));
        }
        loop {
            let frame = self.read().await?;
            match frame.tag {
                b'd' => {
                    let message = wire::message(frame.body)
                        .ok_or_else(|| protocol(&self.to, "a malformed stream message"))?;
                    if let Message::KeepAlive {
                        reply_requested: true,
                        ..
                    } = message
                    {
                        // A full queue already holds such a request.
                        let _ = self.requests.try_send(Request::Answer);
                    }
                    return Ok(Event::Message(message));
                }
                b'c' => return self.end().await.map(Event::EndOfTimeline),
                b'E' => return Err(wire::server_error(frame.body)),
                b'N' | b'S' => {}
                // The server ends the command when it shuts down, with all its log sent.
                b'C' => {
                    return Err(Error::Lost {
                        to: self.to.clone(),
                        detail: "the server shuts down".to_owned(),
                    });
                }
                tag => {
                    return Err(protocol(
                        &self.to,
                        format!("message `{}` in a stream", tag.escape_ascii()),
                    ));
                }
            }
        }
    }

    /// The server has said that its timeline ends: say the same, then read where the next begins.
    async fn end(&mut self) -> Result<EndOfTimeline> {
        let writer = self.finish().await?;
        let mut answer = super::Answer::default();
        loop {
            let frame = self.read().await?;
            let malformed = || protocol(&self.to, "a malformed row");
            match frame.tag {
                b'T' => answer.columns = wire::columns(frame.body).ok_or_else(malformed)?,
                b'D' => answer
                    .rows
                    .push(wire::values(frame.body).ok_or_else(malformed)?),
                b'E' => return Err(wire::server_error(frame.body)),
                b'Z' => break,
                _ => {}
            }
        }
        let end = end_of_timeline(&answer)?;
        self.ended = Some((writer, end));
        Ok(end)
    }

    async fn finish(&mut self) -> Result<WriteHalf<LinkStream>> {
        let lost = || Error::Lost {
            to: self.to.clone(),
            detail: "status updates could no longer be sent".to_owned(),
        };
        let (give, take) = oneshot::channel();
        self.requests
            .send(Request::Finish(give))
            .await
            .map_err(|_| lost())?;
        tokio::time::timeout(self.silence_limit, take)
            .await
            .ok()
            .and_then(std::result::Result::ok)
            .ok_or_else(lost)
    }

    /// The session, ready for the next command, after [`Event::EndOfTimeline`]; `None` before it.
    pub fn into_link(mut self) -> Option<ReplicationLink> {
        let (writer, _) = self.ended.take()?;
        Some(ReplicationLink {
            stream: self.reader.unsplit(writer),
            buffer: self.buffer,
            to: self.to,
            parameters: self.parameters,
        })
    }

    /// Ends the stream on our side, with a last status update, so that the server learns the final
    /// durable position before the connection closes.
    pub async fn close(mut self) -> Result<()> {
        if self.ended.is_none() {
            let mut writer = self.finish().await?;
            loop {
                match self.read().await {
                    Ok(frame) if frame.tag == b'Z' => break,
                    Ok(frame) if frame.tag == b'E' => return Err(wire::server_error(frame.body)),
                    Ok(_) => {}
                    Err(error) => return Err(error),
                }
            }
            // Terminate; a server that is already gone needs none.
            let _ = writer.write_all(&[b'X', 0, 0, 0, 4]).await;
            let _ = writer.shutdown().await;
        }
        Ok(())
    }
}

impl std::fmt::Debug for ReplicationStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplicationStream")
            .field("to", &self.to)
            .finish_non_exhaustive()
    }
}

async fn report(
    mut writer: WriteHalf<LinkStream>,
    mut progress: watch::Receiver<Progress>,
    mut requests: mpsc::Receiver<Request>,
    interval: Duration,
    clock: Arc<dyn Clock>,
) {
    let mut tick = tokio::time::interval(interval);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut watched = true;
    loop {
        // A tick asks for an answer: frequent updates keep the server from sending keepalives of its
        // own, and silence must mean that it is gone.
        let mut ask = false;
        let mut finish = None;
        tokio::select! {
            _ = tick.tick() => ask = true,
            changed = progress.changed(), if watched => watched = changed.is_ok(),
            request = requests.recv() => match request {
                Some(Request::Answer) => {}
                Some(Request::Finish(give)) => finish = Some(give),
                None => return,
            },
        }
        let now = *progress.borrow_and_update();
        let update = wire::status_update(now.write, now.flush, now.apply, clock.now(), ask);
        let mut sent = writer.write_all(&update).await;
        if sent.is_ok() && finish.is_some() {
            sent = writer.write_all(&COPY_DONE).await;
        }
        if sent.is_ok() {
            sent = writer.flush().await;
        }
        if let Err(error) = sent {
            // The reader sees the same broken connection and returns it as an error.
            tracing::debug!(%error, "status update not sent");
            return;
        }
        if let Some(give) = finish {
            let _ = give.send(writer);
            return;
        }
    }
}
