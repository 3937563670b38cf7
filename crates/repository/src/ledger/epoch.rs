//! Epochs: numbered, created if absent, never removed.

use borealis_base::{Timestamp, WriteId};
use bytes::Bytes;
use prost::Message;

use super::holder::{Holder, Presence};
use super::message::{self, EpochMessage, HolderMessage};
use super::{Context, Opening, Role};
use crate::numbered::highest;
use crate::object::ObjectKind;
use crate::store::Created;
use crate::{Error, Result};

/// Rivals that may take an epoch before this writer gives up.
const RACES_MAX: u32 = 16;

/// What an epoch's object says.
pub(super) struct EpochInfo {
    pub(super) write_id: WriteId,
    pub(super) taken_at: Timestamp,
    pub(super) holder: Holder,
}

impl Context {
    /// The highest epoch; zero if there is none.
    pub(super) async fn highest_epoch(&self, role: Role, known: u64) -> Result<u64> {
        highest(self.store.as_ref(), |n| role.epoch(self.lineage, n), known).await
    }

    pub(super) async fn read_epoch(&self, role: Role, number: u64) -> Result<EpochInfo> {
        let name = role.epoch(self.lineage, number);
        let (epoch, frame, _) = self
            .read_small::<EpochMessage>(&name, ObjectKind::Epoch)
            .await?;
        self.check_place(&name, &epoch.lineage, epoch.number, number)?;
        let malformed = || Error::damaged(&name, "its content is malformed");
        Ok(EpochInfo {
            write_id: WriteId::from_slice(&epoch.write_id).ok_or_else(malformed)?,
            taken_at: Timestamp(epoch.taken_at),
            holder: message::read_holder(HolderMessage::decode(frame).map_err(|_| malformed())?),
        })
    }

    /// Takes the next epoch and returns it. From here on no writer of an older one commits.
    pub(super) async fn take_epoch(&self, role: Role, opening: &Opening) -> Result<u64> {
        let mut highest = self.highest_epoch(role, 0).await?;
        for _ in 0..RACES_MAX {
            if let Some(expected) = opening
                .expected_epoch
                .filter(|expected| *expected != highest)
            {
                return Err(Error::refused(
                    format!(
                        "another writer of lineage {} has opened: its epoch is {highest}, not {expected}",
                        self.lineage
                    ),
                    "Look at who writes, and try again.",
                ));
            }
            let number = highest + 1;
            let write_id = WriteId::random(self.entropy.as_ref());
            let clear = EpochMessage {
                lineage: Bytes::copy_from_slice(&self.lineage.0),
                number,
                write_id: Bytes::copy_from_slice(&write_id.0),
                taken_at: self.clock.now().0,
            }
            .encode_to_vec();
            let holder = message::holder(&opening.holder).encode_to_vec();
            let object = self.seal_small(ObjectKind::Epoch, clear, &holder);
            let name = role.epoch(self.lineage, number);
            if self.create_patiently(&name, &object.bytes).await? == Created::New
                || self.read_epoch(role, number).await?.write_id == write_id
            {
                return Ok(number);
            }
            highest = self.highest_epoch(role, number).await?;
        }
        Err(Error::refused(
            format!(
                "{RACES_MAX} other writers of lineage {} opened meanwhile",
                self.lineage
            ),
            "Two supervisors start writers of one lineage; stop one of them.",
        ))
    }

    /// Creates, trying identical bytes again as long as the store gives no answer.
    pub(super) async fn create_patiently(&self, name: &str, bytes: &Bytes) -> Result<Created> {
        let mut attempt = 1;
        loop {
            match self.store.create(name, bytes.clone()).await {
                Err(error) if error.is_transient() && self.patience.wait(attempt).await => {
                    attempt += 1;
                }
                other => return Ok(other?),
            }
        }
    }

    /// The present holder of the ledger: the highest epoch's, whose sign of life is its last entry or, where it has
    /// none, the taking of its epoch.
    pub(super) async fn presence(&self, by_ledger: Option<Presence>) -> Result<Option<Presence>> {
        let known = by_ledger.as_ref().map_or(0, |presence| presence.epoch);
        let highest = self.highest_epoch(Role::Ledger, known).await?;
        if highest == 0 || highest == known {
            return Ok(by_ledger);
        }
        let epoch = self.read_epoch(Role::Ledger, highest).await?;
        Ok(Some(Presence {
            holder: epoch.holder,
            epoch: highest,
            last_sign: epoch.taken_at,
            closed: false,
        }))
    }
}
