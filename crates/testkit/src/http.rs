//! A small HTTP server for services that tests stand in for.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::s3::acceptor;

/// Who answers.
pub(crate) trait Answers: Send + Sync + 'static {
    /// The answer to a request; `None` cuts the connection.
    fn answer(
        &self,
        head: Parts,
        body: Bytes,
    ) -> impl Future<Output = Option<Response<Full<Bytes>>>> + Send;
}

/// A running server on 127.0.0.1. Dropped, it is gone.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) endpoint: String,
    keys: Option<TempDir>,
    task: JoinHandle<()>,
}

trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

impl Server {
    /// Has `who` answer; with TLS by a certificate that a private authority has signed, where wanted.
    pub(crate) async fn start(who: Arc<impl Answers>, with_tls: bool) -> Self {
        let keys = with_tls.then(|| tempfile::tempdir().expect("a scratch folder"));
        let tls = keys.as_ref().map(|keys| acceptor(keys.path()));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it listens");
        let scheme = if with_tls { "https" } else { "http" };
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (who, tls) = (who.clone(), tls.clone());
                tokio::spawn(async move {
                    let wire: Box<dyn Wire> = match tls {
                        None => Box::new(socket),
                        // A client that does not trust us goes away.
                        Some(tls) => match tls.accept(socket).await {
                            Ok(wire) => Box::new(wire),
                            Err(_) => return,
                        },
                    };
                    let service = service_fn(async |request: Request<Incoming>| {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await.map_err(std::io::Error::other)?;
                        let answer = who.answer(head, body.to_bytes()).await;
                        answer.ok_or_else(|| std::io::Error::other("cut"))
                    });
                    // A client that goes away, or whose connection is cut, is no fault of the server.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(wire), service)
                        .await;
                });
            }
        });
        Self {
            endpoint: format!("{scheme}://{address}"),
            keys,
            task,
        }
    }

    /// The certificate of the private authority, where there is one.
    pub(crate) fn ca_file(&self) -> Option<PathBuf> {
        let keys = self.keys.as_ref()?;
        Some(Path::join(keys.path(), "ca.pem"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An answer with a JSON body.
pub(crate) fn json(status: u16, body: &serde_json::Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = status.try_into().expect("a status");
    response
}
