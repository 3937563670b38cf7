//! Finds the server with which the stored log goes on, among all hosts of the source.

use borealis_base::ErrorKind;
use borealis_pg_format::history::History;
use borealis_pg_server::conninfo::ConnInfo;
use borealis_pg_server::link::replication::ReplicationLink;
use borealis_repository::ledger::BranchStarted;
use borealis_repository::plan::LineageState;
use futures::future::join_all;

use super::preflight::{Looked, look_at_server};
use super::route::{Standing, Standpoint, standpoint};
use super::supervise::Options;
use crate::error::{Error, Result};
use crate::restore::recovery_file::RecoveryFile;

/// What to do about a server that is another cluster.
pub(super) const OTHER_SYSTEM: &str = "Protect it under a name of its own with --cluster or, if it has replaced the one protected (pg_upgrade), begin a new lineage with --new-lineage.";

/// A server with which the stored log goes on.
pub(super) struct Source {
    /// What was seen of it.
    pub(super) server: Looked,
    /// Its place in the history.
    pub(super) standing: Standing,
}

impl Source {
    /// How to reach it, and no other.
    pub(super) fn info(&self) -> &ConnInfo {
        &self.server.info
    }
}

/// The cluster that a server must be.
pub(super) struct Wanted<'a> {
    /// All hosts, and how their files are read.
    pub(super) options: &'a Options,
    /// Its system identifier.
    pub(super) system_id: u64,
    /// What is stored of it.
    pub(super) state: &'a LineageState,
    /// Refuses a server that a restore by Borealis has left.
    pub(super) refuse: &'a (dyn Fn(Option<&RecoveryFile>) -> Result<()> + Sync),
}

/// What one host is good for.
enum Judged {
    GoesOn(Box<Source>),
    /// It may be good for something later.
    Wait(Error),
    /// It is not.
    Refused(Error),
}

impl Wanted<'_> {
    /// Asks all hosts at once and takes, of those whose log goes on from what is stored, one on the newest
    /// timeline, the first in the order of the hosts.
    ///
    /// # Errors
    /// Unreachable while some host may yet come to be the one; refused where every host has answered and
    /// none of them can be.
    pub(super) async fn find(&self) -> Result<Source> {
        let mut judged = Vec::new();
        for pass in self.options.info.passes() {
            let looks = pass.each_host().map(|host| self.judge(host));
            let (good, bad): (Vec<_>, Vec<_>) = (join_all(looks).await.into_iter())
                .partition(|judged| matches!(judged, Judged::GoesOn(_)));
            let good = good.into_iter().filter_map(|judged| match judged {
                Judged::GoesOn(source) => Some(*source),
                _ => None,
            });
            // The last of equals wins in `max_by_key`, and the first host is to.
            if let Some(source) = good.rev().max_by_key(|source| source.standing.branch()) {
                for judged in bad {
                    if let Judged::Refused(error) = judged {
                        tracing::warn!("passed over: {error}");
                    }
                }
                return Ok(source);
            }
            judged = bad;
        }
        Err(none_of(judged))
    }

    /// Judges one host that was looked at already.
    pub(super) async fn judge_looked(&self, server: Looked) -> Result<Source> {
        match self.judge_server(server).await {
            Judged::GoesOn(source) => Ok(*source),
            other => Err(none_of(vec![other])),
        }
    }

    async fn judge(&self, host: ConnInfo) -> Judged {
        match look_at_server(self.options, host).await {
            Ok(server) => self.judge_server(server).await,
            Err(error) => Judged::of(error),
        }
    }

    async fn judge_server(&self, server: Looked) -> Judged {
        let name = shown(&server.info);
        if server.facts.system_id != self.system_id {
            return Judged::Refused(Error::refused(
                format!(
                    "the server at {name} is another cluster: its system identifier is {}, the one protected has {}",
                    server.facts.system_id, self.system_id
                ),
                OTHER_SYSTEM,
            ));
        }
        if let Err(error) = (self.refuse)(server.restored.as_ref()) {
            return Judged::of(error);
        }
        let standing = match standing(&server).await {
            Ok(standing) => standing,
            Err(error) => return Judged::of(error),
        };
        match standpoint(&standing, self.state) {
            Standpoint::First | Standpoint::GoesOn(_) => {
                Judged::GoesOn(Box::new(Source { server, standing }))
            }
            Standpoint::Behind(why) => Judged::Wait(Error::new(
                ErrorKind::Unreachable,
                format!("the standby at {name} has not come as far: {why}"),
            )),
            Standpoint::LeftBehind(why) => Judged::Refused(Error::refused(
                format!(
                    "the server at {name} is not the one to go on with: {why}; what it writes since is not stored"
                ),
                "It is an old primary that has returned. Make it a standby of the new one (pg_rewind), or name the new one with --source.",
            )),
            Standpoint::Rewritten(why) => Judged::Refused(Error::Rewritten(format!(
                "the server at {name} has another history: {why}"
            ))),
        }
    }
}

impl Judged {
    fn of(error: Error) -> Self {
        if error.kind() == ErrorKind::Unreachable {
            Self::Wait(error)
        } else {
            Self::Refused(error)
        }
    }
}

/// Why none of the hosts will do.
fn none_of(judged: Vec<Judged>) -> Error {
    let mut waits = false;
    let mut errors = Vec::new();
    for judged in judged {
        match judged {
            Judged::GoesOn(_) => {}
            Judged::Wait(error) => {
                waits = true;
                errors.push(error);
            }
            Judged::Refused(error) => errors.push(error),
        }
    }
    if errors.len() == 1
        && let Some(only) = errors.pop()
    {
        return only;
    }
    let told: Vec<String> = errors.iter().map(ToString::to_string).collect();
    let told = format!(
        "no host of the source can be gone on with: {}",
        told.join("; ")
    );
    if waits {
        return Error::new(ErrorKind::Unreachable, told);
    }
    let hint = errors.iter().find_map(Error::hint);
    Error::with_hint(
        ErrorKind::Refused,
        told,
        hint.unwrap_or_else(|| "borealis check says what is wanted.".to_owned()),
    )
}

/// The host, without more.
fn shown(info: &ConnInfo) -> String {
    let hosts: Vec<String> = info.hosts.iter().map(ToString::to_string).collect();
    hosts.join(", ")
}

/// Asks the server for its timelines and how far its log goes.
async fn standing(server: &Looked) -> Result<Standing> {
    let mut link = ReplicationLink::connect(&server.info).await?;
    let system = link.identify_system().await?;
    if system.system_id != server.facts.system_id {
        return Err(Error::new(
            ErrorKind::Unreachable,
            format!(
                "{} leads to one cluster and then to another",
                shown(&server.info)
            ),
        ));
    }
    let history = if system.branch.0 > 1 {
        let (_, text) = link.timeline_history(system.branch).await?;
        History::parse(system.branch, &text)?
    } else {
        History::first()
    };
    Ok(Standing {
        history,
        flushed: system.flushed,
        in_recovery: server.facts.in_recovery,
    })
}

/// Whether some host is on a later timeline than `source`. One that gives no answer is on none.
pub(super) async fn newer(hosts: &ConnInfo, source: &Source) -> bool {
    let others = hosts
        .each_host()
        .filter(|host| host.hosts != source.info().hosts);
    let asked = others.map(async |host| {
        let mut link = ReplicationLink::connect(&host).await?;
        link.identify_system().await
    });
    join_all(asked).await.into_iter().flatten().any(|system| {
        system.system_id == source.server.facts.system_id
            && system.branch > source.standing.branch()
    })
}

/// Puts the server's own history files in the place of what was worked out from its last one, where it has
/// them: recovery compares nothing but the numbers, and people read the rest.
pub(super) async fn with_own_histories(
    info: &ConnInfo,
    mut started: Vec<BranchStarted>,
) -> Result<Vec<BranchStarted>> {
    if started.is_empty() {
        return Ok(started);
    }
    let mut link = ReplicationLink::connect(info).await?;
    for started in &mut started {
        match link.timeline_history(started.branch).await {
            Ok((_, text)) => started.history = text,
            // A server may lack the files of timelines before its own.
            Err(error) if error.kind() != ErrorKind::Unreachable => {
                tracing::debug!(branch = %started.branch, %error, "no history file");
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(started)
}
