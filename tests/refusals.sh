#!/usr/bin/env bash
# Runs the refusal tests in many rounds while all cores are busy. This finds a test that sometimes waits for its timeout.
# Build the tests first (`cargo nextest run --no-run`). The script ends at the first round that fails, without a retry.
#   AUTHD_REFUSAL_ROUNDS   the number of rounds (default 100)
#   AUTHD_REFUSAL_TESTS    the tests, as a nextest filter (default: those of refused connections)
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${AUTHD_REFUSAL_ROUNDS:-100}
names='no_admin_operation_answers|every_operation_refuses|every_stranger_hears|is_a_refusal'
tests=${AUTHD_REFUSAL_TESTS:-"test(/^refusals::.*($names)/)"}
# One of the tests reads this variable too; it shall use its own default.
unset AUTHD_REFUSAL_ROUNDS

busy=()
trap 'kill "${busy[@]}" 2>/dev/null || true' EXIT
for _ in $(seq "$(nproc)"); do
  (while :; do :; done) &
  busy+=($!)
done

log=$(mktemp)
slowest=0
for round in $(seq "$rounds"); do
  begun=$(date +%s%N)
  if ! cargo nextest run --locked --retries 0 -E "$tests" >"$log" 2>&1; then
    cat "$log"
    echo "round $round of $rounds failed"
    exit 1
  fi
  took=$((($(date +%s%N) - begun) / 1000000))
  ((took <= slowest)) || slowest=$took
done
grep -h 'Summary' "$log"
rm -f "$log"
echo "$rounds rounds, all passed, the slowest took $slowest ms"
