#!/usr/bin/env bash
# Runs the fuzz targets, one after the other, and says of each what it did. What they found worth keeping while they ran
# is in fuzz/work, which git ignores; fuzz/keep.sh takes from there what reaches more code than the kept corpus does.
#   fuzz/run.sh [target...]     all of them when none is named
#   AUTHD_FUZZ_SECONDS          how long each runs (default 600)
# No sanitizer: there is no unsafe code in what the targets call, and without one they run some times faster.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=tests/skip.sh
. tests/skip.sh
seconds=${AUTHD_FUZZ_SECONDS:-600}

command -v cargo-fuzz >/dev/null || { skipped "cargo-fuzz is not installed (cargo install cargo-fuzz --locked)"; exit 0; }
cargo +nightly --version >/dev/null 2>&1 || { skipped "there is no nightly toolchain (rustup toolchain install nightly)"; exit 0; }

targets=("$@")
((${#targets[@]})) || mapfile -t targets < <(cargo +nightly fuzz list)
failed=0
for target in "${targets[@]}"; do
  cargo +nightly fuzz build -s none --strip-dead-code=true "$target"
  mkdir -p "fuzz/work/$target" "fuzz/artifacts/$target"
  log=fuzz/work/$target.log
  before=$(find "fuzz/work/$target" -type f | wc -l)
  status=0
  cargo +nightly fuzz run -s none --strip-dead-code=true --jobs 1 "$target" "fuzz/work/$target" "fuzz/corpus/$target" -- \
    -max_total_time="$seconds" -timeout=25 -rss_limit_mb=2048 -max_len=4096 \
    -dict="fuzz/dictionaries/$target" -print_final_stats=1 >"$log" 2>&1 || status=$?
  executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  coverage=$(grep -o 'cov: [0-9]* ft: [0-9]*' "$log" | tail -n 1 || true)
  new=$(($(find "fuzz/work/$target" -type f | wc -l) - before))
  if ((status)); then
    failed=1
    echo "$target: FAILED (exit $status) after ${executions:-?} executions, ${coverage:-no coverage}; see $log:"
    grep -aE -m 3 'panicked at|^Test unit written|ERROR: ' "$log" || tail -n 5 "$log"
  else
    echo "$target: ${executions:-?} executions in $seconds s, $coverage, $new new inputs, no crash"
  fi
done
exit "$failed"
