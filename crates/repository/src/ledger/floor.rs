//! The floor of a lineage: the lowest ledger and maintenance entries that may not be removed, and the
//! baseline that says what those below add up to. It rises before anything below it is removed, and never
//! falls.

use bytes::Bytes;
use prost::Message;

use super::fold::Fold;
use super::maintenance::FloorPlanned;
use super::message::{self, FloorMessage};
use super::{Context, Role, Rule, Shape};
use crate::numbered::{Chain, Collected, highest};
use crate::object::{ObjectKind, ObjectView};
use crate::plan::{LineageState, ObjectRef};
use crate::{Error, Result, layout};

/// A floor as it was last read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Floor {
    /// Number of the floor object; zero before the first.
    pub(super) number: u64,
    /// The lowest ledger entry kept.
    pub(super) lowest: u64,
    /// The lowest maintenance entry kept.
    pub(super) maintenance_lowest: u64,
    /// What the entries below add up to; `None` before the first.
    pub(super) baseline: Option<ObjectRef>,
}

impl Floor {
    pub(super) const NONE: Self = Self {
        number: 0,
        lowest: 1,
        maintenance_lowest: 1,
        baseline: None,
    };

    /// The lowest entry kept of a row.
    pub(super) fn lowest_of(&self, role: Role) -> u64 {
        match role {
            Role::Ledger => self.lowest,
            Role::Maintenance => self.maintenance_lowest,
        }
    }

    /// Whether it is not below `other` in either row.
    fn covers(&self, other: &Self) -> bool {
        other.lowest <= self.lowest && other.maintenance_lowest <= self.maintenance_lowest
    }
}

impl Context {
    /// The floor now. `known` is an earlier answer, from which it can only have risen.
    pub(super) async fn floor(&self, known: Floor) -> Result<Floor> {
        let name = |n| layout::floor(self.lineage, n);
        let number = highest(self.store.as_ref(), name, known.number).await?;
        if number == known.number {
            return Ok(known);
        }
        let floor = self.numbered_floor(number).await?;
        if floor.covers(&known) {
            return Ok(floor);
        }
        Err(Error::damaged(
            name(number),
            format!("it is below floor {}", known.number),
        ))
    }

    /// Floor `number`, which exists.
    pub(super) async fn numbered_floor(&self, number: u64) -> Result<Floor> {
        if number == 0 {
            return Ok(Floor::NONE);
        }
        let name = layout::floor(self.lineage, number);
        let (floor, _, _) = self
            .read_small::<FloorMessage>(&name, ObjectKind::Floor)
            .await?;
        self.check_place(&name, &floor.lineage, floor.number, number)?;
        let baseline = floor.baseline.as_ref().and_then(message::read_ref);
        if !is_boundary(self.shape, floor.lowest)
            || floor.maintenance_lowest == 0
            || baseline.is_none()
        {
            return Err(Error::damaged(
                name,
                format!(
                    "it names ledger entry {} and maintenance entry {}",
                    floor.lowest, floor.maintenance_lowest
                ),
            ));
        }
        Ok(Floor {
            number,
            lowest: floor.lowest,
            maintenance_lowest: floor.maintenance_lowest,
            baseline,
        })
    }

    /// What the entries below `floor` add up to.
    pub(super) async fn fold_at(&self, floor: &Floor) -> Result<Fold> {
        let Some(baseline) = &floor.baseline else {
            return Ok(Fold::new(self.lineage, self.shape));
        };
        let fold = self.read_baseline(baseline).await?;
        let found = (fold.ledger.chain.head + 1, fold.maintenance.chain.head + 1);
        if found != (floor.lowest, floor.maintenance_lowest) {
            return Err(Error::damaged(
                layout::baseline(baseline.lineage, baseline.object),
                "it is that of another floor",
            ));
        }
        Ok(fold)
    }

    /// Folds the entries below `lowest` and `maintenance_lowest`, from `floor` on. All of them exist.
    pub(super) async fn fold_below(
        &self,
        floor: &Floor,
        lowest: u64,
        maintenance_lowest: u64,
    ) -> Result<Fold> {
        let mut fold = self.fold_at(floor).await?;
        while fold.ledger.chain.head + 1 < lowest {
            let mut chain = fold.ledger.chain.clone();
            let got = self.collect_ledger_block(&mut chain).await?;
            take(&mut fold, Role::Ledger, got, lowest)?;
        }
        if fold.maintenance.chain.head + 1 < maintenance_lowest {
            let mut chain = fold.maintenance.chain.clone();
            let track = self.track(Role::Maintenance);
            let got = track.collect(&mut chain, maintenance_lowest - 1).await?;
            take(&mut fold, Role::Maintenance, got, maintenance_lowest)?;
        }
        Ok(fold)
    }

    /// Stores the baseline of a floor at `lowest` and `maintenance_lowest`, reads it back, and says how
    /// the floor is to be. `None` where the floor has risen meanwhile.
    pub(super) async fn plan_floor(
        &self,
        lowest: u64,
        maintenance_lowest: u64,
    ) -> Result<Option<FloorPlanned>> {
        if !is_boundary(self.shape, lowest) {
            return Err(Error::Usage {
                what: format!("entry {lowest} does not follow a checkpoint"),
            });
        }
        let floor = self.floor(Floor::NONE).await?;
        let planned = Floor {
            number: floor.number + 1,
            lowest,
            maintenance_lowest,
            baseline: None,
        };
        if !planned.covers(&floor) || floor.covers(&planned) {
            return Ok(None);
        }
        for (role, lowest) in [
            (Role::Ledger, lowest),
            (Role::Maintenance, maintenance_lowest),
        ] {
            // Readers begin there, and an entry beyond the head would hide what is yet to come.
            let name = role.entry(self.lineage, lowest);
            if lowest > 1 && self.store.stat(&name).await?.is_none() {
                return Err(Error::NotFound { what: name });
            }
        }
        let fold = self.fold_below(&floor, lowest, maintenance_lowest).await;
        // What was read below a floor that has risen meanwhile means nothing.
        if self.floor(floor).await? != floor {
            return Ok(None);
        }
        let mut fold = fold?;
        if !self.keeps(Rule::Baseline) {
            fold.state = LineageState::empty(self.lineage);
        }
        let sealed = self.seal_baseline(&fold);
        let name = layout::baseline(self.lineage, sealed.id);
        self.create_patiently(&name, &sealed.bytes).await?;
        let back = self.store.read(&name).await?;
        if back != sealed.bytes {
            return Err(Error::damaged(
                name,
                "the store gives back other bytes than were written",
            ));
        }
        self.open_baseline(&ObjectView::parse(&name, back)?)?;
        Ok(Some(FloorPlanned {
            number: planned.number,
            lowest,
            maintenance_lowest,
            baseline: ObjectRef {
                lineage: self.lineage,
                object: sealed.id,
                len: sealed.bytes.len() as u64,
                head_digest: sealed.head_digest,
            },
        }))
    }

    /// Creates a planned floor, unless one of its number exists.
    pub(super) async fn create_floor(&self, planned: &FloorPlanned) -> Result<()> {
        let clear = FloorMessage {
            lineage: Bytes::copy_from_slice(&self.lineage.0),
            number: planned.number,
            lowest: planned.lowest,
            maintenance_lowest: planned.maintenance_lowest,
            baseline: Some(message::object_ref(&planned.baseline)),
        };
        let object = self.seal_small(ObjectKind::Floor, clear.encode_to_vec(), &[]);
        let name = layout::floor(self.lineage, planned.number);
        self.create_patiently(&name, &object.bytes).await?;
        Ok(())
    }

    /// Raises the ledger's floor to `lowest` without a maintainer; returns the floor.
    #[cfg(test)]
    pub(super) async fn raise_floor(&self, lowest: u64) -> Result<u64> {
        let floor = self.floor(Floor::NONE).await?;
        if let Some(planned) = self.plan_floor(lowest, floor.maintenance_lowest).await? {
            self.create_floor(&planned).await?;
        }
        Ok(self.floor(floor).await?.lowest)
    }
}

/// Folds what was collected of a row, below `lowest`.
fn take(fold: &mut Fold, role: Role, got: Collected, lowest: u64) -> Result<()> {
    if let Some(error) = got.misfit {
        return Err(error);
    }
    let before: Chain = fold.half(role).chain.clone();
    for item in got.items {
        if item.head.number < lowest {
            fold.apply(role, item)?;
        }
    }
    if fold.half(role).chain == before {
        return Err(Error::Missing {
            object: role.entry(fold.state.lineage, before.head + 1),
            needed_by: "the floor that is planned".to_owned(),
        });
    }
    Ok(())
}

const fn is_boundary(shape: Shape, lowest: u64) -> bool {
    lowest >= 1 && (lowest - 1).is_multiple_of(shape.checkpoint)
}
