//! The names of all objects in the store. Numbers are decimal with 12 digits and begin at 1.

use borealis_base::{LineageId, ObjectId};

/// The descriptor of the repository.
pub const DESCRIPTOR: &str = "repository";

/// The object by which a store is asked whether it honours create-if-absent. Its content is constant,
/// so that whoever asks, and however often, changes nothing. Not part of the repository.
pub const FENCING_PROBE: &str = "probe";

/// An object of `borealis repository probe`, which removes it at its end.
pub fn probe(id: ObjectId) -> String {
    format!("probes/{id}")
}

/// Ledger entries per folder, and per checkpoint.
pub const ENTRIES_PER_CHECKPOINT: u64 = 4_096;

/// Generation `n` of the catalog's key ring.
pub fn catalog_keys(n: u64) -> String {
    format!("keys/{n:012}")
}

/// Entry `n` of the catalog.
pub fn catalog(n: u64) -> String {
    format!("catalog/{n:012}")
}

/// The prefix of everything of a lineage.
pub fn lineage(lineage: LineageId) -> String {
    format!("lineages/{lineage}/")
}

/// Generation `n` of a lineage's key ring.
pub fn lineage_keys(lineage: LineageId, n: u64) -> String {
    format!("lineages/{lineage}/keys/{n:012}")
}

/// Epoch `n` of a lineage.
pub fn epoch(lineage: LineageId, n: u64) -> String {
    format!("lineages/{lineage}/epochs/{n:012}")
}

/// Ledger entry `n` of a lineage.
pub fn entry(lineage: LineageId, n: u64) -> String {
    let folder = n / ENTRIES_PER_CHECKPOINT;
    format!("lineages/{lineage}/ledger/{folder:012}/{n:012}")
}

/// Ledger checkpoint `n` of a lineage; it summarises entries `(n-1)*4096+1 ..= n*4096`.
pub fn checkpoint(lineage: LineageId, n: u64) -> String {
    format!("lineages/{lineage}/checkpoints/{n:012}")
}

/// Floor `n` of a lineage's ledger.
pub fn floor(lineage: LineageId, n: u64) -> String {
    format!("lineages/{lineage}/floors/{n:012}")
}

/// Maintenance epoch `n` of a lineage.
pub fn maintenance_epoch(lineage: LineageId, n: u64) -> String {
    format!("lineages/{lineage}/maintainers/{n:012}")
}

/// Maintenance entry `n` of a lineage.
pub fn maintenance_entry(lineage: LineageId, n: u64) -> String {
    format!("lineages/{lineage}/maintenance/{n:012}")
}

/// What the store's clock is asked with. Not part of the repository; removed at once.
pub fn clock(lineage: LineageId, id: ObjectId) -> String {
    format!("lineages/{lineage}/clock/{id}")
}

/// What the entries below a floor add up to.
pub fn baseline(lineage: LineageId, id: ObjectId) -> String {
    format!("lineages/{lineage}/baselines/{id}")
}

/// Merged log. The two digits spread objects over folders.
pub fn merged_log(lineage: LineageId, id: ObjectId) -> String {
    format!("lineages/{lineage}/log/{:02x}/{id}", id.0[0])
}

/// Entry `n` of a lineage's log of pins.
pub fn pin(lineage: LineageId, n: u64) -> String {
    format!("lineages/{lineage}/pins/{n:012}")
}

/// Entry `n` of a lineage's log of drills.
pub fn drill(lineage: LineageId, n: u64) -> String {
    format!("lineages/{lineage}/drills/{n:012}")
}

/// Entry `n` of a lineage's log of scrubs.
pub fn scrub(lineage: LineageId, n: u64) -> String {
    format!("lineages/{lineage}/scrubs/{n:012}")
}

/// A pack. The two digits spread packs over folders, so that none holds millions of files.
pub fn pack(lineage: LineageId, id: ObjectId) -> String {
    format!("lineages/{lineage}/packs/{:02x}/{id}", id.0[0])
}

/// A manifest.
pub fn manifest(lineage: LineageId, id: ObjectId) -> String {
    format!("lineages/{lineage}/manifests/{id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_format_page() {
        let l = LineageId([0xAB; 16]);
        let hex = "ab".repeat(16);
        assert_eq!(catalog(1), "catalog/000000000001");
        assert_eq!(
            entry(l, 4095),
            format!("lineages/{hex}/ledger/000000000000/000000004095")
        );
        assert_eq!(
            entry(l, 4096),
            format!("lineages/{hex}/ledger/000000000001/000000004096")
        );
        let id = ObjectId([0x0F; 16]);
        assert_eq!(
            pack(l, id),
            format!("lineages/{hex}/packs/0f/{}", "0f".repeat(16))
        );
    }
}
