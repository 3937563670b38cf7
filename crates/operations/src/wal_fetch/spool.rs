//! Log fetched ahead for a recovering server: whole segments in a folder below its `pg_wal`, from which
//! `borealis wal fetch` moves them to where the server wants them.
//!
//! One process at a time writes here, holding the folder's lock; `wal fetch` takes files away and says
//! in the file `next` which segment comes next. Nothing here has to survive a crash: each file ends in
//! a trailer that says what it holds and proves it, and one that does not prove itself is removed and
//! fetched again. `pg_wal` is left out of base backups, by `pg_basebackup` too, and a file moves within
//! its file system.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind as IoErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use borealis_base::{Branch, LineageId, Position};
use borealis_pg_format::segment::{LogFile, SegmentSize};
use rustix::fs::{FlockOperation, flock};

use crate::error::{FileContext, Result};
use crate::restore::files::make_directory;
use crate::restore::recovery_file::RecoveryFile;

/// The folder, below the data directory.
pub const SPOOL: &str = "pg_wal/borealis_prefetch";
/// The most segments fetched ahead.
const SEGMENTS_MAX: u64 = 8;
/// The most bytes fetched ahead; one segment at least, however large it is.
const BYTES_MAX: u64 = 128 << 20;
/// How often a segment is looked for that is being fetched ahead, and how many times at most.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
const LOOKS_MAX: u32 = 2_000;

const NEXT: &str = "next";
const LOCK: &str = "lock";
const MAGIC: &[u8; 8] = b"BORAHEAD";
const TRAILER_BYTES: usize = 52;
const COPY_BYTES: usize = 1 << 20;

/// A segment of one timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Segment {
    /// The timeline in its name.
    pub branch: Branch,
    /// Its position divided by the segment size.
    pub number: u64,
}

/// The folder of one recovering server.
#[derive(Debug, Clone)]
pub struct Spool {
    dir: PathBuf,
    lineage: LineageId,
    size: SegmentSize,
}

/// Whoever holds it fetches ahead; given back when dropped or when the process ends.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code)] File);

impl Spool {
    /// The folder of the server in `data_dir`, which need not exist.
    pub fn of(data_dir: &Path, plan: &RecoveryFile, size: SegmentSize) -> Self {
        Self {
            dir: data_dir.join(SPOOL),
            lineage: plan.lineage,
            size,
        }
    }

    /// Where a segment begins.
    pub fn start_of(&self, segment: Segment) -> Position {
        self.size.start_of(segment.number)
    }

    /// The segments that may lie here when `next` is asked for next.
    pub fn window(&self, next: Segment) -> impl Iterator<Item = Segment> + use<> {
        let count = (BYTES_MAX / self.size.bytes()).clamp(1, SEGMENTS_MAX);
        let branch = next.branch;
        (next.number..next.number + count).map(move |number| Segment { branch, number })
    }

    fn name(&self, segment: Segment) -> String {
        let file = LogFile::Segment {
            timeline: segment.branch,
            number: segment.number,
        };
        file.name(self.size)
    }

    fn path(&self, segment: Segment) -> PathBuf {
        self.dir.join(self.name(segment))
    }

    /// Makes the folder. Its parent must exist: a data directory that was removed stays removed.
    fn make(&self) -> Result<()> {
        match std::fs::DirBuilder::new().mode(0o700).create(&self.dir) {
            Err(error) if error.kind() == IoErrorKind::AlreadyExists => Ok(()),
            _ => make_directory(&self.dir, 0o700),
        }
    }

    /// Says which segment the server asks for next.
    pub fn expect(&self, next: Segment) -> Result<()> {
        self.make()?;
        let staged = self.dir.join(format!(".{NEXT}-{}", std::process::id()));
        std::fs::write(&staged, self.name(next)).at("write", &staged)?;
        let path = self.dir.join(NEXT);
        std::fs::rename(&staged, &path).at("put in place", &path)
    }

    /// The segment that the server asks for next, if it has asked for any.
    pub fn expected(&self) -> Option<Segment> {
        expected(&self.dir, self.size)
    }

    /// Whether a file for the segment is here; whether it is good, [`Self::take`] finds out.
    pub fn holds(&self, segment: Segment) -> bool {
        self.path(segment).exists()
    }

    /// Removes what is not in `wanted`, such as segments of another timeline or unfinished files.
    pub fn keep_only(&self, wanted: &BTreeSet<Segment>) -> Result<()> {
        let names: BTreeSet<String> = wanted.iter().map(|segment| self.name(*segment)).collect();
        for entry in std::fs::read_dir(&self.dir).at("list", &self.dir)? {
            let entry = entry.at("list", &self.dir)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let in_use = [NEXT, LOCK].contains(&name.as_str())
                || name.starts_with(&format!(".{NEXT}"))
                || names.contains(&name);
            if !in_use {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Where a segment is written before [`Self::put`]. Only the holder of the lock writes here.
    pub fn staged(&self, segment: Segment) -> PathBuf {
        self.dir.join(format!(".{}", self.name(segment)))
    }

    /// Puts a written segment in place; `crc` is the CRC-32C of its bytes.
    pub fn put(&self, _lock: &Lock, segment: Segment, crc: u32) -> Result<()> {
        let staged = self.staged(segment);
        let file = OpenOptions::new()
            .write(true)
            .open(&staged)
            .at("open", &staged)?;
        file.write_all_at(&self.trailer(segment, crc), self.size.bytes())
            .at("write", &staged)?;
        file.sync_all().at("sync", &staged)?;
        let path = self.path(segment);
        std::fs::rename(&staged, &path).at("put in place", &path)
    }

    fn trailer(&self, segment: Segment, crc: u32) -> [u8; TRAILER_BYTES] {
        let mut bytes = Vec::with_capacity(TRAILER_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.lineage.0);
        bytes.extend_from_slice(&segment.branch.0.to_le_bytes());
        bytes.extend_from_slice(&self.start_of(segment).0.to_le_bytes());
        bytes.extend_from_slice(&self.size.bytes().to_le_bytes());
        bytes.extend_from_slice(&crc.to_le_bytes());
        let own = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&own.to_le_bytes());
        bytes.try_into().expect("the fields above are as long")
    }

    /// Moves the segment to `target` if it is here and proves itself. One that does not is removed.
    pub fn take(&self, segment: Segment, target: &Path) -> Result<bool> {
        let path = self.path(segment);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == IoErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error).at("open", &path),
        };
        if !self.is_good(&file, segment).at("read", &path)? {
            tracing::warn!(file = %path.display(), "log fetched ahead is not what its name says; it is removed");
            remove(&path)?;
            return Ok(false);
        }
        // From here on it is a segment like any other, and no file of the spool any more.
        file.set_len(self.size.bytes()).at("cut", &path)?;
        match std::fs::rename(&path, target) {
            Ok(()) => Ok(true),
            // Another call was faster, or the target is on another file system.
            Err(error)
                if matches!(
                    error.kind(),
                    IoErrorKind::NotFound | IoErrorKind::CrossesDevices
                ) =>
            {
                remove(&path)?;
                Ok(false)
            }
            Err(error) => Err(error).at("put in place", target),
        }
    }

    fn is_good(&self, mut file: &File, segment: Segment) -> std::io::Result<bool> {
        let size = self.size.bytes();
        if file.metadata()?.len() != size + TRAILER_BYTES as u64 {
            return Ok(false);
        }
        let mut buffer = vec![0; COPY_BYTES];
        let (mut crc, mut rest) = (0, size);
        while rest > 0 {
            let part = usize::try_from(rest).map_or(COPY_BYTES, |rest| rest.min(COPY_BYTES));
            let Some(part) = buffer.get_mut(..part) else {
                return Ok(false);
            };
            match file.read_exact(part) {
                Err(error) if error.kind() == IoErrorKind::UnexpectedEof => return Ok(false),
                read => read?,
            }
            crc = crc32c::crc32c_append(crc, part);
            rest -= part.len() as u64;
        }
        let mut trailer = [0; TRAILER_BYTES];
        match file.read_exact(&mut trailer) {
            Err(error) if error.kind() == IoErrorKind::UnexpectedEof => Ok(false),
            read => read.map(|()| trailer == self.trailer(segment, crc)),
        }
    }

    /// As [`Self::take`]; while another process fetches ahead, waits a while for it to come to the segment.
    pub async fn take_when_there(&self, segment: Segment, target: &Path) -> Result<bool> {
        for _ in 0..LOOKS_MAX {
            if self.take(segment, target)? {
                return Ok(true);
            }
            if !self.is_being_filled() {
                // It may have put the segment in place just before it ended.
                return self.take(segment, target);
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        Ok(false)
    }

    /// The right to write here; `None` while another process has it.
    pub fn lock(&self) -> Result<Option<Lock>> {
        self.make()?;
        let path = self.dir.join(LOCK);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .at("open", &path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(std::io::Error::from(error)).at("lock", &path),
        }
    }

    fn is_being_filled(&self) -> bool {
        File::open(self.dir.join(LOCK)).is_ok_and(|file| {
            flock(&file, FlockOperation::NonBlockingLockShared)
                == Err(rustix::io::Errno::WOULDBLOCK)
        })
    }

    /// Ends fetching ahead and removes the folder: recovery has ended, or is about to.
    pub async fn finish(&self) -> Result<()> {
        let next = self.dir.join(NEXT);
        // Without this file nobody fetches ahead any more.
        remove(&next)?;
        for _ in 0..LOOKS_MAX {
            if !self.is_being_filled() {
                break;
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        match std::fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != IoErrorKind::NotFound => {
                Err(error).at("remove", &self.dir)
            }
            _ => Ok(()),
        }
    }
}

fn expected(dir: &Path, size: SegmentSize) -> Option<Segment> {
    let name = std::fs::read_to_string(dir.join(NEXT)).ok()?;
    match LogFile::parse(name.trim(), size)? {
        LogFile::Segment { timeline, number } => Some(Segment {
            branch: timeline,
            number,
        }),
        _ => None,
    }
}

/// How far a recovering server has come, by the segments that it asked for: everything before the last
/// of them is replayed.
pub fn replayed_to(data_dir: &Path, size: SegmentSize) -> Option<Position> {
    let next = expected(&data_dir.join(SPOOL), size)?;
    Some(size.start_of(next.number.checked_sub(1)?))
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != IoErrorKind::NotFound => Err(error).at("remove", path),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::recovery_file::State;

    const SIZE: SegmentSize = SegmentSize::new(1 << 20).expect("a valid size");
    const SEGMENT: Segment = Segment {
        branch: Branch(1),
        number: 7,
    };

    struct Place {
        directory: tempfile::TempDir,
        spool: Spool,
    }

    impl Place {
        fn new(lineage: u8) -> Self {
            let directory = tempfile::tempdir().unwrap();
            std::fs::create_dir(directory.path().join("pg_wal")).unwrap();
            let plan = RecoveryFile {
                state: State::Complete,
                cluster: "sales".into(),
                lineage: LineageId([lineage; 16]),
                repository: "/srv/backup".into(),
                key_file: None,
                key: None,
                branch: Branch(1),
                log_start: Position(0),
                log_in_place: None,
                log_end: None,
                segment_size: SIZE.bytes(),
                directory: None,
            };
            let spool = Spool::of(directory.path(), &plan, SIZE);
            Self { directory, spool }
        }

        fn target(&self) -> PathBuf {
            self.directory.path().join("pg_wal/RECOVERYXLOG")
        }

        fn put(&self, segment: Segment, byte: u8) -> PathBuf {
            let lock = self.spool.lock().unwrap().unwrap();
            let bytes = vec![byte; 1 << 20];
            std::fs::write(self.spool.staged(segment), &bytes).unwrap();
            let crc = crc32c::crc32c(&bytes);
            self.spool.put(&lock, segment, crc).unwrap();
            self.spool.path(segment)
        }
    }

    #[test]
    fn a_segment_fetched_ahead_is_moved_to_its_target_with_its_exact_length() {
        let place = Place::new(7);
        let path = place.put(SEGMENT, 1);
        assert!(place.spool.take(SEGMENT, &place.target()).unwrap());
        assert_eq!(
            std::fs::read(place.target()).unwrap(),
            vec![1; SIZE.bytes() as usize]
        );
        assert!(!path.exists());
        assert!(!place.spool.take(SEGMENT, &place.target()).unwrap());
    }

    #[test]
    fn a_partial_file_fetched_ahead_is_never_served() {
        let place = Place::new(7);
        let whole = std::fs::read(place.put(SEGMENT, 1)).unwrap();
        let half = vec![1; (SIZE.bytes() / 2) as usize];
        let mut holes = whole.clone();
        holes[4096..8192].fill(0);
        // What a crash between cutting off the trailer and the move leaves is not whole either.
        let cut = whole[..1 << 20].to_vec();
        for bytes in [Vec::new(), half, holes, cut] {
            std::fs::write(place.spool.path(SEGMENT), bytes).unwrap();
            assert!(!place.spool.take(SEGMENT, &place.target()).unwrap());
            assert!(!place.target().exists());
            assert!(!place.spool.holds(SEGMENT), "it was kept");
        }
    }

    #[test]
    fn a_file_fetched_ahead_for_another_timeline_place_or_restore_is_never_served() {
        let place = Place::new(7);
        let other_timeline = Segment {
            branch: Branch(2),
            ..SEGMENT
        };
        let other_place = Segment {
            number: 8,
            ..SEGMENT
        };
        for other in [other_timeline, other_place] {
            let path = place.put(other, 1);
            std::fs::rename(path, place.spool.path(SEGMENT)).unwrap();
            assert!(!place.spool.take(SEGMENT, &place.target()).unwrap());
        }
        let elsewhere = Place::new(8).put(SEGMENT, 1);
        // Its folder is gone by now; the same bytes are made again and copied.
        assert!(!elsewhere.exists());
        let elsewhere = Place::new(8);
        std::fs::copy(elsewhere.put(SEGMENT, 1), place.spool.path(SEGMENT)).unwrap();
        assert!(!place.spool.take(SEGMENT, &place.target()).unwrap());
        assert!(!place.target().exists());
    }

    #[test]
    fn only_one_process_fetches_ahead() {
        let place = Place::new(7);
        let first = place.spool.lock().unwrap();
        assert!(first.is_some() && place.spool.is_being_filled());
        assert!(place.spool.lock().unwrap().is_none());
        drop(first);
        assert!(!place.spool.is_being_filled());
        assert!(place.spool.lock().unwrap().is_some());
    }

    #[test]
    fn two_calls_for_one_segment_serve_it_once_and_whole() {
        let place = Place::new(7);
        place.put(SEGMENT, 1);
        let served: usize = std::thread::scope(|scope| {
            let calls: Vec<_> = (0..8)
                .map(|call| {
                    let target = place.directory.path().join(format!("pg_wal/{call}"));
                    let spool = &place.spool;
                    scope.spawn(move || {
                        let took = spool.take(SEGMENT, &target).unwrap();
                        assert_eq!(took, target.exists());
                        if took {
                            let len = std::fs::metadata(&target).unwrap().len();
                            assert_eq!(len, SIZE.bytes());
                        }
                        usize::from(took)
                    })
                })
                .collect();
            calls.into_iter().map(|call| call.join().unwrap()).sum()
        });
        assert!(served <= 1, "one segment was served {served} times");
    }

    #[tokio::test]
    async fn the_folder_is_bounded_and_goes_away_with_recovery() {
        let place = Place::new(7);
        place.spool.expect(SEGMENT).unwrap();
        assert_eq!(place.spool.expected(), Some(SEGMENT));
        let window: BTreeSet<_> = place.spool.window(SEGMENT).collect();
        assert_eq!(window.len() as u64, SEGMENTS_MAX);
        let old = Segment {
            number: 6,
            ..SEGMENT
        };
        place.put(old, 1);
        place.put(SEGMENT, 1);
        std::fs::write(place.spool.staged(old), b"half").unwrap();
        place.spool.keep_only(&window).unwrap();
        assert!(place.spool.holds(SEGMENT) && !place.spool.holds(old));
        assert!(!place.spool.staged(old).exists());
        assert_eq!(
            replayed_to(place.directory.path(), SIZE),
            Some(SIZE.start_of(6))
        );
        place.spool.finish().await.unwrap();
        assert!(!place.directory.path().join(SPOOL).exists());
        place.spool.finish().await.unwrap();
    }
}
