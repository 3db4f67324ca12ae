# Creates the user and the directories, and sets their modes. It may run any number of times.
prepare() {
  systemd-sysusers codex-authd.conf
  # Not with systemd-tmpfiles, which does nothing without /proc, for example while an image is built.
  while read -r kind path mode user group _; do
    case $kind in
    d) mkdir -p "$path" ;;
    z) [ -e "$path" ] || continue ;;
    *) continue ;;
    esac
    chown "$user:$group" "$path"
    chmod "$mode" "$path"
  done </usr/lib/tmpfiles.d/codex-authd.conf
}
