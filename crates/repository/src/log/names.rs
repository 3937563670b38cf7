//! What the numbers in the log stood for by name, within a ledger entry.
//!
//! The engine's own bytes, cut into frames. Each frame begins with the header of the frames of a log
//! piece ([`super::piece`]), where the position is [`crate::ledger::Names::from`].

use std::sync::Arc;

use borealis_base::LineageId;
use borealis_keys::DataKeys;
use bytes::{Bytes, BytesMut};

use super::piece::{PieceIdentity, content};
use crate::object::{Compression, FrameKind, ObjectKind, PreparedFrame, fetch_with};
use crate::plan::NamesSummary;
use crate::store::Store;
use crate::wire::Malformed;
use crate::{Result, layout};

/// Frame of names; they stand in the order of their bytes.
pub const FRAME_NAMES: FrameKind = 19;
/// Bytes of names in one frame; only the last one may hold fewer.
pub const NAMES_FRAME_BYTES: usize = 4 << 20;
/// Bytes of names in one entry at most; bounds what a reader holds.
pub const NAMES_BYTES_MAX: usize = 256 << 20;

/// Lays out and compresses names, to follow the body of their ledger entry.
///
/// # Errors
/// Where there are too many bytes of them.
pub fn prepare_names(
    identity: &PieceIdentity,
    names: &[u8],
    compression: Compression,
) -> Result<Vec<PreparedFrame>, Malformed> {
    if names.len() > NAMES_BYTES_MAX {
        let len = names.len();
        return Err(Malformed(format!("{len} bytes of names are too many")));
    }
    let mut plain = Vec::new();
    let frame = |chunk| identity.frame(FRAME_NAMES, compression, chunk, &mut plain);
    Ok(names.chunks(NAMES_FRAME_BYTES).map(frame).collect())
}

/// Reads the names of an entry.
///
/// # Errors
/// Damaged where it is another entry than the ledger's chain holds, or not what was sealed; missing.
pub async fn read_names(
    store: &Arc<dyn Store>,
    keys: &Arc<DataKeys>,
    lineage: LineageId,
    names: &NamesSummary,
) -> Result<Bytes> {
    let name = layout::entry(lineage, names.entry);
    let view = fetch_with(&**store, keys, &name, ObjectKind::LedgerEntry)
        .await
        .map_err(|error| error.named_by("the ledger"))?;
    let head = view.head();
    if head.digest() != names.head_digest || head.object_len() != names.stored_bytes {
        return Err(head.damaged("it is another object than the one in the ledger's chain"));
    }
    let identity = PieceIdentity {
        lineage,
        branch: names.branch,
        start: names.from,
    };
    let mut all = BytesMut::new();
    for number in head.frames_of(FRAME_NAMES) {
        let plain = view.frame(keys, number)?;
        all.extend_from_slice(&content(head, &identity, number, &plain)?);
    }
    Ok(all.freeze())
}
