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
        let index = log_frame::index(stored.head().name(), &stored.index().await?)?;
        let within = |made: &CreatedTablespace| made.end > part.from && made.at < part.to;
        created.extend(created_in(&index).filter(within));
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
    mapping: &Mapping,
    target: &Path,
) -> Result<()> {
    check_links(&manifest.files().links, created, mapping, target)
}

fn check_links(
    links: &[Link],
    created: &[CreatedTablespace],
    mapping: &Mapping,
    target: &Path,
) -> Result<()> {
    for (old, new) in mapping {
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
    for link in links {
        let place = mapped(mapping, Path::new(&link.target));
        if look_at(place) == Directory::Taken && !is_ours(target, &link.name, place) {
            return Err(Error::refused(
                format!("the tablespace directory {} is not empty", place.display()),
                "Put the tablespace elsewhere with --tablespace-mapping OLD=NEW.",
            ));
        }
    }
    for made in created {
        let in_base = links
            .iter()
            .any(|link| Path::new(&link.target) == made.path);
        if !in_base && look_at(&made.path) == Directory::Taken {
            return Err(taken(made));
        }
    }
    Ok(())
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

    #[test]
    fn a_tablespace_created_by_the_log_needs_a_free_place() {
        let place = Place::new();
        let check = |made: &CreatedTablespace| {
            check_links(
                &[],
                std::slice::from_ref(made),
                &Vec::new(),
                &place.path("t"),
            )
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
        check_links(&links, &[], &mapping, &target).unwrap();
        for links in [&links[..], &[]] {
            let error =
                check_links(links, std::slice::from_ref(&made), &mapping, &target).unwrap_err();
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
