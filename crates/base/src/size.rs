//! Amounts of bytes and of time as people write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

const UNITS: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// An amount of bytes. Shown with a binary unit, `1.5 GiB`; read from `16MiB`, `1GiB`, `8192`.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct ByteLen(pub u64);

impl fmt::Display for ByteLen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, size) = UNITS
            .iter()
            .find(|(_, size)| self.0 >= *size)
            .copied()
            .unwrap_or(("B", 1));
        if size == 1 {
            return write!(f, "{} B", self.0);
        }
        #[allow(clippy::cast_precision_loss)] // one decimal is shown
        let value = self.0 as f64 / size as f64;
        write!(f, "{value:.1} {unit}")
    }
}

/// A text that is not an amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadAmount {
    /// Not an amount of bytes.
    #[error("`{0}` is not a size; write a whole number with a unit, for example 16MiB or 1GiB")]
    Size(String),
    /// Not an amount of time.
    #[error(
        "`{0}` is not a duration; write a whole number with a unit, for example 500ms, 1s, 10min, 1h or 2d"
    )]
    Duration(String),
}

/// The whole number a text begins with, and what follows it.
fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim_start()))
}

impl FromStr for ByteLen {
    type Err = BadAmount;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (number, unit) = number_and_unit(text)?;
            let size = match unit.to_ascii_lowercase().as_str() {
                "" | "b" => 1,
                "k" | "kb" | "kib" => 1 << 10,
                "m" | "mb" | "mib" => 1 << 20,
                "g" | "gb" | "gib" => 1 << 30,
                "t" | "tb" | "tib" => 1 << 40,
                _ => return None,
            };
            number.checked_mul(size).map(Self)
        };
        parse().ok_or_else(|| BadAmount::Size(text.to_owned()))
    }
}

/// Reads a duration such as `500ms`, `1s`, `10min`, `1h` or `2d`.
pub fn parse_duration(text: &str) -> Result<Duration, BadAmount> {
    let parse = || {
        let (number, unit) = number_and_unit(text)?;
        let millis = match unit {
            "ms" => 1,
            "s" | "sec" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        number.checked_mul(millis).map(Duration::from_millis)
    };
    parse().ok_or_else(|| BadAmount::Duration(text.to_owned()))
}

/// Shows a duration for people: `850 ms`, `4.2 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`.
pub fn show_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..60 => format!("{:.1} s", duration.as_secs_f64()),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown() {
        assert_eq!("16MiB".parse(), Ok(ByteLen(16 << 20)));
        assert_eq!("1 GiB".parse(), Ok(ByteLen(1 << 30)));
        assert_eq!("8192".parse(), Ok(ByteLen(8192)));
        assert_eq!(ByteLen(1_610_612_736).to_string(), "1.5 GiB");
        assert_eq!(ByteLen(17).to_string(), "17 B");
        for text in ["", "MiB", "-1", "1.5GiB", "1 parsec", "99999999999TiB"] {
            assert!(text.parse::<ByteLen>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn durations_are_read_and_shown() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("10 min"), Ok(Duration::from_secs(600)));
        for text in ["", "1", "s", "1.5s", "-1s", "1 fortnight"] {
            assert!(parse_duration(text).is_err(), "{text:?} was accepted");
        }
        assert_eq!(show_duration(Duration::from_secs(200)), "3 min 20 s");
        assert_eq!(show_duration(Duration::from_millis(4_210)), "4.2 s");
    }
}
