//! How a command fails: one message, what to do about it, and an exit code that scripts can rely on.

use std::fmt;

use borealis_base::ErrorKind;

/// The lag is beyond `--fail-if-lag`.
pub const EXIT_LAG: u8 = 9;

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
