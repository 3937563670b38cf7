//! The server's log, as far as a restore follows it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use borealis_base::Position;

/// The most of a log that is read at once, or kept of an unfinished line.
const READ_BYTES_MAX: usize = 64 << 10;

/// What a log line says about recovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogFact {
    /// Replay begins here.
    RedoStarts(Position),
    /// Replay has come here (`log_startup_progress_interval`, 15 and later).
    RedoAt(Position),
    /// The pages are consistent; replay goes on to the target.
    Consistent(Position),
    /// The target is reached; the text names it.
    Stopping(String),
    /// Replay has ended here.
    RedoDone(Position),
    /// The server accepts connections.
    Ready,
    /// A failure that ends the server or a session: the text behind `FATAL` or `PANIC`.
    Failure(String),
}

/// Reads one line, as written with `lc_messages = 'C'` (`xlogrecovery.c`, `postmaster.c`).
pub fn log_fact(line: &str) -> Option<LogFact> {
    for level in ["PANIC:  ", "FATAL:  "] {
        if let Some((_, text)) = line.split_once(level) {
            return Some(LogFact::Failure(text.trim_end().to_owned()));
        }
    }
    let (_, text) = line.split_once("LOG:  ")?;
    let after = |prefix: &str| {
        let word = text.strip_prefix(prefix)?.split_whitespace().next()?;
        Position::from_str(word.trim_end_matches([',', ';', '.'])).ok()
    };
    if let Some(at) = after("redo starts at ") {
        return Some(LogFact::RedoStarts(at));
    }
    if let Some((_, at)) = text
        .strip_prefix("redo in progress")
        .and_then(|rest| rest.split_once("current LSN: "))
    {
        return at.trim().parse().ok().map(LogFact::RedoAt);
    }
    if let Some(at) = after("consistent recovery state reached at ") {
        return Some(LogFact::Consistent(at));
    }
    if let Some(at) = after("redo done at ") {
        return Some(LogFact::RedoDone(at));
    }
    if text.starts_with("recovery stopping ") {
        return Some(LogFact::Stopping(text.trim_end().to_owned()));
    }
    text.starts_with("database system is ready to accept connections")
        .then_some(LogFact::Ready)
}

/// Follows a log file from where it stood at first.
#[derive(Debug)]
pub struct LogTail {
    path: PathBuf,
    offset: u64,
    partial: Vec<u8>,
}

impl LogTail {
    /// Follows `path` from its present end on; it need not exist yet.
    pub fn from_end(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            offset: std::fs::metadata(path).map_or(0, |meta| meta.len()),
            partial: Vec::new(),
        }
    }

    /// The whole lines written since the last call, at most 64 KiB of them.
    pub fn lines(&mut self) -> io::Result<Vec<String>> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        file.seek(SeekFrom::Start(self.offset))?;
        let read = file
            .take(READ_BYTES_MAX as u64)
            .read_to_end(&mut self.partial)?;
        self.offset += read as u64;
        let Some(end) = self.partial.iter().rposition(|byte| *byte == b'\n') else {
            if self.partial.len() > READ_BYTES_MAX {
                self.partial.clear();
            }
            return Ok(Vec::new());
        };
        let rest = self.partial.split_off(end + 1);
        let whole = std::mem::replace(&mut self.partial, rest);
        Ok(String::from_utf8_lossy(&whole)
            .lines()
            .map(str::to_owned)
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovery_lines_are_understood() {
        let position = |text: &str| text.parse().expect("a position");
        for (line, fact) in [
            (
                "2026-11-21 08:00:00.000 UTC [7] LOG:  redo starts at 0/2000028",
                Some(LogFact::RedoStarts(position("0/2000028"))),
            ),
            (
                "[7] LOG:  redo in progress, elapsed time: 10.00 s, current LSN: 1/AB",
                Some(LogFact::RedoAt(position("1/AB"))),
            ),
            (
                "[7] LOG:  consistent recovery state reached at 0/2000100",
                Some(LogFact::Consistent(position("0/2000100"))),
            ),
            (
                "[7] LOG:  redo done at 0/3000060 system usage: CPU: user: 0.00 s",
                Some(LogFact::RedoDone(position("0/3000060"))),
            ),
            (
                "[7] LOG:  recovery stopping after WAL location (LSN) \"0/3000060\"",
                Some(LogFact::Stopping(
                    "recovery stopping after WAL location (LSN) \"0/3000060\"".to_owned(),
                )),
            ),
            (
                "[7] LOG:  database system is ready to accept connections",
                Some(LogFact::Ready),
            ),
            (
                "[7] FATAL:  recovery ended before configured recovery target was reached",
                Some(LogFact::Failure(
                    "recovery ended before configured recovery target was reached".to_owned(),
                )),
            ),
            ("[7] LOG:  checkpoint starting: time", None),
            ("", None),
        ] {
            assert_eq!(log_fact(line), fact, "{line}");
        }
    }

    #[test]
    fn lines_written_in_pieces_come_whole() {
        use std::io::Write;
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let mut tail = LogTail::from_end(&path);
        assert!(tail.lines().expect("reads").is_empty());
        let mut file = File::create(&path).expect("creates");
        file.write_all(b"one\ntw").expect("writes");
        assert_eq!(tail.lines().expect("reads"), ["one"]);
        file.write_all(b"o\n").expect("writes");
        assert_eq!(tail.lines().expect("reads"), ["two"]);
    }
}
