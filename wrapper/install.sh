#!/usr/bin/env bash
# Sets this host up for the fleet's Codex login: installs cdx, and Codex where it is missing.
#
# It is served once, and run as `curl … | bash`. Nothing happens before the last line, so half a download does nothing.
# When a step fails, what was done is undone: a cdx that was here before is back, a Codex that came is gone.

set +xva
set -u

# --- baked: begin
CDX_BASE_URL=''
CDX_FQDN=''
CDX_SCRIPT=''
# --- baked: end

main() {
  if [ -z "$CDX_SCRIPT" ]; then fail "this is the bare template; the installer comes from codex-authd, by its installer command"; fi
  command -v curl >/dev/null || fail "curl is needed: install it, then ask for a new installer command"
  command -v tar >/dev/null || fail "tar is needed: install it, then ask for a new installer command"

  if [ "$(id -u)" = 0 ]; then
    DIRECTORY=/usr/local/bin MODE=755
  else
    # It holds this host's key, so it is for its owner only.
    DIRECTORY=$HOME_DIR/.local/bin MODE=700
  fi
  CDX=$DIRECTORY/cdx
  trap undo EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP

  say "this host is ${CDX_FQDN}; its logins come from $CDX_BASE_URL"
  place_cdx
  install_codex
  first_sync
  DONE=1
  [ -z "$BACKUP" ] || rm -f -- "$BACKUP"
  trap - EXIT

  say "done"
  case :$PATH: in
    *:"$DIRECTORY":*) say "type next:  cdx" ;;
    *)
      say "$DIRECTORY is not on your PATH; put this line into ~/.profile (macOS: ~/.zprofile):"
      say "  export PATH=\"\$HOME/.local/bin:\$PATH\""
      say "type next:  $CDX"
      ;;
  esac
}

place_cdx() {
  say "installing $CDX"
  [ -d "$DIRECTORY" ] || mkdir -p -- "$DIRECTORY" || fail "cannot make $DIRECTORY"
  [ ! -d "$CDX" ] || fail "$CDX is a directory: move it away"
  TEMP=$CDX.installing.$$
  (umask 077 && set -C && printf '%s' "$CDX_SCRIPT" >"$TEMP") || fail "cannot write in $DIRECTORY"
  chmod "$MODE" "$TEMP" || fail "cannot set the mode of $TEMP"
  bash -n "$TEMP" || fail "the cdx that came is damaged"
  if [ -e "$CDX" ] || [ -L "$CDX" ]; then
    BACKUP=$CDX.before.$$
    cp -pP -- "$CDX" "$BACKUP" || fail "cannot keep the cdx that is here"
  fi
  mv -f -- "$TEMP" "$CDX" || fail "cannot write $CDX"
  PLACED=1
}

install_codex() {
  local present
  present=$("$CDX" --version </dev/null | sed -n 's/^codex //p')
  if [ "$present" != 'not installed' ]; then
    say "codex $present is here already"
    return
  fi
  "$CDX" --install-codex </dev/null || fail "codex could not be installed"
  BROUGHT=1
}

first_sync() {
  if [ ! -O "$HOME_DIR" ]; then
    # With sudo, HOME may be that of somebody else: leave no files of root's in it.
    say "$HOME_DIR belongs to somebody else: cdx fetches the login when they first run it"
    return
  fi
  "$CDX" --sync </dev/null || fail "the login could not be fetched"
}

# shellcheck disable=SC2317 # a trap calls it
undo() {
  [ -z "$DONE" ] || return 0
  [ -z "$TEMP" ] || rm -f -- "$TEMP"
  if [ -n "$PLACED" ]; then
    if [ -n "$BROUGHT" ]; then "$CDX" --remove-codex </dev/null; fi
    if [ -n "$BACKUP" ]; then mv -f -- "$BACKUP" "$CDX"; else rm -f -- "$CDX"; fi
    complain "undone: $CDX is $([ -n "$BACKUP" ] && echo 'what it was' || echo gone)"
  elif [ -n "$BACKUP" ]; then
    rm -f -- "$BACKUP"
  fi
  complain "this installer is spent; when the reason is mended, ask for a new one: codex-authd hosts add $CDX_FQDN"
}

say() { printf 'codex-authd: %s\n' "$1"; }
complain() { printf 'codex-authd: %s\n' "$1" >&2; }

fail() {
  complain "$1"
  exit 1
}

HOME_DIR=${HOME:-~} DONE='' TEMP='' BACKUP='' PLACED='' BROUGHT=''
{ main </dev/null; exit; }
