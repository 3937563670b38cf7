//! Links to a server: one way to open a stream (name service, socket, TLS), two protocols over it
//! ([`SqlLink`], [`ReplicationLink`]).

pub mod replication;
mod sql;
mod tls;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

pub use replication::{Feedback, ReplicationLink, ReplicationStream};
pub use sql::{SqlLink, TextRow, quote_identifier, quote_literal};

use crate::conninfo::{ConnInfo, Host, SslMode};
use crate::error::{Error, Result};

/// How long a connection is quiet before the peer is probed.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);

/// The time between probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// Unanswered probes after which a connection is given up.
const KEEPALIVE_PROBES: u32 = 3;

/// The code of an SSL request (`NEGOTIATE_SSL_CODE` in `pqcomm.h`), after the length 8.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xD2, 0x16, 0x2F];

/// The bytes under a protocol.
#[derive(Debug)]
enum Transport {
    Tcp(TcpStream),
    Socket(UnixStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

/// An open stream to a server. On an unencrypted network it refuses to go on once the server asks
/// for the password itself, whichever protocol runs above.
#[derive(Debug)]
pub struct LinkStream {
    transport: Transport,
    end_point: Option<Vec<u8>>,
    /// The first bytes that the server sent, up to the code of its authentication request.
    first: [u8; 9],
    first_len: usize,
}

impl LinkStream {
    fn new(transport: Transport, end_point: Option<Vec<u8>>) -> Self {
        Self {
            transport,
            end_point,
            first: [0; 9],
            first_len: 0,
        }
    }

    /// Whether TLS protects it.
    pub fn is_encrypted(&self) -> bool {
        matches!(self.transport, Transport::Tls(_))
    }

    fn watch(&mut self, read: &[u8]) -> io::Result<()> {
        if self.first_len == self.first.len() || !matches!(self.transport, Transport::Tcp(_)) {
            return Ok(());
        }
        for byte in read {
            if let Some(place) = self.first.get_mut(self.first_len) {
                *place = *byte;
                self.first_len += 1;
            }
        }
        // AuthenticationCleartextPassword: `R`, length 8, code 3.
        if self.first == [b'R', 0, 0, 0, 8, 0, 0, 0, 3] {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the server asks for the password in the clear on an unencrypted link",
            ));
        }
        Ok(())
    }
}

impl AsyncRead for LinkStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(match &mut self.transport {
            Transport::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            Transport::Socket(s) => Pin::new(s).poll_read(cx, buf),
            Transport::Tls(s) => Pin::new(s).poll_read(cx, buf),
        })?;
        let read = buf.filled().get(before..).unwrap_or_default();
        Poll::Ready(self.watch(read))
    }
}

impl AsyncWrite for LinkStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.transport {
            Transport::Tcp(s) => Pin::new(s).poll_write(cx, buf),
            Transport::Socket(s) => Pin::new(s).poll_write(cx, buf),
            Transport::Tls(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Tcp(s) => Pin::new(s).poll_flush(cx),
            Transport::Socket(s) => Pin::new(s).poll_flush(cx),
            Transport::Tls(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            Transport::Socket(s) => Pin::new(s).poll_shutdown(cx),
            Transport::Tls(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}

impl tokio_postgres::tls::TlsStream for LinkStream {
    fn channel_binding(&self) -> tokio_postgres::tls::ChannelBinding {
        match &self.end_point {
            Some(value) => tokio_postgres::tls::ChannelBinding::tls_server_end_point(value.clone()),
            None => tokio_postgres::tls::ChannelBinding::none(),
        }
    }
}

/// Whether one attempt asks for TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    Never,
    IfOffered,
    Insist,
}

fn attempts(mode: SslMode, host: &Host) -> &'static [Ask] {
    if host.is_socket() {
        // libpq ignores sslmode there: no network carries the bytes.
        return &[Ask::Never];
    }
    match mode {
        SslMode::Disable => &[Ask::Never],
        SslMode::Allow => &[Ask::Never, Ask::Insist],
        SslMode::Prefer => &[Ask::IfOffered, Ask::Never],
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[Ask::Insist],
    }
}

/// What runs over a stream once it is open.
trait Login: Sync {
    /// The link it makes.
    type Link: Send;

    fn login(
        &self,
        stream: LinkStream,
        info: &ConnInfo,
        host: &Host,
    ) -> impl Future<Output = Result<Self::Link>> + Send;
}

/// Tries the hosts in order, and for each what `sslmode` allows; the last error counts. Where one kind
/// of server is only preferred, all hosts are tried for it before any is taken.
async fn connect<L: Login>(info: &ConnInfo, login: &L) -> Result<L::Link> {
    let mut last = Error::ConnInfo("no host".to_owned());
    for info in info.passes() {
        match connect_once(&info, login).await {
            Ok(link) => return Ok(link),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn connect_once<L: Login>(info: &ConnInfo, login: &L) -> Result<L::Link> {
    let mut last = Error::ConnInfo("no host".to_owned());
    for host in &info.hosts {
        let asks = attempts(info.tls.mode, host);
        for (number, ask) in asks.iter().enumerate() {
            let attempt = async {
                let stream = open(info, host, *ask).await?;
                let encrypted = stream.is_encrypted();
                Ok((login.login(stream, info, host).await, encrypted))
            };
            // Boxed: the handshakes are large, and callers keep this inside their own futures.
            let outcome = tokio::time::timeout(info.connect_timeout, Box::pin(attempt))
                .await
                .unwrap_or_else(|_| {
                    Err(Error::Connect {
                        to: host.to_string(),
                        detail: format!("no answer in {} s", info.connect_timeout.as_secs()),
                    })
                });
            let (error, again) = match outcome {
                Ok((Ok(link), _)) => return Ok(link),
                // Only pg_hba.conf's refusal depends on TLS; a wrong password must not be tried in
                // the clear as well.
                Ok((Err(error), encrypted)) => {
                    let refused = error.sqlstate() == Some("28000");
                    (error, refused && (encrypted || *ask == Ask::Never))
                }
                Err(error) => {
                    let tls = matches!(error, Error::Tls { .. });
                    (error, tls)
                }
            };
            if !again || number + 1 == asks.len() {
                last = error;
                break;
            }
            tracing::warn!(server = %host, %error, "trying once more, with or without tls as sslmode allows");
            last = error;
        }
    }
    Err(last)
}

/// Lets the operating system find out that a silent peer is gone: a session that waits for an answer
/// has nothing of its own to send, and would wait for ever.
fn keep_alive(tcp: &TcpStream) -> rustix::io::Result<()> {
    sockopt::set_socket_keepalive(tcp, true)?;
    sockopt::set_tcp_keepidle(tcp, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(tcp, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(tcp, KEEPALIVE_PROBES)
}

async fn open(info: &ConnInfo, host: &Host, ask: Ask) -> Result<LinkStream> {
    let failed = |error: io::Error| Error::Connect {
        to: host.to_string(),
        detail: error.to_string(),
    };
    if host.is_socket() {
        let path = format!("{}/.s.PGSQL.{}", host.name, host.port);
        let socket = UnixStream::connect(path).await.map_err(failed)?;
        return Ok(LinkStream::new(Transport::Socket(socket), None));
    }
    let address = host.address.as_deref().unwrap_or(&host.name);
    let mut tcp = TcpStream::connect((address, host.port))
        .await
        .map_err(failed)?;
    tcp.set_nodelay(true).map_err(failed)?;
    keep_alive(&tcp).map_err(|errno| failed(errno.into()))?;
    if ask == Ask::Never {
        return Ok(LinkStream::new(Transport::Tcp(tcp), None));
    }
    tcp.write_all(&SSL_REQUEST).await.map_err(failed)?;
    // One byte exactly: anything that follows in the clear could have been put there by someone
    // else and must not be read as if it came through the channel (CVE-2021-23222).
    match tcp.read_u8().await.map_err(failed)? {
        b'S' => {}
        b'N' if ask == Ask::IfOffered => return Ok(LinkStream::new(Transport::Tcp(tcp), None)),
        b'N' => {
            return Err(Error::Tls {
                to: host.to_string(),
                detail: "the server does not offer TLS".to_owned(),
            });
        }
        other => {
            return Err(Error::Protocol {
                to: host.to_string(),
                detail: format!("byte {other:#04x} in answer to the request for TLS"),
            });
        }
    }
    let tls_failed = |error: &dyn std::fmt::Display| Error::Tls {
        to: host.to_string(),
        detail: error.to_string(),
    };
    let config = tls::client_config(&info.tls, host)?;
    let name = rustls::pki_types::ServerName::try_from(host.name.clone())
        .map_err(|error| tls_failed(&error))?;
    let stream = TlsConnector::from(config)
        .connect(name, tcp)
        .await
        .map_err(|error| tls_failed(&error))?;
    let end_point = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .and_then(|certificate| tls::end_point(certificate));
    Ok(LinkStream::new(Transport::Tls(Box::new(stream)), end_point))
}
