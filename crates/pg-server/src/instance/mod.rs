//! Running a server.

pub mod users;
