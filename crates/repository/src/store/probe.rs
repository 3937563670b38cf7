//! What a store can do, found by doing it: with one small object of a random name, removed at the end.

use std::sync::Arc;
use std::time::Duration;

use borealis_base::{Clock, Entropy, ObjectId};
use bytes::Bytes;
use serde::Serialize;

use super::{Created, Fencing, Store, StoreError, StoreErrorKind};
use crate::layout;

/// A difference of clocks above this is worth a word: times of objects by the store's clock will be
/// compared with grace periods.
const SKEW_NOTED: Duration = Duration::from_secs(60);
/// S3 refuses requests signed by a clock that is off by this much.
const SKEW_MAX: Duration = Duration::from_mins(15);
/// Bytes of the object.
const OBJECT_BYTES: usize = 4_096;

/// How a finding is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// As wanted.
    Ok,
    /// Good to know; everything works.
    Advice,
    /// Served in a weaker mode.
    Weaker,
    /// The store can't be used.
    Problem,
}

/// One thing that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub subject: &'static str,
    /// What happened.
    pub found: String,
    /// What it is needed for.
    pub wanted: &'static str,
    /// How to take it.
    pub state: State,
}

/// Everything that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The store.
    pub repository: String,
    /// Whether it is served in single-writer mode.
    pub single_writer: bool,
    /// In the order in which it was tried.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The gravest of the findings.
    pub fn state(&self) -> State {
        let states = self.findings.iter().map(|finding| finding.state);
        states.max().unwrap_or(State::Ok)
    }

    fn add(&mut self, subject: &'static str, wanted: &'static str, (state, found): Outcome) {
        self.findings.push(Finding {
            subject,
            found,
            wanted,
            state,
        });
    }
}

type Outcome = (State, String);

fn good(found: impl Into<String>) -> Outcome {
    (State::Ok, found.into())
}

fn bad(found: impl Into<String>) -> Outcome {
    (State::Problem, found.into())
}

/// Tries everything that the repository needs of a store.
///
/// # Errors
/// What keeps it from being asked at all: unreachable, denied, a bucket that does not exist.
pub async fn probe(
    store: &Arc<dyn Store>,
    clock: &dyn Clock,
    entropy: &dyn Entropy,
) -> Result<Report, StoreError> {
    let id = ObjectId::random(entropy);
    let name = layout::probe(id);
    let mut content = vec![0; OBJECT_BYTES];
    entropy.fill(&mut content);
    let content = Bytes::from(content);
    let mut report = Report {
        repository: store.url(),
        single_writer: false,
        findings: Vec::new(),
    };

    let fencing = store.fencing().await;
    report.single_writer = !matches!(fencing, Ok(Fencing::Atomic));
    let forbidden = match fencing {
        Err(error) if error.kind == StoreErrorKind::SingleWriter => Some(error),
        other => other.map(|_| None)?,
    };
    if let Some(error) = forbidden {
        report.add("create if absent", FENCED, bad(error.what));
        return Ok(report);
    }
    store.create(&name, content.clone()).await?;
    report.add(
        "read after write",
        READ,
        read_back(store, &name, &content).await?,
    );
    let fenced = if report.single_writer {
        (
            State::Weaker,
            "ignored: single-writer mode, in which a second writer is not stopped".to_owned(),
        )
    } else {
        second_create(store, &name, &content).await?
    };
    report.add("create if absent", FENCED, fenced);
    report.add("ranged read", RANGED, ranged(store, &name, &content).await?);
    report.add("absence", ABSENCE, absence(store, &name).await);
    report.add("clocks", CLOCKS, clocks(store, &name, clock).await?);
    report.add("list", LISTED, listed(store, &name).await);
    report.add("delete", DELETED, deleted(store, &name).await);
    Ok(report)
}

const READ: &str = "whatever was stored is read at once, by everybody";
const FENCED: &str = "a superseded writer can publish nothing";
const RANGED: &str = "a restore fetches what it needs of a pack";
const ABSENCE: &str = "\"not there\" is told from \"could not look\"";
const CLOCKS: &str = "within a minute";
const LISTED: &str = "only verify needs it";
const DELETED: &str = "protect needs no right to delete";

async fn read_back(
    store: &Arc<dyn Store>,
    name: &str,
    content: &Bytes,
) -> Result<Outcome, StoreError> {
    Ok(match store.read(name).await {
        Ok(back) if back == *content => good("the bytes that were written"),
        Ok(back) => bad(format!("{} other bytes than were written", back.len())),
        Err(error) if error.kind == StoreErrorKind::NotFound => bad("not there after the create"),
        Err(error) => return Err(error),
    })
}

async fn second_create(
    store: &Arc<dyn Store>,
    name: &str,
    content: &Bytes,
) -> Result<Outcome, StoreError> {
    let created = store.create(name, Bytes::from_static(b"second")).await?;
    let kept = store.read(name).await? == *content;
    Ok(match (created, kept) {
        (Created::Exists, true) => good("honoured"),
        (Created::Exists, false) => bad("a second create is refused, and replaces all the same"),
        (Created::New, _) => bad("honoured for one object and not for another"),
    })
}

async fn ranged(
    store: &Arc<dyn Store>,
    name: &str,
    content: &Bytes,
) -> Result<Outcome, StoreError> {
    let end = OBJECT_BYTES as u64;
    let middle = match store.read_range(name, 1_000..2_000).await {
        Ok(middle) => middle,
        Err(error) if error.kind == StoreErrorKind::Invalid => return Ok(bad(error.what)),
        Err(error) => return Err(error),
    };
    let across = store.read_range(name, end - 10..end + 10).await?;
    let beyond = store.read_range(name, end..end + 10).await?;
    let right = middle == content[1_000..2_000]
        && across == content[OBJECT_BYTES - 10..]
        && beyond.is_empty();
    Ok(if right {
        good("exact")
    } else {
        bad("other bytes than those asked for")
    })
}

async fn absence(store: &Arc<dyn Store>, name: &str) -> Outcome {
    match store.stat(&format!("{name}-absent")).await {
        Ok(None) => good("told"),
        Ok(Some(_)) => bad("an object that was never written exists"),
        Err(error) => bad(error.what),
    }
}

async fn clocks(
    store: &Arc<dyn Store>,
    name: &str,
    clock: &dyn Clock,
) -> Result<Outcome, StoreError> {
    let (here, stat) = (clock.now(), store.stat(name).await?);
    let Some(there) = stat.map(|stat| stat.modified) else {
        return Ok(bad("not there after the create"));
    };
    let apart = here.since(there).max(there.since(here));
    let found = format!("{} s apart", apart.as_secs());
    Ok(if apart > SKEW_MAX {
        (State::Problem, found)
    } else if apart > SKEW_NOTED {
        (State::Advice, found)
    } else {
        (State::Ok, found)
    })
}

async fn listed(store: &Arc<dyn Store>, name: &str) -> Outcome {
    match store.list("probes/").await {
        Ok(lines) if lines.iter().any(|line| line.name == name) => good("complete"),
        Ok(_) => (State::Advice, "what was just written is missing".to_owned()),
        Err(error) => (State::Advice, error.what),
    }
}

async fn deleted(store: &Arc<dyn Store>, name: &str) -> Outcome {
    let outcome = match store.delete(name).await {
        Ok(()) => store.stat(name).await,
        Err(error) => Err(error),
    };
    match outcome {
        Ok(None) => good("done"),
        Ok(Some(_)) => (State::Advice, format!("{name} is there all the same")),
        Err(error) => (State::Advice, format!("{name} stays: {}", error.what)),
    }
}
