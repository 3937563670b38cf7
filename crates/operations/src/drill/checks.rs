//! What a drill looks at in the restored server: indexes against their tables, tables, visibility maps, and every
//! row.
//!
//! Extensions are made in the scratch copy only, and no code of the database runs but what its indexes are made
//! of: event triggers are off (`session_replication_role`), and foreign tables are not read.

use std::fmt::Write as _;

use borealis_pg_server::conninfo::ConnInfo;
use borealis_pg_server::link::{SqlLink, TextRow, quote_identifier, quote_literal};
use borealis_pg_server::recovery::quote_value;

use crate::error::Result;

/// Findings of one table or index that are kept.
const FINDINGS_PER_RELATION: usize = 20;
/// Findings in all that are kept.
const FINDINGS_MAX: usize = 1_000;
/// SQLSTATE of a library that can't be loaded, such as that of a table access method (`undefined_file`).
const UNDEFINED_FILE: &str = "58P01";
/// Where extensions that are not there yet are made.
const SCHEMA: &str = "borealis_drill";

/// What was looked at and found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checked {
    /// Everything that is wrong.
    pub findings: Vec<String>,
    /// Findings beyond these.
    pub more: u64,
    /// What could not be looked at.
    pub not_checked: Vec<String>,
    /// Databases.
    pub databases: u64,
    /// Tables that were read.
    pub tables: u64,
    /// Indexes that were compared with their tables.
    pub indexes: u64,
    /// Rows that were read.
    pub rows: u64,
}

impl Checked {
    fn find(&mut self, what: String) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(what);
        } else {
            self.more += 1;
        }
    }

    fn skip(&mut self, what: String) {
        if !self.not_checked.contains(&what) {
            self.not_checked.push(what);
        }
    }
}

/// How the restored server is reached.
#[derive(Debug, Clone)]
pub struct Place<'a> {
    /// Where its socket is.
    pub sockets: &'a str,
    /// Its port.
    pub port: u16,
    /// The role that `initdb` made.
    pub superuser: &'a str,
}

impl Place<'_> {
    async fn session(&self, database: &str) -> Result<SqlLink> {
        let info = ConnInfo::from_process(&format!(
            "host={} port={} user={} dbname={} sslmode=disable application_name=borealis",
            quote_value(self.sockets),
            self.port,
            quote_value(self.superuser),
            quote_value(database)
        ))?;
        let link = SqlLink::connect(&info).await?;
        link.run(
            "SET session_replication_role = replica; SET default_transaction_read_only = off; \
             SET statement_timeout = 0; SET lock_timeout = '60s'; SET row_security = off; \
             SET enable_indexscan = off; SET enable_indexonlyscan = off; SET enable_bitmapscan = off",
        )
        .await?;
        Ok(link)
    }
}

/// Looks at everything.
///
/// # Errors
/// Where the server can't be asked; what is wrong with what it says is a finding.
pub async fn check(place: &Place<'_>) -> Result<Checked> {
    let mut checked = Checked::default();
    let link = place.session("template1").await?;
    // Their locks would keep a check waiting for ever.
    for row in link
        .rows("SELECT gid, database FROM pg_prepared_xacts ORDER BY 1")
        .await?
    {
        let (gid, database): (String, String) = (row.get("gid")?, row.get("database")?);
        let there = place.session(&database).await?;
        there
            .run(&format!("ROLLBACK PREPARED {}", quote_literal(&gid)))
            .await?;
    }
    // One whose DROP was cut off is marked so and can only be dropped again.
    let databases = link
        .rows("SELECT datname, datallowconn FROM pg_database WHERE datconnlimit <> -2 ORDER BY 1")
        .await?;
    for row in &databases {
        let name: String = row.get("datname")?;
        if !row.flag("datallowconn")? {
            let quoted = quote_identifier(&name);
            link.run(&format!("ALTER DATABASE {quoted} ALLOW_CONNECTIONS true"))
                .await?;
        }
        checked.databases += 1;
        match place.session(&name).await {
            Ok(session) => {
                let database = Database {
                    name: &name,
                    link: &session,
                };
                database.check(&mut checked).await?;
            }
            Err(error) => checked.find(format!("database {name} can't be entered: {error}")),
        }
    }
    let failures: u64 = link
        .value("SELECT coalesce(sum(checksum_failures), 0)::bigint::text FROM pg_stat_database")
        .await?;
    if failures > 0 {
        checked.find(format!(
            "{failures} pages failed their checksum while everything was read"
        ));
    }
    Ok(checked)
}

struct Database<'a> {
    name: &'a str,
    link: &'a SqlLink,
}

/// Tables with storage that outlive a session.
const TABLES: &str = "SELECT c.oid, quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name, \
     a.amname AS method FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
     JOIN pg_am a ON a.oid = c.relam \
     WHERE c.relkind IN ('r', 'm', 't') AND c.relpersistence <> 't' ORDER BY c.oid";
/// Indexes that queries use.
const INDEXES: &str = "SELECT c.oid, quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name, \
     a.amname AS method FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
     JOIN pg_am a ON a.oid = c.relam JOIN pg_index i ON i.indexrelid = c.oid \
     WHERE c.relkind = 'i' AND c.relpersistence <> 't' AND i.indisvalid AND i.indisready ORDER BY c.oid";

impl Database<'_> {
    async fn check(&self, checked: &mut Checked) -> Result<()> {
        let amcheck = self
            .extension("amcheck", "indexes and tables", checked)
            .await?;
        let visibility = self
            .extension("pg_visibility", "visibility maps", checked)
            .await?;
        if let Some(schema) = &amcheck {
            self.check_indexes(schema, checked).await?;
        }
        for row in self.link.rows(TABLES).await? {
            let relation = Relation::of(&row)?;
            if relation.method == "heap" {
                if let Some(schema) = &amcheck {
                    let sql = format!(
                        "SELECT format('block %s, item %s, column %s: %s', blkno, offnum, attnum, msg) AS finding \
                         FROM {schema}.verify_heapam(relation => {}, check_toast => true)",
                        relation.oid
                    );
                    self.findings("table", &relation, &sql, checked).await;
                }
                if let Some(schema) = &visibility {
                    for function in ["pg_check_visible", "pg_check_frozen"] {
                        let sql = format!(
                            "SELECT '{function}: row ' || t_ctid::text AS finding FROM {schema}.{function}({})",
                            relation.oid
                        );
                        self.findings("table", &relation, &sql, checked).await;
                    }
                }
            }
            self.read(&relation, checked).await;
        }
        Ok(())
    }

    /// The schema of an extension, made here if it is not there; `None` where its files are missing.
    async fn extension(
        &self,
        extension: &str,
        what: &str,
        checked: &mut Checked,
    ) -> Result<Option<String>> {
        let there = |sql: String| async move {
            Ok::<_, crate::Error>(!self.link.rows(&sql).await?.is_empty())
        };
        let literal = quote_literal(extension);
        if !there(format!(
            "SELECT 1 AS x FROM pg_available_extensions WHERE name = {literal}"
        ))
        .await?
        {
            checked.skip(format!(
                "{what}: the files of extension {extension} are not installed for this server"
            ));
            return Ok(None);
        }
        let made = async {
            if there(format!(
                "SELECT 1 AS x FROM pg_extension WHERE extname = {literal}"
            ))
            .await?
            {
                self.link
                    .run(&format!("ALTER EXTENSION {extension} UPDATE"))
                    .await?;
            } else {
                self.link
                    .run(&format!(
                        "CREATE SCHEMA IF NOT EXISTS {SCHEMA}; CREATE EXTENSION {extension} SCHEMA {SCHEMA}"
                    ))
                    .await?;
            }
            let schema = self
                .link
                .value::<String>(&format!(
                    "SELECT quote_ident(n.nspname) FROM pg_extension e \
                     JOIN pg_namespace n ON n.oid = e.extnamespace WHERE extname = {literal}"
                ))
                .await?;
            Ok::<_, crate::Error>(schema)
        };
        match made.await {
            Ok(schema) => Ok(Some(schema)),
            Err(error) => {
                checked.skip(format!(
                    "{what} of database {}: extension {extension} can't be made: {error}",
                    self.name
                ));
                Ok(None)
            }
        }
    }

    async fn check_indexes(&self, schema: &str, checked: &mut Checked) -> Result<()> {
        let mut others = 0_u64;
        for row in self.link.rows(INDEXES).await? {
            let relation = Relation::of(&row)?;
            if relation.method != "btree" {
                others += 1;
                continue;
            }
            checked.indexes += 1;
            // A function that answers nothing: a finding is an error.
            let sql = format!(
                "DO $$ BEGIN PERFORM {schema}.bt_index_check({}, true); END $$",
                relation.oid
            );
            if let Err(error) = self.link.run(&sql).await {
                self.failed("index", &relation, &error, checked);
            }
        }
        if others > 0 {
            checked.skip(format!(
                "{others} indexes of database {} that are no B-trees are not compared with their tables",
                self.name
            ));
        }
        Ok(())
    }

    async fn findings(&self, kind: &str, relation: &Relation, sql: &str, checked: &mut Checked) {
        let limited = format!("{sql} LIMIT {}", FINDINGS_PER_RELATION + 1);
        match self.link.rows(&limited).await {
            Ok(rows) => {
                let mut text = String::new();
                for row in rows.iter().take(FINDINGS_PER_RELATION) {
                    text.clear();
                    let found = row.text("finding").unwrap_or("something");
                    let _ = write!(
                        text,
                        "database {}, {kind} {}: {found}",
                        self.name, relation.name
                    );
                    checked.find(text.clone());
                }
                if rows.len() > FINDINGS_PER_RELATION {
                    checked.more += 1;
                }
            }
            Err(error) => self.failed(kind, relation, &error, checked),
        }
    }

    /// Reads every row, through the table and not through an index.
    async fn read(&self, relation: &Relation, checked: &mut Checked) {
        let sql = format!("SELECT count(*)::text FROM ONLY {}", relation.name);
        match self.link.value::<u64>(&sql).await {
            Ok(rows) => {
                checked.tables += 1;
                checked.rows += rows;
            }
            Err(error) => self.failed("table", relation, &error, checked),
        }
    }

    fn failed(
        &self,
        kind: &str,
        relation: &Relation,
        error: &borealis_pg_server::Error,
        checked: &mut Checked,
    ) {
        let what = format!("database {}, {kind} {}: {error}", self.name, relation.name);
        if error.sqlstate() == Some(UNDEFINED_FILE)
            && relation.method != "heap"
            && relation.method != "btree"
        {
            checked.skip(what);
        } else {
            checked.find(what);
        }
    }
}

struct Relation {
    oid: u32,
    name: String,
    method: String,
}

impl Relation {
    fn of(row: &TextRow) -> Result<Self> {
        Ok(Self {
            oid: row.get("oid")?,
            name: row.get("name")?,
            method: row.get("method")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn very_many_findings_are_counted() {
        let mut checked = Checked::default();
        for number in 0..FINDINGS_MAX + 3 {
            checked.find(number.to_string());
        }
        assert_eq!((checked.findings.len(), checked.more), (FINDINGS_MAX, 3));
    }

    #[test]
    fn what_is_not_checked_in_every_database_is_said_once() {
        let mut checked = Checked::default();
        checked.skip("amcheck".to_owned());
        checked.skip("amcheck".to_owned());
        assert_eq!(checked.not_checked, ["amcheck"]);
    }
}
