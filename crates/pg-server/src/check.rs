//! Whether a server can be protected, and what to paste where it cannot. [`findings`] is pure: it
//! judges what [`CheckFacts::read`] has seen.

use borealis_pg_format::wal::WAL_PAGE_SIZE;

use crate::conninfo::{ConnInfo, Host};
use crate::data_dir::{Access, why_not_the_servers};
use crate::error::Result;
use crate::link::{ReplicationLink, SqlLink, quote_identifier};
use crate::source::ServerFacts;

/// The oldest and the newest major version whose log and files are known.
pub const MAJORS: std::ops::RangeInclusive<u32> = 14..=18;

/// How often two sessions are compared to find a pooler that shares one server process.
const POOLER_ROUNDS: usize = 5;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Works; something would be better or must be known.
    Advice,
    /// Protection is impossible or unsafe until this changes.
    Problem,
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// What was looked at.
    pub subject: String,
    /// What was found.
    pub found: String,
    /// What should be found, and why.
    pub wanted: String,
    /// How much it matters.
    pub severity: Severity,
    /// SQL to paste, as a superuser, where SQL can change it.
    pub sql: Option<String>,
}

/// What the role may do.
#[allow(clippy::struct_excessive_bools)] // rights that are independent of each other
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleFacts {
    /// Its name.
    pub name: String,
    /// Whether it is a superuser.
    pub superuser: bool,
    /// Whether it may replicate.
    pub replication: bool,
    /// Whether it sees all settings.
    pub reads_settings: bool,
    /// Whether it may read files outside the data directory.
    pub reads_server_files: bool,
    /// Functions that are needed, and whether it may call them.
    pub functions: Vec<(String, bool)>,
}

/// Everything that [`findings`] judges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckFacts {
    /// The server.
    pub server: ServerFacts,
    /// The role.
    pub role: RoleFacts,
    /// Walsender places that are free.
    pub senders_free: i64,
    /// Slots that are free.
    pub slots_free: i64,
    /// How a replication session went: `None` well, else why not.
    pub replication_refused: Option<String>,
    /// Whether SQL sessions share server processes, as behind a transaction pooler.
    pub pooled: bool,
    /// Whether the SQL session is encrypted, or needs no encryption on this machine.
    pub protected: bool,
    /// The client's address as the server sees it.
    pub client_address: Option<String>,
    /// Databases that allow connections, but none by this role.
    pub not_entered: Vec<String>,
    /// How files are read.
    pub access: Access,
    /// Why the data directory can't be read here, or is not the server's; `None` where it can or need not.
    pub unreadable: Option<String>,
}

/// The functions that protection calls. Agentless reading needs three more.
fn functions(major: u32, agentless: bool) -> Vec<&'static str> {
    let mut list = if major >= 15 {
        vec!["pg_backup_start(text,boolean)", "pg_backup_stop(boolean)"]
    } else {
        vec![
            "pg_start_backup(text,boolean,boolean)",
            "pg_stop_backup(boolean,boolean)",
        ]
    };
    list.push("pg_create_restore_point(text)");
    if agentless {
        list.extend([
            "pg_read_binary_file(text,bigint,bigint,boolean)",
            "pg_ls_dir(text,boolean,boolean)",
            "pg_stat_file(text,boolean)",
        ]);
    }
    list
}

impl CheckFacts {
    /// Looks at the server that `info` names and, where its files are read here, at its data directory.
    pub async fn read(info: &ConnInfo, access: &Access) -> Result<Self> {
        let link = SqlLink::connect(info).await?;
        let server = ServerFacts::read(&link).await?;
        let role = read_role(&link, functions(server.major(), access.local().is_none())).await?;
        let used = link
            .row(
                "SELECT current_setting('max_wal_senders')::bigint - \
                 (SELECT count(*) FROM pg_stat_replication) AS senders, \
                 current_setting('max_replication_slots')::bigint - \
                 (SELECT count(*) FROM pg_replication_slots) AS slots, \
                 host(inet_client_addr()) AS client",
            )
            .await?;
        let replication_refused = match ReplicationLink::connect(info).await {
            Ok(mut session) => match session.identify_system().await {
                Ok(system) if system.system_id == server.system_id => None,
                Ok(_) => Some("it leads to another cluster than the SQL session".to_owned()),
                Err(error) => Some(error.to_string()),
            },
            Err(error) => Some(error.to_string()),
        };
        let unreadable = match access.local() {
            None => None,
            Some(dir) => why_not_the_servers(dir, &link).await?,
        };
        Ok(Self {
            not_entered: not_entered(&link).await?,
            senders_free: used.get("senders")?,
            slots_free: used.get("slots")?,
            client_address: used.optional("client")?,
            replication_refused,
            pooled: is_pooled(&link, info).await?,
            protected: link.is_encrypted() || is_on_this_machine(link.host()),
            access: access.clone(),
            unreadable,
            role,
            server,
        })
    }
}

async fn not_entered(link: &SqlLink) -> Result<Vec<String>> {
    let rows = link
        .rows(
            "SELECT datname FROM pg_database WHERE datallowconn \
             AND NOT has_database_privilege(oid, 'CONNECT') ORDER BY oid",
        )
        .await?;
    rows.iter().map(|row| row.get("datname")).collect()
}

fn is_on_this_machine(host: &Host) -> bool {
    let address = host.address.as_deref().unwrap_or(&host.name);
    host.is_socket()
        || address == "localhost"
        || address
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

async fn read_role(link: &SqlLink, wanted: Vec<&'static str>) -> Result<RoleFacts> {
    let row = link
        .row(
            "SELECT rolname, rolsuper, rolreplication, \
             pg_has_role(current_user, 'pg_read_all_settings', 'USAGE') AS settings, \
             pg_has_role(current_user, 'pg_read_server_files', 'USAGE') AS files \
             FROM pg_roles WHERE rolname = current_user",
        )
        .await?;
    let mut functions = Vec::with_capacity(wanted.len());
    for function in wanted {
        let may = link
            .row(&format!(
                "SELECT has_function_privilege('pg_catalog.{function}', 'EXECUTE') AS may"
            ))
            .await?
            .flag("may")?;
        functions.push((function.to_owned(), may));
    }
    Ok(RoleFacts {
        name: row.get("rolname")?,
        superuser: row.flag("rolsuper")?,
        replication: row.flag("rolreplication")?,
        reads_settings: row.flag("settings")?,
        reads_server_files: row.flag("files")?,
        functions,
    })
}

/// Two sessions that are open at once can have one server process only behind a pooler that lends it
/// out by transaction. The proof has no false positives.
async fn is_pooled(link: &SqlLink, info: &ConnInfo) -> Result<bool> {
    let other = SqlLink::connect(info).await?;
    for _ in 0..POOLER_ROUNDS {
        let ours: i32 = link.value("SELECT pg_backend_pid()").await?;
        let theirs: i32 = other.value("SELECT pg_backend_pid()").await?;
        if ours == theirs {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Collects findings.
struct Table(Vec<Finding>);

impl Table {
    fn add(
        &mut self,
        subject: &str,
        found: impl Into<String>,
        wanted: impl Into<String>,
        severity: Severity,
        sql: Option<String>,
    ) {
        self.0.push(Finding {
            subject: subject.to_owned(),
            found: found.into(),
            wanted: wanted.into(),
            severity,
            sql: sql.filter(|_| severity != Severity::Ok),
        });
    }

    /// A finding that is `otherwise` unless `good`.
    fn rate(
        &mut self,
        subject: &str,
        found: impl Into<String>,
        wanted: impl Into<String>,
        good: bool,
        otherwise: Severity,
        sql: Option<String>,
    ) {
        let severity = if good { Severity::Ok } else { otherwise };
        self.add(subject, found, wanted, severity, sql);
    }
}

const RESTART: &str = "-- then restart the server";

fn set_and_restart(name: &str, value: &str) -> String {
    format!("ALTER SYSTEM SET {name} = '{value}'; {RESTART}")
}

fn set_and_reload(name: &str, value: &str) -> String {
    format!("ALTER SYSTEM SET {name} = '{value}'; SELECT pg_reload_conf();")
}

/// Judges the facts; the order is that of the table shown.
pub fn findings(facts: &CheckFacts) -> Vec<Finding> {
    let mut table = Table(Vec::new());
    server_findings(facts, &mut table);
    role_findings(facts, &mut table);
    name_findings(facts, &mut table);
    configuration_findings(facts, &mut table);
    connection_findings(facts, &mut table);
    advice(facts, &mut table);
    table.0
}

fn server_findings(facts: &CheckFacts, table: &mut Table) {
    use Severity::{Advice, Problem};
    let (server, settings) = (&facts.server, &facts.server.settings);
    let (oldest, newest) = (MAJORS.start(), MAJORS.end());
    table.rate(
        "version",
        server.version_text.split(" on ").next().unwrap_or_default(),
        format!("PostgreSQL {oldest} to {newest}"),
        MAJORS.contains(&server.major()),
        Problem,
        None,
    );
    let log_page = settings.number("wal_block_size").unwrap_or(0);
    table.rate(
        "wal_block_size",
        format!("{log_page} bytes"),
        format!("{WAL_PAGE_SIZE} bytes, as every distribution builds it"),
        u64::try_from(log_page) == Ok(WAL_PAGE_SIZE),
        Problem,
        None,
    );
    let role = if server.in_recovery {
        "standby"
    } else {
        "primary"
    };
    table.rate(
        "server role",
        role,
        "a primary; a standby writes no restore points, and tells the time of its log only if the source names the primary too",
        !server.in_recovery,
        Advice,
        None,
    );
    let level = settings.get("wal_level").unwrap_or("unknown");
    table.rate(
        "wal_level",
        level,
        "replica or logical",
        matches!(level, "replica" | "logical"),
        Problem,
        Some(set_and_restart("wal_level", "replica")),
    );
    table.rate(
        "full_page_writes",
        settings.get("full_page_writes").unwrap_or("unknown"),
        "on: pages torn by a crash could not be repaired",
        settings.flag("full_page_writes") == Some(true),
        // A standby replays what its primary's setting made of the log, and a base backup of it is refused by
        // the server itself where that was off (`do_pg_backup_start` in `xlog.c`).
        if server.in_recovery { Advice } else { Problem },
        Some(set_and_reload("full_page_writes", "on")),
    );
    table.rate(
        "fsync",
        settings.get("fsync").unwrap_or("unknown"),
        "on: without it a crash of the machine can corrupt the server itself",
        settings.flag("fsync") == Some(true),
        Advice,
        Some(set_and_reload("fsync", "on")),
    );
    let more = |name: &str| {
        let now = settings.number(name).unwrap_or(0);
        Some(set_and_restart(name, &(now + 4).to_string()))
    };
    table.rate(
        "max_wal_senders",
        format!("{} free", facts.senders_free),
        "at least 1 free",
        facts.senders_free >= 1,
        Problem,
        more("max_wal_senders"),
    );
    table.rate(
        "max_replication_slots",
        format!("{} free", facts.slots_free),
        "at least 1 free",
        facts.slots_free >= 1,
        Problem,
        more("max_replication_slots"),
    );
}

fn role_findings(facts: &CheckFacts, table: &mut Table) {
    use Severity::Problem;
    let role = &facts.role;
    let name = quote_identifier(&role.name);
    let attribute = match (role.superuser, role.replication) {
        (true, _) => "superuser",
        (false, true) => "REPLICATION",
        (false, false) => "neither superuser nor REPLICATION",
    };
    table.rate(
        &format!("role {}", role.name),
        attribute,
        "REPLICATION or superuser; it can read every byte of the cluster, password hashes included",
        role.superuser || role.replication,
        Problem,
        Some(format!("ALTER ROLE {name} REPLICATION;")),
    );
    for (function, may) in &role.functions {
        table.rate(
            &format!("EXECUTE {function}"),
            if *may { "granted" } else { "not granted" },
            "granted in the database of the connection",
            *may,
            Problem,
            Some(format!(
                "GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {name};"
            )),
        );
    }
    table.rate(
        "pg_read_all_settings",
        if role.reads_settings {
            "member"
        } else {
            "not a member"
        },
        "member: a restore needs the settings and where the configuration lies",
        role.superuser || role.reads_settings,
        Problem,
        Some(format!("GRANT pg_read_all_settings TO {name};")),
    );
}

fn name_findings(facts: &CheckFacts, table: &mut Table) {
    let role = quote_identifier(&facts.role.name);
    let grant = |database: &String| {
        let database = quote_identifier(database);
        format!("GRANT CONNECT ON DATABASE {database} TO {role};")
    };
    let missing = &facts.not_entered;
    table.rate(
        "CONNECT",
        if missing.is_empty() {
            "on each database".to_owned()
        } else {
            format!("not on {}", missing.join(", "))
        },
        "on each database: `find` calls relations by the names that are read there",
        missing.is_empty(),
        Severity::Advice,
        Some(missing.iter().map(grant).collect::<Vec<_>>().join(" ")),
    );
}

fn connection_findings(facts: &CheckFacts, table: &mut Table) {
    use Severity::{Advice, Problem};
    let line = match &facts.client_address {
        None => format!("local replication {} scram-sha-256", facts.role.name),
        Some(address) => format!(
            "host replication {} {address}/{} scram-sha-256",
            facts.role.name,
            if address.contains(':') { 128 } else { 32 }
        ),
    };
    // A line in a file can only be described; the reload is SQL.
    table.rate(
        "replication connection",
        facts.replication_refused.as_deref().unwrap_or("works"),
        format!("allowed; pg_hba.conf needs a line such as `{line}`"),
        facts.replication_refused.is_none(),
        Problem,
        Some("SELECT pg_reload_conf();".to_owned()),
    );
    table.rate(
        "pooler",
        if facts.pooled {
            "sessions share a server process"
        } else {
            "none seen"
        },
        "a direct connection: a backup begins and ends in one session",
        !facts.pooled,
        Problem,
        None,
    );
    table.rate(
        "encryption",
        if facts.protected {
            "as asked for"
        } else {
            "none"
        },
        "sslmode=require or stricter on a network",
        facts.protected,
        Advice,
        None,
    );
    match &facts.access {
        Access::Local(_) => table.rate(
            "data directory",
            facts.unreadable.as_deref().unwrap_or("readable"),
            "readable by this user, and of this server",
            facts.unreadable.is_none(),
            Problem,
            None,
        ),
        Access::Agentless { because } => table.add(
            "data directory",
            format!("read through SQL: {because}"),
            "readable here, which costs the server less; --agentless=never asks for that",
            Severity::Ok,
            None,
        ),
    }
}

/// Through SQL, configuration outside the data directory needs a right of its own.
fn configuration_findings(facts: &CheckFacts, table: &mut Table) {
    let Some(data_dir) = &facts.server.data_directory else {
        return;
    };
    let outside: Vec<String> = (facts.server.config_files.iter().flatten())
        .filter(|path| !path.starts_with(data_dir))
        .map(|path| path.display().to_string())
        .collect();
    if facts.access.local().is_some() || outside.is_empty() {
        return;
    }
    let may = facts.role.superuser || facts.role.reads_server_files;
    table.rate(
        "pg_read_server_files",
        if may { "member" } else { "not a member" },
        format!("member, or these are not backed up: {}", outside.join(", ")),
        may,
        Severity::Advice,
        Some(format!(
            "GRANT pg_read_server_files TO {};",
            quote_identifier(&facts.role.name)
        )),
    );
}

fn advice(facts: &CheckFacts, table: &mut Table) {
    use Severity::{Advice, Ok};
    let settings = &facts.server.settings;
    let get = |name: &str| settings.get(name).unwrap_or("unknown");
    let checksums = settings.flag("data_checksums") == Some(true);
    table.rate(
        "data_checksums",
        get("data_checksums"),
        "on: finds pages that the disk has changed (pg_checksums --enable, server stopped)",
        checksums,
        Advice,
        None,
    );
    table.rate(
        "wal_log_hints",
        get("wal_log_hints"),
        "on, or checksums on: backtrack needs every change of a page in the log",
        checksums || settings.flag("wal_log_hints") == Some(true),
        Advice,
        Some(set_and_restart("wal_log_hints", "on")),
    );
    let bound = settings.number("max_slot_wal_keep_size").unwrap_or(-1);
    table.rate(
        "max_slot_wal_keep_size",
        if bound < 0 {
            "unlimited".to_owned()
        } else {
            format!("{bound} MB")
        },
        "a bound: a slot must not fill the server's disk",
        bound >= 0,
        Advice,
        Some(set_and_reload("max_slot_wal_keep_size", "64GB")),
    );
    let timeout = settings.number("wal_sender_timeout").unwrap_or(60_000);
    table.rate(
        "wal_sender_timeout",
        format!("{timeout} ms"),
        "10 s or more, and not 0",
        timeout >= 10_000,
        Advice,
        Some(set_and_reload("wal_sender_timeout", "60s")),
    );
    if let Some(idle) = settings.get("idle_replication_slot_timeout") {
        table.rate(
            "idle_replication_slot_timeout",
            idle,
            "0: a slot that is dropped while Borealis is down leaves a gap",
            idle == "0",
            Advice,
            Some(set_and_reload("idle_replication_slot_timeout", "0")),
        );
    }
    table.add(
        "archive_mode",
        get("archive_mode"),
        "any value: other archiving is left as it is",
        Ok,
        None,
    );
    let names = settings.get("synchronous_standby_names").unwrap_or("");
    let ours = names.contains('*') || names.contains("borealis");
    table.rate(
        "synchronous_standby_names",
        if names.is_empty() { "empty" } else { names },
        "no entry that matches `borealis`: commits would wait for the repository",
        !ours,
        Advice,
        None,
    );
}
