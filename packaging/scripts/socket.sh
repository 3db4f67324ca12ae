# An upgrade never restarts the ports: whoever connects meanwhile would be refused. A unit of theirs that has changed waits
# for the next boot, or for the operator.
remember_socket() {
  if [ -d /run/systemd/system ] && [ -f /usr/lib/systemd/system/codex-authd.socket ]; then
    cp /usr/lib/systemd/system/codex-authd.socket /run/codex-authd.socket.before
  fi
}

tell_changed_socket() {
  [ -f /run/codex-authd.socket.before ] || return 0
  if ! cmp -s /run/codex-authd.socket.before /usr/lib/systemd/system/codex-authd.socket; then
    cat <<'TEXT'
codex-authd: codex-authd.socket has changed. It applies with the next boot, or, refusing calls for a moment, by
  systemctl restart codex-authd.socket
TEXT
  fi
  rm -f /run/codex-authd.socket.before
}
