#include prepare.sh

#include configuration.sh

#include apparmor.sh

#include socket.sh

#include closing.sh

#include erased.sh

# Starts the units that are enabled.
start_units() {
  for unit in codex-authd.socket codex-authd.service codex-authd-backup.timer; do
    if systemctl is-enabled --quiet "$unit" 2>/dev/null; then
      systemctl start "$unit" || true
    fi
  done
}

prepare
apparmor_profile
if [ "$1" -eq 1 ]; then
  if [ ! -e "$erased" ]; then
    first_configuration
    systemctl --no-reload enable codex-authd.socket codex-authd.service >/dev/null 2>&1 || true
  fi
  if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
    start_units
  fi
  [ -e "$erased" ] || closing
  rm -f "$erased"
elif [ -d /run/systemd/system ]; then
  # Restarts the daemon but not the sockets: new connections wait, and none is refused.
  systemctl daemon-reload || true
  systemctl try-restart codex-authd.service || true
  tell_changed_socket
fi
