# The user, the directories and their modes; the same however often it is done.
prepare() {
  systemd-sysusers codex-authd.conf
  # Not by systemd-tmpfiles, which does nothing where there is no /proc: in an image that is being built.
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
