//! Base backups: pages in packs, the map that finds any page with one look-up, and the manifest
//! that names everything a base backup needs.

pub mod digests;
pub mod fetch;
pub mod frame;
pub mod inspect;
pub mod manifest;
pub mod map;
mod message;
pub mod pack;
pub mod partial;
pub mod parts;
pub mod read;

#[cfg(test)]
mod sample_tests;
#[cfg(test)]
pub(crate) mod tests;
