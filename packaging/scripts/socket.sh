# An upgrade never restarts the sockets: that would refuse new connections for a moment. A changed socket unit is
# applied at the next boot, or by the operator.
remember_socket() {
  if [ -d /run/systemd/system ] && [ -f /usr/lib/systemd/system/codex-authd.socket ]; then
    cp /usr/lib/systemd/system/codex-authd.socket /run/codex-authd.socket.before
  fi
}

tell_changed_socket() {
  [ -f /run/codex-authd.socket.before ] || return 0
  if ! cmp -s /run/codex-authd.socket.before /usr/lib/systemd/system/codex-authd.socket; then
    cat <<'TEXT'
codex-authd: codex-authd.socket has changed. The change applies at the next boot. To apply it now, with calls refused for a moment:
  systemctl restart codex-authd.socket
TEXT
  fi
  rm -f /run/codex-authd.socket.before
}
