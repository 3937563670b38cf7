//! What of a machine decides whether text sorts the same and whether pages can be read.

use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::catalog::CatalogFacts;
use crate::error::Result;
use crate::link::SqlLink;

/// Where shared libraries lie on the systems we know.
const LIBRARY_DIRECTORIES: [&str; 6] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/lib",
    "/usr/local/lib",
];

/// Facts of one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// The version of the GNU C library, such as `2.36`; `None` where it is another or unknown.
    pub glibc: Option<String>,
    /// The major version of ICU, such as `72`.
    pub icu: Option<String>,
    /// The processor architecture, such as `x86_64`; empty where it is unknown.
    pub architecture: String,
}

impl HostFacts {
    /// Those of this machine.
    pub fn of_this_machine() -> Self {
        Self {
            glibc: glibc(),
            icu: icu(),
            architecture: std::env::consts::ARCH.to_owned(),
        }
    }
}

impl HostFacts {
    /// Those of the machine of the server at `link`, as far as SQL tells: not the version of ICU, and that
    /// of the C library only where a collation uses it.
    pub async fn of_server(link: &SqlLink) -> Result<Self> {
        let version: String = link.value("SELECT version()").await?;
        // What the C library says of its collations is its own version (`get_collation_actual_version`
        // in `pg_locale.c`).
        let glibc = link
            .row(
                "SELECT min(pg_collation_actual_version(oid)) AS version FROM pg_collation \
                 WHERE collprovider = 'c'",
            )
            .await?
            .text("version")
            .map(str::to_owned);
        Ok(Self {
            glibc,
            icu: None,
            architecture: architecture(&version).to_owned(),
        })
    }
}

/// The architecture in what `version()` answers, such as `PostgreSQL 15.8 on x86_64-pc-linux-gnu, compiled
/// by ...`, by the name that [`std::env::consts::ARCH`] has for it; empty where it does not say.
fn architecture(version: &str) -> &str {
    let platform = version.split(" on ").nth(1).unwrap_or_default();
    match platform.split('-').next().unwrap_or_default() {
        "i386" | "i486" | "i586" | "i686" => "x86",
        "powerpc64le" | "ppc64le" | "powerpc64" => "powerpc64",
        "arm64" => "aarch64",
        "s390x" => "s390x",
        other if other.starts_with("arm") => "arm",
        other if other.starts_with("riscv64") => "riscv64",
        other => other,
    }
}

fn glibc() -> Option<String> {
    let output = Command::new("getconf")
        .arg("GNU_LIBC_VERSION")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.trim().strip_prefix("glibc ").map(str::to_owned)
}

fn icu() -> Option<String> {
    let version = |name: &str| -> Option<u32> {
        let rest = name.strip_prefix("libicuuc.so.")?;
        rest.parse().ok()
    };
    LIBRARY_DIRECTORIES
        .iter()
        .filter_map(|dir| std::fs::read_dir(Path::new(dir)).ok())
        .flat_map(Iterator::flatten)
        .filter_map(|entry| version(entry.file_name().to_str()?))
        .max()
        .map(|version| version.to_string())
}

/// A difference between two machines that a restore must name before the server starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HostWarning {
    /// What differs.
    pub text: String,
    /// Whether the server cannot run on these files at all.
    pub fatal: bool,
    /// Indexes to rebuild, as `REINDEX` statements, each with its database.
    pub reindex: Vec<(String, String)>,
}

/// Compares the machine of a backup with this one. A version that is unknown on either side counts as
/// different wherever an index depends on it.
pub fn compare(then: &HostFacts, now: &HostFacts, catalog: &CatalogFacts) -> Vec<HostWarning> {
    let mut warnings = Vec::new();
    // One that is unknown is compared by the server itself, when it reads the control file.
    if !then.architecture.is_empty() && then.architecture != now.architecture {
        warnings.push(HostWarning {
            text: format!(
                "the backup is of a {} machine and this is {}: the layout of pages may differ",
                then.architecture, now.architecture
            ),
            fatal: true,
            reindex: Vec::new(),
        });
    }
    for (provider, name, then, now) in [
        ("c", "the C library", &then.glibc, &now.glibc),
        ("i", "ICU", &then.icu, &now.icu),
    ] {
        if then.is_some() && then == now {
            continue;
        }
        let reindex: Vec<_> = catalog
            .indexes
            .iter()
            .filter(|index| index.providers.iter().any(|p| p == provider))
            .map(|index| {
                (
                    index.database.clone(),
                    format!("REINDEX INDEX {};", index.index),
                )
            })
            .collect();
        if reindex.is_empty() {
            continue;
        }
        let show = |version: &Option<String>| version.clone().unwrap_or("unknown".to_owned());
        warnings.push(HostWarning {
            text: format!(
                "the version of {name} was {} and is {}: text may sort differently, and these \
                 indexes must be rebuilt before they are used",
                show(then),
                show(now)
            ),
            fatal: false,
            reindex,
        });
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::CollatedIndex;

    fn host(glibc: Option<&str>, icu: Option<&str>) -> HostFacts {
        HostFacts {
            glibc: glibc.map(str::to_owned),
            icu: icu.map(str::to_owned),
            architecture: "x86_64".to_owned(),
        }
    }

    fn catalog() -> CatalogFacts {
        let index = |name: &str, provider: &str| CollatedIndex {
            database: "db".to_owned(),
            index: name.to_owned(),
            table: "public.t".to_owned(),
            collations: vec!["x".to_owned()],
            providers: vec![provider.to_owned()],
        };
        CatalogFacts {
            indexes: vec![index("public.by_libc", "c"), index("public.by_icu", "i")],
            ..CatalogFacts::default()
        }
    }

    #[test]
    fn changed_library_names_the_indexes_that_depend_on_it() {
        let then = host(Some("2.31"), Some("67"));
        assert!(compare(&then, &then, &catalog()).is_empty());
        let libc = compare(&then, &host(Some("2.36"), Some("67")), &catalog());
        assert_eq!(libc.len(), 1);
        assert_eq!(
            libc[0].reindex,
            [("db".to_owned(), "REINDEX INDEX public.by_libc;".to_owned())]
        );
        let icu = compare(&then, &host(Some("2.31"), Some("72")), &catalog());
        assert_eq!(icu[0].reindex[0].1, "REINDEX INDEX public.by_icu;");
        // What cannot be known is not assumed to be the same.
        let unknown = host(None, None);
        assert_eq!(compare(&unknown, &unknown, &catalog()).len(), 2);
        assert!(compare(&then, &unknown, &CatalogFacts::default()).is_empty());
    }

    #[test]
    fn the_architecture_is_found_in_what_the_server_says_of_itself() {
        for (version, expected) in [
            (
                "PostgreSQL 15.18 (Debian 15.18-0+deb12u1) on x86_64-pc-linux-gnu, compiled by gcc, 64-bit",
                "x86_64",
            ),
            (
                "PostgreSQL 18.4 on aarch64-linux, compiled by clang-17",
                "aarch64",
            ),
            (
                "PostgreSQL 14.1 on powerpc64le-unknown-linux-gnu, compiled by x",
                "powerpc64",
            ),
            (
                "PostgreSQL 15.4, compiled by Visual C++ build 1914, 64-bit",
                "",
            ),
        ] {
            assert_eq!(architecture(version), expected, "{version}");
        }
        let unknown = HostFacts {
            architecture: String::new(),
            ..host(None, None)
        };
        assert!(compare(&unknown, &host(None, None), &CatalogFacts::default()).is_empty());
    }

    #[test]
    fn another_architecture_is_fatal() {
        let mut now = host(Some("2.31"), None);
        let then = now.clone();
        now.architecture = "aarch64".to_owned();
        assert!(compare(&then, &now, &CatalogFacts::default())[0].fatal);
    }
}
