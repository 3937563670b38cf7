//! Key files and the envelope.
