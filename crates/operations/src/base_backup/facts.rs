//! What a base backup says of the server it was taken from, beside its pages: everything that a
//! restore on another machine must know and that the data directory does not hold. Stored as JSON in
//! the manifest; unknown fields are ignored, so that fields can be added.

use std::collections::BTreeMap;
use std::path::PathBuf;

use borealis_pg_server::source::ServerFacts;
use serde::{Deserialize, Serialize};

/// Names of blobs that do not belong into the data directory begin with this; what follows is the
/// file's absolute path on the source.
pub const OUTSIDE_PREFIX: &str = "outside:";

/// A server at the time of a base backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerState {
    /// The version as a number, such as 150018.
    pub version: u32,
    /// The version as the server writes it.
    pub version_text: String,
    /// The number `initdb` gave the cluster.
    pub system_id: u64,
    /// Bytes in a log segment.
    pub wal_segment_bytes: u64,
    /// Bytes in a page.
    pub page_bytes: u32,
    /// Pages in a file of a relation fork.
    pub relation_segment_pages: u32,
    /// Whether pages carry checksums.
    pub data_checksums: bool,
    /// Every setting that did not have its default.
    pub settings: BTreeMap<String, String>,
    /// The main configuration file's path on the source.
    pub config_file: Option<PathBuf>,
    /// The access file's path on the source.
    pub hba_file: Option<PathBuf>,
    /// The user-name map's path on the source.
    pub ident_file: Option<PathBuf>,
    /// The data directory's path on the source.
    pub data_directory: PathBuf,
    /// Tablespaces: object identifier to the directory on the source.
    pub tablespaces: BTreeMap<u32, PathBuf>,
    /// Databases with the collation version that their indexes were built with.
    pub databases: Vec<DatabaseState>,
    /// Damaged pages, as `path block N`, whose content is what was read.
    #[serde(default)]
    pub damaged: Vec<String>,
}

/// A database at the time of a base backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseState {
    /// Its object identifier.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// Its collation.
    pub collate: String,
    /// The collation's provider.
    pub provider: String,
    /// The version the library had when the database's indexes were built.
    pub collation_version: Option<String>,
}

impl ServerState {
    /// Puts together what the server says and what its control file says.
    pub fn new(
        facts: &ServerFacts,
        data_directory: PathBuf,
        control: &borealis_pg_format::control_file::ControlFile,
    ) -> Self {
        let [config_file, hba_file, ident_file] = facts.config_files.clone();
        let changed = |(name, setting): (&String, &borealis_pg_server::source::Setting)| {
            (setting.source != "default").then(|| (name.clone(), setting.value.clone()))
        };
        Self {
            version: facts.version,
            version_text: facts.version_text.clone(),
            system_id: facts.system_id,
            wal_segment_bytes: facts.segment_bytes,
            page_bytes: control.page_size,
            relation_segment_pages: control.relation_segment_pages,
            data_checksums: control.data_checksum_version != 0,
            settings: facts.settings.0.iter().filter_map(changed).collect(),
            config_file,
            hba_file,
            ident_file,
            data_directory,
            tablespaces: facts
                .tablespaces
                .iter()
                .map(|tablespace| (tablespace.oid, tablespace.path.clone()))
                .collect(),
            databases: facts
                .databases
                .iter()
                .map(|database| DatabaseState {
                    oid: database.oid,
                    name: database.name.clone(),
                    collate: database.collate.clone(),
                    provider: database.provider.clone(),
                    collation_version: database.collation_version.clone(),
                })
                .collect(),
            damaged: Vec::new(),
        }
    }

    /// The major version.
    pub fn major(&self) -> u32 {
        self.version / 10_000
    }
}
