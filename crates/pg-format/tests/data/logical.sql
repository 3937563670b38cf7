-- What is logged at wal_level=logical only.
SELECT pg_create_logical_replication_slot('rewrites', 'pgoutput');
CREATE TABLE emptied (id int PRIMARY KEY);
INSERT INTO emptied VALUES (1);
TRUNCATE emptied;
VACUUM FULL pg_class;
SELECT pg_drop_replication_slot('rewrites');
