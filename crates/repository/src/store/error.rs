//! What a store can answer.

use borealis_base::ErrorKind;

/// The operation of which a failure is about the store as a whole.
pub(super) const OPEN: &str = "open";

/// The kinds of failure that a caller treats differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreErrorKind {
    /// The object does not exist; proven by looking.
    NotFound,
    /// No answer, or one that says "later". After a create this is ambiguous: it may have happened,
    /// or may yet happen.
    Unreachable,
    /// The caller lacks a right.
    Denied,
    /// No room.
    Full,
    /// The store does not create atomically, and the repository's URL forbids to write to such a one.
    SingleWriter,
    /// The request makes no sense to this store.
    Invalid,
}

/// A failure of a store.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{operation} {}: {what}", place(name, url))]
pub struct StoreError {
    /// What kind of failure.
    pub kind: StoreErrorKind,
    /// `create`, `read`, ...
    pub operation: &'static str,
    /// The object.
    pub name: String,
    /// The store.
    pub url: String,
    /// The store's own words.
    pub what: String,
}

/// The store itself is named once.
fn place(name: &str, url: &str) -> String {
    if name == url {
        format!("repository {url}")
    } else {
        format!("{name} in {url}")
    }
}

impl StoreError {
    /// A failure of `operation` on object `name` of the store at `url`.
    pub fn new(
        kind: StoreErrorKind,
        operation: &'static str,
        name: &str,
        url: &str,
        what: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            operation,
            name: name.to_owned(),
            url: url.to_owned(),
            what: what.into(),
        }
    }

    /// What the caller can do.
    pub fn kind(&self) -> ErrorKind {
        match self.kind {
            StoreErrorKind::NotFound => ErrorKind::NotFound,
            StoreErrorKind::Unreachable => ErrorKind::Unreachable,
            StoreErrorKind::Denied | StoreErrorKind::Full | StoreErrorKind::SingleWriter => {
                ErrorKind::Refused
            }
            StoreErrorKind::Invalid => ErrorKind::Usage,
        }
    }

    /// Whether the same request can succeed later without anyone changing it. A full store counts:
    /// someone may make room.
    pub fn is_transient(&self) -> bool {
        matches!(
            self.kind,
            StoreErrorKind::Unreachable | StoreErrorKind::Full
        )
    }

    /// A full sentence that helps, where there is one.
    pub fn hint(&self) -> Option<String> {
        match self.kind {
            StoreErrorKind::Full => Some(format!("Make room in {} and try again.", self.url)),
            StoreErrorKind::Denied if self.url.starts_with("s3:") => Some(format!(
                "Check the credentials, and that they give the right to {} objects in {}.",
                self.operation, self.url
            )),
            StoreErrorKind::Denied => Some(format!(
                "Give this user the right to {} objects in {}.",
                self.operation, self.url
            )),
            StoreErrorKind::SingleWriter => Some(
                "Use a store that honours `If-None-Match: *`, or allow single-writer mode by leaving \
                 single-writer=forbid out of the URL."
                    .to_owned(),
            ),
            StoreErrorKind::NotFound if self.operation == OPEN => {
                Some("Name the repository's folder, or make one with borealis init.".to_owned())
            }
            StoreErrorKind::Invalid if self.operation == OPEN => {
                Some("Name a folder, as a path or as file:///path, or a bucket as s3://bucket/prefix.".to_owned())
            }
            _ => None,
        }
    }
}
