# shellcheck shell=bash disable=SC2034,SC2119,SC2120
# Sourced by scripts that make one check after another: each prints one line, and what is wrong below it.
failed=0
begin() { printf '%s … ' "$1"; }
good() { echo "${1:-good}"; }
bad() {
  failed=1
  echo "BAD"
  printf '%s\n' "$@" | sed 's/^/    /'
}
# What was printed is what is wrong.
quiet() { if [ -z "$1" ]; then good; else bad "$1"; fi; }
# Whether a command fails and says this; prints what is wrong.
refused() {
  local wanted=$1 said
  shift
  if said=$("$@" 2>&1); then echo "it was not refused: $said"
  elif ! grep -qF -- "$wanted" <<<"$said"; then echo "it was refused without \"$wanted\": $said"
  fi
}
