//! Bytes of our own layouts: LEB128 varints, zigzag deltas, and a reader that never panics.
//!
//! Protobuf serves the messages; what is here serves columns and page lists, where a tag per value
//! would cost more than the value.

/// Bytes that are not what their layout says. The caller adds which object they came from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

impl Malformed {
    /// An error that says `what` is wrong.
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

/// Appends `value` as a LEB128 varint: seven bits a byte, low bits first.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7F) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a signed value, zigzag coded so that small negative ones stay short.
pub fn put_zigzag(out: &mut Vec<u8>, value: i64) {
    put_varint(
        out,
        (value.cast_unsigned() << 1) ^ (value >> 63).cast_unsigned(),
    );
}

/// Reads a byte string from its front.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    /// A reader of `bytes`, which errors call `what`.
    pub const fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { bytes, what }
    }

    fn short(&self) -> Malformed {
        Malformed(format!("{} ends too early", self.what))
    }

    /// The next `len` bytes.
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self
            .bytes
            .split_at_checked(len)
            .ok_or_else(|| self.short())?;
        self.bytes = tail;
        Ok(head)
    }

    /// A little-endian 32-bit number.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        let (head, tail) = self.bytes.split_first_chunk().ok_or_else(|| self.short())?;
        self.bytes = tail;
        Ok(u32::from_le_bytes(*head))
    }

    /// A varint. Refuses one that does not fit 64 bits.
    pub fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (&byte, tail) = self.bytes.split_first().ok_or_else(|| self.short())?;
            self.bytes = tail;
            let bits = u64::from(byte & 0x7F);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed(format!(
            "{} holds a number above 64 bits",
            self.what
        )))
    }

    /// A varint that fits 32 bits.
    pub fn varint32(&mut self) -> Result<u32, Malformed> {
        u32::try_from(self.varint()?)
            .map_err(|_| Malformed(format!("{} holds a number above 32 bits", self.what)))
    }

    /// A zigzag-coded signed number.
    pub fn zigzag(&mut self) -> Result<i64, Malformed> {
        let coded = self.varint()?;
        Ok((coded >> 1).cast_signed() ^ -(coded & 1).cast_signed())
    }

    /// What is left.
    pub const fn rest(self) -> &'a [u8] {
        self.bytes
    }

    /// Bytes left.
    pub const fn remaining(&self) -> usize {
        self.bytes.len()
    }

    /// Checks that nothing is left.
    pub fn end(self) -> Result<(), Malformed> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        Err(Malformed(format!(
            "{} is followed by {} unexpected bytes",
            self.what,
            self.bytes.len()
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_are_read_back(unsigned: u64, signed: i64) {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, unsigned);
            put_zigzag(&mut bytes, signed);
            let mut reader = Reader::new(&bytes, "test");
            prop_assert_eq!(reader.varint(), Ok(unsigned));
            prop_assert_eq!(reader.zigzag(), Ok(signed));
            prop_assert_eq!(reader.end(), Ok(()));
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let mut reader = Reader::new(&bytes, "test");
            while reader.remaining() > 0 && reader.varint().is_ok() {}
        }
    }

    #[test]
    fn small_numbers_are_one_byte() {
        let mut bytes = Vec::new();
        put_zigzag(&mut bytes, -1);
        put_varint(&mut bytes, 300);
        assert_eq!(bytes, [1, 0xAC, 2]);
    }

    #[test]
    fn an_overlong_number_is_refused() {
        assert!(Reader::new(&[0xFF; 11], "test").varint().is_err());
    }
}
