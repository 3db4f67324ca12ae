#!/usr/bin/env bash
# shellcheck disable=SC2034,SC2317 # the functions of the other scripts read these variables and call these functions
set +xva # the installer's token must not be traced or exported
{ # One command: bash reads it to its end before it runs any of it.
# The first stage of an installation. It checks this machine, then fetches the installer and runs it.
#
# Fetching this script does not spend the installer's token; fetching the installer does. If a check fails, nothing has
# been done, and the same command can be run again. CDX_GROUP has the same meaning as for the installer.

set +efC
set -u
unset -f curl ls id rm chgrp df sed grep head tar uname stat readlink npm node
IFS=$' \t\n'
readonly NL='
'

# --- baked: begin
CDX_URL=''
CDX_PIN=''
CDX_PROGRAMS=''
CDX_CODEX_RELEASE_URL=''
CDX_CODEX_RELEASE_SHA256=''
CDX_CODEX_NPM='@openai/codex'
CDX_CODEX_VERSION=''
CDX_FUNCTIONS=''
# --- baked: end

main() {
  [ -n "$CDX_URL" ] || fail "this is only the template; run the installer command that codex-authd printed"
  # Functions of cdx and of the installer. So the checks look for things in the same way as cdx and the installer will.
  eval "$CDX_FUNCTIONS"
  # In a subshell, because it may change HOME and PATH.
  (check_machine) || exit 1
  run_installer
}

check_machine() {
  local file
  missing_tools
  missing_for_install
  [ -z "$MISSING" ] || stop "missing here:$MISSING" "install them"
  choose_place
  check_place
  SELF=$CDX WANTED_CODEX=$CDX_CODEX_VERSION
  export npm_config_cache=/dev/null # otherwise npm creates a directory when it prints its prefix
  find_home
  # There the native cdx and its configuration will be written, if there is one for this machine.
  find_config
  if name_machine && [[ " $CDX_PROGRAMS" = *" $NATIVE_TARGET="* ]]; then
    for file in "$CDX" "$CACHE_DIR"; do has_room "$file" 16 || stop "$WHY" "$FIX"; done
    has_room "$CONFIG" 2 || stop "$WHY" "$FIX"
  fi
  # The first login and cdx's state will be written there.
  resolve_links "$AUTH_FILE" || stop "$AUTH_FILE is a broken link" "move it away"
  for file in "$RESOLVED" "$CACHE_DIR"; do has_room "$file" 2 || stop "$WHY" "$FIX"; done
  [ ! -e "$AUTH_FILE" ] || is_readable_file "$AUTH_FILE" || stop "$AUTH_FILE is no file that can be read" "move it away"
  # The installer installs Codex if it is missing.
  find_codex
  [ -n "$CODEX" ] || plan_codex || stop "codex cannot be installed: $WHY" "$FIX"
  [ -n "$CODEX" ] || [ -z "$CDX_CODEX_RELEASE_URL" ] || release_answers ||
    stop "codex cannot be fetched: the operator's release URL gives no tar.gz ($RELEASE_URL)" "have that mended"
}

# Whether the release URL returns the first bytes of a gzip file.
release_answers() {
  local magic
  magic=$({ release_config && printf '%s\n' 'range = "0-1"'; } | curl -q --config - 2>/dev/null | head -c 2)
  [ "$magic" = $'\x1f\x8b' ]
}

# Creates a file where cdx will be installed, sets its group, and removes it.
check_place() {
  [ ! -d "$CDX" ] || stop "$CDX is a directory" "move it away"
  # The installer creates missing directories; nothing permanent is created here.
  has_room "$DIRECTORY" 2 || stop "$WHY" "$FIX"
  trap '[ -z "$PROBE" ] || rm -f -- "$PROBE"' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  PROBE=$NEAREST/.cdx-probe.$$
  (umask 077 && set -C && printf x >"$PROBE") 2>/dev/null || stop "cannot write in $NEAREST" "make it writable"
  [ -z "$GROUP" ] || chgrp -- "$GROUP" "$PROBE" 2>/dev/null || stop "there is no group $GROUP" "make it (groupadd $GROUP), or leave CDX_GROUP out,"
  rm -f -- "$PROBE"
  PROBE=''
}

# Runs the installer like the printed command.
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

# cdx prints these messages itself once it is installed.
warn() { :; }
complain() { :; }

PROBE='' MISSING='' DIRECTORY='' CDX='' GROUP='' NEAREST='' WHY='' FIX=''
CODEX='' NATIVE_TARGET='' CONFIG='' STATE_DIR='' AUTH_FILE='' CACHE_DIR='' RESOLVED='' RELEASE_URL='' # without STATE_DIR, find_codex stores nothing
main </dev/null
exit
}
