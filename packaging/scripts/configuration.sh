# Creates the operator's configuration. It is in no package: it is created at the first installation, and never changed
# again.
configuration=/etc/codex-authd/config.toml

write_configuration() {
  cat >"$configuration.new" <<'TEXT'
# The configuration of codex-authd. It is yours: no upgrade changes it. A key that is not set here has its default.
# Every key, its meaning and its default: /usr/share/codex-authd/config.toml, or `man codex-authd-config`.
# After a change: `codex-authd check-config`, then `systemctl restart codex-authd`.
TEXT
  chgrp codex-authd "$configuration.new"
  chmod 0640 "$configuration.new"
  mv "$configuration.new" "$configuration"
}

first_configuration() {
  [ -e "$configuration" ] || [ -L "$configuration" ] || write_configuration
}
