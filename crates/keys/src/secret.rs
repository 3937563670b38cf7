//! Secret keys, their public names, and derivation.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use borealis_base::Entropy;
use zeroize::Zeroizing;

/// Length of every symmetric key.
pub const KEY_BYTES: usize = 32;

/// Names the derivation of a root key's public name.
const KEY_ID_INFO: &[u8] = b"borealis key id v1";
/// Begins what the public name of a service's key is a digest of.
const SERVICE_KEY_ID: &str = "borealis key id v1";

/// A 256-bit secret. Its memory is cleared when the last copy is dropped, and it never shows
/// itself.
#[derive(Clone)]
pub struct SecretKey(Arc<Zeroizing<[u8; KEY_BYTES]>>);

impl SecretKey {
    /// A new secret.
    pub fn random(entropy: &dyn Entropy) -> Self {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        entropy.fill(bytes.as_mut_slice());
        Self(Arc::new(bytes))
    }

    /// The secret with these bytes; `None` for any other length.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        let mut copy = Zeroizing::new([0; KEY_BYTES]);
        if bytes.len() != KEY_BYTES {
            return None;
        }
        copy.copy_from_slice(bytes);
        Some(Self(Arc::new(copy)))
    }

    /// The bytes, for a cipher or for the key file. They must reach no log and no error.
    pub fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// The public name of this secret; says nothing about it.
    pub fn id(&self) -> KeyId {
        let derived = derive(self, &[], KEY_ID_INFO);
        let mut id = [0; 16];
        id.copy_from_slice(&derived.expose()[..16]);
        KeyId(id)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

/// HKDF-SHA256 (RFC 5869) to 32 bytes.
pub fn derive(key: &SecretKey, salt: &[u8], info: &[u8]) -> SecretKey {
    let mut out = Zeroizing::new([0; KEY_BYTES]);
    Salt::new(HKDF_SHA256, salt)
        .extract(key.expose())
        .expand(&[info], HKDF_SHA256)
        .and_then(|okm| okm.fill(out.as_mut_slice()))
        .expect("32 bytes is a length HKDF-SHA256 can give");
    SecretKey(Arc::new(out))
}

/// The public name of a root key: 16 bytes, shown as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 16]);

impl KeyId {
    /// Reads the 16 bytes of a name; `None` for any other length.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The public name of a key that no one here can see: the beginning of SHA-256 over the words
    /// "borealis key id v1", the scheme and the parts of the key's name in its service, each followed by a
    /// zero byte.
    pub(crate) fn of_name(scheme: &str, parts: &[&str]) -> Self {
        let mut context = Context::new(&SHA256);
        for part in [SERVICE_KEY_ID, scheme].iter().chain(parts) {
            context.update(part.as_bytes());
            context.update(&[0]);
        }
        let mut id = [0; 16];
        id.copy_from_slice(&context.finish().as_ref()[..16]);
        Self(id)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for KeyId {
    type Err = borealis_base::id::BadId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<borealis_base::ObjectId>().map(|id| Self(id.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_base::SeededEntropy;

    /// RFC 5869, appendix A, has no vector of our shape with a 32-byte key, so this one was computed
    /// with an independent implementation: Python's `hmac` module, key 00..1f, no salt.
    #[test]
    fn derivation_is_hkdf_sha256() {
        let key = SecretKey::from_slice(&std::array::from_fn::<u8, 32, _>(|i| i as u8)).unwrap();
        assert_eq!(key.id().to_string(), "269e291675acd47ba26282a2c0881c44");
        let derived = derive(&key, &[0xAA; 16], b"borealis object key v1");
        assert_eq!(
            KeyId::from_slice(&derived.expose()[..16])
                .unwrap()
                .to_string(),
            "dba3ae96e9593ca60f85f4f5a7cddb2c"
        );
    }

    /// Computed with `printf 'borealis key id v1\0aws-kms\0NAME\0' | sha256sum`.
    #[test]
    fn the_id_of_a_services_key_is_a_digest_of_its_name() {
        let id = KeyId::of_name("aws-kms", &["NAME"]);
        assert_eq!(id.to_string(), "614819d43894abef77c2f76105edad4f");
        assert_ne!(
            KeyId::of_name("vault", &["a", "b"]),
            KeyId::of_name("vault", &["ab", ""])
        );
    }

    #[test]
    fn a_secret_never_shows_itself() {
        let key = SecretKey::random(&SeededEntropy::new(7));
        assert_eq!(format!("{key:?}"), "SecretKey(..)");
    }
}
