//! Restore.
pub mod files;
pub mod log;
pub mod lookup;
pub mod recovery_file;
pub mod target_dir;
