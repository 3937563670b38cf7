//! A root key in a file.
//!
//! ```text
//! # comment lines
//! borealis-key-file 1
//! key-id: 32 hexadecimal digits
//! key: 44 characters of base64
//! crc32c: 8 hexadecimal digits, over the three lines before it, newlines included
//! ```
//!
//! The file is written beside its place under another name, synced, and then linked there, so a
//! crash leaves either a whole key file or none, and an existing one is never replaced.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind as IoKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use borealis_base::{Entropy, ObjectId};
use zeroize::Zeroizing;

use crate::{Error, KeyId, KeyProvider, SecretKey, WrapContext, WrappedKey, unwrap, wrap};

const HEADER: &str = "borealis-key-file ";
const VERSION: &str = "1";
/// A key file is a few hundred bytes; more is something else.
const FILE_BYTES_MAX: u64 = 16 * 1024;
const COMMENT: &str = "\
# This is the root key of a Borealis repository. Whoever has it and the repository can read every
# backup. Without it the backups cannot be read by anyone, ever: keep a copy in another place.
";

/// A root key that was read from, or written to, a key file.
#[derive(Debug, Clone)]
pub struct FileKey {
    path: PathBuf,
    secret: SecretKey,
    id: KeyId,
}

impl FileKey {
    /// Makes a new root key and writes it to `path` with mode 0600; durable when this returns.
    ///
    /// # Errors
    /// [`Error::Exists`] where `path` exists; [`Error::Io`] otherwise.
    pub fn create(path: &Path, entropy: &dyn Entropy) -> Result<Self, Error> {
        let secret = SecretKey::random(entropy);
        let io = |source| Error::Io {
            action: "write",
            path: path.to_owned(),
            source,
        };
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let draft = parent.join(format!(".borealis-key-{}", ObjectId::random(entropy)));
        let result = write_new(&draft, &render(&secret)).and_then(|()| fs::hard_link(&draft, path));
        let removed = fs::remove_file(&draft);
        match result {
            Err(error) if error.kind() == IoKind::AlreadyExists => {
                return Err(Error::Exists {
                    path: path.to_owned(),
                });
            }
            other => other.map_err(io)?,
        }
        removed.map_err(io)?;
        File::open(parent)
            .and_then(|dir| dir.sync_all())
            .map_err(io)?;
        Ok(Self {
            path: path.to_owned(),
            id: secret.id(),
            secret,
        })
    }

    /// Reads the root key in `path`.
    ///
    /// # Errors
    /// [`Error::Exposed`] where others than the owner have any right to the file;
    /// [`Error::NotAKeyFile`], [`Error::NewerKeyFile`] or [`Error::DamagedKeyFile`] for its content.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let io = |source| Error::Io {
            action: "read",
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() || metadata.len() > FILE_BYTES_MAX {
            return Err(Error::NotAKeyFile {
                path: path.to_owned(),
                what: "it is not a small regular file",
            });
        }
        let mode = metadata.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(Error::Exposed {
                path: path.to_owned(),
                mode,
            });
        }
        let mut bytes = Zeroizing::new(Vec::new());
        file.take(FILE_BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(io)?;
        let secret = parse(path, &bytes)?;
        Ok(Self {
            path: path.to_owned(),
            id: secret.id(),
            secret,
        })
    }

    /// A root key that is in no file, for tests and simulations.
    pub fn in_memory(entropy: &dyn Entropy) -> Self {
        let secret = SecretKey::random(entropy);
        Self {
            path: PathBuf::from("(memory)"),
            id: secret.id(),
            secret,
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn write_new(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn render(secret: &SecretKey) -> Zeroizing<String> {
    let key = Zeroizing::new(STANDARD.encode(secret.expose()));
    let body = Zeroizing::new(format!(
        "{HEADER}{VERSION}\nkey-id: {}\nkey: {}\n",
        secret.id(),
        key.as_str()
    ));
    Zeroizing::new(format!(
        "{COMMENT}{}crc32c: {:08x}\n",
        body.as_str(),
        crc32c::crc32c(body.as_bytes())
    ))
}

fn parse(path: &Path, bytes: &[u8]) -> Result<SecretKey, Error> {
    let other = |what| Error::NotAKeyFile {
        path: path.to_owned(),
        what,
    };
    let damaged = |what| Error::DamagedKeyFile {
        path: path.to_owned(),
        what,
    };
    let text = std::str::from_utf8(bytes).map_err(|_| other("it is not text"))?;
    let mut lines = text
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    let version = lines
        .next()
        .and_then(|line| line.strip_prefix(HEADER))
        .ok_or_else(|| other("its first line does not say so"))?;
    if version != VERSION {
        return Err(Error::NewerKeyFile {
            path: path.to_owned(),
        });
    }
    let mut field = |name: &str| lines.next().and_then(|line| line.strip_prefix(name));
    let (Some(id), Some(key), Some(crc)) = (field("key-id: "), field("key: "), field("crc32c: "))
    else {
        return Err(damaged("a line is missing"));
    };
    let body = Zeroizing::new(format!("{HEADER}{VERSION}\nkey-id: {id}\nkey: {key}\n"));
    if u32::from_str_radix(crc, 16) != Ok(crc32c::crc32c(body.as_bytes())) {
        return Err(damaged("its checksum does not agree with its lines"));
    }
    let decoded = Zeroizing::new(
        STANDARD
            .decode(key)
            .map_err(|_| damaged("the key is not base64"))?,
    );
    let secret =
        SecretKey::from_slice(&decoded).ok_or_else(|| damaged("the key has a wrong length"))?;
    if secret.id().to_string() != id {
        return Err(damaged("the key id is not the key's"));
    }
    Ok(secret)
}

impl From<&FileKey> for Arc<dyn KeyProvider> {
    fn from(key: &FileKey) -> Self {
        Arc::new(key.clone())
    }
}

#[async_trait]
impl KeyProvider for FileKey {
    fn scheme(&self) -> &'static str {
        "file"
    }

    fn key_id(&self) -> KeyId {
        self.id
    }

    fn place(&self) -> String {
        format!("key file {}", self.path.display())
    }

    async fn wrap(
        &self,
        context: &WrapContext,
        secret: &SecretKey,
        entropy: &dyn Entropy,
    ) -> Result<WrappedKey, Error> {
        Ok(wrap(&self.secret, context, secret, entropy))
    }

    async fn unwrap(
        &self,
        context: &WrapContext,
        wrapped: &WrappedKey,
    ) -> Result<SecretKey, Error> {
        if context.purpose == crate::Purpose::OwnerKey && context.subject != self.id.0 {
            return Err(Error::WrongKey {
                purpose: context.purpose.name(),
                wanted: KeyId(context.subject),
                held: self.id,
            });
        }
        unwrap(&self.secret, context, wrapped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_base::{ErrorKind, SeededEntropy};
    use std::os::unix::fs::PermissionsExt;

    fn made() -> (tempfile::TempDir, PathBuf, FileKey) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root.key");
        let key = FileKey::create(&path, &SeededEntropy::new(3)).unwrap();
        (dir, path, key)
    }

    #[test]
    fn a_key_file_is_readable_by_its_owner_only() {
        let (dir, path, key) = made();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(
            FileKey::read(&path).unwrap().secret.expose(),
            key.secret.expose()
        );
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "the draft is gone"
        );
    }

    #[test]
    fn an_exposed_key_file_is_refused_with_the_command_that_helps() {
        let (_dir, path, _) = made();
        for mode in [0o640, 0o604, 0o610, 0o602] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = FileKey::read(&path).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Refused);
            assert!(error.hint().unwrap().contains("chmod 600"));
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        FileKey::read(&path).unwrap();
    }

    #[test]
    fn a_key_file_is_never_overwritten() {
        let (dir, path, _) = made();
        let before = fs::read(&path).unwrap();
        let error = FileKey::create(&path, &SeededEntropy::new(4)).unwrap_err();
        assert!(matches!(error, Error::Exists { .. }));
        assert_eq!(fs::read(&path).unwrap(), before);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn every_changed_character_of_the_key_is_noticed() {
        let (_dir, path, _) = made();
        let text = fs::read_to_string(&path).unwrap();
        let start = text.find("borealis-key-file").unwrap();
        for at in start..text.len() - 1 {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'2' { b'3' } else { b'2' };
            assert!(
                parse(&path, &bytes).is_err(),
                "character {at} was changed unnoticed"
            );
        }
        for length in start..text.len() - 1 {
            assert!(
                parse(&path, &text.as_bytes()[..length]).is_err(),
                "cut at {length}"
            );
        }
    }

    #[test]
    fn other_files_are_told_from_damaged_and_from_newer_ones() {
        let path = Path::new("some.file");
        let kind = |text: &str| parse(path, text.as_bytes()).unwrap_err().kind();
        assert_eq!(kind(""), ErrorKind::Usage);
        assert_eq!(kind("-----BEGIN PRIVATE KEY-----\n"), ErrorKind::Usage);
        assert_eq!(
            kind("borealis-key-file 1\nkey-id: 00\n"),
            ErrorKind::Damaged
        );
        assert_eq!(kind("borealis-key-file 2\n"), ErrorKind::Refused);
    }

    #[tokio::test]
    async fn a_wrong_key_file_is_refused_and_is_not_damage() {
        let entropy = SeededEntropy::new(5);
        let (right, wrong) = (FileKey::in_memory(&entropy), FileKey::in_memory(&entropy));
        let context = WrapContext {
            purpose: crate::Purpose::OwnerKey,
            owner: [1; 16],
            subject: right.key_id().0,
        };
        let secret = SecretKey::random(&entropy);
        let wrapped = right.wrap(&context, &secret, &entropy).await.unwrap();
        let opened = right.unwrap(&context, &wrapped).await.unwrap();
        assert_eq!(opened.expose(), secret.expose());
        let error = wrong.unwrap(&context, &wrapped).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains(&right.key_id().to_string()));
    }
}
