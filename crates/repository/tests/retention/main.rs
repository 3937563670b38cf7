//! Retention: what promises hold, over made-up and simulated histories.

mod history;
mod laws;
mod promises;
