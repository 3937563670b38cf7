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
    /// The name of a key makes no sense.
    #[error("key `{url}`: {what}")]
    BadUrl {
        /// The name, without what could be a secret.
        url: String,
        /// What is wrong with it.
        what: String,
    },
    /// A key service could not be asked, or answered "later".
    #[error("{service}: {what}")]
    Unreachable {
        /// The service.
        service: String,
        /// Its answer, or the lack of one.
        what: String,
    },
    /// A Vault that has been sealed answers nothing.
    #[error("{service} is sealed")]
    Sealed {
        /// The service.
        service: String,
    },
    /// The key service answered that the key may not be used.
    #[error("{key} {}: {said}", why.words())]
    Unusable {
        /// The key, with its service.
        key: String,
        /// Why.
        why: Why,
        /// The service's own words.
        said: String,
    },
    /// The key service says that another key has wrapped this.
    #[error("{key} did not wrap this {purpose}: {said}")]
    OtherKey {
        /// The key at hand, with its service.
        key: String,
        /// What was to be unwrapped.
        purpose: &'static str,
        /// How that is known.
        said: String,
    },
    /// A key of a kind that can't be a root key.
    #[error("{key} can't be a root key: {what}")]
    Unfit {
        /// The key, with its service.
        key: String,
        /// What is wrong with it.
        what: String,
    },
}

/// Why a key may not be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Somebody disabled it.
    Disabled,
    /// It is about to be deleted, or in another state in which it does nothing.
    Dying,
    /// There is no such key (any more).
    Gone,
    /// Whoever asks has no right to use it.
    Forbidden,
    /// Whoever asks is not known: credentials or token are missing, expired or revoked.
    Unknown,
    /// The version that wrapped is not to be used any more.
    VersionRetired,
}

impl Why {
    const fn words(self) -> &'static str {
        match self {
            Self::Disabled => "is disabled",
            Self::Dying => "is in a state in which it can't be used",
            Self::Gone => "does not exist",
            Self::Forbidden => "is forbidden to whoever asks here",
            Self::Unknown => "can't be used without valid credentials",
            Self::VersionRetired => {
                "may not be used in the version that wrapped the repository's key"
            }
        }
    }

    const fn hint(self) -> &'static str {
        match self {
            Self::Disabled => {
                "Nothing can be read or written until it is enabled again; or name another recipient's key."
            }
            Self::Dying => {
                "Nothing can be read or written until it can be used again: cancel its deletion and enable \
                 it while that is possible; or name another recipient's key."
            }
            Self::Gone => {
                "See whether it is named rightly, with region, mount and namespace. If it was deleted, only \
                 another recipient's key opens the repository."
            }
            Self::Forbidden => {
                "Give whoever runs this the right to use the key: kms:Decrypt, and kms:Encrypt and \
                 kms:DescribeKey to change recipients; in Vault `update` on MOUNT/decrypt/NAME, and on \
                 MOUNT/encrypt/NAME with `read` on MOUNT/keys/NAME to change recipients."
            }
            Self::Unknown => {
                "Give valid credentials: for AWS in the environment, a profile or a role; for Vault in \
                 VAULT_TOKEN, VAULT_TOKEN_FILE or ~/.vault-token."
            }
            Self::VersionRetired => {
                "Lower min_decryption_version of the key, run borealis key rewrap, and raise it again."
            }
        }
    }
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
            Self::Io { .. } | Self::Unreachable { .. } | Self::Sealed { .. } => {
                ErrorKind::Unreachable
            }
            Self::Exists { .. }
            | Self::Exposed { .. }
            | Self::NewerKeyFile { .. }
            | Self::WrongKey { .. }
            | Self::OtherKey { .. }
            | Self::Unfit { .. } => ErrorKind::Refused,
            Self::NotAKeyFile { .. } | Self::BadUrl { .. } => ErrorKind::Usage,
            Self::Unusable { .. } => ErrorKind::KeyUnusable,
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
            Self::OtherKey { .. } => Some(
                "Another key of the same name, or the same key of another service, is named here: name \
                 the one that borealis key list shows."
                    .to_owned(),
            ),
            Self::Sealed { .. } => {
                Some("Have it unsealed; until then nothing can be opened with its keys.".to_owned())
            }
            Self::Unusable { why, .. } => Some(why.hint().to_owned()),
            Self::Unfit { .. } => Some(
                "Name a symmetric key that encrypts and decrypts: SYMMETRIC_DEFAULT in AWS KMS, \
                 aes256-gcm96 in Vault."
                    .to_owned(),
            ),
            Self::BadWrap { .. } | Self::BadUrl { .. } | Self::Unreachable { .. } => None,
        }
    }
}
