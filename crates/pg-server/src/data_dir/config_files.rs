//! A cluster's configuration, wherever it lies: Debian keeps it in `/etc/postgresql`, and any file may
//! include others. Syntax: `src/backend/utils/misc/guc-file.l`; access files: `hba.c`.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// How deep files may include each other (`CONF_FILE_MAX_DEPTH`).
const DEPTH_MAX: usize = 10;

/// The most files gathered; more is a mistake in the includes.
const FILES_MAX: usize = 1_000;

/// What a line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    /// Nothing: blank, or a comment.
    Nothing,
    /// A setting.
    Setting {
        /// Its name, in lower case.
        name: String,
        /// Its value, without quotes.
        value: String,
    },
    /// `include`, `include_if_exists` or `include_dir`.
    Include {
        /// Which of the three.
        how: Include,
        /// The path as written.
        path: String,
    },
    /// What the server would refuse.
    Malformed,
}

/// How a file is included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Include {
    /// The file must exist.
    File,
    /// The file may be absent.
    FileIfExists,
    /// All files of a directory whose names end in `.conf`.
    Directory,
}

/// Reads a configuration file, line by line.
pub fn parse(text: &str) -> impl Iterator<Item = (&str, Statement)> {
    text.lines().map(|line| (line, statement(line)))
}

fn statement(line: &str) -> Statement {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Statement::Nothing;
    }
    let end = line
        .find(|c: char| {
            !(c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '.')) && c.is_ascii()
        })
        .unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    let valid = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || !c.is_ascii());
    if !valid {
        return Statement::Malformed;
    }
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    let Some(value) = value(rest) else {
        return Statement::Malformed;
    };
    let name = name.to_ascii_lowercase();
    let how = match name.as_str() {
        "include" => Include::File,
        "include_if_exists" => Include::FileIfExists,
        "include_dir" => Include::Directory,
        _ => return Statement::Setting { name, value },
    };
    Statement::Include { how, path: value }
}

/// One value, with nothing but a comment behind it.
fn value(text: &str) -> Option<String> {
    let (value, rest) = if let Some(quoted) = text.strip_prefix('\'') {
        quoted_value(quoted)?
    } else {
        let end = text
            .find(|c: char| c.is_whitespace() || c == '#' || c == '\'')
            .unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        (value.to_owned(), rest)
    };
    let rest = rest.trim_start();
    let complete = rest.is_empty() || rest.starts_with('#');
    let is_given = !value.is_empty() || text.starts_with('\'');
    (complete && is_given).then_some(value)
}

/// A string after its opening quote (`DeescapeQuotedString`): doubled quotes and C escapes.
fn quoted_value(text: &str) -> Option<(String, &str)> {
    let mut bytes = Vec::new();
    let mut chars = text.char_indices().peekable();
    let mut push = |c: char| bytes.extend(c.encode_utf8(&mut [0; 4]).as_bytes());
    while let Some((at, c)) = chars.next() {
        match c {
            '\'' if chars.next_if(|(_, c)| *c == '\'').is_some() => push('\''),
            '\'' => {
                let rest = text.get(at + 1..)?;
                return Some((String::from_utf8(bytes).ok()?, rest));
            }
            '\\' => match chars.next()?.1 {
                'b' => push('\u{8}'),
                'f' => push('\u{c}'),
                'n' => push('\n'),
                'r' => push('\r'),
                't' => push('\t'),
                digit @ '0'..='7' => {
                    let mut code = digit.to_digit(8)?;
                    for _ in 0..2 {
                        let Some((_, next)) = chars.next_if(|(_, c)| matches!(c, '0'..='7')) else {
                            break;
                        };
                        code = code * 8 + next.to_digit(8)?;
                    }
                    push(char::from(code as u8));
                }
                other => push(other),
            },
            other => push(other),
        }
    }
    None
}

/// What a configuration file is for.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// `postgresql.conf`.
    Main,
    /// `postgresql.auto.conf`.
    Auto,
    /// Included by one of the others.
    Included,
    /// `pg_hba.conf`.
    Access,
    /// `pg_ident.conf`.
    Identity,
}

/// A file as found.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ConfigFile {
    /// Where it lies.
    pub path: PathBuf,
    /// What it is for.
    pub role: Role,
    /// What it says. Bytes that are not UTF-8 are replaced.
    pub text: String,
}

/// All configuration of a cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ConfigFiles {
    /// The files, each once, includers before what they include.
    pub files: Vec<ConfigFile>,
    /// Files that are named and could not be read, with the reason. The server may do without.
    pub missing: Vec<(PathBuf, String)>,
}

impl ConfigFiles {
    /// The file with a role that only one has.
    pub fn of(&self, role: Role) -> Option<&ConfigFile> {
        self.files.iter().find(|file| file.role == role)
    }

    /// The value that a setting ends with: the last one counts, and `postgresql.auto.conf` is last.
    pub fn setting(&self, wanted: &str) -> Option<String> {
        [Role::Main, Role::Included, Role::Auto]
            .into_iter()
            .flat_map(|role| self.files.iter().filter(move |file| file.role == role))
            .flat_map(|file| parse(&file.text))
            .filter_map(|(_, statement)| match statement {
                Statement::Setting { name, value } if name == wanted => Some(value),
                _ => None,
            })
            .last()
    }
}

/// Where files come from; tests give a table.
pub trait Files {
    /// The content of a file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// The names in a directory.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
}

/// Gathers the configuration: the three files (where known; else those in `data_dir`),
/// `postgresql.auto.conf`, and all that they include.
///
/// # Errors
/// Only for includes without end. A file that cannot be read is listed as missing.
pub fn gather(
    data_dir: &Path,
    known: [Option<&Path>; 3],
    source: &dyn Files,
) -> Result<ConfigFiles> {
    let [main, access, identity] = known;
    let place = |path: Option<&Path>, name: &str| {
        path.map_or_else(|| data_dir.join(name), Path::to_path_buf)
    };
    let mut gatherer = Gatherer {
        source,
        found: ConfigFiles::default(),
        seen: BTreeSet::new(),
    };
    for (path, role) in [
        (place(main, "postgresql.conf"), Role::Main),
        (data_dir.join("postgresql.auto.conf"), Role::Auto),
        (place(access, "pg_hba.conf"), Role::Access),
        (place(identity, "pg_ident.conf"), Role::Identity),
    ] {
        gatherer.file(&path, role, role, true, 0)?;
    }
    Ok(gatherer.found)
}

struct Gatherer<'a> {
    source: &'a dyn Files,
    found: ConfigFiles,
    seen: BTreeSet<PathBuf>,
}

impl Gatherer<'_> {
    /// Reads `path` as a file of kind `syntax`, then what it includes.
    fn file(
        &mut self,
        path: &Path,
        role: Role,
        syntax: Role,
        needed: bool,
        depth: usize,
    ) -> Result<()> {
        if !self.seen.insert(path.to_owned()) {
            return Ok(());
        }
        if depth > DEPTH_MAX || self.seen.len() > FILES_MAX {
            return Err(Error::Refused(format!(
                "configuration files include each other too deeply at {}",
                path.display()
            )));
        }
        let bytes = match self.source.read(path) {
            Ok(bytes) => bytes,
            Err(error) if !needed && error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => {
                self.found
                    .missing
                    .push((path.to_owned(), error.to_string()));
                return Ok(());
            }
        };
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let includes = if matches!(syntax, Role::Access | Role::Identity) {
            access_includes(&text)
        } else {
            parse(&text)
                .filter_map(|(_, statement)| match statement {
                    Statement::Include { how, path } => Some((how, path)),
                    _ => None,
                })
                .collect()
        };
        self.found.files.push(ConfigFile {
            path: path.to_owned(),
            role,
            text,
        });
        let base = path.parent().unwrap_or(Path::new("/"));
        for (how, included) in includes {
            let included = base.join(included);
            if how == Include::Directory {
                self.directory(&included, syntax, depth + 1)?;
            } else {
                let needed = how == Include::File;
                self.file(&included, Role::Included, syntax, needed, depth + 1)?;
            }
        }
        Ok(())
    }

    fn directory(&mut self, path: &Path, syntax: Role, depth: usize) -> Result<()> {
        let mut names = match self.source.list(path) {
            Ok(names) => names,
            Err(error) => {
                self.found
                    .missing
                    .push((path.to_owned(), error.to_string()));
                return Ok(());
            }
        };
        // The server compares exactly these bytes (`GetConfFilesInDir`).
        names.retain(|name| name.as_bytes().ends_with(b".conf") && !name.starts_with('.'));
        names.sort();
        for name in names {
            self.file(&path.join(name), Role::Included, syntax, true, depth)?;
        }
        Ok(())
    }
}

/// What an access file includes: lines since 16, and lists of names as `@file` in every version.
fn access_includes(text: &str) -> Vec<(Include, String)> {
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line
            .split(|c: char| c.is_whitespace() || c == ',')
            .filter(|word| !word.is_empty());
        let unquoted = |word: &str| word.trim_matches('"').to_owned();
        let Some(first) = words.next() else { continue };
        let how = match first {
            "include" => Some(Include::File),
            "include_if_exists" => Some(Include::FileIfExists),
            "include_dir" => Some(Include::Directory),
            _ => None,
        };
        if let Some(how) = how {
            found.extend(words.next().map(|path| (how, unquoted(path))));
            continue;
        }
        for word in std::iter::once(first).chain(words) {
            if let Some(path) = word.strip_prefix('@').filter(|path| !path.is_empty()) {
                found.push((Include::FileIfExists, unquoted(path)));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn set(name: &str, value: &str) -> Statement {
        Statement::Setting {
            name: name.to_owned(),
            value: value.to_owned(),
        }
    }

    #[test]
    fn lines_are_read_as_the_server_reads_them() {
        for (line, expected) in [
            ("", Statement::Nothing),
            ("  # port = 1", Statement::Nothing),
            ("port = 5433", set("port", "5433")),
            ("Port=5433 # ours", set("port", "5433")),
            ("port 5433", set("port", "5433")),
            ("work_mem = 4MB#x", set("work_mem", "4MB")),
            ("a.b = 'it''s #1'  # x", set("a.b", "it's #1")),
            (r"x = 'tab\there\101\'s'", set("x", "tab\thereA's")),
            ("x = ''", set("x", "")),
            ("x = '/a b'", set("x", "/a b")),
            ("port = ", Statement::Malformed),
            ("port = 1 2", Statement::Malformed),
            ("port = 'open", Statement::Malformed),
            ("= 1", Statement::Malformed),
            (
                "include_dir 'conf.d'",
                Statement::Include {
                    how: Include::Directory,
                    path: "conf.d".to_owned(),
                },
            ),
        ] {
            assert_eq!(statement(line), expected, "{line}");
        }
    }

    struct Table(BTreeMap<&'static str, &'static str>);

    impl Files for Table {
        fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
            let path = path.to_str().expect("text");
            self.0
                .get(path)
                .map(|text| text.as_bytes().to_vec())
                .ok_or_else(|| io::ErrorKind::NotFound.into())
        }

        fn list(&self, path: &Path) -> io::Result<Vec<String>> {
            Ok(self
                .0
                .keys()
                .filter_map(|file| Path::new(file).strip_prefix(path).ok()?.to_str())
                .map(str::to_owned)
                .collect())
        }
    }

    #[test]
    fn configuration_outside_the_data_directory_comes_with_its_includes() {
        let table = Table(BTreeMap::from([
            (
                "/etc/pg/postgresql.conf",
                "port = 1\ninclude_dir 'conf.d'\ninclude '../common.conf'\n\
                 include_if_exists 'absent.conf'\ninclude 'gone.conf'\n",
            ),
            ("/etc/pg/conf.d/b.conf", "work_mem = 2MB\n"),
            ("/etc/pg/conf.d/a.conf", "work_mem = 1MB\nport = 2\n"),
            ("/etc/pg/conf.d/c.conf.bak", "port = 9\n"),
            ("/etc/pg/../common.conf", "include 'pg/postgresql.conf'\n"),
            ("/data/postgresql.auto.conf", "port = '3'\n"),
            (
                "/etc/pg/pg_hba.conf",
                "local @dbs all trust # @no\ninclude more.conf\n",
            ),
            ("/etc/pg/dbs", "one two\n"),
            ("/etc/pg/more.conf", "local all all trust\n"),
            ("/data/pg_ident.conf", ""),
        ]));
        let found = gather(
            Path::new("/data"),
            [
                Some(Path::new("/etc/pg/postgresql.conf")),
                Some(Path::new("/etc/pg/pg_hba.conf")),
                None,
            ],
            &table,
        )
        .expect("ends");
        let paths: Vec<_> = found.files.iter().filter_map(|f| f.path.to_str()).collect();
        assert_eq!(
            paths,
            [
                "/etc/pg/postgresql.conf",
                "/etc/pg/conf.d/a.conf",
                "/etc/pg/conf.d/b.conf",
                "/etc/pg/../common.conf",
                "/etc/pg/../pg/postgresql.conf",
                "/data/postgresql.auto.conf",
                "/etc/pg/pg_hba.conf",
                "/etc/pg/dbs",
                "/etc/pg/more.conf",
                "/data/pg_ident.conf",
            ]
            .into_iter()
            .filter(|path| table.0.contains_key(path))
            .collect::<Vec<_>>()
        );
        let missing: Vec<_> = found
            .missing
            .iter()
            .filter_map(|(p, _)| p.to_str())
            .collect();
        assert!(missing.contains(&"/etc/pg/gone.conf"), "{missing:?}");
        assert!(!missing.contains(&"/etc/pg/absent.conf"), "{missing:?}");
        assert_eq!(found.setting("port").as_deref(), Some("3"));
        assert_eq!(found.setting("work_mem").as_deref(), Some("2MB"));
    }
}
