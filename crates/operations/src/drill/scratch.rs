//! The directory of a drill: made, known as ours, and removed, by a later drill where this one was killed.
//!
//! ```text
//! SCRATCH/borealis-drill-1a2b3c4d/   ours: made by this user, and
//!     borealis_drill.json            says so, names its own place, and is locked while the drill lives
//!     data/                          the restored data directory
//!     s/                             the server's socket, for its user alone
//!     t0/ t1/ …                      tablespaces
//! ```
//!
//! What survives a crash is the mark, which is removed last. A directory without it, with a mark that names another
//! place, of another user, or behind a link is nobody's and never touched.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use borealis_base::{Clock, Entropy};
use borealis_pg_server::instance::{Instance, StopMode, SystemUser};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::error::{Error, FileContext, Result};
use crate::restore::files::{make_directory, sync, write_file};
use crate::restore::start::LOG_FILE;

/// How the directories of drills are called.
pub const PREFIX: &str = "borealis-drill-";
const MARK: &str = "borealis_drill.json";
/// The socket of a server; the name in the directory.
const SOCKET_NAME: &str = ".s.PGSQL.5432";
/// The longest name of a socket (`sun_path` in `unix(7)`), its end mark not counted.
const SOCKET_BYTES_MAX: usize = 107;
/// How long the server of a drill may take to end.
const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// How often the directory of a drill that ends is removed before it is left to the next one.
const REMOVALS_MAX: u32 = 30;
/// The pause between.
const REMOVAL_PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    /// Where the directory is. A copy of it is not ours.
    directory: PathBuf,
    cluster: String,
}

/// The directory of a drill that runs.
pub struct Scratch {
    path: PathBuf,
    /// Open, and locked, for as long as the drill lives.
    lock: File,
}

fn our_id() -> u32 {
    rustix::process::geteuid().as_raw()
}

impl Scratch {
    /// Makes one below `parent`, whose server will run as `owner`.
    pub fn make(
        parent: &Path,
        cluster: &str,
        owner: Option<&SystemUser>,
        entropy: &dyn Entropy,
    ) -> Result<Self> {
        std::fs::create_dir_all(parent).at("create", parent)?;
        let parent = std::fs::canonicalize(parent).at("find", parent)?;
        let mut random = [0; 4];
        entropy.fill(&mut random);
        let name = format!("{PREFIX}{:08x}", u32::from_le_bytes(random));
        let path = parent.join(name);
        let socket = path.join("s").join(SOCKET_NAME);
        if socket.as_os_str().len() > SOCKET_BYTES_MAX {
            return Err(Error::refused(
                format!("{} is too long for the name of a socket", socket.display()),
                "Name a directory with a shorter path with --scratch.",
            ));
        }
        std::fs::create_dir(&path).at("create", &path)?;
        let (staged, placed) = (path.join(format!("{MARK}.new")), path.join(MARK));
        let mark = Mark {
            directory: path.clone(),
            cluster: cluster.to_owned(),
        };
        let text = serde_json::to_vec_pretty(&mark)
            .map_err(|error| Error::new(borealis_base::ErrorKind::Bug, error.to_string()))?;
        write_file(&staged, &text, None)?;
        let lock = File::open(&staged).at("open", &staged)?;
        // Locked before anybody can take it for a leftover.
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(std::io::Error::from)
            .at("lock", &staged)?;
        std::fs::rename(&staged, &placed).at("put in place", &placed)?;
        sync(&path)?;
        let scratch = Self { path, lock };
        make_directory(&scratch.sockets(), 0o700)?;
        if let Some(owner) = owner {
            let sockets = scratch.sockets();
            std::os::unix::fs::chown(&sockets, Some(owner.uid), Some(owner.gid))
                .at("give away", &sockets)?;
            // The server's user has to get through, and nobody else need look in.
            make_directory(&scratch.path, 0o711)?;
        } else {
            make_directory(&scratch.path, 0o700)?;
        }
        Ok(scratch)
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the data directory goes.
    pub fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    /// Where the server's socket goes.
    pub fn sockets(&self) -> PathBuf {
        self.path.join("s")
    }

    /// Where a tablespace goes.
    pub fn tablespace(&self, number: usize) -> PathBuf {
        self.path.join(format!("t{number}"))
    }

    /// Stops the server and removes everything.
    pub async fn remove(self, clock: &dyn Clock) -> Result<()> {
        stop_server(&self.data(), clock).await?;
        // What a drill that is given up was just writing may come after it was looked for.
        for _ in 1..REMOVALS_MAX {
            match remove_all(&self.path) {
                Err(error) => {
                    tracing::debug!(%error, "the directory of the drill is removed again");
                }
                Ok(()) => return Ok(()),
            }
            tokio::time::sleep(REMOVAL_PAUSE).await;
            stop_server(&self.data(), clock).await?;
        }
        remove_all(&self.path)
    }

    /// Stops the server and leaves the rest to whoever asked for it; no later drill removes it.
    pub async fn keep(self, clock: &dyn Clock) -> Result<PathBuf> {
        stop_server(&self.data(), clock).await?;
        let mark = self.path.join(MARK);
        std::fs::remove_file(&mark).at("remove", &mark)?;
        drop(self.lock);
        Ok(self.path)
    }
}

/// Removes the mark last, so that what is left by a kill is still known as ours.
fn remove_all(path: &Path) -> Result<()> {
    for entry in std::fs::read_dir(path).at("list", path)? {
        let entry = entry.at("list", path)?;
        let inner = entry.path();
        if entry.file_name() == MARK {
            continue;
        }
        if entry.file_type().at("look at", &inner)?.is_dir() {
            std::fs::remove_dir_all(&inner).at("remove", &inner)?;
        } else {
            std::fs::remove_file(&inner).at("remove", &inner)?;
        }
    }
    let mark = path.join(MARK);
    match std::fs::remove_file(&mark) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).at("remove", &mark)
        }
        _ => std::fs::remove_dir(path).at("remove", path),
    }
}

/// The first process of the server that runs on `data`. Process numbers are used again, so that only one that
/// works in this directory counts, as every server does (`ChangeToDataDir` in `miscinit.c`).
fn server_of(data: &Path) -> Option<u32> {
    let text = std::fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let pid: u32 = text.lines().next()?.trim().parse().ok()?;
    let works_in = std::fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    (std::fs::canonicalize(data).ok()? == works_in).then_some(pid)
}

async fn stop_server(data: &Path, clock: &dyn Clock) -> Result<()> {
    if server_of(data).is_none() {
        return Ok(());
    }
    let mut instance = Instance::attach(data, &data.join(LOG_FILE))?;
    if let Err(error) = instance
        .stop(StopMode::Immediate, STOP_DEADLINE, clock)
        .await
    {
        tracing::debug!(%error, "the server of a drill is killed");
        instance.kill()?;
    }
    Ok(())
}

/// The directories below `parent` that drills of this user left when they were killed. Those of drills that live
/// are locked.
fn leftovers(parent: &Path) -> Result<Vec<(PathBuf, File)>> {
    let entries = match std::fs::read_dir(parent) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.at("list", parent)?,
    };
    let parent = std::fs::canonicalize(parent).at("find", parent)?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.at("list", &parent)?;
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let path = parent.join(entry.file_name());
        if let Some(lock) = ours_and_dead(&path) {
            found.push((path, lock));
        }
    }
    Ok(found)
}

fn ours_and_dead(path: &Path) -> Option<File> {
    let mark = path.join(MARK);
    let is_ours = |path: &Path| {
        std::fs::symlink_metadata(path)
            .is_ok_and(|meta| meta.uid() == our_id() && !meta.file_type().is_symlink())
    };
    if !is_ours(path) || !is_ours(&mark) {
        return None;
    }
    let text = std::fs::read(&mark).ok()?;
    let told: Mark = serde_json::from_slice(&text).ok()?;
    if told.directory != path {
        return None;
    }
    let lock = File::open(&mark).ok()?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive).ok()?;
    Some(lock)
}

/// Removes what drills that were killed have left below `parent`; returns what that was.
pub async fn remove_leftovers(parent: &Path, clock: &dyn Clock) -> Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    for (path, _lock) in leftovers(parent)? {
        stop_server(&path.join("data"), clock).await?;
        remove_all(&path)?;
        removed.push(path);
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_base::{SeededEntropy, SystemClock};

    fn make(parent: &Path, seed: u64) -> Scratch {
        Scratch::make(parent, "main", None, &SeededEntropy::new(seed)).unwrap()
    }

    async fn removed(parent: &Path) -> Vec<PathBuf> {
        remove_leftovers(parent, &SystemClock).await.unwrap()
    }

    #[tokio::test]
    async fn only_what_a_dead_drill_of_ours_left_is_removed() {
        let parent = tempfile::tempdir().unwrap();
        let top = parent.path().canonicalize().unwrap();
        let (alive, dead, kept) = (make(&top, 1), make(&top, 2), make(&top, 3));
        std::fs::create_dir_all(dead.data().join("base")).unwrap();
        let dead_path = dead.path().to_owned();
        drop(dead);
        let kept = kept.keep(&SystemClock).await.unwrap();
        // A copy, somebody's directory of such a name, and a link.
        let copy = top.join(format!("{PREFIX}copy"));
        std::fs::create_dir(&copy).unwrap();
        std::fs::copy(dead_path.join(MARK), copy.join(MARK)).unwrap();
        let theirs = top.join(format!("{PREFIX}theirs"));
        std::fs::create_dir(&theirs).unwrap();
        let link = top.join(format!("{PREFIX}link"));
        std::os::unix::fs::symlink(&dead_path, &link).unwrap();
        assert_eq!(removed(&top).await, std::slice::from_ref(&dead_path));
        assert!(!dead_path.exists());
        for stays in [alive.path(), &kept, &copy, &theirs] {
            assert!(stays.exists(), "{}", stays.display());
        }
        assert!(link.symlink_metadata().is_ok());
        alive.remove(&SystemClock).await.unwrap();
        assert!(removed(&top).await.is_empty());
    }

    #[tokio::test]
    async fn a_removal_that_was_cut_off_is_gone_on_with() {
        let parent = tempfile::tempdir().unwrap();
        let scratch = make(parent.path(), 1);
        let path = scratch.path().to_owned();
        std::fs::remove_dir_all(scratch.sockets()).unwrap();
        drop(scratch);
        assert_eq!(removed(parent.path()).await, [path]);
    }

    #[test]
    fn a_process_that_works_elsewhere_is_not_the_server() {
        let data = tempfile::tempdir().unwrap();
        let file = data.path().join("postmaster.pid");
        std::fs::write(&file, format!("{}\n", std::process::id())).unwrap();
        assert_eq!(server_of(data.path()), None);
    }

    #[test]
    fn a_socket_whose_name_would_be_too_long_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let long = parent.path().join("x".repeat(90));
        let error = Scratch::make(&long, "main", None, &SeededEntropy::new(1))
            .err()
            .unwrap();
        assert!(error.to_string().contains("socket"), "{error}");
    }
}
