//! Physical replication sessions: a client of the walsender for what Borealis needs of it.
//!
//! A [`ReplicationLink`] runs commands. [`ReplicationLink::start_physical`] turns it into a
//! [`ReplicationStream`], which is read by one task, and a [`Feedback`], through which any task says
//! how far the log is durable. A task of its own sends that to the server and never waits for the
//! reader, so that a slow store cannot make the server drop the connection.

mod login;
mod stream;
mod wire;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use borealis_base::{Branch, Clock, Position};
use bytes::{Bytes, BytesMut};
use postgres_protocol::message::frontend;
use tokio::io::AsyncWriteExt;

pub use stream::{EndOfTimeline, Event, Feedback, ReplicationStream};
pub use wire::Message;

use super::sql::{quote_identifier, quote_literal};
use super::{LinkStream, Login, connect};
use crate::conninfo::{ConnInfo, Host};
use crate::error::{Error, Result};
use wire::protocol;

/// What `IDENTIFY_SYSTEM` answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemIdentity {
    /// The number that `initdb` gave the cluster. Copies of a cluster share it.
    pub system_id: u64,
    /// The current timeline.
    pub branch: Branch,
    /// How far its log is flushed.
    pub flushed: Position,
}

/// What became of a start.
pub enum Started {
    /// Log comes.
    Streaming(ReplicationStream, Feedback),
    /// The timeline ends exactly at the position asked for.
    AlreadyEnded(ReplicationLink, EndOfTimeline),
}

/// Rows of an answer, as bytes.
#[derive(Debug, Default)]
struct Answer {
    columns: Vec<String>,
    rows: Vec<Vec<Option<Bytes>>>,
}

impl Answer {
    fn cell(&self, column: &str) -> Option<&Bytes> {
        let at = self.columns.iter().position(|name| name == column)?;
        self.rows.first()?.get(at)?.as_ref()
    }

    fn read<T: std::str::FromStr>(&self, column: &str) -> Result<Option<T>> {
        self.cell(column)
            .map(|bytes| {
                std::str::from_utf8(bytes)
                    .ok()
                    .and_then(|text| text.parse().ok())
                    .ok_or_else(|| Error::Value {
                        name: column.to_owned(),
                        detail: "unexpected form".to_owned(),
                    })
            })
            .transpose()
    }

    fn need<T: std::str::FromStr>(&self, column: &str) -> Result<T> {
        self.read(column)?.ok_or_else(|| Error::Value {
            name: column.to_owned(),
            detail: "missing".to_owned(),
        })
    }
}

/// A session with a walsender that waits for a command.
pub struct ReplicationLink {
    stream: LinkStream,
    buffer: BytesMut,
    to: String,
    parameters: BTreeMap<String, String>,
}

struct ReplicationLogin;

impl Login for ReplicationLogin {
    type Link = ReplicationLink;

    async fn login(
        &self,
        mut stream: LinkStream,
        info: &ConnInfo,
        host: &Host,
    ) -> Result<ReplicationLink> {
        let parameters = login::log_in(&mut stream, info, host).await?;
        Ok(ReplicationLink {
            stream,
            buffer: BytesMut::new(),
            to: host.to_string(),
            parameters,
        })
    }
}

impl ReplicationLink {
    /// Opens a replication session. The commands after it have no time limit of their own: a caller
    /// that must not wait wraps them.
    pub async fn connect(info: &ConnInfo) -> Result<Self> {
        connect(info, &ReplicationLogin).await
    }

    /// A parameter that the server reported at login, such as `server_version`.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// Whether TLS protects the link.
    pub fn is_encrypted(&self) -> bool {
        self.stream.is_encrypted()
    }

    async fn send(&mut self, command: &str) -> Result<()> {
        let mut out = BytesMut::new();
        frontend::query(command, &mut out).map_err(|e| protocol(&self.to, e.to_string()))?;
        let sent = async {
            self.stream.write_all(&out).await?;
            self.stream.flush().await
        };
        sent.await.map_err(|error| Error::Lost {
            to: self.to.clone(),
            detail: error.to_string(),
        })
    }

    async fn read(&mut self) -> Result<wire::Frame> {
        wire::read_frame(&mut self.stream, &mut self.buffer, &self.to).await
    }

    async fn command(&mut self, command: &str) -> Result<Answer> {
        self.send(command).await?;
        self.answer().await
    }

    /// Reads up to the next "ready"; an error of the server is returned after it.
    async fn answer(&mut self) -> Result<Answer> {
        let mut answer = Answer::default();
        let mut failure = None;
        loop {
            let frame = self.read().await?;
            let malformed = || protocol(&self.to, "a malformed row");
            match frame.tag {
                b'T' => answer.columns = wire::columns(frame.body).ok_or_else(malformed)?,
                b'D' => answer
                    .rows
                    .push(wire::values(frame.body).ok_or_else(malformed)?),
                b'E' => failure = Some(wire::server_error(frame.body)),
                b'Z' => return failure.map_or(Ok(answer), Err),
                // Completion, notices, parameters.
                b'C' | b'N' | b'S' | b'I' => {}
                tag => {
                    return Err(protocol(
                        &self.to,
                        format!("message `{}` in an answer", tag.escape_ascii()),
                    ));
                }
            }
        }
    }

    /// Which cluster this is and how far its log reaches.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity> {
        let answer = self.command("IDENTIFY_SYSTEM").await?;
        Ok(SystemIdentity {
            system_id: answer.need("systemid")?,
            branch: Branch(answer.need("timeline")?),
            flushed: answer.need("xlogpos")?,
        })
    }

    /// A setting, as `SHOW` prints it.
    pub async fn show(&mut self, setting: &str) -> Result<String> {
        let answer = self.command(&format!("SHOW {setting}")).await?;
        answer.need(setting)
    }

    /// Makes a permanent physical slot. With `reserve`, log is held from now on rather than from the
    /// first stream on.
    pub async fn create_slot(&mut self, name: &str, reserve: bool) -> Result<()> {
        let reserve = if reserve { " RESERVE_WAL" } else { "" };
        let name = quote_identifier(name);
        self.command(&format!("CREATE_REPLICATION_SLOT {name} PHYSICAL{reserve}"))
            .await
            .map(drop)
    }

    /// Makes a physical slot that holds log from now on and goes away with this connection.
    pub async fn create_temporary_slot(&mut self, name: &str) -> Result<()> {
        let name = quote_identifier(name);
        self.command(&format!(
            "CREATE_REPLICATION_SLOT {name} TEMPORARY PHYSICAL RESERVE_WAL"
        ))
        .await
        .map(drop)
    }

    /// Removes a slot. An absent or busy one is the server's error.
    pub async fn drop_slot(&mut self, name: &str) -> Result<()> {
        self.command(&format!("DROP_REPLICATION_SLOT {}", quote_identifier(name)))
            .await
            .map(drop)
    }

    /// The name and the content of a timeline's history file. Timeline 1 has none.
    pub async fn timeline_history(&mut self, branch: Branch) -> Result<(String, Bytes)> {
        let answer = self.command(&format!("TIMELINE_HISTORY {branch}")).await?;
        let content = answer
            .cell("content")
            .cloned()
            .ok_or_else(|| Error::NotFound(format!("history of timeline {branch}")))?;
        Ok((answer.need("filename")?, content))
    }

    /// Streams the log of `branch` from `start` on, any byte of it.
    ///
    /// `silence_limit` is how long the server may say nothing before it counts as gone; it is asked
    /// for a sign of life three times as often.
    pub async fn start_physical(
        mut self,
        slot: Option<&str>,
        start: Position,
        branch: Branch,
        silence_limit: Duration,
        clock: Arc<dyn Clock>,
    ) -> Result<Started> {
        let timeout = sender_timeout(&self.show("wal_sender_timeout").await?);
        let slot = slot
            .map(|name| format!("SLOT {} ", quote_identifier(name)))
            .unwrap_or_default();
        self.send(&format!(
            "START_REPLICATION {slot}PHYSICAL {start} TIMELINE {branch}"
        ))
        .await?;
        loop {
            let frame = self.read().await?;
            match frame.tag {
                b'W' => break,
                b'N' | b'S' => {}
                b'E' => {
                    let error = wire::server_error(frame.body);
                    self.answer().await?;
                    return Err(error);
                }
                b'T' => {
                    let mut answer = self.answer().await?;
                    answer.columns = wire::columns(frame.body)
                        .ok_or_else(|| protocol(&self.to, "a malformed row"))?;
                    let end = end_of_timeline(&answer)?;
                    return Ok(Started::AlreadyEnded(self, end));
                }
                tag => {
                    return Err(protocol(
                        &self.to,
                        format!("message `{}` at the start of a stream", tag.escape_ascii()),
                    ));
                }
            }
        }
        let (stream, feedback) = ReplicationStream::begin(self, silence_limit, timeout, clock);
        Ok(Started::Streaming(stream, feedback))
    }
}

fn end_of_timeline(answer: &Answer) -> Result<EndOfTimeline> {
    Ok(EndOfTimeline {
        next: Branch(answer.need("next_tli")?),
        position: answer.need("next_tli_startpos")?,
    })
}

/// Reads `wal_sender_timeout` as shown (`1min`, `2s`, `500ms`, `0`); `None` where there is none.
fn sender_timeout(shown: &str) -> Option<Duration> {
    borealis_base::parse_duration(shown)
        .ok()
        .filter(|timeout| !timeout.is_zero())
}

impl std::fmt::Debug for ReplicationLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplicationLink")
            .field("to", &self.to)
            .finish_non_exhaustive()
    }
}

/// Checks a slot name by the server's rule (`ReplicationSlotValidateName` in `slot.c`).
pub fn check_slot_name(name: &str) -> Result<()> {
    let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_';
    if (1..=63).contains(&name.len()) && name.bytes().all(allowed) {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "slot name {} has other characters than a-z, 0-9 and _ or not 1 to 63 of them",
        quote_literal(name)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sender_timeout_is_read_as_shown() {
        assert_eq!(sender_timeout("1min"), Some(Duration::from_mins(1)));
        assert_eq!(sender_timeout("2s"), Some(Duration::from_secs(2)));
        assert_eq!(sender_timeout("0"), None);
    }

    #[test]
    fn slot_names_follow_the_servers_rule() {
        assert!(check_slot_name("borealis_01").is_ok());
        for name in ["", "Borealis", "a-b", "a b", &"a".repeat(64)] {
            assert!(check_slot_name(name).is_err(), "{name:?} was accepted");
        }
    }
}
