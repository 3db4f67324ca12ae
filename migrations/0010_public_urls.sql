-- Addresses of the daemon that hosts were given, one a line, the newest first. Statements end with a semicolon at the end of a
-- line; each may be run again: a column that is there already is taken for added.
ALTER TABLE settings
  ADD COLUMN public_urls TEXT NULL;
