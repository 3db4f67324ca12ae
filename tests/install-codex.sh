#!/usr/bin/env bash
# Installs the real Codex CLI for the tests, outside the clone and once; prints the path of the binary.
#   AUTHD_TEST_CACHE   the directory for it (default ~/.cache/codex-authd-tests)
set -euo pipefail

version=0.169.0
cache=${AUTHD_TEST_CACHE:-$HOME/.cache/codex-authd-tests}
home=$cache/codex-$version
binary=$home/bin/codex

if [ ! -x "$binary" ]; then
  command -v npm >/dev/null || {
    echo "install-codex.sh: npm is needed (Debian: apt-get install npm)" >&2
    exit 1
  }
  mkdir -p "$cache"
  work=$(mktemp -d "$cache/installing.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  npm install --global --no-fund --no-audit --prefix "$work" "@openai/codex@$version" </dev/null >&2
  # Another process may have installed it first; its copy is equally good.
  mv "$work" "$home" 2>/dev/null || [ -x "$binary" ]
fi
printf '%s\n' "$binary"
