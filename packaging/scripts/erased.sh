# rpm does not distinguish removal from purge. This file marks an installation after a removal: the earlier choices stay
# in force, and no unit is enabled again.
erased=/var/lib/rpm-state/codex-authd.erased
