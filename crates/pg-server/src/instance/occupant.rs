//! Whether a server may be using a data directory, by the rules by which PostgreSQL itself refuses to start
//! in one (`CreateLockFile` in `miscinit.c`): the process that its lock file names lives, or a process is
//! still attached to the shared memory that it names, as the children of a killed server are.

use std::path::Path;

use super::{process, state};
use crate::error::{Error, Result};

/// The lock file of a data directory.
pub const LOCK_FILE: &str = "postmaster.pid";
/// Where Linux lists System V shared memory.
const SHARED_MEMORY: &str = "/proc/sysvipc/shm";
/// The line of the lock file that names the shared memory (`LOCK_FILE_LINE_SHMEM_KEY` in `miscadmin.h`).
const SHARED_MEMORY_LINE: usize = 7;

/// Who uses `data_dir`, in words; `None` where it is sure that nobody does.
///
/// What can't be understood counts as use: a lock file that is empty belongs to a server that is just
/// starting.
pub fn occupant(data_dir: &Path) -> Result<Option<String>> {
    let path = data_dir.join(LOCK_FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::file("read", path, error)),
    };
    let memory = std::fs::read_to_string(SHARED_MEMORY).unwrap_or_default();
    Ok(named_by(&text, &memory, &lives))
}

/// Whether a process lives. One that may not be signalled does; one that has ended and that nobody has asked
/// for its end, as in a container without an init, does not.
fn lives(pid: u32) -> bool {
    pid != std::process::id()
        && !matches!(state(pid), Some('Z' | 'X'))
        && process(pid).is_some_and(|pid| {
            !matches!(
                rustix::process::test_kill_process(pid),
                Err(rustix::io::Errno::SRCH)
            )
        })
}

fn named_by(lock: &str, memory: &str, lives: &dyn Fn(u32) -> bool) -> Option<String> {
    let first = lock.lines().next().unwrap_or_default().trim();
    // A backend without a server (`postgres --single`) writes its number with a minus.
    match first.parse::<i64>().map(i64::unsigned_abs) {
        Ok(pid) => {
            let pid = u32::try_from(pid).unwrap_or(u32::MAX);
            if lives(pid) {
                return Some(format!("process {pid}"));
            }
        }
        Err(_) => return Some("a server that is just starting".to_owned()),
    }
    let line = lock.lines().nth(SHARED_MEMORY_LINE - 1)?;
    let mut numbers = line.split_whitespace();
    // Written unsigned, shown signed.
    let key = i64::from((numbers.next()?.parse::<u64>().ok()? as u32).cast_signed());
    let id = numbers.next()?.parse::<u64>().ok()?;
    let attached = memory.lines().skip(1).any(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let number = |column: usize| {
            let text = columns.get(column);
            text.and_then(|text| text.parse::<i64>().ok())
        };
        number(0) == Some(key)
            && number(1) == i64::try_from(id).ok()
            && number(6).is_some_and(|count| count > 0)
    });
    attached.then(|| format!("a process that is attached to its shared memory, {id}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str =
        "4711\n/srv/data\n1700000000\n5432\n/tmp\nlocalhost\n  5432001         7\nready\n";
    const SHOWN: &str = "       key      shmid perms                  size  cpid  lpid nattch   uid\n   \
                         5432001          7   600                    56   812   900      3   105\n";

    #[test]
    fn a_live_process_holds_its_directory() {
        let lives = |pid| pid == 4711;
        assert_eq!(named_by(LOCK, "", &lives), Some("process 4711".to_owned()));
        assert_eq!(
            named_by("-4711\n", "", &lives),
            Some("process 4711".to_owned())
        );
        assert_eq!(named_by("4712\n", "", &lives), None);
    }

    #[test]
    fn a_lock_file_that_says_nothing_is_a_server_that_starts() {
        assert!(named_by("", "", &|_| false).is_some());
        assert!(named_by("x\n", "", &|_| false).is_some());
    }

    #[test]
    fn children_of_a_killed_server_hold_its_directory() {
        let found = named_by(LOCK, SHOWN, &|_| false).unwrap_or_default();
        assert!(found.contains("shared memory"), "{found}");
        // Nobody attached; another one's, after the machine was started again.
        assert_eq!(
            named_by(LOCK, &SHOWN.replace("900      3", "900      0"), &|_| false),
            None
        );
        assert_eq!(
            named_by(LOCK, &SHOWN.replace("5432001", "5432002"), &|_| false),
            None
        );
    }

    #[test]
    fn a_key_above_two_billion_is_shown_as_negative() {
        let lock = LOCK.replace("5432001", "4294967295");
        let shown = SHOWN.replace("5432001", "-1");
        assert!(named_by(&lock, &shown, &|_| false).is_some());
    }
}
