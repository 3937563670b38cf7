//! What a file was called at a moment. Pure.
//!
//! Names were read now and then ([`Extract`]). A reading names a file from its moment on, until log says
//! that the file went away: its number may be given again, and a later reading says nothing of an
//! earlier file. What no reading names has no name here; none is guessed.

use std::collections::HashMap;

use borealis_base::{Position, RecordSpan, Timestamp};
use borealis_pg_format::Relation;
use borealis_pg_format::index::MANY_DATABASES;
use borealis_pg_server::names::{DatabaseNames, Names, RelationName};

/// One reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extract {
    /// All that was committed at or before this is in it,
    pub from: Position,
    /// and nothing that was committed behind this.
    pub to: Position,
    /// When it was read.
    pub taken_at: Timestamp,
    /// The names.
    pub names: Names,
}

impl Extract {
    fn database(&self, oid: u32) -> Option<&DatabaseNames> {
        let databases = &self.names.databases;
        databases.iter().find(|database| database.oid == oid)
    }
}

/// The relations of one database in one reading.
#[derive(Debug, Default)]
struct Relations<'a> {
    by_file: HashMap<Relation, &'a RelationName>,
    by_oid: HashMap<u32, &'a RelationName>,
}

/// A file's relation, as it was called.
#[derive(Debug, Clone, Copy)]
pub struct Named<'a> {
    /// The relation.
    pub relation: &'a RelationName,
    /// Its database.
    pub database: &'a DatabaseNames,
    /// Which reading told.
    pub extract: usize,
}

/// Where a relation is after a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After<'a> {
    /// No reading tells yet.
    Unknown,
    /// It was gone at this reading.
    Gone(usize),
    /// It was there, with this file, and called so.
    There(Relation, &'a RelationName),
}

/// Names of files over a range of log.
pub struct Naming<'a> {
    extracts: &'a [Extract],
    relations: HashMap<(usize, u32), Relations<'a>>,
    gone: HashMap<Relation, Vec<Position>>,
    gone_databases: HashMap<u32, Vec<Position>>,
    /// Where files went away of which the log's index does not tell which.
    unlisted: Vec<Position>,
    /// Files that were made for a relation after its names were read.
    heirs: HashMap<Relation, Named<'a>>,
    /// Where catalogs changed: the end of the piece of log, and the databases.
    changed: Vec<(Position, Vec<u32>)>,
}

impl<'a> Naming<'a> {
    /// Names by `extracts`, in the order of their positions.
    pub fn new(extracts: &'a [Extract]) -> Self {
        Self {
            extracts,
            relations: HashMap::new(),
            gone: HashMap::new(),
            gone_databases: HashMap::new(),
            unlisted: Vec::new(),
            heirs: HashMap::new(),
            changed: Vec::new(),
        }
    }

    /// Notes that files went away with the record that ends at `at`.
    pub fn files_gone(&mut self, files: &[Relation], all_listed: bool, at: Position) {
        for file in files {
            self.gone.entry(*file).or_default().push(at);
        }
        if !all_listed {
            self.unlisted.push(at);
        }
    }

    /// Notes that a database went away.
    pub fn database_gone(&mut self, database: u32, at: Position) {
        self.gone_databases.entry(database).or_default().push(at);
    }

    /// Notes that catalogs of `databases` changed in a piece of log that ends at `end`.
    pub fn catalogs_changed(&mut self, databases: &[u32], end: Position) {
        if !databases.is_empty() {
            self.changed.push((end, databases.to_vec()));
        }
    }

    fn relations(&mut self, extract: usize, database: u32) -> Option<&Relations<'a>> {
        let names = self.extracts.get(extract)?.database(database)?;
        let listed = names.relations.as_ref()?;
        let relations = self
            .relations
            .entry((extract, database))
            .or_insert_with(|| {
                let mut relations = Relations::default();
                for relation in listed {
                    relations.by_oid.insert(relation.oid, relation);
                    if relation.file != 0 {
                        relations.by_file.insert(file_of(names, relation), relation);
                    }
                }
                relations
            });
        Some(relations)
    }

    /// The last reading before `position` that looked at the database.
    fn before(&self, database: u32, position: Position) -> Option<usize> {
        let end = self
            .extracts
            .partition_point(|extract| extract.to <= position);
        (0..end)
            .rev()
            .find(|index| self.looked_at(*index, database))
    }

    fn looked_at(&self, extract: usize, database: u32) -> bool {
        let names = self.extracts.get(extract);
        let names = names.and_then(|extract| extract.database(database));
        names.is_some_and(|names| names.relations.is_some() || names.unread.is_some())
    }

    /// What `file` was called just before `record`.
    pub fn named(&mut self, file: Relation, record: RecordSpan) -> Option<Named<'a>> {
        // A reading during which the record came may show the file too: then it was there.
        let during = (0..self.extracts.len()).filter(|index| {
            let extract = &self.extracts[*index];
            extract.to > record.start && extract.from < record.end
        });
        let readings: Vec<usize> = (self.before(file.database, record.start).into_iter())
            .chain(during)
            .collect();
        readings.into_iter().find_map(|index| {
            let extract = self.extracts.get(index)?;
            let relation = *self.relations(index, file.database)?.by_file.get(&file)?;
            let between = |at: &Position| extract.from < *at && *at <= record.start;
            let gone = self.gone.get(&file).into_iter().flatten().any(between)
                || (self
                    .gone_databases
                    .get(&file.database)
                    .into_iter()
                    .flatten())
                .any(between)
                || self.unlisted.iter().any(between);
            let database = extract.database(file.database)?;
            (!gone).then_some(Named {
                relation,
                database,
                extract: index,
            })
        })
    }

    /// Notes that `file` was made for a relation, as one of its parts.
    pub fn adopt(&mut self, file: Relation, of: Named<'a>) {
        self.heirs.insert(file, of);
    }

    /// The relation that `file` was made for, if that is known.
    pub fn heir(&self, file: Relation) -> Option<Named<'a>> {
        self.heirs.get(&file).copied()
    }

    /// What `oid` is called in the reading that `named` comes from.
    pub fn beside(&mut self, named: Named<'a>, oid: u32) -> Option<&'a RelationName> {
        let relations = self.relations(named.extract, named.database.oid)?;
        relations.by_oid.get(&oid).copied()
    }

    /// All relations of the reading that `named` comes from.
    pub fn all_beside(&self, named: Named<'a>) -> &'a [RelationName] {
        named.database.relations.as_deref().unwrap_or_default()
    }

    /// Where the relation is behind `position`.
    pub fn after(&mut self, database: u32, oid: u32, position: Position) -> After<'a> {
        let first = (0..self.extracts.len()).find(|index| {
            let extract = &self.extracts[*index];
            extract.from >= position
                && (extract.database(database).is_none() || self.looked_at(*index, database))
        });
        let Some(index) = first else {
            return After::Unknown;
        };
        let Some(names) = self.extracts[index].database(database) else {
            return After::Gone(index);
        };
        match self.relations(index, database) {
            None => After::Unknown,
            Some(relations) => match relations.by_oid.get(&oid) {
                Some(relation) => After::There(file_of(names, relation), relation),
                None => After::Gone(index),
            },
        }
    }

    /// Whether any of `files` went away behind `position` and before reading `extract` was complete.
    pub fn any_gone_between(&self, files: &[Relation], position: Position, extract: usize) -> bool {
        let Some(extract) = self.extracts.get(extract) else {
            return true;
        };
        let between = |at: &Position| position < *at && *at <= extract.to;
        let mut all = files
            .iter()
            .filter_map(|file| self.gone.get(file))
            .flatten();
        all.any(between) || self.unlisted.iter().any(between)
    }

    /// When `named` was read, if catalogs of its database have changed since and before the piece of log
    /// that begins at `piece_start`: then it may have been called otherwise.
    pub fn stale_since(&self, named: Named<'_>, piece_start: Position) -> Option<Timestamp> {
        let extract = self.extracts.get(named.extract)?;
        let oid = named.database.oid;
        let stale = self.changed.iter().any(|(end, databases)| {
            extract.from < *end
                && *end <= piece_start
                && (databases.contains(&oid) || databases.contains(&MANY_DATABASES))
        });
        stale.then_some(extract.taken_at)
    }

    /// What a database was called at `position`.
    pub fn database(&self, oid: u32, position: Position) -> Option<&'a str> {
        let extracts: &'a [Extract] = self.extracts;
        let end = extracts.partition_point(|extract| extract.to <= position);
        let last = extracts.get(..end)?.last()?;
        let gone = (self.gone_databases.get(&oid).into_iter().flatten())
            .any(|at| last.from < *at && *at <= position);
        let database = last.database(oid).filter(|_| !gone)?;
        Some(database.name.as_str())
    }

    /// Whether a database is there at the first reading behind `position`.
    pub fn database_is_there_after(&self, oid: u32, position: Position) -> bool {
        let first = self
            .extracts
            .iter()
            .find(|extract| extract.from >= position);
        first.is_some_and(|extract| extract.database(oid).is_some())
    }

    /// What a tablespace was called at `position`.
    pub fn tablespace(&self, oid: u32, position: Position) -> Option<&'a str> {
        let extracts: &'a [Extract] = self.extracts;
        let end = extracts.partition_point(|extract| extract.to <= position);
        let last = extracts.get(..end)?.last()?;
        let mut spaces = last.names.tablespaces.iter();
        spaces
            .find(|space| space.oid == oid)
            .map(|space| space.name.as_str())
    }
}

fn file_of(database: &DatabaseNames, relation: &RelationName) -> Relation {
    Relation {
        tablespace: match relation.tablespace {
            0 => database.tablespace,
            other => other,
        },
        database: database.oid,
        number: relation.file,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) const DATABASE: u32 = 5;

    pub(crate) fn file(number: u32) -> Relation {
        Relation {
            tablespace: 1663,
            database: DATABASE,
            number,
        }
    }

    pub(crate) fn span(start: u64) -> RecordSpan {
        RecordSpan {
            start: Position(start),
            end: Position(start + 8),
        }
    }

    pub(crate) fn table(oid: u32, name: &str, file: u32) -> RelationName {
        RelationName {
            oid,
            schema: "public".to_owned(),
            name: name.to_owned(),
            kind: "r".to_owned(),
            file,
            ..RelationName::default()
        }
    }

    pub(crate) fn extract(from: u64, to: u64, relations: Option<Vec<RelationName>>) -> Extract {
        Extract {
            from: Position(from),
            to: Position(to),
            taken_at: Timestamp(i64::try_from(from).unwrap()),
            names: Names {
                databases: vec![DatabaseNames {
                    oid: DATABASE,
                    name: "shop".to_owned(),
                    tablespace: 1663,
                    relations,
                    unread: None,
                }],
                tablespaces: Vec::new(),
            },
        }
    }

    fn name(naming: &mut Naming<'_>, number: u32, at: u64) -> Option<String> {
        naming
            .named(file(number), span(at))
            .map(|named| named.relation.name.clone())
    }

    #[test]
    fn a_file_is_called_what_the_last_reading_before_says() {
        let extracts = [
            extract(100, 110, Some(vec![table(1, "a", 9)])),
            extract(200, 210, None),
            extract(300, 310, Some(vec![table(1, "b", 9)])),
        ];
        let mut naming = Naming::new(&extracts);
        assert_eq!(name(&mut naming, 9, 50), None, "it was read later");
        assert_eq!(name(&mut naming, 9, 150).as_deref(), Some("a"));
        assert_eq!(name(&mut naming, 9, 250).as_deref(), Some("a"));
        assert_eq!(name(&mut naming, 9, 305).as_deref(), Some("a"));
        assert_eq!(name(&mut naming, 9, 310).as_deref(), Some("b"));
        assert_eq!(name(&mut naming, 10, 310), None);
    }

    #[test]
    fn a_file_number_that_was_given_again_has_no_earlier_and_no_later_name() {
        let extracts = [
            extract(100, 110, Some(vec![table(1, "a", 9)])),
            extract(300, 310, Some(vec![table(2, "b", 9)])),
        ];
        let mut naming = Naming::new(&extracts);
        naming.files_gone(&[file(9)], true, Position(150));
        naming.files_gone(&[file(9)], true, Position(250));
        assert_eq!(name(&mut naming, 9, 142).as_deref(), Some("a"));
        // Another relation, made and dropped between two readings.
        assert_eq!(name(&mut naming, 9, 242), None);
        assert_eq!(name(&mut naming, 9, 320).as_deref(), Some("b"));
    }

    #[test]
    fn nothing_is_named_behind_files_that_are_not_listed() {
        let extracts = [extract(100, 110, Some(vec![table(1, "a", 9)]))];
        let mut naming = Naming::new(&extracts);
        naming.files_gone(&[], false, Position(150));
        assert_eq!(name(&mut naming, 9, 140).as_deref(), Some("a"));
        assert_eq!(name(&mut naming, 9, 160), None);
        let mut naming = Naming::new(&extracts);
        naming.database_gone(DATABASE, Position(150));
        assert_eq!(name(&mut naming, 9, 160), None);
        assert_eq!(naming.database(DATABASE, Position(140)), Some("shop"));
        assert_eq!(naming.database(DATABASE, Position(160)), None);
    }

    #[test]
    fn a_drop_during_a_reading_is_named_by_it_where_it_still_shows_the_file() {
        let extracts = [extract(100, 200, Some(vec![table(1, "a", 9)]))];
        let mut naming = Naming::new(&extracts);
        naming.files_gone(&[file(9)], true, Position(158));
        assert_eq!(name(&mut naming, 9, 150).as_deref(), Some("a"));
        assert_eq!(name(&mut naming, 9, 170), None);
    }

    #[test]
    fn where_a_relation_is_afterwards_is_told_by_the_first_reading_that_looked() {
        let mut unread = extract(300, 310, None);
        unread.names.databases[0].unread = Some("refused".to_owned());
        let extracts = [
            extract(100, 110, None),
            extract(200, 210, Some(vec![table(1, "a", 9)])),
            unread,
            extract(400, 410, Some(vec![])),
        ];
        let mut naming = Naming::new(&extracts);
        assert!(
            matches!(naming.after(DATABASE, 1, Position(90)), After::There(at, _) if at == file(9))
        );
        assert_eq!(naming.after(DATABASE, 1, Position(250)), After::Unknown);
        assert_eq!(naming.after(DATABASE, 1, Position(350)), After::Gone(3));
        assert_eq!(naming.after(DATABASE, 1, Position(450)), After::Unknown);
        assert_eq!(naming.after(6, 1, Position(90)), After::Gone(0));
    }

    #[test]
    fn a_name_is_stale_only_if_catalogs_of_its_database_changed_since() {
        let extracts = [extract(100, 110, Some(vec![table(1, "a", 9)]))];
        let mut naming = Naming::new(&extracts);
        let named = naming.named(file(9), span(500)).unwrap();
        naming.catalogs_changed(&[DATABASE], Position(100));
        naming.catalogs_changed(&[6], Position(200));
        naming.catalogs_changed(&[DATABASE], Position(501));
        assert_eq!(naming.stale_since(named, Position(480)), None);
        naming.catalogs_changed(&[0, DATABASE], Position(300));
        assert_eq!(
            naming.stale_since(named, Position(480)),
            Some(Timestamp(100))
        );
    }
}
