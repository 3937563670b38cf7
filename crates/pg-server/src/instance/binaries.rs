//! Finding the programs of one major version. A data directory only runs under its own major, so
//! none is ever guessed: each candidate is asked for its version.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Error, Result};

/// The variable that names the directory of the programs.
pub const BIN_VARIABLE: &str = "BOREALIS_PG_BIN";

/// The programs of one server version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    /// Where they are.
    pub dir: PathBuf,
    /// The major version.
    pub major: u32,
    /// The version as `postgres -V` prints it, such as `15.18 (Debian 15.18-0+deb12u1)`.
    pub version: String,
}

impl Binaries {
    /// The path of one program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Finds the programs of `major`. An `explicit` directory is the only one looked at.
    pub fn find(major: u32, explicit: Option<&Path>) -> Result<Self> {
        let candidates = match explicit {
            Some(dir) => vec![dir.to_owned()],
            None => candidates(major),
        };
        let mut looked = Vec::new();
        for dir in candidates {
            match Self::at(&dir) {
                Ok(found) if found.major == major => return Ok(found),
                Ok(found) => looked.push(format!("{} (version {})", dir.display(), found.version)),
                Err(_) => looked.push(format!("{} (none)", dir.display())),
            }
        }
        Err(Error::NoBinaries {
            major,
            looked: looked.join(", "),
        })
    }

    /// The programs in `dir`, whatever their version.
    pub fn at(dir: &Path) -> Result<Self> {
        let path = dir.join("postgres");
        let failed = |detail: String| Error::Program {
            program: path.display().to_string(),
            detail,
        };
        let output = Command::new(&path)
            .arg("-V")
            .stdin(Stdio::null())
            .output()
            .map_err(|e| failed(e.to_string()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text
            .trim()
            .strip_prefix("postgres (PostgreSQL) ")
            .ok_or_else(|| failed(format!("answers `{}` to -V", text.trim())))?;
        let major = major_of(version).ok_or_else(|| failed(format!("version `{version}`")))?;
        Ok(Self {
            dir: dir.to_owned(),
            major,
            version: version.to_owned(),
        })
    }
}

/// The major of `15.18 (Debian …)`, `17beta1`, `18rc1` or `19devel`.
fn major_of(version: &str) -> Option<u32> {
    let end = version
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(version.len());
    version.get(..end)?.parse().ok()
}

fn candidates(major: u32) -> Vec<PathBuf> {
    let configured = Command::new("pg_config")
        .arg("--bindir")
        .stdin(Stdio::null())
        .output()
        .ok()
        .filter(|output| output.status.success())
        .map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    configured
        .into_iter()
        .chain([
            format!("/usr/lib/postgresql/{major}/bin").into(),
            format!("/usr/pgsql-{major}/bin").into(),
            "/usr/local/pgsql/bin".into(),
        ])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn majors_are_read_from_every_kind_of_release() {
        for (text, major) in [
            ("15.18 (Debian 15.18-0+deb12u1)", Some(15)),
            ("17beta1", Some(17)),
            ("18rc1", Some(18)),
            ("19devel", Some(19)),
            ("", None),
        ] {
            assert_eq!(major_of(text), major, "{text}");
        }
    }

    #[test]
    fn explicit_directory_of_another_major_is_not_replaced_by_a_guess() {
        let error = Binaries::find(15, Some(Path::new("/nonexistent"))).expect_err("absent");
        assert!(error.to_string().contains("/nonexistent"), "{error}");
        assert!(error.hint().expect("a hint").contains(BIN_VARIABLE));
    }
}
