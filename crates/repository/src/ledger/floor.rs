//! The floor of a ledger: the lowest entry that may not be removed. It rises before anything below
//! it is removed, and never falls.

use bytes::Bytes;
use prost::Message;

use super::message::{CheckpointMessage, FloorMessage};
use super::{Context, Shape};
use crate::catalog::Lineage;
use crate::numbered::{Chain, highest};
use crate::object::{HeadDigest, ObjectKind};
use crate::store::Created;
use crate::{Error, Result, layout};

/// Rivals that may raise the floor before this one gives up.
const RACES_MAX: u32 = 16;

/// A floor as it was last read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Floor {
    /// Number of the floor object; zero before the first.
    pub(super) number: u64,
    /// The lowest entry kept.
    pub(super) lowest: u64,
}

impl Floor {
    pub(super) const NONE: Self = Self {
        number: 0,
        lowest: 1,
    };
}

impl Context {
    /// The floor now. `known` is an earlier answer, from which it can only have risen.
    pub(super) async fn floor(&self, known: Floor) -> Result<Floor> {
        let name = |n| layout::floor(self.lineage, n);
        let number = highest(self.store.as_ref(), name, known.number).await?;
        if number == known.number {
            return Ok(known);
        }
        let name = name(number);
        let (floor, _, _) = self
            .read_small::<FloorMessage>(&name, ObjectKind::Floor)
            .await?;
        self.check_place(&name, &floor.lineage, floor.number, number)?;
        if floor.lowest < known.lowest || !is_boundary(self.shape, floor.lowest) {
            return Err(Error::damaged(
                name,
                format!("it names entry {}", floor.lowest),
            ));
        }
        Ok(Floor {
            number,
            lowest: floor.lowest,
        })
    }

    /// Where a reading that begins at `floor` stands: after the last entry of the checkpoint before it.
    pub(super) async fn chain_at(&self, floor: Floor) -> Result<Chain> {
        let mut chain = Chain::new(self.lineage.0);
        if floor.lowest > 1 {
            let number = (floor.lowest - 1) / self.shape.checkpoint;
            let (checkpoint, digest) = self
                .read_checkpoint_clear(number)
                .await
                .map_err(|error| error.named_by(layout::floor(self.lineage, floor.number)))?;
            chain.head = floor.lowest - 1;
            chain.digest = digest;
            chain.epoch = checkpoint.last_epoch;
        }
        Ok(chain)
    }

    async fn read_checkpoint_clear(&self, number: u64) -> Result<(CheckpointMessage, HeadDigest)> {
        let name = layout::checkpoint(self.lineage, number);
        let (checkpoint, _, _) = self
            .read_small::<CheckpointMessage>(&name, ObjectKind::Checkpoint)
            .await?;
        self.check_place(&name, &checkpoint.lineage, checkpoint.number, number)?;
        let digest = checkpoint.last_digest.as_ref().try_into();
        let digest = digest.map_err(|_| Error::damaged(&name, "its digest is malformed"))?;
        Ok((checkpoint, digest))
    }

    /// Raises the floor to `lowest`, or leaves it where it is higher.
    pub(super) async fn raise_floor(&self, lowest: u64) -> Result<u64> {
        if !is_boundary(self.shape, lowest) {
            return Err(Error::Usage {
                what: format!("entry {lowest} does not follow a checkpoint"),
            });
        }
        let mut floor = self.floor(Floor::NONE).await?;
        if lowest > 1 {
            // Readers begin there, and an entry beyond the head would hide what is yet to come.
            let name = layout::entry(self.lineage, lowest);
            if self.store.stat(&name).await?.is_none() && floor.lowest < lowest {
                return Err(Error::NotFound { what: name });
            }
        }
        for _ in 0..RACES_MAX {
            if floor.lowest >= lowest {
                return Ok(floor.lowest);
            }
            let number = floor.number + 1;
            let clear = FloorMessage {
                lineage: Bytes::copy_from_slice(&self.lineage.0),
                number,
                lowest,
            }
            .encode_to_vec();
            let object = self.seal_small(ObjectKind::Floor, clear, &[]);
            let name = layout::floor(self.lineage, number);
            if self.create_patiently(&name, &object.bytes).await? == Created::New {
                return Ok(lowest);
            }
            floor = self.floor(floor).await?;
        }
        Err(Error::refused(
            format!(
                "raising the floor of lineage {} lost {RACES_MAX} races",
                self.lineage
            ),
            "Another process raises it at the same moment; try again.",
        ))
    }
}

const fn is_boundary(shape: Shape, lowest: u64) -> bool {
    lowest >= 1 && (lowest - 1).is_multiple_of(shape.checkpoint)
}

/// Raises the floor of a lineage's ledger, so that entries below `lowest` may be removed afterwards;
/// returns the floor. `lowest` must exist and follow a checkpoint.
pub async fn raise_floor(lineage: &Lineage, lowest: u64) -> Result<u64> {
    lineage.context().raise_floor(lowest).await
}
