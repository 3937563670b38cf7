//! What a restored data directory knows of its own restore: the file that `borealis wal fetch` reads
//! in the data directory to answer PostgreSQL, and the rule by which it answers. Pure but for the
//! file itself.
//!
//! The answer "not there" ends recovery, and on a damaged or half-written answer a server would come
//! up too early, promoted, without the last transactions. So "proven absent" is said only of files
//! whose absence follows from the plan of the restore.

use std::path::{Path, PathBuf};

use borealis_base::{Branch, LineageId, Position};
use borealis_pg_format::segment::{LogFile, SegmentSize};
use serde::{Deserialize, Serialize};

use super::target_dir::staged_mark;

/// The file's name in the data directory. While the restore is unfinished it also marks the
/// directory as ours.
pub const RECOVERY_FILE: &str = "borealis_restore.json";

/// How far a restore has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Files are being written: nobody may start this directory, and it may be restored into again.
    Unfinished,
    /// Every file is in place.
    Complete,
}

/// The contents of [`RECOVERY_FILE`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryFile {
    /// How far the restore has come.
    pub state: State,
    /// The cluster that was restored.
    pub cluster: String,
    /// Its lineage. A server that finds itself in this directory is a child of that lineage and must
    /// never ship log into it.
    pub lineage: LineageId,
    /// Where the restore came from.
    pub repository: String,
    /// The key file, for a standby that goes on fetching.
    pub key_file: Option<PathBuf>,
    /// The key's name, for a standby that goes on fetching with a key that is no file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The branch that recovery follows.
    pub branch: Branch,
    /// First log position needed.
    pub log_start: Position,
    /// Whole segments before this position were laid into `pg_wal`; `None` where nothing is known of
    /// that. What else lies there may be short, or an old file under a later name.
    #[serde(default)]
    pub log_in_place: Option<Position>,
    /// Where the log is cut: recovery must not see a byte at or past this. `None` for a standby, which
    /// goes on as long as there is log.
    pub log_end: Option<Position>,
    /// Bytes in a log segment.
    pub segment_size: u64,
    /// The directory that the restore was made in. A copy of it lies elsewhere, and what its links lead to
    /// is not its own; `None` where nothing is known of that.
    #[serde(default)]
    pub directory: Option<PathBuf>,
}

/// What to answer to a request for a log file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Serve these log positions as the file, zeros from `end` to the segment's end.
    Segment {
        /// The branch.
        branch: Branch,
        /// First position of the segment.
        start: Position,
        /// Where its bytes end: the segment's end, or the cut.
        end: Position,
    },
    /// Serve the history of this branch.
    History(Branch),
    /// The restore is known not to need it.
    Absent(&'static str),
    /// Only the repository knows: ask it for this segment.
    AskRepository {
        /// The branch.
        branch: Branch,
        /// First position of the segment.
        start: Position,
    },
    /// Not a file that recovery asks for.
    Unknown,
}

impl RecoveryFile {
    /// Reads the file of a data directory. `Ok(None)` where there is none.
    pub fn load(data_dir: &Path) -> std::io::Result<Option<Self>> {
        Self::read(&data_dir.join(RECOVERY_FILE))
    }

    /// The mark in a data directory, in place or about to be put there; `None` where none can be read.
    pub fn load_any(data_dir: &Path) -> Option<Self> {
        let [placed, staged] = [RECOVERY_FILE.to_owned(), staged_mark()]
            .map(|name| Self::read(&data_dir.join(name)).ok().flatten());
        placed.or(staged)
    }

    /// Reads such a file. `Ok(None)` where there is none.
    pub fn read(path: &Path) -> std::io::Result<Option<Self>> {
        match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(std::io::Error::other),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Decides about `file`, PostgreSQL's `%f`.
    pub fn answer(&self, file: &str) -> Answer {
        let Some(size) = u32::try_from(self.segment_size)
            .ok()
            .and_then(SegmentSize::new)
        else {
            return Answer::Unknown;
        };
        match LogFile::parse(file, size) {
            Some(LogFile::Segment { timeline, number }) => {
                self.segment(timeline, size.start_of(number))
            }
            Some(LogFile::History(branch)) if branch > self.branch && self.log_end.is_some() => {
                // PostgreSQL probes for newer timelines to choose its own new number; this restore
                // follows one branch, and what came after it is not part of the plan.
                Answer::Absent("a timeline after the one that this restore follows")
            }
            Some(LogFile::History(branch)) => Answer::History(branch),
            Some(LogFile::Partial { .. } | LogFile::BackupHistory { .. }) => {
                Answer::Absent("not a file that this restore is made of")
            }
            None => Answer::Unknown,
        }
    }

    fn segment(&self, branch: Branch, start: Position) -> Answer {
        let segment_end = start.plus(self.segment_size);
        match self.log_end {
            // A standby follows its parent's promotions.
            None => Answer::AskRepository { branch, start },
            Some(_) if branch > self.branch => {
                Answer::Absent("on a timeline after the one that this restore follows")
            }
            Some(end) if start >= end => Answer::Absent("past the position that is restored to"),
            Some(_) if segment_end <= self.log_start => {
                Answer::Absent("before the log that this restore replays")
            }
            Some(end) => Answer::Segment {
                branch,
                start,
                end: segment_end.min(end),
            },
        }
    }
}

impl RecoveryFile {
    /// Whether the segment that begins at `start`, if `pg_wal` has a file of its name, is the one that the
    /// restore laid there, with all that recovery may see of it. A standby must also see what came later,
    /// and the server makes new files there out of old ones (`RemoveOldXlogFiles` in `xlog.c`).
    pub fn is_in_place(&self, start: Position) -> bool {
        let end = start.plus(self.segment_size);
        self.log_end.is_some() || self.log_in_place.is_some_and(|until| end <= until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(log_end: Option<u64>) -> RecoveryFile {
        RecoveryFile {
            state: State::Complete,
            cluster: "sales".into(),
            lineage: LineageId([7; 16]),
            repository: "/srv/backup".into(),
            key_file: None,
            key: None,
            branch: Branch(2),
            log_start: Position(0x0100_0028),
            log_in_place: None,
            log_end: log_end.map(Position),
            segment_size: 16 << 20,
            directory: None,
        }
    }

    #[test]
    fn the_segment_with_the_cut_is_served_short() {
        assert_eq!(
            plan(Some(0x0280_0000)).answer("000000020000000000000002"),
            Answer::Segment {
                branch: Branch(2),
                start: Position(0x0200_0000),
                end: Position(0x0280_0000)
            }
        );
        assert_eq!(
            plan(Some(0x0280_0000)).answer("000000020000000000000001"),
            Answer::Segment {
                branch: Branch(2),
                start: Position(0x0100_0000),
                end: Position(0x0200_0000)
            }
        );
    }

    #[test]
    fn absence_is_said_only_of_what_the_plan_excludes() {
        let plan = plan(Some(0x0300_0000));
        for file in [
            "000000020000000000000003",
            "000000030000000000000002",
            "00000003.history",
        ] {
            assert!(matches!(plan.answer(file), Answer::Absent(_)), "{file}");
        }
        assert_eq!(plan.answer("00000002.history"), Answer::History(Branch(2)));
        for file in [
            "",
            "000000020000000000000GGG",
            "../../etc/passwd",
            "base/1/1",
        ] {
            assert_eq!(plan.answer(file), Answer::Unknown, "{file}");
        }
    }

    #[test]
    fn a_standby_asks_the_repository_for_what_comes_after() {
        assert_eq!(
            plan(None).answer("000000020000000000000009"),
            Answer::AskRepository {
                branch: Branch(2),
                start: Position(0x0900_0000)
            }
        );
        // After a promotion of its parent, too.
        assert!(matches!(
            plan(None).answer("000000030000000000000009"),
            Answer::AskRepository { .. }
        ));
    }

    #[test]
    fn the_file_is_read_back_as_written() {
        let file = plan(Some(5));
        let text = serde_json::to_string_pretty(&file).unwrap();
        assert_eq!(serde_json::from_str::<RecoveryFile>(&text).unwrap(), file);
    }
}
