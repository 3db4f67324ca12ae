#!/usr/bin/env bash
set +xva # before bash reads the key, which must not be traced, echoed or exported
{ # One command: bash reads it to its end before it runs any of it.
# Adds this host to the fleet: installs cdx, and Codex if it is missing.
#
# cdx is the native program, if the daemon has one for this machine and it runs here, else the script in this file. The
# script is put in place first, and then replaces itself as in an update, so there is a working cdx at every moment.
#
# It is served once, and run as `curl … | bash`. If the download is incomplete, bash runs nothing and fails. If a step
# fails, the earlier steps are undone: the previous cdx and its configuration are restored, and a newly installed Codex is
# removed. After a kill at any line, cdx is the previous one, the script, or the native one with its configuration.
#
# CDX_GROUP=name, for an installation by root: only root and this group may run cdx, and so read the host's API key.
# Without it, only root can run the native program, and every user of the machine can run the script. An installation
# over one with a group keeps the group.

set -u
unset -f curl tar sed grep cat cp mv rm rmdir mkdir chmod chgrp ls id
IFS=$' \t\n'

# --- baked: begin
CDX_BASE_URL=''
CDX_FQDN=''
CDX_PROGRAMS=''
CDX_SCRIPT=''
# --- baked: end

main() {
  if [ -z "$CDX_SCRIPT" ]; then fail "this is only the template; codex-authd serves the installer: use its installer command"; fi
  check_tools
  choose_place
  [ "$MODE" != 700 ] || [ -z "${CDX_GROUP:-}" ] || say "CDX_GROUP has an effect only if root installs"
  trap undo EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP

  say "this host is ${CDX_FQDN}; it gets its logins from $CDX_BASE_URL"
  place_cdx
  become_native
  install_codex
  first_sync
  DONE=1
  [ -z "$BACKUP" ] || rm -f -- "$BACKUP"
  [ -z "$CONFIG_BACKUP" ] || rm -f -- "$CONFIG_BACKUP"
  trap - EXIT

  say "done"
  if [ -n "$NATIVE" ] && [ "$MODE" = 755 ]; then
    say "only root can use it: $CONFIG, which contains the key, is root's. To let a group use it:  chgrp NAME $CONFIG && chmod 640 $CONFIG  (or set CDX_GROUP=NAME for the next installer)"
  fi
  case :$USER_PATH: in
    *:"$DIRECTORY":*) say "type next:  cdx" ;;
    *) advise_path ;;
  esac
}

# Prints how to put cdx on the PATH, in the syntax of the user's shell.
advise_path() {
  local shell=${SHELL:-} rc=.profile place=$DIRECTORY
  # shellcheck disable=SC2016 # the user's shell expands it
  [ "$MODE" != 700 ] || place='$HOME/.local/bin'
  case ${shell##*/}/$OSTYPE in
    fish/*)
      say "$DIRECTORY is not on your PATH; type this once:  fish_add_path \"$place\""
      say "type next:  $CDX"
      return
      ;;
    zsh/*) rc=.zshrc ;;
    bash/darwin*) rc=.bash_profile ;;
    bash/*) rc=.bashrc ;;
  esac
  if [ "$MODE" = 700 ]; then
    say "$DIRECTORY is not on your PATH; put this line at the end of ~/$rc:"
  else
    say "$DIRECTORY is not on root's PATH here (users usually have it, and sudo takes secure_path from /etc/sudoers); for root, put this line at the end of ~/$rc:"
  fi
  say "  export PATH=\"$place:\$PATH\""
  say "type next:  $CDX"
}

# Asks the cdx in this script which tools it needs, before anything is done.
check_tools() {
  MISSING=$(printf '%s' "$CDX_SCRIPT" | (unset POSIXLY_CORRECT && exec "$BASH" +o posix -s -- --missing-tools)) || fail "this bash cannot run cdx: version 3.2 or later is needed"
  missing_for_install
  [ -z "$MISSING" ] || fail "missing here:$MISSING. Nothing was done; install them, then run a new installer command"
}

# Adds tools to MISSING that the installer needs and cdx does not. start.sh gets a copy of this function.
missing_for_install() {
  [ -z "${CDX_GROUP:-}" ] || command -v chgrp >/dev/null || MISSING="$MISSING chgrp"
  command -v id >/dev/null || MISSING="$MISSING id"
}

# DIRECTORY, CDX, MODE, GROUP: where cdx is installed, and who may read it. start.sh gets a copy of this function.
choose_place() {
  if [ "$(id -u)" = 0 ]; then
    # With sudo, PATH may lead into a user's home, so the system's directories come first.
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:$PATH
    DIRECTORY=/usr/local/bin MODE=755 GROUP=${CDX_GROUP:-}
  else
    # cdx contains this host's key, so only its owner may read it.
    DIRECTORY=${HOME:-~}/.local/bin MODE=700 GROUP=''
  fi
  CDX=$DIRECTORY/cdx
  [ "$MODE" != 700 ] || return 0
  # The group in CDX_GROUP, or else the group of an installed cdx, or of its configuration, that others cannot read.
  local file
  for file in "$CDX" /etc/cdx/host.toml; do
    if [ -n "$GROUP" ] || [ ! -f "$file" ]; then continue; fi
    # shellcheck disable=SC2046 # mode, links, owner, group
    set -- $(ls -ldn -- "$file")
    case $1 in -rwxr-x---* | -rw-r-----*) GROUP=$4 ;; esac
  done
  [ -z "$GROUP" ] || MODE=750
}

place_cdx() {
  say "installing $CDX"
  [ -d "$DIRECTORY" ] || mkdir -p -- "$DIRECTORY" || fail "cannot make $DIRECTORY"
  [ ! -d "$CDX" ] || fail "$CDX is a directory: move it away"
  TEMP=$CDX.installing.$$
  (umask 077 && set -C && printf '%s' "$CDX_SCRIPT" >"$TEMP") || fail "cannot write in $DIRECTORY"
  [ -z "$GROUP" ] || chgrp -- "$GROUP" "$TEMP" || fail "there is no group $GROUP: make it (groupadd $GROUP), or leave CDX_GROUP out"
  # Until it is known whether the native program replaces it, nobody else may read the key in it.
  chmod "$([ -n "$GROUP" ] && echo 750 || echo 700)" "$TEMP" || fail "cannot set the mode of $TEMP"
  (unset POSIXLY_CORRECT && "$BASH" +o posix -n "$TEMP") || fail "the received cdx is damaged"
  if [ -e "$CDX" ] || [ -L "$CDX" ]; then
    BACKUP=$CDX.before.$$
    cp -pP -- "$CDX" "$BACKUP" || fail "cannot back up the installed cdx"
  fi
  PLACED=1
  mv -f -- "$TEMP" "$CDX" || fail "cannot write $CDX"
}

# The script fetches the native program, verifies it against the digest in this file, runs it once, writes its
# configuration, and puts it in its own place.
become_native() {
  if [ -n "$CDX_PROGRAMS" ]; then
    CONFIG=$("$CDX" --config-file </dev/null) || fail "$CDX does not run here"
    if [ -e "$CONFIG" ]; then
      CONFIG_BACKUP=$CONFIG.before.$$
      cp -pP -- "$CONFIG" "$CONFIG_BACKUP" || fail "cannot back up $CONFIG"
    fi
    CONFIGURED=1
    "$CDX" --become-native "$CDX_PROGRAMS" </dev/null
    case $? in
      0) NATIVE=1 ;;
      3) ;;
      *) fail "the native cdx could not be installed" ;;
    esac
  fi
  chmod "$MODE" "$CDX" || fail "cannot set the mode of $CDX"
}

install_codex() {
  local present
  present=$("$CDX" --version </dev/null | sed -n 's/^codex //p')
  if [ "$present" != 'not installed' ]; then
    say "codex $present is already installed"
    return
  fi
  "$CDX" --install-codex </dev/null || fail "codex could not be installed"
  BROUGHT=1
}

first_sync() {
  "$CDX" --sync </dev/null || fail "the login could not be fetched"
}

# shellcheck disable=SC2317 # a trap calls it
undo() {
  [ -z "$DONE" ] || return 0
  [ -z "$TEMP" ] || rm -f -- "$TEMP"
  if [ -n "$PLACED" ] && [ -n "$BROUGHT" ]; then "$CDX" --remove-codex </dev/null; fi
  if [ -n "$CONFIGURED" ]; then
    if [ -n "$CONFIG_BACKUP" ]; then mv -f -- "$CONFIG_BACKUP" "$CONFIG"; else rm -f -- "$CONFIG"; fi
    rmdir -- "${CONFIG%/*}" 2>/dev/null
  elif [ -n "$CONFIG_BACKUP" ]; then
    rm -f -- "$CONFIG_BACKUP"
  fi
  if [ -n "$PLACED" ]; then
    if [ -n "$BACKUP" ]; then mv -f -- "$BACKUP" "$CDX"; else rm -f -- "$CDX"; fi
    complain "undone: $CDX is $([ -n "$BACKUP" ] && echo 'the previous one' || echo removed)"
  elif [ -n "$BACKUP" ]; then
    rm -f -- "$BACKUP"
  fi
  complain "this installer is used up; correct the problem, then ask for a new one: codex-authd hosts add --rotate $CDX_FQDN"
}

say() { printf 'codex-authd: %s\n' "$1"; }
complain() { printf 'codex-authd: %s\n' "$1" >&2; }

fail() {
  complain "$1"
  exit 1
}

USER_PATH=$PATH # before choose_place adds to it
DONE='' TEMP='' BACKUP='' PLACED='' NATIVE='' CONFIG='' CONFIG_BACKUP='' CONFIGURED='' BROUGHT='' GROUP=''
main </dev/null
exit
}
