//! What can go wrong with a repository.

use borealis_base::{ErrorKind, LineageId, RepositoryId};
use borealis_keys::{DataKeyId, KeyId};

use crate::keyring::Recipient;

use crate::store::{StoreError, StoreErrorKind};

/// The result of anything a repository does.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of a repository. Every message names the object or thing it is about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A key could not be read or used.
    #[error(transparent)]
    Keys(#[from] borealis_keys::Error),
    /// An object's bytes are not what was written.
    #[error("{object} is damaged: {what}")]
    Damaged {
        /// The object's name in the store.
        object: String,
        /// What does not agree.
        what: String,
    },
    /// An object that another one names is not there.
    #[error("{object} is missing; {needed_by} names it")]
    Missing {
        /// The object's name in the store.
        object: String,
        /// Who names it.
        needed_by: String,
    },
    /// An object was written by a newer version.
    #[error("{object} was written by a newer version of Borealis ({what})")]
    Newer {
        /// The object's name in the store.
        object: String,
        /// What is not known here: a version, a feature bit, a kind.
        what: String,
    },
    /// An object is sealed with a data key that the key ring at hand does not hold.
    #[error("{object} is sealed with data key {key}, which the key ring does not hold")]
    UnknownDataKey {
        /// The object's name in the store.
        object: String,
        /// The data key.
        key: DataKeyId,
    },
    /// The root key at hand is none of the repository's recipients.
    #[error(
        "repository {repository} is sealed for {}; {place} holds key {held}",
        list_keys(wanted, " and ")
    )]
    WrongRootKey {
        /// The repository.
        repository: RepositoryId,
        /// Its recipients.
        wanted: Vec<Recipient>,
        /// Where the key at hand is.
        place: String,
        /// The key at hand.
        held: KeyId,
    },
    /// What was named does not exist.
    #[error("{what} does not exist")]
    NotFound {
        /// The thing, such as "cluster `shop`".
        what: String,
    },
    /// Understood, and not allowed in this state.
    #[error("{what}")]
    Refused {
        /// What is refused and why.
        what: String,
        /// What would allow it.
        hint: Option<String>,
    },
    /// A malformed argument.
    #[error("{what}")]
    Usage {
        /// What is wrong with it.
        what: String,
    },
    /// Another writer has taken over the lineage.
    #[error("the writer of epoch {epoch} of lineage {lineage} is superseded by epoch {by}")]
    Fenced {
        /// The lineage.
        lineage: LineageId,
        /// The superseded epoch.
        epoch: u64,
        /// The epoch that was seen to follow it.
        by: u64,
    },
    /// A writer whose last append ended without an answer; whether it happened is not known here.
    #[error(
        "the writer of lineage {lineage} gave up on entry {entry} without an answer; open a new one"
    )]
    Poisoned {
        /// The lineage.
        lineage: LineageId,
        /// The entry whose fate is unknown to this writer.
        entry: u64,
    },
    /// A defect of Borealis.
    #[error("defect: {what}")]
    Bug {
        /// What cannot be.
        what: String,
    },
}

fn list_keys(keys: &[Recipient], between: &str) -> String {
    let names: Vec<String> = keys.iter().map(Recipient::to_string).collect();
    match names.len() {
        0 => "no key".to_owned(),
        _ => names.join(between),
    }
}

impl Error {
    /// `object` is damaged in the way that `what` says.
    pub fn damaged(object: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Damaged {
            object: object.into(),
            what: what.into(),
        }
    }

    /// Refused, with a sentence that says what would allow it.
    pub fn refused(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Refused {
            what: what.into(),
            hint: Some(hint.into()),
        }
    }

    /// Whether the store answered that the object does not exist.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Store(error) if error.kind == StoreErrorKind::NotFound)
    }

    /// Turns the store's "does not exist" into the damage it is when another object names this one.
    #[must_use]
    pub fn named_by(self, needed_by: impl Into<String>) -> Self {
        match self {
            Self::Store(error) if error.kind == StoreErrorKind::NotFound => Self::Missing {
                object: error.name,
                needed_by: needed_by.into(),
            },
            other => other,
        }
    }

    /// Whether the same can succeed later without anyone changing the request. A full store counts:
    /// someone may make room.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Store(error) => error.is_transient(),
            other => other.kind() == ErrorKind::Unreachable,
        }
    }

    /// What the caller can do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(error) => error.kind(),
            Self::Keys(error) => error.kind(),
            Self::Damaged { .. } | Self::Missing { .. } => ErrorKind::Damaged,
            Self::Newer { .. }
            | Self::UnknownDataKey { .. }
            | Self::WrongRootKey { .. }
            | Self::Refused { .. } => ErrorKind::Refused,
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Usage { .. } => ErrorKind::Usage,
            Self::Fenced { .. } => ErrorKind::Fenced,
            Self::Poisoned { .. } => ErrorKind::Unreachable,
            Self::Bug { .. } => ErrorKind::Bug,
        }
    }

    /// A full sentence that helps, where there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Store(error) => error.hint(),
            Self::Keys(error) => error.hint(),
            Self::Newer { .. } => {
                Some("Use the version of Borealis that wrote it, or a newer one.".to_owned())
            }
            Self::UnknownDataKey { .. } => Some(
                "The object belongs to another lineage, or the newest key ring was removed from the store."
                    .to_owned(),
            ),
            Self::WrongRootKey { wanted, .. } => {
                let wanted_keys = list_keys(wanted, " or ");
                Some(if wanted.iter().all(|recipient| recipient.label.is_empty()) {
                    format!("Name the key file that holds {wanted_keys}.")
                } else {
                    format!("Name with --key the key file or the service's key that is {wanted_keys}.")
                })
            }
            Self::Refused { hint, .. } => hint.clone(),
            _ => None,
        }
    }
}
