//! Snapshots: names for positions of the log, kept restorable.
//!
//! ```text
//! restore point in the server's log ──▶ shipped by the running protect ──▶ found in the stored log
//!                                       ──▶ proven restorable ──▶ pin
//! ```
//!
//! Nothing is owned here: killed at any moment, a restore point without a pin is left, which is of no
//! effect.

use std::path::Path;
use std::time::Duration;

use borealis_base::{Branch, Clock, ErrorKind, Position, RecordSpan, Timestamp, show_duration};
use borealis_pg_format::index::{EventKind, LogIndex};
use borealis_pg_server::conninfo::{ConnInfo, TargetSession};
use borealis_pg_server::link::SqlLink;
use borealis_pg_server::link::replication::ReplicationLink;
use borealis_pg_server::source::{RESTORE_POINT_NAME_MAX, ServerFacts, create_restore_point};
use borealis_repository::Lineage;
use borealis_repository::catalog::Cluster;
use borealis_repository::ledger::{LedgerReader, Presence};
use borealis_repository::log::LogReader;
use borealis_repository::pins::{NewPin, PIN_NAME_BYTES_MAX, Pins};
use borealis_repository::plan::{
    Coverage, LineageState, PieceSummary, PinSummary, newest_branch, plan_to, what_a_pin_needs,
};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::protect::{begin, control, log_frame};
use crate::site::{ClusterIdentity, Site};
use crate::status::{exact_windows, scrubbed_at, ships_log, unless_damaged};

/// How often the ledger is looked at while waiting.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How often it is looked whether log is still shipped while waiting.
const PRESENCE_INTERVAL: Duration = Duration::from_secs(5);

/// A snapshot that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Created {
    /// Its name.
    pub name: String,
    /// The cluster.
    pub cluster: String,
    /// The branch.
    pub branch: u32,
    /// The position behind its last record.
    pub position: Position,
    /// The moment it stands for, by the server's clock.
    pub time: Option<Timestamp>,
    /// Whether the server was not asked, so that commits which it had acknowledged may be missing.
    pub at_latest_stored: bool,
}

/// A snapshot that stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// The moment it stands for.
    pub time: Option<Timestamp>,
    /// The branch.
    pub branch: u32,
    /// The position behind its last record.
    pub position: Position,
    /// Whether what it needs is stored without a break.
    pub restorable: bool,
    /// Whether all of that was read back from the store after it was stored.
    pub read_back: bool,
    /// When a scrub that read all of it ended.
    pub scrubbed_at: Option<Timestamp>,
    /// When a drill to this very position last passed.
    pub drilled_at: Option<Timestamp>,
}

/// Refuses what is no name for a snapshot.
pub fn check_name(name: &str) -> Result<()> {
    // A name is read back from `--to snapshot:NAME`, which is trimmed.
    let good = !name.is_empty()
        && name.len() <= PIN_NAME_BYTES_MAX
        && name.trim() == name
        && !name.chars().any(char::is_control);
    if good {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Usage,
        format!(
            "{name:?} is not a snapshot name: 1 to {PIN_NAME_BYTES_MAX} bytes, without control characters and without spaces at its ends"
        ),
    ))
}

fn refuse_existing(pins: &Pins, name: &str) -> Result<()> {
    match pins.find(name) {
        Ok(_) => Err(Error::refused(
            format!("a snapshot `{name}` exists"),
            "Choose another name, or delete that one first.",
        )),
        Err(_) => Ok(()),
    }
}

/// What the server's log calls the place. Anything but plain ASCII could be refused by a database in
/// another encoding; the name is for people who read the log, and nothing looks for it.
fn restore_point_name(name: &str) -> String {
    name.chars()
        .map(|c| {
            if c.is_ascii_graphic() || c == ' ' {
                c
            } else {
                '_'
            }
        })
        .take(RESTORE_POINT_NAME_MAX)
        .collect()
}

/// Makes a snapshot that holds every commit acknowledged before the call, waiting up to `timeout` for
/// a base backup to end and for the log to be durable.
///
/// # Errors
/// Refused where the name is taken, where no `protect` ships log, and where the server is not there or
/// another one; unreachable where the time does not suffice.
pub async fn create(
    site: &Site,
    cluster: Option<&str>,
    name: &str,
    info: &ConnInfo,
    timeout: Duration,
) -> Result<Created> {
    check_name(name)?;
    let cluster = site.cluster(cluster).await?;
    let lineage = site.lineage(&cluster).await?;
    let mut pins = lineage.pins().await?;
    refuse_existing(&pins, name)?;
    let mut waiting = Waiting::begin(site, &cluster, &lineage, timeout).await?;
    let (sql, branch) = open_source(&cluster, info).await?;
    waiting.for_base_backup(branch).await?;
    let end = create_restore_point(&sql, &restore_point_name(name)).await?;
    drop(sql);
    let piece = waiting.for_log(branch, end).await?;
    let (last_record, time) = find_restore_point(&lineage, &piece, end).await?;
    let mut state = waiting.reader.state().clone();
    state.withdraw(&lineage.known_damage().await?);
    pin(
        &lineage,
        &mut pins,
        &cluster,
        &state,
        NewPin {
            name: name.to_owned(),
            branch,
            last_record,
            time: Some(time),
            note: String::new(),
            tags: std::collections::BTreeMap::new(),
        },
        false,
    )
    .await
}

/// Makes a snapshot of the last record that the repository holds, without asking the server.
pub async fn create_at_latest(site: &Site, cluster: Option<&str>, name: &str) -> Result<Created> {
    check_name(name)?;
    let cluster = site.cluster(cluster).await?;
    let lineage = site.lineage(&cluster).await?;
    let mut pins = lineage.pins().await?;
    refuse_existing(&pins, name)?;
    let state = lineage.load_state().await?;
    let windows = exact_windows(&lineage, &state).await?;
    let newest = windows.iter().max_by_key(|window| window.last_entry);
    let Some(newest) = newest else {
        return Err(Error::refused(
            format!("nothing of cluster {} can be restored yet", cluster.name),
            "Wait until borealis protect has taken its first base backup; borealis status shows it.",
        ));
    };
    let new = NewPin {
        name: name.to_owned(),
        branch: newest.branch,
        last_record: newest.last_record,
        time: newest.latest.time,
        note: "last stored position; the server was not asked".to_owned(),
        tags: std::collections::BTreeMap::new(),
    };
    pin(&lineage, &mut pins, &cluster, &state, new, true).await
}

/// The snapshots of a cluster, oldest first.
pub async fn list(site: &Site, cluster: Option<&str>) -> Result<Vec<Listed>> {
    let cluster = site.cluster(cluster).await?;
    let lineage = site.lineage(&cluster).await?;
    let state = lineage.load_state().await?;
    let scrubs = unless_damaged(lineage.scrubs().await)?;
    let drills = unless_damaged(lineage.drills().await)?;
    let drills = drills.as_ref().map_or(&[][..], |drills| drills.all());
    let listed = |pin: &PinSummary| {
        let needed = what_a_pin_needs(&state, pin);
        // The last entry that a restore to it reads.
        let last = needed.as_ref().map(|plan| {
            let pieces = plan.pieces.iter().map(|range| range.piece.entry);
            pieces.fold(plan.base_backup.entry, u64::max)
        });
        let drilled = (drills.iter().rev()).find(|drill| {
            drill.passed()
                && drill.branch == pin.branch
                && drill.last_record == Some(pin.last_record)
        });
        Listed {
            name: pin.name.clone(),
            time: pin.time,
            branch: pin.branch.0,
            position: pin.last_record.end,
            restorable: needed.is_some(),
            read_back: needed.is_some_and(|plan| {
                let mut pieces = plan.pieces.iter();
                pieces.all(|range| range.piece.entry <= state.read_back)
            }),
            scrubbed_at: last.and_then(|last| scrubbed_at(scrubs.as_ref()?, last)),
            drilled_at: drilled.map(|drill| drill.ended_at),
        }
    };
    Ok(state.pins.iter().map(listed).collect())
}

/// Forgets a snapshot; returns the name of its cluster.
pub async fn delete(site: &Site, cluster: Option<&str>, name: &str) -> Result<String> {
    let cluster = site.cluster(cluster).await?;
    let mut pins = site.lineage(&cluster).await?.pins().await?;
    pins.delete(name).await?;
    Ok(cluster.name)
}

/// Pins a record, once it is proven that a restore reaches it.
async fn pin(
    lineage: &Lineage,
    pins: &mut Pins,
    cluster: &Cluster,
    state: &LineageState,
    new: NewPin,
    at_latest_stored: bool,
) -> Result<Created> {
    if plan_to(state, new.branch, new.last_record).is_none() {
        return Err(Error::refused(
            format!(
                "position {} of cluster {} can't be restored: no base backup reaches it",
                new.last_record.end, cluster.name
            ),
            "Run it again when borealis status shows a newer base backup.",
        ));
    }
    let created = Created {
        name: new.name.clone(),
        cluster: cluster.name.clone(),
        branch: new.branch.0,
        position: new.last_record.end,
        time: new.time,
        at_latest_stored,
    };
    let name = new.name.clone();
    pins.create(new).await?;
    // Between the proof and the pin it may have expired; what is there with the pin in sight stays.
    let (state, record) = (lineage.load_state().await?, created.position);
    let needed = (state.pins.iter())
        .find(|pin| pin.name == name && pin.last_record.end == record)
        .and_then(|pin| what_a_pin_needs(&state, pin));
    if needed.is_none() {
        pins.delete(&name).await?;
        return Err(Error::refused(
            format!(
                "position {record} of cluster {} expired meanwhile",
                cluster.name
            ),
            "Make a snapshot of a position that borealis status shows.",
        ));
    }
    Ok(created)
}

/// Connects to the cluster's own server, of several hosts to the primary on the newest timeline; returns
/// the timeline that it writes.
async fn open_source(cluster: &Cluster, info: &ConnInfo) -> Result<(SqlLink, Branch)> {
    let (mut found, mut last) = (None, None);
    for host in info.each_host() {
        match open_host(cluster, &host).await {
            Ok(open) if found.as_ref().is_none_or(|(_, branch)| *branch < open.1) => {
                found = Some(open);
            }
            Ok(_) => {}
            Err(error) => last = Some(error),
        }
    }
    match (found, last) {
        (Some(found), _) => Ok(found),
        (None, Some(error)) => Err(error),
        (None, None) => Err(Error::new(ErrorKind::Usage, "the source names no host")),
    }
}

async fn open_host(cluster: &Cluster, info: &ConnInfo) -> Result<(SqlLink, Branch)> {
    // Whatever the log comes from, a restore point is written by a primary.
    let info = &info.with_target(TargetSession::Any);
    let sql = SqlLink::connect(info).await.map_err(unreachable_source)?;
    let facts = ServerFacts::read(&sql).await?;
    if facts.system_id != ClusterIdentity::of(cluster)?.system_id {
        return Err(Error::refused(
            format!("the server at the source is not cluster {}", cluster.name),
            "Name the cluster's own server with --source.",
        ));
    }
    if facts.in_recovery {
        return Err(Error::refused(
            "the server at the source is a standby, where no restore point can be written",
            "Name the primary with --source, or keep the last stored position with --at latest.",
        ));
    }
    let system = ReplicationLink::connect(info)
        .await
        .map_err(unreachable_source)?
        .identify_system()
        .await?;
    Ok((sql, system.branch))
}

fn unreachable_source(error: borealis_pg_server::Error) -> Error {
    if error.kind() != ErrorKind::Unreachable {
        return error.into();
    }
    Error::refused(
        format!("the source can't be asked: {error}"),
        "Keep the last stored position with --at latest; it may lack the newest commits.",
    )
}

/// A ledger that is read again and again until it holds what is wanted.
struct Waiting<'a> {
    clock: &'a dyn Clock,
    cluster: &'a str,
    reader: LedgerReader,
    timeout: Duration,
    deadline: Duration,
    look_at_presence: Duration,
}

impl<'a> Waiting<'a> {
    async fn begin(
        site: &'a Site,
        cluster: &'a Cluster,
        lineage: &Lineage,
        timeout: Duration,
    ) -> Result<Self> {
        let clock: &dyn Clock = site.clock().as_ref();
        let waiting = Self {
            clock,
            cluster: &cluster.name,
            reader: lineage.reader().await?,
            timeout,
            deadline: clock.elapsed().saturating_add(timeout),
            look_at_presence: clock.elapsed() + PRESENCE_INTERVAL,
        };
        waiting.present().await?;
        Ok(waiting)
    }

    /// Who ships log; refused where nobody does.
    async fn present(&self) -> Result<Option<Presence>> {
        let present = self.reader.presence().await?;
        if ships_log(present.as_ref(), self.clock.now()) {
            return Ok(present);
        }
        Err(Error::refused(
            format!(
                "no protect of cluster {} runs, so that its log is not shipped",
                self.cluster
            ),
            "Start borealis protect, or keep the last stored position with --at latest.",
        ))
    }

    /// Lets some time pass and reads on. `what` is missing.
    async fn pass(&mut self, what: impl FnOnce(&LineageState) -> String) -> Result<()> {
        let now = self.clock.elapsed();
        if now >= self.deadline {
            return Err(Error::with_hint(
                ErrorKind::Unreachable,
                format!(
                    "{} after {}",
                    what(self.reader.state()),
                    show_duration(self.timeout)
                ),
                "Look at borealis status, and allow more time with --timeout.",
            ));
        }
        if now >= self.look_at_presence {
            self.present().await?;
            self.look_at_presence = now + PRESENCE_INTERVAL;
        }
        tokio::time::sleep(POLL_INTERVAL.min(self.deadline.saturating_sub(now))).await;
        Ok(self.reader.refresh().await?)
    }

    /// Waits for a base backup from which all stored log of `branch` can be replayed.
    async fn for_base_backup(&mut self, branch: Branch) -> Result<()> {
        loop {
            self.reader.refresh().await?;
            let state = self.reader.state();
            refuse_left_behind(branch, state)?;
            if has_base_backup(state, branch) {
                return Ok(());
            }
            let name = self.cluster;
            self.pass(|_| format!("no base backup of cluster {name} has ended"))
                .await?;
        }
    }

    /// Waits for the piece that holds the record which ends at `end`.
    async fn for_log(&mut self, branch: Branch, end: Position) -> Result<PieceSummary> {
        if let Some(present) = self.present().await?
            && !present.holder.control.is_empty()
        {
            // It ships what it has at once; where it can't be asked, it does so in its own time.
            let path = Path::new(&present.holder.control);
            if let Err(error) = control::ask(path, control::Request::Settle).await {
                tracing::debug!(%error, "the running protect was not asked to hurry");
            }
        }
        loop {
            self.reader.refresh().await?;
            let state = self.reader.state();
            if let Some(piece) = piece_with(state, branch, end) {
                return Ok(piece.clone());
            }
            if (state.pieces.iter()).any(|piece| piece.branch == branch && piece.start >= end) {
                return Err(Error::refused(
                    format!("the log at {end} was lost in a gap"),
                    "Run it again; the snapshot will stand behind the gap.",
                ));
            }
            self.pass(|state| {
                let durable = begin::last_piece(state).map_or(Position::ZERO, |piece| piece.end);
                format!("the log is durable up to {durable} and not yet up to {end}")
            })
            .await?;
        }
    }
}

/// Refuses a server that the protected one has left behind. One that is ahead will be followed.
fn refuse_left_behind(branch: Branch, state: &LineageState) -> Result<()> {
    match newest_branch(state) {
        Some(newest) if branch < newest => Err(Error::refused(
            format!(
                "the server at the source is on timeline {branch}, and the stored log follows timeline {newest}"
            ),
            "Name the primary that protect follows with --source.",
        )),
        _ => Ok(()),
    }
}

/// Whether some base backup reaches the end of the stored log of `branch`.
fn has_base_backup(state: &LineageState, branch: Branch) -> bool {
    let coverage = Coverage::of(state, branch);
    let last = (state.pieces.iter().rev()).find(|piece| piece.branch == branch);
    last.is_some_and(|last| {
        (state.base_backups.iter()).any(|base| coverage.serves(base, state.log_unit, last.end))
    })
}

/// The piece in which a record that ends at `end` ends.
fn piece_with(state: &LineageState, branch: Branch, end: Position) -> Option<&PieceSummary> {
    (state.pieces.iter())
        .find(|piece| piece.branch == branch && piece.start < end && end <= piece.end)
}

async fn find_restore_point(
    lineage: &Lineage,
    piece: &PieceSummary,
    end: Position,
) -> Result<(RecordSpan, Timestamp)> {
    let stored = LogReader::of(lineage).piece(piece).await?;
    // It ends in the part that holds the byte before its end.
    let last = Position(end.0.saturating_sub(1));
    let name = stored.head().name();
    let mut found = None;
    for bytes in stored.indexes(last, end).await? {
        found = found.or(restore_point_at(&log_frame::index(name, &bytes)?, end));
    }
    found.ok_or_else(|| {
        Error::refused(
            format!("the log index of {name} does not tell of the restore point at {end}"),
            "Run it again; an index of very much log does not hold every event.",
        )
    })
}

/// The restore point whose record ends at `end`. By its place, since names may come twice.
fn restore_point_at(index: &LogIndex, end: Position) -> Option<(RecordSpan, Timestamp)> {
    index.events.iter().find_map(|event| match event.kind {
        EventKind::RestorePoint { time, .. } if event.record.end == end => {
            Some((event.record, time))
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_pg_format::index::Event;

    #[test]
    fn names_that_could_not_be_given_back_are_refused() {
        let longest = "x".repeat(PIN_NAME_BYTES_MAX);
        for name in ["before-upgrade", "vor dem Umzug", "é", &longest] {
            assert!(check_name(name).is_ok(), "{name:?} was refused");
        }
        let too_long = "x".repeat(PIN_NAME_BYTES_MAX + 1);
        for name in ["", " x", "x ", "a\nb", "\u{7f}", &too_long] {
            let error = check_name(name).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{name:?}");
        }
    }

    #[test]
    fn a_restore_point_is_named_in_what_every_encoding_has() {
        assert_eq!(restore_point_name("vor Größe"), "vor Gr__e");
        assert_eq!(
            restore_point_name(&"é".repeat(200)).len(),
            RESTORE_POINT_NAME_MAX
        );
    }

    #[test]
    fn of_two_restore_points_of_one_name_the_place_decides() {
        let event = |start, end, time| Event {
            record: RecordSpan {
                start: Position(start),
                end: Position(end),
            },
            kind: EventKind::RestorePoint {
                name: b"x".to_vec(),
                time: Timestamp(time),
            },
        };
        let index = LogIndex {
            events: vec![event(0x100, 0x168, 1), event(0x168, 0x1D0, 2)],
            ..LogIndex::default()
        };
        let (record, time) = restore_point_at(&index, Position(0x1D0)).unwrap();
        assert_eq!((record.start, time), (Position(0x168), Timestamp(2)));
        assert!(restore_point_at(&index, Position(0x1C8)).is_none());
    }

    fn piece(start: u64, end: u64) -> PieceSummary {
        PieceSummary {
            entry: start,
            recorded_at: Timestamp(0),
            branch: Branch(1),
            start: Position(start),
            end: Position(end),
            settled_before: None,
            settled_after: None,
            last_record: None,
            resume_at: Position(end),
            stored_bytes: 1,
            head_digest: [0; 32],
            engine: None,
            merged: None,
        }
    }

    #[test]
    fn a_record_belongs_to_the_piece_in_which_it_ends() {
        let mut state = LineageState::empty(borealis_base::LineageId([1; 16]));
        state.pieces = vec![piece(0, 100), piece(100, 200)];
        let start_of =
            |end| piece_with(&state, Branch(1), Position(end)).map(|piece| piece.start.0);
        assert_eq!(start_of(100), Some(0));
        assert_eq!(start_of(101), Some(100));
        assert_eq!(start_of(201), None);
        assert!(piece_with(&state, Branch(2), Position(100)).is_none());
    }
}
