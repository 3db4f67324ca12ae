set -e

#include refuse-newer.sh

#include socket.sh

refuse_newer
remember_socket
# Before anything is unpacked: a file belongs to this group.
systemd-sysusers --replace=/usr/lib/sysusers.d/codex-authd.conf - <<'TEXT'
#include ../sysusers.conf
TEXT
