//! A strict S3 server, in this process: `s3s` over files.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::{ACCESS_KEY, BUCKET, SECRET_KEY};

/// A running server. Dropped, it is gone with everything it holds.
#[derive(Debug)]
pub struct StrictServer {
    dir: TempDir,
    endpoint: String,
    ca_file: Option<PathBuf>,
    task: JoinHandle<()>,
}

/// What a connection is, once its beginning has gone well.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

impl StrictServer {
    /// Starts one with an empty bucket.
    pub async fn start() -> Self {
        Self::begin(None).await
    }

    /// Starts one with TLS, whose certificate a private authority has signed.
    pub async fn start_tls() -> Self {
        let keys = tempfile::tempdir().expect("a scratch folder");
        let acceptor = acceptor(keys.path());
        Self::begin(Some((keys, acceptor))).await
    }

    async fn begin(tls: Option<(TempDir, TlsAcceptor)>) -> Self {
        let dir = tempfile::tempdir().expect("a scratch folder");
        std::fs::create_dir(dir.path().join(BUCKET)).expect("the folder is ours");
        let files = FileSystem::new(dir.path()).expect("the folder exists");
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = builder.build();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it listens");
        let scheme = if tls.is_some() { "https" } else { "http" };
        let ca_file = tls.as_ref().map(|(keys, _)| {
            let file = dir.path().join("ca.pem");
            std::fs::copy(keys.path().join("ca.pem"), &file).expect("the folder is ours");
            file
        });
        let tls = tls.map(|(_, acceptor)| acceptor);
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (service, tls) = (service.clone(), tls.clone());
                tokio::spawn(async move {
                    let wire: Box<dyn Wire> = match tls {
                        None => Box::new(socket),
                        // A client that does not trust us goes away.
                        Some(tls) => match tls.accept(socket).await {
                            Ok(wire) => Box::new(wire),
                            Err(_) => return,
                        },
                    };
                    // A client that goes away is no fault of the server.
                    let _ = http1::Builder::new()
                        .serve_connection(TokioIo::new(wire), service)
                        .await;
                });
            }
        });
        Self {
            dir,
            endpoint: format!("{scheme}://{address}"),
            ca_file,
            task,
        }
    }

    /// The certificate of the private authority, where there is one.
    pub fn ca_file(&self) -> Option<&Path> {
        self.ca_file.as_deref()
    }

    /// `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The file in which the server keeps an object.
    pub fn file(&self, key: &str) -> PathBuf {
        self.bucket().join(key)
    }

    /// The folder of the bucket.
    pub fn bucket(&self) -> PathBuf {
        Path::join(self.dir.path(), BUCKET)
    }
}

/// An authority that nobody knows, and a certificate for 127.0.0.1 that it has signed.
pub(crate) fn acceptor(dir: &Path) -> TlsAcceptor {
    let openssl = |arguments: &str| {
        let output = Command::new("openssl")
            .args(arguments.split_whitespace())
            .current_dir(dir)
            .output()
            .expect("openssl is installed");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {arguments}: {said}");
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    openssl(&format!(
        "req -x509 {key} -keyout ca.key -out ca.pem -subj /CN=private-authority"
    ));
    openssl(&format!(
        "req -x509 {key} -keyout server.key -out server.pem -subj /CN=store -CA ca.pem -CAkey ca.key \
         -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE"
    ));
    let certificates: Vec<_> = CertificateDer::pem_file_iter(dir.join("server.pem"))
        .and_then(Iterator::collect)
        .expect("openssl wrote it");
    let key = PrivateKeyDer::from_pem_file(dir.join("server.key")).expect("openssl wrote it");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .expect("they belong together");
    TlsAcceptor::from(Arc::new(config))
}

impl Drop for StrictServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}
