# Refuses a version that cannot read the state, before anything is unpacked. The message tells the way out.
refuse_newer() {
  state=/var/lib/codex-authd
  [ -f "$state/format" ] || return 0
  found=$(cat "$state/format") || return 0
  # If it is not a number, the daemon reports that.
  case $found in '' | *[!0-9]*) return 0 ;; esac
  [ "$found" -gt @FORMAT@ ] || return 0
  before=$state/before-format-$found
  cat >&2 <<TEXT
codex-authd @VERSION@ cannot read the state in $state: it has format $found, and this version knows formats
up to @FORMAT@. Nothing was changed. Keep the installed version, or install a newer one.
To go back for good, and lose all changes since then:
  systemctl stop codex-authd.socket codex-authd.service
TEXT
  if [ -d "$before" ]; then
    echo "  move the content of $before one directory up, replacing what is there; then install @VERSION@ again" >&2
  else
    # The state never had an older format: only a backup can go back.
    echo "  mv $state $state.$found; then install @VERSION@ again, and restore a backup of that version with codex-authd restore" >&2
  fi
  exit 1
}
