//! What a base backup says of the server it was taken from, beside its pages: everything that a
//! restore on another machine must know and that the data directory does not hold. Stored as JSON in
//! the manifest; unknown fields are ignored, so that fields can be added.

use std::path::PathBuf;

use borealis_base::ErrorKind;
use borealis_pg_format::control_file::ControlFile;
use borealis_pg_server::catalog::CatalogFacts;
use borealis_pg_server::data_dir::config_files::ConfigFiles;
use borealis_pg_server::recovery::HostFacts;
use borealis_pg_server::source::{Database, ServerFacts, Settings, Tablespace};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

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
    /// The role that `initdb` made.
    pub superuser: String,
    /// The data directory's path on the source.
    pub data_directory: PathBuf,
    /// Permission bits of the data directory.
    pub data_directory_mode: u32,
    /// Settings.
    pub settings: Settings,
    /// Configuration files, wherever they lie, with all that they include.
    pub config: ConfigFiles,
    /// Tablespaces outside the data directory.
    pub tablespaces: Vec<Tablespace>,
    /// Databases.
    pub databases: Vec<Database>,
    /// Indexes that depend on collations, extensions, libraries.
    pub catalog: CatalogFacts,
    /// The machine.
    pub host: HostFacts,
    /// Whether the files were read through SQL: then permission bits are the server's usual ones, and what
    /// is known of the machine is what SQL tells.
    #[serde(default)]
    pub agentless: bool,
    /// Pages that were damaged on the source, whose content is what was read.
    #[serde(default)]
    pub damaged: Vec<DamagedPage>,
}

/// What decides whether pages of then are pages of now, and which of them were damaged. The engine's part
/// of a partial base backup, and a part of a [`ServerState`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageFacts {
    /// Bytes in a page.
    pub page_bytes: u32,
    /// Pages in a file of a relation fork.
    pub relation_segment_pages: u32,
    /// Whether pages carry checksums.
    pub data_checksums: bool,
    /// Pages that were damaged on the source, whose content is what was read.
    #[serde(default)]
    pub damaged: Vec<DamagedPage>,
}

impl PageFacts {
    /// What the control file says; no damage.
    pub fn new(control: &ControlFile) -> Self {
        Self {
            page_bytes: control.page_size,
            relation_segment_pages: control.relation_segment_pages,
            data_checksums: control.data_checksum_version != 0,
            damaged: Vec::new(),
        }
    }

    /// As it is stored.
    pub fn encode(&self) -> Result<Bytes> {
        encode(self)
    }

    /// Reads what was stored in `manifest`: by itself, or as a part of a server state.
    pub fn decode(manifest: &str, bytes: &[u8]) -> Result<Self> {
        decode(manifest, bytes)
    }
}

fn encode(state: &impl Serialize) -> Result<Bytes> {
    serde_json::to_vec(state).map(Bytes::from).map_err(|error| {
        Error::new(
            ErrorKind::Bug,
            format!("the server's state can't be written: {error}"),
        )
    })
}

fn decode<T: serde::de::DeserializeOwned>(manifest: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        Error::new(
            ErrorKind::Damaged,
            format!("the server's state in {manifest} can't be read: {error}"),
        )
    })
}

/// A page that the source itself could not read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedPage {
    /// The relation fork's path.
    pub path: String,
    /// The block.
    pub block: u32,
    /// What is wrong with it.
    pub fault: String,
}

impl ServerState {
    /// Puts together what the server says and what its control file says. `host` is the server's machine,
    /// where that is not this one.
    pub fn new(
        facts: &ServerFacts,
        control: &ControlFile,
        catalog: CatalogFacts,
        config: ConfigFiles,
        superuser: String,
        data_directory: (PathBuf, u32),
        host: Option<HostFacts>,
    ) -> Self {
        Self {
            version: facts.version,
            version_text: facts.version_text.clone(),
            system_id: facts.system_id,
            wal_segment_bytes: facts.segment_bytes,
            page_bytes: control.page_size,
            relation_segment_pages: control.relation_segment_pages,
            data_checksums: control.data_checksum_version != 0,
            superuser,
            data_directory: data_directory.0,
            data_directory_mode: data_directory.1,
            settings: facts.settings.clone(),
            config,
            tablespaces: facts.tablespaces.clone(),
            databases: facts.databases.clone(),
            catalog,
            agentless: host.is_some(),
            host: host.unwrap_or_else(HostFacts::of_this_machine),
            damaged: Vec::new(),
        }
    }

    /// The major version.
    pub fn major(&self) -> u32 {
        self.version / 10_000
    }

    /// As it is stored.
    pub fn encode(&self) -> Result<Bytes> {
        encode(self)
    }

    /// Reads what was stored in `manifest`.
    pub fn decode(manifest: &str, bytes: &[u8]) -> Result<Self> {
        decode(manifest, bytes)
    }
}
