# An upgrade leaves everything running until the new version takes over.
if [ "$1" -eq 0 ]; then
  units="codex-authd-backup.timer codex-authd.socket codex-authd.service"
  # shellcheck disable=SC2086 # a list
  systemctl --no-reload disable $units >/dev/null 2>&1 || true
  if [ -d /run/systemd/system ]; then
    # shellcheck disable=SC2086 # a list
    systemctl stop $units >/dev/null 2>&1 || true
  fi
fi
