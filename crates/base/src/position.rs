//! Places in a log.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A byte position in a log. Ranges of positions are half open, `[start, end)`.
///
/// Shown as two hexadecimal halves, `16/B374D848`, the way PostgreSQL writes a log sequence number.
/// A position means nothing without its lineage and [`Branch`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Position(pub u64);

impl Position {
    /// The position before every log. PostgreSQL calls it `InvalidXLogRecPtr`.
    pub const ZERO: Self = Self(0);

    /// The position `bytes` further on; saturates, so that hostile input cannot wrap around.
    #[must_use]
    pub const fn plus(self, bytes: u64) -> Self {
        Self(self.0.saturating_add(bytes))
    }

    /// Bytes from `earlier` to `self`, zero where `earlier` is not earlier.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The start of the aligned block of `size` bytes that holds this position.
    #[must_use]
    pub const fn align_down(self, size: u64) -> Self {
        Self(self.0 - self.0 % size)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not a position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a log position; it is written as two hexadecimal numbers, for example 16/B374D848"
)]
pub struct BadPosition(String);

impl FromStr for Position {
    type Err = BadPosition;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let half = |digits: &str| {
            let valid = (1..=8).contains(&digits.len())
                && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            valid
                .then(|| u64::from_str_radix(digits, 16).ok())
                .flatten()
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Self(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| BadPosition(text.to_owned()))
    }
}

impl From<Position> for String {
    fn from(position: Position) -> Self {
        position.to_string()
    }
}

impl TryFrom<String> for Position {
    type Error = BadPosition;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// Which history of a log a position belongs to. PostgreSQL calls it a timeline: a promotion or a
/// recovery that stops early begins a new one, and the same position can then hold other bytes.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Branch(pub u32);

impl fmt::Display for Branch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn shown_positions_are_accepted_back(value: u64) {
            let position = Position(value);
            prop_assert_eq!(position.to_string().parse::<Position>(), Ok(position));
        }
    }

    #[test]
    fn malformed_positions_are_refused() {
        for text in [
            "",
            "/",
            "1",
            "1/",
            "/1",
            "G/0",
            "1/123456789",
            "+1/2",
            "1/2/3",
            " 1/2",
        ] {
            assert!(text.parse::<Position>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(Position(u64::MAX).plus(1), Position(u64::MAX));
        assert_eq!(Position(1).since(Position(2)), 0);
        assert_eq!(Position(8195).align_down(8192), Position(8192));
    }
}
