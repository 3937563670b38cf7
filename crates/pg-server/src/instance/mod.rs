//! Running a server: its programs, its system user, and the process from start to end.
//!
//! The state is the server's own (its data directory and `postmaster.pid`); an [`Instance`] holds a
//! handle, and dropping it ends nothing.

pub mod binaries;
pub mod log;
pub mod occupant;
pub mod users;

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use borealis_base::Clock;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

pub use binaries::Binaries;
pub use log::{LogFact, LogTail, log_fact};
pub use occupant::occupant;
pub use users::SystemUser;

use crate::conninfo::ConnInfo;
use crate::error::{Error, Result};
use crate::link::SqlLink;

/// How often a waited-for state is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How often a started server is looked for by its `postmaster.pid`: ten seconds in all.
const PID_LOOKS_MAX: u32 = 200;

/// How much of a log's end an error repeats.
const LAST_WORDS_BYTES: usize = 2_000;

/// How a server is asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Sessions are ended, a checkpoint is written.
    Fast,
    /// Everything is left as it is; the next start recovers.
    Immediate,
}

/// How to start a server.
#[derive(Debug, Clone)]
pub struct Launch {
    /// Its programs.
    pub binaries: Binaries,
    /// Its data directory.
    pub data_dir: PathBuf,
    /// Its configuration file, where that is not in the data directory.
    pub config_file: Option<PathBuf>,
    /// Where its output goes, appended.
    pub log_file: PathBuf,
    /// Who runs it; a server refuses to run as root.
    pub user: Option<SystemUser>,
    /// Settings for this run only.
    pub settings: Vec<(String, String)>,
}

/// `program`, to be run as `user` where one is given. Its other groups are dropped with root.
/// Variables that would redirect a PostgreSQL program are removed.
pub fn command_as(program: &Path, user: Option<&SystemUser>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    if let Some(user) = user {
        command
            .uid(user.uid)
            .gid(user.gid)
            .env("HOME", &user.home)
            .env("USER", &user.name)
            .env("LOGNAME", &user.name);
    }
    command.stdin(Stdio::null());
    command
}

impl Launch {
    fn prepare_log(&self) -> Result<std::fs::File> {
        let failed = |e| Error::file("open", &self.log_file, e);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log_file)
            .map_err(failed)?;
        if let Some(user) = &self.user {
            std::os::unix::fs::chown(&self.log_file, Some(user.uid), Some(user.gid))
                .map_err(failed)?;
        }
        Ok(log)
    }

    fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        if let Some(file) = &self.config_file {
            arguments.push("-c".to_owned());
            arguments.push(format!("config_file={}", file.display()));
        }
        for (name, value) in &self.settings {
            arguments.push("-c".to_owned());
            arguments.push(format!("{name}={value}"));
        }
        arguments
    }

    /// Starts the server as a child of this process.
    pub fn start(&self) -> Result<Instance> {
        let program = self.binaries.program("postgres");
        let log = self.prepare_log()?;
        let failed = |e: std::io::Error| Error::Program {
            program: program.display().to_string(),
            detail: e.to_string(),
        };
        let child = command_as(&program, self.user.as_ref())
            .arg("-D")
            .arg(&self.data_dir)
            .args(self.arguments())
            .current_dir("/")
            .stdout(log.try_clone().map_err(failed)?)
            .stderr(log)
            // A Ctrl-C meant for us must not reach the server.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        Ok(Instance {
            pid: child.id(),
            child: Some(child),
            data_dir: self.data_dir.clone(),
            log_file: self.log_file.clone(),
        })
    }

    /// Starts the server so that it outlives this process, as `pg_ctl start` does. Does not wait
    /// until it is ready, only until it has taken the data directory.
    pub async fn start_detached(&self) -> Result<Instance> {
        let program = self.binaries.program("pg_ctl");
        drop(self.prepare_log()?);
        let options: Vec<_> = self.arguments().iter().map(|a| shell_quote(a)).collect();
        let output = command_as(&program, self.user.as_ref())
            .args(["start", "-W", "-s", "-D"])
            .arg(&self.data_dir)
            .arg("-l")
            .arg(&self.log_file)
            .arg("-o")
            .arg(options.join(" "))
            .current_dir("/")
            .output();
        let failed = |detail: String| Error::Program {
            program: program.display().to_string(),
            detail,
        };
        match output {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                let words = String::from_utf8_lossy(&output.stderr);
                return Err(failed(words.trim().to_owned()));
            }
            Err(error) => return Err(failed(error.to_string())),
        }
        for _ in 0..PID_LOOKS_MAX {
            if let Some(pid) = running_pid(&self.data_dir)? {
                return Ok(Instance {
                    pid,
                    child: None,
                    data_dir: self.data_dir.clone(),
                    log_file: self.log_file.clone(),
                });
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Err(failed(format!(
            "the server has not come up; its log ends:\n{}",
            last_words(&self.log_file)
        )))
    }
}

fn shell_quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// A server process.
#[derive(Debug)]
pub struct Instance {
    pid: u32,
    child: Option<Child>,
    data_dir: PathBuf,
    log_file: PathBuf,
}

impl Instance {
    /// The server that runs on `data_dir`, by its `postmaster.pid`.
    pub fn attach(data_dir: &Path, log_file: &Path) -> Result<Self> {
        let pid = running_pid(data_dir)?
            .ok_or_else(|| Error::NotFound(format!("server on {}", data_dir.display())))?;
        Ok(Self {
            pid,
            child: None,
            data_dir: data_dir.to_owned(),
            log_file: log_file.to_owned(),
        })
    }

    /// The number of its first process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Where its output goes.
    pub fn log_file(&self) -> &Path {
        &self.log_file
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        match &mut self.child {
            Some(child) => matches!(child.try_wait(), Ok(None)),
            None => process(self.pid).is_some_and(|pid| test_kill_process(pid).is_ok()),
        }
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        // A process that is already gone is what a stop wants.
        match process(self.pid).map(|pid| kill_process(pid, signal)) {
            Some(Err(error)) if error != rustix::io::Errno::SRCH => Err(Error::Program {
                program: format!("server process {}", self.pid),
                detail: error.to_string(),
            }),
            _ => Ok(()),
        }
    }

    async fn wait_end(&mut self, deadline: Duration, clock: &dyn Clock) -> Result<()> {
        let begin = clock.elapsed();
        while self.is_running() {
            if clock.elapsed().saturating_sub(begin) > deadline {
                return Err(Error::Deadline {
                    what: format!("end of server process {}", self.pid),
                    after: deadline,
                    last: last_words(&self.log_file),
                });
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// Stops it and waits until it has ended.
    pub async fn stop(
        &mut self,
        mode: StopMode,
        deadline: Duration,
        clock: &dyn Clock,
    ) -> Result<()> {
        if !self.is_running() {
            return Ok(());
        }
        self.signal(match mode {
            StopMode::Fast => Signal::INT,
            StopMode::Immediate => Signal::QUIT,
        })?;
        self.wait_end(deadline, clock).await
    }

    /// Kills all its processes at once, as a failing machine would. The first process is held first,
    /// so that it cannot begin to tidy up after its children.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::STOP)?;
        // Until it is held it may still make children, which would be missed.
        look_until(|| matches!(state(self.pid), None | Some('T' | 'Z' | 'X')));
        let children = children(self.pid);
        for pid in &children {
            if let Some(pid) = process(*pid) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        self.signal(Signal::KILL)?;
        if let Some(child) = &mut self.child {
            let _ = child.wait();
        }
        // One that is still writing to a disk holds the shared memory, and the next start fails on it.
        look_until(|| {
            let gone = |pid: &u32| matches!(state(*pid), None | Some('Z' | 'X'));
            children.iter().all(gone)
        });
        Ok(())
    }

    /// Waits until a query succeeds and, with `promoted`, until recovery has ended. `pg_ctl -w`
    /// returns before that.
    pub async fn wait_ready(
        &mut self,
        info: &ConnInfo,
        promoted: bool,
        deadline: Duration,
        clock: &dyn Clock,
    ) -> Result<SqlLink> {
        let begin = clock.elapsed();
        let mut last;
        loop {
            match SqlLink::connect(info).await {
                Ok(link) => match link.value::<String>("SELECT pg_is_in_recovery()").await {
                    Ok(answer) if answer == "f" || !promoted => return Ok(link),
                    Ok(_) => last = "still in recovery".to_owned(),
                    Err(error) => last = error.to_string(),
                },
                Err(error) => last = error.to_string(),
            }
            if !self.is_running() {
                return Err(Error::Program {
                    program: format!("server on {}", self.data_dir.display()),
                    detail: format!("ended; its log ends:\n{}", last_words(&self.log_file)),
                });
            }
            if clock.elapsed().saturating_sub(begin) > deadline {
                return Err(Error::Deadline {
                    what: "a server that answers".to_owned(),
                    after: deadline,
                    last,
                });
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

fn process(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

/// The first process of the server that runs on `data_dir`; `None` where none does. A file left by a
/// crash is told from a live one by asking for the process.
pub fn running_pid(data_dir: &Path) -> Result<Option<u32>> {
    let path = data_dir.join("postmaster.pid");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::file("read", path, error)),
    };
    let pid = text
        .lines()
        .next()
        .and_then(|line| line.trim().parse().ok());
    Ok(pid.filter(|pid| process(*pid).is_some_and(|pid| test_kill_process(pid).is_ok())))
}

/// Looks until `done`, for as long as a killed process may take to end.
fn look_until(done: impl Fn() -> bool) {
    for _ in 0..PID_LOOKS_MAX {
        if done() {
            return;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// The state of a process as Linux's `/proc` shows it; `None` where there is none.
fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.trim_start().chars().next()
}

/// The children of a process, by Linux's `/proc`.
fn children(parent: u32) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            // The program's name stands in parentheses and may hold anything.
            let (_, rest) = stat.rsplit_once(')')?;
            let its_parent: u32 = rest.split_whitespace().nth(1)?.parse().ok()?;
            (its_parent == parent).then_some(pid)
        })
        .collect()
}

/// The end of a log, for an error message.
fn last_words(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let from = bytes.len().saturating_sub(LAST_WORDS_BYTES);
    let tail = String::from_utf8_lossy(bytes.get(from..).unwrap_or_default()).into_owned();
    match tail.split_once('\n') {
        Some((_, whole)) if from > 0 => whole.trim_end().to_owned(),
        _ => tail.trim_end().to_owned(),
    }
}
