//! A hash for small keys made of numbers that the database server chose.

use std::hash::{BuildHasherDefault, Hasher};

/// Builds [`NumberHasher`]s.
pub(crate) type NumberHash = BuildHasherDefault<NumberHasher>;

/// Multiplies and rotates. Several are looked up for each record, which the standard library's hash
/// makes dear; its protection from chosen keys is not needed, since the tables are bounded.
#[derive(Default)]
pub(crate) struct NumberHasher(u64);

impl NumberHasher {
    fn add(&mut self, word: u64) {
        const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(FACTOR);
    }
}

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        // The table takes its index from the lower bits, and multiplication mixes upwards.
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.add(u64::from(*byte));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.add(u64::from(value));
    }

    fn write_u32(&mut self, value: u32) {
        self.add(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.add(value);
    }

    fn write_isize(&mut self, value: isize) {
        // An enum's number.
        self.add(value.cast_unsigned() as u64);
    }
}
