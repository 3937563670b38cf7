//! `borealis init`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use borealis_base::{Entropy, ErrorKind};
use borealis_keys::{FileKey, KeyProvider, KeyUrl};
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
    service_keys: Vec<ServiceKey>,
}

#[derive(Serialize)]
struct KeyFile {
    path: PathBuf,
    key: String,
    made: bool,
}

#[derive(Serialize)]
struct ServiceKey {
    scheme: &'static str,
    name: String,
    key: String,
}

/// A key that the repository is made for.
enum Key {
    File { key: FileKey, made: bool },
    Service(Arc<dyn KeyProvider>),
}

impl Key {
    fn provider(&self) -> Arc<dyn KeyProvider> {
        match self {
            Self::File { key, .. } => key.into(),
            Self::Service(provider) => provider.clone(),
        }
    }
}

/// A key as it was found, before anything is made.
enum Found {
    File { path: PathBuf, key: Option<FileKey> },
    Service(Arc<dyn KeyProvider>),
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
    let urls = named_keys(context, args)?;
    // Before any key is made: one that belongs to nothing would be taken for the one that matters.
    let stage = look(context, &url).await?;
    let found = find(context, &urls, stage, &url).await?;
    let store = store::open(&url, Absent::Create, &context.outfit()).await?;
    let mut keys = Vec::with_capacity(found.len());
    for found in found {
        let key = make(found, context.entropy.as_ref()).inspect_err(|_| {
            if stage == Stage::Absent {
                remove_empty_folder(&store.url());
            }
        })?;
        keys.push(key);
    }
    let providers: Vec<_> = keys.iter().map(Key::provider).collect();
    let environment = Environment {
        store,
        clock: context.clock.clone(),
        entropy: context.entropy.clone(),
    };
    let repository = (Repository::init(environment, &providers).await)
        .map_err(|error| keys_stay(error.into(), &keys))?;
    let answer = told(&repository, &keys);
    output::answer(context.global.json, &answer, text)?;
    Ok(ExitCode::SUCCESS)
}

/// The keys that are named, the first one by the options of every command.
fn named_keys(context: &Context, args: &Init) -> Result<Vec<KeyUrl>, Failure> {
    let key = context.key().map_err(|failure| match failure.kind {
        ErrorKind::Usage if failure.message.starts_with("no key file") => failure.hint(
            "Name one with --key-file, in BOREALIS_KEY_FILE, or as key_file in the configuration \
             file; it is made if it does not exist. Keep it apart from the repository. A key in a key \
             service is named with --key.",
        ),
        _ => failure,
    })?;
    let mut urls = vec![key.anchored(absolute)];
    for recipient in &args.recipient {
        let recipient = KeyUrl::parse(recipient)?.anchored(absolute);
        if urls.contains(&recipient) {
            let what = recipient.key_file().map_or_else(
                || format!("--recipient names the same key again: {recipient}"),
                |path| {
                    format!(
                        "--recipient names the same file as --key-file: {}",
                        path.display()
                    )
                },
            );
            return Err(Failure::usage(what).hint("Name another key, kept in another place."));
        }
        urls.push(recipient);
    }
    Ok(urls)
}

fn told(repository: &Repository, keys: &[Key]) -> Made {
    let (mut key_files, mut service_keys) = (Vec::new(), Vec::new());
    for key in keys {
        match key {
            Key::File { key, made } => key_files.push(KeyFile {
                path: key.path().to_owned(),
                key: key.key_id().to_string(),
                made: *made,
            }),
            Key::Service(provider) => service_keys.push(ServiceKey {
                scheme: provider.scheme(),
                name: provider.label(),
                key: provider.key_id().to_string(),
            }),
        }
    }
    Made {
        repository: repository.environment().store.url(),
        id: repository.id().to_string(),
        key_files,
        service_keys,
    }
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

/// The keys that exist. Those of services always do, or it ends here.
async fn find(
    context: &Context,
    urls: &[KeyUrl],
    stage: Stage,
    repository: &str,
) -> Result<Vec<Found>, Failure> {
    let mut found = Vec::with_capacity(urls.len());
    for url in urls {
        found.push(match url {
            KeyUrl::File(path) => Found::File {
                key: read_present(path, stage, repository)?,
                path: path.clone(),
            },
            _ => Found::Service(borealis_keys::open(url, &context.key_outfit()).await?),
        });
    }
    Ok(found)
}

fn read_present(path: &Path, stage: Stage, repository: &str) -> Result<Option<FileKey>, Failure> {
    match FileKey::read(path) {
        Ok(key) => Ok(Some(key)),
        Err(error) if error.kind() == ErrorKind::NotFound && stage == Stage::Begun => {
            Err(Failure::new(
                ErrorKind::Refused,
                format!(
                    "a repository at {repository} was begun with key files that exist, and {} does not",
                    path.display()
                ),
            )
            .hint("Name the same key files as then, or another place for the repository."))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The folder that was made for a repository that there will not be. One that holds anything stays.
fn remove_empty_folder(url: &str) {
    if let Some(path) = url.strip_prefix("file://") {
        // An empty folder is no repository, and does no harm where it stays.
        let _ = std::fs::remove_dir(path);
    }
}

/// Keys are never removed: the repository may have been begun with them, although no answer came.
fn keys_stay(failure: Failure, keys: &[Key]) -> Failure {
    let made: Vec<String> = (keys.iter())
        .filter_map(|key| match key {
            Key::File { key, made: true } => Some(key.path().display().to_string()),
            _ => None,
        })
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

fn make(found: Found, entropy: &dyn Entropy) -> Result<Key, Failure> {
    Ok(match found {
        Found::Service(provider) => Key::Service(provider),
        Found::File { key: Some(key), .. } => Key::File { key, made: false },
        Found::File { path, key: None } => Key::File {
            key: FileKey::create(&path, entropy)?,
            made: true,
        },
    })
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
    for key in &made.service_keys {
        let _ = writeln!(out, "{:<11} {} (key {})", key.scheme, key.name, key.key);
    }
    out += "\nEverything in the repository is encrypted. ";
    out += match (made.key_files.len(), made.service_keys.len()) {
        (1, 0) => {
            "Without this key file nobody can read the backups, you included,\nand no one can make it again. Keep a copy in another place, apart from the repository."
        }
        (_, 0) => {
            "Without one of these key files nobody can read the backups, you included,\nand no one can make it again. Keep a copy in another place, apart from the repository."
        }
        (0, 1) => {
            "Without this key nobody can read the backups, you included.\nProtect it from deletion, or add a key file that lies in a safe: borealis key add."
        }
        _ => "Without one of these keys nobody can read the backups, you included.",
    };
    out
}
