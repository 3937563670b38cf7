//! Where options come from: the command line, then the environment (both by clap), then a
//! configuration file.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::failure::Failure;

/// The configuration file. Every key is optional.
#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// As `--repository`.
    pub repository: Option<String>,
    /// As `--key`.
    pub key: Option<String>,
    /// As `--key-file`.
    pub key_file: Option<PathBuf>,
    /// As `--source`.
    pub source: Option<String>,
}

/// Reads the file named, or else the first of the default places that exists.
pub fn load(named: Option<&Path>, home: Option<&Path>) -> Result<Config, Failure> {
    if let Some(path) = named {
        return read(path)?.ok_or_else(|| {
            Failure::usage(format!(
                "configuration file {} does not exist",
                path.display()
            ))
        });
    }
    let places = [
        home.map(|home| home.join(".config/borealis/config.toml")),
        Some(PathBuf::from("/etc/borealis/config.toml")),
    ];
    for place in places.into_iter().flatten() {
        if let Some(config) = read(&place)? {
            return Ok(config);
        }
    }
    Ok(Config::default())
}

fn read(path: &Path) -> Result<Option<Config>, Failure> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(Failure::usage(format!(
                "read configuration file {}: {error}",
                path.display()
            )));
        }
    };
    toml::from_str(&text).map(Some).map_err(|error| {
        Failure::usage(format!(
            "configuration file {}: {}",
            path.display(),
            error.message()
        ))
        .hint(
            "It takes repository, key_file and source, or key for key_file, each a text in quotes.",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn the_file_gives_what_the_command_line_does_not() {
        let config = file("repository = \"/srv/backup\"\nkey_file = \"/k\"\n");
        let config = load(Some(config.path()), None).unwrap();
        assert_eq!(config.repository.as_deref(), Some("/srv/backup"));
        assert_eq!(config.source, None);
    }

    #[test]
    fn an_unknown_key_is_named() {
        let config = file("repositry = \"/srv/backup\"\n");
        let failure = load(Some(config.path()), None).unwrap_err();
        assert!(failure.to_string().contains("repositry"), "{failure}");
    }

    #[test]
    fn a_named_file_must_exist() {
        assert!(load(Some(Path::new("/nonexistent/borealis.toml")), None).is_err());
    }
}
