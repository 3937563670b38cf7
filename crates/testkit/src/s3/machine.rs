//! What a machine in a cloud says of itself: AWS's instance metadata, version 2, with credentials.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::{ACCESS_KEY, SECRET_KEY};

const TOKEN: &str = "token-of-the-tests";
const ROLE: &str = "backup-role";

/// A running service. Dropped, it is gone.
#[derive(Debug)]
pub struct MachineMetadata {
    endpoint: String,
    task: JoinHandle<()>,
}

impl MachineMetadata {
    /// Starts one.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it listens");
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let service = service_fn(async |request| Ok::<_, Infallible>(answer(&request)));
                    // A client that goes away is no fault of the service.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(socket), service)
                        .await;
                });
            }
        });
        Self {
            endpoint: format!("http://{address}"),
            task,
        }
    }

    /// `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }
}

impl Drop for MachineMetadata {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn answer(request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let roles = "/latest/meta-data/iam/security-credentials";
    let path = request.uri().path().trim_end_matches('/');
    let token = request.headers().get("x-aws-ec2-metadata-token");
    let said = match (request.method(), path) {
        (&Method::PUT, "/latest/api/token") => Some(TOKEN.to_owned()),
        _ if token.is_none_or(|token| token != TOKEN) => None,
        (&Method::GET, path) if path == roles => Some(ROLE.to_owned()),
        (&Method::GET, path) if path == format!("{roles}/{ROLE}") => Some(format!(
            "{{\"Code\":\"Success\",\"Type\":\"AWS-HMAC\",\"AccessKeyId\":\"{ACCESS_KEY}\",\
             \"SecretAccessKey\":\"{SECRET_KEY}\",\"Token\":\"\",\
             \"LastUpdated\":\"2026-01-01T00:00:00Z\",\"Expiration\":\"2099-01-01T00:00:00Z\"}}"
        )),
        _ => None,
    };
    let status = if said.is_some() {
        StatusCode::OK
    } else {
        StatusCode::NOT_FOUND
    };
    let mut response = Response::new(Full::new(said.unwrap_or_default().into()));
    *response.status_mut() = status;
    response.headers_mut().insert(
        "x-aws-ec2-metadata-token-ttl-seconds",
        hyper::header::HeaderValue::from_static("21600"),
    );
    response
}
