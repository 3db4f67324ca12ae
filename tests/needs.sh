#!/usr/bin/env bash
# Installs what the tests need and the machine lacks: Debian packages, the Codex CLI (npm) and the OpenAPI validator
# (PyPI), the last two pinned and outside the clone.
#   AUTHD_TEST_CACHE   where they go
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${AUTHD_TEST_CACHE:-$HOME/.cache/codex-authd-tests}
mkdir -p "$cache"

# command:package
wanted=(cc:gcc curl:curl tar:tar openssl:openssl shellcheck:shellcheck strace:strace npm:npm python3:python3
  script:bsdutils setsid:util-linux mount:mount mkfs.ext4:e2fsprogs
  chromium:chromium chromedriver:chromium-driver certutil:libnss3-tools
  mariadbd:mariadb-server-core my_print_defaults:mariadb-client-core)
missing=()
for pair in "${wanted[@]}"; do
  command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
if ((${#missing[@]})); then
  command -v apt-get >/dev/null || { echo "needs.sh: install ${missing[*]} and run this again" >&2; exit 1; }
  echo "installing ${missing[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

if [ ! -x "$cache/python/bin/openapi-spec-validator" ]; then
  python3 -m venv "$cache/python"
  "$cache/python/bin/pip" install -q --disable-pip-version-check openapi-spec-validator==0.9.0
fi
tests/install-codex.sh >/dev/null
