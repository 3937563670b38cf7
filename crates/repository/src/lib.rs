//! Store, packs, page maps, log and ledger of one repository.

pub mod pages;
pub mod plan;
pub mod wire;
