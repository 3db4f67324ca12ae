-- The login that a backup brought back. Statements end with a semicolon at the end of a line; each may be run again.
--
-- While `restored_version` is the canonical version no probe of it starts by itself: its refresh token may have been spent
-- since the backup, which is of `restored_backup_of`.
ALTER TABLE settings
  ADD COLUMN restored_version BIGINT UNSIGNED NULL,
  ADD COLUMN restored_backup_of DATETIME(6) NULL;
