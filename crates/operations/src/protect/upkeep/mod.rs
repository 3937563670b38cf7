//! What a running protection does besides: scrubs, slowly and for ever, and drills, each week.
//!
//! Nothing is owned here: how far a scrub is and when the last drill was is in the repository, so that a
//! restart goes on where it was. How it stops: it is dropped; a drill that runs is asked to end and removes what
//! it made.

pub mod damage;
mod drills;
pub mod turns;

use std::convert::Infallible;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use borealis_base::{ByteLen, ErrorKind, Timestamp};
use borealis_repository::catalog::Cluster;
use borealis_repository::ledger::EntryBody;
use borealis_repository::plan::Damage;
use borealis_repository::scrub::{Outcome, scrub};
use borealis_repository::{Lineage, layout};
use tokio_util::sync::CancellationToken;

use super::ledger::Ledger;
use crate::error::Result;
use crate::scrub::{InBackground, PERIOD, due_at};
use crate::site::Site;
use damage::KnownDamage;
use turns::Turns;

/// How fast a scrub reads at most, unless something else is said.
pub const SCRUB_RATE: ByteLen = ByteLen(16 << 20);
/// How often drills are run, unless something else is said.
pub const DRILL_INTERVAL: Duration = Duration::from_hours(7 * 24);
/// The longest time after the start of a protection before its upkeep begins; shorter with short periods.
const START_PAUSE_MAX: Duration = Duration::from_mins(10);
/// The pause after something failed.
const RETRY_PAUSE: Duration = Duration::from_mins(10);
/// How often it is looked whether damage was recorded elsewhere.
const DAMAGE_LOOK_INTERVAL: Duration = Duration::from_mins(10);
/// The longest sleep; the wall clock may step.
const SLEEP_MAX: Duration = Duration::from_mins(10);

/// What is done besides.
#[derive(Debug, Clone)]
pub struct UpkeepOptions {
    /// In which time everything live is read; `None` reads nothing.
    pub scrub_every: Option<Duration>,
    /// How fast at most.
    pub scrub_rate: ByteLen,
    /// How often drills are run; `None` runs none.
    pub drill_every: Option<Duration>,
    /// Where; `None` for the usual place.
    pub drill_directory: Option<PathBuf>,
    /// The words that run `drill` with this repository and its key.
    pub drill_command: Vec<OsString>,
}

impl Default for UpkeepOptions {
    fn default() -> Self {
        Self {
            scrub_every: Some(PERIOD),
            scrub_rate: SCRUB_RATE,
            drill_every: Some(DRILL_INTERVAL),
            drill_directory: None,
            drill_command: Vec::new(),
        }
    }
}

/// What it needs.
pub(super) struct Upkeep<'a> {
    pub(super) site: &'a Site,
    pub(super) options: &'a UpkeepOptions,
    pub(super) cluster: &'a Cluster,
    pub(super) lineage: &'a Lineage,
    pub(super) ledger: &'a Ledger,
    pub(super) damage: &'a KnownDamage,
    pub(super) turns: &'a Turns,
    pub(super) stop: &'a CancellationToken,
}

/// How long upkeep of a period waits after the start: a `protect` that is restarted often is not to begin with
/// it each time.
fn start_pause(period: Duration) -> Duration {
    (period / 10).min(START_PAUSE_MAX)
}

impl Upkeep<'_> {
    /// Runs until it is dropped.
    pub(super) async fn run(&self) -> Infallible {
        let (never, _, _) = tokio::join!(
            self.scrub_for_ever(),
            self.drill_for_ever(),
            self.look_for_damage()
        );
        never
    }

    async fn look_for_damage(&self) -> Infallible {
        loop {
            tokio::time::sleep(DAMAGE_LOOK_INTERVAL).await;
            if let Err(error) = self.damage.refresh().await {
                tracing::debug!(%error, "damage that others found was not looked for");
            }
        }
    }

    async fn scrub_for_ever(&self) -> Infallible {
        let Some(every) = self.options.scrub_every else {
            return std::future::pending().await;
        };
        tokio::time::sleep(start_pause(every)).await;
        loop {
            let mut next = None;
            for record in &self.cluster.lineages {
                match self.scrub_lineage(record.lineage, every).await {
                    Ok(due) => next = Some(next.map_or(due, |next: Duration| next.min(due))),
                    Err(error) => {
                        tracing::warn!(%error, lineage = %record.lineage, "scrub ended early; it goes on later");
                        next = Some(RETRY_PAUSE);
                    }
                }
            }
            let least = Duration::from_millis(100);
            tokio::time::sleep(next.unwrap_or(RETRY_PAUSE).clamp(least, SLEEP_MAX)).await;
        }
    }

    /// Scrubs a lineage if that is due; returns how long it is until it is due again.
    async fn scrub_lineage(
        &self,
        id: borealis_base::LineageId,
        every: Duration,
    ) -> Result<Duration> {
        let own = id == self.lineage.id();
        let lineage = if own {
            self.lineage.clone()
        } else {
            self.site.repository.lineage(id).await?
        };
        let clock = self.site.clock();
        if let Some(due) = due_at(&lineage, every).await?
            && due > clock.now()
        {
            return Ok(due.since(clock.now()));
        }
        let mut outcome = self.run_scrub(&lineage, own, every).await;
        if let Err(error) = &outcome
            && own
            && error.kind() == ErrorKind::Damaged
        {
            // The writer knows what readers can't read any more, and repeats it.
            tracing::error!(%error, "the ledger can't be read; what the writer knows is repeated");
            let head = self.ledger.read(|state| state.head).await;
            self.repeat(head).await?;
            outcome = self.run_scrub(&lineage, own, every).await;
        }
        let outcome = outcome?;
        tracing::info!(
            lineage = %id, complete = outcome.complete, objects = outcome.objects,
            bytes = %ByteLen(outcome.bytes), damaged = outcome.standing.len(), "scrub"
        );
        let due = due_at(&lineage, every).await?;
        Ok(due.map_or(RETRY_PAUSE, |due| due.since(clock.now())))
    }

    /// Scrubs, and deals with what is found.
    async fn run_scrub(&self, lineage: &Lineage, own: bool, every: Duration) -> Result<Outcome> {
        let rate = self.options.scrub_rate;
        let host = InBackground::new(self.site, lineage, every, rate, self.stop.clone());
        let outcome = tokio::select! {
            outcome = scrub(lineage, &host, &borealis_base::NoProgress) => outcome?,
            error = self.deal_with_news(&host, own) => return Err(error),
        };
        if own {
            // What was found last, too.
            self.damage.refresh().await?;
            for damage in self.damage.all() {
                self.deal_with(&damage).await?;
            }
        }
        Ok(outcome)
    }

    /// Deals with what is found while a pass goes on, which may take days.
    async fn deal_with_news(&self, host: &InBackground<'_>, own: bool) -> crate::Error {
        loop {
            let news = host.news().await;
            if !own {
                continue;
            }
            let dealt = async {
                self.damage.refresh().await?;
                for damage in &news {
                    self.deal_with(damage).await?;
                }
                Ok::<(), crate::Error>(())
            };
            if let Err(error) = dealt.await {
                return error;
            }
        }
    }

    /// An entry of the ledger that the store has lost keeps readers from getting past it until another repeats
    /// what it said.
    async fn deal_with(&self, damage: &Damage) -> Result<()> {
        let prefix = format!("{}ledger/", layout::lineage(self.lineage.id()));
        let number = (damage.object.strip_prefix(&prefix))
            .and_then(|rest| rest.rsplit('/').next())
            .and_then(|number| number.parse().ok());
        match number {
            Some(number) => self.repeat(number).await,
            None => Ok(()),
        }
    }

    async fn repeat(&self, entry: u64) -> Result<()> {
        while !self.ledger.is_repeated(entry).await {
            self.ledger.append(&EntryBody::ReadBack, Vec::new()).await?;
        }
        Ok(())
    }
}

/// When the first drill of a cluster is due: soon after there is something to restore.
fn first_due(first_base_backup: Timestamp, every: Duration) -> Timestamp {
    first_base_backup.plus(every.min(Duration::from_hours(1)))
}
