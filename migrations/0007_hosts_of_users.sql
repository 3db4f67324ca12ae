-- Hosts that are disabled with their user, and the second address of hosts that call over IPv4 and IPv6. Statements end with a
-- semicolon at the end of a line; each may be run again: a column that is there already is taken for added.
--
-- `disabled_with_user` is 1 only where `disabled` is, and where the host is to be enabled with its owner. `bound_ip_other` is
-- of the other address family than `bound_ip`, and null as long as that is.
ALTER TABLE hosts
  ADD COLUMN disabled_with_user TINYINT(1) NOT NULL DEFAULT 0,
  ADD COLUMN bound_ip_other VARCHAR(45) NULL;
