//! The damage that is known to a running protection: of its own scrubs, and of those that somebody else runs.

use std::sync::{Mutex, PoisonError};

use borealis_repository::Lineage;
use borealis_repository::plan::Damage;

use crate::error::Result;

/// The damage that stands, as it was last read.
pub struct KnownDamage {
    lineage: Lineage,
    standing: Mutex<Vec<Damage>>,
}

impl KnownDamage {
    /// Reads it.
    pub async fn load(lineage: &Lineage) -> Result<Self> {
        let known = Self {
            lineage: lineage.clone(),
            standing: Mutex::default(),
        };
        known.refresh().await?;
        Ok(known)
    }

    /// Reads it again.
    pub async fn refresh(&self) -> Result<()> {
        let standing = self.lineage.known_damage().await?;
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = standing;
        Ok(())
    }

    /// All of it.
    pub fn all(&self) -> Vec<Damage> {
        let standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        standing.clone()
    }
}
