//! Digests of pages, by which a restore over files that are there learns, without fetching them, which pages
//! it need not write.
//!
//! A digest is the first 12 bytes of the tag that AES-256-GCM gives for a page as associated data, without
//! content, under a key derived from the data key: one multiplication per 16 bytes, far cheaper than SHA-256.
//! Under a key that nobody knows, two different pages of 8 KiB have the same digest with a probability below
//! 2^-80, whoever chose them; the nonce never changes, which is safe as long as no digest is shown, and they
//! stand in sealed frames only.
//!
//! ```text
//! per frame of pages
//!   frame number, varint; page file number, varint; count of pages, varint
//!   page numbers: the first as a varint, each further one as its distance to the one before
//!   the digests, in that order, 12 bytes each
//! ```

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use borealis_keys::{SecretKey, derive};

use super::frame::{FRAME_PAGE_BYTES_MAX, PAGE_BYTES_MIN};
use crate::wire::{Malformed, Reader, put_varint};

/// Bytes of a digest.
pub const PAGE_DIGEST_BYTES: usize = 12;
/// Bytes at which a frame of digests is closed.
const DIGEST_FRAME_BYTES: usize = 512 << 10;
/// Pages in one frame at most.
const FRAME_PAGES_MAX: u64 = FRAME_PAGE_BYTES_MAX as u64 / PAGE_BYTES_MIN as u64;
const KEY_INFO: &[u8] = b"borealis page digest key v1";

/// The digest of one page.
pub type PageDigest = [u8; PAGE_DIGEST_BYTES];

/// Makes digests under one data key.
#[derive(Clone)]
pub struct PageDigester(Arc<LessSafeKey>);

impl fmt::Debug for PageDigester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PageDigester(..)")
    }
}

impl PageDigester {
    /// For pages of packs that are sealed under `data_key`.
    pub fn new(data_key: &SecretKey) -> Self {
        let key = derive(data_key, &[], KEY_INFO);
        let key = UnboundKey::new(&AES_256_GCM, key.expose()).expect("a 32-byte key fits AES-256");
        Self(Arc::new(LessSafeKey::new(key)))
    }

    /// The digest of a page.
    pub fn digest(&self, page: &[u8]) -> PageDigest {
        let nonce = Nonce::assume_unique_for_key([0; NONCE_LEN]);
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce, Aad::from(page), &mut [])
            .expect("a page is far shorter than what AES-GCM can authenticate");
        let mut digest = [0; PAGE_DIGEST_BYTES];
        digest.copy_from_slice(&tag.as_ref()[..PAGE_DIGEST_BYTES]);
        digest
    }
}

/// The digests of one frame of pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameDigests {
    /// The frame's number in its pack.
    pub frame: u32,
    /// The page file.
    pub file: u32,
    /// Its pages, ascending.
    pub pages: Vec<(u32, PageDigest)>,
}

/// Collects the digests of a pack.
#[derive(Debug, Default)]
pub struct DigestFrames {
    full: Vec<Vec<u8>>,
    open: Vec<u8>,
}

impl DigestFrames {
    /// Adds the digests of `numbers`, ascending, which frame `frame` holds of page file `file`.
    pub fn add(&mut self, frame: u32, file: u32, numbers: &[u32], digests: &[PageDigest]) {
        if self.open.len() >= DIGEST_FRAME_BYTES {
            self.full.push(std::mem::take(&mut self.open));
        }
        let out = &mut self.open;
        for number in [frame, file, numbers.len() as u32] {
            put_varint(out, u64::from(number));
        }
        let mut before = 0;
        for number in numbers {
            put_varint(out, u64::from(number - before));
            before = *number;
        }
        out.extend(digests.as_flattened());
    }

    /// The plain bytes of the frames.
    pub fn finish(mut self) -> Vec<Vec<u8>> {
        if !self.open.is_empty() {
            self.full.push(self.open);
        }
        self.full
    }
}

/// Reads a frame's plain bytes. Total: any other bytes are refused.
pub fn decode(plain: &[u8]) -> Result<Vec<FrameDigests>, Malformed> {
    let mut reader = Reader::new(plain, "a frame of digests");
    let mut frames = Vec::new();
    while reader.remaining() > 0 {
        let (frame, file, count) = (reader.varint32()?, reader.varint32()?, reader.varint()?);
        if count == 0 || count > FRAME_PAGES_MAX {
            return Err(Malformed::new(
                "digests of a frame of no pages, or of too many",
            ));
        }
        let mut pages: Vec<(u32, PageDigest)> = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let step = reader.varint32()?;
            let number = match pages.last() {
                None => Some(step),
                Some((last, _)) if step > 0 => last.checked_add(step),
                Some(_) => None,
            };
            let number = number
                .ok_or_else(|| Malformed::new("page numbers of digests are not ascending"))?;
            pages.push((number, [0; PAGE_DIGEST_BYTES]));
        }
        for (_, digest) in &mut pages {
            digest.copy_from_slice(reader.take(PAGE_DIGEST_BYTES)?);
        }
        frames.push(FrameDigests { frame, file, pages });
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn digester(byte: u8) -> PageDigester {
        PageDigester::new(&SecretKey::from_slice(&[byte; 32]).unwrap())
    }

    proptest! {
        #[test]
        fn digests_are_read_back(frames in proptest::collection::vec(
            (any::<u32>(), any::<u32>(), proptest::collection::btree_set(any::<u32>(), 1..64)), 0..8,
        )) {
            let mut out = DigestFrames::default();
            let mut expected = Vec::new();
            for (frame, file, numbers) in frames {
                let numbers: Vec<u32> = BTreeSet::into_iter(numbers).collect();
                let digest = |number: &u32| digester(1).digest(&number.to_le_bytes());
                let digests: Vec<PageDigest> = numbers.iter().map(digest).collect();
                out.add(frame, file, &numbers, &digests);
                expected.push(FrameDigests { frame, file, pages: numbers.into_iter().zip(digests).collect() });
            }
            let read: Vec<FrameDigests> =
                out.finish().iter().flat_map(|plain| decode(plain).unwrap()).collect();
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn any_bytes_are_decoded_without_panic(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }

        #[test]
        fn every_bit_of_a_page_counts(page in proptest::collection::vec(any::<u8>(), 512), bit in 0..4096_usize) {
            let mut other = page.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            prop_assert_ne!(digester(1).digest(&page), digester(1).digest(&other));
            prop_assert_ne!(digester(1).digest(&page), digester(2).digest(&page));
        }
    }

    /// Written out by hand from the layout in `docs/formats/pages.md`.
    #[test]
    fn the_layout_is_the_documented_one() {
        let mut frames = DigestFrames::default();
        frames.add(3, 300, &[7, 9], &[[0xAA; 12], [0xBB; 12]]);
        let mut expected = vec![3, 0xAC, 0x02, 2, 7, 2];
        expected.extend([0xAA; 12]);
        expected.extend([0xBB; 12]);
        assert_eq!(frames.finish(), [expected]);
    }

    #[test]
    fn many_digests_go_on_in_another_frame() {
        let mut frames = DigestFrames::default();
        let numbers: Vec<u32> = (0..128).collect();
        for frame in 0..1_000 {
            frames.add(frame, 1, &numbers, &vec![[1; 12]; 128]);
        }
        let frames = frames.finish();
        assert!(frames.len() > 1);
        assert!(
            frames
                .iter()
                .all(|frame| frame.len() < DIGEST_FRAME_BYTES + 4_096)
        );
        let read: usize = frames
            .iter()
            .map(|frame| decode(frame).unwrap().len())
            .sum();
        assert_eq!(read, 1_000);
    }
}
