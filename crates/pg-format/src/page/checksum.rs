//! The checksum of a page: thirty-two interleaved FNV-1a sums with an extra shift
//! (`storage/checksum_impl.h`).

/// Sums computed side by side.
const SUMS: usize = 32;
/// Bytes of one row of words, one word for each sum.
const ROW: usize = SUMS * 4;
const PRIME: u32 = 16_777_619;

/// Where each sum starts.
const BASE: [u32; SUMS] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

#[inline]
const fn step(sum: u32, word: u32) -> u32 {
    let mixed = sum ^ word;
    mixed.wrapping_mul(PRIME) ^ (mixed >> 17)
}

/// One row of the page into the sums. The arrays have a fixed length, so that the compiler turns
/// the loop into vector instructions.
#[inline]
fn add_row(sums: &mut [u32; SUMS], row: &[u8; ROW]) {
    let (words, _) = row.as_chunks::<4>();
    for (sum, word) in sums.iter_mut().zip(words) {
        *sum = step(*sum, u32::from_le_bytes(*word));
    }
}

/// The checksum that the page should have at `block` of its fork, never 0. The stored checksum does
/// not take part. Only whole rows of 128 bytes are summed, and every page size is a multiple of
/// that.
pub fn checksum(page: &[u8], block: u32) -> u16 {
    let mut sums = BASE;
    let (rows, _) = page.as_chunks::<ROW>();
    let mut rows = rows.iter();
    if let Some(first) = rows.next() {
        let mut first = *first;
        first[8] = 0;
        first[9] = 0;
        add_row(&mut sums, &first);
    }
    for row in rows {
        add_row(&mut sums, row);
    }
    for _ in 0..2 {
        for sum in &mut sums {
            *sum = step(*sum, 0);
        }
    }
    let mixed = sums.iter().fold(0, |result, sum| result ^ sum) ^ block;
    (mixed % 65_535) as u16 + 1
}
