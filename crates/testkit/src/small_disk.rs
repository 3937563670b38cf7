//! A small file system of a test's own, which it can fill to the last byte.
//!
//! A real one, since only a real one runs out of room the way a disk does, for the program, for its
//! library and for PostgreSQL alike. The test runs itself again in a mount namespace of its own with a
//! `tmpfs` in it, so that nothing stays behind, however it ends. Root may do that; another user does it
//! in a user namespace, in which it then takes back its own number. Where neither is allowed, the test
//! fails and says so.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::server::server_dir;

/// Tells the test that it runs inside: where the file system is.
const VARIABLE: &str = "BOREALIS_TEST_SMALL_DISK";
const FILLER: &str = "filler";
/// Bytes written at a time to fill it; a write that no longer fits is cut short, not refused.
const CHUNK: usize = 64 << 10;

/// Mounts it, then runs the rest of the arguments.
const MOUNT: &str = r#"mount -t tmpfs -o "size=$1,mode=755" tmpfs "$2" && shift 2 && exec "$@""#;

/// A file system that is gone with the test.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Runs the test named `test` again, with a file system of `size` (as `mount` takes it, such as `64m`):
    /// `Some` inside; `None` outside, when the test has passed inside.
    ///
    /// # Panics
    /// Where the test fails inside, or where no file system can be mounted.
    pub fn enter(test: &str, size: &str) -> Option<Self> {
        if let Some(path) = std::env::var_os(VARIABLE) {
            return Some(Self { path: path.into() });
        }
        let dir = server_dir();
        let program = std::env::current_exe().expect("the test has a file");
        let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
        let mut command = Command::new("unshare");
        if uid.is_root() {
            command.arg("--mount");
        } else {
            command.args(["--map-root-user", "--mount"]);
        }
        command
            .args(["sh", "-c", MOUNT, "sh", size])
            .arg(dir.path());
        if !uid.is_root() {
            command
                .args(["unshare", "--user"])
                .arg(format!("--map-user={}", uid.as_raw()))
                .arg(format!("--map-group={}", gid.as_raw()));
        }
        let status = command
            .arg(program)
            .args([test, "--exact", "--nocapture", "--test-threads=1"])
            .env(VARIABLE, dir.path())
            .status()
            .expect("unshare, of util-linux, is installed");
        assert!(
            status.success(),
            "{test} failed on a small file system of its own ({status}). If unshare or mount has \
             failed above: run the tests as root, or where user namespaces are allowed \
             (sysctl kernel.unprivileged_userns_clone=1)"
        );
        None
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills it until no more than `left` bytes are free.
    pub fn fill(&self, left: u64) {
        let mut filler = self.filler();
        let chunk = vec![0x55; CHUNK];
        while filler.write_all(&chunk).is_ok() {}
        let used = filler.metadata().expect("it is open").len();
        filler
            .set_len(used.saturating_sub(left))
            .expect("a file can shrink");
    }

    /// Removes what filled it.
    pub fn make_room(&self) {
        std::fs::remove_file(self.path.join(FILLER)).expect("it was filled");
    }

    fn filler(&self) -> File {
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.path.join(FILLER))
            .expect("the file system is writable")
    }
}
