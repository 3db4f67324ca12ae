# What to do next, after a first install.
closing() {
  if [ ! -d /run/systemd/system ]; then
    cat <<'TEXT'

codex-authd is installed; systemd does not run here, so it was not started. It starts with the next boot, or by
  systemctl start codex-authd.service

TEXT
    return 0
  fi
  if ! systemctl is-active --quiet codex-authd.service; then
    cat <<'TEXT'

codex-authd is installed, and did not start. What is wrong:
  sudo codex-authd doctor
  journalctl --unit codex-authd

TEXT
    return 0
  fi
  port=$(sed -n 's/.*"admin": *"[^"]*:\([0-9]*\)".*/\1/p' /var/lib/codex-authd/listen.json 2>/dev/null) || port=
  echo
  echo "codex-authd is running."
  echo
  label="The dashboard"
  for name in "$(hostname --fqdn 2>/dev/null || uname -n)" $(hostname --all-ip-addresses 2>/dev/null || true); do
    # The first addresses are enough, and a link-local one opens nothing.
    case $name in fe80:* | 172.17.* | '') continue ;; *:*) name="[$name]" ;; esac
    printf '  %-24shttps://%s:%s/\n' "$label" "$name" "${port:-9443}"
    label=
  done
  cat <<'TEXT'
  It opens for whoever has an admin's certificate. Make one, and import it into a browser:
                          sudo codex-authd admin-cert NAME --out NAME.p12
  What is not right yet   sudo codex-authd doctor

TEXT
}
