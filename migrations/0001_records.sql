-- The records. Statements end with a semicolon at the end of a line; each may be run again.
--
-- Times are UTC, to the microsecond. Digests are SHA-256. What is sealed names its data key in a column beside it
-- (`…_key`), so that what a rotation has left to do is found by an index; nothing that is secret stands here in the clear.
-- `epoch` is the one that last changed the row: nodes reload what is newer than what they know.

-- One row. Every change locks it first, so changes of all nodes have one order; it also says what the sets below last
-- changed at, which nodes reload as a whole.
CREATE TABLE IF NOT EXISTS heads (
  id TINYINT UNSIGNED NOT NULL PRIMARY KEY,
  epoch BIGINT UNSIGNED NOT NULL,
  canonical_version BIGINT UNSIGNED NULL,
  canonical_epoch BIGINT UNSIGNED NOT NULL,
  settings_epoch BIGINT UNSIGNED NOT NULL,
  certificates_epoch BIGINT UNSIGNED NOT NULL,
  authorities_epoch BIGINT UNSIGNED NOT NULL,
  audit_number BIGINT UNSIGNED NOT NULL,
  audit_hash BINARY(32) NOT NULL
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

CREATE TABLE IF NOT EXISTS settings (
  id TINYINT UNSIGNED NOT NULL PRIMARY KEY,
  initialised TINYINT(1) NOT NULL,
  server_key VARBINARY(1024) NULL,
  server_key_key INT UNSIGNED NULL,
  api_disabled TINYINT(1) NOT NULL,
  api_disabled_reason VARCHAR(255) NULL,
  client_version VARCHAR(64) NULL,
  client_version_checked_at DATETIME(6) NULL
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

-- Data keys, each sealed under the master key, which is in no table.
CREATE TABLE IF NOT EXISTS sealing_keys (
  id INT UNSIGNED NOT NULL PRIMARY KEY,
  sealed VARBINARY(512) NOT NULL,
  created_at DATETIME(6) NOT NULL
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

CREATE TABLE IF NOT EXISTS authorities (
  id BINARY(16) NOT NULL PRIMARY KEY,
  role VARCHAR(16) NOT NULL,
  slot VARCHAR(16) NOT NULL,
  certificate_pem TEXT NOT NULL,
  cross_certificate_pem TEXT NULL,
  private_key VARBINARY(1024) NOT NULL,
  private_key_key INT UNSIGNED NOT NULL,
  created_at DATETIME(6) NULL,
  UNIQUE KEY authorities_role_slot (role, slot),
  KEY authorities_private_key_key (private_key_key)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

-- `authority` may be retired: no foreign key.
CREATE TABLE IF NOT EXISTS admin_certificates (
  fingerprint BINARY(32) NOT NULL PRIMARY KEY,
  name VARCHAR(255) NOT NULL,
  serial VARCHAR(64) NOT NULL,
  issued_at DATETIME(6) NOT NULL,
  expires_at DATETIME(6) NOT NULL,
  revoked_at DATETIME(6) NULL,
  authority BINARY(16) NULL
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

-- `live_fqdn` is the name as long as the host is not removed, and null from then on: of the hosts that are there one has
-- the name.
CREATE TABLE IF NOT EXISTS hosts (
  id BIGINT UNSIGNED NOT NULL PRIMARY KEY,
  fqdn VARCHAR(253) NOT NULL,
  live_fqdn VARCHAR(253) NULL,
  key_digest BINARY(32) NOT NULL,
  imported_key_digest BINARY(32) NULL,
  api_key VARBINARY(512) NOT NULL,
  api_key_key INT UNSIGNED NULL,
  secure TINYINT(1) NOT NULL,
  allow_roaming_ips TINYINT(1) NOT NULL,
  bound_ip VARCHAR(45) NULL,
  insecure_enabled_until DATETIME(6) NULL,
  insecure_grace_until DATETIME(6) NULL,
  disabled TINYINT(1) NOT NULL,
  expires_at DATETIME(6) NULL,
  created_at DATETIME(6) NOT NULL,
  updated_at DATETIME(6) NOT NULL,
  removed_at DATETIME(6) NULL,
  epoch BIGINT UNSIGNED NOT NULL,
  UNIQUE KEY hosts_live_fqdn (live_fqdn),
  KEY hosts_epoch (epoch),
  KEY hosts_removed_at (removed_at),
  KEY hosts_api_key_key (api_key_key)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

-- In the order in which they were given.
CREATE TABLE IF NOT EXISTS host_networks (
  host_id BIGINT UNSIGNED NOT NULL,
  place INT UNSIGNED NOT NULL,
  network VARCHAR(43) NOT NULL,
  PRIMARY KEY (host_id, place),
  CONSTRAINT host_networks_host FOREIGN KEY (host_id) REFERENCES hosts (id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

-- What a host was last seen with; there is a row for every host.
CREATE TABLE IF NOT EXISTS host_auth_states (
  host_id BIGINT UNSIGNED NOT NULL PRIMARY KEY,
  api_calls BIGINT UNSIGNED NOT NULL,
  last_seen DATETIME(6) NULL,
  last_refresh VARCHAR(64) NULL,
  client_version VARCHAR(255) NULL,
  wrapper_version VARCHAR(255) NULL,
  wrapper_fetched_at DATETIME(6) NULL,
  CONSTRAINT host_auth_states_host FOREIGN KEY (host_id) REFERENCES hosts (id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

-- The versions of the login that a host last had in hand; place 0 is the latest.
CREATE TABLE IF NOT EXISTS host_auth_digests (
  host_id BIGINT UNSIGNED NOT NULL,
  place TINYINT UNSIGNED NOT NULL,
  digest BINARY(32) NOT NULL,
  PRIMARY KEY (host_id, place),
  CONSTRAINT host_auth_digests_host FOREIGN KEY (host_id) REFERENCES hosts (id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

CREATE TABLE IF NOT EXISTS install_tokens (
  digest BINARY(32) NOT NULL PRIMARY KEY,
  host_id BIGINT UNSIGNED NOT NULL,
  base_url VARCHAR(2048) NOT NULL,
  created_at DATETIME(6) NOT NULL,
  expires_at DATETIME(6) NOT NULL,
  redeemed_at DATETIME(6) NULL,
  redeemed_from VARCHAR(45) NULL,
  revoked_at DATETIME(6) NULL,
  epoch BIGINT UNSIGNED NOT NULL,
  KEY install_tokens_epoch (epoch),
  KEY install_tokens_created_at (created_at),
  CONSTRAINT install_tokens_host FOREIGN KEY (host_id) REFERENCES hosts (id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

-- Every version of the canonical login. `source_host_id` may be of a host that is gone.
CREATE TABLE IF NOT EXISTS auth_payloads (
  version BIGINT UNSIGNED NOT NULL PRIMARY KEY,
  id BINARY(16) NOT NULL,
  digest BINARY(32) NOT NULL,
  last_refresh VARCHAR(64) NOT NULL,
  body LONGBLOB NOT NULL,
  body_key INT UNSIGNED NOT NULL,
  source_kind VARCHAR(16) NOT NULL,
  source_by VARCHAR(512) NULL,
  source_version BIGINT UNSIGNED NULL,
  source_host_id BIGINT UNSIGNED NULL,
  source_fqdn VARCHAR(253) NULL,
  stored_at DATETIME(6) NOT NULL,
  UNIQUE KEY auth_payloads_id (id),
  KEY auth_payloads_body_key (body_key)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

-- The targets of a version, in the document's order.
CREATE TABLE IF NOT EXISTS auth_entries (
  payload_id BINARY(16) NOT NULL,
  place INT UNSIGNED NOT NULL,
  target TEXT NOT NULL,
  token LONGBLOB NOT NULL,
  token_key INT UNSIGNED NOT NULL,
  token_type TEXT NOT NULL,
  organization TEXT NULL,
  project TEXT NULL,
  api_base TEXT NULL,
  PRIMARY KEY (payload_id, place),
  KEY auth_entries_token_key (token_key),
  CONSTRAINT auth_entries_payload FOREIGN KEY (payload_id) REFERENCES auth_payloads (id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

-- Up to which batch of each node's outbox telemetry is applied.
CREATE TABLE IF NOT EXISTS outbox_positions (
  node BINARY(16) NOT NULL PRIMARY KEY,
  seq BIGINT UNSIGNED NOT NULL
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

-- Who did what; each entry's hash covers the one before. `actor_host_id` may be of a host that is gone.
CREATE TABLE IF NOT EXISTS audit_log (
  number BIGINT UNSIGNED NOT NULL PRIMARY KEY,
  at DATETIME(6) NOT NULL,
  actor_kind VARCHAR(16) NOT NULL,
  actor_name VARCHAR(255) NULL,
  actor_fingerprint BINARY(32) NULL,
  actor_uid INT UNSIGNED NULL,
  actor_host_id BIGINT UNSIGNED NULL,
  source_ip VARCHAR(45) NULL,
  action VARCHAR(64) NOT NULL,
  target TEXT NULL,
  outcome VARCHAR(64) NOT NULL,
  alarm TINYINT(1) NOT NULL,
  details MEDIUMTEXT NOT NULL,
  hash BINARY(32) NOT NULL,
  KEY audit_log_at (at),
  KEY audit_log_action (action),
  KEY audit_log_alarm (alarm)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

INSERT IGNORE INTO heads
  (id, epoch, canonical_version, canonical_epoch, settings_epoch, certificates_epoch, authorities_epoch, audit_number,
   audit_hash)
VALUES (0, 0, NULL, 0, 0, 0, 0, 0, REPEAT(CHAR(0), 32));

INSERT IGNORE INTO settings (id, initialised, api_disabled) VALUES (0, 0, 0);
