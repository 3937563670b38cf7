//! Key providers against key services: what they wrap opens, and every way in which a service says no has an
//! error of its own.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::path::PathBuf;
use std::sync::Arc;

use borealis_base::{ErrorKind, SystemClock, SystemEntropy};
use borealis_keys::{
    Error, KeyProvider, KeyUrl, KmsKey, Outfit, Purpose, SecretKey, Why, WrapContext, WrappedKey,
};
use borealis_testkit::kms::KeyState;
use borealis_testkit::s3::{ACCESS_KEY, SECRET_KEY};
use borealis_testkit::vault::TOKEN;
use borealis_testkit::{KmsServer, VaultServer};
use tempfile::TempDir;

fn outfit() -> Outfit {
    Outfit {
        clock: Arc::new(SystemClock),
        entropy: Arc::new(SystemEntropy),
    }
}

/// What wraps the key of owner `owner` are bound to.
fn context(provider: &dyn KeyProvider, owner: u8) -> WrapContext {
    WrapContext {
        purpose: Purpose::OwnerKey,
        owner: [owner; 16],
        subject: provider.key_id().0,
    }
}

async fn wrap(provider: &dyn KeyProvider, secret: &SecretKey) -> Result<WrappedKey, Error> {
    let context = context(provider, 1);
    provider.wrap(&context, secret, &SystemEntropy).await
}

async fn unwrap(provider: &dyn KeyProvider, wrapped: &WrappedKey) -> Result<SecretKey, Error> {
    provider.unwrap(&context(provider, 1), wrapped).await
}

/// Fails the test where what was wrapped is not what is unwrapped.
async fn assert_opens(provider: &dyn KeyProvider, wrapped: &WrappedKey, secret: &SecretKey) {
    let opened = unwrap(provider, wrapped).await.unwrap();
    assert_eq!(opened.expose(), secret.expose());
}

/// Fails the test unless the error is of `why`, names the key and says what to do, and no secret.
fn assert_unusable(error: &Error, why: Why, key: &str) {
    assert!(
        matches!(error, Error::Unusable { why: found, .. } if *found == why),
        "{error:?}"
    );
    assert_eq!(error.kind(), ErrorKind::KeyUnusable);
    assert!(error.to_string().contains(key), "{error}");
    assert!(error.hint().is_some(), "{error}");
    assert_shows_no_secret(error);
}

fn assert_shows_no_secret(error: &Error) {
    let shown = format!("{error} {error:?} {:?}", error.hint());
    for secret in [TOKEN, SECRET_KEY] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

async fn kms(server: &KmsServer, key: &str) -> Result<KmsKey, Error> {
    kms_as(server, key, SECRET_KEY).await
}

async fn kms_as(server: &KmsServer, key: &str, secret_key: &str) -> Result<KmsKey, Error> {
    let KeyUrl::AwsKms(url) = KeyUrl::parse(&server.url(key)).unwrap() else {
        panic!("{key} is no key of KMS")
    };
    KmsKey::open_with_keys(&url, &outfit(), ACCESS_KEY, secret_key).await
}

#[tokio::test]
async fn a_key_of_kms_wraps_and_unwraps_by_each_of_its_names() {
    let server = KmsServer::start().await;
    let arn = server.create_key("backup").await;
    let id = arn.rsplit('/').next().unwrap();
    let secret = SecretKey::random(&SystemEntropy);
    let by_arn = kms(&server, &arn).await.unwrap();
    assert_eq!(
        server.take_seen(),
        Vec::<String>::new(),
        "an ARN is asked for nothing"
    );
    let wrapped = wrap(&by_arn, &secret).await.unwrap();
    assert!(!wrapped.ciphertext.windows(32).any(|w| w == secret.expose()));
    for name in [arn.as_str(), id, "alias/backup"] {
        let provider = kms(&server, name).await.unwrap();
        assert_eq!(provider.key_id(), by_arn.key_id(), "{name}");
        assert_eq!(provider.label(), arn);
        assert_opens(&provider, &wrapped, &secret).await;
    }
}

#[tokio::test]
async fn what_kms_has_wrapped_for_one_owner_or_was_changed_is_damage() {
    let server = KmsServer::start().await;
    let provider = kms(&server, &server.create_key("a").await).await.unwrap();
    let secret = SecretKey::random(&SystemEntropy);
    let wrapped = wrap(&provider, &secret).await.unwrap();
    let other = context(&provider, 2);
    let error = provider.unwrap(&other, &wrapped).await.unwrap_err();
    assert!(matches!(error, Error::BadWrap { .. }), "{error:?}");
    let mut changed = wrapped.clone();
    *changed.ciphertext.last_mut().unwrap() ^= 1;
    let error = unwrap(&provider, &changed).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    assert_opens(&provider, &wrapped, &secret).await;
}

#[tokio::test]
async fn a_key_of_kms_that_may_not_be_used_is_told_by_the_reason() {
    let server = KmsServer::start().await;
    let arn = server.create_key("a").await;
    let provider = kms(&server, &arn).await.unwrap();
    let secret = SecretKey::random(&SystemEntropy);
    let wrapped = wrap(&provider, &secret).await.unwrap();

    for (state, why) in [
        (KeyState::Disabled, Why::Disabled),
        (KeyState::PendingDeletion, Why::Dying),
    ] {
        server.set_state(&arn, state).await;
        let error = unwrap(&provider, &wrapped).await.unwrap_err();
        assert_unusable(&error, why, &arn);
        let error = wrap(&provider, &secret).await.unwrap_err();
        assert_unusable(&error, why, &arn);
    }
    server.set_state(&arn, KeyState::Enabled).await;
    assert_opens(&provider, &wrapped, &secret).await;

    server.set_forbidden(true);
    let error = unwrap(&provider, &wrapped).await.unwrap_err();
    assert_unusable(&error, Why::Forbidden, &arn);
    assert!(error.hint().unwrap().contains("kms:Decrypt"));
    server.set_forbidden(false);

    let gone = "arn:aws:kms:us-east-1:123456789012:key/00000000-0000-0000-0000-000000000000";
    let error = unwrap(&kms(&server, gone).await.unwrap(), &wrapped)
        .await
        .unwrap_err();
    assert_unusable(&error, Why::Gone, gone);
    let error = kms(&server, "alias/none").await.err().unwrap();
    assert_unusable(&error, Why::Gone, "alias/none");

    let stranger = kms_as(&server, &arn, "wrong-secret").await.unwrap();
    let error = unwrap(&stranger, &wrapped).await.unwrap_err();
    assert_unusable(&error, Why::Unknown, &arn);
    assert!(!format!("{error:?}").contains("wrong-secret"));

    let signing = server.create_signing_key().await;
    let signing = kms(&server, &signing).await.unwrap();
    let error = wrap(&signing, &secret).await.unwrap_err();
    assert!(matches!(error, Error::Unfit { .. }), "{error:?}");
}

#[tokio::test]
async fn kms_is_asked_again_a_bounded_number_of_times_and_silence_is_no_refusal() {
    let server = KmsServer::start().await;
    let provider = kms(&server, &server.create_key("a").await).await.unwrap();
    let secret = SecretKey::random(&SystemEntropy);
    let wrapped = wrap(&provider, &secret).await.unwrap();
    server.take_seen();
    server.throttle(3);
    assert_opens(&provider, &wrapped, &secret).await;
    assert_eq!(server.take_seen(), ["Decrypt"; 4]);
    server.throttle(1_000);
    let error = unwrap(&provider, &wrapped).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(error.to_string().contains("Rate exceeded"), "{error}");
    assert_eq!(server.take_seen().len(), 5);
    server.throttle(0);
    server.set_down(true);
    let error = unwrap(&provider, &wrapped).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(error.to_string().contains(server.endpoint()), "{error}");
    server.set_down(false);
    assert_opens(&provider, &wrapped, &secret).await;
}

/// A Vault with a token file.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        place.set_token(TOKEN);
        place
    }

    fn token_file(&self) -> PathBuf {
        self.dir.path().join("token")
    }

    fn set_token(&self, token: &str) {
        std::fs::write(self.token_file(), format!("{token}\n")).unwrap();
    }

    async fn key(&self, url: &str) -> Arc<dyn KeyProvider> {
        let between = if url.contains('?') { '&' } else { '?' };
        let url = format!("{url}{between}token-file={}", self.token_file().display());
        let url = KeyUrl::parse(&url).unwrap();
        borealis_keys::open(&url, &outfit()).await.unwrap()
    }
}

#[tokio::test]
async fn keys_of_a_vault_wrap_and_unwrap_and_those_of_another_kind_are_refused() {
    let (server, place) = (VaultServer::start().await, Place::new());
    let secret = SecretKey::random(&SystemEntropy);
    server.create_key("plain");
    server.create_derived_key("derived");
    for name in ["plain", "derived"] {
        let provider = place.key(&server.url(name)).await;
        let wrapped = wrap(&*provider, &secret).await.unwrap();
        assert_opens(&*provider, &wrapped, &secret).await;
        let other = context(&*provider, 2);
        let error = provider.unwrap(&other, &wrapped).await.unwrap_err();
        assert!(matches!(error, Error::BadWrap { .. }), "{name}: {error:?}");
    }
    server.create_rsa_key("rsa");
    let provider = place.key(&server.url("rsa")).await;
    let error = wrap(&*provider, &secret).await.unwrap_err();
    assert!(matches!(error, Error::Unfit { .. }), "{error:?}");
    assert!(error.to_string().contains("rsa-2048"), "{error}");

    let provider = place.key(&server.url("none")).await;
    let error = wrap(&*provider, &secret).await.unwrap_err();
    assert_unusable(&error, Why::Gone, "transit/keys/none");
    assert!(!server.has_key("none"), "asking made a key");
}

#[tokio::test]
async fn older_versions_of_a_vaults_key_open_until_they_are_retired() {
    let (server, place) = (VaultServer::start().await, Place::new());
    server.create_key("k");
    let provider = place.key(&server.url("k")).await;
    let secret = SecretKey::random(&SystemEntropy);
    let first = wrap(&*provider, &secret).await.unwrap();
    server.rotate_key("k");
    assert_opens(&*provider, &first, &secret).await;
    let second = wrap(&*provider, &secret).await.unwrap();
    assert!(first.version.starts_with("1@") && second.version.starts_with("2@"));
    server.set_min_decryption_version("k", 2);
    let error = unwrap(&*provider, &first).await.unwrap_err();
    assert_unusable(&error, Why::VersionRetired, "transit/keys/k");
    assert!(error.hint().unwrap().contains("key rewrap"));
    assert_opens(&*provider, &second, &secret).await;
}

#[tokio::test]
async fn a_vault_that_says_no_is_told_by_the_reason() {
    let (server, place) = (VaultServer::start().await, Place::new());
    server.create_key("k");
    let provider = place.key(&server.url("k")).await;
    let secret = SecretKey::random(&SystemEntropy);
    let wrapped = wrap(&*provider, &secret).await.unwrap();
    let name = "transit/keys/k";

    server.set_sealed(true);
    let error = unwrap(&*provider, &wrapped).await.unwrap_err();
    assert!(matches!(error, Error::Sealed { .. }), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(error.hint().unwrap().contains("unsealed"));
    server.set_sealed(false);

    server.set_forbidden("decrypt", true);
    let error = unwrap(&*provider, &wrapped).await.unwrap_err();
    assert_unusable(&error, Why::Forbidden, name);
    server.set_forbidden("decrypt", false);

    server.set_token(TOKEN, false);
    let error = unwrap(&*provider, &wrapped).await.unwrap_err();
    assert_unusable(&error, Why::Unknown, name);
    assert!(error.to_string().contains("not valid"), "{error}");
    // An agent writes another one.
    server.set_token("hvs.renewed", true);
    place.set_token("hvs.renewed");
    assert_opens(&*provider, &wrapped, &secret).await;
    for unfit in ["", "two words", "\u{7}"] {
        place.set_token(unfit);
        let error = unwrap(&*provider, &wrapped).await.unwrap_err();
        assert_unusable(&error, Why::Unknown, name);
    }
    std::fs::remove_file(place.token_file()).unwrap();
    let error = unwrap(&*provider, &wrapped).await.unwrap_err();
    assert_unusable(&error, Why::Unknown, "token");
    place.set_token("hvs.renewed");

    server.set_down(true);
    let error = unwrap(&*provider, &wrapped).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(error.to_string().contains(server.endpoint()), "{error}");
    server.set_down(false);

    server.delete_key("k");
    let error = unwrap(&*provider, &wrapped).await.unwrap_err();
    assert_unusable(&error, Why::Gone, name);
    let elsewhere = server.url("k").replace("/transit/", "/elsewhere/");
    let provider = place.key(&elsewhere).await;
    let error = unwrap(&*provider, &wrapped).await.unwrap_err();
    assert_unusable(&error, Why::Gone, "elsewhere/keys/k");
}

#[tokio::test]
async fn another_vaults_key_of_the_same_name_is_told_from_changed_bytes() {
    let (here, there, place) = (
        VaultServer::start().await,
        VaultServer::start().await,
        Place::new(),
    );
    for server in [&here, &there] {
        server.create_key("k");
    }
    let (right, wrong) = (
        place.key(&here.url("k")).await,
        place.key(&there.url("k")).await,
    );
    assert_eq!(right.key_id(), wrong.key_id());
    let secret = SecretKey::random(&SystemEntropy);
    let wrapped = wrap(&*right, &secret).await.unwrap();
    let error = unwrap(&*wrong, &wrapped).await.unwrap_err();
    assert!(matches!(error, Error::OtherKey { .. }), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::Refused);

    let mut text = String::from_utf8(wrapped.ciphertext.clone()).unwrap();
    let last = if text.pop() == Some('A') { 'B' } else { 'A' };
    text.push(last);
    for changed in [text.into_bytes(), b"x".to_vec(), Vec::new()] {
        let changed = WrappedKey {
            ciphertext: changed,
            ..wrapped.clone()
        };
        let error = unwrap(&*right, &changed).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    }

    // Without the right to look at the key it can't be told, and that is said.
    there.set_forbidden("keys", true);
    let error = unwrap(&*wrong, &wrapped).await.unwrap_err();
    assert!(matches!(error, Error::OtherKey { .. }), "{error:?}");
    assert!(
        error.to_string().contains("or the ring was changed"),
        "{error}"
    );
}

#[tokio::test]
async fn a_vault_in_a_namespace_behind_a_private_authority_is_reached_as_named_only() {
    let (server, place) = (VaultServer::start_tls().await, Place::new());
    server.set_namespace("team/a");
    server.create_key("k");
    let ca = server.ca_file().unwrap();
    let secret = SecretKey::random(&SystemEntropy);
    let url = format!(
        "{}?namespace=team/a&ca-file={}",
        server.url("k"),
        ca.display()
    );
    let provider = place.key(&url).await;
    let wrapped = wrap(&*provider, &secret).await.unwrap();
    assert_opens(&*provider, &wrapped, &secret).await;
    assert!(
        provider
            .label()
            .ends_with("/transit/keys/k?namespace=team/a")
    );

    let outside = format!("{}?ca-file={}", server.url("k"), ca.display());
    let error = unwrap(&*place.key(&outside).await, &wrapped)
        .await
        .unwrap_err();
    assert_unusable(&error, Why::Gone, "transit/keys/k");
    let untrusted = format!("{}?namespace=team/a", server.url("k"));
    let error = unwrap(&*place.key(&untrusted).await, &wrapped)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");
    assert_shows_no_secret(&error);
}
