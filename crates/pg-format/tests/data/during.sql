-- What the log under test holds.
SELECT pg_create_restore_point('before everything');
INSERT INTO plain SELECT i, repeat('y', i % 90), ARRAY[i % 5, i % 13], point(i % 77, i / 77), int4range(i, i + 5)
  FROM generate_series(20001, 45000) AS i;
UPDATE plain SET note = note || 'z' WHERE id % 10 = 0;
DELETE FROM plain WHERE id % 9 = 0;
VACUUM plain;
INSERT INTO plain SELECT i, 'again', ARRAY[i % 3], point(i % 10, i % 20), int4range(i, i + 1) FROM generate_series(50001, 52000) AS i;
SELECT brin_summarize_new_values('plain_brin');
SELECT brin_desummarize_range('plain_brin', 0);
SELECT gin_clean_pending_list('plain_gin');
DELETE FROM plain WHERE id BETWEEN 30000 AND 44000;
VACUUM plain;
INSERT INTO plain SELECT i, md5(i::text), ARRAY[i], point(i, -i), int4range(i, i + 3) FROM generate_series(60001, 64000) AS i;

-- The disaster, with subtransactions of either fate.
BEGIN;
DELETE FROM doomed WHERE id <= 1000;
SAVEPOINT kept;
DELETE FROM doomed WHERE id BETWEEN 1001 AND 4000;
RELEASE kept;
SAVEPOINT undone;
DELETE FROM doomed WHERE id BETWEEN 4001 AND 5000;
ROLLBACK TO undone;
UPDATE doomed SET filler = 'short' WHERE id = 4500;
COMMIT;
BEGIN;
DELETE FROM doomed;
ROLLBACK;
DROP TABLE doomed;

-- Truncation by vacuum, then growth over the same blocks.
DELETE FROM shrinking WHERE id > 100;
VACUUM shrinking;
INSERT INTO shrinking SELECT i, repeat('t', 200) FROM generate_series(1, 2000) AS i;
TRUNCATE emptied;
INSERT INTO emptied VALUES (1);
VACUUM FULL rewritten;
CLUSTER plain USING plain_pkey;
REINDEX TABLE visible;
ALTER TABLE rewritten ALTER COLUMN id TYPE bigint;

-- Clearing visibility bits without naming the map.
UPDATE visible SET v = v + 1 WHERE id % 1000 = 0;
DELETE FROM visible WHERE id = 17;
SELECT id FROM visible WHERE id = 18 FOR UPDATE;
INSERT INTO visible SELECT i, i FROM generate_series(1, 10) AS i;
UPDATE parted SET id = id + 1000 WHERE id < 200;

-- Two-phase commits.
BEGIN; DELETE FROM visible WHERE id BETWEEN 100 AND 299; PREPARE TRANSACTION 'to be committed';
BEGIN; CREATE TABLE never (id int); INSERT INTO never SELECT generate_series(1, 500); PREPARE TRANSACTION 'to be aborted';
BEGIN; DROP TABLE parted_low; PREPARE TRANSACTION 'drops a table';
COMMIT PREPARED 'to be committed';
ROLLBACK PREPARED 'to be aborted';
COMMIT PREPARED 'drops a table';

-- Upserts, sequences, large values, multixacts, large records, invalidations.
CREATE TABLE upserted (id int PRIMARY KEY, n int);
INSERT INTO upserted SELECT i % 50, 1 FROM generate_series(1, 50) AS i;
INSERT INTO upserted SELECT i, 1 FROM generate_series(0, 80) AS i ON CONFLICT (id) DO UPDATE SET n = upserted.n + 1;
SELECT count(nextval('counter')) FROM generate_series(1, 200);
CREATE TABLE wide (id int, big text);
ALTER TABLE wide ALTER COLUMN big SET STORAGE EXTERNAL;
INSERT INTO wide SELECT i, repeat(md5(i::text), 4000) FROM generate_series(1, 10) AS i;
SELECT pg_logical_emit_message(true, 'test', repeat('m', 300000));
SELECT pg_logical_emit_message(false, 'test', repeat('n', 9000000));
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (id int REFERENCES parent);
INSERT INTO parent SELECT generate_series(1, 100);
INSERT INTO child SELECT generate_series(1, 100);
INSERT INTO unlogged SELECT generate_series(1, 5000);
CREATE UNLOGGED TABLE unlogged_too (id int PRIMARY KEY);
INSERT INTO unlogged_too SELECT generate_series(1, 100);
CREATE TEMPORARY TABLE temporary AS SELECT generate_series(1, 1000) AS id;

-- Images in each form that this build can write.
CHECKPOINT;
SET wal_compression = on;
UPDATE plain SET note = 'p' WHERE id % 3 = 0;
SELECT coalesce('lz4' = ANY (enumvals), false) AS lz4, coalesce('zstd' = ANY (enumvals), false) AS zstd
  FROM pg_settings WHERE name = 'wal_compression' \gset
\if :lz4
CHECKPOINT;
SET wal_compression = lz4;
\endif
UPDATE plain SET note = 'l' WHERE id % 3 = 1;
\if :zstd
CHECKPOINT;
SET wal_compression = zstd;
\endif
UPDATE plain SET note = 'q' WHERE id % 3 = 2;
RESET wal_compression;
SELECT pg_switch_wal();
CREATE TABLE after_switch (id int);
SELECT pg_switch_wal();

-- Databases in every way that the version has, a tablespace, moves between tablespaces.
\if :strategies
CREATE DATABASE by_log STRATEGY wal_log;
CREATE DATABASE by_copy STRATEGY file_copy;
\else
CREATE DATABASE by_log;
CREATE DATABASE by_copy;
\endif
CREATE DATABASE dropped;
DROP DATABASE dropped;
CREATE TABLESPACE elsewhere LOCATION :'elsewhere';
CREATE TABLE elsewhere_table (id int PRIMARY KEY) TABLESPACE elsewhere;
INSERT INTO elsewhere_table SELECT generate_series(1, 1000);
ALTER TABLE upserted SET TABLESPACE elsewhere;
ALTER DATABASE by_log SET TABLESPACE elsewhere;
CREATE TABLESPACE short_lived LOCATION :'short_lived';
DROP TABLESPACE short_lived;
VACUUM FULL pg_class;
VACUUM (FREEZE) plain;
SELECT pg_create_restore_point('after everything');
