# Installs the AppArmor profile if the machine's parser accepts it. Otherwise it would cause an error at each boot.
apparmor_profile() {
  profile=/etc/apparmor.d/codex-authd
  source=/usr/share/codex-authd/apparmor/codex-authd
  [ -d /etc/apparmor.d ] && command -v apparmor_parser >/dev/null 2>&1 || return 0
  if ! apparmor_parser -QTK "$source" >/dev/null 2>&1; then
    rm -f "$profile"
    return 0
  fi
  cp "$source" "$profile"
  chmod 0644 "$profile"
  if [ -d /sys/kernel/security/apparmor ]; then
    apparmor_parser --replace --write-cache --quiet "$profile" \
      || echo "codex-authd: the AppArmor profile was not loaded: to see the reason: apparmor_parser -r $profile" >&2
  fi
}

forget_apparmor_profile() {
  profile=/etc/apparmor.d/codex-authd
  [ -f "$profile" ] || return 0
  if [ -d /sys/kernel/security/apparmor ] && command -v apparmor_parser >/dev/null 2>&1; then
    apparmor_parser --remove --quiet "$profile" >/dev/null 2>&1 || true
  fi
  rm -f "$profile"
}
