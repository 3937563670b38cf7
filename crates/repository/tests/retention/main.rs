//! Retention: what promises hold, over made-up and simulated histories.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

mod history;
mod laws;
mod promises;
