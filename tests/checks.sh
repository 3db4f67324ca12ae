# shellcheck shell=bash disable=SC2034,SC2119,SC2120
# Sourced by scripts that make a series of checks. Each check prints one line, and its errors below it.
failed=0
begin() { printf '%s … ' "$1"; }
good() { echo "${1:-good}"; }
bad() {
  failed=1
  echo "BAD"
  printf '%s\n' "$@" | sed 's/^/    /'
}
# Takes the errors as one text; an empty text is good.
quiet() { if [ -z "$1" ]; then good; else bad "$1"; fi; }
# Checks that a command fails and prints this text; prints the error otherwise.
refused() {
  local wanted=$1 said
  shift
  if said=$("$@" 2>&1); then echo "it was not refused: $said"
  elif ! grep -qF -- "$wanted" <<<"$said"; then echo "it was refused without \"$wanted\": $said"
  fi
}
