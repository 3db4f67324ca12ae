#!/usr/bin/env bash
# Installs the programs that check the OpenAPI document and make its clients, outside the clone and once; prints their
# directory: venv/bin/python has the modules of tests/openapi/tools/requirements.txt, node_modules those of package.json.
#   AUTHD_TEST_CACHE   the directory for it (default ~/.cache/codex-authd-tests)
set -euo pipefail
cd "$(dirname "$0")/openapi/tools"

cache=${AUTHD_TEST_CACHE:-$HOME/.cache/codex-authd-tests}
lock=$(cat requirements.txt package-lock.json | sha256sum)
home=$cache/openapi-${lock:0:16}

if [ ! -d "$home" ]; then
  for program in npm python3; do
    command -v "$program" >/dev/null || {
      echo "install-openapi-tools.sh: $program is needed (Debian: apt-get install npm python3-venv)" >&2
      exit 1
    }
  done
  mkdir -p "$cache"
  work=$(mktemp -d "$cache/installing.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  cp package.json package-lock.json "$work"
  (cd "$work" && npm ci --omit=dev --ignore-scripts --no-fund --no-audit </dev/null >&2)
  python3 -m venv "$work/venv"
  # The scripts of the environment name its first place; they are called as modules, which work anywhere.
  "$work/venv/bin/python" -m pip install -q --disable-pip-version-check -r requirements.txt >&2
  # Another process may have installed it first; its copy is equally good.
  mv -T "$work" "$home" 2>/dev/null || [ -d "$home" ]
fi
printf '%s\n' "$home"
