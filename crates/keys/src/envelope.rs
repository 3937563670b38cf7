//! Wrapping one key under another.
//!
//! A key service wraps what [`bound`] makes: the key behind a digest of what it is bound to. Services bind
//! to that too, by words of their own; where one does not, or ignores them, the digest still does.
//!
//! A wrap is AES-256-GCM with a random 96-bit nonce under HKDF(wrapping key, "borealis wrap v1").
//! A wrapping key wraps a handful of keys in its life, far from the 2^32 messages at which random
//! nonces become unsafe. What is wrapped, for whom, and under which name are associated data, so a
//! wrap copied to another lineage does not open there.

use async_trait::async_trait;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::digest::{SHA256, digest};
use borealis_base::Entropy;
use zeroize::Zeroizing;

use crate::secret::KEY_BYTES;
use crate::{Error, KeyId, SecretKey, derive};

const WRAP_INFO: &[u8] = b"borealis wrap v1";
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
const DIGEST_BYTES: usize = 32;

/// What a wrapped key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The key of an owner (the catalog or a lineage), wrapped by a root key.
    OwnerKey,
    /// A data key, wrapped by its owner's key.
    DataKey,
    /// A key of the same owner that came before, wrapped by the one that has replaced it.
    FormerKey,
}

impl Purpose {
    /// The words that stand in the associated data and in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OwnerKey => "owner key",
            Self::DataKey => "data key",
            Self::FormerKey => "former key",
        }
    }
}

/// What a wrap is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrapContext {
    /// What the wrapped key is for.
    pub purpose: Purpose,
    /// The repository or lineage the wrapped key belongs to.
    pub owner: [u8; 16],
    /// For an owner key the id of the root key that wraps it; for a data key or a former key its own id.
    pub subject: [u8; 16],
}

impl WrapContext {
    /// length of the purpose (1 byte) ‖ purpose ‖ owner ‖ subject
    pub(crate) fn associated_data(&self) -> Vec<u8> {
        let purpose = self.purpose.name().as_bytes();
        let mut data = Vec::with_capacity(1 + purpose.len() + 32);
        data.push(purpose.len() as u8);
        data.extend_from_slice(purpose);
        data.extend_from_slice(&self.owner);
        data.extend_from_slice(&self.subject);
        data
    }

    pub(crate) fn bad(&self) -> Error {
        Error::BadWrap {
            purpose: self.purpose.name(),
            owner: KeyId(self.owner).to_string(),
        }
    }
}

/// A key sealed under another key; not secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrappedKey {
    /// 12 random bytes; empty where a key service has wrapped.
    pub nonce: Vec<u8>,
    /// 32 bytes and a 16-byte tag, or what a key service made of it.
    pub ciphertext: Vec<u8>,
    /// Which version of its key a key service has used, if it says so.
    pub version: String,
}

/// What a key service is given to wrap: SHA-256 of the associated data ‖ the key.
pub(crate) fn bound(context: &WrapContext, secret: &SecretKey) -> Zeroizing<Vec<u8>> {
    let digest = digest(&SHA256, &context.associated_data());
    let mut content = Zeroizing::new(Vec::with_capacity(DIGEST_BYTES + KEY_BYTES));
    content.extend_from_slice(digest.as_ref());
    content.extend_from_slice(secret.expose());
    content
}

/// The key in what a key service has unwrapped.
///
/// # Errors
/// [`Error::BadWrap`] where it was wrapped for something else.
pub(crate) fn unbound(context: &WrapContext, content: &[u8]) -> Result<SecretKey, Error> {
    let digest = digest(&SHA256, &context.associated_data());
    let key = content.strip_prefix(digest.as_ref());
    key.and_then(SecretKey::from_slice)
        .ok_or_else(|| context.bad())
}

fn cipher(key: &SecretKey) -> LessSafeKey {
    let key = derive(key, &[], WRAP_INFO);
    LessSafeKey::new(
        UnboundKey::new(&AES_256_GCM, key.expose()).expect("a 32-byte key fits AES-256"),
    )
}

/// Wraps `secret` under `wrapping`.
pub fn wrap(
    wrapping: &SecretKey,
    context: &WrapContext,
    secret: &SecretKey,
    entropy: &dyn Entropy,
) -> WrappedKey {
    let mut nonce = [0; NONCE_BYTES];
    entropy.fill(&mut nonce);
    let mut ciphertext = secret.expose().to_vec();
    let tag = cipher(wrapping)
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(context.associated_data()),
            &mut ciphertext,
        )
        .expect("48 bytes is a length AES-GCM can seal");
    ciphertext.extend_from_slice(tag.as_ref());
    WrappedKey {
        nonce: nonce.to_vec(),
        ciphertext,
        version: String::new(),
    }
}

/// Unwraps what [`wrap`] made for the same context.
///
/// # Errors
/// [`Error::BadWrap`] where any byte, the context or the wrapping key differs.
pub fn unwrap(
    wrapping: &SecretKey,
    context: &WrapContext,
    wrapped: &WrappedKey,
) -> Result<SecretKey, Error> {
    let nonce = Nonce::try_assume_unique_for_key(&wrapped.nonce).map_err(|_| context.bad())?;
    if wrapped.ciphertext.len() != KEY_BYTES + TAG_BYTES {
        return Err(context.bad());
    }
    let mut bytes = Zeroizing::new(wrapped.ciphertext.clone());
    let plain = cipher(wrapping)
        .open_in_place(nonce, Aad::from(context.associated_data()), &mut bytes)
        .map_err(|_| context.bad())?;
    SecretKey::from_slice(plain).ok_or_else(|| context.bad())
}

/// Holds a root key and wraps owner keys with it: a file here, a key service elsewhere.
#[async_trait]
pub trait KeyProvider: Send + Sync {
    /// The word for this kind of provider in a repository's list of recipients, such as `file`.
    fn scheme(&self) -> &'static str;

    /// The public name of the root key.
    fn key_id(&self) -> KeyId;

    /// Where the key is, for messages: a file's path, a service's address. Never the key.
    fn place(&self) -> String;

    /// What a repository's list of recipients says of it, for people who look for the key: its name in its
    /// service. Empty for a key file, whose path means nothing elsewhere.
    fn label(&self) -> String {
        String::new()
    }

    /// Wraps an owner's key.
    async fn wrap(
        &self,
        context: &WrapContext,
        secret: &SecretKey,
        entropy: &dyn Entropy,
    ) -> Result<WrappedKey, Error>;

    /// Unwraps an owner's key.
    async fn unwrap(&self, context: &WrapContext, wrapped: &WrappedKey)
    -> Result<SecretKey, Error>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_base::SeededEntropy;

    fn context() -> WrapContext {
        WrapContext {
            purpose: Purpose::DataKey,
            owner: [1; 16],
            subject: [2; 16],
        }
    }

    #[test]
    fn a_wrapped_key_opens_only_in_its_own_context() {
        let entropy = SeededEntropy::new(1);
        let (root, secret) = (SecretKey::random(&entropy), SecretKey::random(&entropy));
        let wrapped = wrap(&root, &context(), &secret, &entropy);
        let opened = unwrap(&root, &context(), &wrapped).unwrap();
        assert_eq!(opened.expose(), secret.expose());

        for other in [
            WrapContext {
                purpose: Purpose::OwnerKey,
                ..context()
            },
            WrapContext {
                owner: [9; 16],
                ..context()
            },
            WrapContext {
                subject: [9; 16],
                ..context()
            },
        ] {
            assert!(matches!(
                unwrap(&root, &other, &wrapped),
                Err(Error::BadWrap { .. })
            ));
        }
        let stranger = SecretKey::random(&entropy);
        assert!(unwrap(&stranger, &context(), &wrapped).is_err());
    }

    #[test]
    fn what_a_key_service_unwraps_is_bound_to_its_context_too() {
        let secret = SecretKey::random(&SeededEntropy::new(3));
        let content = bound(&context(), &secret);
        let opened = unbound(&context(), &content).unwrap();
        assert_eq!(opened.expose(), secret.expose());
        let other = WrapContext {
            owner: [9; 16],
            ..context()
        };
        assert!(matches!(
            unbound(&other, &content),
            Err(Error::BadWrap { .. })
        ));
        assert!(unbound(&context(), &content[..63]).is_err());
        assert!(unbound(&context(), b"").is_err());
    }

    #[test]
    fn any_flipped_bit_of_a_wrap_is_refused() {
        let entropy = SeededEntropy::new(2);
        let (root, secret) = (SecretKey::random(&entropy), SecretKey::random(&entropy));
        let wrapped = wrap(&root, &context(), &secret, &entropy);
        for bit in 0..wrapped.ciphertext.len() * 8 {
            let mut flipped = wrapped.clone();
            flipped.ciphertext[bit / 8] ^= 1 << (bit % 8);
            assert!(unwrap(&root, &context(), &flipped).is_err(), "bit {bit}");
        }
        for length in 0..wrapped.ciphertext.len() {
            let mut short = wrapped.clone();
            short.ciphertext.truncate(length);
            assert!(
                unwrap(&root, &context(), &short).is_err(),
                "length {length}"
            );
        }
    }
}
