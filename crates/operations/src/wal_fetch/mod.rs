//! PostgreSQL's `restore_command`: puts one file of the log where the recovering server wants it.
//!
//! Three answers, and they must never be mixed up: served; proven not to be needed, which ends
//! recovery; not known, which must stop it. Run by the server in its data directory, once for each file.
//!
//! ```text
//! decide:  plan → lies in pg_wal? → fetched ahead? ──yes──▶ moved into place
//!                                        │ no
//! serve:   repository → ledger → log pieces → target ──▶ one process is started that fetches ahead
//! ```

pub mod prefetch;
pub mod spool;

use std::path::{Path, PathBuf};

use borealis_base::{Branch, ErrorKind, Position};
use borealis_pg_format::segment::{LogFile, SegmentSize};
use borealis_repository::Lineage;
use borealis_repository::log::pieces_of;
use borealis_repository::plan::{LineageState, PieceRange};

use crate::error::{Error, FileContext, Result};
use crate::restore::files::write_file;
use crate::restore::log::write_segment;
use crate::restore::recovery_file::{Answer, RecoveryFile};
use crate::restore::tablespaces;
use spool::{Segment, Spool};

/// The files that say that a server is to recover (`xlogrecovery.c`); it removes them when it has.
const SIGNALS: [&str; 2] = ["recovery.signal", "standby.signal"];

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetched {
    /// The file is in place.
    Served,
    /// The file is not needed: why.
    Absent(String),
}

/// What is known without the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// All that is needed.
    Known(Fetched),
    /// Only the repository has the answer.
    Ask(Box<Question>),
}

/// A request that the repository must answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The plan of the restore.
    pub plan: RecoveryFile,
    /// What is asked for.
    pub answer: Answer,
    /// The server's data directory.
    pub data_dir: PathBuf,
}

/// Reads the plan of the restore in `data_dir`.
pub fn load_plan(data_dir: &Path) -> Result<(RecoveryFile, SegmentSize)> {
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
    let size = u32::try_from(plan.segment_size)
        .ok()
        .and_then(SegmentSize::new)
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Damaged,
                "the plan of the restore names an impossible segment size",
            )
        })?;
    Ok((plan, size))
}

/// The directory as a person knows it: the server runs its restore command in `.`.
fn shown(data_dir: &Path) -> String {
    std::path::absolute(data_dir)
        .as_deref()
        .unwrap_or(data_dir)
        .display()
        .to_string()
}

/// Whether the server in `data_dir` is still to recover.
pub fn is_recovering(data_dir: &Path) -> bool {
    SIGNALS.iter().any(|name| data_dir.join(name).exists())
}

/// Decides what it can without the repository and its key: a restore lays the log that it needs into
/// `pg_wal`; of a file that is there the answer is "absent", upon which PostgreSQL takes it from there
/// (`XLogFileReadAnyTLI` in `xlogrecovery.c`). A segment that was fetched ahead is moved to `target`.
pub async fn decide(data_dir: &Path, file: &str, target: &Path) -> Result<Decision> {
    let (plan, size) = load_plan(data_dir)?;
    let absent = |why: &str| Ok(Decision::Known(Fetched::Absent(why.to_owned())));
    let lies_in_pg_wal = data_dir.join("pg_wal").join(file).is_file();
    let answer = plan.answer(file);
    match answer {
        Answer::Unknown => {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("`{file}` is not a file of the log"),
            ));
        }
        Answer::Absent(why) => return absent(why),
        Answer::History(_) if lies_in_pg_wal => return absent("it lies in pg_wal"),
        // Every history that the repository knows was laid into pg_wal.
        Answer::History(_) if plan.log_end.is_some() => return absent("there is no such timeline"),
        // The first timeline has none, and a server that is promoted asks for it nevertheless.
        Answer::History(Branch(1)) => return absent("the first timeline has no history"),
        Answer::History(_) => {}
        // Histories are asked for until the end of a promotion, when the signal files are gone already.
        _ if !is_recovering(data_dir) => {
            return Err(Error::refused(
                format!("recovery of {} has ended", data_dir.display()),
                "A server that was promoted has a history of its own: it takes no log from its parent any more.",
            ));
        }
        Answer::Segment { branch, start, .. } | Answer::AskRepository { branch, start } => {
            let segment = Segment {
                branch,
                number: size.number_of(start),
            };
            let spool = Spool::of(data_dir, &plan, size);
            if lies_in_pg_wal && plan.is_in_place(start) {
                note(&spool, after(segment));
                return absent("it lies in pg_wal");
            }
            note(&spool, segment);
            if may_take(data_dir, &plan, size, segment) {
                match spool.take_when_there(segment, target).await {
                    Ok(true) => {
                        note(&spool, after(segment));
                        return Ok(Decision::Known(Fetched::Served));
                    }
                    Ok(false) => {}
                    Err(error) => tracing::warn!(%error, "log fetched ahead can't be used"),
                }
            }
        }
    }
    Ok(Decision::Ask(Box::new(Question {
        plan,
        answer,
        data_dir: data_dir.to_owned(),
    })))
}

fn after(segment: Segment) -> Segment {
    Segment {
        number: segment.number + 1,
        ..segment
    }
}

/// Says which segment comes next. Without it nothing is fetched ahead, which is slower and not wrong.
fn note(spool: &Spool, next: Segment) {
    if let Err(error) = spool.expect(next) {
        tracing::warn!(%error, "no log is fetched ahead");
    }
}

/// Whether what was fetched ahead may be used: whole segments within the plan, and not where the server
/// knows of a later timeline, which only the repository can tell from one of the server's own.
fn may_take(data_dir: &Path, plan: &RecoveryFile, size: SegmentSize, segment: Segment) -> bool {
    let end = size.start_of(segment.number + 1);
    plan.log_end.is_none_or(|cut| end <= cut)
        && histories(data_dir, size)
            .is_ok_and(|branches| branches.iter().all(|branch| *branch <= segment.branch))
}

/// The timelines whose history lies in `pg_wal`.
fn histories(data_dir: &Path, size: SegmentSize) -> Result<Vec<Branch>> {
    let directory = data_dir.join("pg_wal");
    let mut branches = Vec::new();
    for entry in std::fs::read_dir(&directory).at("list", &directory)? {
        let name = entry.at("list", &directory)?.file_name();
        if let Some(LogFile::History(branch)) = LogFile::parse(&name.to_string_lossy(), size) {
            branches.push(branch);
        }
    }
    Ok(branches)
}

/// Refuses a server that has a timeline of its own: the repository's log of the same number is another
/// server's.
fn refuse_promoted(
    data_dir: &Path,
    plan: &RecoveryFile,
    size: SegmentSize,
    state: &LineageState,
) -> Result<()> {
    for branch in histories(data_dir, size)? {
        if branch <= plan.branch {
            continue;
        }
        let name = LogFile::History(branch).name(size);
        let path = data_dir.join("pg_wal").join(&name);
        let own = std::fs::read(&path).at("read", &path)?;
        if state
            .branches
            .get(&branch)
            .is_none_or(|known| known.history != own)
        {
            return Err(Error::refused(
                format!(
                    "{} has been promoted to a timeline {branch} of its own",
                    data_dir.display()
                ),
                "It can't follow its parent any more; restore another standby.",
            ));
        }
    }
    Ok(())
}

/// Serves what only the repository has. The second value says whether the segment behind it could be
/// fetched ahead.
pub async fn serve(
    lineage: &Lineage,
    question: &Question,
    target: &Path,
) -> Result<(Fetched, bool)> {
    let (plan, data_dir) = (&question.plan, question.data_dir.as_path());
    let (_, size) = load_plan(data_dir)?;
    let state = lineage.load_stored_state().await?;
    refuse_promoted(data_dir, plan, size, &state)?;
    let absent = |why: String| Ok((Fetched::Absent(why), false));
    let (branch, start, end) = match question.answer {
        Answer::Absent(why) => return absent(why.to_owned()),
        Answer::Unknown => return Err(Error::new(ErrorKind::Usage, "not a file of the log")),
        Answer::History(branch) => {
            return match state.branches.get(&branch) {
                Some(summary) => {
                    write_file(target, &summary.history, None)?;
                    Ok((Fetched::Served, false))
                }
                None => absent(format!("the repository knows no timeline {branch}")),
            };
        }
        Answer::Segment { branch, start, end } => (branch, start, end),
        Answer::AskRepository { branch, start } => {
            let end = start.plus(size.bytes()).min(log_end(&state, branch));
            if end <= start {
                return absent("the log does not go as far yet".to_owned());
            }
            (branch, start, end)
        }
    };
    let pieces = pieces_of(&state, branch, start, end)?;
    refuse_tablespaces(lineage, plan, data_dir, &pieces).await?;
    write_segment(lineage, pieces, start, size, target).await?;
    let next = after(Segment {
        branch,
        number: size.number_of(start),
    });
    note(&Spool::of(data_dir, plan, size), next);
    let more = end == start.plus(size.bytes()) && whole(&state, plan, size, next).is_some();
    Ok((Fetched::Served, more))
}

fn log_end(state: &LineageState, branch: Branch) -> Position {
    let own = state.pieces.iter().filter(|piece| piece.branch == branch);
    own.map(|piece| piece.end).max().unwrap_or(Position::ZERO)
}

/// The pieces of a segment that may be fetched ahead: its log is durable from end to end, it lies before
/// the cut of the plan, and no other timeline leaves this one before its end.
fn whole(
    state: &LineageState,
    plan: &RecoveryFile,
    size: SegmentSize,
    segment: Segment,
) -> Option<Vec<PieceRange>> {
    let Segment { branch, number } = segment;
    let (start, end) = (size.start_of(number), size.start_of(number + 1));
    let leaves = state.branches.values().filter(|next| next.parent == branch);
    let reach = leaves
        .map(|next| next.at)
        .chain(plan.log_end)
        .fold(log_end(state, branch), Position::min);
    if end > reach {
        return None;
    }
    pieces_of(state, branch, start, end).ok()
}

/// A standby replays log that nobody has looked at before: refuses log that would make it write into a
/// directory that something else uses. The plan of a restore with an end has been checked before.
async fn refuse_tablespaces(
    lineage: &Lineage,
    plan: &RecoveryFile,
    data_dir: &Path,
    pieces: &[PieceRange],
) -> Result<()> {
    if plan.log_end.is_some() {
        return Ok(());
    }
    let created = tablespaces::created(lineage, pieces).await?;
    tablespaces::refuse_taken(&created, data_dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::recovery_file::{RECOVERY_FILE, State};
    use borealis_base::LineageId;
    use borealis_base::RecordSpan;
    use borealis_repository::plan::{BranchSummary, PieceSummary};
    use std::collections::BTreeMap;

    const SIZE: SegmentSize = SegmentSize::DEFAULT;
    const CUT: Position = Position(0x0380_0000);

    fn plan(log_end: Option<Position>) -> RecoveryFile {
        RecoveryFile {
            state: State::Complete,
            cluster: "sales".into(),
            lineage: LineageId([7; 16]),
            repository: "/srv/backup".into(),
            key_file: None,
            key: None,
            branch: Branch(1),
            log_start: Position(0x0100_0028),
            log_in_place: Some(CUT),
            log_end,
            segment_size: SIZE.bytes(),
            directory: None,
        }
    }

    struct Place(tempfile::TempDir);

    impl Place {
        fn new(log_end: Option<Position>) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let text = serde_json::to_vec(&plan(log_end)).unwrap();
            std::fs::write(directory.path().join(RECOVERY_FILE), text).unwrap();
            std::fs::write(directory.path().join("standby.signal"), "").unwrap();
            let place = Self(directory);
            std::fs::create_dir(place.path("pg_wal")).unwrap();
            for number in 1..=3 {
                std::fs::write(place.path(&format!("pg_wal/{}", name(number))), b"log").unwrap();
            }
            place
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        async fn decide(&self, file: &str) -> Result<Decision> {
            decide(self.0.path(), file, &self.path("pg_wal/RECOVERYXLOG")).await
        }

        fn fetched_ahead(&self, number: u64) {
            let spool = Spool::of(self.0.path(), &plan(None), SIZE);
            let segment = Segment {
                branch: Branch(1),
                number,
            };
            let lock = spool.lock().unwrap().unwrap();
            let bytes = vec![1; 16 << 20];
            std::fs::write(spool.staged(segment), &bytes).unwrap();
            spool.put(&lock, segment, crc32c::crc32c(&bytes)).unwrap();
        }
    }

    fn name(number: u64) -> String {
        let timeline = Branch(1);
        LogFile::Segment { timeline, number }.name(SIZE)
    }

    fn is_absent(decision: &Decision) -> bool {
        matches!(decision, Decision::Known(Fetched::Absent(_)))
    }

    #[tokio::test]
    async fn log_that_lies_in_place_needs_no_repository() {
        let place = Place::new(Some(CUT));
        assert!(is_absent(&place.decide(&name(1)).await.unwrap()));
        assert!(is_absent(&place.decide(&name(4)).await.unwrap()));
        assert!(is_absent(&place.decide("00000002.history").await.unwrap()));
        std::fs::remove_file(place.path(&format!("pg_wal/{}", name(2)))).unwrap();
        assert!(matches!(
            place.decide(&name(2)).await.unwrap(),
            Decision::Ask(question) if matches!(question.answer, Answer::Segment { .. })
        ));
    }

    #[tokio::test]
    async fn a_standby_is_not_left_with_the_short_or_recycled_segment_in_pg_wal() {
        let place = Place::new(None);
        // The third is the one that was cut at the target; the server recycles old files as later ones.
        std::fs::write(place.path(&format!("pg_wal/{}", name(9))), b"recycled").unwrap();
        assert!(is_absent(&place.decide(&name(2)).await.unwrap()));
        for number in [3, 9] {
            assert!(matches!(
                place.decide(&name(number)).await.unwrap(),
                Decision::Ask(_)
            ));
        }
    }

    #[tokio::test]
    async fn log_fetched_ahead_needs_no_repository() {
        let place = Place::new(None);
        place.fetched_ahead(5);
        assert_eq!(
            place.decide(&name(5)).await.unwrap(),
            Decision::Known(Fetched::Served)
        );
        let served = std::fs::metadata(place.path("pg_wal/RECOVERYXLOG")).unwrap();
        assert_eq!(served.len(), SIZE.bytes());
        assert!(matches!(
            place.decide(&name(5)).await.unwrap(),
            Decision::Ask(_)
        ));
    }

    #[tokio::test]
    async fn log_fetched_ahead_is_stale_after_a_promotion() {
        let place = Place::new(None);
        place.fetched_ahead(5);
        std::fs::write(place.path("pg_wal/00000002.history"), "1\t0/5000000\tx\n").unwrap();
        assert!(matches!(
            place.decide(&name(5)).await.unwrap(),
            Decision::Ask(_)
        ));
        std::fs::remove_file(place.path("standby.signal")).unwrap();
        // The last thing that a server asks for while it is promoted.
        assert!(is_absent(&place.decide("00000001.history").await.unwrap()));
        let error = place.decide(&name(5)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(!place.path("pg_wal/RECOVERYXLOG").exists());
    }

    #[tokio::test]
    async fn could_not_look_is_not_absence() {
        let place = Place::new(Some(CUT));
        assert!(place.decide("nonsense").await.is_err());
        let elsewhere = tempfile::tempdir().unwrap();
        assert!(
            decide(elsewhere.path(), &name(1), Path::new("x"))
                .await
                .is_err()
        );
        std::fs::write(place.path(RECOVERY_FILE), b"{").unwrap();
        assert!(place.decide(&name(1)).await.is_err());
    }

    fn piece(branch: u32, from: u64, to: u64) -> PieceSummary {
        PieceSummary {
            entry: from,
            recorded_at: borealis_base::Timestamp(0),
            branch: Branch(branch),
            start: SIZE.start_of(from),
            end: SIZE.start_of(to),
            settled_before: None,
            settled_after: None,
            last_record: None::<RecordSpan>,
            resume_at: SIZE.start_of(to),
            stored_bytes: 1,
            head_digest: [0; 32],
            engine: None,
            merged: None,
        }
    }

    fn state(pieces: Vec<PieceSummary>, forks: &[(u32, u64)]) -> LineageState {
        let branches: BTreeMap<_, _> = forks
            .iter()
            .map(|(branch, at)| {
                let summary = BranchSummary {
                    entry: 1,
                    parent: Branch(1),
                    at: Position(*at),
                    history: bytes::Bytes::from_static(b"h"),
                };
                (Branch(*branch), summary)
            })
            .collect();
        LineageState {
            pieces,
            branches,
            ..LineageState::empty(LineageId([7; 16]))
        }
    }

    #[test]
    fn only_whole_durable_segments_before_cut_and_fork_are_fetched_ahead() {
        let (own, end) = (vec![piece(1, 1, 8)], SIZE.start_of(6).plus(5));
        let ahead = |state: &LineageState, cut, number| {
            let segment = Segment {
                branch: Branch(1),
                number,
            };
            whole(state, &plan(cut), SIZE, segment).is_some()
        };
        let unbroken = state(own.clone(), &[]);
        assert!(ahead(&unbroken, None, 1) && ahead(&unbroken, None, 7));
        assert!(!ahead(&unbroken, None, 8), "past the end of the log");
        assert!(ahead(&unbroken, Some(end), 5) && !ahead(&unbroken, Some(end), 6));
        let forked = state(own, &[(2, end.0)]);
        assert!(ahead(&forked, None, 5) && !ahead(&forked, None, 6));
        let broken = state(vec![piece(1, 1, 3), piece(1, 4, 8)], &[]);
        assert!(ahead(&broken, None, 2) && !ahead(&broken, None, 3));
    }

    #[test]
    fn a_server_with_a_timeline_of_its_own_gets_nothing_more() {
        let place = Place::new(None);
        let check = |state: &LineageState| {
            refuse_promoted(place.0.path(), &plan(None), SIZE, state).is_ok()
        };
        let (alone, promoted) = (state(Vec::new(), &[]), state(Vec::new(), &[(2, 5)]));
        assert!(check(&alone));
        std::fs::write(place.path("pg_wal/00000002.history"), "h").unwrap();
        assert!(check(&promoted), "it follows its parent's promotion");
        assert!(!check(&alone));
        std::fs::write(place.path("pg_wal/00000002.history"), "mine").unwrap();
        assert!(!check(&promoted));
    }
}
