//! A real server in a temporary directory.

use std::fmt::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use borealis_base::{Position, SystemClock, Timestamp};
use borealis_pg_server::conninfo::{ConnInfo, Surroundings};
use borealis_pg_server::instance::{Binaries, Instance, Launch, StopMode, SystemUser, users};
use borealis_pg_server::instance::{command_as, running_pid};
use borealis_pg_server::link::SqlLink;
use tempfile::TempDir;

use crate::installed;

/// How long a server may take to start or stop.
pub const DEADLINE: Duration = Duration::from_mins(1);

/// The role of the tests.
pub const SUPERUSER: &str = "postgres";

/// Words that log lines of every test may hold.
const ALLOWED: [&str; 13] = [
    // What a server says that is stopped during a login, too (`ProcessInterrupts` in `postgres.c`).
    "canceling authentication due to timeout",
    "the database system is starting up",
    "the database system is shutting down",
    "the database system is not yet accepting connections",
    "the database system is not accepting connections",
    "terminating connection due to administrator command",
    // What its own processes say when they are told to end: at a stop, and when their database is dropped.
    "terminating autovacuum process due to administrator command",
    "terminating background worker",
    "terminating connection due to unexpected postmaster exit",
    "terminating connection because of crash of another server process",
    "could not receive data from client",
    "connection to client lost",
    "specified neither primary_conninfo nor restore_command",
];

/// What kind of server a test wants.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// The major version.
    pub major: u32,
    /// Page checksums.
    pub checksums: bool,
    /// Size of a log segment, in MiB.
    pub segment_mib: u32,
    /// The locale given to `initdb`.
    pub locale: String,
    /// Settings, later ones counting.
    pub settings: Vec<(String, String)>,
    /// Lines for the top of `pg_hba.conf`.
    pub hba: Vec<String>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            major: installed::default_major(),
            checksums: true,
            segment_mib: 16,
            locale: "C.UTF-8".to_owned(),
            settings: Vec::new(),
            hba: Vec::new(),
        }
    }
}

impl ServerOptions {
    /// Adds a setting.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds a line at the top of `pg_hba.conf`.
    #[must_use]
    pub fn with_hba(mut self, line: &str) -> Self {
        self.hba.push(line.to_owned());
        self
    }
}

/// A running server. Dropped, it is ended at once, its log is read, and an unexpected `PANIC`,
/// `FATAL`, `ERROR` or `WARNING` fails the test.
#[derive(Debug)]
pub struct TestServer {
    dir: TempDir,
    data_dir: PathBuf,
    port: u16,
    binaries: Binaries,
    user: Option<SystemUser>,
    instance: Option<Instance>,
    socket_dir: PathBuf,
    log_file: PathBuf,
    allowed: Vec<String>,
}

/// A port that nobody listens on now, and whose socket in `/tmp` no killed server of another user has left locked.
pub fn free_port() -> u16 {
    // Below those that the system gives to clients (`ip_local_port_range`). Another test that looks at the same moment must
    // not find the same one: within a process each is given once in a long time, and processes begin far from each other.
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 22_000;
    const APART: u32 = 7_919;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    let begin = std::process::id().wrapping_mul(APART);
    for _ in 0..COUNT {
        let given = GIVEN.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + begin.wrapping_add(given) % COUNT;
        let port = u16::try_from(port).expect("it is below 32,000");
        let sockets =
            ["/tmp", "/var/run/postgresql"].map(|at| format!("{at}/.s.PGSQL.{port}.lock"));
        let taken = sockets.iter().any(|socket| Path::new(socket).exists());
        if !taken && std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free");
}

/// The system user of test servers: `postgres` where the tests run as root.
pub fn system_user() -> Option<SystemUser> {
    users::is_root().then(|| users::by_name("postgres").expect("the system user `postgres` exists"))
}

/// Gives `path` to `user`.
pub fn give_to(path: &Path, user: Option<&SystemUser>) {
    if let Some(user) = user {
        chown(path, Some(user.uid), Some(user.gid)).expect("root may change owners");
    }
}

/// A temporary directory that belongs to the system user of test servers.
pub fn server_dir() -> TempDir {
    let dir = tempfile::Builder::new()
        .prefix("bor")
        .tempdir()
        .expect("the temporary directory is writable");
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))
        .expect("it is ours");
    give_to(dir.path(), system_user().as_ref());
    dir
}

impl TestServer {
    /// Makes a cluster and starts it.
    pub async fn start(options: ServerOptions) -> Self {
        let binaries = installed::binaries(options.major);
        let (dir, user) = (server_dir(), system_user());
        let data_dir = dir.path().join("data");
        let mut initdb = command_as(&binaries.program("initdb"), user.as_ref());
        initdb
            .current_dir("/")
            .arg("-D")
            .arg(&data_dir)
            .args(["-U", SUPERUSER, "-A", "trust", "--no-sync", "-E", "UTF8"])
            .arg(format!("--locale={}", options.locale))
            .arg(format!("--wal-segsize={}", options.segment_mib));
        if options.checksums {
            initdb.arg("--data-checksums");
        } else if options.major >= 18 {
            initdb.arg("--no-data-checksums");
        }
        let output = initdb.output().expect("initdb runs");
        assert!(
            output.status.success(),
            "initdb: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let mut server = Self::at(dir, data_dir, binaries, user);
        server.write_settings(&options);
        server.start_again().await;
        server
    }

    /// Takes over a data directory that something else made, such as a restore, and starts it.
    /// The directory itself is left behind when the server is dropped.
    pub async fn adopt(data_dir: &Path, major: u32, settings: &[(&str, &str)]) -> Self {
        let binaries = installed::binaries(major);
        let mut server = Self::at(server_dir(), data_dir.to_owned(), binaries, system_user());
        let settings: Vec<_> = settings
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        server.launch_with(settings);
        server.wait_ready().await;
        server
    }

    /// Takes over a server that something else started, such as a restore, and which writes its
    /// output to `log_file`. Its port and socket are those that it shows in `postmaster.pid`.
    /// The directory itself is left behind when the server is dropped.
    pub fn attach(data_dir: &Path, major: u32, log_file: &Path) -> Self {
        let binaries = installed::binaries(major);
        let mut server = Self::at(server_dir(), data_dir.to_owned(), binaries, system_user());
        let instance = Instance::attach(data_dir, log_file).expect("the server runs");
        let text = std::fs::read_to_string(data_dir.join("postmaster.pid")).expect("it runs");
        let line = |number| {
            text.lines()
                .nth(number)
                .expect("a line of miscadmin.h")
                .trim()
        };
        server.port = line(3).parse().expect("the fourth line is the port");
        server.socket_dir = PathBuf::from(line(4));
        log_file.clone_into(&mut server.log_file);
        server.instance = Some(instance);
        server
    }

    fn at(dir: TempDir, data_dir: PathBuf, binaries: Binaries, user: Option<SystemUser>) -> Self {
        Self {
            data_dir,
            port: free_port(),
            binaries,
            user,
            instance: None,
            socket_dir: dir.path().to_owned(),
            log_file: dir.path().join("server.log"),
            allowed: Vec::new(),
            dir,
        }
    }

    fn write_settings(&self, options: &ServerOptions) {
        // Dynamic shared memory lies in the data directory, so that killed servers leave none behind.
        let mut text = String::from(
            "shared_buffers = '32MB'\nmax_wal_senders = 10\nmax_replication_slots = 10\n\
             wal_level = 'replica'\nmax_prepared_transactions = 20\ntrack_commit_timestamp = on\n\
             fsync = off\nlisten_addresses = '127.0.0.1'\nlog_min_messages = 'warning'\n\
             lc_messages = 'C'\ntimezone = 'UTC'\nlog_timezone = 'UTC'\n\
             password_encryption = 'scram-sha-256'\nwal_keep_size = 0\n\
             dynamic_shared_memory_type = 'mmap'\n",
        );
        for (name, value) in &options.settings {
            let value = value.replace('\'', "''");
            writeln!(text, "{name} = '{value}'").expect("a string takes everything");
        }
        let conf = self.data_dir.join("postgresql.conf");
        let mut content = std::fs::read_to_string(&conf).expect("initdb wrote it");
        content.push_str(&text);
        std::fs::write(&conf, content).expect("it is writable");
        let hba = format!(
            "{}\nlocal all all trust\nlocal replication all trust\n\
             host all all 127.0.0.1/32 scram-sha-256\n\
             host replication all 127.0.0.1/32 scram-sha-256\n",
            options.hba.join("\n")
        );
        std::fs::write(self.data_dir.join("pg_hba.conf"), hba).expect("it is writable");
    }

    fn launch_with(&mut self, mut settings: Vec<(String, String)>) {
        settings.push(("port".to_owned(), self.port.to_string()));
        settings.push((
            "unix_socket_directories".to_owned(),
            self.socket_dir.display().to_string(),
        ));
        let launch = Launch {
            binaries: self.binaries.clone(),
            data_dir: self.data_dir.clone(),
            config_file: None,
            log_file: self.log_file(),
            user: self.user.clone(),
            settings,
        };
        self.instance = Some(launch.start().expect("the server starts"));
    }

    async fn wait_ready(&mut self) {
        self.wait_for(true).await;
    }

    async fn wait_for(&mut self, promoted: bool) {
        let info = self.info();
        let instance = self.instance.as_mut().expect("was launched");
        instance
            .wait_ready(&info, promoted, DEADLINE, &SystemClock)
            .await
            .unwrap_or_else(|error| panic!("{error}"));
    }

    /// Starts it with `standby.signal` in place and waits until it answers queries.
    pub async fn start_standby(&mut self) {
        std::fs::write(self.data_dir.join("standby.signal"), "").expect("it is writable");
        self.launch_with(Vec::new());
        self.wait_for(false).await;
    }

    /// Makes a standby that streams from this server, of a copy that is made while this one is stopped.
    /// Give this server a `wal_keep_size`: the standby has no slot.
    pub async fn make_standby(&mut self) -> Self {
        self.stop().await;
        let dir = server_dir();
        let data_dir = dir.path().join("data");
        let copied = std::process::Command::new("cp")
            .arg("-a")
            .args([&self.data_dir, &data_dir])
            .status();
        assert!(copied.expect("cp is installed").success());
        self.start_again().await;
        let mut standby = Self::at(dir, data_dir, self.binaries.clone(), self.user.clone());
        let conf = standby.data_dir.join("postgresql.conf");
        let mut text = std::fs::read_to_string(&conf).expect("it was copied");
        writeln!(
            text,
            "primary_conninfo = 'host={} port={} user={SUPERUSER}'\n\
             wal_retrieve_retry_interval = '200ms'",
            self.socket_dir.display(),
            self.port
        )
        .expect("a string takes everything");
        std::fs::write(&conf, text).expect("it is writable");
        // What its receiver says when the primary is gone.
        for words in [
            "could not connect to the primary server",
            "could not receive data from WAL stream",
            "could not send end-of-streaming message",
            "terminating walreceiver process",
        ] {
            standby.allow_in_log(words);
        }
        standby.start_standby().await;
        standby
    }

    /// Waits until this standby has replayed everything that `primary` has flushed; returns how far that is.
    pub async fn wait_replayed(&self, primary: &Self) -> Position {
        let flushed = "SELECT pg_current_wal_flush_lsn()::text";
        let until: Position = primary.value(flushed).await.parse().expect("a position");
        crate::wait_until("the standby to catch up", DEADLINE, async || {
            let at = "SELECT pg_last_wal_replay_lsn()::text";
            let at: Position = self.value(at).await.parse().expect("a position");
            (at >= until).then_some(())
        })
        .await;
        until
    }

    /// Where the timeline of its own began.
    pub fn switched_at(&self, timeline: u32) -> Position {
        let name = format!("pg_wal/{timeline:08X}.history");
        let text = std::fs::read_to_string(self.data_dir.join(name)).expect("it was promoted");
        let last = text.lines().rfind(|line| !line.is_empty()).expect("a line");
        let at = last.split('\t').nth(1).expect("a position");
        at.parse().expect("a position")
    }

    /// Ends recovery and waits until that is done.
    pub async fn promote(&mut self) {
        // Without waiting: replay may cancel the session that waits.
        self.sql("SELECT pg_promote(false)").await;
        self.wait_for(true).await;
    }

    /// Waits until recovery has ended.
    pub async fn wait_promoted(&mut self) {
        self.wait_for(true).await;
    }

    /// Starts it after a stop or a kill.
    pub async fn start_again(&mut self) {
        self.launch_with(Vec::new());
        self.wait_ready().await;
    }

    /// Stops it in order.
    pub async fn stop(&mut self) {
        self.end(StopMode::Fast).await;
    }

    /// Stops it at once; the next start recovers.
    pub async fn stop_immediately(&mut self) {
        self.end(StopMode::Immediate).await;
    }

    async fn end(&mut self, mode: StopMode) {
        if let Some(mut instance) = self.instance.take() {
            instance
                .stop(mode, DEADLINE, &SystemClock)
                .await
                .unwrap_or_else(|error| panic!("{error}"));
        }
    }

    /// Stops and starts it.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.start_again().await;
    }

    /// Kills all its processes at once.
    pub fn kill(&mut self) {
        if let Some(mut instance) = self.instance.take() {
            instance.kill().expect("it is ours");
        }
    }

    /// Whether its first process runs.
    pub fn is_running(&mut self) -> bool {
        self.instance.as_mut().is_some_and(Instance::is_running)
    }

    /// Lets log lines that hold `words` pass.
    pub fn allow_in_log(&mut self, words: &str) {
        self.allowed.push(words.to_owned());
    }

    /// A connection string for the superuser, over the socket.
    pub fn dsn(&self) -> String {
        format!(
            "host={} port={} user={SUPERUSER} dbname=postgres",
            self.socket_dir.display(),
            self.port
        )
    }

    /// How to reach it over the socket, as the superuser.
    pub fn info(&self) -> ConnInfo {
        Self::resolve(&self.dsn(), None)
    }

    /// How to reach it over TCP, as `user` with `password`; `more` goes to the end of the string.
    pub fn tcp_info(&self, user: &str, password: &str, more: &str) -> ConnInfo {
        let dsn = format!(
            "host=localhost hostaddr=127.0.0.1 port={} user={user} dbname=postgres {more}",
            self.port
        );
        Self::resolve(&dsn, Some(password))
    }

    fn resolve(dsn: &str, password: Option<&str>) -> ConnInfo {
        let surroundings = Surroundings {
            variables: password
                .map(|password| ("PGPASSWORD".to_owned(), password.to_owned()))
                .into_iter()
                .collect(),
            home: None,
            os_user: None,
            read: &|_| Err(std::io::ErrorKind::NotFound.into()),
        };
        ConnInfo::resolve(dsn, &surroundings).expect("the string is well formed")
    }

    /// A session in `database`, with an ordinary search path and no time limit.
    pub async fn session(&self, database: &str) -> SqlLink {
        let link = SqlLink::connect(&self.info().with_database(database))
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        link.run("RESET search_path; SET statement_timeout = 0; SET lock_timeout = 0")
            .await
            .expect("settings are allowed");
        link
    }

    /// Runs statements in `postgres`.
    pub async fn sql(&self, sql: &str) {
        let session = self.session("postgres").await;
        if let Err(error) = session.run(sql).await {
            panic!("{sql}: {error}");
        }
    }

    /// The first column of the only row, from `postgres`.
    pub async fn value(&self, sql: &str) -> String {
        let session = self.session("postgres").await;
        session
            .value(sql)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// Runs one of its programs to the end; returns its output.
    pub fn run_program(&self, name: &str, arguments: &[&str]) -> String {
        let output = command_as(&self.binaries.program(name), self.user.as_ref())
            .current_dir("/")
            .args(arguments)
            .output()
            .expect("the program is installed");
        assert!(
            output.status.success(),
            "{name}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The words at the end of `CREATE DATABASE` that choose a way to make it; none on 14, which copies files.
    pub fn strategy(&self, strategy: &str) -> String {
        match self.binaries.major {
            14 => String::new(),
            _ => format!("STRATEGY {strategy}"),
        }
    }

    /// The data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// A directory beside the data directory, which the server may write.
    pub fn scratch(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        if !path.exists() {
            std::fs::create_dir(&path).expect("the directory is ours");
            give_to(&path, self.user.as_ref());
        }
        path
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's clock.
    pub async fn now(&self) -> Timestamp {
        let micros = self
            .value("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint::text")
            .await;
        Timestamp(micros.parse().expect("a number"))
    }

    /// Waits until the server's clock has gone on by `duration`; returns what it shows then.
    pub async fn let_pass(&self, duration: Duration) -> Timestamp {
        let until = self.now().await.plus(duration);
        crate::wait_until("time to pass", DEADLINE + duration, async || {
            let now = self.now().await;
            (now >= until).then_some(now)
        })
        .await
    }

    /// The end of its log.
    pub async fn insert_position(&self) -> Position {
        let text = self.value("SELECT pg_current_wal_insert_lsn()::text").await;
        text.parse().expect("a position")
    }

    /// The programs.
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// Where its log goes.
    pub fn log_file(&self) -> PathBuf {
        self.log_file.clone()
    }

    /// Its log.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.log_file()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn unexpected(&self) -> Vec<String> {
        unexpected_lines(&self.log(), &self.allowed)
    }
}

fn unexpected_lines(log: &str, allowed: &[String]) -> Vec<String> {
    const LEVELS: [&str; 4] = ["PANIC:  ", "FATAL:  ", "ERROR:  ", "WARNING:  "];
    // Some majors put the names of settings in quotes, others do not.
    let plain = |text: &str| text.replace('"', "");
    let allowed: Vec<_> = ALLOWED
        .into_iter()
        .chain(allowed.iter().map(String::as_str))
        .map(plain)
        .collect();
    log.lines()
        .filter(|line| LEVELS.iter().any(|level| line.contains(level)))
        .filter(|line| !allowed.iter().any(|words| plain(line).contains(words)))
        .map(str::to_owned)
        .collect()
}

impl TestServer {
    /// A killed server leaves the segment that keeps others out of its directory (System V, 4,096 in all by default).
    /// Its identifier is the second number of the seventh line of the lock file (`miscadmin.h`).
    fn remove_shared_memory(&self) {
        let lock =
            std::fs::read_to_string(self.data_dir.join("postmaster.pid")).unwrap_or_default();
        let segment = lock
            .lines()
            .nth(6)
            .and_then(|line| line.split_whitespace().nth(1));
        if let Some(segment) = segment {
            let _ = std::process::Command::new("ipcrm")
                .args(["-m", segment])
                .output();
        }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.kill();
        // A server that was started behind our back would hold the directory and the port.
        if let Ok(Some(pid)) = running_pid(&self.data_dir)
            && let Ok(mut other) = Instance::attach(&self.data_dir, &self.log_file())
            && other.pid() == pid
        {
            let _ = other.kill();
        }
        self.remove_shared_memory();
        if std::thread::panicking() {
            eprintln!("server log:\n{}", self.log());
            return;
        }
        let unexpected = self.unexpected();
        assert!(
            unexpected.is_empty(),
            "unexpected in the server's log:\n{}",
            unexpected.join("\n")
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_scan_sees_what_was_not_allowed() {
        let log = "a LOG:  fine\nb ERROR:  division by zero\nc WARNING:  worn out\n\
                   d FATAL:  the database system is starting up\n\
                   e WARNING:  specified neither \"primary_conninfo\" nor \"restore_command\"\n";
        let lines = unexpected_lines(log, &["worn out".to_owned()]);
        assert_eq!(lines, ["b ERROR:  division by zero"]);
    }
}
