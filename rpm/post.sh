#include prepare.sh

#include apparmor.sh

#include socket.sh

#include closing.sh

prepare
apparmor_profile
if [ "$1" -eq 1 ]; then
  systemctl --no-reload enable codex-authd.socket codex-authd.service >/dev/null 2>&1 || true
  if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
    systemctl start codex-authd.socket codex-authd.service || true
  fi
  closing
elif [ -d /run/systemd/system ]; then
  # The daemon anew, the ports as they are: whoever connects meanwhile waits, and nobody is refused.
  systemctl daemon-reload || true
  systemctl try-restart codex-authd.service || true
  tell_changed_socket
fi
