//! Which servers the tests run, and where they are.
//!
//! One of them is Debian's; `scripts/setup test` installs the others, each in a folder named by its major.
//! A server that is missing fails the test that wants it, and never skips it.

use std::path::PathBuf;

use borealis_pg_server::check::MAJORS;
use borealis_pg_server::instance::Binaries;

/// The major of Debian's packages, which come with all programs: `psql`, `pgbench` and `pg_waldump` too.
pub const DEBIAN_MAJOR: u32 = 15;

/// The variable that chooses the major of tests that run on one.
pub const MAJOR_VARIABLE: &str = "BOREALIS_TEST_PG_MAJOR";

/// The variable that names the folder of a major's programs, with the major behind it.
pub const BIN_VARIABLE_PREFIX: &str = "BOREALIS_TEST_PG_BIN_";

/// The major of tests that run on one.
pub fn default_major() -> u32 {
    match std::env::var(MAJOR_VARIABLE) {
        Ok(text) => text
            .parse()
            .ok()
            .filter(|major| MAJORS.contains(major))
            .unwrap_or_else(|| panic!("{MAJOR_VARIABLE}=`{text}` is not one of {MAJORS:?}")),
        Err(_) => DEBIAN_MAJOR,
    }
}

/// Where `scripts/setup` puts the servers: for root, where others can read them too.
fn folders() -> Vec<PathBuf> {
    let own = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    own.into_iter()
        .chain([PathBuf::from("/var/cache")])
        .map(|cache| cache.join("borealis/postgres"))
        .collect()
}

/// The programs of `major`.
///
/// # Panics
/// Where they are missing, with what installs them.
pub fn binaries(major: u32) -> Binaries {
    let variable = format!("{BIN_VARIABLE_PREFIX}{major}");
    let candidates = match std::env::var_os(&variable) {
        Some(dir) => vec![PathBuf::from(dir)],
        None if major == DEBIAN_MAJOR => {
            vec![format!("/usr/lib/postgresql/{major}/bin").into()]
        }
        None => folders()
            .into_iter()
            .map(|folder| folder.join(major.to_string()).join("bin"))
            .collect(),
    };
    candidates
        .iter()
        .find_map(|dir| Binaries::find(major, Some(dir)).ok())
        .unwrap_or_else(|| {
            panic!(
                "PostgreSQL {major} is not in {candidates:?}: run `scripts/setup test`, which installs it, \
                 or name the folder of its programs in {variable}"
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_supported_major_is_installed() {
        for major in MAJORS {
            assert_eq!(binaries(major).major, major);
        }
    }
}
