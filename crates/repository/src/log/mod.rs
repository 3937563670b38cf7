//! The log: pieces of positioned bytes, each with its time map and the engine's index.
//!
//! ```text
//! bytes, time steps, index ── prepare_piece ──> frames of a ledger entry
//! LineageState ── pieces_of ──> LogReader ──> bytes, without a break
//! ```

pub mod merged;
pub mod names;
pub mod piece;
pub mod reader;
pub mod time_map;

#[cfg(test)]
mod tests;

pub use merged::Part;
pub use names::{prepare_names, read_names};
pub use piece::{LogBytes, PieceIdentity, StoredPiece, prepare_piece, read_back};
pub use reader::{LogReader, TimeMaps, pieces_of};
