//! What can go wrong when a server and a repository are joined.

use std::path::{Path, PathBuf};

use borealis_base::ErrorKind;

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server, its files or its connection.
    #[error(transparent)]
    Server(#[from] borealis_pg_server::Error),
    /// The repository.
    #[error(transparent)]
    Repository(#[from] borealis_repository::Error),
    /// Bytes of PostgreSQL that do not make sense.
    #[error(transparent)]
    Format(#[from] borealis_pg_format::Error),
    /// A local file.
    #[error("{action} {}: {source}", path.display())]
    File {
        /// What was tried, such as `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The server has another history than the one that is stored, under the same numbers.
    #[error("{0}")]
    Rewritten(String),
    /// Any failure that this crate finds itself.
    #[error("{message}")]
    Told {
        /// What the caller can do about it.
        kind: ErrorKind,
        /// What happened, naming the object.
        message: String,
        /// What to do, as a full sentence.
        hint: Option<String>,
    },
}

impl Error {
    /// A failure of `kind`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self::Told {
            kind,
            message: message.into(),
            hint: None,
        }
    }

    /// A failure of `kind`, with what to do about it.
    pub fn with_hint(kind: ErrorKind, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Told {
            kind,
            message: message.into(),
            hint: Some(hint.into()),
        }
    }

    /// A request that is not allowed in this state, with what would allow it.
    pub fn refused(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::with_hint(ErrorKind::Refused, message, hint)
    }

    /// Whether the same can succeed later without anyone changing the request. A full repository
    /// counts: someone may make room.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Repository(error) => error.is_transient(),
            other => other.kind() == ErrorKind::Unreachable,
        }
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Server(error) => error.kind(),
            Self::Repository(error) => error.kind(),
            Self::Format(error) => error.kind(),
            Self::File { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                ErrorKind::NotFound
            }
            Self::File { .. } | Self::Rewritten(_) => ErrorKind::Refused,
            Self::Told { kind, .. } => *kind,
        }
    }

    /// One sentence that helps, where there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Server(error) => error.hint(),
            Self::Repository(error) => error.hint(),
            Self::Format(error) => error.hint().map(str::to_owned),
            Self::File { source, .. } => match source.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                    Some("Free space there and run the command again.".to_owned())
                }
                std::io::ErrorKind::NotADirectory | std::io::ErrorKind::NotFound => Some(
                    "A part of this path is missing or is not a directory; name another one."
                        .to_owned(),
                ),
                std::io::ErrorKind::PermissionDenied => {
                    Some("Run as a user who may, for example as root.".to_owned())
                }
                _ => None,
            },
            Self::Rewritten(_) => Some(
                "Name the right server with --source, or protect this one under another name with --cluster."
                    .to_owned(),
            ),
            Self::Told { hint, .. } => hint.clone(),
        }
    }
}

/// Names the file and the doing of a failed file operation.
pub(crate) trait FileContext<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T> FileContext<T> for std::io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::File {
            action,
            path: path.to_owned(),
            source,
        })
    }
}
