//! System users, read from `/etc/passwd`. The C library would also ask network name services; asking
//! it needs calls that are not memory safe, and a database's user is a local one everywhere we know.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

const PASSWD: &str = "/etc/passwd";

/// A system user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemUser {
    /// The login name.
    pub name: String,
    /// The user number.
    pub uid: u32,
    /// The number of its own group.
    pub gid: u32,
    /// The home directory.
    pub home: PathBuf,
}

fn parse(passwd: &str, wanted: impl Fn(&SystemUser) -> bool) -> Option<SystemUser> {
    passwd
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?.to_owned();
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            let home = fields.nth(1)?.into();
            Some(SystemUser {
                name,
                uid,
                gid,
                home,
            })
        })
        .find(wanted)
}

fn passwd() -> Result<String> {
    std::fs::read_to_string(PASSWD).map_err(|e| Error::file("read", Path::new(PASSWD), e))
}

/// The user called `name`.
pub fn by_name(name: &str) -> Result<SystemUser> {
    parse(&passwd()?, |user| user.name == name)
        .ok_or_else(|| Error::NotFound(format!("system user `{name}`")))
}

/// The user numbered `uid`.
pub fn by_uid(uid: u32) -> Result<SystemUser> {
    parse(&passwd()?, |user| user.uid == uid)
        .ok_or_else(|| Error::NotFound(format!("system user {uid}")))
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub(crate) fn name_of_this_user() -> Option<String> {
    by_uid(rustix::process::geteuid().as_raw())
        .ok()
        .map(|user| user.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_number() {
        let text = "root:x:0:0:root:/root:/bin/bash\nbroken\n\
                    postgres:x:101:104:admin,,,:/var/lib/postgresql:/bin/bash\n";
        let user = parse(text, |user| user.name == "postgres").expect("is listed");
        assert_eq!((user.uid, user.gid), (101, 104));
        assert_eq!(user.home, Path::new("/var/lib/postgresql"));
        assert_eq!(parse(text, |user| user.uid == 101), Some(user));
        assert_eq!(parse(text, |user| user.name == "post"), None);
    }
}
