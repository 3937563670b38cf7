//! How a command fails: one message, what to do about it, and an exit code that scripts can rely on.

use std::error::Error;
use std::fmt;
use std::io::Write;

use borealis_base::ErrorKind;

/// The lag is beyond `--fail-if-lag`.
pub const EXIT_LAG: u8 = 9;

/// `borealis wal fetch` could not find out whether PostgreSQL needs the file. Above 125, so that
/// PostgreSQL stops instead of ending recovery (`RestoreArchivedFile` in `xlogarchive.c`).
pub const EXIT_LOG_UNKNOWN: u8 = 200;

/// The exit code of each kind of failure. The table in `docs/exit-codes.md` is checked against this.
pub const fn exit_code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Bug => 1,
        ErrorKind::Usage => 2,
        ErrorKind::Refused => 3,
        ErrorKind::NotFound => 4,
        ErrorKind::Unreachable => 5,
        ErrorKind::Damaged => 6,
        ErrorKind::Fenced => 7,
        ErrorKind::Interrupted => 8,
        ErrorKind::KeyUnusable => 10,
    }
}

/// The word for each kind of failure, as JSON answers carry it.
pub const fn word(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Bug => "defect",
        ErrorKind::Usage => "usage",
        ErrorKind::Refused => "refused",
        ErrorKind::NotFound => "not found",
        ErrorKind::Unreachable => "unreachable",
        ErrorKind::Damaged => "damaged",
        ErrorKind::Fenced => "fenced",
        ErrorKind::Interrupted => "interrupted",
        ErrorKind::KeyUnusable => "key unusable",
    }
}

/// A failed command.
#[derive(Debug)]
pub struct Failure {
    /// What kind, and so which exit code.
    pub kind: ErrorKind,
    /// What happened, naming the object.
    pub message: String,
    /// What to do, as a full sentence.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure of `kind`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
        }
    }

    /// A malformed request.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, message)
    }

    /// A failure of one of the crates, with the causes that its message does not tell.
    fn of(kind: ErrorKind, error: &dyn Error, hint: Option<String>) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            let told = inner.to_string();
            if !message.contains(&told) {
                message = format!("{message}: {told}");
            }
            cause = inner.source();
        }
        Self {
            kind,
            message,
            hint,
        }
    }

    /// Prints it to standard error.
    pub fn print(&self, json: bool) {
        let shown = if json {
            serde_json::json!({
                "error": word(self.kind), "message": self.message, "hint": self.hint,
            })
            .to_string()
        } else {
            format!("error: {self}")
        };
        // There is nowhere else to say it.
        let _ = writeln!(std::io::stderr(), "{shown}");
    }

    /// Adds what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

impl From<borealis_operations::Error> for Failure {
    fn from(error: borealis_operations::Error) -> Self {
        Self::of(error.kind(), &error, error.hint())
    }
}

impl From<borealis_repository::Error> for Failure {
    fn from(error: borealis_repository::Error) -> Self {
        Self::of(error.kind(), &error, error.hint())
    }
}

impl From<borealis_repository::store::StoreError> for Failure {
    fn from(error: borealis_repository::store::StoreError) -> Self {
        borealis_repository::Error::from(error).into()
    }
}

impl From<borealis_repository::plan::PlanError> for Failure {
    fn from(error: borealis_repository::plan::PlanError) -> Self {
        Self::of(error.kind(), &error, error.hint())
    }
}

impl From<borealis_pg_server::Error> for Failure {
    fn from(error: borealis_pg_server::Error) -> Self {
        Self::of(error.kind(), &error, error.hint())
    }
}

impl From<borealis_keys::Error> for Failure {
    fn from(error: borealis_keys::Error) -> Self {
        let hint = error.hint();
        Self::of(error.kind(), &error, hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [ErrorKind; 9] = [
        ErrorKind::Bug,
        ErrorKind::Usage,
        ErrorKind::Refused,
        ErrorKind::NotFound,
        ErrorKind::Unreachable,
        ErrorKind::Damaged,
        ErrorKind::Fenced,
        ErrorKind::Interrupted,
        ErrorKind::KeyUnusable,
    ];

    #[test]
    fn the_page_of_exit_codes_lists_exactly_these() {
        let page = include_str!("../../../docs/exit-codes.md");
        let listed: Vec<(u8, String)> = (page.lines())
            .filter_map(|line| {
                let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
                Some((cells.next()?.parse().ok()?, cells.next()?.to_owned()))
            })
            .collect();
        let mut expected = vec![(0, String::new())];
        expected.extend(KINDS.map(|kind| (exit_code(kind), word(kind).to_owned())));
        expected.push((EXIT_LAG, String::new()));
        expected.sort();
        assert_eq!(listed, expected);
        assert!(page.contains(&format!(" {EXIT_LOG_UNKNOWN} it could not be found out")));
    }

    #[derive(Debug, thiserror::Error)]
    #[error("write /x")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn causes_are_told_once() {
        let failure = Failure::of(
            ErrorKind::Refused,
            &Outer(std::io::Error::other("disk full")),
            Some("Free space.".to_owned()),
        );
        assert_eq!(
            failure.to_string(),
            "write /x: disk full\nhint: Free space."
        );
    }
}
