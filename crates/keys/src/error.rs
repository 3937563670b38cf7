//! What can go wrong with keys.

use std::io::ErrorKind as IoKind;
use std::path::PathBuf;

use borealis_base::ErrorKind;

use crate::KeyId;

/// A failure to make, read or use a key. No variant ever holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A key file cannot be read or written.
    #[error("{action} key file {path}: {source}")]
    Io {
        /// `read`, `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A key file would be overwritten.
    #[error("key file {path} already exists")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A key file is readable by others.
    #[error("key file {path} has mode {mode:04o}: others than its owner can read it")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is no key file.
    #[error("{path} is not a Borealis key file: {what}")]
    NotAKeyFile {
        /// The file.
        path: PathBuf,
        /// What was found instead.
        what: &'static str,
    },
    /// The key file's version is newer than this program.
    #[error("key file {path} was written by a newer version of Borealis")]
    NewerKeyFile {
        /// The file.
        path: PathBuf,
    },
    /// The key file was changed after it was written.
    #[error("key file {path} is damaged: {what}")]
    DamagedKeyFile {
        /// The file.
        path: PathBuf,
        /// What does not agree.
        what: &'static str,
    },
    /// The key that wrapped is another one.
    #[error("the {purpose} is wrapped by key {wanted}, not by key {held}")]
    WrongKey {
        /// What was to be unwrapped.
        purpose: &'static str,
        /// The key that can unwrap it.
        wanted: KeyId,
        /// The key at hand.
        held: KeyId,
    },
    /// The wrapped bytes were changed, or belong to another owner.
    #[error("the wrapped {purpose} of {owner} fails authentication")]
    BadWrap {
        /// What was to be unwrapped.
        purpose: &'static str,
        /// Whose key it is, as hexadecimal.
        owner: String,
    },
    /// A key service could not be asked.
    #[error("key service {service}: {what}")]
    Unreachable {
        /// The service.
        service: String,
        /// Its answer, or the lack of one.
        what: String,
    },
}

/// Whether the operating system's answer stays the same until someone makes room or gives a right.
fn refuses(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        IoKind::StorageFull
            | IoKind::QuotaExceeded
            | IoKind::PermissionDenied
            | IoKind::ReadOnlyFilesystem
            | IoKind::NotADirectory
    )
}

impl Error {
    /// What the caller can do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                ErrorKind::NotFound
            }
            Self::Io { source, .. } if refuses(source) => ErrorKind::Refused,
            Self::Io { .. } | Self::Unreachable { .. } => ErrorKind::Unreachable,
            Self::Exists { .. }
            | Self::Exposed { .. }
            | Self::NewerKeyFile { .. }
            | Self::WrongKey { .. } => ErrorKind::Refused,
            Self::NotAKeyFile { .. } => ErrorKind::Usage,
            Self::DamagedKeyFile { .. } | Self::BadWrap { .. } => ErrorKind::Damaged,
        }
    }

    /// A sentence that helps, where there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Exposed { path, .. } => {
                Some(format!("Run `chmod 600 {}` and try again.", path.display()))
            }
            Self::Exists { .. } => Some(
                "A key file is never overwritten, because the backups sealed with it would be lost; \
                 name another file, or use this one."
                    .to_owned(),
            ),
            Self::Io { action, source, .. } => Some(match source.kind() {
                IoKind::StorageFull | IoKind::QuotaExceeded => {
                    "Make room there, or name another place for the key file.".to_owned()
                }
                IoKind::NotFound if *action == "read" => {
                    "Name the repository's key file; if it is lost, bring it back from the copy you \
                     keep of it."
                        .to_owned()
                }
                IoKind::NotFound | IoKind::NotADirectory => {
                    "Make its folder first, or name another place for the key file.".to_owned()
                }
                IoKind::PermissionDenied | IoKind::ReadOnlyFilesystem => {
                    format!("Give this user the right to {action} it, or name another key file.")
                }
                _ => return None,
            }),
            Self::NotAKeyFile { .. } => {
                Some("Name the file that borealis init made, with --key-file.".to_owned())
            }
            Self::NewerKeyFile { .. } => {
                Some("Use the version of Borealis that wrote it, or a newer one.".to_owned())
            }
            Self::DamagedKeyFile { .. } => {
                Some("Bring the file back from the copy you keep of it.".to_owned())
            }
            Self::WrongKey { wanted, .. } => {
                Some(format!("Name the key file that holds key {wanted}."))
            }
            _ => None,
        }
    }
}
