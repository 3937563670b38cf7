//! Blotting out what may differ between two true copies of a page, so that the rest can be
//! compared.
//!
//! Hint bits, killed index entries and the contents of free space change without a trace in the
//! log. The rules are those of `access/common/bufmask.c`, `heap_mask` and `btree_mask`, by which
//! the server itself checks replay.

use super::{PAGE_HEADER_LEN, PageHeader};
use crate::cursor;

/// `HEAP_XACT_MASK`: all of a tuple's bits about visibility.
const HEAP_XACT_MASK: u16 = 0xFFF0;
const HEAP_XMIN_FROZEN: u16 = 0x0300;
const HEAP_XMAX_COMMITTED: u16 = 0x0400;
const HEAP_XMAX_INVALID: u16 = 0x0800;
/// The offset that a speculative insertion has in place of its own (`SpecTokenOffsetNumber`).
const SPECULATIVE_OFFSET: u16 = 0xFFFE;
const LINE_POINTER_NORMAL: u32 = 1;

const BTREE_LEAF: u16 = 1 << 0;
/// `BTP_SPLIT_END | BTP_HAS_GARBAGE`.
const BTREE_HINT_FLAGS: u16 = 1 << 5 | 1 << 6;

fn put(page: &mut [u8], offset: usize, bytes: &[u8]) {
    if let Some(place) = page.get_mut(offset..offset + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

fn change_u16(page: &mut [u8], offset: usize, change: impl FnOnce(u16) -> u16) {
    if let Some(value) = cursor::at(page, offset).u16() {
        put(page, offset, &change(value).to_le_bytes());
    }
}

/// What every page has that may differ: position, checksum, hints in the header, and the contents
/// of free space. A page whose header is impossible keeps the rest as it is.
pub fn generic(page: &mut [u8]) {
    let Some(header) = PageHeader::parse(page) else {
        return;
    };
    put(page, 0, &[0; 10]);
    put(page, 20, &[0; 4]);
    // Free lines, full and all-visible: the first two are hints, and replay may leave out the
    // third.
    change_u16(page, 10, |flags| flags & !0x0007);
    let (lower, upper) = (usize::from(header.lower), usize::from(header.upper));
    if lower >= PAGE_HEADER_LEN
        && let Some(free) = page.get_mut(lower..upper)
    {
        free.fill(0);
    }
}

/// The line pointers of a page, as (offset of the pointer, its word).
fn line_pointers(page: &[u8]) -> impl Iterator<Item = (usize, u32)> + use<> {
    let lower = PageHeader::parse(page).map_or(0, |header| usize::from(header.lower));
    let pointers: Vec<_> = (PAGE_HEADER_LEN..lower.min(page.len()))
        .step_by(4)
        .filter_map(|offset| Some((offset, cursor::at(page, offset).u32()?)))
        .collect();
    pointers.into_iter()
}

/// A heap page (`heap_mask`): in addition each tuple's visibility hints, its command identifier,
/// and the padding behind it. A speculative insertion points to its own place.
pub fn heap(page: &mut [u8], block: u32) {
    for (index, (_, pointer)) in line_pointers(page).enumerate() {
        let start = (pointer & 0x7FFF) as usize;
        let len = (pointer >> 17) as usize;
        if pointer >> 15 & 3 == LINE_POINTER_NORMAL {
            mask_tuple(page, start, block, index as u16 + 1);
        }
        let end = start + len;
        let padded = end.next_multiple_of(8);
        if len > 0
            && let Some(padding) = page.get_mut(end..padded)
        {
            padding.fill(0);
        }
    }
    generic(page);
}

fn mask_tuple(page: &mut [u8], start: usize, block: u32, item: u16) {
    // xmin, xmax, command identifier, ctid (block as two words, item), infomask2, infomask.
    let infomask = start + 20;
    change_u16(page, infomask, |bits| {
        if bits & HEAP_XMIN_FROZEN == HEAP_XMIN_FROZEN {
            bits & !(HEAP_XMAX_INVALID | HEAP_XMAX_COMMITTED)
        } else {
            bits & !HEAP_XACT_MASK
        }
    });
    put(page, start + 8, &[0; 4]);
    if cursor::at(page, start + 16).u16() == Some(SPECULATIVE_OFFSET) {
        put(page, start + 12, &((block >> 16) as u16).to_le_bytes());
        put(page, start + 14, &(block as u16).to_le_bytes());
        put(page, start + 16, &item.to_le_bytes());
    }
}

/// A B-tree page (`btree_mask`): in addition killed entries of leaves, the hints among its flags,
/// and the cycle of the last vacuum.
pub fn btree(page: &mut [u8]) {
    let special = PageHeader::parse(page).map_or(0, |header| usize::from(header.special));
    let flags = cursor::at(page, special + 12).u16().unwrap_or_default();
    if flags & BTREE_LEAF != 0 {
        for (offset, pointer) in line_pointers(page) {
            put(page, offset, &(pointer & !(3 << 15)).to_le_bytes());
        }
    }
    change_u16(page, special + 12, |flags| flags & !BTREE_HINT_FLAGS);
    put(page, special + 14, &[0; 2]);
    generic(page);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pointer(offset: u32, flags: u32, len: u32) -> u32 {
        offset | flags << 15 | len << 17
    }

    /// A heap page with one tuple of 33 bytes at 8152.
    fn heap_page() -> Vec<u8> {
        let mut page = vec![0; 8192];
        put(&mut page, 12, &28_u16.to_le_bytes());
        put(&mut page, 14, &8152_u16.to_le_bytes());
        put(&mut page, 16, &8192_u16.to_le_bytes());
        put(&mut page, 24, &pointer(8152, 1, 33).to_le_bytes());
        put(&mut page, 8152, &77_u32.to_le_bytes());
        put(&mut page, 8152 + 20, &0x0802_u16.to_le_bytes());
        page
    }

    fn masked(mut page: Vec<u8>) -> Vec<u8> {
        heap(&mut page, 9);
        page
    }

    #[test]
    fn hint_bits_free_space_and_padding_are_masked() {
        let before = heap_page();
        let mut after = before.clone();
        put(&mut after, 0, &[1; 10]);
        put(&mut after, 20, &[9; 4]);
        put(&mut after, 100, b"left over");
        put(&mut after, 8152 + 20, &0x0902_u16.to_le_bytes());
        put(&mut after, 8152 + 8, &5_u32.to_le_bytes());
        put(&mut after, 8152 + 33, &[7; 7]);
        assert_ne!(before, after);
        assert_eq!(masked(before), masked(after));
    }

    #[test]
    fn a_changed_tuple_is_seen() {
        let before = heap_page();
        for offset in [8152, 8152 + 4, 8152 + 24, 8152 + 32, 24] {
            let mut after = before.clone();
            after[offset] ^= 0x10;
            assert_ne!(masked(before.clone()), masked(after), "byte {offset}");
        }
    }

    #[test]
    fn killed_entries_of_a_leaf_are_masked_and_moved_ones_are_not() {
        let mut page = vec![0; 8192];
        put(&mut page, 12, &28_u16.to_le_bytes());
        put(&mut page, 14, &8160_u16.to_le_bytes());
        put(&mut page, 16, &8176_u16.to_le_bytes());
        put(&mut page, 24, &pointer(8160, 1, 16).to_le_bytes());
        put(&mut page, 8176 + 12, &BTREE_LEAF.to_le_bytes());
        let mask = |mut page: Vec<u8>| {
            btree(&mut page);
            page
        };
        let mut killed = page.clone();
        put(&mut killed, 24, &pointer(8160, 3, 16).to_le_bytes());
        put(&mut killed, 8176 + 12, &(BTREE_LEAF | 1 << 6).to_le_bytes());
        assert_eq!(mask(page.clone()), mask(killed));
        let mut moved = page.clone();
        put(&mut moved, 24, &pointer(8168, 1, 16).to_le_bytes());
        assert_ne!(mask(page), mask(moved));
    }

    proptest! {
        #[test]
        fn no_page_panics(mut page: Vec<u8>, header: [u8; 24]) {
            page.resize(8192, 0x5A);
            page[..24].copy_from_slice(&header);
            for mask in [generic as fn(&mut [u8]), btree, |page| heap(page, 1)] {
                mask(&mut page.clone());
                mask(&mut page.clone()[..30]);
            }
        }
    }
}
