//! Which directories a delta may write into, and which of the places outside that their links lead to are
//! theirs.

use std::path::{Path, PathBuf};

use borealis_pg_format::control_file::ControlFile;
use borealis_pg_server::instance::occupant;
use borealis_repository::pages::manifest::Link;
use borealis_repository::plan::LineageState;

use super::super::files::{CONTROL_FILE, Mapping};
use super::super::recovery_file::RecoveryFile;
use crate::base_backup::facts::ServerState;
use crate::error::{Error, FileContext, Result};

const WRONG_DIRECTORY: &str = "Name the right directory; nothing was written. To give this one up, remove it and restore without --delta.";

/// Refuses a directory that a server uses, or may use.
pub fn refuse_in_use(target: &Path) -> Result<()> {
    match occupant(target)? {
        None => Ok(()),
        Some(who) => Err(Error::refused(
            format!("{} is in use by {who}", target.display()),
            "Stop the server first. If it is certain that none runs there, remove postmaster.pid.",
        )),
    }
}

/// Refuses a directory that is not a data directory of `server`: its content would be lost. Returns what
/// its control file says.
pub fn recognise(target: &Path, server: &ServerState) -> Result<ControlFile> {
    let shown = target.display();
    let path = target.join("PG_VERSION");
    let Ok(version) = std::fs::read_to_string(&path) else {
        return Err(Error::refused(
            format!("{shown} is not empty and no data directory: it has no PG_VERSION"),
            WRONG_DIRECTORY,
        ));
    };
    let path = target.join(CONTROL_FILE);
    let bytes = match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::refused(
                format!(
                    "{shown} has no control file ({CONTROL_FILE}), so that nobody can tell whose it is"
                ),
                WRONG_DIRECTORY,
            ));
        }
        read => read.at("read", &path)?,
    };
    let control = ControlFile::parse(&bytes).map_err(|error| {
        Error::refused(
            format!(
                "{}: {error}, so that nobody can tell whose directory it is",
                path.display()
            ),
            WRONG_DIRECTORY,
        )
    })?;
    if control.system_identifier != server.system_id {
        return Err(Error::refused(
            format!(
                "{shown} belongs to another server: its system identifier is {}, that of the backup is {}",
                control.system_identifier, server.system_id
            ),
            WRONG_DIRECTORY,
        ));
    }
    if version.trim() != server.major().to_string() {
        return Err(Error::refused(
            format!(
                "{shown} is of PostgreSQL {}, the backup of PostgreSQL {}",
                version.trim(),
                server.major()
            ),
            WRONG_DIRECTORY,
        ));
    }
    Ok(control)
}

/// Refuses a directory that holds what a restore needs itself: everything in it that is not in the backup
/// is deleted.
pub fn refuse_containing(target: &Path, needed: &[&Path]) -> Result<()> {
    let Ok(inside) = std::fs::canonicalize(target) else {
        return Ok(());
    };
    let found = needed
        .iter()
        .find(|path| std::fs::canonicalize(path).is_ok_and(|path| path.starts_with(&inside)));
    match found {
        None => Ok(()),
        Some(path) => Err(Error::refused(
            format!(
                "{} lies inside {}, where a delta would delete it",
                path.display(),
                target.display()
            ),
            "Name another directory, or move it elsewhere first; nothing was written.",
        )),
    }
}

/// Whether the places that the directory's links lead to are its own: it lies where the source has its data
/// directory, or where a restore put it. A copy of a data directory lies elsewhere.
pub fn is_at_home(target: &Path, server: &ServerState) -> bool {
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    let Some(here) = real(target) else {
        return false;
    };
    let by_mark = RecoveryFile::load_any(target)
        .and_then(|mark| mark.directory)
        .is_some_and(|directory| real(&directory).as_ref() == Some(&here));
    by_mark || real(&server.data_directory).as_ref() == Some(&here)
}

/// `mapping`, and for a directory at home the places that its own links lead to.
pub fn with_own_places(mapping: &Mapping, links: &[Link], target: &Path, at_home: bool) -> Mapping {
    let mut all = mapping.clone();
    for link in links.iter().filter(|_| at_home) {
        let source = PathBuf::from(&link.target);
        if mapping.iter().any(|(old, _)| *old == source) {
            continue;
        }
        if let Ok(place) = std::fs::read_link(target.join(&link.name)) {
            all.push((source, place));
        }
    }
    all
}

/// What is lost with the directory although nothing else has it.
pub fn log_beyond(control: &ControlFile, state: &LineageState) -> Option<String> {
    let checkpoint = &control.checkpoint;
    let stored = state
        .pieces
        .iter()
        .filter(|piece| piece.branch == checkpoint.timeline);
    let end = stored.map(|piece| piece.end).max()?;
    (control.checkpoint_lsn > end).then(|| {
        format!(
            "the directory's last checkpoint, at {}, lies past the log that the repository holds of timeline {}, \
             which ends at {end}: what was committed since is in this directory alone, and is lost",
            control.checkpoint_lsn, checkpoint.timeline
        )
    })
}
