# A version that cannot read the state is refused before anything is unpacked. The way out stands in the message.
refuse_newer() {
  state=/var/lib/codex-authd
  [ -f "$state/format" ] || return 0
  found=$(cat "$state/format") || return 0
  # What is no number is for the daemon to tell of.
  case $found in '' | *[!0-9]*) return 0 ;; esac
  [ "$found" -gt @FORMAT@ ] || return 0
  before=$state/before-format-$found
  cat >&2 <<TEXT
codex-authd @VERSION@ cannot read the state in $state: it has format $found, and this version knows formats
up to @FORMAT@. Nothing was changed. Keep the version that is installed, or install a newer one.
To go back for good, and lose what was changed since:
  systemctl stop codex-authd.socket codex-authd.service
TEXT
  if [ -d "$before" ]; then
    echo "  put what is in $before in its place, one directory up; then install @VERSION@ again" >&2
  else
    # The state was never an older one: there is nothing to go back to but a copy.
    echo "  mv $state $state.$found; then install @VERSION@ again, and codex-authd restore a backup of that version" >&2
  fi
  exit 1
}
