//! Objects out of the store.

use std::ops::Range;

use borealis_keys::DataKeys;
use bytes::Bytes;

use super::{ObjectHead, ObjectKind, ObjectView};
use crate::store::Store;
use crate::{Error, Result};

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

/// As [`fetch`], for an object that `keys` are to open.
pub async fn fetch_with(
    store: &dyn Store,
    keys: &DataKeys,
    name: &str,
    kind: ObjectKind,
) -> Result<ObjectView> {
    let view = fetch(store, name, kind).await?;
    look_for_key(keys, view.head()).await?;
    Ok(view)
}

/// As [`fetch_head`], for an object that `keys` are to open.
pub async fn fetch_head_with(
    store: &dyn Store,
    keys: &DataKeys,
    name: &str,
    kind: ObjectKind,
) -> Result<(ObjectHead, Bytes)> {
    let fetched = fetch_head(store, name, kind).await?;
    look_for_key(keys, &fetched.0).await?;
    Ok(fetched)
}

/// Looks once for a data key that is not at hand: the writer may have gone on to a new one, whose ring it
/// publishes before it seals anything with it. Opening a frame tells where there is none.
pub async fn look_for_key(keys: &DataKeys, head: &ObjectHead) -> Result<()> {
    let Some(id) = head.data_key() else {
        return Ok(());
    };
    if keys.get(id).is_some() {
        return Ok(());
    }
    keys.refresh().await.map_err(|error| {
        let error = error.downcast::<Error>();
        error.map_or_else(
            |other| Error::Bug {
                what: other.to_string(),
            },
            |error| *error,
        )
    })
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
