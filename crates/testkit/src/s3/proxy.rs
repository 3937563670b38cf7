//! An HTTP proxy before an S3 server that cuts, delays, duplicates, throttles, garbles and loses. What
//! happens to a request follows from the seed and the number of the request.

use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use borealis_base::SeededEntropy;
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, HOST, IF_NONE_MATCH, TRANSFER_ENCODING};
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// How often each fault happens, in thousandths of the requests it can happen to.
#[derive(Debug, Clone, Copy, Default)]
pub struct HttpFaults {
    /// The connection is cut and nothing takes effect.
    pub cut: u64,
    /// The request takes effect and the connection is cut instead of a reply.
    pub lost_replies: u64,
    /// A write takes effect only after its connection was cut.
    pub late: u64,
    /// A write takes effect, and once more later.
    pub duplicates: u64,
    /// 503 `SlowDown`, without effect.
    pub throttled: u64,
    /// 500 `InternalError`, after the effect.
    pub failed: u64,
    /// A write is answered with 200 and an error in the body, without effect.
    pub errors_in_success: u64,
    /// A conditional write is answered with 409, without effect.
    pub conflicts: u64,
    /// The connection is cut in the middle of a reply's body.
    pub cut_bodies: u64,
    /// A byte of a write's body is flipped on the way.
    pub garbled: u64,
    /// Longest delay before a request.
    pub delay_max: Duration,
    /// How late a late write may land.
    pub late_max: Duration,
}

impl HttpFaults {
    /// Some of everything.
    pub const MIXED: Self = Self {
        cut: 20,
        lost_replies: 25,
        late: 15,
        duplicates: 15,
        throttled: 25,
        failed: 15,
        errors_in_success: 10,
        conflicts: 15,
        cut_bodies: 20,
        garbled: 10,
        delay_max: Duration::from_millis(4),
        late_max: Duration::from_millis(300),
    };

    /// A third of [`Self::MIXED`]: rare enough for whoever tries five times, over thousands of requests.
    pub const MILD: Self = Self {
        cut: 6,
        lost_replies: 8,
        late: 5,
        duplicates: 5,
        throttled: 8,
        failed: 5,
        errors_in_success: 3,
        conflicts: 5,
        cut_bodies: 6,
        garbled: 3,
        ..Self::MIXED
    };
}

/// What was done to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Injected {
    /// See [`HttpFaults::cut`].
    Cut,
    /// See [`HttpFaults::lost_replies`].
    LostReply,
    /// See [`HttpFaults::late`].
    Late,
    /// See [`HttpFaults::duplicates`].
    Duplicate,
    /// See [`HttpFaults::throttled`].
    Throttled,
    /// See [`HttpFaults::failed`].
    Failed,
    /// See [`HttpFaults::errors_in_success`].
    ErrorInSuccess,
    /// See [`HttpFaults::conflicts`].
    Conflict,
    /// See [`HttpFaults::cut_bodies`].
    CutBody,
    /// See [`HttpFaults::garbled`].
    Garbled,
}

/// A request that came by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// GET, PUT, ...
    pub method: String,
    /// Path and query.
    pub target: String,
    /// What was done to it.
    pub injected: Option<Injected>,
}

impl Seen {
    /// Whether it asks for a listing.
    pub fn is_list(&self) -> bool {
        self.method == "GET" && self.target.contains("list-type=")
    }
}

struct Shared {
    upstream: String,
    random: SeededEntropy,
    faults: Mutex<HttpFaults>,
    scripted: Mutex<Vec<(Method, Injected)>>,
    seen: Mutex<Vec<Seen>>,
    /// Servers that check and then write do so for one write at a time.
    writes: tokio::sync::Mutex<()>,
    /// Requests that take effect after their reply.
    late: AtomicUsize,
    ignore_conditions: AtomicBool,
    down: AtomicBool,
}

/// A running proxy. Dropped, it is gone.
pub struct FaultProxy {
    endpoint: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

type Reply = Response<BoxBody<Bytes, io::Error>>;

impl FaultProxy {
    /// A proxy before the server at `upstream`, `http://host:port`.
    pub async fn start(upstream: &str, faults: HttpFaults, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it listens");
        let shared = Arc::new(Shared {
            upstream: upstream.trim_start_matches("http://").to_owned(),
            random: SeededEntropy::new(seed),
            faults: Mutex::new(faults),
            scripted: Mutex::default(),
            seen: Mutex::default(),
            writes: tokio::sync::Mutex::new(()),
            late: AtomicUsize::new(0),
            ignore_conditions: AtomicBool::new(false),
            down: AtomicBool::new(false),
        });
        let task = tokio::spawn(serve(listener, shared.clone()));
        Self {
            endpoint: format!("http://{address}"),
            shared,
            task,
        }
    }

    /// `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// From now on other faults.
    pub fn set(&self, faults: HttpFaults) {
        *self.shared.faults.lock().expect("no holder panics") = faults;
    }

    /// Does this to the next request of the method, whatever chance says.
    pub fn inject_next(&self, method: &Method, what: Injected) {
        let mut scripted = self.shared.scripted.lock().expect("no holder panics");
        scripted.push((method.clone(), what));
    }

    /// Hides `If-None-Match` from the server, which then behaves like one that ignores it.
    pub fn ignore_conditions(&self) {
        (self.shared.ignore_conditions).store(true, Ordering::Relaxed);
    }

    /// Cuts every connection, or lets them through again.
    pub fn set_down(&self, down: bool) {
        self.shared.down.store(down, Ordering::Relaxed);
    }

    /// Whether every request that is late has taken effect.
    pub fn is_settled(&self) -> bool {
        self.shared.late.load(Ordering::Relaxed) == 0
    }

    /// What came by since this was last asked.
    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.shared.seen.lock().expect("no holder panics"))
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((socket, _)) = listener.accept().await {
        let shared = shared.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| handle(shared.clone(), request));
            // A cut connection is an error here, and meant.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(socket), service)
                .await;
        });
    }
}

async fn handle(shared: Arc<Shared>, request: Request<Incoming>) -> io::Result<Reply> {
    let (mut parts, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    if shared.down.load(Ordering::Relaxed) {
        return Err(cut());
    }
    let faults = *shared.faults.lock().expect("no holder panics");
    let injected = shared.choose(&parts, &body, &faults);
    shared.seen.lock().expect("no holder panics").push(Seen {
        method: parts.method.to_string(),
        target: parts.uri.to_string(),
        injected,
    });
    tokio::time::sleep(shared.up_to(faults.delay_max)).await;
    if shared.ignore_conditions.load(Ordering::Relaxed) {
        parts.headers.remove(IF_NONE_MATCH);
    }
    match injected {
        None => forward(&shared, parts, body).await,
        Some(Injected::Cut) => Err(cut()),
        Some(Injected::LostReply) => {
            forward(&shared, parts, body).await?;
            Err(cut())
        }
        Some(Injected::Late) => {
            land_later(shared.clone(), parts, body, &faults);
            Err(cut())
        }
        Some(Injected::Duplicate) => {
            let reply = forward(&shared, parts.clone(), body.clone()).await;
            land_later(shared.clone(), parts, body, &faults);
            reply
        }
        Some(Injected::Throttled) => Ok(error(503, "SlowDown")),
        Some(Injected::Failed) => {
            forward(&shared, parts, body).await?;
            Ok(error(500, "InternalError"))
        }
        Some(Injected::ErrorInSuccess) => Ok(error(200, "InternalError")),
        Some(Injected::Conflict) => Ok(error(409, "ConditionalRequestConflict")),
        Some(Injected::CutBody) => {
            let reply = forward(&shared, parts, body).await?;
            Ok(cut_in_half(reply).await)
        }
        Some(Injected::Garbled) => {
            let mut garbled = body.to_vec();
            let place = garbled.len() / 2;
            garbled[place] ^= 1;
            forward(&shared, parts, garbled.into()).await
        }
    }
}

fn land_later(shared: Arc<Shared>, parts: Parts, body: Bytes, faults: &HttpFaults) {
    let pause = shared.up_to(faults.late_max);
    shared.late.fetch_add(1, Ordering::Relaxed);
    tokio::spawn(async move {
        tokio::time::sleep(pause).await;
        // Nobody waits for this answer.
        let _ = forward(&shared, parts, body).await;
        shared.late.fetch_sub(1, Ordering::Relaxed);
    });
}

impl Shared {
    fn up_to(&self, longest: Duration) -> Duration {
        let micros = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.random.below(micros.max(1)))
    }

    fn choose(&self, parts: &Parts, body: &Bytes, faults: &HttpFaults) -> Option<Injected> {
        {
            let mut scripted = self.scripted.lock().expect("no holder panics");
            let next = scripted
                .iter()
                .position(|(method, _)| *method == parts.method);
            if let Some(next) = next {
                return Some(scripted.remove(next).1);
            }
        }
        let writes = matches!(parts.method, Method::PUT | Method::POST);
        let conditional = writes && parts.headers.contains_key(IF_NONE_MATCH);
        let only_if = |possible: bool, often: u64| if possible { often } else { 0 };
        let chances = [
            (Injected::Cut, faults.cut),
            (Injected::LostReply, faults.lost_replies),
            (Injected::Late, only_if(writes, faults.late)),
            (Injected::Duplicate, only_if(writes, faults.duplicates)),
            (Injected::Throttled, faults.throttled),
            (Injected::Failed, faults.failed),
            (
                Injected::ErrorInSuccess,
                only_if(writes, faults.errors_in_success),
            ),
            (Injected::Conflict, only_if(conditional, faults.conflicts)),
            (
                Injected::CutBody,
                only_if(parts.method == Method::GET, faults.cut_bodies),
            ),
            (
                Injected::Garbled,
                only_if(writes && !body.is_empty(), faults.garbled),
            ),
        ];
        let mut roll = self.random.below(1_000);
        for (what, often) in chances {
            if roll < often {
                return Some(what);
            }
            roll -= often;
        }
        None
    }
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "cut by the test")
}

fn boxed(bytes: Bytes) -> BoxBody<Bytes, io::Error> {
    Full::new(bytes)
        .map_err(|never: Infallible| match never {})
        .boxed()
}

fn error(status: u16, code: &str) -> Reply {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>injected</Message></Error>"
    );
    let mut reply = Response::new(boxed(body.into()));
    *reply.status_mut() = StatusCode::from_u16(status).expect("a status");
    reply
}

/// The head of a reply with its whole length, and half of its body.
async fn cut_in_half(reply: Reply) -> Reply {
    let (parts, body) = reply.into_parts();
    let whole = body
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes);
    let whole = whole.unwrap_or_default();
    let half = whole.slice(..whole.len() / 2);
    let frames = [Ok(Frame::data(half)), Err(cut())];
    let mut reply = Response::from_parts(parts, StreamBody::new(Frames(frames.into())).boxed());
    let length = whole.len().to_string().parse().expect("digits");
    reply.headers_mut().insert(CONTENT_LENGTH, length);
    reply
}

/// Frames that are at hand.
struct Frames(std::collections::VecDeque<io::Result<Frame<Bytes>>>);

impl futures::Stream for Frames {
    type Item = io::Result<Frame<Bytes>>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        std::task::Poll::Ready(self.0.pop_front())
    }
}

async fn forward(shared: &Shared, parts: Parts, body: Bytes) -> io::Result<Reply> {
    let writes = matches!(parts.method, Method::PUT | Method::POST);
    let _turn = if writes {
        Some(shared.writes.lock().await)
    } else {
        None
    };
    let mut request = Request::from_parts(parts, Full::new(body));
    request.headers_mut().remove(TRANSFER_ENCODING);
    let reply = exchange(&shared.upstream, request).await?;
    let (mut parts, body) = reply.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    parts.headers.remove(TRANSFER_ENCODING);
    Ok(Response::from_parts(parts, boxed(body)))
}

/// Sends one request on a connection of its own.
pub(crate) async fn exchange(
    address: &str,
    request: Request<Full<Bytes>>,
) -> io::Result<Response<Incoming>> {
    let socket = TcpStream::connect(address).await?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await;
    let (mut sender, connection) = handshake.map_err(io::Error::other)?;
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(io::Error::other)
}

/// One request without a signature.
pub(super) async fn send(
    address: &str,
    method: &Method,
    path: &str,
    host: &str,
    body: Bytes,
) -> io::Result<StatusCode> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, host)
        .body(Full::new(body))
        .map_err(io::Error::other)?;
    Ok(exchange(address, request).await?.status())
}
