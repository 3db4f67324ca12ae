#include apparmor.sh

#include erased.sh

if [ "$1" -eq 0 ]; then
  forget_apparmor_profile
  if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
  fi
  cat <<TEXT
codex-authd: the state, the configuration, the enabled units and the user codex-authd stay. To remove them for good:
  rm -rf /var/lib/codex-authd /etc/codex-authd /etc/systemd/system/codex-authd*.d /etc/systemd/system/*.wants/codex-authd*
  rm -f $erased; userdel codex-authd
TEXT
fi
