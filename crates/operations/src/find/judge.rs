//! From what the log tells to what happened, in a person's words. Pure.
//!
//! `DROP`, `TRUNCATE` and every rewrite look alike in the log: a file goes away with a commit. They are
//! told apart by what the transaction created, and by what a later reading of the names shows:
//!
//! - the transaction created no file, or the relation is gone afterwards: *dropped*;
//! - the relation has a file that the transaction created and wrote nothing into: *truncated*;
//! - it has one with contents: *rewritten*;
//! - where neither tells: *dropped, truncated or rewritten*.

use std::collections::{BTreeMap, BTreeSet};

use borealis_base::{Position, RecordSpan, Timestamp};
use borealis_pg_format::Relation;
use borealis_pg_format::index::{CreatedRelation, Event, EventKind, RelationRows};
use borealis_pg_server::names::{FIRST_NORMAL_OID, RelationName};

use super::naming::{After, Named, Naming};
use super::report::{Found, FoundObject, Kind};

/// What is left out.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Transactions that deleted and updated fewer rows.
    pub min_rows: u64,
    /// Nothing but those: rewrites, indexes and unlogged relations are shown, too.
    pub all: bool,
}

/// What happened to a relation whose file went away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Dropped,
    Truncated,
    Unclear,
    Rewritten,
}

impl Outcome {
    const fn kind(self) -> Kind {
        match self {
            Self::Dropped => Kind::Dropped,
            Self::Truncated => Kind::Truncated,
            Self::Unclear => Kind::Gone,
            Self::Rewritten => Kind::Rewritten,
        }
    }
}

/// What the transaction created.
struct Created {
    files: Vec<CreatedRelation>,
    complete: bool,
}

impl Created {
    fn filled(&self, file: Relation) -> Option<bool> {
        let made = self.files.iter().find(|made| made.relation == file);
        made.map(|made| made.filled)
    }

    /// Whether all that went away could only be dropped.
    fn is_nothing(&self) -> bool {
        self.complete && self.files.is_empty()
    }

    /// Whether each of so many files that went away can have a successor, and nothing else was made.
    fn replaces(&self, gone: usize) -> bool {
        self.complete && self.files.len() == gone
    }

    fn relations(&self) -> Vec<Relation> {
        self.files.iter().map(|made| made.relation).collect()
    }

    /// What happened to relations that are still there, by how many new files are empty: a new TOAST
    /// table may be empty either way, since few rows are that wide; new indexes and sequences have a
    /// first page at once; so there are more empty files than TOAST tables only where tables are empty.
    fn by_count(&self, tables: usize, toasts: usize) -> Outcome {
        let empty = self.files.iter().filter(|made| !made.filled).count();
        if empty <= toasts {
            Outcome::Rewritten
        } else if empty == tables + toasts {
            Outcome::Truncated
        } else {
            Outcome::Unclear
        }
    }
}

/// A relation of an event with its name.
#[derive(Debug, Clone, Copy)]
struct Member<'a> {
    file: Relation,
    named: Named<'a>,
}

/// An event in its piece of log.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// The event.
    pub event: &'a Event,
    /// Where the piece of log begins whose index tells of it.
    pub piece_start: Position,
}

/// What an event was; several things where one transaction did several.
pub fn judge(seen: Seen<'_>, naming: &mut Naming<'_>, wanted: Wanted) -> Vec<Found> {
    let record = seen.event.record;
    match &seen.event.kind {
        EventKind::RelationsDropped {
            xid,
            time,
            relations,
            count,
            created,
            created_complete,
        } => {
            // What came and went within the transaction is nobody's.
            let gone: BTreeSet<Relation> = relations.iter().copied().collect();
            let made: BTreeSet<Relation> = created.iter().map(|made| made.relation).collect();
            let created = Created {
                files: (created.iter().copied())
                    .filter(|made| !gone.contains(&made.relation))
                    .collect(),
                complete: *created_complete,
            };
            let files: Vec<_> = gone.difference(&made).copied().collect();
            let by_outcome = relations_gone(seen, &files, &created, naming, wanted);
            let unlisted = count.saturating_sub(relations.len() as u64);
            (by_outcome.into_iter())
                .map(|(outcome, objects)| Found {
                    unlisted,
                    ..Found::new(outcome.kind(), *time, *xid, record.start, record, objects)
                })
                .collect()
        }
        EventKind::RowsChanged {
            xid,
            time,
            relations,
        } => rows_changed(seen, relations, naming, wanted)
            .map(|(kind, objects)| Found::new(kind, *time, *xid, record.start, record, objects))
            .into_iter()
            .collect(),
        EventKind::DropCommitted {
            xid,
            time,
            before,
            databases,
            tablespaces,
        } => drops(
            (*xid, *time, *before, record),
            databases,
            tablespaces,
            naming,
        ),
        _ => Vec::new(),
    }
}

fn drops(
    (xid, time, before, record): (u32, Timestamp, Position, RecordSpan),
    databases: &[u32],
    tablespaces: &[u32],
    naming: &Naming<'_>,
) -> Vec<Found> {
    let mut found = Vec::new();
    let dropped: Vec<_> = (databases.iter())
        // One that is still there was moved to another tablespace.
        .filter(|oid| !naming.database_is_there_after(**oid, record.end))
        .map(|oid| FoundObject::database(*oid, naming.database(*oid, before)))
        .collect();
    if !dropped.is_empty() {
        let kind = Kind::DatabaseDropped;
        found.push(Found::new(kind, time, xid, before, record, dropped));
    }
    let dropped: Vec<_> = (tablespaces.iter())
        .map(|oid| FoundObject::tablespace(*oid, naming.tablespace(*oid, before)))
        .collect();
    if !dropped.is_empty() {
        let kind = Kind::TablespaceDropped;
        found.push(Found::new(kind, time, xid, before, record, dropped));
    }
    found
}

fn relations_gone<'a>(
    seen: Seen<'_>,
    files: &[Relation],
    created: &Created,
    naming: &mut Naming<'a>,
    wanted: Wanted,
) -> BTreeMap<Outcome, Vec<FoundObject>> {
    let record = seen.event.record;
    let gone = Gone::of(files, created, record, naming);
    let mut named: BTreeMap<Outcome, BTreeMap<Key, Member<'a>>> = BTreeMap::new();
    let tables = gone
        .members
        .iter()
        .map(|(key, member)| (key, member, false));
    let heirs = gone.heirs.iter().map(|(key, member)| (key, member, true));
    for (key, member, is_heir) in tables.chain(heirs) {
        let relation = member.named.relation;
        // What belongs to a relation of this event goes with it.
        let root = root_of(member.named, naming);
        if root.key() != *key && gone.members.contains_key(&root.key()) {
            continue;
        }
        let is_content = matches!(relation.kind.as_str(), "r" | "m" | "S");
        if !wanted.all && (relation.unlogged || !is_content) {
            continue;
        }
        let outcome = gone.outcome_of(*member, is_heir, created, record, naming);
        named.entry(outcome).or_default().insert(*key, *member);
    }
    gone.adopt(created, record, naming);
    let mut found: BTreeMap<Outcome, Vec<FoundObject>> = BTreeMap::new();
    for (outcome, members) in named {
        let objects = found.entry(outcome).or_default();
        objects.extend(fold_partitions(&members, seen, naming));
    }
    let outcome = if created.is_nothing() {
        Outcome::Dropped
    } else {
        Outcome::Unclear
    };
    for file in gone.nameless {
        let database = naming.database(file.database, record.start);
        let object = FoundObject::nameless(file, database);
        found.entry(outcome).or_default().push(object);
    }
    for objects in found.values_mut() {
        objects.sort_by(|a, b| (a.name.is_none(), &a.name, a).cmp(&(b.name.is_none(), &b.name, b)));
    }
    found
}

/// Database and relation.
type Key = (u32, u32);

impl Named<'_> {
    const fn key(&self) -> Key {
        (self.database.oid, self.relation.oid)
    }
}

/// What went away with an event.
#[derive(Default)]
struct Gone<'a> {
    /// Relations by name.
    members: BTreeMap<Key, Member<'a>>,
    /// Relations of which files went away that were made for them since their names were read. Which
    /// of their files is not known.
    heirs: BTreeMap<Key, Member<'a>>,
    nameless: Vec<Relation>,
    /// How many files there are in all, but for those of catalogs.
    count: usize,
}

impl<'a> Gone<'a> {
    fn of(
        files: &[Relation],
        created: &Created,
        record: RecordSpan,
        naming: &mut Naming<'a>,
    ) -> Self {
        let mut gone = Self::default();
        for file in files.iter().copied() {
            if file.number < FIRST_NORMAL_OID {
                continue;
            }
            let heir = naming.heir(file).filter(|_| !created.is_nothing());
            match (naming.named(file, record), heir) {
                // A catalog that was rewritten.
                (Some(named), _) if named.relation.oid < FIRST_NORMAL_OID => continue,
                (Some(named), _) => {
                    gone.members.insert(named.key(), Member { file, named });
                }
                (None, Some(named)) => {
                    gone.heirs.insert(named.key(), Member { file, named });
                }
                (None, None) => gone.nameless.push(file),
            }
            gone.count += 1;
        }
        gone
    }

    fn count_of(&self, kind: &str) -> usize {
        let members = self.members.values();
        members
            .filter(|member| member.named.relation.kind == kind)
            .count()
    }

    fn outcome_of(
        &self,
        member: Member<'a>,
        is_heir: bool,
        created: &Created,
        record: RecordSpan,
        naming: &mut Naming<'a>,
    ) -> Outcome {
        if created.is_nothing() {
            return Outcome::Dropped;
        }
        let relation = member.named.relation;
        match naming.after(member.named.database.oid, relation.oid, record.end) {
            After::There(file, _) => {
                // `TRUNCATE` leaves a relation in its tablespace, and is for tables only.
                let truncatable = relation.kind == "r" && file.tablespace == member.file.tablespace;
                let outcome = match created.filled(file) {
                    Some(false) => Outcome::Truncated,
                    Some(true) => Outcome::Rewritten,
                    // Replaced once more since.
                    None => self.outcome_by_count(member, is_heir, created, naming),
                };
                match outcome {
                    Outcome::Truncated if !truncatable => Outcome::Rewritten,
                    outcome => outcome,
                }
            }
            // Gone with this event, unless it had been given a file first that went away later.
            After::Gone(extract)
                if created.complete
                    && !is_heir
                    && !naming.any_gone_between(&created.relations(), record.end, extract) =>
            {
                Outcome::Dropped
            }
            _ => Outcome::Unclear,
        }
    }

    /// What happened to a relation that is there afterwards, with a file that was made later.
    fn outcome_by_count(
        &self,
        member: Member<'a>,
        is_heir: bool,
        created: &Created,
        naming: &Naming<'a>,
    ) -> Outcome {
        if !created.replaces(self.count) || !self.nameless.is_empty() {
            return Outcome::Unclear;
        }
        if !is_heir && self.heirs.is_empty() {
            return created.by_count(self.count_of("r"), self.count_of("t"));
        }
        if self.heirs.len() > 1 || !self.members.is_empty() {
            return Outcome::Unclear;
        }
        let toasts = (naming.all_beside(member.named).iter())
            .filter(|other| other.kind == "t" && other.owner == member.named.relation.oid)
            .count();
        created.by_count(1, toasts)
    }

    /// Where all that went away belongs to one relation, which is there afterwards, and each file has a
    /// successor, those are of that relation, too.
    fn adopt(&self, created: &Created, record: RecordSpan, naming: &mut Naming<'a>) {
        if !created.replaces(self.count) || !self.nameless.is_empty() {
            return;
        }
        let all: Vec<_> = (self.members.values())
            .chain(self.heirs.values())
            .map(|member| member.named)
            .collect();
        let roots: BTreeMap<Key, Named<'a>> = (all.into_iter())
            .map(|named| root_of(named, naming))
            .map(|root| (root.key(), root))
            .collect();
        let (Some((_, root)), 1) = (roots.first_key_value(), roots.len()) else {
            return;
        };
        let after = naming.after(root.database.oid, root.relation.oid, record.end);
        if matches!(after, After::There(..)) {
            for file in created.relations() {
                naming.adopt(file, *root);
            }
        }
    }
}

/// The relation that another one is a part of: of an index, a TOAST table and its index, or a column's
/// sequence the table; of all else itself.
fn root_of<'a>(named: Named<'a>, naming: &mut Naming<'a>) -> Named<'a> {
    let mut root = named;
    // An index of a TOAST table is two steps away.
    for _ in 0..2 {
        if root.relation.owner == 0 || root.relation.partition {
            break;
        }
        let Some(relation) = naming.beside(named, root.relation.owner) else {
            break;
        };
        root = Named { relation, ..named };
    }
    root
}

/// The members, with partitions folded into the partitioned table of which all are there.
fn fold_partitions<'a>(
    members: &BTreeMap<(u32, u32), Member<'a>>,
    seen: Seen<'_>,
    naming: &mut Naming<'a>,
) -> Vec<FoundObject> {
    let mut folded: BTreeMap<(u32, u32), (Member<'a>, u64)> = (members.iter())
        .map(|(key, member)| (*key, (*member, 0)))
        .collect();
    loop {
        let parents: BTreeSet<(u32, u32)> = (folded.iter())
            .filter(|(_, (member, _))| member.named.relation.partition)
            .map(|(key, (member, _))| (key.0, member.named.relation.owner))
            .collect();
        let mut changed = false;
        for parent in parents {
            let Some((child, _)) = (folded.values())
                .find(|(member, _)| {
                    let relation = member.named.relation;
                    relation.partition && (member.named.database.oid, relation.owner) == parent
                })
                .copied()
            else {
                continue;
            };
            let Some(whole) = naming.beside(child.named, parent.1) else {
                continue;
            };
            let children: Vec<(u32, u32)> = (naming.all_beside(child.named).iter())
                .filter(|relation| relation.partition && relation.owner == parent.1)
                .map(|relation| (parent.0, relation.oid))
                .collect();
            if !children.iter().all(|child| folded.contains_key(child)) {
                continue;
            }
            let leaves = (children.iter())
                .filter_map(|child| folded.remove(child))
                .map(|(_, leaves)| leaves.max(1))
                .sum();
            let named = Named {
                relation: whole,
                ..child.named
            };
            folded.insert(parent, (Member { named, ..child }, leaves));
            changed = true;
        }
        if !changed {
            break;
        }
    }
    (folded.into_values())
        .map(|(member, partitions)| FoundObject {
            partitions,
            ..object(member.named, member.file, seen, naming)
        })
        .collect()
}

/// A relation as it is shown.
fn object<'a>(
    named: Named<'a>,
    file: Relation,
    seen: Seen<'_>,
    naming: &mut Naming<'a>,
) -> FoundObject {
    let relation = named.relation;
    let mut object = FoundObject::relation(relation, &named.database.name, file);
    let after = naming.after(named.database.oid, relation.oid, seen.event.record.end);
    let stale = naming.stale_since(named, seen.piece_start);
    match after {
        After::There(_, later) if is_called_the_same(relation, later) => {}
        After::There(_, later) => {
            object.name_as_of = stale;
            object.later_name = stale.map(|_| FoundObject::name_of(later));
        }
        _ => object.name_as_of = stale,
    }
    object
}

fn is_called_the_same(one: &RelationName, other: &RelationName) -> bool {
    (&one.schema, &one.name) == (&other.schema, &other.name)
}

fn rows_changed(
    seen: Seen<'_>,
    relations: &[RelationRows],
    naming: &mut Naming<'_>,
    wanted: Wanted,
) -> Option<(Kind, Vec<FoundObject>)> {
    let mut objects: BTreeMap<(u32, u32, u32), FoundObject> = BTreeMap::new();
    for rows in relations
        .iter()
        .filter(|rows| rows.deleted + rows.updated > 0)
    {
        let file = rows.relation;
        let (key, object) = match naming.named(file, seen.event.record) {
            Some(named) if is_no_table(named.relation) => continue,
            Some(named) => {
                let (whole, is_partition) = whole_of(named, naming);
                let mut object = object(whole, file, seen, naming);
                object.partitions = u64::from(is_partition);
                ((named.database.oid, whole.relation.oid, 0), object)
            }
            None => {
                let database = naming.database(file.database, seen.event.record.start);
                let object = FoundObject::nameless(file, database);
                ((file.database, 0, file.number), object)
            }
        };
        let known = objects.entry(key).or_insert_with(|| FoundObject {
            partitions: 0,
            ..object.clone()
        });
        known.partitions += object.partitions;
        known.deleted = known.deleted.saturating_add(rows.deleted);
        known.updated = known.updated.saturating_add(rows.updated);
    }
    let sum = |rows: fn(&FoundObject) -> u64| objects.values().map(rows).sum::<u64>();
    let (deleted, updated) = (sum(|object| object.deleted), sum(|object| object.updated));
    if deleted.saturating_add(updated) < wanted.min_rows.max(1) {
        return None;
    }
    let kind = match (deleted, updated) {
        (_, 0) => Kind::RowsDeleted,
        (0, _) => Kind::RowsUpdated,
        _ => Kind::RowsDeletedAndUpdated,
    };
    let mut objects: Vec<_> = objects.into_values().collect();
    objects.sort_by_key(|object| std::cmp::Reverse(object.deleted + object.updated));
    Some((kind, objects))
}

/// Rows of TOAST tables are parts of rows, and those of catalogs are nobody's.
fn is_no_table(relation: &RelationName) -> bool {
    relation.kind == "t" || relation.oid < FIRST_NORMAL_OID
}

/// The partitioned table of which a partition is a part, at the top; else the relation itself.
fn whole_of<'a>(named: Named<'a>, naming: &mut Naming<'a>) -> (Named<'a>, bool) {
    let mut whole = named;
    let mut seen = BTreeSet::new();
    // A reading in which relations are each other's partitions must not keep this going.
    while whole.relation.partition && seen.insert(whole.relation.oid) {
        let Some(relation) = naming.beside(named, whole.relation.owner) else {
            break;
        };
        whole = Named { relation, ..named };
    }
    let is_partition = whole.relation.oid != named.relation.oid;
    (whole, is_partition)
}
