-- Probes: Codex run on a version of the login. Statements end with a semicolon at the end of a line; each may be run again.
--
-- `number` is the order in which they were claimed, whatever the clocks of the nodes said. From `state` on everything is
-- null until the probe is finished. `lease_until` is by the clock of the node that probes. Few rows: whoever claims removes
-- what is too old.
CREATE TABLE IF NOT EXISTS probes (
  number BIGINT UNSIGNED NOT NULL PRIMARY KEY,
  id BINARY(16) NOT NULL,
  node BINARY(16) NOT NULL,
  version BIGINT UNSIGNED NOT NULL,
  caused_by VARCHAR(16) NOT NULL,
  started_at DATETIME(6) NOT NULL,
  lease_until DATETIME(6) NOT NULL,
  state VARCHAR(16) NULL,
  reason TEXT NULL,
  adopted BIGINT UNSIGNED NULL,
  finished_at DATETIME(6) NULL,
  UNIQUE KEY probes_id (id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
