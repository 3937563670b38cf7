//! Store, packs, page maps, log and ledger of one repository.

pub mod plan;
