#!/usr/bin/env bash
# Checks that two builds are the same: builds and packages the last commit twice. The two directories have paths of
# different length and their own target directories. Umask and time zone differ, too. Takes two release builds.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cache=${AUTHD_TEST_CACHE:-$HOME/.cache/codex-authd-tests}
build() {
  git clone --quiet . "$1"
  (cd "$1" && umask "$2" && AUTHD_TEST_CACHE=$cache TZ=$3 make package)
}
build "$work/one" 022 UTC
build "$work/another/and/longer" 077 Pacific/Kiritimati
status=0
for file in "$work"/one/dist/*; do
  sha256sum "$file"
  cmp "$file" "$work/another/and/longer/dist/$(basename "$file")" || status=1
done
exit "$status"
