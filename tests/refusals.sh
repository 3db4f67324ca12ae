#!/usr/bin/env bash
# The refusal tests, round after round, while both cores are busy: a test that waits for its time-out now and then is seen
# here. It needs the tests built (`cargo nextest run --no-run`), ends at the first round that is not green, and tries
# nothing again.
#   AUTHD_REFUSAL_ROUNDS   how many rounds (default 100)
#   AUTHD_REFUSAL_TESTS    which tests, as a filter of nextest's (default: those of refused connections)
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${AUTHD_REFUSAL_ROUNDS:-100}
names='no_admin_operation_answers|every_operation_refuses|every_stranger_hears|is_a_refusal'
tests=${AUTHD_REFUSAL_TESTS:-"test(/^refusals::.*($names)/)"}
# How many rounds the test that counts refusals makes by itself is its own default.
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
echo "$rounds rounds, all green, the slowest took $slowest ms"
