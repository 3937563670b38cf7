//! A stand-in for the transit engine of HashiCorp Vault and OpenBao, made from their public API pages: no
//! package that a fresh machine can install holds a real server.
//!
//! It encrypts for real (AES-256-GCM with associated data, key versions, derived keys), and answers with the
//! statuses and bodies that the API documents: sealed, unknown tokens, missing rights, missing keys and
//! mounts, versions below the minimum, ciphertext that does not open. Like the real one it makes a key that
//! is asked to encrypt and does not exist.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use borealis_base::{Entropy, SystemEntropy};
use bytes::Bytes;
use http_body_util::Full;
use hyper::http::request::Parts;
use hyper::{Method, Response};
use serde_json::{Map, Value, json};

use crate::http::{Answers, Server, json as answer};

/// The token that the server knows from the start; tests look that it shows nowhere.
pub const TOKEN: &str = "hvs.very-secret-token-of-the-tests";
/// Where its transit engine is mounted.
pub const MOUNT: &str = "transit";

/// A running server. Dropped, it is gone with its keys.
#[derive(Debug)]
pub struct VaultServer {
    state: Arc<Shared>,
    server: Server,
}

#[derive(Debug)]
struct Shared(Mutex<State>);

#[derive(Debug)]
struct State {
    sealed: bool,
    down: bool,
    tokens: BTreeSet<String>,
    /// Operations that no token may carry out, such as `decrypt`.
    forbidden: BTreeSet<String>,
    namespace: String,
    keys: BTreeMap<String, TransitKey>,
    /// When the next version of a key will have been made.
    next_moment: u64,
    seen: Vec<String>,
}

#[derive(Debug)]
struct TransitKey {
    kind: &'static str,
    derived: bool,
    min_decryption_version: usize,
    /// Secret and moment of each version, from 1.
    versions: Vec<([u8; 32], u64)>,
}

impl VaultServer {
    /// Starts one, unsealed, without keys.
    pub async fn start() -> Self {
        Self::begin(false).await
    }

    /// Starts one with TLS, whose certificate a private authority has signed.
    pub async fn start_tls() -> Self {
        Self::begin(true).await
    }

    async fn begin(with_tls: bool) -> Self {
        let mut seed = [0; 4];
        SystemEntropy.fill(&mut seed);
        let state = Arc::new(Shared(Mutex::new(State {
            sealed: false,
            down: false,
            tokens: BTreeSet::from([TOKEN.to_owned()]),
            forbidden: BTreeSet::new(),
            namespace: String::new(),
            keys: BTreeMap::new(),
            // Keys of two servers are made at different times.
            next_moment: 1_700_000_000 + u64::from(u32::from_le_bytes(seed) / 4),
            seen: Vec::new(),
        })));
        let server = Server::start(state.clone(), with_tls).await;
        Self { state, server }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.0.lock().expect("no holder panics")
    }

    /// `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> &str {
        &self.server.endpoint
    }

    /// The certificate of the private authority, where there is one.
    pub fn ca_file(&self) -> Option<PathBuf> {
        self.server.ca_file()
    }

    /// The name of a key as `--key` takes it.
    pub fn url(&self, key: &str) -> String {
        format!("vault:{}/{MOUNT}/keys/{key}", self.endpoint())
    }

    /// Makes a key of the usual kind.
    pub fn create_key(&self, name: &str) {
        self.state().make(name, "aes256-gcm96", false);
    }

    /// Makes a key that is derived anew for each context.
    pub fn create_derived_key(&self, name: &str) {
        self.state().make(name, "aes256-gcm96", true);
    }

    /// Makes a key whose public half may wrap.
    pub fn create_rsa_key(&self, name: &str) {
        self.state().make(name, "rsa-2048", false);
    }

    /// Makes a new version of a key.
    pub fn rotate_key(&self, name: &str) {
        let mut state = self.state();
        let version = state.new_version();
        let key = state.keys.get_mut(name).expect("the key exists");
        key.versions.push(version);
    }

    /// Lets older versions of a key decrypt no more.
    pub fn set_min_decryption_version(&self, name: &str, version: usize) {
        let mut state = self.state();
        let key = state.keys.get_mut(name).expect("the key exists");
        key.min_decryption_version = version;
    }

    /// Deletes a key.
    pub fn delete_key(&self, name: &str) {
        self.state().keys.remove(name);
    }

    /// Whether a key exists.
    pub fn has_key(&self, name: &str) -> bool {
        self.state().keys.contains_key(name)
    }

    /// Seals or unseals the server.
    pub fn set_sealed(&self, sealed: bool) {
        self.state().sealed = sealed;
    }

    /// Cuts every connection, or none any more.
    pub fn set_down(&self, down: bool) {
        self.state().down = down;
    }

    /// Lets no token carry out `operation`, such as `decrypt`, or every one again.
    pub fn set_forbidden(&self, operation: &str, forbidden: bool) {
        let mut state = self.state();
        if forbidden {
            state.forbidden.insert(operation.to_owned());
        } else {
            state.forbidden.remove(operation);
        }
    }

    /// Makes a token known or unknown.
    pub fn set_token(&self, token: &str, known: bool) {
        let mut state = self.state();
        if known {
            state.tokens.insert(token.to_owned());
        } else {
            state.tokens.remove(token);
        }
    }

    /// Has the engine answer in this namespace only.
    pub fn set_namespace(&self, namespace: &str) {
        namespace.clone_into(&mut self.state().namespace);
    }

    /// The paths that were asked for since the last time.
    pub fn take_seen(&self) -> Vec<String> {
        std::mem::take(&mut self.state().seen)
    }
}

type Reply = (u16, Value);

fn errors(status: u16, words: &str) -> Reply {
    (status, json!({ "errors": [words] }))
}

impl State {
    fn new_version(&mut self) -> ([u8; 32], u64) {
        let mut secret = [0; 32];
        SystemEntropy.fill(&mut secret);
        self.next_moment += 1;
        (secret, self.next_moment)
    }

    fn make(&mut self, name: &str, kind: &'static str, derived: bool) {
        let version = self.new_version();
        let key = TransitKey {
            kind,
            derived,
            min_decryption_version: 1,
            versions: vec![version],
        };
        self.keys.insert(name.to_owned(), key);
    }

    fn reply(&mut self, head: &Parts, body: &[u8]) -> Reply {
        if self.sealed {
            return errors(503, "Vault is sealed");
        }
        let text = |name: &str| {
            let value = head.headers.get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        if !self.tokens.contains(&text("x-vault-token")) {
            return errors(
                403,
                "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n",
            );
        }
        let path = head.uri.path().trim_start_matches("/v1/").to_owned();
        if path == "auth/token/lookup-self" {
            return (200, json!({"data": {"ttl": 3600, "renewable": true}}));
        }
        let parts: Vec<&str> = path.split('/').collect();
        let [MOUNT, operation, name] = parts[..] else {
            return no_route(&path);
        };
        if text("x-vault-namespace") != self.namespace {
            return no_route(&path);
        }
        if self.forbidden.contains(operation) {
            return errors(403, "1 error occurred:\n\t* permission denied\n\n");
        }
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let known = self.keys.contains_key(name);
        match (&head.method, operation) {
            (&Method::GET, "keys") if !known => (404, json!({ "errors": [] })),
            (&Method::GET, "keys") => (200, json!({"data": self.keys[name].info(name)})),
            (&Method::POST, "encrypt") => {
                if !known {
                    self.make(name, "aes256-gcm96", false);
                }
                self.keys[name].encrypt(&body)
            }
            (&Method::POST, "decrypt") if !known => errors(400, "encryption key not found"),
            (&Method::POST, "decrypt") => self.keys[name].decrypt(&body),
            _ => errors(405, "unsupported operation"),
        }
    }
}

fn no_route(path: &str) -> Reply {
    errors(
        404,
        &format!("no handler for route \"{path}\". route entry not found."),
    )
}

fn bytes_of(body: &Value, field: &str) -> Option<Vec<u8>> {
    STANDARD.decode(body.get(field)?.as_str()?).ok()
}

impl TransitKey {
    fn info(&self, name: &str) -> Value {
        let keys: Map<String, Value> = (1..)
            .zip(&self.versions)
            .filter(|(version, _)| *version >= self.min_decryption_version)
            .map(|(version, (_, made))| (version.to_string(), json!(made)))
            .collect();
        json!({
            "name": name, "type": self.kind, "derived": self.derived, "keys": keys,
            "latest_version": self.versions.len(), "min_available_version": 0,
            "min_decryption_version": self.min_decryption_version, "min_encryption_version": 0,
            "deletion_allowed": false, "exportable": false, "supports_encryption": true,
            "supports_decryption": true, "supports_derivation": true, "supports_signing": false,
        })
    }

    fn cipher(&self, version: usize, body: &Value) -> Result<LessSafeKey, Reply> {
        let (mut secret, _) = self.versions[version - 1];
        if self.derived {
            let Some(context) = bytes_of(body, "context").filter(|c| !c.is_empty()) else {
                return Err(errors(
                    400,
                    "missing 'context' for key derivation; the key was created using a derived key, \
                     which means additional, per-request information must be included in order to \
                     perform operations with the key",
                ));
            };
            let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
            secret.copy_from_slice(hmac::sign(&key, &context).as_ref());
        }
        let key = UnboundKey::new(&AES_256_GCM, &secret).expect("32 bytes");
        Ok(LessSafeKey::new(key))
    }

    fn encrypt(&self, body: &Value) -> Reply {
        let data = bytes_of(body, "associated_data").unwrap_or_default();
        if self.kind.starts_with("rsa") && !data.is_empty() {
            return errors(
                400,
                "'[0].associated_data' provided for non-AEAD cipher suite rsa-2048",
            );
        }
        let Some(mut content) = bytes_of(body, "plaintext") else {
            return errors(400, "failed to base64-decode plaintext");
        };
        let version = self.versions.len();
        let cipher = match self.cipher(version, body) {
            Ok(cipher) => cipher,
            Err(reply) => return reply,
        };
        let mut nonce = [0; 12];
        SystemEntropy.fill(&mut nonce);
        let tag = cipher.seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(data),
            &mut content,
        );
        let sealed = [&nonce[..], &content, tag.expect("it is short").as_ref()].concat();
        let ciphertext = format!("vault:v{version}:{}", STANDARD.encode(sealed));
        (
            200,
            json!({"data": {"ciphertext": ciphertext, "key_version": version}}),
        )
    }

    fn decrypt(&self, body: &Value) -> Reply {
        let text = body["ciphertext"].as_str().unwrap_or_default();
        let parts: Option<(usize, Vec<u8>)> = text
            .strip_prefix("vault:v")
            .and_then(|rest| rest.split_once(':'))
            .and_then(|(version, sealed)| {
                Some((version.parse().ok()?, STANDARD.decode(sealed).ok()?))
            });
        let Some((version, mut sealed)) = parts else {
            return errors(400, "invalid ciphertext: no prefix");
        };
        if version == 0 || version > self.versions.len() {
            return errors(400, "invalid ciphertext: version is too new");
        }
        if version < self.min_decryption_version {
            return errors(
                400,
                "ciphertext or signature version is disallowed by policy (too old)",
            );
        }
        let cipher = match self.cipher(version, body) {
            Ok(cipher) => cipher,
            Err(reply) => return reply,
        };
        let data = bytes_of(body, "associated_data").unwrap_or_default();
        let undecrypted = || errors(400, "invalid ciphertext: unable to decrypt");
        if sealed.len() < 12 {
            return undecrypted();
        }
        let mut content = sealed.split_off(12);
        let nonce = Nonce::try_assume_unique_for_key(&sealed).expect("12 bytes");
        match cipher.open_in_place(nonce, Aad::from(data), &mut content) {
            Ok(plain) => (200, json!({"data": {"plaintext": STANDARD.encode(plain)}})),
            Err(_) => undecrypted(),
        }
    }
}

impl Answers for Shared {
    async fn answer(&self, head: Parts, body: Bytes) -> Option<Response<Full<Bytes>>> {
        let mut state = self.0.lock().expect("no holder panics");
        if state.down {
            return None;
        }
        state.seen.push(head.uri.path().to_owned());
        let (status, body) = state.reply(&head, &body);
        Some(answer(status, &body))
    }
}
