//! The directory that a restore writes into: what may be there before, and how it becomes ours.

use std::path::Path;

use borealis_base::LineageId;
use borealis_pg_format::control_file::ControlFile;

use super::delta::existing::{recognise, refuse_in_use};
use super::files::{CONTROL_FILE, sync, write_file};
use super::recovery_file::{RECOVERY_FILE, RecoveryFile, State};
use crate::base_backup::facts::ServerState;
use crate::error::{Error, FileContext, Result};

/// Where a delta moves the control file that it finds.
const MOVED_CONTROL_FILE: &str = "global/pg_control.borealis-old";

/// What is at the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing, or an empty directory.
    Nothing,
    /// An unfinished restore of this lineage: it may be restored into again.
    Unfinished,
    /// A data directory of the same server, for a delta.
    Existing(Box<ControlFile>),
}

/// The mark before it is put in place. Where it is alone, a restore ended before it had written anything
/// else: for want of room, or killed.
pub(super) fn staged_mark() -> String {
    format!("{RECOVERY_FILE}.new")
}

/// Refuses a target inside a data directory, whose server would take it for its own, or inside the
/// repository's folder `repository`, where a restore has no business.
pub fn refuse_inside(target: &Path, repository: Option<&Path>) -> Result<()> {
    let target = std::path::absolute(target).at("find", target)?;
    for above in target.ancestors().skip(1) {
        // What does not exist yet has nothing in it; links lead to where the files would go.
        let Ok(above) = std::fs::canonicalize(above) else {
            continue;
        };
        for place in above.ancestors() {
            let what = if place.join("PG_VERSION").is_file() {
                "the data directory"
            } else if repository == Some(place) {
                "the repository"
            } else {
                continue;
            };
            return Err(Error::refused(
                format!(
                    "{} lies inside {what} {}",
                    target.display(),
                    place.display()
                ),
                "Name a directory outside of it; nothing was written.",
            ));
        }
        break;
    }
    Ok(())
}

/// Looks at the target and refuses all that a restore must not touch.
pub fn inspect(target: &Path, lineage: LineageId) -> Result<Found> {
    match std::fs::symlink_metadata(target) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(error).at("look at", target),
        Ok(_) => {}
    }
    let followed = std::fs::metadata(target).at("look at", target)?;
    if !followed.is_dir() {
        return Err(Error::refused(
            format!("{} is not a directory", target.display()),
            "Name a directory that does not exist yet or is empty.",
        ));
    }
    if holds_nothing(target)? {
        return Ok(Found::Nothing);
    }
    if is_between_marks(target, lineage) {
        return Ok(Found::Unfinished);
    }
    match RecoveryFile::load(target) {
        Ok(Some(file)) if file.state == State::Unfinished && file.lineage == lineage => {
            Ok(Found::Unfinished)
        }
        Ok(Some(file)) if file.state == State::Complete => Err(Error::refused(
            format!(
                "{} holds a finished restore of cluster {}",
                target.display(),
                file.cluster
            ),
            "Remove the directory, or name another.",
        )),
        Ok(Some(file)) => Err(Error::refused(
            format!(
                "{} holds an unfinished restore of cluster {}",
                target.display(),
                file.cluster
            ),
            "Remove the directory, or name another.",
        )),
        Ok(None) | Err(_) => Err(Error::refused(
            format!("{} is not empty", target.display()),
            "Name a directory that does not exist yet or is empty; nothing was written.",
        )),
    }
}

/// Looks at the target of a delta: what any restore takes, and data directories of `server`.
pub fn inspect_delta(target: &Path, lineage: LineageId, server: &ServerState) -> Result<Found> {
    let refused = match inspect(target, lineage) {
        Err(refused) if target.is_dir() => refused,
        looked => return looked,
    };
    match RecoveryFile::load(target) {
        // Nobody can tell any more whose directory it was.
        Ok(Some(file)) if file.state == State::Unfinished => Err(refused),
        _ => Ok(Found::Existing(Box::new(recognise(target, server)?))),
    }
}

/// Whether a delta was interrupted between moving the control file away and putting its mark in place.
fn is_between_marks(target: &Path, lineage: LineageId) -> bool {
    let staged = RecoveryFile::read(&target.join(staged_mark()));
    let unfinished = matches!(staged, Ok(Some(file)) if file.state == State::Unfinished && file.lineage == lineage);
    unfinished && target.join(MOVED_CONTROL_FILE).exists() && !target.join(CONTROL_FILE).exists()
}

/// Makes a data directory that is there into an unfinished restore. The control file is moved away, after
/// which no server starts, before the mark is put in place, after which nobody asks any more whose directory
/// it is; each step is durable before the next.
///
/// # Errors
/// Refused where a server was started meanwhile; the directory is then as it was.
pub fn take_over(target: &Path, mark: &[u8]) -> Result<()> {
    let staged = target.join(staged_mark());
    // Whatever bears its name, a link perhaps, is not written through.
    match std::fs::remove_file(&staged) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).at("remove", &staged);
        }
        _ => write_file(&staged, mark, None)?,
    }
    sync(target)?;
    let (control, moved) = (target.join(CONTROL_FILE), target.join(MOVED_CONTROL_FILE));
    if control.exists() {
        std::fs::rename(&control, &moved).at("move away", &control)?;
        // A server makes its lock file before it reads the control file (`PostmasterMain`).
        if let Err(in_use) = refuse_in_use(target) {
            std::fs::rename(&moved, &control).at("put back", &control)?;
            std::fs::remove_file(&staged).at("remove", &staged)?;
            return Err(in_use);
        }
        sync(&target.join("global"))?;
    }
    let placed = target.join(RECOVERY_FILE);
    std::fs::rename(&staged, &placed).at("put in place", &placed)?;
    sync(target)
}

/// Whether a directory is empty but for a mark that was never put in place.
fn holds_nothing(target: &Path) -> Result<bool> {
    let staged = staged_mark();
    for entry in std::fs::read_dir(target).at("list", target)? {
        let entry = entry.at("list", target)?;
        if entry.file_name() != *staged {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Removes what an unfinished restore left, the mark that it is ours last of all, so that an
/// interruption here leaves a directory that is still known as ours.
pub fn clear(target: &Path) -> Result<()> {
    for entry in std::fs::read_dir(target).at("list", target)? {
        let entry = entry.at("list", target)?;
        let path = entry.path();
        // The mark that this is ours, and the links by which the places of tablespaces are ours.
        if entry.file_name() == RECOVERY_FILE {
            continue;
        }
        if entry.file_name() == "pg_tblspc" {
            remove_in_place_tablespaces(&path)?;
            continue;
        }
        if entry.file_type().at("look at", &path)?.is_dir() {
            std::fs::remove_dir_all(&path).at("remove", &path)?;
        } else {
            std::fs::remove_file(&path).at("remove", &path)?;
        }
    }
    Ok(())
}

/// Tablespaces that are directories and not links (`allow_in_place_tablespaces`).
fn remove_in_place_tablespaces(directory: &Path) -> Result<()> {
    for entry in std::fs::read_dir(directory).at("list", directory)? {
        let entry = entry.at("list", directory)?;
        let path = entry.path();
        if entry.file_type().at("look at", &path)?.is_dir() {
            std::fs::remove_dir_all(&path).at("remove", &path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_base::{Branch, ErrorKind, Position};

    const LINEAGE: LineageId = LineageId([7; 16]);

    fn mark(directory: &Path, state: State) {
        let file = RecoveryFile {
            state,
            cluster: "sales".into(),
            lineage: LINEAGE,
            repository: "/srv/backup".into(),
            key_file: None,
            key: None,
            branch: Branch(1),
            log_start: Position(1),
            log_in_place: None,
            log_end: None,
            segment_size: 16 << 20,
            directory: None,
        };
        let text = serde_json::to_vec(&file).unwrap();
        std::fs::write(directory.join(RECOVERY_FILE), text).unwrap();
    }

    #[test]
    fn absent_and_empty_are_taken() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(inspect(directory.path(), LINEAGE).unwrap(), Found::Nothing);
        assert_eq!(
            inspect(&directory.path().join("new"), LINEAGE).unwrap(),
            Found::Nothing
        );
    }

    #[test]
    fn a_live_data_directory_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("PG_VERSION"), "15\n").unwrap();
        let error = inspect(directory.path(), LINEAGE).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(directory.path().join("PG_VERSION").exists());
    }

    #[test]
    fn only_our_own_unfinished_restore_is_taken_again() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("base")).unwrap();
        mark(directory.path(), State::Unfinished);
        assert_eq!(
            inspect(directory.path(), LINEAGE).unwrap(),
            Found::Unfinished
        );
        assert!(inspect(directory.path(), LineageId([8; 16])).is_err());
        clear(directory.path()).unwrap();
        assert_eq!(
            inspect(directory.path(), LINEAGE).unwrap(),
            Found::Unfinished
        );
        assert!(!directory.path().join("base").exists());
        mark(directory.path(), State::Complete);
        assert!(inspect(directory.path(), LINEAGE).is_err());
    }

    #[test]
    fn a_delta_that_was_cut_off_at_any_step_is_known_as_unfinished_or_untouched() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path();
        std::fs::create_dir(target.join("global")).unwrap();
        let write = |name: &str, text: &str| std::fs::write(target.join(name), text).unwrap();
        write("PG_VERSION", "15\n");
        write(CONTROL_FILE, "control");
        // Before the control file is moved, it is as it was, whatever was staged.
        mark(target, State::Unfinished);
        std::fs::rename(target.join(RECOVERY_FILE), target.join(staged_mark())).unwrap();
        assert!(
            inspect(target, LINEAGE).is_err(),
            "a data directory is not ours"
        );
        // After it no server starts there, and it is ours.
        std::fs::rename(target.join(CONTROL_FILE), target.join(MOVED_CONTROL_FILE)).unwrap();
        assert_eq!(inspect(target, LINEAGE).unwrap(), Found::Unfinished);
        assert!(inspect(target, LineageId([8; 16])).is_err());
        let text = std::fs::read(target.join(staged_mark())).unwrap();
        take_over(target, &text).unwrap();
        assert_eq!(inspect(target, LINEAGE).unwrap(), Found::Unfinished);
        assert!(!target.join(staged_mark()).exists());
    }

    #[test]
    fn a_server_that_starts_while_a_delta_begins_keeps_its_directory() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path();
        std::fs::create_dir(target.join("global")).unwrap();
        std::fs::write(target.join(CONTROL_FILE), "control").unwrap();
        // A lock file that is still empty is that of a server which is just starting.
        std::fs::write(target.join("postmaster.pid"), "").unwrap();
        let error = take_over(target, b"{}").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert_eq!(
            std::fs::read(target.join(CONTROL_FILE)).unwrap(),
            b"control"
        );
        assert!(!target.join(staged_mark()).exists());
        assert!(!target.join(RECOVERY_FILE).exists());
    }

    #[test]
    fn a_restore_that_could_not_even_make_its_mark_is_begun_again() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(staged_mark()), "{").unwrap();
        assert_eq!(inspect(directory.path(), LINEAGE).unwrap(), Found::Nothing);
        std::fs::write(directory.path().join("theirs"), "x").unwrap();
        assert!(inspect(directory.path(), LINEAGE).is_err());
    }

    #[test]
    fn a_target_inside_a_data_directory_or_the_repository_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path().canonicalize().unwrap();
        let (data, repository, link) = (top.join("data"), top.join("r"), top.join("link"));
        std::fs::create_dir_all(data.join("base")).unwrap();
        std::fs::create_dir(&repository).unwrap();
        std::fs::write(data.join("PG_VERSION"), "15\n").unwrap();
        std::os::unix::fs::symlink(&data, &link).unwrap();
        for inside in ["data/x", "data/base/x", "data/new/er", "link/x"] {
            let error = refuse_inside(&top.join(inside), Some(&repository)).unwrap_err();
            assert!(error.to_string().contains("data directory"), "{error}");
        }
        let error = refuse_inside(&repository.join("x"), Some(&repository)).unwrap_err();
        assert!(error.to_string().contains("repository"), "{error}");
        for beside in ["x", "data", "r", "r2/x"] {
            assert!(refuse_inside(&top.join(beside), Some(&repository)).is_ok());
        }
    }

    #[test]
    fn a_file_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(inspect(file.path(), LINEAGE).is_err());
    }
}
