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
use crate::layout;
use crate::pages::manifest::Manifest;
use crate::plan::ObjectRef;

/// In which role a base backup refers to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    /// It holds pages or blobs.
    Pack,
    /// It holds parts of the page map.
    Manifest,
}

#[derive(Debug, Clone, Copy)]
struct Life {
    bytes: u64,
    /// The lineage under whose name it is stored.
    home: LineageId,
    role: Role,
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
        self.add_all(lineage, entry, Role::Pack, packs);
        self.add_all(lineage, entry, Role::Manifest, own.chain(parts));
    }

    /// Whether a base backup was added.
    pub fn knows(&self, lineage: LineageId, entry: u64) -> bool {
        self.numbers.contains_key(&(lineage, entry))
    }

    /// As [`Self::add`], of a base backup that refers to `packs`.
    pub fn add_objects(
        &mut self,
        lineage: LineageId,
        entry: u64,
        packs: impl IntoIterator<Item = ObjectRef>,
    ) {
        self.add_all(lineage, entry, Role::Pack, packs);
    }

    fn add_all(
        &mut self,
        lineage: LineageId,
        entry: u64,
        role: Role,
        objects: impl IntoIterator<Item = ObjectRef>,
    ) {
        let next = self.numbers.len();
        let number = *self.numbers.entry((lineage, entry)).or_insert(next);
        for object in objects {
            let life = self.lives.entry((object.object, lineage)).or_insert(Life {
                bytes: object.len,
                home: object.lineage,
                role,
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

    /// What goes with the base backups `gone` of `lineage`, where those of `left` stay, of this lineage and of those born
    /// of it: objects of the lineage that no base backup that stays refers to.
    pub fn released(
        &self,
        lineage: LineageId,
        gone: &BTreeSet<u64>,
        left: &BTreeSet<(LineageId, u64)>,
    ) -> Released {
        let numbers = |(of, entry): (LineageId, u64)| Some((of, *self.numbers.get(&(of, entry))?));
        let gone: BTreeSet<usize> = (gone.iter())
            .filter_map(|entry| numbers((lineage, *entry)))
            .map(|(_, number)| number)
            .collect();
        let mut stays: BTreeMap<LineageId, BTreeSet<usize>> = BTreeMap::new();
        for (of, number) in left.iter().copied().filter_map(numbers) {
            stays.entry(of).or_default().insert(number);
        }
        let within = |numbers: &BTreeSet<usize>, life: &Life| {
            numbers.range(life.first..=life.last).next().is_some()
        };
        let used = |of: &LineageId, life: &Life| stays.get(of).is_some_and(|it| within(it, life));
        let mut released = Released::default();
        for ((object, of), life) in &self.lives {
            if *of != lineage || life.home != lineage || !within(&gone, life) || used(of, life) {
                continue;
            }
            let elsewhere = stays.keys().any(|of| {
                let life = self.lives.get(&(*object, *of));
                life.is_some_and(|life| used(of, life))
            });
            match (elsewhere, life.role) {
                (true, _) => released.held_elsewhere += 1,
                (false, Role::Pack) => released.packs.push(layout::pack(lineage, *object)),
                (false, Role::Manifest) => {
                    (released.manifests).push(layout::manifest(lineage, *object));
                }
            }
            released.bytes += if elsewhere { 0 } else { life.bytes };
        }
        released
    }

    /// Whether one of the base backups `left` is known to refer to an object.
    pub fn is_used(&self, object: ObjectId, left: &BTreeSet<(LineageId, u64)>) -> bool {
        left.iter().any(|of| {
            let (number, life) = (self.numbers.get(of), self.lives.get(&(object, of.0)));
            number
                .zip(life)
                .is_some_and(|(number, life)| (life.first..=life.last).contains(number))
        })
    }

    /// Objects known.
    pub fn objects(&self) -> usize {
        self.lives.len()
    }
}

/// See [`PackUse::released`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Released {
    /// Names of packs.
    pub packs: Vec<String>,
    /// Names of manifests. They tell which packs go, so they go after these.
    pub manifests: Vec<String>,
    /// Stored bytes of both.
    pub bytes: u64,
    /// Objects that only base backups of other lineages refer to.
    pub held_elsewhere: u64,
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
