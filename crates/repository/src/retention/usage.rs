//! Which stored objects base backups refer to, so that it can be told what goes with which of them.
//!
//! Manifests are added one at a time and not kept; what is kept is an object's length and the first and
//! the last base backup that refers to it, about a hundred bytes for each pack. A page that a base backup no
//! longer has never comes back by inheritance, so the base backups between the two refer to it as well;
//! where one is left out all the same, its objects are taken to be in use, which promises too little rather
//! than too much.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use borealis_base::{LineageId, ObjectId};
use serde::Serialize;

use super::plan::{Object, RetentionPlan};
use super::terms::Promise;
use crate::pages::manifest::Manifest;
use crate::plan::ObjectRef;

#[derive(Debug, Clone, Copy)]
struct Life {
    bytes: u64,
    first: usize,
    last: usize,
}

/// The objects of base backups with how long each is referred to.
#[derive(Debug, Default)]
pub struct PackUse {
    /// Numbers of base backups, in the order in which they were added.
    numbers: BTreeMap<(LineageId, u64), usize>,
    /// For each lineage whose base backups refer to it, how long an object is in use.
    lives: HashMap<(ObjectId, LineageId), Life>,
}

impl PackUse {
    /// Adds the base backup of `entry` of `lineage`. Those of one lineage are added in the order of their entries.
    pub fn add(&mut self, lineage: LineageId, entry: u64, manifest: &Manifest) {
        let packs = manifest.packs().values().map(|pack| pack.object);
        let own = std::iter::once(manifest.object());
        let mut last = None;
        // Parts of one manifest mostly lie next to each other.
        let parts = (manifest.parts().iter())
            .map(|part| part.handle.object)
            .filter(|object| last.replace(object.object) != Some(object.object));
        self.add_objects(lineage, entry, packs.chain(own).chain(parts));
    }

    /// As [`Self::add`], of a base backup that refers to `objects`.
    pub fn add_objects(
        &mut self,
        lineage: LineageId,
        entry: u64,
        objects: impl IntoIterator<Item = ObjectRef>,
    ) {
        let next = self.numbers.len();
        let number = *self.numbers.entry((lineage, entry)).or_insert(next);
        for object in objects {
            let life = self.lives.entry((object.object, lineage)).or_insert(Life {
                bytes: object.len,
                first: number,
                last: number,
            });
            life.first = life.first.min(number);
            life.last = life.last.max(number);
        }
    }

    /// Stored bytes that the base backups for which `keeps` answers true refer to, each object counted once.
    pub fn bytes(&self, keeps: impl Fn(LineageId, u64) -> bool) -> u64 {
        let kept: BTreeMap<LineageId, BTreeSet<usize>> = self.numbers.iter().fold(
            BTreeMap::new(),
            |mut kept: BTreeMap<LineageId, BTreeSet<usize>>, ((lineage, entry), number)| {
                if keeps(*lineage, *entry) {
                    kept.entry(*lineage).or_default().insert(*number);
                }
                kept
            },
        );
        let used = |lineage: &LineageId, life: &Life| {
            kept.get(lineage)
                .is_some_and(|kept| kept.range(life.first..=life.last).next().is_some())
        };
        let mut counted: HashMap<ObjectId, u64> = HashMap::new();
        for ((object, lineage), life) in &self.lives {
            if used(lineage, life) {
                counted.insert(*object, life.bytes);
            }
        }
        counted.values().sum()
    }

    /// Objects known.
    pub fn objects(&self) -> usize {
        self.lives.len()
    }
}

/// What a snapshot takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct SnapshotBytes {
    /// Bytes that nothing but this snapshot holds: what its deletion gives back.
    pub unique_bytes: u64,
    /// Bytes that it needs and something else holds as well.
    pub shared_bytes: u64,
}

/// What snapshot `name` takes by `plan`, `others` being the base backups of other lineages that are kept.
pub fn snapshot_bytes(
    plan: &RetentionPlan,
    packs: &PackUse,
    name: &str,
    others: &BTreeSet<(LineageId, u64)>,
) -> SnapshotBytes {
    let this = |promise: &Promise| matches!(promise, Promise::Snapshot { name: of } if of == name);
    let (mut all, mut alone) = (BTreeSet::new(), BTreeSet::new());
    let (mut log, mut log_alone) = (0_u64, 0_u64);
    for kept in plan
        .kept
        .iter()
        .filter(|kept| kept.promises.iter().any(this))
    {
        let only = kept.promises.iter().all(this);
        match &kept.object {
            Object::BaseBackup { entry, .. } => {
                all.insert(*entry);
                if only {
                    alone.insert(*entry);
                }
            }
            Object::Log { .. } => {
                log += kept.bytes;
                log_alone += if only { kept.bytes } else { 0 };
            }
            _ => {}
        }
    }
    let kept = |lineage: LineageId, entry: u64| {
        (lineage == plan.lineage && plan.keeps_base_backup(entry))
            || others.contains(&(lineage, entry))
    };
    let needs = packs.bytes(|lineage, entry| lineage == plan.lineage && all.contains(&entry));
    let unique = if alone.is_empty() {
        0
    } else {
        let without = |lineage: LineageId, entry: u64| {
            kept(lineage, entry) && !(lineage == plan.lineage && alone.contains(&entry))
        };
        packs.bytes(kept).saturating_sub(packs.bytes(without))
    };
    SnapshotBytes {
        unique_bytes: unique + log_alone,
        shared_bytes: needs.saturating_sub(unique) + log.saturating_sub(log_alone),
    }
}
