#!/usr/bin/env bash
# Installs the real OpenID provider of the sign-in tests, outside the clone and once; prints its directory.
#   AUTHD_TEST_CACHE   the directory for it (default ~/.cache/codex-authd-tests)
set -euo pipefail
cd "$(dirname "$0")/oidc-provider"

cache=${AUTHD_TEST_CACHE:-$HOME/.cache/codex-authd-tests}
lock=$(sha256sum package-lock.json)
home=$cache/oidc-provider-${lock:0:16}

if [ ! -d "$home" ]; then
  command -v npm >/dev/null || {
    echo "install-oidc-provider.sh: npm is needed (Debian: apt-get install npm)" >&2
    exit 1
  }
  mkdir -p "$cache"
  work=$(mktemp -d "$cache/installing.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  cp package.json package-lock.json "$work"
  (cd "$work" && npm ci --omit=dev --ignore-scripts --no-fund --no-audit </dev/null >&2)
  # Another process may have installed it first; its copy is equally good.
  mv -T "$work" "$home" 2>/dev/null || [ -d "$home" ]
fi
printf '%s\n' "$home"
