//! The engine's part of a log piece: the log index, and what the indexer must know to go on after the
//! piece. Laid out as the length of the index (u32, little endian), the index, the carry state;
//! `docs/formats/log-index.md`.

use borealis_base::ErrorKind;
use borealis_pg_format::index::{CarryState, Cut, LogIndex};

use crate::error::{Error, Result};

/// Lays out what `cut` says.
pub fn encode(cut: &Cut) -> Result<Vec<u8>> {
    let index = cut.index.encode();
    let len = u32::try_from(index.len())
        .map_err(|_| Error::new(ErrorKind::Bug, "a log index has more than 4 GiB"))?;
    let mut bytes = len.to_le_bytes().to_vec();
    bytes.extend_from_slice(&index);
    bytes.extend_from_slice(&cut.carry.encode());
    Ok(bytes)
}

fn split<'a>(piece: &str, bytes: &'a [u8]) -> Result<(&'a [u8], &'a [u8])> {
    bytes
        .split_first_chunk::<4>()
        .and_then(|(len, rest)| rest.split_at_checked(u32::from_le_bytes(*len) as usize))
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Damaged,
                format!("the log index of {piece} is cut short"),
            )
        })
}

/// The log index of `piece`.
pub fn index(piece: &str, bytes: &[u8]) -> Result<LogIndex> {
    Ok(LogIndex::decode(split(piece, bytes)?.0)?)
}

/// The carry state of `piece`.
pub fn carry(piece: &str, bytes: &[u8]) -> Result<CarryState> {
    Ok(CarryState::decode(split(piece, bytes)?.1)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_base::Position;
    use borealis_pg_format::Version;
    use borealis_pg_format::index::LogIndexer;
    use borealis_pg_format::wal::{LogFormat, Start};

    #[test]
    fn what_was_laid_out_is_read_back_and_a_short_one_is_refused() {
        let mut indexer = LogIndexer::new(
            LogFormat::new(Version::V15),
            Position(16 << 20),
            Start::Record,
        );
        let cut = indexer.cut();
        let bytes = encode(&cut).unwrap();
        assert_eq!(index("p", &bytes).unwrap().start, cut.index.start);
        assert_eq!(carry("p", &bytes).unwrap(), cut.carry);
        assert_eq!(
            index("p", &bytes[..2]).unwrap_err().kind(),
            ErrorKind::Damaged
        );
        assert_eq!(
            index("p", &[255, 255, 255, 255, 0]).unwrap_err().kind(),
            ErrorKind::Damaged
        );
    }
}
