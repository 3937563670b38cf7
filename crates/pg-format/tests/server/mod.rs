//! A throwaway PostgreSQL server for tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

const BIN: &str = "/usr/lib/postgresql/15/bin";

/// A cluster in a directory that goes away with this value.
pub struct Server {
    home: TempDir,
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
    pub fn create(configuration: &str) -> Self {
        // "base" and "database" in the path: no rule may look at them.
        let home = tempfile::Builder::new()
            .prefix("database-base-")
            .tempdir()
            .expect("a temporary directory");
        let server = Self {
            home,
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

    pub fn home(&self) -> &Path {
        self.home.path()
    }

    pub fn data(&self) -> PathBuf {
        self.home().join("data")
    }

    /// A program of the server's version, run as a user that it accepts.
    pub fn command(&self, program: &str) -> Command {
        let program = format!("{BIN}/{program}");
        let mut command = if is_root() {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--", &program]);
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
        self.running = false;
        let data = self.data();
        self.run(
            "pg_ctl",
            &[
                "-w",
                "-s",
                "-m",
                "fast",
                "-D",
                data.to_str().expect("UTF-8"),
                "stop",
            ],
        );
    }

    /// Ends the server as a crash does.
    pub fn kill(&mut self) {
        self.running = false;
        let data = self.data();
        let data = data.to_str().expect("UTF-8");
        self.run(
            "pg_ctl",
            &["-w", "-s", "-m", "immediate", "-D", data, "stop"],
        );
    }

    /// Runs SQL, each text in a transaction of its own, all in one session.
    pub fn sql(&self, texts: &[&str]) -> String {
        let mut arguments = vec!["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"];
        for text in texts {
            arguments.extend(["-c", text]);
        }
        self.run("psql", &arguments).trim_end().to_owned()
    }

    /// Runs a script.
    pub fn script(&self, contents: &str) {
        let file = self.home().join("script.sql");
        fs::write(&file, contents).expect("the script is written");
        let file = file.to_str().expect("UTF-8");
        self.run("psql", &["-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", file]);
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
