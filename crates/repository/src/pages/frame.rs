//! The plain bytes of a frame of pages: a sorted set of pages of one page file.
//!
//! ```text
//! 0   4  page file number, u32 LE
//! 4   4  page size in bytes, u32 LE
//! 8   4  count of pages, u32 LE
//! 12  ..  page numbers: the first as a varint, each further one as its distance to the one before
//! ..  ..  the pages, in that order
//! ```
//!
//! A set, not a run: scattered changes would otherwise become frames of one page, larger by a fifth
//! and half as fast to decompress. The list stands inside the sealed bytes, so that a reader learns
//! from the frame itself which pages it holds and a frame in the wrong place cannot pass for another.

use bytes::Bytes;

use crate::wire::{Malformed, Reader, put_varint};

/// Bytes of pages in one frame at most.
pub const FRAME_PAGE_BYTES_MAX: usize = 1 << 20;

/// The smallest page.
pub const PAGE_BYTES_MIN: u32 = 512;

/// The largest page.
pub const PAGE_BYTES_MAX: u32 = 65_536;

const HEADER_BYTES: usize = 12;
/// A 32-bit varint at its longest.
const NUMBER_BYTES_MAX: usize = 5;

/// How many pages of `page_size` bytes a frame holds at most.
pub const fn frame_pages_max(page_size: u32) -> usize {
    FRAME_PAGE_BYTES_MAX / page_size as usize
}

/// Whether every byte is zero. Such pages are told by the map and stored nowhere.
pub fn is_zero(page: &[u8]) -> bool {
    page.iter().all(|byte| *byte == 0)
}

/// A decoded frame of pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageFrame {
    file: u32,
    page_size: u32,
    numbers: Vec<u32>,
    pages: Bytes,
}

fn check_shape(page_size: u32, count: usize) -> Result<usize, Malformed> {
    if !(PAGE_BYTES_MIN..=PAGE_BYTES_MAX).contains(&page_size) {
        return Err(Malformed(format!(
            "a page size of {page_size} bytes is out of bounds"
        )));
    }
    if count == 0 || count > frame_pages_max(page_size) {
        return Err(Malformed(format!(
            "a frame of {count} pages of {page_size} bytes is out of bounds"
        )));
    }
    Ok(count * page_size as usize)
}

impl PageFrame {
    /// Lays out `pages`, given in strictly ascending order, each `page_size` bytes.
    pub fn encode(file: u32, page_size: u32, pages: &[(u32, &[u8])]) -> Result<Vec<u8>, Malformed> {
        let page_bytes = check_shape(page_size, pages.len())?;
        let mut out =
            Vec::with_capacity(HEADER_BYTES + NUMBER_BYTES_MAX * pages.len() + page_bytes);
        out.extend_from_slice(&file.to_le_bytes());
        out.extend_from_slice(&page_size.to_le_bytes());
        out.extend_from_slice(&(pages.len() as u32).to_le_bytes());
        let mut before: Option<u32> = None;
        for (number, page) in pages {
            if page.len() != page_size as usize {
                return Err(Malformed(format!(
                    "page {number} of page file {file} has {} bytes instead of {page_size}",
                    page.len()
                )));
            }
            let step = match before {
                None => *number,
                Some(last) if *number > last => number - last,
                Some(last) => {
                    return Err(Malformed(format!(
                        "page {number} of page file {file} follows page {last}"
                    )));
                }
            };
            put_varint(&mut out, u64::from(step));
            before = Some(*number);
        }
        for (_, page) in pages {
            out.extend_from_slice(page);
        }
        Ok(out)
    }

    /// Reads a frame's plain bytes. Total: any other bytes are refused.
    pub fn decode(plain: &Bytes) -> Result<Self, Malformed> {
        let mut reader = Reader::new(plain, "a frame of pages");
        let (file, page_size) = (reader.u32()?, reader.u32()?);
        let count = reader.u32()? as usize;
        let page_bytes = check_shape(page_size, count)?;
        let mut numbers = Vec::with_capacity(count);
        let mut last: Option<u32> = None;
        for _ in 0..count {
            let step = reader.varint32()?;
            let number = match last {
                None => Some(step),
                Some(last) if step > 0 => last.checked_add(step),
                Some(_) => None,
            };
            let number = number
                .ok_or_else(|| Malformed::new("page numbers of a frame are not ascending"))?;
            numbers.push(number);
            last = Some(number);
        }
        if reader.remaining() != page_bytes {
            return Err(Malformed(format!(
                "a frame of {count} pages holds {} bytes of pages instead of {page_bytes}",
                reader.remaining()
            )));
        }
        let pages = plain.slice(plain.len() - page_bytes..);
        Ok(Self {
            file,
            page_size,
            numbers,
            pages,
        })
    }

    /// Which page file.
    pub const fn file(&self) -> u32 {
        self.file
    }

    /// Bytes of one page.
    pub const fn page_size(&self) -> u32 {
        self.page_size
    }

    /// The pages held, ascending.
    pub fn numbers(&self) -> &[u32] {
        &self.numbers
    }

    /// One page; `None` if the frame does not hold it.
    pub fn page(&self, number: u32) -> Option<Bytes> {
        let index = self.numbers.binary_search(&number).ok()?;
        let size = self.page_size as usize;
        Some(self.pages.slice(index * size..(index + 1) * size))
    }

    /// All pages in order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Bytes)> + '_ {
        let size = self.page_size as usize;
        self.numbers.iter().enumerate().map(move |(index, number)| {
            (*number, self.pages.slice(index * size..(index + 1) * size))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn frames_are_read_back(
            file: u32,
            pages in proptest::collection::btree_map(any::<u32>(), any::<u8>(), 1..64),
        ) {
            let pages: BTreeMap<u32, Vec<u8>> =
                pages.into_iter().map(|(number, fill)| (number, vec![fill; 512])).collect();
            let list: Vec<(u32, &[u8])> = pages.iter().map(|(n, p)| (*n, p.as_slice())).collect();
            let frame = PageFrame::decode(&PageFrame::encode(file, 512, &list).unwrap().into()).unwrap();
            prop_assert_eq!(frame.file(), file);
            let read: BTreeMap<u32, Vec<u8>> = frame.iter().map(|(n, p)| (n, p.to_vec())).collect();
            for (number, page) in &pages {
                prop_assert_eq!(&frame.page(*number).unwrap()[..], page.as_slice());
            }
            prop_assert_eq!(read, pages);
        }

        #[test]
        fn any_bytes_are_decoded_without_panic(bytes: Vec<u8>) {
            let _ = PageFrame::decode(&bytes.into());
        }
    }

    /// Written out by hand from the layout in `docs/formats/pages.md`.
    #[test]
    fn the_layout_is_the_documented_one() {
        let (a, b) = (vec![0xAA; 512], vec![0xBB; 512]);
        let bytes = PageFrame::encode(7, 512, &[(300, &a), (301, &b)]).unwrap();
        let mut expected = vec![7, 0, 0, 0, 0, 2, 0, 0, 2, 0, 0, 0, 0xAC, 0x02, 1];
        expected.extend(&a);
        expected.extend(&b);
        assert_eq!(bytes, expected);
    }

    #[test]
    fn malformed_frames_are_refused() {
        let page = vec![1; 512];
        assert!(PageFrame::encode(1, 512, &[]).is_err(), "empty");
        assert!(
            PageFrame::encode(1, 512, &[(2, &page), (2, &page)]).is_err(),
            "twice the same page"
        );
        assert!(
            PageFrame::encode(1, 512, &[(2, &page[1..])]).is_err(),
            "short page"
        );
        assert!(
            PageFrame::encode(1, 8, &[(2, &page[..8])]).is_err(),
            "page too small"
        );
        let good = PageFrame::encode(1, 512, &[(2, &page)]).unwrap();
        for len in 0..good.len() {
            assert!(
                PageFrame::decode(&good[..len].to_vec().into()).is_err(),
                "cut at {len}"
            );
        }
        let long = [good.as_slice(), &[0]].concat();
        assert!(PageFrame::decode(&long.into()).is_err(), "trailing byte");
    }
}
