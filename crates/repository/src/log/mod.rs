//! The log: pieces of positioned bytes, each with its time map and the engine's index.

pub mod time_map;
