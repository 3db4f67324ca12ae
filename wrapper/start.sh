#!/usr/bin/env bash
set +xva # the installer's token must not be traced or exported
{ # One command: bash reads it to its end before it runs any of it.
# The first stage of an installation. It checks this machine, then fetches the installer and runs it.
#
# Fetching this script does not spend the installer's token; fetching the installer does. When a check fails, nothing was
# done, and the same command can be run again. CDX_GROUP has the same meaning as for the installer.

set -u
unset -f curl ls id rm chgrp
IFS=$' \t\n'

# --- baked: begin
CDX_URL=''
CDX_PIN=''
CDX_NEEDS_NPM=''
CDX_FUNCTIONS=''
# --- baked: end

main() {
  [ -n "$CDX_URL" ] || fail "this is the bare template; run the installer command that codex-authd printed"
  # missing_tools from cdx; missing_for_install and choose_place from the installer.
  eval "$CDX_FUNCTIONS"
  missing_tools
  missing_for_install
  codex_can_come || MISSING="$MISSING npm"
  [ -z "$MISSING" ] || stop "missing here:$MISSING" "install them"
  choose_place
  check_place
  run_installer
}

# The installer installs Codex where it is missing; without a release URL that takes npm. cdx looks in the same places.
codex_can_come() {
  [ -z "$CDX_NEEDS_NPM" ] || type -P codex >/dev/null || [ -x "${HOME:-~}/.local/bin/codex" ] ||
    [ -x /usr/local/bin/codex ] || type -P npm >/dev/null
}

# Writes a file where cdx is going to be, gives it the group, and removes it.
check_place() {
  local nearest=$DIRECTORY
  [ ! -d "$CDX" ] || stop "$CDX is a directory" "move it away"
  # The installer makes what is missing; nothing that stays is made here.
  while [ ! -e "$nearest" ] && [ ! -L "$nearest" ]; do
    case $nearest in
      /*/*) nearest=${nearest%/*} ;;
      /*) nearest=/ ;;
      */*) nearest=${nearest%/*} ;;
      *) nearest=. ;;
    esac
  done
  [ -d "$nearest" ] || stop "$nearest is not a directory" "move it away"
  trap '[ -z "$PROBE" ] || rm -f -- "$PROBE"' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  PROBE=$nearest/.cdx-probe.$$
  (umask 077 && set -C && printf x >"$PROBE") 2>/dev/null || stop "cannot write in $nearest" "make it writable"
  [ -z "$GROUP" ] || chgrp -- "$GROUP" "$PROBE" 2>/dev/null || stop "there is no group $GROUP" "make it (groupadd $GROUP), or leave CDX_GROUP out,"
  rm -f -- "$PROBE"
  PROBE=''
}

# As the printed command does it.
run_installer() {
  set --
  [ -z "$CDX_PIN" ] || set -- -k --pinnedpubkey "sha256//$CDX_PIN"
  curl -sSL ${1+"$@"} "$CDX_URL" -w '\n[ %{http_code} = 200 ]' | "$BASH"
}

stop() {
  fail "$1. Nothing was done and the command is still good: $2 and run it again"
}

fail() {
  printf 'codex-authd: %s\n' "$1" >&2
  exit 1
}

PROBE='' MISSING='' DIRECTORY='' CDX='' GROUP=''
main </dev/null
exit
}
