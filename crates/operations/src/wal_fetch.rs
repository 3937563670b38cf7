//! PostgreSQL's `restore_command`: puts one file of the log where the recovering server wants it.
//!
//! Three answers, and they must never be mixed up: served; proven not to be needed, which ends
//! recovery; not known, which must stop it. Run by the server in its data directory.

use std::path::Path;

use borealis_base::{Branch, ErrorKind, Position};
use borealis_pg_format::segment::SegmentSize;
use borealis_repository::Lineage;
use borealis_repository::log::pieces_of;
use borealis_repository::plan::LineageState;

use crate::error::{Error, Result};
use crate::restore::files::write_file;
use crate::restore::log::write_segment;
use crate::restore::recovery_file::{Answer, RecoveryFile};

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetched {
    /// The file is in place.
    Served,
    /// The file is not needed: why.
    Absent(String),
}

/// Reads the plan in `data_dir` and decides what it can alone. A restore lays the log that it needs
/// into `pg_wal`; of a file that is there the answer is "absent", upon which PostgreSQL takes it from
/// there (`XLogFileReadAnyTLI` in `xlogrecovery.c`), and no repository or key is needed.
pub fn decide(data_dir: &Path, file: &str) -> Result<(RecoveryFile, Answer)> {
    let plan = RecoveryFile::load(data_dir)
        .map_err(|source| Error::File {
            action: "read the plan of the restore in",
            path: data_dir.to_owned(),
            source,
        })?
        .ok_or_else(|| {
            Error::refused(
                format!("{} was not restored by borealis", shown(data_dir)),
                "borealis wal fetch is run by a restored server, in its data directory.",
            )
        })?;
    let answer = match plan.answer(file) {
        Answer::Segment { .. } | Answer::History(_)
            if data_dir.join("pg_wal").join(file).is_file() =>
        {
            Answer::Absent("it lies in pg_wal")
        }
        // Every history that the repository knows was laid into pg_wal.
        Answer::History(_) if plan.log_end.is_some() => Answer::Absent("there is no such timeline"),
        answer => answer,
    };
    if answer == Answer::Unknown {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("`{file}` is not a file of the log"),
        ));
    }
    Ok((plan, answer))
}

/// The directory as a person knows it: the server runs its restore command in `.`.
fn shown(data_dir: &Path) -> String {
    std::path::absolute(data_dir)
        .as_deref()
        .unwrap_or(data_dir)
        .display()
        .to_string()
}

/// Serves what only the repository has.
pub async fn serve(
    lineage: &Lineage,
    plan: &RecoveryFile,
    answer: &Answer,
    target: &Path,
) -> Result<Fetched> {
    let size = u32::try_from(plan.segment_size)
        .ok()
        .and_then(SegmentSize::new)
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Damaged,
                "the plan of the restore names an impossible segment size",
            )
        })?;
    match answer {
        Answer::Absent(why) => Ok(Fetched::Absent((*why).to_owned())),
        Answer::Unknown => Err(Error::new(ErrorKind::Usage, "not a file of the log")),
        Answer::History(branch) => {
            let state = lineage.load_state().await?;
            match state.branches.get(branch) {
                Some(summary) => {
                    write_file(target, &summary.history, None)?;
                    Ok(Fetched::Served)
                }
                None => Ok(Fetched::Absent(format!(
                    "the repository knows no timeline {branch}"
                ))),
            }
        }
        Answer::Segment { branch, start, end } => {
            let state = lineage.load_state().await?;
            let pieces = pieces_of(&state, *branch, *start, *end)?;
            write_segment(lineage, pieces, *start, size, target).await?;
            Ok(Fetched::Served)
        }
        Answer::AskRepository { branch, start } => {
            let state = lineage.load_state().await?;
            let end = start.plus(size.bytes()).min(log_end(&state, *branch));
            if end <= *start {
                return Ok(Fetched::Absent("the log does not go as far yet".to_owned()));
            }
            let pieces = pieces_of(&state, *branch, *start, end)?;
            write_segment(lineage, pieces, *start, size, target).await?;
            Ok(Fetched::Served)
        }
    }
}

fn log_end(state: &LineageState, branch: Branch) -> Position {
    let own = state.pieces.iter().filter(|piece| piece.branch == branch);
    own.map(|piece| piece.end).max().unwrap_or(Position::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::recovery_file::{RECOVERY_FILE, State};
    use borealis_base::LineageId;

    fn data_dir() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let plan = RecoveryFile {
            state: State::Complete,
            cluster: "sales".into(),
            lineage: LineageId([7; 16]),
            repository: "/srv/backup".into(),
            key_file: None,
            branch: Branch(1),
            log_start: Position(0x0100_0028),
            log_end: Some(Position(0x0380_0000)),
            segment_size: 16 << 20,
        };
        let text = serde_json::to_vec(&plan).unwrap();
        std::fs::write(directory.path().join(RECOVERY_FILE), text).unwrap();
        std::fs::create_dir(directory.path().join("pg_wal")).unwrap();
        std::fs::write(
            directory.path().join("pg_wal/000000010000000000000001"),
            b"log",
        )
        .unwrap();
        directory
    }

    #[test]
    fn log_that_lies_in_place_needs_no_repository() {
        let directory = data_dir();
        let answer = |file| decide(directory.path(), file).unwrap().1;
        assert_eq!(
            answer("000000010000000000000001"),
            Answer::Absent("it lies in pg_wal")
        );
        assert!(matches!(
            answer("000000010000000000000002"),
            Answer::Segment { .. }
        ));
        assert!(matches!(
            answer("000000010000000000000004"),
            Answer::Absent(_)
        ));
        assert!(matches!(answer("00000002.history"), Answer::Absent(_)));
    }

    #[test]
    fn could_not_look_is_not_absence() {
        let directory = data_dir();
        assert!(decide(directory.path(), "nonsense").is_err());
        let elsewhere = tempfile::tempdir().unwrap();
        assert!(decide(elsewhere.path(), "000000010000000000000001").is_err());
        std::fs::write(directory.path().join(RECOVERY_FILE), b"{").unwrap();
        assert!(decide(directory.path(), "000000010000000000000001").is_err());
    }
}
