//! Tablespaces: directories outside the data directory, which may belong to another server.
//!
//! Those of the base backup are placed by the restore. Those that the log creates are placed by the
//! server while it replays: `tblspc_redo` makes the link to the path in the record, replacing any
//! other, and uses what it finds there. Beside the source that is the source's own directory, so that
//! such a place must be free, and can't be mapped.

use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use borealis_base::{ErrorKind, Position};
use borealis_pg_format::index::{EventKind, LogIndex};
use borealis_pg_server::instance::SystemUser;
use borealis_repository::Lineage;
use borealis_repository::log::LogReader;
use borealis_repository::pages::manifest::{Link, Manifest};
use borealis_repository::plan::PieceRange;

use super::files::{Mapping, mapped};
use crate::error::{Error, FileContext, Result};
use crate::protect::log_frame;

/// A tablespace that the log creates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatedTablespace {
    /// Its object identifier.
    pub oid: u32,
    /// Its absolute directory.
    pub path: PathBuf,
    /// Where the record begins: a restore to this position is one without it.
    pub at: Position,
    /// Where the record ends.
    pub end: Position,
}

/// Those that an index tells of, except those inside the data directory, which have no path.
pub fn created_in(index: &LogIndex) -> impl Iterator<Item = CreatedTablespace> {
    index.events.iter().filter_map(|event| match &event.kind {
        EventKind::TablespaceCreated { tablespace, path } if !path.is_empty() => {
            Some(CreatedTablespace {
                oid: *tablespace,
                path: std::ffi::OsString::from_vec(path.clone()).into(),
                at: event.record.start,
                end: event.record.end,
            })
        }
        _ => None,
    })
}

/// Those that some log creates.
pub async fn created(lineage: &Lineage, pieces: &[PieceRange]) -> Result<Vec<CreatedTablespace>> {
    let reader = LogReader::of(lineage);
    let mut created = Vec::new();
    for part in pieces {
        let stored = reader.piece(&part.piece).await?;
        let within = |made: &CreatedTablespace| made.end > part.from && made.at < part.to;
        for bytes in stored.indexes(part.from, part.to).await? {
            let index = log_frame::index(stored.head().name(), &bytes)?;
            created.extend(created_in(&index).filter(within));
        }
    }
    Ok(created)
}

/// What is at the place of a tablespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Directory {
    Missing,
    Empty,
    /// Something, or something that can't be looked at.
    Taken,
}

fn look_at(place: &Path) -> Directory {
    match std::fs::read_dir(place) {
        Ok(mut entries) => match entries.next() {
            None => Directory::Empty,
            Some(_) => Directory::Taken,
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Directory::Missing,
        Err(_) => Directory::Taken,
    }
}

/// Refuses places that are taken, mappings of tablespaces that there are not, and mappings that replay
/// would undo.
pub fn check(
    manifest: &Manifest,
    created: &[CreatedTablespace],
    places: &Places<'_>,
) -> Result<()> {
    check_links(&manifest.files().links, created, places)
}

/// Where tablespaces go.
#[derive(Debug, Clone, Copy)]
pub struct Places<'a> {
    /// The data directory.
    pub target: &'a Path,
    /// What was asked for.
    pub asked: &'a Mapping,
    /// That, and the places that stay.
    pub mapping: &'a Mapping,
    /// Whether a place that the directory links already is taken for its own without being named: an
    /// unfinished restore found it empty, and a directory at home has put it there.
    pub own_links: bool,
}

impl Places<'_> {
    /// Whether what lies at the place of a tablespace may be written over.
    fn may_take(&self, link: &str, source: &Path, place: &Path) -> bool {
        let named = self.asked.iter().any(|(old, _)| old == source);
        (self.own_links || named) && is_ours(self.target, link, place)
    }
}

fn check_links(links: &[Link], created: &[CreatedTablespace], places: &Places<'_>) -> Result<()> {
    for (old, new) in places.asked {
        if let Some(made) = created.iter().find(|made| made.path == *old)
            && new != old
        {
            return Err(Error::refused(
                format!(
                    "--tablespace-mapping can't place {}: the log to be replayed creates that tablespace at {}, \
                     and the server makes it at its original path",
                    old.display(),
                    made.at
                ),
                remedy(made),
            ));
        }
        if !links.iter().any(|link| Path::new(&link.target) == old) {
            return Err(Error::new(
                ErrorKind::Usage,
                format!(
                    "--tablespace-mapping: no tablespace of the backup lies at {}",
                    old.display()
                ),
            ));
        }
    }
    check_apart(links, places)?;
    for link in links {
        let source = Path::new(&link.target);
        let place = mapped(places.mapping, source);
        if look_at(place) != Directory::Taken || places.may_take(&link.name, source, place) {
            continue;
        }
        let own = std::fs::read_link(places.target.join(&link.name)).ok();
        let own = own.filter(|_| !places.own_links);
        let shown = place.display();
        return Err(if let Some(linked) = own.as_deref().map(Path::display) {
            Error::refused(
                format!(
                    "the tablespace directory {shown} is not empty; {linked}, which {} links, may be another \
                     server's: the directory lies neither where the source has its data directory nor where a \
                     restore has put it, as a copy does",
                    places.target.display()
                ),
                format!(
                    "Put the tablespace elsewhere with --tablespace-mapping OLD=NEW, or say that it is this \
                     directory's with --tablespace-mapping {}={linked}.",
                    source.display()
                ),
            )
        } else {
            Error::refused(
                format!("the tablespace directory {shown} is not empty"),
                "Put the tablespace elsewhere with --tablespace-mapping OLD=NEW.",
            )
        });
    }
    for made in created {
        let in_base = links
            .iter()
            .any(|link| Path::new(&link.target) == made.path);
        let own = places.own_links
            && is_ours(
                places.target,
                &format!("pg_tblspc/{}", made.oid),
                &made.path,
            );
        if !in_base && !own && look_at(&made.path) == Directory::Taken {
            return Err(taken(made));
        }
    }
    Ok(())
}

/// Refuses places that share a directory, with each other or with the data directory: their files would
/// overwrite each other's.
fn check_apart(links: &[Link], places: &Places<'_>) -> Result<()> {
    let asked = places.asked;
    let twice = (asked.iter().enumerate())
        .find(|(number, (old, _))| asked.iter().skip(number + 1).any(|(other, _)| other == old));
    if let Some((_, (old, _))) = twice {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("--tablespace-mapping names {} twice", old.display()),
        ));
    }
    let mut used = vec![(real(places.target), "the data directory".to_owned())];
    for link in links {
        let source = Path::new(&link.target);
        let place = real(mapped(places.mapping, source));
        let shares = |other: &PathBuf| other.starts_with(&place) || place.starts_with(other);
        if let Some((_, other)) = used.iter().find(|(other, _)| shares(other)) {
            return Err(Error::refused(
                format!(
                    "the tablespace of {} can't go to {}, which {other} shares",
                    source.display(),
                    place.display()
                ),
                "Give each tablespace a directory of its own with --tablespace-mapping OLD=NEW.",
            ));
        }
        used.push((place, format!("the tablespace of {}", source.display())));
    }
    Ok(())
}

/// The path without links, as far as it exists.
fn real(path: &Path) -> PathBuf {
    for above in path.ancestors() {
        if let (Ok(found), Ok(rest)) = (std::fs::canonicalize(above), path.strip_prefix(above)) {
            return found.join(rest).components().collect();
        }
    }
    path.to_owned()
}

fn taken(made: &CreatedTablespace) -> Error {
    Error::refused(
        format!(
            "the log to be replayed creates a tablespace in {} (at {}), and that directory is not empty here: \
             it may be another server's",
            made.path.display(),
            made.at
        ),
        remedy(made),
    )
}

fn remedy(made: &CreatedTablespace) -> String {
    format!(
        "Restore to before it with --to lsn:{}, or to a moment after a later base backup (then \
         --tablespace-mapping works), or on a machine where the directory is free.",
        made.at
    )
}

/// Whether an unfinished restore into `target` has linked this very place already: it found the place
/// empty then.
fn is_ours(target: &Path, link: &str, place: &Path) -> bool {
    std::fs::read_link(target.join(link)).is_ok_and(|linked| linked == place)
}

/// Refuses log that creates a tablespace where something else is, for a server that goes on replaying.
pub fn refuse_taken(created: &[CreatedTablespace], data_dir: &Path) -> Result<()> {
    let taken_by_another = |made: &&CreatedTablespace| {
        look_at(&made.path) == Directory::Taken
            && !is_ours(data_dir, &format!("pg_tblspc/{}", made.oid), &made.path)
    };
    match created.iter().find(taken_by_another) {
        Some(made) => Err(Error::refused(
            format!(
                "the log creates a tablespace in {} (at {}), and that directory is not empty here: it may be \
                 another server's",
                made.path.display(),
                made.at
            ),
            "Make the directory free, or restore the standby again from a later base backup with \
             --tablespace-mapping.",
        )),
        None => Ok(()),
    }
}

/// Makes the directories that replay expects (`create_tablespace_directories` refuses to make them).
pub fn make_places(created: &[CreatedTablespace], owner: Option<&SystemUser>) -> Result<()> {
    for made in created {
        if look_at(&made.path) == Directory::Taken {
            continue;
        }
        std::fs::create_dir_all(&made.path).at("create", &made.path)?;
        if let Some(owner) = owner {
            std::os::unix::fs::chown(&made.path, Some(owner.uid), Some(owner.gid))
                .at("give away", &made.path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn made(&self, name: &str) -> CreatedTablespace {
            CreatedTablespace {
                oid: 16400,
                path: self.path(name),
                at: Position(0x0200_0028),
                end: Position(0x0200_0060),
            }
        }

        fn occupy(&self, name: &str) {
            std::fs::create_dir_all(self.path(name).join("PG_15_202209061")).unwrap();
        }
    }

    fn places<'a>(target: &'a Path, mapping: &'a Mapping) -> Places<'a> {
        Places {
            target,
            asked: mapping,
            mapping,
            own_links: true,
        }
    }

    #[test]
    fn two_tablespaces_never_share_a_directory() {
        let place = Place::new();
        let link = |name: &str| Link {
            name: format!("pg_tblspc/{name}"),
            target: place.path(name).display().to_string(),
        };
        let (links, target) = ([link("1"), link("2")], place.path("t"));
        std::fs::create_dir(place.path("real")).unwrap();
        std::os::unix::fs::symlink(place.path("real"), place.path("alias")).unwrap();
        let check = |news: [&str; 2]| {
            let new = |number: usize| (place.path(["1", "2"][number]), place.path(news[number]));
            let mapping = vec![new(0), new(1)];
            check_links(&links, &[], &places(&target, &mapping))
        };
        check(["a", "b"]).unwrap();
        check(["2", "1"]).unwrap();
        for news in [
            ["a", "a"],
            ["a", "a/b"],
            ["real", "alias"],
            ["real/x", "alias/x"],
            ["t/a", "b"],
            ["t", "b"],
        ] {
            let error = check(news).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Refused, "{news:?}: {error}");
        }
        // One that is mapped onto the place of one that stays; the same one twice.
        let onto = vec![(place.path("1"), place.path("2"))];
        assert!(check_links(&links, &[], &places(&target, &onto)).is_err());
        let twice = vec![
            (place.path("1"), place.path("a")),
            (place.path("1"), place.path("b")),
        ];
        let error = check_links(&links, &[], &places(&target, &twice)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
    }

    #[test]
    fn a_copy_of_a_data_directory_does_not_own_what_its_links_lead_to() {
        let place = Place::new();
        place.occupy("ts");
        let copy = place.path("copy");
        std::fs::create_dir_all(copy.join("pg_tblspc")).unwrap();
        std::os::unix::fs::symlink(place.path("ts"), copy.join("pg_tblspc/16400")).unwrap();
        let links = [Link {
            name: "pg_tblspc/16400".into(),
            target: place.path("ts").display().to_string(),
        }];
        let none = Vec::new();
        let own = places(&copy, &none);
        check_links(&links, &[], &own).unwrap();
        let copied = Places {
            own_links: false,
            ..own
        };
        let error = check_links(&links, &[], &copied).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.hint().unwrap().contains("--tablespace-mapping"));
        // Named, it is.
        let named = vec![(place.path("ts"), place.path("ts"))];
        let copied = Places {
            asked: &named,
            mapping: &named,
            ..copied
        };
        check_links(&links, &[], &copied).unwrap();
        // A place that it does not link never is.
        std::fs::remove_file(copy.join("pg_tblspc/16400")).unwrap();
        assert!(check_links(&links, &[], &copied).is_err());
        assert!(check_links(&links, &[], &own).is_err());
    }

    #[test]
    fn a_tablespace_created_by_the_log_needs_a_free_place() {
        let place = Place::new();
        let check = |made: &CreatedTablespace| {
            let (target, mapping) = (place.path("t"), Vec::new());
            check_links(&[], std::slice::from_ref(made), &places(&target, &mapping))
        };
        let made = place.made("ts");
        check(&made).unwrap();
        make_places(std::slice::from_ref(&made), None).unwrap();
        assert!(made.path.is_dir());
        check(&made).unwrap();
        place.occupy("ts");
        let error = check(&made).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains(&*made.path.to_string_lossy()));
        assert!(error.hint().unwrap().contains("--to lsn:0/2000028"));
        // A file is no free place either.
        std::fs::write(place.path("file"), "").unwrap();
        assert!(check(&place.made("file")).is_err());
    }

    #[test]
    fn a_mapping_that_replay_would_undo_is_refused() {
        let place = Place::new();
        let made = place.made("ts");
        let links = [Link {
            name: "pg_tblspc/16400".into(),
            target: made.path.display().to_string(),
        }];
        let mapping = vec![(made.path.clone(), place.path("new"))];
        let target = place.path("t");
        let places = places(&target, &mapping);
        check_links(&links, &[], &places).unwrap();
        for links in [&links[..], &[]] {
            let error = check_links(links, std::slice::from_ref(&made), &places).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        }
    }

    #[test]
    fn a_standby_stops_before_it_writes_into_another_servers_tablespace() {
        let place = Place::new();
        let made = [place.made("ts")];
        let data_dir = place.path("data");
        std::fs::create_dir_all(data_dir.join("pg_tblspc")).unwrap();
        refuse_taken(&made, &data_dir).unwrap();
        place.occupy("ts");
        assert!(refuse_taken(&made, &data_dir).is_err());
        // Its own, when it replays the record again after a restart.
        std::os::unix::fs::symlink(&made[0].path, data_dir.join("pg_tblspc/16400")).unwrap();
        refuse_taken(&made, &data_dir).unwrap();
    }
}
