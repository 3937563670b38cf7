//! The transport under the S3 client: counts every request, and turns every answer that is no success
//! into an [`Answer`], which the client's own errors carry to where it is judged.

use std::sync::Arc;

use async_trait::async_trait;
use http_body_util::BodyExt;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService, ReqwestConnector,
};

use super::answer::{Answer, BODY_BYTES_MAX, is_error};
use crate::store::Counters;
use crate::store::counting::Verb;

/// Makes counted connections.
#[derive(Debug)]
pub(super) struct Connector {
    pub(super) counters: Arc<Counters>,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Service {
            inner: ReqwestConnector::default().connect(options)?,
            counters: self.counters.clone(),
        }))
    }
}

#[derive(Debug)]
struct Service {
    inner: HttpClient,
    counters: Arc<Counters>,
}

#[async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let verb = verb(&request);
        self.counters.request(verb);
        self.counters.sent(request.body().content_length() as u64);
        let response = self.inner.execute(request).await?;
        let (parts, body) = response.into_parts();
        let status = parts.status;
        if status.is_success() && verb == Verb::Get {
            return Ok(HttpResponse::from_parts(parts, self.counted(body)));
        }
        // Everything else is short. A body that cannot be read leaves the status, which suffices where
        // that is no success; a success may hide an error.
        let body = match body.bytes().await {
            Ok(body) => body,
            Err(error) if status.is_success() && verb != Verb::Delete => return Err(error),
            Err(_) => bytes::Bytes::new(),
        };
        self.counters.received(body.len() as u64);
        if status.is_success() && (body.len() > BODY_BYTES_MAX || !is_error(&body)) {
            return Ok(HttpResponse::from_parts(parts, body.into()));
        }
        let answer = Answer::of(status.as_u16(), &body);
        Err(HttpError::new(HttpErrorKind::Unknown, answer))
    }
}

impl Service {
    fn counted(&self, body: HttpResponseBody) -> HttpResponseBody {
        let counters = self.counters.clone();
        HttpResponseBody::new(body.map_frame(move |frame| {
            if let Some(data) = frame.data_ref() {
                counters.received(data.len() as u64);
            }
            frame
        }))
    }
}

fn verb(request: &HttpRequest) -> Verb {
    let query = request.uri().query().unwrap_or_default();
    match request.method().as_str() {
        "GET" if query.contains("list-type=") => Verb::List,
        "GET" | "HEAD" => Verb::Get,
        "DELETE" => Verb::Delete,
        _ => Verb::Put,
    }
}
