//! The command line: every command and option, with the text that `--help` shows. Values are parsed
//! here as far as they can be without looking at anything.

// The doc comments here are shown as they stand by `--help`, where backticks only disturb.
#![allow(clippy::doc_markdown)]

mod keeping;
mod key;

use std::path::PathBuf;
use std::time::Duration;

use borealis_base::{ByteLen, parse_duration};
use borealis_repository::retention::Days;
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};

use keeping::parse_days;
pub use keeping::*;
pub use key::*;

/// Continuous backup of PostgreSQL into a repository, and exact restore to any second.
#[derive(Debug, Parser)]
#[command(
    name = "borealis",
    version,
    disable_help_subcommand = true,
    after_help = "A first run:\n  \
        borealis init    --repository /srv/backup --key-file ~/borealis.key\n  \
        borealis check   --source 'host=/var/run/postgresql user=postgres'\n  \
        borealis protect --source 'host=/var/run/postgresql user=postgres'\n  \
        borealis restore --to '10 minutes ago' --target-dir /srv/restored --start\n\n\
        Exit codes: 0 done, 1 defect, 2 usage, 3 refused, 4 not found, 5 unreachable, 6 damaged, \
        7 fenced, 8 interrupted, 9 lag beyond --fail-if-lag, 10 key unusable"
)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Where backups are kept: a folder, as a path or file:///path, or s3://bucket/prefix[?endpoint=URL&…]
    #[arg(long, global = true, env = "BOREALIS_REPOSITORY", value_name = "URL")]
    pub repository: Option<String>,
    /// The repository's root key: file:/PATH, aws-kms:KEY or vault:https://HOST/MOUNT/keys/NAME
    #[arg(long, global = true, env = "BOREALIS_KEY", value_name = "URL")]
    pub key: Option<String>,
    /// The file that holds the repository's root key; short for --key file:FILE
    #[arg(long, global = true, env = "BOREALIS_KEY_FILE", value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// The configuration file [default: ~/.config/borealis/config.toml, then /etc/borealis/config.toml]
    #[arg(long, global = true, env = "BOREALIS_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Answer in JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// Log what is done, to standard error; twice for more
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// How to reach the server.
#[derive(Debug, Clone, Args)]
pub struct SourceArgs {
    /// The server, as a libpq connection string or postgresql:// URI without a password
    #[arg(long, value_name = "DSN", env = "BOREALIS_SOURCE")]
    pub source: Option<String>,
}

/// Where the server's files are.
#[derive(Debug, Clone, Args)]
pub struct DataDirArg {
    /// The server's data directory on this machine [default: what the server says]
    #[arg(long, value_name = "DIR", conflicts_with = "agentless")]
    pub data_dir: Option<PathBuf>,
    /// Read the server's files through SQL; by default where its data directory can't be read here
    #[arg(long, value_name = "WHEN", num_args = 0..=1, require_equals = true, default_value = "auto", default_missing_value = "always")]
    pub agentless: Agentless,
}

/// When the server's files are read through SQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Agentless {
    /// Where its data directory can't be read here
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

impl From<Agentless> for borealis_pg_server::data_dir::Agentless {
    fn from(agentless: Agentless) -> Self {
        match agentless {
            Agentless::Auto => Self::Auto,
            Agentless::Always => Self::Always,
            Agentless::Never => Self::Never,
        }
    }
}

/// Which cluster of the repository.
#[derive(Debug, Clone, Args)]
pub struct ClusterArg {
    /// The cluster's name in the repository; may be left out where there is one
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a repository and its key file
    Init(Init),
    /// Show and change which keys open the repository
    Key(Key),
    /// Report every setting, grant and version that matters, with the SQL for what is missing
    #[command(
        after_help = "Example:\n  borealis check --source 'host=/var/run/postgresql user=postgres'"
    )]
    Check(Check),
    /// Back up a server continuously until stopped
    Protect(Protect),
    /// Stop protecting a cluster: drop its replication slot and say so in the repository
    Unprotect(Unprotect),
    /// Show what is protected and to which moments it can be restored
    Status(Status),
    /// Find what was dropped, truncated or deleted, with the command that restores to just before
    Find(Find),
    /// Restore a cluster to a moment, a position or a snapshot, into a new directory
    Restore(Restore),
    /// Try a restore: into a scratch directory, started, checked, measured, recorded and removed
    Drill(Drill),
    /// Read everything that the repository holds, at a bounded rate, and tell what is lost or damaged
    Scrub(Scrub),
    /// Name a moment to keep
    Snapshot(Snapshot),
    /// Say for how long a cluster is kept, and see what is kept and why
    Retention(Retention),
    /// Keep what retention would let go, such as for a lawsuit
    Hold(Hold),
    /// Say what recovery is to achieve
    Objective(Objective),
    /// Show what the backups take, in bytes and in money
    Usage(Usage),
    /// Check that what the repository holds can be restored
    Verify(Verify),
    /// Merge small pieces of log, so that the repository stays quick to read
    Maintain(Maintain),
    /// Look at the place where the repository is
    Repository(RepositoryArgs),
    /// Print an object of the repository as text
    Inspect(Inspect),
    /// Serve the log to a recovering server
    Wal(Wal),
}

/// `borealis check`.
#[derive(Debug, Args)]
pub struct Check {
    /// The server.
    #[command(flatten)]
    pub source: SourceArgs,
    /// Its files.
    #[command(flatten)]
    pub data_dir: DataDirArg,
}

/// `borealis init`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  borealis init --repository /srv/backup --key-file ~/borealis.key\n\n\
    Without the key file nobody can read the repository, you included: keep a copy elsewhere, or \
    name a second recipient."
)]
pub struct Init {
    /// One more key that opens the repository too, as --key takes it; a key file is made if it does not exist.
    /// May be repeated
    #[arg(long, value_name = "URL", value_parser = NonEmptyStringValueParser::new())]
    pub recipient: Vec<String>,
}

/// `borealis protect`.
#[allow(clippy::struct_field_names)] // fields have the names of their options
#[allow(clippy::struct_excessive_bools)] // switches that people turn on one by one
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  borealis protect --source 'host=/var/run/postgresql user=postgres' --cluster sales"
)]
pub struct Protect {
    /// The server.
    #[command(flatten)]
    pub source: SourceArgs,
    /// Its files.
    #[command(flatten)]
    pub data_dir: DataDirArg,
    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArg,
    /// Take one base backup with the log it needs, then stop
    #[arg(long)]
    pub once: bool,
    /// With --once: leave no replication slot behind
    #[arg(long, requires = "once")]
    pub no_slot: bool,
    /// How long log may wait before it is shipped
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_duration)]
    pub flush_interval: Duration,
    /// Take a base backup when this much log has been written since the last one
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    pub base_backup_every_log: ByteLen,
    /// Take a base backup at least this often, unless nothing was written
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_duration)]
    pub base_backup_every: Duration,
    /// Let a base backup that is killed be resumed from each SIZE that it has stored
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    pub base_backup_resumable_every: ByteLen,
    /// How often small pieces of log are merged, beside everything else
    #[arg(long, value_name = "TIME", default_value = "10min", value_parser = parse_duration)]
    pub maintain_every: Duration,
    /// Leave maintenance to borealis maintain
    #[arg(long, conflicts_with = "maintain_every")]
    pub no_maintenance: bool,
    /// What goes first when log can't be shipped: the primary's disk, or unbroken history
    #[arg(long, value_name = "WHAT", default_value = "primary")]
    pub protect: Policy,
    /// How often the root key's service is asked whether the key may still be used
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    pub key_check_interval: Duration,
    /// How long that service may give no answer before nothing more is published
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = parse_duration)]
    pub key_outage_max: Duration,
    /// Take over from another protect that can't be asked to stop
    #[arg(long)]
    pub take_over: bool,
    /// Begin a new lineage for a server that has replaced the one protected, such as after pg_upgrade;
    /// what was stored before stays restorable. Without effect for the server that is protected already
    #[arg(long)]
    pub new_lineage: bool,
    /// Promise any second of the last N days, 1 to 35 [default: what was said before, else 1]
    #[arg(long, value_name = "N", value_parser = parse_days)]
    pub retention_days: Option<Days>,
    /// The objectives.
    #[command(flatten)]
    pub objectives: ObjectiveArgs,
    /// Try a restore this often, in the background and at a quiet moment; off for never
    #[arg(long, value_name = "TIME|off", default_value = "7d", value_parser = parse_every)]
    pub drill_every: Every,
    /// Below which directory drills are run [default: /var/tmp]
    #[arg(long, value_name = "DIR")]
    pub drill_dir: Option<PathBuf>,
    /// Read everything that the repository holds of the cluster within this time; off for never
    #[arg(long, value_name = "TIME|off", default_value = "30d", value_parser = parse_every)]
    pub scrub_every: Every,
    /// How much of it is read a second at most
    #[arg(long, value_name = "SIZE", default_value = "16MiB")]
    pub scrub_rate: ByteLen,
}

/// How often something is done, if at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Every(pub Option<Duration>);

fn parse_every(text: &str) -> Result<Every, String> {
    if text == "off" {
        return Ok(Every(None));
    }
    match parse_duration(text) {
        Ok(every) if every.is_zero() => Err("zero is too often; write off for never".to_owned()),
        Ok(every) => Ok(Every(Some(every))),
        Err(error) => Err(error.to_string()),
    }
}

/// What goes first when the two conflict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Policy {
    /// Let the replication slot go before it fills the primary's disk; the window gets a gap
    Primary,
    /// Keep the slot whatever it costs the primary
    Continuity,
}

/// `borealis maintain`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  borealis maintain --once --cluster sales\n\n\
    protect does the same every 10 minutes. No server is needed, only the repository."
)]
pub struct Maintain {
    /// Do what there is to do, then stop
    #[arg(long, required = true)]
    pub once: bool,
    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArg,
    /// Merge the newest log, to which more could come, once it is older than this
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_duration)]
    pub merge_after: Duration,
}

/// `borealis unprotect`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  borealis unprotect --cluster sales\n\nThe backups stay.")]
pub struct Unprotect {
    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArg,
    /// The server.
    #[command(flatten)]
    pub source: SourceArgs,
}

/// `borealis status`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  borealis status --cluster sales --fail-if-lag 60s")]
pub struct Status {
    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArg,
    /// Exit with 9 if the latest restorable time is further behind than this
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub fail_if_lag: Option<Duration>,
}

/// `borealis find`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    borealis find --cluster sales --since '2 hours ago'\n  \
    borealis find --cluster sales --since 2026-11-21T08:00:00Z --until 2026-11-21T09:00:00Z --min-rows 100000")]
pub struct Find {
    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArg,
    /// Look at commits from this time on (RFC 3339, a local time, or '2 hours ago') [default: 24 hours before --until]
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Look at commits up to this time [default: now]
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Show transactions that deleted and updated at least this many rows; from 100 on they are recorded
    #[arg(long, value_name = "N", default_value = "1000")]
    pub min_rows: u64,
    /// Show rewrites (VACUUM FULL, ALTER TABLE and so on), lone indexes and unlogged relations, too
    #[arg(long)]
    pub all: bool,
}

/// `borealis restore`.
#[allow(clippy::struct_excessive_bools)] // each is an option of its own
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    borealis restore --to '10 minutes ago' --target-dir /srv/restored --dry-run\n  \
    borealis restore --to 2026-11-21T08:15:00.123456Z --target-dir /srv/restored --start --port 5433\n  \
    borealis restore --to lsn:0/5000148 --target-dir /srv/restored\n  \
    borealis restore --to snapshot:before-upgrade --target-dir /srv/restored\n  \
    borealis restore --to latest --target-dir /srv/restored --delta")]
pub struct Restore {
    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArg,
    /// TIME (RFC 3339, a local time, or '10 minutes ago'), lsn:X/Y, snapshot:NAME or latest
    #[arg(long, value_name = "TARGET")]
    pub to: String,
    /// An earlier lineage of the cluster, by its identifier or the beginning of that [default: the newest]
    #[arg(long, value_name = "ID")]
    pub lineage: Option<String>,
    /// Where the restored data directory goes: absent, empty, an unfinished restore of ours, or with --delta a
    /// data directory of the same server
    #[arg(long, value_name = "DIR")]
    pub target_dir: PathBuf,
    /// Start the restored server and wait until it answers
    #[arg(long)]
    pub start: bool,
    /// The port of the restored server
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// The system user who gets the files, when run as root [default: postgres]
    #[arg(long, value_name = "USER")]
    pub owner: Option<String>,
    /// Put a tablespace elsewhere; may be repeated
    #[arg(long, value_name = "OLD=NEW", value_parser = parse_mapping)]
    pub tablespace_mapping: Vec<(PathBuf, PathBuf)>,
    /// Prepare a standby that goes on replaying, instead of a primary that stops at the target
    #[arg(long, conflicts_with = "start")]
    pub standby: bool,
    /// Write over a stopped data directory of the same server, only what differs
    #[arg(long)]
    pub delta: bool,
    /// Print the plan and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// `borealis drill`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    borealis drill --cluster sales\n  \
    borealis drill --cluster sales --to snapshot:before-upgrade --scratch /srv/scratch\n\n\
    It ends with 0 if the drill passed and with 6 if it failed; either is recorded in the repository.")]
pub struct Drill {
    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArg,
    /// What to restore to: random, or what restore --to takes
    #[arg(long, value_name = "TARGET", default_value = "random")]
    pub to: String,
    /// The number that chooses a random point [default: a random one, which is printed]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// An earlier lineage of the cluster, by its identifier or the beginning of that [default: the newest]
    #[arg(long, value_name = "ID")]
    pub lineage: Option<String>,
    /// Below which directory it is restored
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    pub scratch: PathBuf,
    /// Leave the restored directory, its server stopped
    #[arg(long)]
    pub keep: bool,
    /// Load the libraries that the configuration names; some extensions' log can't be replayed without
    #[arg(long)]
    pub keep_libraries: bool,
    /// The system user who runs the server, when run as root [default: postgres]
    #[arg(long, value_name = "USER")]
    pub owner: Option<String>,
    /// Give way to other processes: 0 not at all, 19 most
    #[arg(long, value_name = "N", default_value = "0", value_parser = clap::value_parser!(u8).range(0..=19))]
    pub nice: u8,
    /// How often drills are run; given by protect
    #[arg(long, hide = true, value_name = "SECONDS")]
    pub scheduled_every: Option<u64>,
}

/// `borealis scrub`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    borealis scrub --cluster sales --rate 20MiB\n  \
    borealis scrub --full-every 30\n\n\
    It goes on where the last one was, and ends with 0 if everything is sound and with 6 if something is lost or damaged.")]
pub struct Scrub {
    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArg,
    /// How much is read a second at most, such as 20MiB [default: as fast as it can]
    #[arg(long, value_name = "SIZE")]
    pub rate: Option<ByteLen>,
    /// Read nothing of what was last read in full less than this many days ago
    #[arg(long, value_name = "DAYS")]
    pub full_every: Option<u64>,
}

/// `borealis snapshot`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    borealis snapshot create before-upgrade --cluster sales\n  \
    borealis snapshot list --cluster sales\n  \
    borealis restore --to snapshot:before-upgrade --target-dir /srv/restored")]
pub struct Snapshot {
    /// What to do.
    #[command(subcommand)]
    pub action: SnapshotAction,
}

/// `borealis snapshot …`.
#[derive(Debug, Subcommand)]
pub enum SnapshotAction {
    /// Keep this moment, with every commit acknowledged before now
    #[command(after_help = "Example:\n  borealis snapshot create before-upgrade --cluster sales")]
    Create(SnapshotCreate),
    /// List the snapshots
    #[command(after_help = "Example:\n  borealis snapshot list --cluster sales")]
    List(ClusterArg),
    /// Forget a snapshot
    #[command(after_help = "Example:\n  borealis snapshot delete before-upgrade --cluster sales")]
    Delete(SnapshotName),
}

/// `borealis snapshot create`.
#[derive(Debug, Args)]
pub struct SnapshotCreate {
    /// Which.
    #[command(flatten)]
    pub snapshot: SnapshotName,
    /// The server.
    #[command(flatten)]
    pub source: SourceArgs,
    /// `latest` keeps the last position that the repository holds, without asking the server
    #[arg(long, value_name = "latest")]
    pub at: Option<At>,
    /// How long to wait for the log to be durable
    #[arg(long, value_name = "TIME", default_value = "5min", value_parser = parse_duration)]
    pub timeout: Duration,
}

/// Where a snapshot is taken without the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum At {
    /// The last durable position
    Latest,
}

/// A snapshot of a cluster.
#[derive(Debug, Args)]
pub struct SnapshotName {
    /// The snapshot's name
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArg,
}

/// `borealis verify`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  borealis verify --deep")]
pub struct Verify {
    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArg,
    /// Read and authenticate every byte that a restore could need
    #[arg(long)]
    pub deep: bool,
}

/// `borealis repository`.
#[derive(Debug, Args)]
pub struct RepositoryArgs {
    /// What to do.
    #[command(subcommand)]
    pub action: RepositoryAction,
}

/// `borealis repository …`.
#[derive(Debug, Subcommand)]
pub enum RepositoryAction {
    /// Try what the repository needs of its store: create if absent, ranged reads and so on
    #[command(
        after_help = "Example:\n  borealis repository probe --repository 's3://backups/sales?endpoint=https://s3.example.org'\n\n\
        It needs no key and no repository; it writes one small object and removes it again."
    )]
    Probe,
}

/// `borealis inspect`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  borealis inspect lineages/7d0c…/ledger/000000000000/000000000001"
)]
pub struct Inspect {
    /// The object's name in the repository, or a file that holds one
    #[arg(value_name = "OBJECT")]
    pub object: String,
}

/// `borealis wal`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example, as borealis restore writes it into the restored server's configuration:\n  \
    restore_command = '/usr/bin/borealis wal fetch %f %p'"
)]
pub struct Wal {
    /// What to do.
    #[command(subcommand)]
    pub action: WalAction,
}

/// `borealis wal …`.
#[derive(Debug, Subcommand)]
pub enum WalAction {
    /// PostgreSQL's restore_command: put the log file FILE at TARGET. Exits with 0 when done, 1 when
    /// the restore is known not to need FILE, above 125 when it could not look
    #[command(
        after_help = "Example, in the data directory of a restored server:\n  \
        borealis wal fetch 000000010000000000000003 pg_wal/RECOVERYXLOG"
    )]
    Fetch {
        /// The file name that PostgreSQL asks for (%f)
        file: String,
        /// Where it goes (%p), relative to the data directory
        target: PathBuf,
    },
    /// Fetch log ahead of the server in this data directory; started by `fetch`
    #[command(hide = true)]
    Prefetch,
    /// PostgreSQL's recovery_end_command: remove what was fetched ahead
    #[command(hide = true)]
    Finish,
}

fn parse_mapping(text: &str) -> Result<(PathBuf, PathBuf), String> {
    match text.split_once('=') {
        Some((old, new)) if old.starts_with('/') && new.starts_with('/') => {
            Ok((old.into(), new.into()))
        }
        _ => Err(format!(
            "`{text}` is not OLD=NEW with two absolute directories"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_declaration_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_mapping_needs_two_absolute_directories() {
        assert!(parse_mapping("/a=/b").is_ok());
        for text in ["/a", "=/b", "/a=", "a=/b", "/a=b"] {
            assert!(parse_mapping(text).is_err(), "{text:?} was accepted");
        }
    }
}
