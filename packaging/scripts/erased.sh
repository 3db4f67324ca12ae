# rpm knows no difference between an erasure and a purge. This file says that an installation comes after an erasure: the
# choices of then are in force, and nothing is enabled again.
erased=/var/lib/rpm-state/codex-authd.erased
