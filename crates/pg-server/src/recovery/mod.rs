//! The configuration of a restored cluster, as a pure function of the backup's and of the new place.
//!
//! `postgresql.conf` is carried along, its includes laid into it, with every line that cannot hold in
//! the new place turned into a comment that says why. `postgresql.auto.conf`, which is read last,
//! holds what Borealis decides: nothing in the restored cluster archives, follows or waits for
//! anything of its parent's.

mod host;

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use borealis_base::{Branch, Position};

pub use host::{HostFacts, HostWarning, compare};

use crate::catalog::split_list;
use crate::data_dir::config_files::{ConfigFile, ConfigFiles, Role, Statement, parse};
use crate::source::Settings;

/// Settings that recovery compares with those of the primary, and which a promoted cluster may lower
/// after a restart only (`CheckRequiredParameterValues` in `xlogrecovery.c`).
pub const STANDBY_PARAMETERS: [&str; 5] = [
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
];

/// Settings that tie a cluster to its parent's archive, primary or standbys, or to a recovery.
const PARENTS: [&str; 22] = [
    "archive_mode",
    "archive_command",
    "archive_library",
    "archive_cleanup_command",
    "recovery_end_command",
    "restore_command",
    "primary_conninfo",
    "primary_slot_name",
    "synchronous_standby_names",
    "synchronized_standby_slots",
    "sync_replication_slots",
    "promote_trigger_file",
    "recovery_min_apply_delay",
    "recovery_target",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
    "recovery_target_lsn",
    "recovery_target_inclusive",
    "recovery_target_timeline",
    "recovery_target_action",
    "hot_standby",
];

/// Settings that name places of the parent's files.
const PLACES: [&str; 5] = [
    "data_directory",
    "config_file",
    "hba_file",
    "ident_file",
    "external_pid_file",
];

/// Settings that name files without which TLS cannot start.
const TLS_FILES: [&str; 6] = [
    "ssl_cert_file",
    "ssl_key_file",
    "ssl_ca_file",
    "ssl_crl_file",
    "ssl_crl_dir",
    "ssl_dh_params_file",
];

/// Settings that list libraries; a missing one ends every start or every session.
const LIBRARIES: [&str; 3] = [
    "shared_preload_libraries",
    "session_preload_libraries",
    "local_preload_libraries",
];

/// The backup's side.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// Its configuration files.
    pub config: &'a ConfigFiles,
    /// Its settings at the backup.
    pub settings: &'a Settings,
    /// The largest [`STANDBY_PARAMETERS`] that the log up to the target sets, in their order.
    pub log_parameters: [i64; 5],
}

/// The new place.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// The data directory.
    pub data_dir: &'a Path,
    /// The port.
    pub port: u16,
    /// Where the socket goes if the parent's directories are not writable here.
    pub socket_directory: &'a Path,
    /// What the server listens on; `None` keeps the parent's where it means any machine.
    pub listen_addresses: Option<&'a str>,
    /// The name shown in process titles.
    pub cluster_name: &'a str,
    /// Whether a file or directory exists or, below the data directory, will after the restore.
    pub exists: &'a dyn Fn(&Path) -> bool,
    /// Whether the server's user may create files in a directory.
    pub is_writable: &'a dyn Fn(&Path) -> bool,
    /// Whether a preload library is installed, by the name used in the setting.
    pub has_library: &'a dyn Fn(&str) -> bool,
}

/// How far to recover, and what then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// To the record that starts here, included, and then become a primary.
    Promote(Position),
    /// To the end of the log, and go on as a standby.
    Standby,
}

/// What recovery needs.
#[derive(Debug, Clone, Copy)]
pub struct Recovery<'a> {
    /// The command that fetches a file of the log; `%f` and `%p` as PostgreSQL defines them.
    pub restore_command: &'a str,
    /// The command to run when recovery ends, if any.
    pub end_command: Option<&'a str>,
    /// The timeline to follow.
    pub branch: Branch,
    /// How far.
    pub goal: Goal,
}

/// A file to write below the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigOutput {
    /// Its path below the data directory.
    pub path: String,
    /// Its content.
    pub text: String,
}

/// The configuration of the restored cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoredConfig {
    /// Files to write before the first start, the signal file included.
    pub files: Vec<ConfigOutput>,
    /// What `postgresql.auto.conf` should hold once recovery has ended: nothing of it is left.
    pub auto_after_recovery: String,
    /// What a person should know, one sentence each.
    pub warnings: Vec<String>,
}

/// `value` as the configuration files write it (`guc-file.l`: backslashes are escapes there).
pub fn quote_value(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

/// Makes the configuration.
pub fn configure(
    origin: &Origin<'_>,
    place: &Place<'_>,
    recovery: &Recovery<'_>,
) -> RestoredConfig {
    let mut writer = Writer {
        place,
        without_tls: tls_is_missing(origin.config, place),
        overrides: Vec::new(),
        laid_in: BTreeSet::new(),
        warnings: Vec::new(),
    };
    let mut main = String::new();
    if let Some(file) = origin.config.of(Role::Main) {
        writer.carry(file, origin.config, &mut Vec::new(), &mut main);
    }
    let mut auto = String::from("# Written by Borealis when this cluster was restored.\n");
    if let Some(file) = origin.config.of(Role::Auto) {
        writer.carry(file, origin.config, &mut Vec::new(), &mut auto);
    }
    decide(&mut writer, origin, place);
    for (name, value) in &writer.overrides {
        push_setting(&mut auto, name, value);
    }
    let auto_after_recovery = auto.clone();
    auto.push_str(&recovery_block(recovery));
    let (access, mut warnings) = access_files(origin.config, &writer.laid_in, place);
    warnings.append(&mut writer.warnings);
    let signal = match recovery.goal {
        Goal::Promote(_) => "recovery.signal",
        Goal::Standby => "standby.signal",
    };
    let output = |path: &str, text: String| ConfigOutput {
        path: path.to_owned(),
        text,
    };
    let mut files = vec![
        output("postgresql.conf", main),
        output("postgresql.auto.conf", auto),
        output(signal, String::new()),
    ];
    files.extend(access);
    RestoredConfig {
        files,
        auto_after_recovery,
        warnings,
    }
}

/// Our own decisions, which stay after recovery.
fn decide(writer: &mut Writer<'_>, origin: &Origin<'_>, place: &Place<'_>) {
    let mut set = |name: &str, value: String| writer.overrides.push((name.to_owned(), value));
    set("archive_mode", "off".to_owned());
    set("port", place.port.to_string());
    set("cluster_name", place.cluster_name.to_owned());
    for (name, in_log) in STANDBY_PARAMETERS.iter().zip(origin.log_parameters) {
        // Where neither knows a value, the server's default is better than a wrong one.
        match origin.settings.number(name) {
            None if in_log == 0 => {}
            configured => set(name, configured.unwrap_or(0).max(in_log).to_string()),
        }
    }
    if let Some(addresses) = place.listen_addresses {
        set("listen_addresses", addresses.to_owned());
    }
}

fn recovery_block(recovery: &Recovery<'_>) -> String {
    let mut block = String::from("# For recovery only.\n");
    let mut set = |name: &str, value: &str| {
        push_setting(&mut block, name, value);
    };
    set("restore_command", recovery.restore_command);
    if let Some(command) = recovery.end_command {
        set("recovery_end_command", command);
    }
    match recovery.goal {
        Goal::Promote(position) => {
            set("recovery_target_lsn", &position.to_string());
            set("recovery_target_inclusive", "on");
            set("recovery_target_timeline", &recovery.branch.to_string());
            set("recovery_target_action", "promote");
            // Nobody can look in before the target is reached, and smaller settings do no harm.
            set("hot_standby", "off");
        }
        Goal::Standby => {
            set("recovery_target_timeline", "latest");
            set("hot_standby", "on");
        }
    }
    block
}

/// Turns the parent's files into those of the new place.
struct Writer<'a> {
    place: &'a Place<'a>,
    without_tls: bool,
    overrides: Vec<(String, String)>,
    laid_in: BTreeSet<PathBuf>,
    warnings: Vec<String>,
}

/// What becomes of a line.
enum Fate {
    Keep,
    /// A comment, with the reason.
    Drop(String),
    /// Another value, with the reason.
    Replace(String, String),
}

impl Writer<'_> {
    /// Appends `file` to `out`, and where it includes others, those in place of the include.
    fn carry(
        &mut self,
        file: &ConfigFile,
        all: &ConfigFiles,
        open: &mut Vec<PathBuf>,
        out: &mut String,
    ) {
        if open.contains(&file.path) {
            return;
        }
        open.push(file.path.clone());
        for (line, statement) in parse(&file.text) {
            match statement {
                Statement::Nothing => push_line(out, line),
                Statement::Malformed => {
                    push_line(
                        out,
                        &format!("# {line} # the server would not accept this line"),
                    );
                }
                Statement::Include { path, .. } => {
                    push_line(out, &format!("# {} # its content follows", line.trim()));
                    let base = file.path.parent().unwrap_or(Path::new("/")).join(path);
                    let mut included: Vec<_> = all
                        .files
                        .iter()
                        .filter(|f| f.path == base || f.path.parent() == Some(&base))
                        .filter(|f| f.role == Role::Included)
                        .collect();
                    included.sort_by(|a, b| a.path.cmp(&b.path));
                    for file in included {
                        self.laid_in.insert(file.path.clone());
                        self.carry(file, all, open, out);
                    }
                }
                Statement::Setting { name, value } => {
                    self.setting(line, &name, &value, out);
                }
            }
        }
        open.pop();
    }

    fn setting(&mut self, line: &str, name: &str, value: &str, out: &mut String) {
        match self.fate(name, value) {
            Fate::Keep => push_line(out, line),
            Fate::Drop(reason) => push_line(out, &format!("# {} # {reason}", line.trim())),
            Fate::Replace(value, reason) => {
                push_line(out, &format!("# {} # {reason}", line.trim()));
                push_setting(out, name, &value);
            }
        }
    }

    fn warn(&mut self, text: String) {
        if !self.warnings.contains(&text) {
            self.warnings.push(text);
        }
    }

    fn fate(&mut self, name: &str, value: &str) -> Fate {
        let place = self.place;
        let dropped = |reason: &str| Fate::Drop(reason.to_owned());
        if PARENTS.contains(&name) {
            return dropped("belongs to the parent's archive, primary or recovery");
        }
        if PLACES.contains(&name) {
            return dropped("names a place of the parent's");
        }
        if STANDBY_PARAMETERS.contains(&name) || matches!(name, "port" | "cluster_name") {
            return dropped("set in postgresql.auto.conf");
        }
        if TLS_FILES.contains(&name) {
            let missing = !value.is_empty() && !(place.exists)(&place.data_dir.join(value));
            if missing {
                self.warn(format!("{name}: {value} does not exist here"));
                return dropped("the file does not exist here");
            }
        }
        match name {
            "ssl" if self.without_tls && !is_off(value) => {
                self.warn("ssl is off: certificate or key do not exist here".to_owned());
                Fate::Replace("off".to_owned(), "its files do not exist here".to_owned())
            }
            "log_directory" | "stats_temp_directory" if Path::new(value).is_absolute() => {
                if (place.is_writable)(Path::new(value)) {
                    return Fate::Keep;
                }
                self.warn(format!("{name}: {value} is not writable here"));
                dropped("the directory is not writable here")
            }
            "unix_socket_directories" => self.sockets(value),
            "listen_addresses" => self.addresses(value),
            "huge_pages" if value.eq_ignore_ascii_case("on") => {
                Fate::Replace("try".to_owned(), "this machine may have none".to_owned())
            }
            // From 18 on; a server whose build or kernel has no io_uring does not start with it.
            "io_method" if value.eq_ignore_ascii_case("io_uring") => {
                self.warn("io_method: io_uring may not be allowed here; worker is used".to_owned());
                Fate::Replace(
                    "worker".to_owned(),
                    "this machine may not allow io_uring".to_owned(),
                )
            }
            name if LIBRARIES.contains(&name) => self.libraries(name, value),
            _ => Fate::Keep,
        }
    }

    fn sockets(&mut self, value: &str) -> Fate {
        let place = self.place;
        let good = split_list(value)
            .iter()
            .all(|dir| dir.starts_with('@') || (place.is_writable)(Path::new(dir)));
        if good {
            return Fate::Keep;
        }
        let here = place.socket_directory.display().to_string();
        self.warn(format!(
            "unix_socket_directories: {value} is not writable here; {here} is used"
        ));
        Fate::Replace(here, "not writable here".to_owned())
    }

    /// An address of the parent's machine cannot be bound on another, and a server with none it can
    /// bind does not start.
    fn addresses(&mut self, value: &str) -> Fate {
        if self.place.listen_addresses.is_some() {
            return Fate::Drop("set in postgresql.auto.conf".to_owned());
        }
        let anywhere = |address: &String| {
            matches!(
                address.as_str(),
                "*" | "localhost" | "0.0.0.0" | "::" | "127.0.0.1" | "::1"
            )
        };
        if split_list(value).iter().all(anywhere) {
            return Fate::Keep;
        }
        self.warn(format!(
            "listen_addresses: {value} are addresses of the parent; localhost is used"
        ));
        Fate::Replace("localhost".to_owned(), "addresses of the parent".to_owned())
    }

    fn libraries(&mut self, name: &str, value: &str) -> Fate {
        let (here, missing): (Vec<_>, Vec<_>) = split_list(value)
            .into_iter()
            .partition(|library| (self.place.has_library)(library));
        if missing.is_empty() {
            return Fate::Keep;
        }
        let missing = missing.join(", ");
        self.warn(format!("{name}: {missing} not installed here and left out"));
        Fate::Replace(
            here.join(","),
            format!("without {missing}, not installed here"),
        )
    }
}

fn push_setting(out: &mut String, name: &str, value: &str) {
    push_line(out, &format!("{name} = {}", quote_value(value)));
}

fn push_line(out: &mut String, line: &str) {
    out.push_str(line);
    out.push('\n');
}

/// Whether a switch is written as off (`parse_bool`).
fn is_off(value: &str) -> bool {
    let value = value.to_ascii_lowercase();
    value == "0"
        || ["off", "false", "no"]
            .iter()
            .any(|word| !value.is_empty() && word.starts_with(&value) && value != "o")
}

/// Whether TLS could not start here. The defaults are `server.crt` and `server.key`.
fn tls_is_missing(config: &ConfigFiles, place: &Place<'_>) -> bool {
    [
        ("ssl_cert_file", "server.crt"),
        ("ssl_key_file", "server.key"),
    ]
    .into_iter()
    .any(|(name, default)| {
        let file = config.setting(name).unwrap_or_else(|| default.to_owned());
        !(place.exists)(&place.data_dir.join(file))
    })
}

/// The access files, with what they include at the same place relative to them.
fn access_files(
    config: &ConfigFiles,
    laid_in: &BTreeSet<PathBuf>,
    place: &Place<'_>,
) -> (Vec<ConfigOutput>, Vec<String>) {
    let (mut files, mut warnings) = (Vec::new(), Vec::new());
    let mut homes = Vec::new();
    for (role, name) in [
        (Role::Access, "pg_hba.conf"),
        (Role::Identity, "pg_ident.conf"),
    ] {
        match config.of(role) {
            Some(file) => {
                homes.extend(file.path.parent().map(Path::to_path_buf));
                files.push(ConfigOutput {
                    path: name.to_owned(),
                    text: file.text.clone(),
                });
            }
            None if role == Role::Access => {
                warnings.push("the backup holds no pg_hba.conf: no one could log in".to_owned());
            }
            None => files.push(ConfigOutput {
                path: name.to_owned(),
                text: String::new(),
            }),
        }
    }
    let included =
        |file: &&ConfigFile| file.role == Role::Included && !laid_in.contains(&file.path);
    for file in config.files.iter().filter(included) {
        let below = homes.iter().find_map(|home| {
            let below = file.path.strip_prefix(home).ok()?;
            let plain = below
                .components()
                .all(|c| matches!(c, Component::Normal(_)));
            plain.then(|| below.to_str()).flatten()
        });
        match below {
            Some(below) => {
                files.push(ConfigOutput {
                    path: below.to_owned(),
                    text: file.text.clone(),
                });
            }
            _ if (place.exists)(&file.path) => {}
            _ => warnings.push(format!(
                "{} is included by the parent's configuration and does not exist here",
                file.path.display()
            )),
        }
    }
    (files, warnings)
}

/// Whether a library named in a setting is in one of `directories` (`pg_config --pkglibdir`), as
/// `expand_dynamic_library_name` in `dfmgr.c` looks for it.
pub fn library_exists(name: &str, directories: &[PathBuf]) -> bool {
    let bare = name.strip_prefix("$libdir/").unwrap_or(name);
    let names = [bare.to_owned(), format!("{bare}.so")];
    if bare.starts_with('/') {
        return names.iter().any(|name| Path::new(name).is_file());
    }
    directories
        .iter()
        .any(|dir| names.iter().any(|name| dir.join(name).is_file()))
}

#[cfg(test)]
mod tests;
