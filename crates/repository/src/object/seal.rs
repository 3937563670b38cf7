//! Sealing one frame.
//!
//! Each object has its own key, derived from a data key and the object's random id, so frame numbers
//! serve as nonces: no nonce repeats under one key as long as an id is never reused for other content.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use borealis_base::ObjectId;
use borealis_keys::{SecretKey, derive};

use super::HeadDigest;

const OBJECT_KEY_INFO: &[u8] = b"borealis object key v1";

/// The cipher of one object.
pub(super) struct ObjectCipher(LessSafeKey);

impl ObjectCipher {
    pub(super) fn new(data_key: &SecretKey, object: ObjectId) -> Self {
        let key = derive(data_key, &object.0, OBJECT_KEY_INFO);
        Self(LessSafeKey::new(
            UnboundKey::new(&AES_256_GCM, key.expose()).expect("a 32-byte key fits AES-256"),
        ))
    }

    /// Encrypts in place and appends the tag.
    pub(super) fn seal(&self, digest: &HeadDigest, frame: u32, content: &mut Vec<u8>) {
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce(frame), associated_data(digest, frame), content)
            .expect("a frame is far shorter than the 64 GiB that AES-GCM can seal");
        content.extend_from_slice(tag.as_ref());
    }

    /// The content, or `None` where anything is not as it was sealed.
    pub(super) fn open<'a>(
        &self,
        digest: &HeadDigest,
        frame: u32,
        stored: &'a mut [u8],
    ) -> Option<&'a mut [u8]> {
        self.0
            .open_in_place(nonce(frame), associated_data(digest, frame), stored)
            .ok()
    }
}

fn nonce(frame: u32) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[8..].copy_from_slice(&frame.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn associated_data(digest: &HeadDigest, frame: u32) -> Aad<[u8; 36]> {
    let mut data = [0; 36];
    data[..32].copy_from_slice(digest);
    data[32..].copy_from_slice(&frame.to_be_bytes());
    Aad::from(data)
}
