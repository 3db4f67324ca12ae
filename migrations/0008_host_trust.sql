-- Which certificates of the daemon hosts accept, and whose they are shown. Statements end with a semicolon at the end of a
-- line; each may be run again: columns that are there already are taken for added.
--
-- `old_wrappers_trust_system` is null until a daemon has recorded the rest. The other two are null for "not yet".
ALTER TABLE settings
  ADD COLUMN old_wrappers_trust_system TINYINT(1) NULL,
  ADD COLUMN system_trust_since DATETIME(6) NULL,
  ADD COLUMN switched_at DATETIME(6) NULL;
