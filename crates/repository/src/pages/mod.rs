//! Base backups: pages in packs, the map that finds any page with one look-up, and the manifest
//! that names everything a base backup needs.

pub mod frame;
pub mod map;
pub mod parts;
