//! `borealis init`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use borealis_base::{Entropy, ErrorKind};
use borealis_keys::{FileKey, KeyProvider};
use borealis_repository::store::probe::probe;
use borealis_repository::store::{self, Absent, StoreErrorKind};
use borealis_repository::{Environment, Repository, layout};
use serde::Serialize;

use super::{Context, absolute, repository};
use crate::args::Init;
use crate::failure::Failure;
use crate::output;

#[derive(Serialize)]
struct Made {
    repository: String,
    id: String,
    key_files: Vec<KeyFile>,
}

#[derive(Serialize)]
struct KeyFile {
    path: PathBuf,
    key: String,
    made: bool,
}

/// How far a repository at a place has been made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Not even a folder.
    Absent,
    /// A folder without a repository.
    Nothing,
    Begun,
}

/// Runs the command.
pub async fn run(context: &Context, args: &Init) -> Result<ExitCode, Failure> {
    let url = context.repository_url()?;
    let key_file = context.key_file().map_err(|failure| {
        failure.hint(
            "Name one with --key-file, in BOREALIS_KEY_FILE, or as key_file in the configuration \
             file; it is made if it does not exist. Keep it apart from the repository.",
        )
    })?;
    let mut paths = vec![absolute(&key_file)];
    if let Some(recipient) = &args.recipient {
        let recipient = absolute(recipient);
        if paths.contains(&recipient) {
            return Err(Failure::usage(format!(
                "--recipient names the same file as --key-file: {}",
                recipient.display()
            ))
            .hint("Name another file, kept in another place."));
        }
        paths.push(recipient);
    }
    // Before any key is made: one that belongs to nothing would be taken for the one that matters.
    let stage = look(context, &url).await?;
    let present = read_present(&paths, stage, &url)?;
    let store = store::open(&url, Absent::Create, &context.outfit()).await?;
    let mut keys = Vec::with_capacity(paths.len());
    for (path, found) in paths.iter().zip(present) {
        let made = found.is_none();
        let key = make(path, found, context.entropy.as_ref()).inspect_err(|_| {
            if stage == Stage::Absent {
                remove_empty_folder(&store.url());
            }
        })?;
        keys.push((key, made));
    }
    let providers: Vec<&dyn KeyProvider> = keys.iter().map(|(key, _)| key as _).collect();
    let environment = Environment {
        store,
        clock: context.clock.clone(),
        entropy: context.entropy.clone(),
    };
    let repository = (Repository::init(environment, &providers).await)
        .map_err(|error| keys_stay(error.into(), &keys))?;
    let answer = Made {
        repository: repository.environment().store.url(),
        id: repository.id().to_string(),
        key_files: (keys.iter())
            .map(|(key, made)| KeyFile {
                path: key.path().to_owned(),
                key: key.key_id().to_string(),
                made: *made,
            })
            .collect(),
    };
    output::answer(context.global.json, &answer, text)?;
    Ok(ExitCode::SUCCESS)
}

/// Refuses a place that holds a repository, or a bucket that can't hold one.
async fn look(context: &Context, url: &str) -> Result<Stage, Failure> {
    let store = match store::open(url, Absent::Refuse, &context.outfit()).await {
        Err(error) if error.kind == StoreErrorKind::NotFound => return Ok(Stage::Absent),
        other => other?,
    };
    if store.stat(layout::DESCRIPTOR).await?.is_some() {
        return Err(Failure::new(
            ErrorKind::Refused,
            format!("a repository exists at {}", store.url()),
        )
        .hint("Use it, or name another place."));
    }
    if url.starts_with("s3:") {
        repository::refuse_unfit(&probe(&store, &*context.clock, &*context.entropy).await?)?;
    }
    let begun = store.stat(&layout::catalog_keys(1)).await?.is_some();
    Ok(if begun { Stage::Begun } else { Stage::Nothing })
}

/// The keys of the files that exist.
fn read_present(
    paths: &[PathBuf],
    stage: Stage,
    url: &str,
) -> Result<Vec<Option<FileKey>>, Failure> {
    paths
        .iter()
        .map(|path| match FileKey::read(path) {
            Ok(key) => Ok(Some(key)),
            Err(error) if error.kind() == ErrorKind::NotFound && stage == Stage::Begun => {
                Err(Failure::new(
                    ErrorKind::Refused,
                    format!(
                        "a repository at {url} was begun with key files that exist, and {} does not",
                        path.display()
                    ),
                )
                .hint("Name the same key files as then, or another place for the repository."))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        })
        .collect()
}

/// The folder that was made for a repository that there will not be. One that holds anything stays.
fn remove_empty_folder(url: &str) {
    if let Some(path) = url.strip_prefix("file://") {
        // An empty folder is no repository, and does no harm where it stays.
        let _ = std::fs::remove_dir(path);
    }
}

/// Keys are never removed: the repository may have been begun with them, although no answer came.
fn keys_stay(failure: Failure, keys: &[(FileKey, bool)]) -> Failure {
    let made: Vec<String> = (keys.iter())
        .filter(|(_, made)| *made)
        .map(|(key, _)| key.path().display().to_string())
        .collect();
    if made.is_empty() {
        return failure;
    }
    let before = (failure.hint.clone()).map_or_else(String::new, |hint| hint + " ");
    let made = made.join(" and ");
    failure.hint(format!(
        "{before}The key in {made} was made and stays; init with the same options goes on with it."
    ))
}

fn make(path: &Path, found: Option<FileKey>, entropy: &dyn Entropy) -> Result<FileKey, Failure> {
    match found {
        Some(key) => Ok(key),
        None => Ok(FileKey::create(path, entropy)?),
    }
}

fn text(made: &Made) -> String {
    let mut out = format!("repository  {} (id {})\n", made.repository, made.id);
    for file in &made.key_files {
        let how = if file.made {
            "made, mode 0600"
        } else {
            "existed"
        };
        let _ = writeln!(
            out,
            "key file    {} ({how}, key {})",
            file.path.display(),
            file.key
        );
    }
    out += "\nEverything in the repository is encrypted. Without ";
    out += if made.key_files.len() > 1 {
        "one of these key files"
    } else {
        "this key file"
    };
    out += " nobody can read the backups, you included,\nand no one can make it again. Keep a copy in another place, apart from the repository.";
    out
}
