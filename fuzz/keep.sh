#!/usr/bin/env bash
# Takes into fuzz/corpus what fuzz/run.sh found, as far as it reaches code that no kept input reaches (how often it is
# reached does not count). Look at it before it is committed: the corpus is meant to stay below 300 KB.
#   fuzz/keep.sh [target...]
set -euo pipefail
cd "$(dirname "$0")/.."
targets=("$@")
((${#targets[@]})) || mapfile -t targets < <(cargo +nightly fuzz list)
for target in "${targets[@]}"; do
  [ -d "fuzz/work/$target" ] || continue
  cargo +nightly fuzz run -s none --strip-dead-code=true "$target" "fuzz/corpus/$target" "fuzz/work/$target" -- \
    -set_cover_merge=1 -use_counters=0 -max_len=512 2>&1 | grep -a '^MERGE-OUTER: .* new files' || true
done
du -sb fuzz/corpus
