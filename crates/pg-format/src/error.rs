//! What can be wrong with PostgreSQL's bytes.

use borealis_base::ErrorKind;

/// Why something could not be understood. The log reader has no errors: what it cannot read it
/// reports as an event, because nothing in the log may stop the archiving of the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The control file is too short, torn or not a control file.
    #[error("global/pg_control: {0}")]
    ControlFile(String),
    /// The control file is of a major version that is not supported.
    #[error("global/pg_control: control file version {0} is not supported")]
    ControlFileVersion(u32),
    /// A `backup_label` that PostgreSQL would not accept.
    #[error("backup_label: {0}")]
    BackupLabel(String),
    /// A `tablespace_map` that PostgreSQL would not accept.
    #[error("tablespace_map: {0}")]
    TablespaceMap(String),
    /// A timeline history file that PostgreSQL would not accept.
    #[error("{file}: line {line}: {reason}")]
    History {
        /// The file's name.
        file: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A stored log index, or a stored carry state, that is not one.
    #[error("log index: {0}")]
    Index(String),
}

impl Error {
    /// What the caller can do.
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::ControlFileVersion(_) => ErrorKind::Refused,
            Self::ControlFile(_)
            | Self::BackupLabel(_)
            | Self::TablespaceMap(_)
            | Self::History { .. }
            | Self::Index(_) => ErrorKind::Damaged,
        }
    }

    /// A sentence that helps a person on, where there is one.
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::ControlFile(_) => Some(
                "A control file that is read while the server writes it can be torn: read it again.",
            ),
            Self::ControlFileVersion(_) => Some("PostgreSQL 14 to 18 are supported."),
            _ => None,
        }
    }
}
