//! Where a server is and how to log in to it, written the way every PostgreSQL program reads it:
//! a keyword string or a URI, completed by a service file, the `PG*` variables and libpq's defaults,
//! in this order. A password is taken from the surroundings and refused in the string itself,
//! because the process list shows arguments.

mod parse;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use zeroize::Zeroizing;

use crate::error::{Error, Result};
use parse::Options;

/// The Unix socket directory of a server that Debian packages; libpq as built there agrees.
pub const DEFAULT_SOCKET_DIRECTORY: &str = "/var/run/postgresql";

/// The wait for one host, where the string gives none.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// How TLS is used, with exactly libpq's meanings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    /// Never.
    Disable,
    /// Only where the server does not let us in without.
    Allow,
    /// Where the server offers it (the default).
    Prefer,
    /// Always; the certificate is checked only where a root certificate is at hand.
    Require,
    /// Always, with a certificate signed by a trusted authority.
    VerifyCa,
    /// As before, and the certificate names the host.
    VerifyFull,
}

/// Where trust begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootCert {
    /// The operating system's authorities.
    System,
    /// A file of PEM certificates.
    File(PathBuf),
}

/// Whether a login must be bound to the TLS channel it runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// Where possible (the default).
    Prefer,
    /// Always; a server that cannot is refused.
    Require,
}

/// Which of several hosts will do, with libpq's meanings (`target_session_attrs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetSession {
    /// The first that answers.
    Any,
    /// One whose transactions may write by default: not in recovery, and not
    /// `default_transaction_read_only`.
    ReadWrite,
    /// One whose transactions may not.
    ReadOnly,
    /// One that is not in recovery.
    Primary,
    /// One in recovery.
    Standby,
    /// One in recovery if any of the hosts is, else any.
    PreferStandby,
}

impl TargetSession {
    /// What to look for in turn, each time among all hosts.
    pub(crate) fn passes(self) -> &'static [Self] {
        match self {
            Self::Any => &[Self::Any],
            Self::ReadWrite => &[Self::ReadWrite],
            Self::ReadOnly => &[Self::ReadOnly],
            Self::Primary => &[Self::Primary],
            Self::Standby => &[Self::Standby],
            Self::PreferStandby => &[Self::Standby, Self::Any],
        }
    }

    /// Why a server will not do, by what it reports at login (`in_hot_standby` and
    /// `default_transaction_read_only`, as `PQconnectPoll` in `fe-connect.c` reads them); `None` if it will.
    pub(crate) fn unmet<'p>(
        self,
        parameter: impl Fn(&'static str) -> Option<&'p str>,
    ) -> Option<&'static str> {
        let in_recovery = parameter("in_hot_standby") == Some("on");
        let read_only = in_recovery || parameter("default_transaction_read_only") == Some("on");
        match self {
            Self::Any | Self::PreferStandby => None,
            Self::ReadWrite => read_only.then_some("the server takes no writes"),
            Self::ReadOnly => (!read_only).then_some("the server takes writes"),
            Self::Primary => in_recovery.then_some("the server is in recovery"),
            Self::Standby => (!in_recovery).then_some("the server is not in recovery"),
        }
    }
}

/// A password that no formatting shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Zeroizing<String>);

impl Password {
    /// Wraps a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(Zeroizing::new(secret.into()))
    }

    /// The secret itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// One place to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// A host name, an address, or a socket directory (begins with `/`).
    pub name: String,
    /// The address to use instead of asking a name service.
    pub address: Option<String>,
    /// The port.
    pub port: u16,
    /// For ordinary sessions.
    pub password: Option<Password>,
    /// For replication sessions, which the password file knows as database `replication`.
    pub replication_password: Option<Password>,
}

impl Host {
    /// Whether this is a Unix socket.
    pub fn is_socket(&self) -> bool {
        self.address.is_none() && self.name.starts_with('/')
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_socket() {
            write!(f, "{}/.s.PGSQL.{}", self.name, self.port)
        } else if self.name.contains(':') {
            write!(f, "[{}]:{}", self.name, self.port)
        } else {
            write!(f, "{}:{}", self.name, self.port)
        }
    }
}

/// TLS as asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// When, and how strictly.
    pub mode: SslMode,
    /// Where trust begins; `None` where none was named and `~/.postgresql/root.crt` is absent.
    pub root: Option<RootCert>,
    /// Our own certificate and key, both PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Binding of the login to the channel.
    pub channel_binding: ChannelBinding,
}

/// A complete description of how to reach a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnInfo {
    /// The places to try, in order; at least one.
    pub hosts: Vec<Host>,
    /// The role.
    pub user: String,
    /// The database of SQL sessions.
    pub database: String,
    /// TLS.
    pub tls: TlsSettings,
    /// The wait for each host.
    pub connect_timeout: Duration,
    /// Shown by the server; `borealis` where none was given.
    pub application_name: String,
    /// Command-line options for the server process.
    pub options: Option<String>,
    /// Which host will do.
    pub target: TargetSession,
}

/// A file of secrets or services as found.
#[derive(Debug, Clone)]
pub struct FoundFile {
    /// The content.
    pub text: String,
    /// The permission bits.
    pub mode: u32,
    /// Whether it is a plain file.
    pub is_file: bool,
}

/// What a connection string is completed from; a value, so that tests need no process state.
pub struct Surroundings<'a> {
    /// Environment variables.
    pub variables: BTreeMap<String, String>,
    /// The home directory.
    pub home: Option<PathBuf>,
    /// The operating system's name of this user.
    pub os_user: Option<String>,
    /// Reads a file.
    pub read: &'a dyn Fn(&Path) -> io::Result<FoundFile>,
}

impl Surroundings<'static> {
    /// Those of this process.
    pub fn of_process() -> Self {
        let variables: BTreeMap<_, _> = std::env::vars_os()
            .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
            .collect();
        let home = variables.get("HOME").map(PathBuf::from);
        let os_user = crate::instance::users::name_of_this_user();
        Self {
            variables,
            home,
            os_user,
            read: &read_file,
        }
    }
}

fn read_file(path: &Path) -> io::Result<FoundFile> {
    let meta = std::fs::metadata(path)?;
    Ok(FoundFile {
        text: std::fs::read_to_string(path)?,
        mode: meta.permissions().mode() & 0o7777,
        is_file: meta.is_file(),
    })
}

/// Option name and environment variable (`PQconninfoOptions`).
const VARIABLES: [(&str, &str); 19] = [
    ("host", "PGHOST"),
    ("hostaddr", "PGHOSTADDR"),
    ("port", "PGPORT"),
    ("user", "PGUSER"),
    ("dbname", "PGDATABASE"),
    ("password", "PGPASSWORD"),
    ("passfile", "PGPASSFILE"),
    ("sslmode", "PGSSLMODE"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("application_name", "PGAPPNAME"),
    ("options", "PGOPTIONS"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
    ("sslcrl", "PGSSLCRL"),
    ("require_auth", "PGREQUIREAUTH"),
    ("requirepeer", "PGREQUIREPEER"),
];

/// Options that libpq knows and whose absence here changes nothing that matters.
const HARMLESS: [&str; 17] = [
    "service",
    "servicefile",
    "fallback_application_name",
    "client_encoding",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
    "sslcompression",
    "sslsni",
    "krbsrvname",
    "gsslib",
    "gssencmode",
    "gssdelegation",
    "load_balance_hosts",
    "tty",
];

impl ConnInfo {
    /// Reads `text` with the surroundings of this process.
    pub fn from_process(text: &str) -> Result<Self> {
        Self::resolve(text, &Surroundings::of_process())
    }

    /// Reads `text`, completed from `surroundings`.
    ///
    /// # Errors
    /// `Usage` for a malformed string, `Refused` for a password in it, an unsafe password or key file,
    /// or an option that would be weakened by being ignored.
    pub fn resolve(text: &str, surroundings: &Surroundings<'_>) -> Result<Self> {
        let given = parse::parse(text)?;
        for secret in ["password", "sslpassword"] {
            if given.get(secret).is_some_and(|value| !value.is_empty()) {
                return Err(Error::SecretInArgument(secret));
            }
        }
        let mut options = given;
        complete(&mut options, surroundings)?;
        for name in options.keys() {
            let known = VARIABLES.iter().any(|(option, _)| option == name)
                || HARMLESS.contains(&name.as_str());
            match name.as_str() {
                "sslcrl"
                | "sslcrldir"
                | "require_auth"
                | "requirepeer"
                | "sslpassword"
                | "ssl_min_protocol_version"
                | "ssl_max_protocol_version"
                | "sslnegotiation"
                | "sslcertmode"
                | "replication" => {
                    return Err(Error::UnsupportedOption(name.clone()));
                }
                _ if known => {}
                _ => return Err(Error::ConnInfo(format!("unknown option `{name}`"))),
            }
        }
        if options.get("gssencmode").is_some_and(|m| m == "require") {
            return Err(Error::UnsupportedOption("gssencmode=require".to_owned()));
        }
        build(&options, surroundings)
    }

    /// The same server, another database.
    #[must_use]
    pub fn with_database(&self, database: &str) -> Self {
        Self {
            database: database.to_owned(),
            ..self.clone()
        }
    }

    /// Each host alone, in order.
    pub fn each_host(&self) -> impl Iterator<Item = Self> {
        self.hosts.iter().map(|host| Self {
            hosts: vec![host.clone()],
            ..self.clone()
        })
    }

    /// The same hosts for each kind of server that will do, in the order in which to look for them.
    pub fn passes(&self) -> impl Iterator<Item = Self> {
        let passes = self.target.passes().iter();
        passes.map(|target| self.with_target(*target))
    }

    /// The same hosts, of which another kind will do.
    #[must_use]
    pub fn with_target(&self, target: TargetSession) -> Self {
        Self {
            target,
            ..self.clone()
        }
    }
}

/// Adds what the service file and the environment give and the string does not.
fn complete(options: &mut Options, surroundings: &Surroundings<'_>) -> Result<()> {
    let variables = &surroundings.variables;
    let service = options
        .get("service")
        .or_else(|| variables.get("PGSERVICE"))
        .cloned();
    if let Some(service) = service.filter(|s| !s.is_empty()) {
        for (option, value) in read_service(&service, options, surroundings)? {
            options.entry(option).or_insert(value);
        }
    }
    for (option, variable) in VARIABLES {
        if let Some(value) = variables.get(variable).filter(|v| !v.is_empty()) {
            options
                .entry(option.to_owned())
                .or_insert_with(|| value.clone());
        }
    }
    Ok(())
}

fn read_service(
    service: &str,
    options: &Options,
    surroundings: &Surroundings<'_>,
) -> Result<Options> {
    let variables = &surroundings.variables;
    let own = options
        .get("servicefile")
        .or_else(|| variables.get("PGSERVICEFILE"))
        .map(PathBuf::from)
        .or_else(|| Some(surroundings.home.as_ref()?.join(".pg_service.conf")));
    let system = variables
        .get("PGSYSCONFDIR")
        .map(|dir| Path::new(dir).join("pg_service.conf"));
    for path in own.into_iter().chain(system) {
        match (surroundings.read)(&path) {
            Ok(file) => {
                if let Some(found) = parse::service_section(&file.text, service)? {
                    return Ok(found);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::file("read", path, error)),
        }
    }
    Err(Error::ConnInfo(format!("service `{service}` not found")))
}

fn build(options: &Options, surroundings: &Surroundings<'_>) -> Result<ConnInfo> {
    let get = |name: &str| {
        options
            .get(name)
            .filter(|v| !v.is_empty())
            .map(String::as_str)
    };
    let user = get("user")
        .or(surroundings.os_user.as_deref())
        .ok_or_else(|| Error::ConnInfo("no user is given and this user has no name".to_owned()))?;
    let database = get("dbname").unwrap_or(user);
    let mut hosts = hosts(get("host"), get("hostaddr"), get("port"))?;
    passwords(&mut hosts, options, user, database, surroundings)?;
    let connect_timeout = match get("connect_timeout").map(str::parse::<i64>) {
        None => DEFAULT_CONNECT_TIMEOUT,
        // libpq waits for ever at zero and never less than two seconds; for ever is not bounded.
        Some(Ok(seconds)) if seconds <= 0 => DEFAULT_CONNECT_TIMEOUT,
        Some(Ok(seconds)) => Duration::from_secs(seconds.max(2).unsigned_abs()),
        Some(Err(_)) => return Err(not_one_of("connect_timeout", "a number of seconds")),
    };
    let target = match get("target_session_attrs") {
        None | Some("any") => TargetSession::Any,
        Some("read-write") => TargetSession::ReadWrite,
        Some("read-only") => TargetSession::ReadOnly,
        Some("primary") => TargetSession::Primary,
        Some("standby") => TargetSession::Standby,
        Some("prefer-standby") => TargetSession::PreferStandby,
        Some(_) => {
            return Err(not_one_of(
                "target_session_attrs",
                "any, read-write, read-only, primary, standby or prefer-standby",
            ));
        }
    };
    Ok(ConnInfo {
        hosts,
        user: user.to_owned(),
        database: database.to_owned(),
        tls: tls_settings(&get, surroundings)?,
        connect_timeout,
        application_name: get("application_name").unwrap_or("borealis").to_owned(),
        options: get("options").map(str::to_owned),
        target,
    })
}

fn not_one_of(option: &str, wanted: &str) -> Error {
    Error::ConnInfo(format!("option `{option}` must be {wanted}"))
}

fn tls_settings<'o>(
    get: &dyn Fn(&str) -> Option<&'o str>,
    surroundings: &Surroundings<'_>,
) -> Result<TlsSettings> {
    let user_file = |name: &str| {
        let path = surroundings.home.as_ref()?.join(".postgresql").join(name);
        (surroundings.read)(&path).ok().map(|_| path)
    };
    let root = match get("sslrootcert") {
        Some("system") => Some(RootCert::System),
        Some(path) => Some(RootCert::File(path.into())),
        None => user_file("root.crt").map(RootCert::File),
    };
    let system = root == Some(RootCert::System);
    let mode = match get("sslmode") {
        None if system => SslMode::VerifyFull,
        None | Some("prefer") => SslMode::Prefer,
        Some("disable") => SslMode::Disable,
        Some("allow") => SslMode::Allow,
        Some("require") => SslMode::Require,
        Some("verify-ca") => SslMode::VerifyCa,
        Some("verify-full") => SslMode::VerifyFull,
        Some(_) => {
            return Err(not_one_of(
                "sslmode",
                "disable, allow, prefer, require, verify-ca or verify-full",
            ));
        }
    };
    if system && mode != SslMode::VerifyFull {
        // Any public authority signs for anyone's host: without the name it proves nothing.
        return Err(Error::ConnInfo(
            "sslrootcert=system needs sslmode=verify-full".to_owned(),
        ));
    }
    if root.is_none() && matches!(mode, SslMode::VerifyCa | SslMode::VerifyFull) {
        return Err(Error::ConnInfo(
            "this sslmode needs a root certificate: give sslrootcert=FILE or sslrootcert=system"
                .to_owned(),
        ));
    }
    let identity = match (get("sslcert"), get("sslkey")) {
        (Some(cert), Some(key)) => Some((cert.into(), key.into())),
        (Some(cert), None) => {
            let key = user_file("postgresql.key").ok_or_else(|| {
                Error::ConnInfo("option `sslcert` is given without `sslkey`".to_owned())
            })?;
            Some((cert.into(), key))
        }
        (None, key) => user_file("postgresql.crt").and_then(|cert| {
            let key = key
                .map(PathBuf::from)
                .or_else(|| user_file("postgresql.key"))?;
            Some((cert, key))
        }),
    };
    let channel_binding = match get("channel_binding") {
        None | Some("prefer") => ChannelBinding::Prefer,
        Some("disable") => ChannelBinding::Disable,
        Some("require") => ChannelBinding::Require,
        Some(_) => return Err(not_one_of("channel_binding", "disable, prefer or require")),
    };
    Ok(TlsSettings {
        mode,
        root,
        identity,
        channel_binding,
    })
}

fn hosts(names: Option<&str>, addresses: Option<&str>, ports: Option<&str>) -> Result<Vec<Host>> {
    let list = |text: Option<&str>| -> Vec<String> {
        text.map(|t| t.split(',').map(|p| p.trim().to_owned()).collect())
            .unwrap_or_default()
    };
    let (names, addresses, ports) = (list(names), list(addresses), list(ports));
    let count = names.len().max(addresses.len()).max(1);
    if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
        return Err(Error::ConnInfo(format!(
            "{} host names but {} addresses",
            names.len(),
            addresses.len()
        )));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(Error::ConnInfo(format!(
            "{} ports but {count} hosts",
            ports.len()
        )));
    }
    let mut hosts = Vec::with_capacity(count);
    for at in 0..count {
        let address = addresses.get(at).filter(|a| !a.is_empty()).cloned();
        let name = names.get(at).filter(|n| !n.is_empty()).cloned();
        let port = match ports.get(at).or_else(|| ports.first()).map(String::as_str) {
            None | Some("") => 5432,
            Some(port) => port
                .parse::<u16>()
                .ok()
                .filter(|port| *port > 0)
                .ok_or_else(|| not_one_of("port", "a number from 1 to 65535"))?,
        };
        hosts.push(Host {
            name: name
                .or_else(|| address.clone())
                .unwrap_or_else(|| DEFAULT_SOCKET_DIRECTORY.to_owned()),
            address,
            port,
            password: None,
            replication_password: None,
        });
    }
    Ok(hosts)
}

fn passwords(
    hosts: &mut [Host],
    options: &Options,
    user: &str,
    database: &str,
    surroundings: &Surroundings<'_>,
) -> Result<()> {
    if let Some(secret) = options.get("password").filter(|p| !p.is_empty()) {
        for host in hosts {
            host.password = Some(Password::new(secret.clone()));
            host.replication_password.clone_from(&host.password);
        }
        return Ok(());
    }
    let named = options.get("passfile").filter(|p| !p.is_empty());
    let Some(path) = named
        .map(PathBuf::from)
        .or_else(|| Some(surroundings.home.as_ref()?.join(".pgpass")))
    else {
        return Ok(());
    };
    let file = match (surroundings.read)(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => return Ok(()),
        Err(error) => return Err(Error::file("read", path, error)),
    };
    if !file.is_file {
        return Err(Error::UnsafeFile {
            path,
            problem: "the password file is not a plain file".to_owned(),
        });
    }
    if file.mode & 0o077 != 0 {
        // libpq ignores such a file with a warning; a login without it would only fail less clearly.
        return Err(Error::UnsafeFile {
            path,
            problem: format!(
                "the password file has mode {:04o}; others must not read it (0600)",
                file.mode
            ),
        });
    }
    let text = Zeroizing::new(file.text);
    for host in hosts {
        let name = if host.is_socket() && host.name == DEFAULT_SOCKET_DIRECTORY {
            "localhost"
        } else {
            &host.name
        };
        let port = host.port.to_string();
        let find =
            |database| parse::pass_line(&text, name, &port, database, user).map(Password::new);
        let ordinary = find(database);
        host.replication_password = find("replication").or_else(|| ordinary.clone());
        host.password = ordinary;
    }
    Ok(())
}

/// Refuses a private key that others may read: 0600, or 0640 where it belongs to root
/// (`initialize_SSL` in `fe-secure-openssl.c`).
pub(crate) fn check_key_file(path: &Path) -> Result<()> {
    let meta = std::fs::metadata(path).map_err(|e| Error::file("read", path, e))?;
    let mode = meta.permissions().mode() & 0o7777;
    let forbidden = if meta.uid() == 0 { 0o037 } else { 0o077 };
    if mode & forbidden != 0 {
        return Err(Error::UnsafeFile {
            path: path.to_owned(),
            problem: format!("the private key has mode {mode:04o}; others must not read it (0600)"),
        });
    }
    Ok(())
}
