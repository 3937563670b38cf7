//! Which machine and process this is, so that a second `protect` can tell whether the first lives.

use borealis_base::ErrorKind;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A process on a machine, named so that a later one on the same machine can tell whether it lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// The machine's name, for people.
    pub host: String,
    /// Machine, boot and process-number space; equal only where process numbers mean the same.
    pub process_space: String,
    /// The process number.
    pub pid: u32,
    /// When it began, in clock ticks since boot: process numbers are used again.
    pub started_ticks: u64,
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path)
        .ok()
        .map(|text| text.trim().to_owned())
}

fn process_space() -> Option<String> {
    let machine = read("/etc/machine-id").unwrap_or_default();
    let boot = read("/proc/sys/kernel/random/boot_id")?;
    let space = std::fs::read_link("/proc/self/ns/pid").ok()?;
    Some(format!("{machine}/{boot}/{}", space.to_string_lossy()))
}

/// Field 22 of `/proc/PID/stat`. The process name, field 2, may hold anything, spaces and brackets too.
fn started_ticks(pid: u32) -> Option<u64> {
    let stat = read(&format!("/proc/{pid}/stat"))?;
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(19)?
        .parse()
        .ok()
}

impl ProcessIdentity {
    /// This process.
    pub fn current() -> Result<Self> {
        let pid = std::process::id();
        let unknown =
            |what: &str| Error::new(ErrorKind::Bug, format!("{what} can't be read from /proc"));
        Ok(Self {
            host: read("/proc/sys/kernel/hostname").unwrap_or_else(|| "unknown".to_owned()),
            process_space: process_space().ok_or_else(|| unknown("this machine's identity"))?,
            pid,
            started_ticks: started_ticks(pid).ok_or_else(|| unknown("this process's start"))?,
        })
    }

    /// Whether the process lives; `None` if that can't be seen from here.
    pub fn is_alive(&self) -> Option<bool> {
        (process_space()? == self.process_space)
            .then(|| started_ticks(self.pid) == Some(self.started_ticks))
    }
}

/// Makes this process, and what it starts from now on, give way to others: 0 as others, 19 at most. To be called
/// before there are other threads, which keep what they had (`setpriority(2)`).
pub fn be_nice(niceness: u8) -> Result<()> {
    let failed = |error: rustix::io::Errno| {
        Error::new(
            ErrorKind::Refused,
            format!("give way to other processes: {error}"),
        )
    };
    let wanted = i32::from(niceness.min(19));
    // What gives way already may not be made to give way less.
    if rustix::process::getpriority_process(None).map_err(failed)? >= wanted {
        return Ok(());
    }
    rustix::process::setpriority_process(None, wanted).map_err(failed)
}

/// The load of the last minute by processor; `None` where Linux does not tell.
pub fn load_per_processor() -> Option<f64> {
    let load: f64 = read("/proc/loadavg")?
        .split_whitespace()
        .next()?
        .parse()
        .ok()?;
    let processors = std::thread::available_parallelism().ok()?;
    Some(load / f64::from(u32::try_from(processors.get()).ok()?))
}

/// This machine's name, for people.
pub fn name() -> String {
    read("/proc/sys/kernel/hostname").unwrap_or_else(|| "unknown".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives() {
        assert_eq!(ProcessIdentity::current().unwrap().is_alive(), Some(true));
    }

    #[test]
    fn a_reused_process_number_is_not_the_same_process() {
        let other = ProcessIdentity {
            started_ticks: 1,
            ..ProcessIdentity::current().unwrap()
        };
        assert_eq!(other.is_alive(), Some(false));
    }

    #[test]
    fn a_process_elsewhere_cannot_be_judged() {
        let other = ProcessIdentity {
            process_space: "another machine".into(),
            ..ProcessIdentity::current().unwrap()
        };
        assert_eq!(other.is_alive(), None);
    }
}
