-- The newest backup that was made and read back. Statements end with a semicolon at the end of a line; each may be run again: a
-- column that is there already is taken for added.
ALTER TABLE settings
  ADD COLUMN verified_backup_of DATETIME(6) NULL,
  ADD COLUMN verified_backup_has_keys TINYINT(1) NOT NULL DEFAULT 0;
