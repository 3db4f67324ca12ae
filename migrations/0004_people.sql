-- Users, their sessions, and identities of other providers. Statements end with a semicolon at the end of a line; each may be
-- run again: a column that is there already is taken for added.
--
-- Users are never removed. `password` is an Argon2id hash. A session is in force while its user is not disabled and still
-- has the session's `generation`.
CREATE TABLE IF NOT EXISTS users (
  id BIGINT UNSIGNED NOT NULL PRIMARY KEY,
  email VARCHAR(255) NOT NULL,
  role VARCHAR(16) NOT NULL,
  password VARCHAR(255) NULL,
  disabled TINYINT(1) NOT NULL,
  generation BIGINT UNSIGNED NOT NULL,
  max_hosts INT UNSIGNED NULL,
  created_at DATETIME(6) NOT NULL,
  updated_at DATETIME(6) NOT NULL,
  UNIQUE KEY users_email (email)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

-- `token` is the SHA-256 of the access token. There are few rows: what is over is removed.
CREATE TABLE IF NOT EXISTS sessions (
  id BINARY(16) NOT NULL PRIMARY KEY,
  token BINARY(32) NOT NULL,
  user_id BIGINT UNSIGNED NOT NULL,
  generation BIGINT UNSIGNED NOT NULL,
  method VARCHAR(16) NOT NULL,
  issuer VARBINARY(255) NULL,
  subject VARBINARY(255) NULL,
  browser TINYINT(1) NOT NULL,
  started_at DATETIME(6) NOT NULL,
  expires_at DATETIME(6) NOT NULL,
  last_used_at DATETIME(6) NOT NULL,
  from_ip VARCHAR(45) NULL,
  agent TEXT NULL,
  ended_at DATETIME(6) NULL,
  epoch BIGINT UNSIGNED NOT NULL,
  KEY sessions_epoch (epoch),
  KEY sessions_user (user_id),
  CONSTRAINT sessions_user FOREIGN KEY (user_id) REFERENCES users (id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

-- Rows may be put here by hand. Issuer and subject are compared byte by byte, which only binary columns do: where texts are
-- compared, those that differ by a space at the end are the same one.
CREATE TABLE IF NOT EXISTS external_identities (
  issuer VARBINARY(255) NOT NULL,
  subject VARBINARY(255) NOT NULL,
  user_id BIGINT UNSIGNED NOT NULL,
  email VARCHAR(255) NULL,
  linked_at DATETIME(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6),
  PRIMARY KEY (issuer, subject),
  KEY external_identities_user (user_id),
  CONSTRAINT external_identities_user FOREIGN KEY (user_id) REFERENCES users (id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

ALTER TABLE heads
  ADD COLUMN users_epoch BIGINT UNSIGNED NOT NULL DEFAULT 0,
  ADD COLUMN sessions_epoch BIGINT UNSIGNED NOT NULL DEFAULT 0;

-- Who installed it for themselves.
ALTER TABLE hosts
  ADD COLUMN owner BIGINT UNSIGNED NULL,
  ADD KEY hosts_owner (owner);

-- Whose it is.
ALTER TABLE admin_certificates
  ADD COLUMN user_id BIGINT UNSIGNED NULL;
