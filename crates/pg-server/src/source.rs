//! What a server says about itself, over SQL.

use std::collections::BTreeMap;
use std::path::PathBuf;

use borealis_base::{Branch, Position, Timestamp};

use crate::error::{Error, Result};
use crate::link::{SqlLink, TextRow, quote_literal};

/// One line of `pg_settings`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Setting {
    /// The value, in the setting's own unit.
    pub value: String,
    /// The unit of a number, such as `8kB` or `ms`.
    pub unit: Option<String>,
    /// Where the value comes from, such as `configuration file`.
    pub source: String,
    /// Whether a restart must come before a changed value counts.
    pub pending_restart: bool,
}

/// All settings that this role may see.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Settings(pub BTreeMap<String, Setting>);

impl Settings {
    /// A setting's value, as `pg_settings` shows it.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|setting| setting.value.as_str())
    }

    /// Whether a switch is on; `None` where this server does not show it.
    pub fn flag(&self, name: &str) -> Option<bool> {
        self.get(name).map(|value| value == "on")
    }

    /// A number, in the setting's own unit.
    pub fn number(&self, name: &str) -> Option<i64> {
        self.get(name)?.parse().ok()
    }
}

/// A tablespace that is not one of the two built in.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Tablespace {
    /// Its number, which is its name in `pg_tblspc`.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// The directory that its link names.
    pub path: PathBuf,
}

/// A database.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Database {
    /// Its number.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// Whether sessions may be opened in it.
    pub allows_connections: bool,
    /// Its encoding.
    pub encoding: String,
    /// `LC_COLLATE`.
    pub collate: String,
    /// `LC_CTYPE`.
    pub ctype: String,
    /// Who compares text: `c` the C library, `i` ICU, `b` built in. `c` before 15.
    pub provider: String,
    /// The version of the collation recorded in the catalog, from 15 on.
    pub collation_version: Option<String>,
    /// The version that the machine has now, from 15 on.
    pub actual_collation_version: Option<String>,
}

/// The facts of one server at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFacts {
    /// The version as one number, such as 150018.
    pub version: u32,
    /// The version as text.
    pub version_text: String,
    /// The number that `initdb` gave the cluster.
    pub system_id: u64,
    /// Whether it is in recovery.
    pub in_recovery: bool,
    /// Bytes of one log segment file.
    pub segment_bytes: u64,
    /// Bytes of a page.
    pub page_bytes: u64,
    /// All settings.
    pub settings: Settings,
    /// The data directory, where the role may see it.
    pub data_directory: Option<PathBuf>,
    /// `postgresql.conf`, `pg_hba.conf` and `pg_ident.conf`, where the role may see them.
    pub config_files: [Option<PathBuf>; 3],
    /// Tablespaces.
    pub tablespaces: Vec<Tablespace>,
    /// Databases, templates included.
    pub databases: Vec<Database>,
}

impl ServerFacts {
    /// The major version.
    pub fn major(&self) -> u32 {
        self.version / 10_000
    }

    /// Reads the facts.
    pub async fn read(link: &SqlLink) -> Result<Self> {
        let base = link
            .row(
                "SELECT system_identifier, pg_is_in_recovery() AS in_recovery, version() AS version \
                 FROM pg_control_system()",
            )
            .await?;
        let settings = settings(link).await?;
        let path = |name: &str| {
            settings
                .get(name)
                .filter(|v| !v.is_empty())
                .map(PathBuf::from)
        };
        let bytes = |name: &str| {
            settings
                .number(name)
                .and_then(|n| u64::try_from(n).ok())
                .ok_or_else(|| Error::Value {
                    name: name.to_owned(),
                    detail: "not shown".to_owned(),
                })
        };
        Ok(Self {
            version: link.version(),
            version_text: base.get("version")?,
            // The SQL type is signed, the number is not.
            system_id: base.get::<i64>("system_identifier")?.cast_unsigned(),
            in_recovery: base.flag("in_recovery")?,
            segment_bytes: segment_bytes(link).await?,
            page_bytes: bytes("block_size")?,
            data_directory: path("data_directory"),
            config_files: [path("config_file"), path("hba_file"), path("ident_file")],
            tablespaces: tablespaces(link).await?,
            databases: databases(link).await?,
            settings,
        })
    }
}

async fn segment_bytes(link: &SqlLink) -> Result<u64> {
    link.value("SELECT bytes_per_wal_segment FROM pg_control_init()")
        .await
}

/// All settings that the session's role may see.
pub async fn settings(link: &SqlLink) -> Result<Settings> {
    let rows = link
        .rows("SELECT name, setting, unit, source, pending_restart FROM pg_settings")
        .await?;
    let setting = |row: &TextRow| {
        Ok((
            row.get("name")?,
            Setting {
                value: row.text("setting").unwrap_or_default().to_owned(),
                unit: row.optional("unit")?,
                source: row.get("source")?,
                pending_restart: row.flag("pending_restart")?,
            },
        ))
    };
    rows.iter()
        .map(setting)
        .collect::<Result<_>>()
        .map(Settings)
}

/// The tablespaces that lie outside the data directory or are links in it.
pub async fn tablespaces(link: &SqlLink) -> Result<Vec<Tablespace>> {
    let rows = link
        .rows(
            "SELECT oid, spcname, pg_tablespace_location(oid) AS path FROM pg_tablespace \
             WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY oid",
        )
        .await?;
    rows.iter()
        .map(|row| {
            Ok(Tablespace {
                oid: row.get("oid")?,
                name: row.get("spcname")?,
                path: row.get("path")?,
            })
        })
        .collect()
}

/// All databases.
pub async fn databases(link: &SqlLink) -> Result<Vec<Database>> {
    let collation = if link.major() >= 15 {
        "datlocprovider AS provider, datcollversion AS recorded, \
         pg_database_collation_actual_version(oid) AS actual"
    } else {
        "'c' AS provider, NULL AS recorded, NULL AS actual"
    };
    let rows = link
        .rows(&format!(
            "SELECT oid, datname, datallowconn, pg_encoding_to_char(encoding) AS encoding, \
             datcollate, datctype, {collation} FROM pg_database ORDER BY oid"
        ))
        .await?;
    rows.iter()
        .map(|row| {
            Ok(Database {
                oid: row.get("oid")?,
                name: row.get("datname")?,
                allows_connections: row.flag("datallowconn")?,
                encoding: row.get("encoding")?,
                collate: row.get("datcollate")?,
                ctype: row.get("datctype")?,
                provider: row.get("provider")?,
                collation_version: row.optional("recorded")?,
                actual_collation_version: row.optional("actual")?,
            })
        })
        .collect()
}

/// How well the server still holds what a slot promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotHold {
    /// Within `max_wal_size`.
    Reserved,
    /// Beyond it, and still held.
    Extended,
    /// About to be removed.
    Unreserved,
    /// Removed: the slot is of no more use.
    Lost,
}

/// A replication slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotState {
    /// How well its log is held; `None` before a position is reserved.
    pub hold: Option<SlotHold>,
    /// Bytes of log that may still be written before it may be lost; `None` means without limit.
    pub safe_bytes: Option<i64>,
    /// The oldest log held.
    pub restart: Option<Position>,
    /// Bytes of log held for it.
    pub held_bytes: Option<i64>,
    /// Whether a connection uses it.
    pub active: bool,
    /// The process of that connection.
    pub active_pid: Option<i32>,
    /// Whether it is physical and permanent, as ours are.
    pub is_permanent_physical: bool,
}

/// The state of slot `name`; `None` where there is none.
pub async fn slot_state(link: &SqlLink, name: &str) -> Result<Option<SlotState>> {
    let rows = link
        .rows(&format!(
            "SELECT wal_status, safe_wal_size, restart_lsn, active, active_pid, \
             slot_type = 'physical' AND NOT temporary AS ours, \
             (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
              ELSE pg_current_wal_lsn() END - restart_lsn)::bigint AS held \
             FROM pg_replication_slots WHERE slot_name = {}",
            quote_literal(name)
        ))
        .await?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    let hold = match row.text("wal_status") {
        None => None,
        Some("reserved") => Some(SlotHold::Reserved),
        Some("extended") => Some(SlotHold::Extended),
        Some("unreserved") => Some(SlotHold::Unreserved),
        Some("lost") => Some(SlotHold::Lost),
        Some(other) => {
            return Err(Error::Value {
                name: "wal_status".to_owned(),
                detail: format!("`{other}` is unknown"),
            });
        }
    };
    Ok(Some(SlotState {
        hold,
        safe_bytes: row.optional("safe_wal_size")?,
        restart: row.optional("restart_lsn")?,
        held_bytes: row.optional("held")?,
        active: row.flag("active")?,
        active_pid: row.optional("active_pid")?,
        is_permanent_physical: row.flag("ours")?,
    }))
}

/// A settled pair in the making: every commit with a time at or before `time` less a margin lies
/// before `position`. Usable once `position` is durable in the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockSample {
    /// The server's clock, read first.
    pub time: Timestamp,
    /// The insert position, read after it.
    pub position: Position,
    /// The branch of that position: of a server on another branch the pair says nothing about ours.
    pub branch: Branch,
    /// The number that `initdb` gave the cluster.
    pub system_id: u64,
}

/// Reads the clock of a primary, then its insert position, in this order. In the other order a commit
/// between the two could have an earlier time and a later place. A standby does not know the insert
/// position and answers with an error.
pub async fn clock_sample(link: &SqlLink) -> Result<ClockSample> {
    // The target list is evaluated from left to right; MATERIALIZED and OFFSET 0 keep the planner
    // from moving the clock to a later step.
    let row = link
        .row(
            "WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS t OFFSET 0) \
             SELECT (extract(epoch FROM t) * 1000000)::bigint AS micros, \
             pg_current_wal_insert_lsn() AS position, \
             left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) AS branch, \
             (SELECT system_identifier FROM pg_control_system()) AS system FROM clock",
        )
        .await?;
    let branch: String = row.get("branch")?;
    // The control file tells the timeline of the last checkpoint, which a promotion does not wait for.
    let branch = u32::from_str_radix(&branch, 16).map_err(|error| Error::Value {
        name: "pg_walfile_name".to_owned(),
        detail: error.to_string(),
    })?;
    Ok(ClockSample {
        time: Timestamp(row.get("micros")?),
        position: row.position("position")?,
        branch: Branch(branch),
        system_id: row.get::<i64>("system")?.cast_unsigned(),
    })
}

/// The longest name of a restore point (`MAXFNAMELEN` in `xlog_internal.h`, less its final zero).
pub const RESTORE_POINT_NAME_MAX: usize = 63;

/// Writes a restore point and returns the position of its end. On return it is flushed: the
/// function itself does not flush, so it runs in a transaction that has a number, and whose commit,
/// forced to be synchronous, flushes everything before it.
///
/// Waiting for synchronous standbys is left out (`local`): the durability promised is this server's.
pub async fn create_restore_point(link: &SqlLink, name: &str) -> Result<Position> {
    if name.is_empty() || name.len() > RESTORE_POINT_NAME_MAX {
        return Err(Error::Refused(format!(
            "restore point name `{name}` does not have 1 to {RESTORE_POINT_NAME_MAX} bytes"
        )));
    }
    // One message, so that the session is never left inside the transaction; rows come back from
    // the only statement that has some.
    let rows = link
        .rows(&format!(
            "BEGIN; SET LOCAL synchronous_commit = 'local'; \
             SELECT pg_create_restore_point({}) AS position, pg_current_xact_id() AS xid; COMMIT",
            quote_literal(name)
        ))
        .await;
    match rows {
        Ok(rows) => rows
            .first()
            .ok_or_else(|| Error::Value {
                name: "position".to_owned(),
                detail: "no row".to_owned(),
            })?
            .position("position"),
        Err(error) => {
            // The failed transaction must not swallow what the session is asked next.
            let _ = link.run("ROLLBACK").await;
            Err(error)
        }
    }
}
