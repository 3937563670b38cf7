//! Joins a server to a repository.
