//! Removes from a data directory, and from its tablespaces, whatever does not belong there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use borealis_pg_format::Version;
use borealis_pg_format::files::{FileKind, classify};
use borealis_repository::pages::manifest::Manifest;

use super::super::files::{Mapping, mapped, segments};
use super::super::recovery_file::RECOVERY_FILE;
use super::super::target_dir::staged_mark;
use super::{Estimate, Tally};
use crate::base_backup::facts::ServerState;
use crate::error::{FileContext, Result};

/// What belongs into a data directory, by path relative to it; tablespaces are seen through `pg_tblspc`.
#[derive(Debug, Default)]
pub struct Contents {
    files: BTreeMap<String, u64>,
    directories: BTreeSet<String>,
    links: BTreeMap<String, PathBuf>,
    /// What is left as it is, with all that it holds.
    untouched: Vec<String>,
    /// Directories inside a tablespace's place that are this server's; whatever else lies there is another's.
    inside_places: BTreeMap<String, BTreeSet<String>>,
    /// Whether `pg_wal` may stay a link to a directory elsewhere.
    log_link: bool,
    /// What this server's directory inside a tablespace is called, where tablespaces that are not in the
    /// backup are emptied: the log may create them again, and replay would find their old pages.
    emptied: Option<String>,
}

/// What was found, and removed unless only an estimate was wanted.
#[derive(Debug, Default)]
pub struct Found {
    compare: u64,
    beyond: u64,
    deleted: u64,
    entries: u64,
}

impl Contents {
    /// What `manifest`, of `server`, says; `at_home`: see [`super::existing::is_at_home`].
    pub fn new(
        manifest: &Manifest,
        server: &ServerState,
        mapping: &Mapping,
        at_home: bool,
    ) -> Self {
        let files = manifest.files();
        let version = Version::from_major(server.major()).filter(|_| at_home);
        let mut wanted = Self {
            log_link: at_home,
            emptied: version.map(Version::tablespace_directory),
            untouched: vec![
                RECOVERY_FILE.to_owned(),
                staged_mark(),
                "lost+found".to_owned(),
            ],
            ..Self::default()
        };
        for file in files.page_files.values() {
            for (name, pages) in segments(file, server.relation_segment_pages) {
                let len = u64::from(pages) * u64::from(file.page_size);
                wanted.files.insert(name, len);
            }
        }
        for blob in &files.blobs {
            wanted.files.insert(blob.name.clone(), blob.len);
        }
        let directories = files
            .directories
            .iter()
            .map(|directory| directory.name.clone());
        wanted.directories.extend(directories);
        for name in ["global", "pg_wal", "pg_wal/archive_status", "pg_tblspc"] {
            wanted.directories.insert(name.to_owned());
        }
        for link in &files.links {
            let place = mapped(mapping, Path::new(&link.target)).to_owned();
            wanted.links.insert(link.name.clone(), place);
            let prefix = format!("{}/", link.name);
            let inside = files.directories.iter().filter_map(|directory| {
                let rest = directory.name.strip_prefix(&prefix)?;
                rest.split('/').next().map(str::to_owned)
            });
            wanted
                .inside_places
                .insert(link.name.clone(), inside.collect());
        }
        if let Some(log) = server
            .settings
            .get("log_directory")
            .and_then(|log| wanted.own_log(log))
        {
            wanted.untouched.push(log);
        }
        wanted
    }

    /// The directory of the server's own log, which base backups leave out, where it lies in the data
    /// directory and holds nothing of the database.
    fn own_log(&self, setting: &str) -> Option<String> {
        let name = setting.trim_end_matches('/');
        let elsewhere = name.is_empty() || name.starts_with(['/', '.']) || name.contains("..");
        let prefix = format!("{name}/");
        let holds_files = self.files.keys().any(|file| file.starts_with(&prefix));
        (!elsewhere && !holds_files && !name.starts_with("pg_")).then(|| name.to_owned())
    }

    /// Bytes of all files.
    fn bytes(&self) -> u64 {
        self.files.values().sum()
    }

    /// Removes what does not belong into `target` and the places of its tablespaces.
    pub fn sweep(&self, target: &Path, tally: &Tally) -> Result<()> {
        let found = self.everywhere(target, true)?;
        tally.delete(found.deleted + found.beyond);
        Ok(())
    }

    /// What a delta will do; touches nothing.
    pub fn estimate(&self, target: &Path) -> Result<Estimate> {
        let found = self.everywhere(target, false)?;
        Ok(Estimate {
            compare_bytes: found.compare,
            write_bytes_at_least: self.bytes().saturating_sub(found.compare),
            delete_bytes: found.deleted + found.beyond,
            delete_entries: found.entries,
        })
    }

    fn everywhere(&self, target: &Path, remove: bool) -> Result<Found> {
        let mut walk = Walk {
            wanted: self,
            remove,
            found: Found::default(),
        };
        walk.directory(target, "")?;
        for (link, inside) in &self.inside_places {
            let Some(place) = self.links.get(link) else {
                continue;
            };
            for name in inside {
                let path = place.join(name);
                match std::fs::symlink_metadata(&path) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    meta => walk.entry(
                        &path,
                        &format!("{link}/{name}"),
                        &meta.at("look at", &path)?,
                    )?,
                }
            }
        }
        Ok(walk.found)
    }
}

struct Walk<'a> {
    wanted: &'a Contents,
    remove: bool,
    found: Found,
}

impl Walk<'_> {
    fn directory(&mut self, directory: &Path, below: &str) -> Result<()> {
        let entries = match std::fs::read_dir(directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && below.is_empty() => {
                return Ok(());
            }
            entries => entries.at("list", directory)?,
        };
        for entry in entries {
            let path = entry.at("list", directory)?.path();
            let meta = std::fs::symlink_metadata(&path).at("look at", &path)?;
            // A name that is not UTF-8 is in no manifest.
            let name = path.file_name().and_then(|name| name.to_str());
            match (name, below) {
                (None, _) => self.gone(&path, below, &meta)?,
                (Some(name), "") => self.entry(&path, name, &meta)?,
                (Some(name), below) => self.entry(&path, &format!("{below}/{name}"), &meta)?,
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, name: &str, meta: &Metadata) -> Result<()> {
        let wanted = self.wanted;
        if wanted.untouched.iter().any(|untouched| untouched == name) {
            return Ok(());
        }
        if meta.is_symlink() {
            let own_log = name == "pg_wal" && wanted.log_link && path.is_dir();
            if own_log {
                return self.directory(path, name);
            }
            let place = wanted.links.get(name);
            if std::fs::read_link(path).is_ok_and(|leads_to| Some(&leads_to) == place) {
                return Ok(());
            }
            if let (Some(version), FileKind::TablespaceLink(_), None) =
                (&wanted.emptied, classify(name), place)
            {
                let inside = path.join(version);
                if let Ok(meta) = std::fs::symlink_metadata(&inside) {
                    self.gone(&inside, name, &meta)?;
                }
            }
            return self.gone(path, name, meta);
        }
        if meta.is_dir() && wanted.directories.contains(name) {
            return self.directory(path, name);
        }
        match wanted.files.get(name) {
            // Another name of a file that has more than one may be a copy that somebody counts on.
            Some(len) if meta.is_file() && meta.nlink() == 1 => {
                self.found.compare += meta.len().min(*len);
                self.found.beyond += meta.len().saturating_sub(*len);
                Ok(())
            }
            _ => self.gone(path, name, meta),
        }
    }

    /// Counts, and removes, what does not belong there, at `name` or below it. Links are not followed.
    fn gone(&mut self, path: &Path, name: &str, meta: &Metadata) -> Result<()> {
        self.found.entries += 1;
        // The log, which is always laid out anew, does not count.
        if !name.starts_with("pg_wal") {
            self.found.deleted += match (meta.is_dir(), meta.is_file()) {
                (true, _) => bytes_below(path)?,
                (_, true) => meta.len(),
                _ => 0,
            };
        }
        match (self.remove, meta.is_dir()) {
            (false, _) => Ok(()),
            (true, true) => std::fs::remove_dir_all(path).at("remove", path),
            (true, false) => std::fs::remove_file(path).at("remove", path),
        }
    }
}

fn bytes_below(directory: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory).at("list", directory)? {
        let entry = entry.at("list", directory)?;
        let meta = entry.metadata().at("look at", &entry.path())?;
        bytes += match (meta.is_dir(), meta.is_file()) {
            (true, _) => bytes_below(&entry.path())?,
            (_, true) => meta.len(),
            _ => 0,
        };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn wanted(files: &[(&str, u64)], directories: &[&str]) -> Contents {
        Contents {
            files: files
                .iter()
                .map(|(name, len)| ((*name).to_owned(), *len))
                .collect(),
            directories: directories.iter().map(|name| (*name).to_owned()).collect(),
            untouched: vec![RECOVERY_FILE.to_owned(), "log".to_owned()],
            ..Contents::default()
        }
    }

    fn put(root: &Path, path: &str, len: usize) {
        let file = root.join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, vec![1; len]).unwrap();
    }

    fn names(root: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(root)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_does_not_belong_there_is_removed_and_counted() {
        let root = tempfile::tempdir().unwrap();
        let data = root.path();
        for (path, len) in [
            ("base/5/1", 10),
            ("base/5/2", 3),
            ("base/5/3", 100),
            ("base/6/1", 7),
            ("pg_wal/x", 5),
            ("log/server.log", 50),
            (RECOVERY_FILE, 2),
            ("stray", 1),
        ] {
            put(data, path, len);
        }
        let wanted = wanted(
            &[
                ("base/5/1", 10),
                ("base/5/2", 8),
                ("base/5/3", 60),
                ("base/5/4", 9),
            ],
            &["base", "base/5", "pg_wal"],
        );
        let estimate = wanted.estimate(data).unwrap();
        let expected = Estimate {
            compare_bytes: 10 + 3 + 60,
            write_bytes_at_least: 5 + 9,
            delete_bytes: 40 + 7 + 1,
            delete_entries: 3,
        };
        assert_eq!(estimate, expected);
        assert!(data.join("stray").exists(), "an estimate removes nothing");
        let tally = Tally::default();
        wanted.sweep(data, &tally).unwrap();
        assert_eq!(tally.report().deleted_bytes, expected.delete_bytes);
        assert_eq!(names(data), ["base", RECOVERY_FILE, "log", "pg_wal"]);
        assert_eq!(names(&data.join("base")), ["5"]);
        assert_eq!(names(&data.join("base/5")), ["1", "2", "3"]);
        assert!(names(&data.join("pg_wal")).is_empty());
        assert!(data.join("log/server.log").exists());
    }

    #[test]
    fn links_are_removed_and_what_they_lead_to_stays() {
        let root = tempfile::tempdir().unwrap();
        let (data, outside) = (root.path().join("data"), root.path().join("outside"));
        put(&outside, "1", 4);
        put(&outside, "wal/x", 4);
        std::fs::create_dir_all(data.join("base")).unwrap();
        symlink(outside.join("1"), data.join("base/1")).unwrap();
        symlink(&outside, data.join("elsewhere")).unwrap();
        symlink(outside.join("wal"), data.join("pg_wal")).unwrap();
        std::fs::hard_link(outside.join("1"), data.join("base/2")).unwrap();
        let mut wanted = wanted(&[("base/1", 4), ("base/2", 4)], &["base", "pg_wal"]);
        wanted.sweep(&data, &Tally::default()).unwrap();
        assert_eq!(names(&data), ["base"]);
        assert!(
            names(&data.join("base")).is_empty(),
            "other names of the file share its bytes"
        );
        assert_eq!(names(&outside), ["1", "wal"]);
        assert_eq!(names(&outside.join("wal")), ["x"]);
        // At home, the place of the log is its own.
        symlink(outside.join("wal"), data.join("pg_wal")).unwrap();
        wanted.log_link = true;
        wanted.sweep(&data, &Tally::default()).unwrap();
        assert!(data.join("pg_wal").is_symlink());
        assert!(names(&outside.join("wal")).is_empty());
    }

    #[test]
    fn a_tablespace_that_is_not_in_the_backup_is_emptied_at_home_only() {
        let root = tempfile::tempdir().unwrap();
        let (data, place) = (root.path().join("data"), root.path().join("place"));
        for path in ["PG_15_202209061/5/1", "PG_14_202107181/5/9"] {
            put(&place, path, 4);
        }
        std::fs::create_dir_all(data.join("pg_tblspc")).unwrap();
        let mut wanted = wanted(&[], &["pg_tblspc"]);
        for (emptied, left) in [
            (None, &["PG_14_202107181", "PG_15_202209061"][..]),
            (Some("PG_15_202209061".to_owned()), &["PG_14_202107181"]),
        ] {
            symlink(&place, data.join("pg_tblspc/7")).unwrap();
            wanted.emptied = emptied;
            wanted.sweep(&data, &Tally::default()).unwrap();
            assert_eq!(names(&place), left);
            assert!(names(&data.join("pg_tblspc")).is_empty());
        }
    }

    #[test]
    fn the_servers_own_log_stays_unless_it_holds_files_of_the_database() {
        let wanted = wanted(&[("base/5/1", 4)], &[]);
        assert_eq!(wanted.own_log("log/"), Some("log".to_owned()));
        for other in ["base", "pg_wal", "", "/var/log", "../log", "."] {
            assert_eq!(wanted.own_log(other), None, "{other}");
        }
    }

    #[test]
    fn in_a_tablespace_only_this_servers_directory_is_swept() {
        let root = tempfile::tempdir().unwrap();
        let (data, place) = (root.path().join("data"), root.path().join("place"));
        for path in [
            "PG_15_202209061/5/1",
            "PG_15_202209061/5/9",
            "PG_14_202107181/5/9",
        ] {
            put(&place, path, 4);
        }
        std::fs::create_dir_all(data.join("pg_tblspc")).unwrap();
        symlink(&place, data.join("pg_tblspc/7")).unwrap();
        symlink(&place, data.join("pg_tblspc/8")).unwrap();
        let mut wanted = wanted(
            &[("pg_tblspc/7/PG_15_202209061/5/1", 4)],
            &[
                "pg_tblspc",
                "pg_tblspc/7/PG_15_202209061",
                "pg_tblspc/7/PG_15_202209061/5",
            ],
        );
        wanted.links.insert("pg_tblspc/7".to_owned(), place.clone());
        let inside = ["PG_15_202209061".to_owned()].into();
        wanted
            .inside_places
            .insert("pg_tblspc/7".to_owned(), inside);
        wanted.sweep(&data, &Tally::default()).unwrap();
        assert_eq!(names(&data.join("pg_tblspc")), ["7"]);
        assert_eq!(names(&place), ["PG_14_202107181", "PG_15_202209061"]);
        assert_eq!(names(&place.join("PG_15_202209061/5")), ["1"]);
        assert_eq!(names(&place.join("PG_14_202107181/5")), ["9"]);
    }
}
