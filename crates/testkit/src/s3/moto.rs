//! Moto's server, a Python process: S3, and what else of AWS tests need. `scripts/setup test` installs it.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use hyper::{Method, StatusCode};
use tokio::process::{Child, Command};

use super::BUCKET;
use super::proxy::send;
use crate::server::free_port;
use crate::wait_until;

const DEADLINE: Duration = Duration::from_mins(1);

/// A running server. Dropped, it is killed.
#[derive(Debug)]
pub struct MotoServer {
    address: String,
    _child: Child,
}

/// The interpreter of the environment that `scripts/setup test` makes.
fn python() -> PathBuf {
    let named = std::env::var_os("BOREALIS_MOTO").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").expect("HOME names a folder"));
    let cache =
        std::env::var_os("XDG_CACHE_HOME").map_or_else(|| home().join(".cache"), Into::into);
    let folder = named.unwrap_or_else(|| cache.join("borealis/moto"));
    let python = folder.join("bin/python");
    assert!(
        python.exists(),
        "{} is missing: run scripts/setup test",
        python.display()
    );
    python
}

impl MotoServer {
    /// Starts one with an empty bucket.
    pub async fn start() -> Self {
        let port = free_port().to_string();
        let child = Command::new(python())
            .args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("python runs");
        let address = format!("127.0.0.1:{port}");
        wait_until("moto", DEADLINE, async || {
            let path = format!("/{BUCKET}");
            let made = send(&address, &Method::PUT, &path, &address, Bytes::new()).await;
            made.ok().filter(StatusCode::is_success)
        })
        .await;
        Self {
            address,
            _child: child,
        }
    }

    /// `127.0.0.1:port`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }
}
