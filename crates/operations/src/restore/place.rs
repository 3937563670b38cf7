//! Where a restored cluster will live: its programs, its owner, its configuration.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use borealis_pg_server::data_dir::config_files::{Statement, parse};
use borealis_pg_server::instance::{Binaries, SystemUser, users};
use borealis_pg_server::recovery::{
    Goal, Origin, Place, Recovery, RestoredConfig, configure, library_exists, quote_value,
};
use borealis_repository::pages::manifest::Manifest;

use super::plan::Prepared;
use crate::error::{Error, Result};

/// Who gets the files where root restores and names nobody.
const DEFAULT_OWNER: &str = "postgres";
/// Where Debian's servers put their sockets if nothing else is said.
const DEFAULT_SOCKETS: &str = "/var/run/postgresql";
const SOCKETS: &str = "unix_socket_directories";

/// Who gets the files. Only root can give them away, and must: a server refuses to run as root.
pub fn owner(named: Option<&str>) -> Result<Option<SystemUser>> {
    if !users::is_root() {
        return match named {
            Some(name) if users::by_uid(rustix::process::geteuid().as_raw())?.name != name => {
                Err(Error::refused(
                    format!("only root can give the files to {name}"),
                    "Run as root, or as that user without --owner.",
                ))
            }
            _ => Ok(None),
        };
    }
    let name = named.unwrap_or(DEFAULT_OWNER);
    match users::by_name(name) {
        Ok(user) if user.uid == 0 => Err(Error::refused(
            "PostgreSQL refuses to run as root",
            "Name another system user with --owner.",
        )),
        Ok(user) => Ok(Some(user)),
        Err(_) => Err(Error::refused(
            format!("system user {name} does not exist"),
            "Name the system user that runs PostgreSQL with --owner.",
        )),
    }
}

/// Whether `user` may do with `path` what `bits` (4 read, 2 write, 1 execute) say, by its mode bits and
/// those of the directories above it.
fn may(user: Option<&SystemUser>, path: &Path, bits: u32) -> bool {
    let Some(user) = user else {
        let access = match bits {
            2 => rustix::fs::Access::WRITE_OK,
            1 => rustix::fs::Access::EXEC_OK,
            _ => rustix::fs::Access::READ_OK,
        };
        return rustix::fs::access(path, access).is_ok();
    };
    let allowed = |path: &Path, bits: u32| {
        std::fs::metadata(path).is_ok_and(|meta| {
            let shift = if meta.uid() == user.uid {
                6
            } else if meta.gid() == user.gid {
                3
            } else {
                0
            };
            meta.permissions().mode() >> shift & bits == bits
        })
    };
    allowed(path, bits) && path.ancestors().skip(1).all(|above| allowed(above, 1))
}

/// The command by which the restored server asks for log.
pub struct RestoreCommand {
    /// As `restore_command`.
    pub command: String,
    /// As `recovery_end_command`: removes what was fetched ahead.
    pub end_command: Option<String>,
    /// What a person should know of it.
    pub notice: Option<String>,
}

/// Chooses the command. All log that the plan needs lies in `pg_wal`; the command has only to prove that
/// there is no more. Where the server's user can't run this program, a command that proves the same
/// without looking takes its place.
pub fn restore_command(owner: Option<&SystemUser>, standby: bool) -> Result<RestoreCommand> {
    let program = std::env::current_exe().map_err(|error| {
        Error::new(
            borealis_base::ErrorKind::Bug,
            format!("this program can't be found: {error}"),
        )
    })?;
    if may(owner, &program, 1) {
        let quoted = program.display().to_string().replace('\'', r"'\''");
        return Ok(RestoreCommand {
            command: format!("'{quoted}' wal fetch %f %p"),
            end_command: Some(format!("'{quoted}' wal finish")),
            notice: None,
        });
    }
    let who = owner.map_or("the server's user", |owner| owner.name.as_str());
    if standby {
        return Err(Error::refused(
            format!("{who} can't run {}", program.display()),
            "Install borealis where every user can run it, for example in /usr/local/bin.",
        ));
    }
    Ok(RestoreCommand {
        // The cut and the target keep recovery exact; this only says that nothing follows.
        command: "test -z %f".to_owned(),
        end_command: None,
        notice: Some(format!(
            "{who} can't run {}, so restore_command refuses every file; all log that is needed lies in pg_wal",
            program.display()
        )),
    })
}

/// What the configuration depends on besides the plan.
pub struct Wanted<'a> {
    /// The data directory.
    pub data_dir: &'a Path,
    /// The port, where one was asked for.
    pub port: Option<u16>,
    /// Who runs the server.
    pub owner: Option<&'a SystemUser>,
    /// Its programs, if they are installed here.
    pub binaries: Option<&'a Binaries>,
    /// Prepare a standby.
    pub standby: bool,
    /// See [`restore_command`].
    pub command: &'a RestoreCommand,
}

/// Makes the configuration of the restored cluster.
pub fn configuration(prepared: &Prepared, wanted: &Wanted<'_>) -> RestoredConfig {
    let server = &prepared.server;
    let data_dir = wanted.data_dir;
    let sockets = socket_directory(wanted.owner);
    let libraries = library_directories(wanted.binaries);
    let known_libraries = !libraries.is_empty();
    let parent_port = server
        .settings
        .number("port")
        .and_then(|port| u16::try_from(port).ok());
    let blobs: std::collections::BTreeSet<PathBuf> = prepared
        .manifest
        .files()
        .blobs
        .iter()
        .map(|blob| data_dir.join(&blob.name))
        .collect();
    let mut config = configure(
        &Origin {
            config: &server.config,
            settings: &server.settings,
            log_parameters: prepared.replayed.parameters,
        },
        &Place {
            data_dir,
            port: wanted.port.or(parent_port).unwrap_or(5432),
            socket_directory: &sockets,
            listen_addresses: None,
            cluster_name: &format!("{} restored", prepared.report.cluster),
            exists: &|path| path.exists() || blobs.contains(path),
            is_writable: &|path| may(wanted.owner, path, 2),
            // Where the server's programs are not here, nothing can be said about its libraries.
            has_library: &|name| !known_libraries || library_exists(name, &libraries),
        },
        &Recovery {
            restore_command: &wanted.command.command,
            end_command: wanted.command.end_command.as_deref(),
            branch: prepared.plan.branch,
            goal: if wanted.standby {
                Goal::Standby
            } else {
                Goal::Promote(prepared.plan.stop.start)
            },
        },
    );
    if prepared.replayed.in_place || holds_in_place_tablespaces(&prepared.manifest) {
        allow_in_place_tablespaces(&mut config);
    }
    let default = Path::new(DEFAULT_SOCKETS);
    if !sets_sockets(&config) && !may(wanted.owner, default, 2) {
        place_sockets(&mut config, &sockets);
    }
    config
}

/// Whether the backup holds tablespaces that are directories in `pg_tblspc` and not links.
fn holds_in_place_tablespaces(manifest: &Manifest) -> bool {
    let directories = manifest.files().directories.iter();
    let in_place = |name: &str| {
        name.strip_prefix("pg_tblspc/")
            .is_some_and(|rest| !rest.contains('/'))
    };
    directories
        .map(|directory| directory.name.as_str())
        .any(in_place)
}

/// Recovery ends in a panic where it finds such a directory (`CheckTablespaceDirectory` in `xlogrecovery.c`)
/// and the server was not told that it may.
fn allow_in_place_tablespaces(config: &mut RestoredConfig) {
    for file in &mut config.files {
        if file.path == "postgresql.auto.conf" {
            file.text.push_str("allow_in_place_tablespaces = on\n");
        }
    }
}

/// Whether a file of the configuration says where the sockets go.
fn sets_sockets(config: &RestoredConfig) -> bool {
    let sets = |(_, statement): (&str, Statement)| matches!(statement, Statement::Setting { name, .. } if name == SOCKETS);
    config
        .files
        .iter()
        .filter(|file| ["postgresql.conf", "postgresql.auto.conf"].contains(&file.path.as_str()))
        .any(|file| parse(&file.text).any(sets))
}

/// A server that was built for a socket directory which its new user can't write to would not start,
/// and no line of the configuration names that directory.
fn place_sockets(config: &mut RestoredConfig, sockets: &Path) {
    let line = format!(
        "{SOCKETS} = {}\n",
        quote_value(&sockets.display().to_string())
    );
    for file in &mut config.files {
        if file.path == "postgresql.auto.conf" {
            file.text.push_str(&line);
        }
    }
    config.auto_after_recovery.push_str(&line);
    config.warnings.push(format!(
        "{SOCKETS}: {DEFAULT_SOCKETS} is not writable here; {} is used",
        sockets.display()
    ));
}

fn socket_directory(owner: Option<&SystemUser>) -> PathBuf {
    let usual = PathBuf::from(DEFAULT_SOCKETS);
    if may(owner, &usual, 2) {
        usual
    } else {
        PathBuf::from("/tmp")
    }
}

fn library_directories(binaries: Option<&Binaries>) -> Vec<PathBuf> {
    let Some(binaries) = binaries else {
        return Vec::new();
    };
    let output = std::process::Command::new(binaries.program("pg_config"))
        .arg("--pkglibdir")
        .output();
    let told = output
        .ok()
        .filter(|output| output.status.success())
        .map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    // Debian keeps pg_config in another package; its layout is known.
    let beside = binaries.dir.parent().map(|prefix| {
        let lib = prefix.join("lib");
        [lib.join("postgresql"), lib]
    });
    told.into_iter()
        .chain(beside.into_iter().flatten())
        .filter(|directory| directory.is_dir())
        .collect()
}
