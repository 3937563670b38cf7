//! Random 128-bit identifiers, shown as 32 lower-case hexadecimal digits.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Entropy;

/// A text that is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an identifier; it has 32 hexadecimal digits")]
pub struct BadId(String);

fn parse_hex(text: &str) -> Result<[u8; 16], BadId> {
    let bad = || BadId(text.to_owned());
    let digits = text.as_bytes();
    if digits.len() != 32 {
        return Err(bad());
    }
    let mut id = [0; 16];
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |c: u8| (c as char).to_digit(16).filter(|_| !c.is_ascii_uppercase());
        let (high, low) = (
            digit(pair[0]).ok_or_else(bad)?,
            digit(pair[1]).ok_or_else(bad)?,
        );
        *byte = (high << 4 | low) as u8;
    }
    Ok(id)
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(into = "String", try_from = "String")]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// A new identifier, never used before.
            pub fn random(entropy: &dyn Entropy) -> Self {
                let mut id = [0; 16];
                entropy.fill(&mut id);
                Self(id)
            }

            /// Reads the 16 bytes of an identifier; `None` for any other length.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = BadId;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                parse_hex(text).map(Self)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadId;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }
    };
}

identifier! {
    /// Names a repository; bound into everything sealed by its root key.
    RepositoryId
}
identifier! {
    /// Names one continuous history of one cluster. A restored or cloned cluster is a new lineage.
    LineageId
}
identifier! {
    /// Names one stored object of frames; never reused, so that no two writers share a name.
    ObjectId
}
identifier! {
    /// Names one attempt to create a ledger entry, so that a lost reply can be told from a rival.
    WriteId
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SeededEntropy;

    #[test]
    fn shown_identifiers_are_accepted_back() {
        let id = ObjectId::random(&SeededEntropy::new(1));
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().len(), 32);
    }

    #[test]
    fn malformed_identifiers_are_refused() {
        for text in ["", "00", &"g".repeat(32), &"A".repeat(32), &"0".repeat(33)] {
            assert!(text.parse::<ObjectId>().is_err(), "{text:?} was accepted");
        }
    }
}
