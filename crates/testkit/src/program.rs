//! The `borealis` program on a repository of its own, as a person runs it.
//!
//! A [`Site`] is a folder with a repository, a key file and a configuration file that names both and
//! the source. [`Protect`] is a `borealis protect` in the background.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use std::os::unix::fs::PermissionsExt;

use borealis_base::{Position, Timestamp};
use borealis_pg_server::instance::binaries::BIN_VARIABLE;
use borealis_pg_server::instance::{Binaries, SystemUser};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::server::{free_port, server_dir, system_user};
use crate::{TestServer, s3, wait_until};

/// How long a condition on the repository may take to come true. Two cores run several servers.
pub const DEADLINE: Duration = Duration::from_mins(2);

/// The name that tests give their cluster.
pub const CLUSTER: &str = "main";

/// The log of a restored server, in its data directory.
const RESTORE_LOG: &str = "borealis_restore.log";

/// The file without which no server starts.
pub const CONTROL_FILE: &str = "global/pg_control";

/// What a run of the program gave.
#[derive(Debug, Clone)]
pub struct Answer {
    /// What was run.
    pub arguments: String,
    /// The exit code; `None` where a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Answer {
    /// Fails the test unless the program ended with `code` and did not panic.
    #[must_use]
    pub fn expect(self, code: i32) -> Self {
        assert!(
            self.code == Some(code) && !self.stderr.contains("panicked"),
            "expected exit code {code}: {self}"
        );
        self
    }

    /// Fails the test unless one of the two outputs holds `words`.
    #[must_use]
    pub fn says(self, words: &str) -> Self {
        assert!(
            self.stdout.contains(words) || self.stderr.contains(words),
            "nothing is said of `{words}`: {self}"
        );
        self
    }

    /// The answer in JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self}"))
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "borealis {} ended with {:?}\nstdout:\n{}\nstderr:\n{}",
            self.arguments, self.code, self.stdout, self.stderr
        )
    }
}

/// The text of a JSON field.
pub fn text(value: &Value, field: &str) -> String {
    match value.get(field) {
        Some(Value::String(text)) => text.clone(),
        _ => panic!("no text `{field}` in {value:#}"),
    }
}

/// The position in a JSON field.
pub fn position(value: &Value, field: &str) -> Position {
    text(value, field).parse().expect("a position")
}

/// The moment in a JSON field, if it holds one.
pub fn moment(value: &Value, field: &str) -> Option<Timestamp> {
    let text = value.get(field)?.as_str()?;
    Some(text.parse().expect("a moment"))
}

/// A repository with its key file and configuration.
#[derive(Debug)]
pub struct Site {
    dir: TempDir,
    program: PathBuf,
    binaries: Binaries,
    user: Option<SystemUser>,
    /// The repository's URL where it is no folder.
    url: Option<String>,
    /// The root key's URL where it is not the key file.
    key: Option<String>,
    /// What the program finds in its environment besides.
    environment: Vec<(String, String)>,
}

impl Site {
    /// A folder and a configuration for `server`; no repository yet.
    pub fn bare(program: &str, server: &TestServer) -> Self {
        let dir = server_dir();
        let site = Self {
            dir,
            program: PathBuf::from(program),
            binaries: server.binaries().clone(),
            user: None,
            url: None,
            key: None,
            environment: Vec::new(),
        };
        site.configure(&server.dsn());
        site
    }

    /// A configuration for `server` whose repository is the bucket at `url`; no repository yet.
    pub fn in_bucket(program: &str, server: &TestServer, url: &str) -> Self {
        let mut site = Self::bare(program, server);
        site.url = Some(url.to_owned());
        site.configure(&server.dsn());
        site
    }

    /// With a repository.
    pub async fn init(program: &str, server: &TestServer) -> Self {
        let site = Self::bare(program, server);
        site.ok(&["init"]).await;
        site
    }

    /// With a repository, and everything run as the system user of test servers, from a place where that
    /// user can: for a standby, which reads the repository itself.
    pub async fn init_as_server_user(program: &str, server: &TestServer) -> Self {
        let mut site = Self::bare(program, server);
        site.user = system_user();
        let copy = site.dir.path().join("borealis");
        std::fs::copy(program, &copy).expect("it is built");
        std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755))
            .expect("it is ours");
        site.program = copy;
        site.ok(&["init"]).await;
        site
    }

    /// Names another source in the configuration.
    pub fn configure(&self, source: &str) {
        let key = self.key.as_ref().map_or_else(
            || format!("key_file = \"{}\"", self.key_file().display()),
            |url| format!("key = \"{url}\""),
        );
        let text = format!(
            "repository = \"{}\"\n{key}\nsource = \"{source}\"\n",
            self.url
                .clone()
                .unwrap_or_else(|| self.repository().display().to_string()),
        );
        std::fs::write(self.dir.path().join("config.toml"), text).expect("it is ours");
    }

    /// Names another root key in the configuration, by its URL.
    pub fn use_key(&mut self, url: &str, source: &str) {
        self.key = Some(url.to_owned());
        self.configure(source);
    }

    /// Gives the program a variable, from the next run on.
    pub fn set_variable(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// The folder of all this.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The repository's folder.
    pub fn repository(&self) -> PathBuf {
        self.dir.path().join("repository")
    }

    /// The key file.
    pub fn key_file(&self) -> PathBuf {
        self.dir.path().join("borealis.key")
    }

    /// The names of all objects in the repository, in order.
    pub fn objects(&self) -> Vec<String> {
        let mut names: Vec<_> = files_below(&self.repository())
            .into_iter()
            .map(|path| {
                let name = path.strip_prefix(self.repository()).expect("it is below");
                name.display().to_string()
            })
            .collect();
        names.sort();
        names
    }

    /// The program, with nothing of the caller's surroundings that would redirect it.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if ["PG", "BOREALIS_", "AWS_", "VAULT_"]
                .iter()
                .any(|theirs| name.starts_with(theirs))
            {
                command.env_remove(&*name);
            }
        }
        if self.url.is_some() {
            command.envs(s3::environment());
        }
        command
            .args(arguments)
            .env(BIN_VARIABLE, &self.binaries.dir)
            .env("BOREALIS_CONFIG", self.dir.path().join("config.toml"))
            .env("NO_COLOR", "1")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        if let Some(user) = &self.user {
            command.uid(user.uid).gid(user.gid).env("HOME", &user.home);
        }
        command
    }

    /// Runs it to the end.
    pub async fn run(&self, arguments: &[&str]) -> Answer {
        let output = self.command(arguments).output().await.expect("it is built");
        Answer {
            arguments: arguments.join(" "),
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs it to a good end; returns what it printed.
    pub async fn ok(&self, arguments: &[&str]) -> String {
        self.run(arguments).await.expect(0).stdout
    }

    /// Runs it to a good end with `--json`; returns its answer.
    pub async fn json(&self, arguments: &[&str]) -> Value {
        let arguments = [arguments, &["--json"]].concat();
        self.run(&arguments).await.expect(0).json()
    }

    /// Merges the log that is stored, the newest included; returns how many log pieces were merged.
    pub async fn merge_log(&self) -> u64 {
        let report = self
            .json(&["maintain", "--once", "--merge-after", "0s"])
            .await;
        let lineages = report["lineages"].as_array().expect("it is a list");
        let merged = lineages.iter().map(|done| done["pieces_merged"].as_u64());
        merged.map(Option::unwrap_or_default).sum()
    }

    /// The status of the only cluster; `None` while there is none.
    pub async fn status(&self) -> Option<Value> {
        let report = self.json(&["status"]).await;
        report["clusters"].get(0).cloned()
    }

    /// Waits until the status of the only cluster satisfies `condition`; returns it.
    pub async fn wait_status(
        &self,
        what: &str,
        mut condition: impl FnMut(&Value) -> bool,
    ) -> Value {
        wait_until(what, DEADLINE, async || {
            self.status().await.filter(&mut condition)
        })
        .await
    }

    /// Waits until everything up to `until` can be restored.
    pub async fn wait_restorable(&self, until: Position) {
        self.wait_status(&format!("{until} to be restorable"), |status| {
            newest_window(status).is_some_and(|window| position(window, "latest_position") >= until)
        })
        .await;
    }

    /// Waits until the moment `until` is settled and can be restored.
    pub async fn wait_settled(&self, until: Timestamp) {
        self.wait_status(&format!("{until} to be settled"), |status| {
            moment(status, "latest_restorable_time").is_some_and(|time| time >= until)
        })
        .await;
    }

    /// The plan of a restore to `to`.
    pub async fn plan(&self, to: &str) -> Value {
        let target = self.target("planned");
        let arguments = ["restore", "--to", to, "--target-dir", &target, "--dry-run"];
        let plan = self.json(&arguments).await;
        assert!(!Path::new(&target).exists(), "--dry-run wrote {target}");
        plan
    }

    /// A directory in the site's folder.
    pub fn target(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// Restores to `to`, in the directory `name`, starts the server and takes it over.
    pub async fn restore(&self, to: &str, name: &str, more: &[&str]) -> Restored {
        let (target, port) = (self.target(name), free_port().to_string());
        let arguments = ["restore", "--to", to, "--target-dir", &target];
        let start = ["--start", "--port", &port];
        let answer = self
            .json(&[&arguments[..], &start[..], more].concat())
            .await;
        let log_file = Path::new(&target).join(RESTORE_LOG);
        let server = TestServer::attach(Path::new(&target), self.binaries.major, &log_file);
        assert_eq!(server.port().to_string(), port, "--port was not followed");
        let plan = answer.get("plan").unwrap_or(&answer).clone();
        Restored {
            server,
            plan,
            target: PathBuf::from(target),
        }
    }
}

/// The window that goes furthest.
pub fn newest_window(status: &Value) -> Option<&Value> {
    let windows = status["windows"].as_array()?;
    windows
        .iter()
        .max_by_key(|window| position(window, "latest_position"))
}

/// All files below a folder.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files_below(&entry.path())),
            Ok(_) => found.push(entry.path()),
            // It went away meanwhile, as the temporary file of an object does.
            Err(_) => {}
        }
    }
    found
}

/// A restored server that runs. Dropped, it is ended, its log is read, and its directory is removed.
#[derive(Debug)]
pub struct Restored {
    // Before the directory: fields are dropped in this order, and a running server writes into it.
    /// The server.
    pub server: TestServer,
    /// The plan that was carried out.
    pub plan: Value,
    target: PathBuf,
}

impl Restored {
    /// The position up to which records were replayed.
    pub fn position(&self) -> Position {
        position(&self.plan, "position")
    }

    /// Where the last record that was replayed begins.
    pub fn last_record_start(&self) -> Position {
        position(&self.plan, "last_record_start")
    }

    /// Ends the server, reads its log and removes the directory.
    pub fn remove(self) {
        let target = self.target.clone();
        drop(self);
        std::fs::remove_dir_all(&target).expect("a dead server's directory can be removed");
    }
}

/// A `borealis protect` in the background. Dropped, it is killed, and an unexpected error that it
/// logged fails the test.
#[derive(Debug)]
pub struct Protect {
    child: Child,
    stderr: PathBuf,
    allowed: Vec<String>,
}

impl Protect {
    /// Starts it; does not wait.
    pub fn start(site: &Site, more: &[&str]) -> Self {
        let (out, stderr) = tempfile::Builder::new()
            .prefix("protect")
            .suffix(".log")
            .tempfile_in(site.path())
            .expect("the folder is ours")
            .keep()
            .expect("it can be kept");
        let arguments = [&["protect", "--cluster", CLUSTER][..], more].concat();
        let child = site
            .command(&arguments)
            .stdout(Stdio::null())
            .stderr(out)
            .spawn()
            .expect("it is built");
        Self {
            child,
            stderr,
            allowed: Vec::new(),
        }
    }

    /// Starts it and waits until a base backup is restorable.
    pub async fn begin(site: &Site, more: &[&str]) -> Self {
        let mut protect = Self::start(site, more);
        protect.wait_window(site).await;
        protect
    }

    /// Waits until something can be restored; fails at once if the program ends instead.
    pub async fn wait_window(&mut self, site: &Site) {
        wait_until("a base backup", DEADLINE, async || {
            self.assert_running();
            let status = site.status().await?;
            moment(&status, "latest_restorable_time").map(|_| ())
        })
        .await;
    }

    /// Fails the test if the program has ended.
    pub fn assert_running(&mut self) {
        if let Some(status) = self.child.try_wait().expect("it is our child") {
            panic!("protect ended with {status}:\n{}", self.log());
        }
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("it was not waited for yet")
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// Lets logged errors that hold `words` pass.
    pub fn allow_in_log(&mut self, words: &str) {
        self.allowed.push(words.to_owned());
    }

    fn signal(&self, signal: Signal) {
        let number = i32::try_from(self.pid()).expect("process numbers are small");
        let pid = Pid::from_raw(number).expect("no process is 0");
        kill_process(pid, signal).expect("it is our child");
    }

    /// Waits until it ends by itself; returns its exit code.
    pub async fn wait_end(&mut self) -> Option<i32> {
        let ended = tokio::time::timeout(DEADLINE, self.child.wait()).await;
        let Ok(status) = ended else {
            panic!("protect has not ended:\n{}", self.log());
        };
        status.expect("it is our child").code()
    }

    /// Asks it to stop; it must end well.
    pub async fn stop(mut self) {
        self.signal(Signal::TERM);
        let code = self.wait_end().await;
        assert_eq!(code, Some(0), "protect after SIGTERM:\n{}", self.log());
    }

    /// Kills it and waits until it is gone.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("it is our child");
    }

    /// Holds it, as a machine without time for it would.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn unexpected(&self) -> Vec<String> {
        let log = self.log();
        log.lines()
            .filter(|line| is_trouble(line))
            .filter(|line| !self.allowed.iter().any(|words| line.contains(words)))
            .map(str::to_owned)
            .collect()
    }
}

/// Whether a line of the log is an error, not a warning that tells of one.
fn is_trouble(line: &str) -> bool {
    line.split_whitespace().nth(1) == Some("ERROR")
        || line.starts_with("defect:")
        || line.contains("panicked")
}

impl Drop for Protect {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.start_kill();
        }
        if std::thread::panicking() {
            eprintln!("protect's log:\n{}", self.log());
            return;
        }
        let unexpected = self.unexpected();
        assert!(
            unexpected.is_empty(),
            "unexpected in protect's log:\n{}",
            unexpected.join("\n")
        );
    }
}
