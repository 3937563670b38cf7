//! Pages of relations: header, checksum, and what makes one valid (`storage/bufpage.h`,
//! `storage/page/bufpage.c`, `storage/checksum_impl.h`).

mod checksum;
pub mod mask;

pub use checksum::checksum;

use crate::{Lsn, cursor};

/// Bytes of a page's header, before its line pointers.
pub const PAGE_HEADER_LEN: usize = 24;

/// The page size that every distribution of PostgreSQL is built with.
pub const DEFAULT_PAGE_SIZE: u32 = 8192;

/// The flags a page can have, `PD_VALID_FLAG_BITS`.
const VALID_FLAGS: u16 = 0x0007;

/// The beginning of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageHeader {
    /// The end of the last log record that changed the page.
    pub lsn: Lsn,
    /// The checksum as stored; 0 where checksums are off.
    pub checksum: u16,
    /// `PD_HAS_FREE_LINES` and others.
    pub flags: u16,
    /// Where free space begins.
    pub lower: u16,
    /// Where free space ends.
    pub upper: u16,
    /// Where the access method's own area begins.
    pub special: u16,
    /// Page size and layout version in one word.
    pub size_and_version: u16,
}

impl PageHeader {
    /// Reads the header; `None` if there are fewer bytes than one.
    pub fn parse(page: &[u8]) -> Option<Self> {
        let mut cursor = cursor::Cursor::new(page.get(..PAGE_HEADER_LEN)?);
        // The position is two 32-bit words, the upper one first, whatever the machine's byte order.
        let high = u64::from(cursor.u32()?);
        let low = u64::from(cursor.u32()?);
        Some(Self {
            lsn: Lsn(high << 32 | low),
            checksum: cursor.u16()?,
            flags: cursor.u16()?,
            lower: cursor.u16()?,
            upper: cursor.u16()?,
            special: cursor.u16()?,
            size_and_version: cursor.u16()?,
        })
    }

    /// Whether the offsets could be those of a page of `page_size` bytes.
    const fn is_sane(&self, page_size: usize) -> bool {
        self.flags & !VALID_FLAGS == 0
            && self.lower <= self.upper
            && self.upper <= self.special
            && self.special as usize <= page_size
            && self.special.is_multiple_of(8)
    }
}

/// Whether a page holds nothing but zeros: allocated and never written, which is valid.
pub fn is_new(page: &[u8]) -> bool {
    // Eight words at a time, so that a base backup does not pay for this on every page.
    let mut chunks = page.chunks_exact(64);
    chunks
        .by_ref()
        .all(|chunk| chunk.iter().fold(0, |sum, byte| sum | byte) == 0)
        && chunks.remainder().iter().all(|byte| *byte == 0)
}

/// What a look at a page says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageState {
    /// All zeros.
    New,
    /// A page, with the position of its last change.
    Valid(Lsn),
    /// Not a page, or not this one. Read from a live server it may only be torn: read it again.
    Invalid(PageFault),
}

/// What is wrong with a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PageFault {
    /// Less or more than one page.
    #[error("its length is not that of a page")]
    Length,
    /// The offsets in its header contradict each other.
    #[error("its header is impossible")]
    Header,
    /// The checksum is another.
    #[error("its checksum is {stored:#06x} and should be {computed:#06x}")]
    Checksum {
        /// What the page says.
        stored: u16,
        /// What its contents give.
        computed: u16,
    },
}

/// Checks a page as the server does when it reads one (`PageIsVerifiedExtended`). `block` is its
/// number within the fork, counted across segments; `checksums` says whether the cluster has them.
pub fn verify(page: &[u8], block: u32, page_size: usize, checksums: bool) -> PageState {
    if page.len() != page_size || page_size < PAGE_HEADER_LEN || !page_size.is_multiple_of(128) {
        return PageState::Invalid(PageFault::Length);
    }
    let Some(header) = PageHeader::parse(page) else {
        return PageState::Invalid(PageFault::Length);
    };
    let mut fault = None;
    if header.upper != 0 {
        let computed = if checksums {
            checksum(page, block)
        } else {
            header.checksum
        };
        if computed != header.checksum {
            fault = Some(PageFault::Checksum {
                stored: header.checksum,
                computed,
            });
        } else if header.is_sane(page_size) {
            return PageState::Valid(header.lsn);
        }
    }
    if is_new(page) {
        PageState::New
    } else {
        PageState::Invalid(fault.unwrap_or(PageFault::Header))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Vec<u8> {
        let mut page = vec![0; 8192];
        page[4..8].copy_from_slice(&0x1234_u32.to_le_bytes());
        page[..4].copy_from_slice(&7_u32.to_le_bytes());
        page[12..14].copy_from_slice(&28_u16.to_le_bytes());
        page[14..16].copy_from_slice(&8000_u16.to_le_bytes());
        page[16..18].copy_from_slice(&8192_u16.to_le_bytes());
        page[18..20].copy_from_slice(&0x2004_u16.to_le_bytes());
        let sum = checksum(&page, 42);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        page
    }

    #[test]
    fn a_page_is_valid_only_at_its_own_place() {
        let page = page();
        assert_eq!(
            verify(&page, 42, 8192, true),
            PageState::Valid(Lsn(0x7_0000_1234))
        );
        assert!(matches!(
            verify(&page, 43, 8192, true),
            PageState::Invalid(PageFault::Checksum { .. })
        ));
        assert_eq!(
            verify(&page, 43, 8192, false),
            PageState::Valid(Lsn(0x7_0000_1234))
        );
        assert_eq!(
            verify(&page[..8191], 42, 8192, true),
            PageState::Invalid(PageFault::Length)
        );
    }

    #[test]
    fn a_page_of_zeros_is_new_and_one_with_a_single_bit_is_not() {
        let mut page = vec![0; 8192];
        assert_eq!(verify(&page, 0, 8192, true), PageState::New);
        page[8191] = 1;
        assert_eq!(
            verify(&page, 0, 8192, true),
            PageState::Invalid(PageFault::Header)
        );
    }

    #[test]
    fn flipped_bits_are_found() {
        // Fixed places: sixteen bits let one flip in some 65,000 pass.
        for byte in (0..8192).step_by(97) {
            let mut page = page();
            page[byte] ^= 8;
            assert!(
                matches!(verify(&page, 42, 8192, true), PageState::Invalid(_)),
                "byte {byte}"
            );
        }
    }
}
