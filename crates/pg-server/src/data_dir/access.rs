//! Whether a server's files are read here or through its SQL.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{AgentlessDataDir, DataDir, LocalDataDir, why_not_the_servers};
use crate::error::Result;
use crate::link::SqlLink;

/// When files are read through SQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Agentless {
    /// Where the server's data directory can't be read here.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// How the files of a server are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// From its data directory on this machine.
    Local(PathBuf),
    /// Through its SQL.
    Agentless {
        /// Why.
        because: String,
    },
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(dir) => write!(f, "files are read from {}", dir.display()),
            Self::Agentless { because } => {
                write!(f, "agentless, files are read through SQL: {because}")
            }
        }
    }
}

impl Access {
    /// The directory on this machine.
    pub fn local(&self) -> Option<&Path> {
        match self {
            Self::Local(dir) => Some(dir),
            Self::Agentless { .. } => None,
        }
    }

    /// The files of the server at `session`.
    pub async fn open(&self, session: &SqlLink) -> Result<Arc<dyn DataDir>> {
        Ok(match self {
            Self::Local(dir) => Arc::new(LocalDataDir::new(dir)),
            Self::Agentless { .. } => Arc::new(AgentlessDataDir::open(session).await?),
        })
    }
}

/// Chooses how the files of the server at `link` are read. One that names a directory on this machine means
/// that; else it is the server's own, `said`, if it is here and the server runs on it. `None` where files are
/// to be read here and nobody says where they are.
///
/// # Errors
/// A lost link.
pub async fn choose(
    link: &SqlLink,
    named: Option<&Path>,
    said: Option<&Path>,
    agentless: Agentless,
) -> Result<Option<Access>> {
    if agentless == Agentless::Always {
        let because = "asked for".to_owned();
        return Ok(Some(Access::Agentless { because }));
    }
    let local = |dir: &Path| Some(Access::Local(dir.to_owned()));
    match (named, said) {
        (Some(named), _) => Ok(local(named)),
        (None, Some(said)) if agentless == Agentless::Never => Ok(local(said)),
        (None, Some(said)) => Ok(match why_not_the_servers(said, link).await? {
            None => local(said),
            Some(reason) => Some(Access::Agentless {
                because: format!("{} is not read here: {reason}", said.display()),
            }),
        }),
        (None, None) => Ok(None),
    }
}
