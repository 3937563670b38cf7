//! Restore.
pub mod recovery_file;
pub mod target_dir;
