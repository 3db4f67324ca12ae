-- The store as a whole. Statements end with a semicolon at the end of a line; each may be run again.
--
-- One row, locked together with the one of `heads`. `incarnation` changes when the store is filled from a copy: what a node
-- cached of it before belongs to other records. `standstill_…`: every change is refused, and why. `filling`: the store is
-- being filled, or that was cut short, and holds nothing that can be used; `filling_above` is the epoch that it ends above.
CREATE TABLE IF NOT EXISTS store_state (
  id TINYINT UNSIGNED NOT NULL PRIMARY KEY,
  incarnation BINARY(16) NULL,
  standstill_reason TEXT NULL,
  standstill_since DATETIME(6) NULL,
  filling BINARY(16) NULL,
  filling_above BIGINT UNSIGNED NULL
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

INSERT IGNORE INTO store_state (id) VALUES (0);
