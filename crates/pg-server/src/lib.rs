//! Links to a PostgreSQL server, its data directory, and running one.
