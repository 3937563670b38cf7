-- What exists before the log under test begins.
CREATE TABLE plain (id int PRIMARY KEY, note text, tags int[], place point, span int4range);
INSERT INTO plain SELECT i, repeat('x', i % 100), ARRAY[i % 7, i % 11], point(i % 100, i / 100), int4range(i, i + 10)
  FROM generate_series(1, 20000) AS i;
CREATE INDEX plain_gin ON plain USING gin (tags);
CREATE INDEX plain_gist ON plain USING gist (span);
CREATE INDEX plain_spgist ON plain USING spgist (place);
CREATE INDEX plain_hash ON plain USING hash (note);
CREATE INDEX plain_brin ON plain USING brin (id) WITH (pages_per_range = 4);
CREATE TABLE doomed (id int, filler text);
INSERT INTO doomed SELECT i, repeat('d', 300) FROM generate_series(1, 5000) AS i;
CREATE TABLE shrinking (id int, filler text);
INSERT INTO shrinking SELECT i, repeat('s', 300) FROM generate_series(1, 20000) AS i;
CREATE TABLE emptied (id int);
INSERT INTO emptied SELECT generate_series(1, 3000);
CREATE TABLE rewritten (id int, note text);
INSERT INTO rewritten SELECT i, repeat('r', 100) FROM generate_series(1, 3000) AS i;
CREATE TABLE untouched (id int PRIMARY KEY, note text);
INSERT INTO untouched SELECT i, repeat('u', 50) FROM generate_series(1, 5000) AS i;
CREATE TABLE visible (id int, v int) WITH (fillfactor = 50, autovacuum_enabled = off);
INSERT INTO visible SELECT i, i FROM generate_series(1, 50000) AS i;
CREATE TABLE parted (id int, v int) PARTITION BY RANGE (id);
CREATE TABLE parted_low PARTITION OF parted FOR VALUES FROM (0) TO (1000);
CREATE TABLE parted_high PARTITION OF parted FOR VALUES FROM (1000) TO (2000);
INSERT INTO parted SELECT i, i FROM generate_series(0, 999) AS i;
CREATE UNLOGGED TABLE unlogged (id int);
INSERT INTO unlogged SELECT generate_series(1, 1000);
CREATE SEQUENCE counter;
VACUUM (ANALYZE, FREEZE);
