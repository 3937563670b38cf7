//! A socket by which other commands on this machine talk to a running `protect`.
//!
//! An idle server writes no log, and nothing is stored each second only to say so. When somebody asks
//! (`status`, `restore --to '5 seconds ago'`), the running `protect` settles the present moment and
//! stores that, and only then. One request and one answer a connection, each a line of JSON.

use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use borealis_base::{LineageId, Position, Timestamp};
use borealis_repository::store::Usage;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use crate::error::{Error, FileContext, Result};

/// Requests that may wait.
pub const REQUESTS_MAX: usize = 16;
/// Bytes of a request or an answer.
const LINE_BYTES_MAX: u64 = 4096;
/// How long a client waits for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Settle the present and store it.
    Settle,
    /// Store the log up to here as soon as it has come, without waiting for the flush interval. Answered
    /// at once.
    Flush {
        /// First position that may wait.
        through: Position,
    },
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The latest restorable time, which the repository now holds; `None` if nothing is settled yet.
    pub settled_through: Option<Timestamp>,
    /// Requests and bytes since this `protect` started; `None` from one that does not tell.
    #[serde(default)]
    pub usage: Option<Usage>,
}

/// A request with the way to answer it. Dropping it answers that nothing could be done.
#[derive(Debug)]
pub struct Asked {
    /// The request.
    pub request: Request,
    /// Takes the answer.
    pub answer: oneshot::Sender<Answer>,
}

/// Where the socket of a lineage lies on this machine; whoever asks is told by the ledger. A service has a
/// folder that others see too, unlike its temporary one (`RuntimeDirectory=` and `PrivateTmp=` in `systemd.exec`).
pub fn socket_path(lineage: LineageId) -> PathBuf {
    let service = std::env::var_os("RUNTIME_DIRECTORY").map(PathBuf::from);
    let directory = if let Some(directory) = service.filter(|directory| directory.is_absolute()) {
        directory
    } else if rustix::process::geteuid().is_root() {
        PathBuf::from("/run/borealis")
    } else if let Some(runtime) = std::env::var_os("XDG_RUNTIME_DIR") {
        PathBuf::from(runtime).join("borealis")
    } else {
        std::env::temp_dir().join(format!("borealis-{}", rustix::process::geteuid().as_raw()))
    };
    directory.join(format!("{lineage}.sock"))
}

/// Makes the directory of the socket, or sees that the one that is there is ours. In a folder where everybody
/// may write, such as `/tmp`, somebody else could have made it first, and would then own what lies in it.
fn own_directory(directory: &Path) -> Result<()> {
    if let Some(above) = directory.parent() {
        std::fs::create_dir_all(above).at("create", above)?;
    }
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        made => return made.at("create", directory),
    }
    // Not what a link leads to.
    let found = std::fs::symlink_metadata(directory).at("look at", directory)?;
    let ours = found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o022 == 0;
    // In a service manager's or a user's own folder nobody else could make it.
    let shared =
        |above: &Path| std::fs::metadata(above).is_ok_and(|found| found.mode() & 0o002 != 0);
    if found.is_dir() && (ours || !directory.parent().is_some_and(shared)) {
        return Ok(());
    }
    Err(Error::refused(
        format!(
            "{} is not a directory of this user alone: another one may have made it",
            directory.display()
        ),
        "Remove it, or have others kept from it (chmod 700), and see who made it; or set XDG_RUNTIME_DIR to a \
         directory of this user's.",
    ))
}

/// Listens at `path` and hands on what is asked, until the task is ended.
pub fn listen(path: &Path, requests: mpsc::Sender<Asked>) -> Result<tokio::task::AbortHandle> {
    if let Some(directory) = path.parent() {
        own_directory(directory)?;
    }
    // The holder of the epoch owns the path; what lies there is left from one that died.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).at("remove", path);
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).at("listen at", path)?;
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let requests = requests.clone();
            tokio::spawn(async move {
                if let Err(error) = serve(stream, &requests).await {
                    tracing::debug!(%error, "control request not answered");
                }
            });
        }
    });
    Ok(task.abort_handle())
}

async fn serve(mut stream: UnixStream, requests: &mpsc::Sender<Asked>) -> std::io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut line = String::new();
    BufReader::new(reader.take(LINE_BYTES_MAX))
        .read_line(&mut line)
        .await?;
    let request = serde_json::from_str(&line).map_err(std::io::Error::other)?;
    let (answer, answered) = oneshot::channel();
    requests
        .send(Asked { request, answer })
        .await
        .map_err(std::io::Error::other)?;
    let answer = answered.await.map_err(std::io::Error::other)?;
    writer
        .write_all(format!("{}\n", serde_json::to_string(&answer)?).as_bytes())
        .await
}

/// Asks the `protect` that listens at `path`. `Ok(None)` where none does.
pub async fn ask(path: &Path, request: Request) -> Result<Option<Answer>> {
    let Ok(mut stream) = UnixStream::connect(path).await else {
        return Ok(None);
    };
    let exchange = async {
        let (reader, mut writer) = stream.split();
        writer
            .write_all(format!("{}\n", serde_json::to_string(&request)?).as_bytes())
            .await?;
        let mut line = String::new();
        BufReader::new(reader.take(LINE_BYTES_MAX))
            .read_line(&mut line)
            .await?;
        serde_json::from_str(&line).map_err(std::io::Error::other)
    };
    match tokio::time::timeout(ANSWER_TIMEOUT, exchange).await {
        Ok(Ok(answer)) => Ok(Some(answer)),
        Ok(Err(error)) => {
            tracing::warn!(%error, socket = %path.display(), "the running protect gave no answer");
            Ok(None)
        }
        Err(_) => Err(Error::new(
            borealis_base::ErrorKind::Unreachable,
            format!("the running protect did not answer at {}", path.display()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn a_request_is_answered() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("below/x.sock");
        let (requests, mut inbox) = mpsc::channel(REQUESTS_MAX);
        let _task = listen(&path, requests).unwrap();
        let asked = tokio::spawn({
            let path = path.clone();
            async move { ask(&path, Request::Settle).await }
        });
        let Asked { request, answer } = inbox.recv().await.unwrap();
        assert_eq!(request, Request::Settle);
        answer
            .send(Answer {
                settled_through: Some(Timestamp(5)),
                usage: None,
            })
            .unwrap();
        let answer = asked.await.unwrap().unwrap();
        assert_eq!(
            answer,
            Some(Answer {
                settled_through: Some(Timestamp(5)),
                usage: None,
            })
        );
    }

    #[tokio::test]
    async fn a_socket_is_not_put_into_a_directory_that_another_could_have_taken_first() {
        let shared = tempfile::tempdir().unwrap();
        let mode = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        mode(shared.path(), 0o1777);
        let (requests, _inbox) = mpsc::channel(REQUESTS_MAX);
        let mine = shared.path().join("mine");
        listen(&mine.join("x.sock"), requests.clone()).unwrap();
        assert_eq!(std::fs::metadata(&mine).unwrap().mode() & 0o777, 0o700);

        let open = shared.path().join("open");
        std::fs::create_dir(&open).unwrap();
        mode(&open, 0o777);
        let link = shared.path().join("link");
        std::os::unix::fs::symlink(&mine, &link).unwrap();
        for taken in [open, link] {
            let error = listen(&taken.join("x.sock"), requests.clone()).unwrap_err();
            assert_eq!(error.kind(), borealis_base::ErrorKind::Refused);
            let name = taken.display().to_string();
            assert!(error.to_string().contains(&name), "{error}");
            assert!(!taken.join("y").exists());
        }
    }

    #[tokio::test]
    async fn nobody_listening_is_an_answer_and_a_left_socket_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.sock");
        assert_eq!(ask(&path, Request::Settle).await.unwrap(), None);
        let (requests, _inbox) = mpsc::channel(REQUESTS_MAX);
        let task = listen(&path, requests.clone()).unwrap();
        task.abort();
        listen(&path, requests).unwrap();
    }
}
