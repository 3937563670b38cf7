//! Objects out of the store.

use std::ops::Range;

use bytes::Bytes;

use super::{ObjectHead, ObjectKind, ObjectView};
use crate::Result;
use crate::store::Store;

/// What the first ranged get of an object asks for; nearly every head fits.
pub const HEAD_PROBE_BYTES: u64 = 64 << 10;

/// Reads a whole object of `kind`, its checksum verified.
pub async fn fetch(store: &dyn Store, name: &str, kind: ObjectKind) -> Result<ObjectView> {
    let view = ObjectView::parse(name, store.read(name).await?)?;
    view.head().expect_kind(kind)?;
    Ok(view)
}

/// Reads the head of an object of `kind` with one ranged get, or two for a long one. Returns the
/// bytes from 0 that came with it, too; an object that is whole in them is checked as a whole.
pub async fn fetch_head(
    store: &dyn Store,
    name: &str,
    kind: ObjectKind,
) -> Result<(ObjectHead, Bytes)> {
    let mut asked = HEAD_PROBE_BYTES;
    let mut bytes = store.read_range(name, 0..asked).await?;
    let needed = ObjectHead::bytes_needed(name, &bytes)?;
    if needed > asked && bytes.len() as u64 == asked {
        asked = needed;
        bytes = store.read_range(name, 0..asked).await?;
    }
    let head = if (bytes.len() as u64) < asked {
        ObjectView::parse(name, bytes.clone())?.head().clone()
    } else {
        ObjectHead::parse(name, &bytes)?
    };
    head.expect_kind(kind)?;
    Ok((head, bytes))
}

/// Reads the stored bytes of neighbouring frames with one ranged get. `known` are bytes from 0 that
/// are already at hand; where they suffice nothing is asked.
pub async fn fetch_frames(
    store: &dyn Store,
    head: &ObjectHead,
    known: &Bytes,
    numbers: Range<u32>,
) -> Result<Bytes> {
    let range = head.frame_range(numbers)?;
    if range.end <= known.len() as u64 {
        return Ok(known.slice(range.start as usize..range.end as usize));
    }
    let expected = range.end - range.start;
    let bytes = store.read_range(head.name(), range).await?;
    if bytes.len() as u64 != expected {
        return Err(head.damaged(format!(
            "truncated: a range has {} of {expected} bytes",
            bytes.len()
        )));
    }
    Ok(bytes)
}
