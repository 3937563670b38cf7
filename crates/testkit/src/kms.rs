//! AWS's key management service for tests: Moto's, behind a front that does what Moto leaves out.
//!
//! Moto wraps and unwraps for real, but with disabled and dying keys too, and for whoever asks. The front
//! verifies each signature by an implementation of its own, refuses what AWS refuses in the states of a key,
//! with AWS's errors, and fails on demand.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::{AUTHORIZATION, HOST, HeaderMap};
use hyper::http::request::Parts;
use hyper::{Request, Response};
use serde_json::{Value, json};

use crate::http::{Answers, Server, json as answer_json};
use crate::s3::{ACCESS_KEY, MotoServer, SECRET_KEY, exchange};

/// A running key service. Dropped, it is gone with its keys.
#[derive(Debug)]
pub struct KmsServer {
    front: Arc<Front>,
    server: Server,
}

#[derive(Debug)]
struct Front {
    moto: MotoServer,
    forbidden: AtomicBool,
    down: AtomicBool,
    throttled: AtomicU32,
    seen: Mutex<Vec<String>>,
}

/// The states of a key that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyState {
    /// It can be used.
    Enabled,
    /// It can be enabled again.
    Disabled,
    /// It is deleted in some days.
    PendingDeletion,
}

impl KmsServer {
    /// Starts one without keys.
    pub async fn start() -> Self {
        let front = Arc::new(Front {
            moto: MotoServer::start().await,
            forbidden: AtomicBool::new(false),
            down: AtomicBool::new(false),
            throttled: AtomicU32::new(0),
            seen: Mutex::default(),
        });
        let server = Server::start(front.clone(), false).await;
        Self { front, server }
    }

    /// `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> &str {
        &self.server.endpoint
    }

    /// The name of `key` as `--key` takes it.
    pub fn url(&self, key: &str) -> String {
        format!(
            "aws-kms:{key}?region=us-east-1&endpoint={}",
            self.endpoint()
        )
    }

    /// Makes a key with an alias; returns its ARN.
    pub async fn create_key(&self, alias: &str) -> String {
        let made = self.front.ask("CreateKey", &json!({})).await;
        let arn = made["KeyMetadata"]["Arn"].as_str().expect("an ARN");
        let alias = json!({"AliasName": format!("alias/{alias}"), "TargetKeyId": arn});
        self.front.ask("CreateAlias", &alias).await;
        arn.to_owned()
    }

    /// Makes a key that only signs; returns its ARN.
    pub async fn create_signing_key(&self) -> String {
        let wanted = json!({"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY"});
        let made = self.front.ask("CreateKey", &wanted).await;
        let arn = made["KeyMetadata"]["Arn"].as_str().expect("an ARN");
        arn.to_owned()
    }

    /// Puts a key into a state.
    pub async fn set_state(&self, arn: &str, state: KeyState) {
        // Moto takes no ARN here.
        let key = json!({ "KeyId": arn.rsplit('/').next() });
        let operation = match state {
            KeyState::Enabled => "EnableKey",
            KeyState::Disabled => "DisableKey",
            KeyState::PendingDeletion => "ScheduleKeyDeletion",
        };
        self.front.ask(operation, &key).await;
    }

    /// Lets nobody use any key, or everybody again.
    pub fn set_forbidden(&self, forbidden: bool) {
        self.front.forbidden.store(forbidden, Ordering::SeqCst);
    }

    /// Cuts every connection, or none any more.
    pub fn set_down(&self, down: bool) {
        self.front.down.store(down, Ordering::SeqCst);
    }

    /// Throttles the next requests.
    pub fn throttle(&self, requests: u32) {
        self.front.throttled.store(requests, Ordering::SeqCst);
    }

    /// The operations that were asked for since the last time.
    pub fn take_seen(&self) -> Vec<String> {
        std::mem::take(&mut *self.front.seen.lock().expect("no holder panics"))
    }
}

fn refusal(kind: &str, message: &str) -> Response<Full<Bytes>> {
    answer_json(400, &json!({"__type": kind, "message": message}))
}

impl Front {
    /// Asks Moto, which looks at no signature but reads region and service from it.
    async fn ask(&self, operation: &str, body: &Value) -> Value {
        let request = Request::post("/")
            .header(HOST, "kms.us-east-1.amazonaws.com")
            .header("x-amz-target", format!("TrentService.{operation}"))
            .header("content-type", "application/x-amz-json-1.1")
            .header(
                AUTHORIZATION,
                format!("AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/20260101/us-east-1/kms/aws4_request, SignedHeaders=host, Signature=0"),
            )
            .body(Full::new(Bytes::from(body.to_string())))
            .expect("a request");
        let answer = exchange(self.moto.address(), request)
            .await
            .expect("moto answers");
        let (head, body) = answer.into_parts();
        let body = body.collect().await.expect("moto answers").to_bytes();
        assert!(
            head.status.is_success() || operation == "DescribeKey",
            "{operation}: {}",
            String::from_utf8_lossy(&body)
        );
        serde_json::from_slice(&body).unwrap_or_default()
    }

    /// What AWS answers for a key in its state, where that is no success.
    async fn refused_by_state(&self, body: &Bytes) -> Option<Response<Full<Bytes>>> {
        let asked: Value = serde_json::from_slice(body).ok()?;
        let described = self
            .ask("DescribeKey", &json!({"KeyId": asked.get("KeyId")?}))
            .await;
        let metadata = described.get("KeyMetadata")?;
        let arn = metadata["Arn"].as_str()?;
        match metadata["KeyState"].as_str()? {
            "Disabled" => Some(refusal("DisabledException", &format!("{arn} is disabled."))),
            "PendingDeletion" => Some(refusal(
                "KMSInvalidStateException",
                &format!("{arn} is pending deletion."),
            )),
            _ => None,
        }
    }
}

impl Answers for Front {
    async fn answer(&self, head: Parts, body: Bytes) -> Option<Response<Full<Bytes>>> {
        if self.down.load(Ordering::SeqCst) {
            return None;
        }
        let target = header(&head.headers, "x-amz-target");
        let operation = target.strip_prefix("TrentService.").unwrap_or_default();
        self.seen
            .lock()
            .expect("no holder panics")
            .push(operation.to_owned());
        let counted = |left: u32| left.checked_sub(1);
        let throttled = &self.throttled;
        if throttled
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, counted)
            .is_ok()
        {
            return Some(refusal("ThrottlingException", "Rate exceeded"));
        }
        if header(&head.headers, "content-type") != "application/x-amz-json-1.1" {
            return Some(refusal("UnknownOperationException", ""));
        }
        if let Err(why) = verify(&head, &body) {
            return Some(refusal("InvalidSignatureException", &why));
        }
        if self.forbidden.load(Ordering::SeqCst) {
            let message = format!(
                "User: arn:aws:iam::123456789012:user/x is not authorized to perform: kms:{operation} on this resource"
            );
            return Some(refusal("AccessDeniedException", &message));
        }
        if matches!(operation, "Encrypt" | "Decrypt")
            && let Some(refused) = self.refused_by_state(&body).await
        {
            return Some(refused);
        }
        let request = Request::from_parts(head, Full::new(body));
        let answer = exchange(self.moto.address(), request).await.ok()?;
        let (head, body) = answer.into_parts();
        let body = body.collect().await.ok()?.to_bytes();
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = head.status;
        Some(response)
    }
}

fn header(headers: &HeaderMap, name: &str) -> String {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_owned()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn sign(key: &[u8], text: &str) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::sign(&key, text.as_bytes()).as_ref().to_vec()
}

/// Verifies a signature of version 4 over a request to `/` without a query.
fn verify(head: &Parts, body: &Bytes) -> Result<(), String> {
    let authorization = header(&head.headers, "authorization");
    let field = |name: &str| {
        let (_, after) = authorization.split_once(name)?;
        after.split([',', ' ']).next()
    };
    let (Some(credential), Some(signed), Some(signature)) = (
        field("Credential="),
        field("SignedHeaders="),
        field("Signature="),
    ) else {
        return Err("the request is not signed".to_owned());
    };
    let (access_key, scope) = credential.split_once('/').unwrap_or((credential, ""));
    if access_key != ACCESS_KEY {
        return Err("the access key is not known".to_owned());
    }
    let mut canonical = format!("{}\n/\n\n", head.method);
    for name in signed.split(';') {
        let value = header(&head.headers, name);
        let _ = writeln!(canonical, "{name}:{}", value.trim());
    }
    let payload = hex(digest(&SHA256, body).as_ref());
    let _ = write!(canonical, "\n{signed}\n{payload}");
    let hash = hex(digest(&SHA256, canonical.as_bytes()).as_ref());
    let date = header(&head.headers, "x-amz-date");
    let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{hash}");
    let key = (scope.split('/')).fold(format!("AWS4{SECRET_KEY}").into_bytes(), |key, part| {
        sign(&key, part)
    });
    let must_be_signed = ["host", "x-amz-date", "x-amz-target"];
    let all = must_be_signed
        .iter()
        .all(|name| signed.split(';').any(|signed| signed == *name));
    if all && hex(&sign(&key, &text)) == signature && scope.ends_with("/kms/aws4_request") {
        Ok(())
    } else {
        Err("the signature does not match".to_owned())
    }
}
