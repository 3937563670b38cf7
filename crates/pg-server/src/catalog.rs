//! What a restore on another machine must know of the catalogs, read at backup time: text that sorts
//! differently there makes indexes wrong without any error, and extensions need their libraries.

use borealis_base::ErrorKind;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::link::{SqlLink, TextRow};
use crate::source::{Database, Settings};

/// The most indexes listed for one database; the count tells how many there are.
pub const INDEXES_MAX: usize = 10_000;

/// An index whose order depends on a collation that a machine defines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollatedIndex {
    /// The database.
    pub database: String,
    /// Schema and name, quoted as SQL needs it.
    pub index: String,
    /// Schema and name of its table, quoted as SQL needs it.
    pub table: String,
    /// The collations, with the database's default under its own name.
    pub collations: Vec<String>,
    /// Who defines them: `c` the C library, `i` ICU.
    pub providers: Vec<String>,
}

/// A collation and its versions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollationVersion {
    /// The database.
    pub database: String,
    /// Schema and name.
    pub collation: String,
    /// Who defines it.
    pub provider: String,
    /// The version recorded when it was made or refreshed.
    pub recorded: Option<String>,
    /// The version that the machine had at the backup.
    pub actual: Option<String>,
}

/// An extension of one database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extension {
    /// The database.
    pub database: String,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// The facts of all databases.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogFacts {
    /// Indexes that depend on collations, at most [`INDEXES_MAX`] for each database.
    pub indexes: Vec<CollatedIndex>,
    /// How many there are.
    pub indexes_total: u64,
    /// Collations in use by columns or recorded with a version.
    pub collations: Vec<CollationVersion>,
    /// Extensions.
    pub extensions: Vec<Extension>,
    /// `shared_preload_libraries`, one by one.
    pub preload_libraries: Vec<String>,
    /// Databases that this role could not enter, with the reason.
    pub unread: Vec<(String, String)>,
}

/// Splits a list setting such as `shared_preload_libraries` (`SplitDirectoriesString`).
pub fn split_list(value: &str) -> Vec<String> {
    value
        .split(',')
        .map(|item| item.trim().trim_matches('"').to_owned())
        .filter(|item| !item.is_empty())
        .collect()
}

/// Reads the facts of every database that allows connections.
///
/// # Errors
/// A lost link. A database that may not be entered is listed as unread.
pub async fn read(
    link: &SqlLink,
    databases: &[Database],
    settings: &Settings,
) -> Result<CatalogFacts> {
    let mut facts = CatalogFacts {
        preload_libraries: split_list(settings.get("shared_preload_libraries").unwrap_or("")),
        ..CatalogFacts::default()
    };
    for database in databases.iter().filter(|d| d.allows_connections) {
        let info = link.info().with_database(&database.name);
        let session = match SqlLink::connect(&info).await {
            Ok(session) => session,
            // Dropped since it was listed, or not for this role.
            Err(error) if matches!(error.kind(), ErrorKind::Refused | ErrorKind::NotFound) => {
                facts
                    .unread
                    .push((database.name.clone(), error.to_string()));
                continue;
            }
            Err(error) => return Err(error),
        };
        read_database(&session, database, &mut facts).await?;
    }
    Ok(facts)
}

async fn read_database(
    session: &SqlLink,
    database: &Database,
    facts: &mut CatalogFacts,
) -> Result<()> {
    let name = &database.name;
    // Byte order is the same on every machine (`get_collation_actual_version` in `pg_locale.c`).
    let default_is_stable = is_stable(&database.provider, Some(&database.collate));
    let locale = if session.major() >= 15 {
        "coalesce(co.collcollate, '')"
    } else {
        "co.collcollate"
    };
    let rows = session
        .rows(&format!(
            "SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS index, \
             quote_ident(tn.nspname) || '.' || quote_ident(t.relname) AS tab, \
             string_agg(DISTINCT co.collname, ',') AS collations, \
             string_agg(DISTINCT co.collprovider::text, '') AS providers \
             FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid AND c.relkind = 'i' \
             JOIN pg_namespace n ON n.oid = c.relnamespace \
             JOIN pg_class t ON t.oid = i.indrelid \
             JOIN pg_namespace tn ON tn.oid = t.relnamespace \
             CROSS JOIN LATERAL unnest(i.indcollation::oid[]) AS used(oid) \
             JOIN pg_collation co ON co.oid = used.oid \
             WHERE c.relpersistence <> 't' AND co.collprovider <> 'b' \
             AND NOT (co.collprovider = 'c' AND ({locale} IN ('C', 'POSIX') OR {locale} ILIKE 'C.%')) \
             AND NOT (co.collprovider = 'd' AND {default_is_stable}) \
             GROUP BY 1, 2 ORDER BY 1, 2"
        ))
        .await?;
    facts.indexes_total += rows.len() as u64;
    for row in rows.iter().take(INDEXES_MAX) {
        facts.indexes.push(index(row, database)?);
    }
    let rows = session
        .rows(
            "SELECT quote_ident(n.nspname) || '.' || quote_ident(c.collname) AS name, \
             c.collprovider AS provider, c.collversion AS recorded, \
             pg_collation_actual_version(c.oid) AS actual FROM pg_collation c \
             JOIN pg_namespace n ON n.oid = c.collnamespace \
             WHERE c.collversion IS NOT NULL AND c.oid IN \
             (SELECT unnest(indcollation::oid[]) FROM pg_index \
              UNION SELECT attcollation FROM pg_attribute) ORDER BY 1",
        )
        .await?;
    for row in &rows {
        facts.collations.push(CollationVersion {
            database: name.clone(),
            collation: row.get("name")?,
            provider: row.get("provider")?,
            recorded: row.optional("recorded")?,
            actual: row.optional("actual")?,
        });
    }
    let rows = session
        .rows("SELECT extname, extversion FROM pg_extension ORDER BY 1")
        .await?;
    for row in &rows {
        facts.extensions.push(Extension {
            database: name.clone(),
            name: row.get("extname")?,
            version: row.get("extversion")?,
        });
    }
    Ok(())
}

/// Whether a locale of the C library or the server itself sorts by bytes everywhere.
fn is_stable(provider: &str, locale: Option<&str>) -> bool {
    match (provider, locale) {
        ("b", _) => true,
        ("c", Some(locale)) => {
            matches!(locale, "C" | "POSIX") || locale.to_ascii_lowercase().starts_with("c.")
        }
        _ => false,
    }
}

fn index(row: &TextRow, database: &Database) -> Result<CollatedIndex> {
    let collations: String = row.get("collations")?;
    let providers: String = row.get("providers")?;
    Ok(CollatedIndex {
        database: database.name.clone(),
        index: row.get("index")?,
        table: row.get("tab")?,
        collations: collations
            .split(',')
            .map(|name| match name {
                "default" => format!("{} (default)", database.collate),
                name => name.to_owned(),
            })
            .collect(),
        providers: providers
            .chars()
            .map(|provider| match provider {
                'd' => database.provider.clone(),
                provider => provider.to_string(),
            })
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_order_is_the_same_everywhere_and_languages_are_not() {
        for (provider, locale, stable) in [
            ("c", "C", true),
            ("c", "POSIX", true),
            ("c", "C.UTF-8", true),
            ("c", "c.utf8", true),
            ("c", "de_DE.UTF-8", false),
            ("c", "cs_CZ.UTF-8", false),
            ("i", "C", false),
            ("b", "C.UTF-8", true),
        ] {
            assert_eq!(
                is_stable(provider, Some(locale)),
                stable,
                "{provider} {locale}"
            );
        }
    }

    #[test]
    fn lists_are_split_as_the_server_does() {
        assert_eq!(split_list(" a, \"b\" ,,c "), ["a", "b", "c"]);
        assert!(split_list("").is_empty());
    }
}
