//! Frames of the PostgreSQL protocol, and the few messages that a replication session needs.
//! Layouts: chapter "Message Formats" of PostgreSQL's manual.

use borealis_base::{Position, Timestamp};
use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::error::{Error, Result};

/// The longest message accepted. Log messages have at most 128 KiB of log (`MAX_SEND_SIZE` in
/// `walsender.c`), history files a few hundred bytes for each timeline.
pub(super) const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// How much is asked of the socket at once.
const READ_BYTES: usize = 256 << 10;

/// Microseconds from 1970-01-01 to 2000-01-01, where the server's clock begins.
const SERVER_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// A frame: its tag and its content without the length.
#[derive(Debug)]
pub(super) struct Frame {
    pub tag: u8,
    pub body: Bytes,
}

/// Takes a whole frame off the front of `buffer`, `None` where there is none yet.
pub(super) fn take_frame(
    buffer: &mut BytesMut,
) -> std::result::Result<Option<Frame>, &'static str> {
    let Some((&tag, rest)) = buffer.split_first() else {
        return Ok(None);
    };
    let Some(len) = rest.first_chunk::<4>() else {
        return Ok(None);
    };
    let len = u32::from_be_bytes(*len) as usize;
    if len < 4 {
        return Err("a message is shorter than its own length");
    }
    if len > MESSAGE_BYTES_MAX {
        return Err("a message is longer than any that is expected");
    }
    if buffer.len() < 1 + len {
        // What is missing of a frame, or a good read's worth: reserving less would copy often.
        buffer.reserve((1 + len - buffer.len()).max(READ_BYTES));
        return Ok(None);
    }
    let mut frame = buffer.split_to(1 + len).freeze();
    frame.advance(5);
    Ok(Some(Frame { tag, body: frame }))
}

/// Reads the next frame. May be dropped at any await and called again: bytes read so far stay in
/// `buffer`.
pub(super) async fn read_frame(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
    to: &str,
) -> Result<Frame> {
    loop {
        if let Some(frame) = frame_of(buffer, to)? {
            return Ok(frame);
        }
        fill(stream, buffer, to).await?;
    }
}

/// The next frame, if `buffer` holds the whole of it.
pub(super) fn frame_of(buffer: &mut BytesMut, to: &str) -> Result<Option<Frame>> {
    take_frame(buffer).map_err(|detail| protocol(to, detail))
}

/// Whether `buffer` begins with a whole frame of this tag.
pub(super) fn holds_frame(buffer: &BytesMut, tag: u8) -> bool {
    let len = (buffer.get(1..)).and_then(|rest| rest.first_chunk::<4>());
    len.is_some_and(|len| {
        buffer.first() == Some(&tag) && buffer.len() > u32::from_be_bytes(*len) as usize
    })
}

/// Reads once what is there, waiting for it; returns how many bytes.
pub(super) async fn fill(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
    to: &str,
) -> Result<usize> {
    if buffer.capacity() - buffer.len() < 1024 {
        buffer.reserve(READ_BYTES);
    }
    match stream.read_buf(buffer).await {
        Ok(0) => Err(Error::Lost {
            to: to.to_owned(),
            detail: "closed by the server".to_owned(),
        }),
        Ok(read) => Ok(read),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Err(Error::Login {
            to: to.to_owned(),
            detail: error.to_string(),
        }),
        Err(error) => Err(Error::Lost {
            to: to.to_owned(),
            detail: error.to_string(),
        }),
    }
}

pub(super) fn protocol(to: &str, detail: impl Into<String>) -> Error {
    Error::Protocol {
        to: to.to_owned(),
        detail: detail.into(),
    }
}

/// Reads numbers and strings off a message; `None` past its end.
pub(super) struct Fields(pub Bytes);

impl Fields {
    pub fn u8(&mut self) -> Option<u8> {
        self.0.try_get_u8().ok()
    }

    pub fn i16(&mut self) -> Option<i16> {
        self.0.try_get_i16().ok()
    }

    pub fn i32(&mut self) -> Option<i32> {
        self.0.try_get_i32().ok()
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.0.try_get_u64().ok()
    }

    pub fn take(&mut self, len: usize) -> Option<Bytes> {
        (len <= self.0.len()).then(|| self.0.split_to(len))
    }

    /// A string that ends with a zero byte. Servers may send other encodings than UTF-8 before a
    /// session's encoding is set, so what cannot be read is replaced.
    pub fn text(&mut self) -> Option<String> {
        let end = self.0.iter().position(|byte| *byte == 0)?;
        let text = String::from_utf8_lossy(&self.0.split_to(end)).into_owned();
        self.0.advance(1);
        Some(text)
    }
}

/// The server's error in an `ErrorResponse`.
pub(super) fn server_error(body: Bytes) -> Error {
    let mut fields = Fields(body);
    let (mut severity, mut sqlstate, mut message) = (String::new(), String::new(), String::new());
    let (mut local, mut detail, mut hint) = (None, None, None);
    while let Some(code) = fields.u8().filter(|code| *code != 0) {
        let Some(text) = fields.text() else { break };
        match code {
            b'S' => local = Some(text),
            b'V' => severity = text,
            b'C' => sqlstate = text,
            b'M' => message = text,
            b'D' => detail = Some(text),
            b'H' => hint = Some(text),
            _ => {}
        }
    }
    if severity.is_empty() {
        severity = local.unwrap_or_default();
    }
    Error::Server {
        severity,
        sqlstate,
        message,
        detail,
        hint,
    }
}

/// The names of a `RowDescription`'s columns.
pub(super) fn columns(body: Bytes) -> Option<Vec<String>> {
    let mut fields = Fields(body);
    let count = u16::try_from(fields.i16()?).ok()?;
    (0..count)
        .map(|_| {
            let name = fields.text()?;
            // Table, column number, type, length, modifier, format: text is asked for everywhere.
            fields.take(18)?;
            Some(name)
        })
        .collect()
}

/// The values of a `DataRow`.
pub(super) fn values(body: Bytes) -> Option<Vec<Option<Bytes>>> {
    let mut fields = Fields(body);
    let count = u16::try_from(fields.i16()?).ok()?;
    (0..count)
        .map(|_| match fields.i32()? {
            -1 => Some(None),
            len => Some(Some(fields.take(usize::try_from(len).ok()?)?)),
        })
        .collect()
}

/// What the server sends while it streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Log, in order, without gaps.
    Log {
        /// The position of the first byte.
        start: Position,
        /// How far the server's flushed log reaches.
        end: Position,
        /// The server's clock when it sent this. Not when the log was written, and no witness for a
        /// time map: a commit takes its time earlier than its place in the log.
        clock: Timestamp,
        /// The log itself.
        bytes: Bytes,
    },
    /// A sign of life.
    KeepAlive {
        /// How far the server has sent its log.
        end: Position,
        /// The server's clock.
        clock: Timestamp,
        /// Whether it wants an answer soon; the link has already seen to that.
        reply_requested: bool,
    },
}

/// Reads what a `CopyData` frame of a physical replication stream holds.
pub(super) fn message(body: Bytes) -> Option<Message> {
    let mut fields = Fields(body);
    match fields.u8()? {
        b'w' => Some(Message::Log {
            start: Position(fields.u64()?),
            end: Position(fields.u64()?),
            clock: from_server_clock(fields.u64()?.cast_signed()),
            bytes: fields.0,
        }),
        b'k' => Some(Message::KeepAlive {
            end: Position(fields.u64()?),
            clock: from_server_clock(fields.u64()?.cast_signed()),
            reply_requested: fields.u8()? != 0,
        }),
        _ => None,
    }
}

fn from_server_clock(micros: i64) -> Timestamp {
    Timestamp(micros).plus_micros(SERVER_EPOCH_MICROS)
}

/// The bytes of a standby status update, framed.
pub(super) fn status_update(
    write: Position,
    flush: Position,
    apply: Position,
    clock: Timestamp,
    reply: bool,
) -> [u8; 39] {
    let mut out = [0; 39];
    let clock = clock.plus_micros(-SERVER_EPOCH_MICROS).0;
    let parts: [&[u8]; 7] = [
        &[b'd', 0, 0, 0, 38, b'r'],
        &write.0.to_be_bytes(),
        &flush.0.to_be_bytes(),
        &apply.0.to_be_bytes(),
        &clock.to_be_bytes(),
        &[u8::from(reply)],
        &[],
    ];
    for (place, byte) in out.iter_mut().zip(parts.concat()) {
        *place = byte;
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_survive_any_split() {
        let bytes = [b'C', 0, 0, 0, 6, b'a', 0, b'Z', 0, 0, 0, 5, b'I'];
        for split in 0..bytes.len() {
            let mut buffer = BytesMut::new();
            let mut tags = Vec::new();
            for part in [&bytes[..split], &bytes[split..]] {
                buffer.extend_from_slice(part);
                while let Some(frame) = take_frame(&mut buffer).expect("well formed") {
                    tags.push((frame.tag, frame.body.len()));
                }
            }
            assert_eq!(tags, [(b'C', 2), (b'Z', 1)]);
        }
    }

    #[test]
    fn whole_frames_at_hand_are_known() {
        let bytes = [b'd', 0, 0, 0, 6, b'a', 0, b'Z', 0, 0, 0, 5, b'I'];
        for len in 0..=bytes.len() {
            let buffer = BytesMut::from(&bytes[..len]);
            assert_eq!(holds_frame(&buffer, b'd'), len >= 7, "{len} bytes");
            assert!(!holds_frame(&buffer, b'Z'), "{len} bytes");
        }
    }

    #[test]
    fn impossible_lengths_are_refused() {
        for len in [0_u32, 3, u32::MAX] {
            let mut buffer = BytesMut::from(&b"d"[..]);
            buffer.extend_from_slice(&len.to_be_bytes());
            assert!(
                take_frame(&mut buffer).is_err(),
                "length {len} was accepted"
            );
        }
    }

    #[test]
    fn server_clock_begins_in_2000() {
        let mut body = vec![b'k'];
        body.extend(0x0000_0001_0000_0028_u64.to_be_bytes());
        body.extend(1_000_000_u64.to_be_bytes());
        body.push(1);
        assert_eq!(
            message(body.into()),
            Some(Message::KeepAlive {
                end: "1/28".parse().expect("a position"),
                clock: "2000-01-01T00:00:01Z".parse().expect("a time"),
                reply_requested: true,
            })
        );
    }

    #[test]
    fn status_update_has_the_documented_layout() {
        let clock = "2000-01-01T00:00:00.000001Z".parse().expect("a time");
        let bytes = status_update(Position(1), Position(2), Position(3), clock, true);
        assert_eq!(bytes[..6], [b'd', 0, 0, 0, 38, b'r']);
        assert_eq!(bytes[13], 1);
        assert_eq!(bytes[21], 2);
        assert_eq!(bytes[29], 3);
        assert_eq!(bytes[30..], [0, 0, 0, 0, 0, 0, 0, 1, 1]);
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes: Vec<u8>) {
            let bytes = Bytes::from(bytes);
            let _ = take_frame(&mut BytesMut::from(&bytes[..]));
            let _ = message(bytes.clone());
            let _ = columns(bytes.clone());
            let _ = values(bytes.clone());
            let _ = server_error(bytes);
        }
    }
}
