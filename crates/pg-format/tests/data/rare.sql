-- Records that everyday work seldom makes.

-- More subtransactions than a backend remembers in shared memory.
CREATE TABLE nested (id int);
DO $$ BEGIN FOR i IN 1..70 LOOP BEGIN INSERT INTO nested VALUES (i); EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$;

-- A row that is locked while another transaction, prepared, changes it.
CREATE TABLE locked (id int PRIMARY KEY, n int);
INSERT INTO locked SELECT i, 0 FROM generate_series(1, 200) AS i;
BEGIN; UPDATE locked SET n = 1 WHERE id <= 20; PREPARE TRANSACTION 'holds rows';
SELECT count(*) FROM (SELECT * FROM locked WHERE id <= 20 FOR KEY SHARE) AS l;
COMMIT PREPARED 'holds rows';

-- Replication origins.
SELECT pg_replication_origin_create('elsewhere');
SELECT pg_replication_origin_advance('elsewhere', '0/1234');
SELECT pg_replication_origin_drop('elsewhere');

-- B-tree: duplicates, posting lists that are split, pages emptied, deleted and used again, a tree
-- that loses a level in all but name.
CREATE TABLE duplicates (id int, key int) WITH (autovacuum_enabled = off);
CREATE INDEX duplicates_key ON duplicates (key);
INSERT INTO duplicates SELECT i, i % 5 FROM generate_series(1, 20000) AS i;
DELETE FROM duplicates WHERE id % 3 = 0;
VACUUM duplicates;
INSERT INTO duplicates SELECT i, i % 5 FROM generate_series(1, 5000) AS i;
CREATE TABLE skinny (id int PRIMARY KEY) WITH (autovacuum_enabled = off);
INSERT INTO skinny SELECT generate_series(1, 120000);
DELETE FROM skinny WHERE id < 119990;
VACUUM skinny;
SELECT txid_current();
VACUUM skinny;
INSERT INTO skinny SELECT generate_series(200000, 210000);
INSERT INTO skinny SELECT generate_series(110000, 60000, -1);
DELETE FROM skinny WHERE id < 200000;
VACUUM skinny;
CREATE TABLE killed (id int PRIMARY KEY, n int) WITH (autovacuum_enabled = off, fillfactor = 100);
CREATE INDEX killed_n ON killed (n);
INSERT INTO killed SELECT i, i FROM generate_series(1, 1000) AS i;
DELETE FROM killed WHERE id <= 900;
SET enable_seqscan = off; SET enable_bitmapscan = off;
SELECT count(*) FROM killed WHERE n < 950;
SELECT count(*) FROM killed WHERE id < 950;
INSERT INTO killed SELECT i, i % 300 FROM generate_series(2001, 6000) AS i;

-- Hash: overflow pages that fill, empty and are given back, entries killed and cleaned.
CREATE TABLE hashed (id int, key int) WITH (autovacuum_enabled = off);
CREATE INDEX hashed_key ON hashed USING hash (key);
INSERT INTO hashed SELECT i, i % 3 FROM generate_series(1, 6000) AS i;
DELETE FROM hashed WHERE id % 4 <> 0;
VACUUM hashed;
INSERT INTO hashed SELECT i, i FROM generate_series(1, 20000) AS i;
DELETE FROM hashed WHERE id % 2 = 0;
VACUUM hashed;
CREATE TABLE hash_killed (id int, key int) WITH (autovacuum_enabled = off);
CREATE INDEX hash_killed_key ON hash_killed USING hash (key);
INSERT INTO hash_killed SELECT i, 1 FROM generate_series(1, 406) AS i;
DELETE FROM hash_killed WHERE id < 400;
SELECT count(*) FROM hash_killed WHERE key = 1;
INSERT INTO hash_killed SELECT i, 1 FROM generate_series(1001, 1100) AS i;
RESET enable_seqscan; RESET enable_bitmapscan;

-- GIN: posting trees that grow, split and lose pages.
CREATE TABLE posted (id int, tags int[]) WITH (autovacuum_enabled = off);
CREATE INDEX posted_tags ON posted USING gin (tags) WITH (fastupdate = off);
INSERT INTO posted SELECT i, ARRAY[1, i % 3] FROM generate_series(1, 60000) AS i;
DELETE FROM posted WHERE id BETWEEN 100 AND 55000;
VACUUM posted;
INSERT INTO posted SELECT i, ARRAY[1] FROM generate_series(1, 30000) AS i;
CREATE TABLE pending (id int, tags int[]) WITH (autovacuum_enabled = off);
CREATE INDEX pending_tags ON pending USING gin (tags);
INSERT INTO pending SELECT i, ARRAY[i, i + 1] FROM generate_series(1, 3000) AS i;
SELECT gin_clean_pending_list('pending_tags');

-- GiST: pages emptied, deleted and used again; entries killed.
CREATE TABLE placed (id int, place point) WITH (autovacuum_enabled = off);
CREATE INDEX placed_place ON placed USING gist (place);
INSERT INTO placed SELECT i, point(i, i) FROM generate_series(1, 20000) AS i;
DELETE FROM placed WHERE id <= 15000;
VACUUM placed;
SELECT txid_current();
VACUUM placed;
INSERT INTO placed SELECT i, point(i, -i) FROM generate_series(1, 15000) AS i;
CREATE TABLE gist_killed (id int, place point) WITH (autovacuum_enabled = off);
CREATE INDEX gist_killed_place ON gist_killed USING gist (place);
INSERT INTO gist_killed SELECT i, point(i, i) FROM generate_series(1, 1000) AS i;
DELETE FROM gist_killed WHERE id < 990;
SET enable_seqscan = off; SET enable_bitmapscan = off;
SELECT count(*) FROM gist_killed WHERE place <@ box '((0,0),(2000,2000))';
INSERT INTO gist_killed SELECT i, point(i, i) FROM generate_series(1, 1000) AS i;
RESET enable_seqscan; RESET enable_bitmapscan;

-- SP-GiST: text prefixes that split, and their vacuum.
CREATE TABLE prefixed (id int, word text) WITH (autovacuum_enabled = off);
CREATE INDEX prefixed_word ON prefixed USING spgist (word);
INSERT INTO prefixed SELECT i, 'a long common prefix ' || i FROM generate_series(1, 5000) AS i;
INSERT INTO prefixed SELECT i, 'a long other ' || md5(i::text) FROM generate_series(1, 5000) AS i;
INSERT INTO prefixed SELECT i, chr(200 + i % 1000) || i FROM generate_series(1, 5000) AS i;
DELETE FROM prefixed WHERE id % 2 = 0;
VACUUM prefixed;
SELECT txid_current();
VACUUM prefixed;
CREATE TABLE rooted (id int, word text) WITH (autovacuum_enabled = off);
CREATE INDEX rooted_word ON rooted USING spgist (word);
INSERT INTO rooted SELECT i, 'w' || i FROM generate_series(1, 20) AS i;
DELETE FROM rooted WHERE id < 10;
VACUUM rooted;

-- BRIN: summaries that grow in place and move, a map that grows.
CREATE TABLE ranged (id int, word text) WITH (autovacuum_enabled = off, fillfactor = 10);
CREATE INDEX ranged_word ON ranged USING brin (word) WITH (pages_per_range = 1);
INSERT INTO ranged SELECT i, 'm' FROM generate_series(1, 60000) AS i;
SELECT brin_summarize_new_values('ranged_word');
INSERT INTO ranged SELECT i, repeat('z', 900) FROM generate_series(1, 10) AS i;
UPDATE ranged SET word = 'a' || repeat(chr(97 + id % 26), 300) WHERE id % 40 = 0;
UPDATE ranged SET word = repeat(chr(97 + id % 26), 1500) WHERE id % 400 = 0;
CREATE TABLE crossed (id int) WITH (autovacuum_enabled = off);
CREATE INDEX crossed_id ON crossed USING brin (id) WITH (pages_per_range = 1);
INSERT INTO crossed SELECT generate_series(1, 5000);
SELECT brin_summarize_new_values('crossed_id');
DELETE FROM crossed WHERE id % 3 = 0;
VACUUM crossed;
INSERT INTO crossed SELECT generate_series(100000, 101000);

-- Tuples without their table's older versions: freezing alone, pruning on access.
CREATE TABLE frozen (id int, v int) WITH (autovacuum_enabled = off, fillfactor = 50);
INSERT INTO frozen SELECT i, 0 FROM generate_series(1, 2000) AS i;
UPDATE frozen SET v = 1;
UPDATE frozen SET v = 2;
VACUUM (FREEZE) frozen;

-- Generic records, of an extension's index.
CREATE EXTENSION bloom;
CREATE TABLE bloomed (id int, key int);
CREATE INDEX bloomed_key ON bloomed USING bloom (key);
INSERT INTO bloomed SELECT i, i FROM generate_series(1, 200) AS i;
