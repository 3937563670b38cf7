//! Where a server is gone on with: behind what is stored, on the same branch or on one that left it, or
//! behind a gap. Whatever a branch needs stands in the ledger before its first byte.

use borealis_base::{Branch, ErrorKind, LineageId, Position};
use borealis_pg_server::link::SqlLink;
use borealis_pg_server::link::replication::ReplicationLink;
use borealis_repository::ledger::{EntryBody, Gap};
use borealis_repository::plan::{LineageState, PieceSummary};

use super::begin::{self, Beginning, Held};
use super::route::{Place, Standpoint, branches_to_record, standpoint};
use super::slot_watch::slot_name;
use super::source::{Source, with_own_histories};
use super::supervise::Protection;
use crate::error::{Error, Result};

/// A place to capture from.
pub(super) struct Begun {
    /// The branch of the log that comes.
    pub(super) branch: Branch,
    /// The place on it.
    pub(super) beginning: Beginning,
}

impl Protection<'_> {
    /// Finds where to go on. With a gap, or for the first time, that is where the server can give log from.
    pub(super) async fn begin(&self, source: &Source, gap: Option<String>) -> Result<Begun> {
        let state = self.ledger.read(Clone::clone).await;
        let (hold, reserved) = self.reserve(source).await?;
        let begun = match standpoint(&source.standing, &state) {
            Standpoint::GoesOn(place) => {
                // A slot that was let go while the log is all there leaves no gap: the new one holds it.
                match gap.filter(|_| reserved > place.at) {
                    Some(reason) => self.behind_gap(source, place, reserved, reason).await?,
                    None => self.go_on(source, place, reserved).await?,
                }
            }
            Standpoint::First => self.anew(source, reserved).await?,
            // It was judged by the same state before.
            Standpoint::Behind(why) | Standpoint::LeftBehind(why) | Standpoint::Rewritten(why) => {
                return Err(Error::new(ErrorKind::Unreachable, why));
            }
        };
        Ok(Begun {
            beginning: Beginning {
                hold,
                ..begun.beginning
            },
            ..begun
        })
    }

    async fn go_on(&self, source: &Source, place: Place, reserved: Position) -> Result<Begun> {
        let format = begin::log_format(&source.server.control);
        self.record_branches(source, place.branch).await?;
        let held = Held {
            store: self.lineage.store().clone(),
            keys: self.lineage.keys().clone(),
            state: self.ledger.read(Clone::clone).await,
        };
        if place.branch != place.stored {
            tracing::warn!(
                at = %place.at, from = %place.stored, to = %place.branch,
                "the source was promoted; its timeline is followed"
            );
        }
        match begin::at(&held, format, place).await {
            Ok(beginning) => Ok(Begun {
                branch: place.branch,
                beginning,
            }),
            // The log that it is in was lost by the store: go on behind it.
            Err(error) if error.kind() == ErrorKind::Damaged && place.branch == place.stored => {
                if let Some(piece) = last_of(&held.state, place.branch) {
                    self.withdraw_end(piece, reserved, &error).await?;
                }
                self.anew(source, reserved).await
            }
            Err(error) if [ErrorKind::Damaged, ErrorKind::NotFound].contains(&error.kind()) => {
                let reason = format!("the log that leads to the timeline can't be read: {error}");
                self.behind_gap(source, place, reserved, reason).await
            }
            Err(error) => Err(error),
        }
    }

    /// Begins where the server can give log from. A segment in which a timeline begins is read from its
    /// beginning, on the timeline before.
    async fn anew(&self, source: &Source, reserved: Position) -> Result<Begun> {
        let format = begin::log_format(&source.server.control);
        let branch = source.standing.history.timeline_at(reserved);
        self.record_branches(source, branch).await?;
        let state = self.ledger.read(Clone::clone).await;
        Ok(Begun {
            branch,
            beginning: begin::anew(format, reserved, &state),
        })
    }

    async fn behind_gap(
        &self,
        source: &Source,
        place: Place,
        reserved: Position,
        reason: String,
    ) -> Result<Begun> {
        let branch = source.standing.history.timeline_at(reserved);
        self.record_branches(source, branch).await?;
        let body = Gap {
            branch,
            from: place.at,
            to: reserved.max(place.at),
            reason,
        };
        self.ledger
            .append(&EntryBody::Gap(body), Vec::new())
            .await?;
        self.anew(source, reserved).await
    }

    /// Takes the last piece of the log out of what is promised, since its end can't be read any more.
    async fn withdraw_end(
        &self,
        piece: &PieceSummary,
        reserved: Position,
        damage: &Error,
    ) -> Result<()> {
        tracing::error!(
            start = %piece.start, end = %piece.end, error = %damage,
            "the end of the log is not stored as it was written; it is withdrawn, and a base backup follows"
        );
        let known = |state: &LineageState| state.is_withdrawn(piece);
        if self.ledger.read(known).await {
            return Ok(());
        }
        let body = Gap {
            branch: piece.branch,
            from: piece.start,
            to: piece.end.max(reserved),
            reason: format!("read when protect started: {damage}"),
        };
        self.ledger
            .append(&EntryBody::Gap(body), Vec::new())
            .await?;
        Ok(())
    }

    /// Has the server keep its log from here on, by our slot or as long as the connection is kept.
    async fn reserve(&self, source: &Source) -> Result<(Option<ReplicationLink>, Position)> {
        let (info, segment) = (source.info(), source.server.facts.segment_bytes);
        let sql = SqlLink::connect(info).await?;
        if let Some(slot) = &self.slot {
            return Ok((None, begin::reserve(info, &sql, slot, segment).await?));
        }
        // Each has a name of its own: the server may not have noticed yet that the last one is gone.
        let token = LineageId::random(&**self.lineage.entropy()).to_string();
        let token = token.get(..8).unwrap_or_default();
        let slot = format!("{}_{token}", slot_name(&self.lineage));
        let (hold, reserved) = begin::hold(info, &sql, &slot, segment).await?;
        Ok((Some(hold), reserved))
    }

    /// The histories of `branch` and of those before it: recovery asks for them, so they are stored before
    /// the first byte of the branch.
    async fn record_branches(&self, source: &Source, branch: Branch) -> Result<()> {
        let started = (self.ledger)
            .read(|state| branches_to_record(&source.standing, branch, state))
            .await;
        for started in with_own_histories(source.info(), started).await? {
            self.ledger
                .append(&EntryBody::BranchStarted(started), Vec::new())
                .await?;
        }
        Ok(())
    }
}

/// The piece of a branch that was stored last.
fn last_of(state: &LineageState, branch: Branch) -> Option<&PieceSummary> {
    let mut pieces = state.pieces.iter().rev();
    pieces.find(|piece| piece.branch == branch)
}
