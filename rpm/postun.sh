#include apparmor.sh

if [ "$1" -eq 0 ]; then
  forget_apparmor_profile
  if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
  fi
  # The package's own way of owning a directory is not to be had; an operator's files keep it.
  rmdir /etc/codex-authd 2>/dev/null || true
  echo "codex-authd: the state in /var/lib/codex-authd and the user codex-authd stay. To remove them for good:"
  echo "  rm -rf /var/lib/codex-authd /etc/codex-authd; userdel codex-authd"
fi
