#include erased.sh

# An upgrade leaves everything running until the new version replaces it. Which units are enabled is the operator's
# choice, and survives a removal: systemd ignores links of units that are gone.
if [ "$1" -eq 0 ]; then
  mkdir -p "${erased%/*}"
  : >"$erased"
  if [ -d /run/systemd/system ]; then
    systemctl stop codex-authd-backup.timer codex-authd.socket codex-authd.service >/dev/null 2>&1 || true
  fi
fi
