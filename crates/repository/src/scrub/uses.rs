//! Who needs what: which base backups rest on an object, and what of them lies in some of its frames.

use borealis_base::ObjectId;

use super::is_damage;
use crate::Result;
use crate::pages::fetch::Fetcher;
use crate::pages::manifest::Manifest;
use crate::pages::map::Location;
use crate::pages::partial::PartialManifest;
use crate::plan::{LineageState, ObjectRef, Part};

/// A manifest, whole or partial.
pub(super) async fn load(fetcher: &Fetcher, object: &ObjectRef, partial: bool) -> Result<Loaded> {
    Ok(if partial {
        Loaded::Partial(Box::new(PartialManifest::load(fetcher, object).await?))
    } else {
        Loaded::Whole(Box::new(Manifest::load(fetcher, object).await?))
    })
}

pub(super) enum Loaded {
    Whole(Box<Manifest>),
    Partial(Box<PartialManifest>),
}

impl std::ops::Deref for Loaded {
    type Target = Manifest;
    fn deref(&self) -> &Manifest {
        match self {
            Self::Whole(manifest) => manifest,
            Self::Partial(partial) => partial.manifest(),
        }
    }
}

/// The entries of the base backups, partial ones included, that need `part`.
pub(super) async fn users(
    fetcher: &Fetcher,
    state: &LineageState,
    part: &Part,
) -> Result<Vec<u64>> {
    if matches!(part, Part::LogPiece(_) | Part::Other) {
        return Ok(Vec::new());
    }
    let whole = state.base_backups.iter();
    let whole = whole.map(|base| (base.entry, base.manifest, false));
    let partial = state.partial.iter();
    let partial = partial.map(|partial| (partial.entry, partial.manifest, true));
    let mut users = Vec::new();
    for (entry, object, partial) in whole.chain(partial) {
        if matches!(part, Part::Manifest(id) if *id == object.object) {
            users.push(entry);
            continue;
        }
        let manifest = match load(fetcher, &object, partial).await {
            Ok(manifest) => manifest,
            // It is damage of its own.
            Err(error) if is_damage(&error) => continue,
            Err(error) => return Err(error),
        };
        let needs = match part {
            Part::Manifest(id) => {
                (manifest.parts().iter()).any(|part| part.handle.object.object == *id)
            }
            Part::Pack(id, frames) => !pages_in(fetcher, &manifest, *id, frames).await?.is_empty(),
            Part::LogPiece(_) | Part::Other => false,
        };
        if needs {
            users.push(entry);
        }
    }
    Ok(users)
}

/// What of a base backup lies in some frames of a pack.
#[derive(Debug, Clone, Default)]
pub struct InFrames {
    /// Pages: (page file, first page, count).
    pub pages: Vec<(u32, u32, u32)>,
    /// Names of blobs.
    pub blobs: Vec<String>,
}

impl InFrames {
    /// Whether nothing does.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty() && self.blobs.is_empty()
    }
}

/// The same of a partial base backup.
pub async fn partial_pages_in(
    fetcher: &Fetcher,
    partial: &PartialManifest,
    pack: ObjectId,
    frames: &[u32],
) -> Result<InFrames> {
    pages_in(fetcher, partial.manifest(), pack, frames).await
}

/// What of `manifest` lies in `frames` of pack `pack`; in any of its frames if none are named. A part of the
/// page map that can't be read counts as no page: the manifest is then damaged itself.
pub async fn pages_in(
    fetcher: &Fetcher,
    manifest: &Manifest,
    pack: ObjectId,
    frames: &[u32],
) -> Result<InFrames> {
    let mut found = InFrames::default();
    let table = manifest.packs();
    if !table.values().any(|entry| entry.object.object == pack) {
        return Ok(found);
    }
    let is_hit = |number: &u32, frame: u32| {
        table
            .get(number)
            .is_some_and(|entry| entry.object.object == pack)
            && (frames.is_empty() || frames.contains(&frame))
    };
    for index in 0..manifest.parts().len() {
        let runs = match manifest.load_part(fetcher, index).await {
            Ok(runs) => runs,
            Err(error) if is_damage(&error) => continue,
            Err(error) => return Err(error),
        };
        for run in runs {
            if let Location::Frame { pack, frame } = run.at
                && is_hit(&pack, frame)
            {
                found.pages.push((run.file, run.first, run.count));
            }
        }
    }
    for blob in &manifest.files().blobs {
        if (blob.chunks.iter()).any(|chunk| is_hit(&chunk.pack, chunk.frame)) {
            found.blobs.push(blob.name.clone());
        }
    }
    Ok(found)
}
