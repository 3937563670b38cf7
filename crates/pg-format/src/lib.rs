//! PostgreSQL's bytes: log records, pages, control file, labels.
