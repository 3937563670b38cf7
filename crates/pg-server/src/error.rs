//! What can go wrong with a server, and what a caller should do about it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use borealis_base::ErrorKind;

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure of a connection, a server or its files. No message ever holds a password.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection string cannot be understood.
    #[error("connection string: {0}")]
    ConnInfo(String),

    /// The connection string holds a secret, which the process list would show.
    #[error("the connection string holds a secret (`{0}`)")]
    SecretInArgument(&'static str),

    /// An option that changes how safe a connection is, and that this client does not have.
    #[error("connection option `{0}` is not supported")]
    UnsupportedOption(String),

    /// A file could not be read or written.
    #[error("{action} {}: {source}", path.display())]
    File {
        /// What was tried, such as `read`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },

    /// A file that holds secrets may be read by others.
    #[error("{}: {problem}", path.display())]
    UnsafeFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with its mode or content.
        problem: String,
    },

    /// No connection.
    #[error("connect to {to}: {detail}")]
    Connect {
        /// The host and port.
        to: String,
        /// Why it failed.
        detail: String,
    },

    /// The server's certificate or its TLS does not satisfy `sslmode`.
    #[error("tls with {to}: {detail}")]
    Tls {
        /// The host and port.
        to: String,
        /// Why it failed.
        detail: String,
    },

    /// The server wants a login that this client refuses or cannot give.
    #[error("log in to {to}: {detail}")]
    Login {
        /// The host and port.
        to: String,
        /// Why it failed.
        detail: String,
    },

    /// The server answered with an error.
    #[error("{severity} {sqlstate}: {message}{}", detail.as_deref().map(|d| format!(" ({d})")).unwrap_or_default())]
    Server {
        /// The doing that failed, in the server's words (`ERROR`, `FATAL`).
        severity: String,
        /// The five characters of SQLSTATE.
        sqlstate: String,
        /// The primary message.
        message: String,
        /// The detail, where given.
        detail: Option<String>,
        /// The server's hint, where given.
        hint: Option<String>,
    },

    /// The link broke.
    #[error("link to {to}: {detail}")]
    Lost {
        /// The host and port.
        to: String,
        /// What was seen.
        detail: String,
    },

    /// The peer has been silent for too long.
    #[error("no message from {to} for {} s", after.as_secs())]
    Silent {
        /// The host and port.
        to: String,
        /// How long was waited.
        after: Duration,
    },

    /// The server sent what the protocol does not allow.
    #[error("unexpected answer from {to}: {detail}")]
    Protocol {
        /// The host and port.
        to: String,
        /// What was unexpected.
        detail: String,
    },

    /// A value read from the server has another form than expected.
    #[error("server value `{name}`: {detail}")]
    Value {
        /// The column or setting.
        name: String,
        /// What is wrong.
        detail: String,
    },

    /// The named thing does not exist on the server.
    #[error("{0} does not exist")]
    NotFound(String),

    /// A state in which the request is not allowed.
    #[error("{0}")]
    Refused(String),

    /// No program of the wanted major version.
    #[error("no PostgreSQL {major} programs found; looked in {looked}")]
    NoBinaries {
        /// The major version wanted.
        major: u32,
        /// Where was looked, and what was found there.
        looked: String,
    },

    /// A program failed.
    #[error("{program}: {detail}")]
    Program {
        /// The program.
        program: String,
        /// Its last words or exit code.
        detail: String,
    },

    /// A deadline passed.
    #[error("{what} not reached within {} s{}", after.as_secs(), if last.is_empty() { String::new() } else { format!(": {last}") })]
    Deadline {
        /// What was waited for.
        what: String,
        /// How long.
        after: Duration,
        /// What was seen last.
        last: String,
    },

    /// Stopped on request.
    #[error("{0} was cancelled")]
    Cancelled(&'static str),
}

impl Error {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::ConnInfo(_) => ErrorKind::Usage,
            Self::SecretInArgument(_)
            | Self::UnsupportedOption(_)
            | Self::UnsafeFile { .. }
            | Self::Tls { .. }
            | Self::Login { .. }
            | Self::Refused(_) => ErrorKind::Refused,
            Self::File { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                ErrorKind::NotFound
            }
            Self::File { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                ErrorKind::Refused
            }
            Self::File { .. }
            | Self::Connect { .. }
            | Self::Lost { .. }
            | Self::Silent { .. }
            | Self::Program { .. }
            | Self::Deadline { .. } => ErrorKind::Unreachable,
            Self::Server { sqlstate, .. } => kind_of_sqlstate(sqlstate),
            Self::Protocol { .. } | Self::Value { .. } => ErrorKind::Bug,
            Self::NotFound(_) | Self::NoBinaries { .. } => ErrorKind::NotFound,
            Self::Cancelled(_) => ErrorKind::Interrupted,
        }
    }

    /// One sentence that helps, where there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::SecretInArgument(_) => Some(
                "Give the password in PGPASSWORD, in a file of mode 0600 named by PGPASSFILE \
                 (default ~/.pgpass), or in a service file named by PGSERVICEFILE."
                    .to_owned(),
            ),
            Self::NoBinaries { major, .. } => Some(format!(
                "Install the server programs of PostgreSQL {major} or name their directory in BOREALIS_PG_BIN."
            )),
            Self::Server { hint, .. } => hint.clone(),
            _ => None,
        }
    }

    /// The SQLSTATE of a server's error.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Server { sqlstate, .. } => Some(sqlstate),
            _ => None,
        }
    }

    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::File {
            action,
            path: path.into(),
            source,
        }
    }

    /// Turns a failure of `tokio_postgres` on the link to `to` into ours.
    pub(crate) fn from_sql(to: &str, error: &tokio_postgres::Error) -> Self {
        if let Some(db) = error.as_db_error() {
            return Self::Server {
                severity: db.severity().to_owned(),
                sqlstate: db.code().code().to_owned(),
                message: db.message().to_owned(),
                detail: db.detail().map(str::to_owned),
                hint: db.hint().map(str::to_owned),
            };
        }
        let mut detail = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            if !detail.contains(&cause.to_string()) {
                detail = format!("{detail}: {cause}");
            }
            if let Some(io) = cause.downcast_ref::<io::Error>()
                && io.kind() == io::ErrorKind::PermissionDenied
            {
                return Self::Login {
                    to: to.to_owned(),
                    detail: io.to_string(),
                };
            }
            source = cause.source();
        }
        // The library has no way to ask for the kind of these.
        if detail.starts_with("authentication error") || detail.starts_with("invalid configuration")
        {
            return Self::Login {
                to: to.to_owned(),
                detail,
            };
        }
        Self::Lost {
            to: to.to_owned(),
            detail,
        }
    }
}

/// Classes of SQLSTATE (`src/backend/utils/errcodes.txt`).
fn kind_of_sqlstate(sqlstate: &str) -> ErrorKind {
    match sqlstate {
        // undefined_object: a slot; undefined_file: log that the server has already removed.
        "42704" | "58P01" | "3D000" => ErrorKind::NotFound,
        _ => match sqlstate.get(..2) {
            // 40: among others, a session of a standby that replay has cancelled. 57: among others, a statement
            // that somebody has cancelled on the server (57014). That is no interruption: nobody asked us to stop.
            Some("08" | "40" | "53" | "57" | "58") => ErrorKind::Unreachable,
            Some("XX") => ErrorKind::Damaged,
            _ => ErrorKind::Refused,
        },
    }
}
