-- Agent identities of hosts, and the pruning of versions. Statements end with a semicolon at the end of a line; each may be
-- run again: a column or a key that is there already is taken for added.
--
-- `agent_identity` is the private key that Codex registered for the host, sealed; 16 KiB at most before that.
ALTER TABLE hosts
  ADD COLUMN agent_identity BLOB NULL,
  ADD COLUMN agent_identity_key INT UNSIGNED NULL,
  ADD KEY hosts_agent_identity_key (agent_identity_key);

-- Old versions are looked for by their age.
ALTER TABLE auth_payloads
  ADD KEY auth_payloads_stored_at (stored_at);
