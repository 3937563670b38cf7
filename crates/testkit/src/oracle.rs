//! Whether a cluster is sound, and whether two hold the same rows.

use std::collections::BTreeMap;

use borealis_pg_server::link::SqlLink;

use crate::TestServer;

/// Tables with storage that hold rows for more than a session.
const TABLES: &str = "SELECT c.oid, c.oid::regclass::text AS name FROM pg_class c \
     JOIN pg_am a ON a.oid = c.relam AND a.amname = 'heap' \
     WHERE c.relkind IN ('r', 'm', 't') AND c.relpersistence <> 't' ORDER BY c.oid";

/// The names of the databases that can be entered. One whose `DROP DATABASE` was cut off is marked
/// invalid (`datconnlimit = -2`) and can only be dropped again.
pub async fn databases(server: &TestServer) -> Vec<String> {
    let session = server.session("postgres").await;
    let rows = session
        .rows(
            "SELECT datname FROM pg_database WHERE datallowconn AND datconnlimit <> -2 ORDER BY 1",
        )
        .await
        .expect("the catalog is readable");
    rows.iter()
        .map(|row| row.get("datname").expect("a name"))
        .collect()
}

/// Ends the transactions that are prepared: their locks, which may be of any strength, would keep a check
/// waiting for ever. A restore to a moment between the two phases has them, and so has a server whose writers
/// were cut off.
pub async fn end_prepared(server: &TestServer) {
    let session = server.session("postgres").await;
    let rows = session
        .rows("SELECT gid, database FROM pg_prepared_xacts")
        .await
        .expect("the catalog is readable");
    for row in rows {
        let (gid, database): (String, String) = (
            row.get("gid").expect("a name"),
            row.get("database").expect("a database"),
        );
        let session = server.session(&database).await;
        session
            .run(&format!("ROLLBACK PREPARED '{gid}'"))
            .await
            .expect("it is rolled back");
    }
}

async fn checked(session: &SqlLink, what: &str, sql: &str, found: &mut Vec<String>) {
    match session.rows(sql).await {
        Ok(rows) => found.extend(rows.iter().map(|row| {
            let text = row.text("finding").unwrap_or("a finding without text");
            format!("{what}: {text}")
        })),
        Err(error) => found.push(format!("{what}: {error}")),
    }
}

/// Checks every heap, and every B-tree against its heap, of every database with `amcheck`. Returns
/// what was found; nothing is good.
pub async fn amcheck_all(server: &TestServer) -> Vec<String> {
    let mut found = Vec::new();
    for database in databases(server).await {
        let session = server.session(&database).await;
        session
            .run("CREATE EXTENSION IF NOT EXISTS amcheck")
            .await
            .expect("contrib is installed");
        let indexes = session
            .rows(
                "SELECT c.oid, c.oid::regclass::text AS name FROM pg_class c \
                 JOIN pg_am a ON a.oid = c.relam AND a.amname = 'btree' \
                 JOIN pg_index i ON i.indexrelid = c.oid AND i.indisvalid AND i.indisready \
                 WHERE c.relkind = 'i' AND c.relpersistence <> 't' ORDER BY c.oid",
            )
            .await
            .expect("the catalog is readable");
        for row in indexes {
            let (oid, name) = oid_and_name(&row);
            let sql = format!("DO $$ BEGIN PERFORM bt_index_check({oid}, true); END $$");
            if let Err(error) = session.run(&sql).await {
                found.push(format!("{database}, index {name}: {error}"));
            }
        }
        for row in session.rows(TABLES).await.expect("the catalog is readable") {
            let (oid, name) = oid_and_name(&row);
            let sql = format!(
                "SELECT format('block %s, item %s: %s', blkno, offnum, msg) AS finding \
                 FROM verify_heapam({oid})"
            );
            checked(
                &session,
                &format!("{database}, table {name}"),
                &sql,
                &mut found,
            )
            .await;
        }
    }
    found
}

/// Checks the visibility map of every heap of every database: a bit that promises too much makes
/// rows appear or vanish. Returns what was found.
pub async fn visibility_check(server: &TestServer) -> Vec<String> {
    let mut found = Vec::new();
    for database in databases(server).await {
        let session = server.session(&database).await;
        session
            .run("CREATE EXTENSION IF NOT EXISTS pg_visibility")
            .await
            .expect("contrib is installed");
        for row in session.rows(TABLES).await.expect("the catalog is readable") {
            let (oid, name) = oid_and_name(&row);
            for function in ["pg_check_visible", "pg_check_frozen"] {
                let sql = format!(
                    "SELECT '{function} finds ' || t_ctid::text AS finding FROM {function}({oid})"
                );
                checked(
                    &session,
                    &format!("{database}, table {name}"),
                    &sql,
                    &mut found,
                )
                .await;
            }
        }
    }
    found
}

fn oid_and_name(row: &borealis_pg_server::link::TextRow) -> (u32, String) {
    (
        row.get("oid").expect("a number"),
        row.get("name").expect("a name"),
    )
}

/// The number of rows and a hash of all rows, in an order of their own, of every ordinary table of
/// every database.
pub async fn digest(server: &TestServer) -> BTreeMap<String, String> {
    let mut digests = BTreeMap::new();
    for database in databases(server).await {
        let session = server.session(&database).await;
        let tables = session
            .rows(
                "SELECT format('%I.%I', n.nspname, c.relname) AS name FROM pg_class c \
                 JOIN pg_namespace n ON n.oid = c.relnamespace \
                 WHERE c.relkind IN ('r', 'm') AND c.relpersistence = 'p' \
                 AND n.nspname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1",
            )
            .await
            .expect("the catalog is readable");
        for row in tables {
            let name: String = row.get("name").expect("a name");
            let digest = session
                .value::<String>(&format!(
                    "SELECT count(*) || ' rows, ' || \
                     coalesce(md5(string_agg(h, '' ORDER BY h)), '') \
                     FROM (SELECT md5(t::text) AS h FROM {name} AS t) AS hashes"
                ))
                .await
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            digests.insert(format!("{database}: {name}"), digest);
        }
    }
    digests
}
