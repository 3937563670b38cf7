//! `borealis key`.

use std::process::ExitCode;
use std::sync::Arc;

use borealis_base::{ErrorKind, Timestamp};
use borealis_keys::{DataKeys, FileKey, KeyId, KeyProvider, KeyUrl};
use borealis_repository::Repository;
use serde::Serialize;

use super::{Context, absolute};
use crate::args::{Key, KeyAction, Renewal};
use crate::failure::Failure;
use crate::output::{self, table};

#[derive(Serialize)]
struct Listed {
    repository: String,
    recipients: Vec<RecipientLine>,
    data_keys: Vec<DataKeyLine>,
    notes: Vec<String>,
}

#[derive(Serialize)]
struct RecipientLine {
    key: String,
    scheme: String,
    name: String,
    version: String,
    since: Timestamp,
    opened_this: bool,
}

#[derive(Serialize)]
struct DataKeyLine {
    /// The cluster; `None`: the catalog.
    cluster: Option<String>,
    lineage: Option<String>,
    key: String,
    made: Timestamp,
    age_days: u64,
    current: bool,
}

/// Runs the command.
pub async fn run(context: &Context, args: &Key) -> Result<ExitCode, Failure> {
    let site = context.site().await?;
    let repository = &site.repository;
    let mut notes = Vec::new();
    let reopened = match &args.action {
        KeyAction::List => None,
        KeyAction::Add(args) => {
            let (provider, file) = provider(context, &args.new_key).await?;
            let key = provider.key_id();
            let added = repository.add_recipient(provider).await;
            if !added.map_err(|error| key_stays(error.into(), file))? {
                notes.push(format!("key {key} was a recipient before"));
            }
            None
        }
        KeyAction::Remove(args) => {
            let key = parse_id(&args.key_id)?;
            let others = recipients(context, &args.renewal.recipient).await?;
            repository.remove_recipient(key).await?;
            finish(repository, &args.renewal, &others, &mut notes).await?;
            None
        }
        KeyAction::Rotate(args) => {
            let others = recipients(context, &args.renewal.recipient).await?;
            let reopened = rotate(context, repository, &args.new_key.new_key).await?;
            finish(&reopened, &args.renewal, &others, &mut notes).await?;
            Some(reopened)
        }
        KeyAction::Rewrap => {
            repository.rewrap().await?;
            None
        }
        KeyAction::Renew(args) => {
            let others = recipients(context, &args.recipient).await?;
            repository.renew(&others).await?;
            notes.push(RENEWED.to_owned());
            None
        }
    };
    let repository = reopened.as_ref().unwrap_or(repository);
    let answer = list(repository, notes).await?;
    output::answer(context.global.json, &answer, text)?;
    Ok(ExitCode::SUCCESS)
}

const RENEWED: &str = "whatever is sealed from now on opens with no key known before; a running protect goes on to the \
                       new keys at its next look at them, a minute later at most unless told otherwise";
const NOT_RENEWED: &str = "whoever has the removed key, and could read the repository, still can read all of it, by its \
                           older key rings; if that may be, run borealis key renew";

/// Adds the new key, opens the repository with it, and removes the old one.
async fn rotate(
    context: &Context,
    repository: &Repository,
    new_key: &str,
) -> Result<Repository, Failure> {
    let (provider, file) = provider(context, new_key).await?;
    let states = repository.recipients().await?;
    let old = states.iter().find(|state| state.opened_this);
    let old = old.map(|state| state.recipient.key);
    if old == Some(provider.key_id()) {
        return Err(
            Failure::usage("--new-key names the key that is to go").hint(
                "Name another one; borealis key rewrap uses the newest version of the same key.",
            ),
        );
    }
    let added = repository.add_recipient(provider.clone()).await;
    added.map_err(|error| key_stays(error.into(), file))?;
    let reopened = Repository::open(repository.environment().clone(), provider).await?;
    if let Some(old) = old {
        reopened.remove_recipient(old).await?;
    }
    Ok(reopened)
}

async fn finish(
    repository: &Repository,
    renewal: &Renewal,
    others: &[Arc<dyn KeyProvider>],
    notes: &mut Vec<String>,
) -> Result<(), Failure> {
    if renewal.renew {
        repository.renew(others).await?;
        notes.push(RENEWED.to_owned());
    } else {
        notes.push(NOT_RENEWED.to_owned());
    }
    Ok(())
}

fn parse_id(text: &str) -> Result<KeyId, Failure> {
    text.parse().map_err(|_| {
        Failure::usage(format!("`{text}` is no key id"))
            .hint("A key id has 32 hexadecimal digits; borealis key list shows them.")
    })
}

/// The key that `text` names; a key file is made if it does not exist, and told of.
async fn provider(
    context: &Context,
    text: &str,
) -> Result<(Arc<dyn KeyProvider>, Option<String>), Failure> {
    let url = KeyUrl::parse(text)?.anchored(absolute);
    match borealis_keys::open(&url, &context.key_outfit()).await {
        Err(error) if error.kind() == ErrorKind::NotFound => match url.key_file() {
            Some(path) => {
                let made = FileKey::create(path, context.entropy.as_ref())?;
                Ok(((&made).into(), Some(path.display().to_string())))
            }
            None => Err(error.into()),
        },
        found => Ok((found?, None)),
    }
}

async fn recipients(
    context: &Context,
    named: &[String],
) -> Result<Vec<Arc<dyn KeyProvider>>, Failure> {
    let mut found = Vec::with_capacity(named.len());
    for text in named {
        let url = KeyUrl::parse(text)?;
        found.push(borealis_keys::open(&url, &context.key_outfit()).await?);
    }
    Ok(found)
}

/// Keys are never removed: one that was made is of use when the command is run again.
fn key_stays(failure: Failure, file: Option<String>) -> Failure {
    let Some(file) = file else {
        return failure;
    };
    let before = (failure.hint.clone()).map_or_else(String::new, |hint| hint + " ");
    failure.hint(format!(
        "{before}The key in {file} was made and stays; the same command goes on with it."
    ))
}

async fn list(repository: &Repository, notes: Vec<String>) -> Result<Listed, Failure> {
    let now = repository.environment().clock.now();
    let states = repository.recipients().await?;
    let recipients = (states.into_iter())
        .map(|state| RecipientLine {
            key: state.recipient.key.to_string(),
            scheme: state.recipient.scheme,
            name: state.recipient.label,
            version: state
                .version
                .split('@')
                .next()
                .unwrap_or_default()
                .to_owned(),
            since: state.since,
            opened_this: state.opened_this,
        })
        .collect();
    let mut data_keys = data_key_lines(None, None, repository.catalog_keys(), now);
    for cluster in repository.clusters().await? {
        for record in &cluster.lineages {
            let lineage = repository.lineage(record.lineage).await?;
            let id = record.lineage.to_string();
            data_keys.extend(data_key_lines(
                Some(&cluster.name),
                Some(&id),
                lineage.keys(),
                now,
            ));
        }
    }
    Ok(Listed {
        repository: repository.environment().store.url(),
        recipients,
        data_keys,
        notes,
    })
}

fn data_key_lines(
    cluster: Option<&str>,
    lineage: Option<&str>,
    keys: &DataKeys,
    now: Timestamp,
) -> Vec<DataKeyLine> {
    const DAY_MICROS: i64 = 24 * 60 * 60 * 1_000_000;
    let current = keys.current().id;
    let mut keys = keys.all();
    keys.sort_by_key(|key| key.created);
    (keys.into_iter())
        .map(|key| DataKeyLine {
            cluster: cluster.map(str::to_owned),
            lineage: lineage.map(str::to_owned),
            key: key.id.to_string(),
            made: key.created,
            age_days: (now.0.saturating_sub(key.created.0) / DAY_MICROS)
                .max(0)
                .unsigned_abs(),
            current: key.id == current,
        })
        .collect()
}

fn text(keys: &Listed) -> String {
    let rows = (keys.recipients.iter())
        .map(|line| {
            vec![
                line.key.clone(),
                line.scheme.clone(),
                line.since.to_string(),
                line.version.clone(),
                if line.opened_this { "this one" } else { "" }.to_owned(),
                line.name.clone(),
            ]
        })
        .collect();
    let header = ["key", "scheme", "since", "version", "opened", "name"];
    let mut out = format!("repository {} opens with\n\n", keys.repository);
    out += &table(&header, rows);
    let rows = (keys.data_keys.iter())
        .map(|line| {
            vec![
                line.cluster
                    .clone()
                    .unwrap_or_else(|| "(catalog)".to_owned()),
                line.lineage.clone().unwrap_or_default(),
                line.key.clone(),
                line.made.to_string(),
                format!("{} d", line.age_days),
                if line.current { "seals" } else { "opens" }.to_owned(),
            ]
        })
        .collect();
    let header = ["cluster", "lineage", "data key", "made", "age", "use"];
    out += "\n\n";
    out += &table(&header, rows);
    for note in &keys.notes {
        out += "\nnote: ";
        out += note;
    }
    out
}
