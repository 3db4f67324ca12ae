#!/usr/bin/env bash
# Are two builds the same? The last commit, built and packed twice: in two directories of different length, each with a
# target directory of its own, another umask and time zone. Takes two release builds.
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
