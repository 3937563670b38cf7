//! A throwaway PostgreSQL server of any supported major.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use borealis_pg_format::Version;
use borealis_testkit::installed::{DEBIAN_MAJOR, binaries};
use tempfile::TempDir;

/// Clients, which serve every major.
const CLIENTS: [&str; 3] = ["psql", "pgbench", "pg_waldump"];

/// A cluster in a directory that goes away with this value.
pub struct Server {
    home: TempDir,
    version: Version,
    programs: PathBuf,
    clients: PathBuf,
    running: bool,
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().expect("id runs");
    id.stdout.trim_ascii() == b"0"
}

fn checked(command: &mut Command) -> Output {
    let output = command.output().expect("the program starts");
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    output
}

impl Server {
    /// Makes a cluster with page checksums, not started.
    pub fn create(version: Version, configuration: &str) -> Self {
        // "base" and "database" in the path: no rule may look at them.
        let home = tempfile::Builder::new()
            .prefix("database-base-")
            .tempdir()
            .expect("a temporary directory");
        let server = Self {
            home,
            version,
            programs: binaries(version.major()).dir,
            clients: binaries(DEBIAN_MAJOR).dir,
            running: false,
        };
        if is_root() {
            checked(
                Command::new("chown")
                    .arg("postgres:postgres")
                    .arg(server.home()),
            );
        }
        checked(
            server
                .command("initdb")
                // Of no caller's surroundings: the workload has characters that only UTF-8 can hold.
                .args(["--locale=C.UTF-8", "-E", "UTF8"])
                .args(["-k", "-N", "-A", "trust", "-U", "postgres", "-D"])
                .arg(server.data()),
        );
        let file = server.data().join("postgresql.conf");
        let defaults = fs::read_to_string(&file).expect("the configuration is read");
        let socket = server.home().display();
        fs::write(
            &file,
            format!(
                "{defaults}\nlisten_addresses = ''\nunix_socket_directories = '{socket}'\nfsync = off\n{configuration}\n"
            ),
        )
        .expect("the configuration is written");
        server
    }

    pub fn version(&self) -> Version {
        self.version
    }

    pub fn home(&self) -> &Path {
        self.home.path()
    }

    pub fn data(&self) -> PathBuf {
        self.home().join("data")
    }

    /// A program of the server's version, or a client, run as a user that the server accepts.
    pub fn command(&self, program: &str) -> Command {
        let folder = if CLIENTS.contains(&program) {
            &self.clients
        } else {
            &self.programs
        };
        let program = folder.join(program);
        let mut command = if is_root() {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--"]).arg(&program);
            command
        } else {
            Command::new(program)
        };
        command
            .current_dir(self.home())
            .env("PGHOST", self.home())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres");
        command
    }

    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = checked(self.command(program).args(arguments));
        String::from_utf8(output.stdout).expect("readable output")
    }

    pub fn start(&mut self) {
        let (data, log) = (self.data(), self.home().join("log"));
        let (data, log) = (data.to_str().expect("UTF-8"), log.to_str().expect("UTF-8"));
        self.run("pg_ctl", &["-w", "-s", "-D", data, "-l", log, "start"]);
        self.running = true;
    }

    pub fn stop(&mut self) {
        self.end("fast");
    }

    /// Ends the server as a crash does.
    pub fn kill(&mut self) {
        self.end("immediate");
    }

    fn end(&mut self, mode: &str) {
        self.running = false;
        let data = self.data();
        let data = data.to_str().expect("UTF-8");
        self.run("pg_ctl", &["-w", "-s", "-m", mode, "-D", data, "stop"]);
    }

    /// Runs SQL, each text in a transaction of its own, all in one session. Columns of the answer are
    /// separated by `|`.
    pub fn sql(&self, texts: &[&str]) -> String {
        let mut arguments = vec!["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"];
        for text in texts {
            arguments.extend(["-c", text]);
        }
        self.run("psql", &arguments).trim_end().to_owned()
    }

    /// Runs a script. Its variable `strategies` says whether databases can be made in two ways.
    pub fn script(&self, contents: &str) {
        let file = self.home().join("script.sql");
        fs::write(&file, contents).expect("the script is written");
        let file = file.to_str().expect("UTF-8");
        let strategies = format!("strategies={}", self.version >= Version::V15);
        self.run(
            "psql",
            &[
                "-X",
                "-q",
                "-v",
                "ON_ERROR_STOP=1",
                "-v",
                &strategies,
                "-f",
                file,
            ],
        );
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.running {
            let data = self.data();
            let stop = self
                .command("pg_ctl")
                .args(["-w", "-s", "-m", "immediate", "stop", "-D"])
                .arg(data)
                .status();
            drop(stop);
        }
    }
}
