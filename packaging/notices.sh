#!/usr/bin/env bash
# Prints the notices of the libraries that are linked into the daemon and into the native cdx: each text once, with its
# crates.
#   notices.sh TARGET   for the programs of that target
set -euo pipefail
export LC_ALL=C.UTF-8
cd "$(dirname "$0")/.."
sources=${CARGO_HOME:-$HOME/.cargo}/registry/src
texts=$(mktemp -d)
trap 'rm -rf "$texts"' EXIT

echo "codex-authd and cdx are linked with the following libraries, each under the licence beside it. Their notices follow."
echo
while read -r name version licence; do
  version=${version#v}
  printf '%s %s: %s\n' "$name" "$version" "$licence"
  for directory in "$sources"/*/"$name-$version"; do
    while IFS= read -r -d '' file; do
      digest=$(sha256sum <"$file" | cut -d ' ' -f 1)
      [ -e "$texts/$digest" ] || cp "$file" "$texts/$digest"
      printf '%s %s\n' "$name" "$version" >>"$texts/$digest.crates"
    done < <(find "$directory" -maxdepth 1 -type f \( -iname 'licen[cs]e*' -o -iname 'copying*' -o -iname 'notice*' -o -iname 'copyright*' \) -print0 | sort -z)
  done
done < <(cargo tree --locked --offline --workspace --edges normal --target "$1" --prefix none --format '{p} {l}' --no-dedupe \
  | sed 's/ (proc-macro)//' | grep -vE '^(codex-authd|codex-authd-client|cdx) |^ *$' | sort -u)

for crates in "$texts"/*.crates; do
  printf '\n%s\n' "--------------------------------------------------------------------------------"
  sort -u "$crates" | paste -sd ';' | sed 's/;/, /g' | fold -s -w 80
  printf '\n'
  cat "${crates%.crates}"
done
