# shellcheck shell=bash
# Sourced by scripts that check something. A check that this machine cannot make is skipped by this function alone: it
# prints the reason, and it ends the script where AUTHD_REQUIRE_ALL=1 is set (CI sets it). The same for the tests in Rust
# is tests/integration/support/skip.rs.
skipped() {
  if [ "${AUTHD_REQUIRE_ALL:-}" = 1 ]; then
    echo "skipped, and AUTHD_REQUIRE_ALL=1 allows no skip: $*" >&2
    exit 1
  fi
  echo "skipped: $*"
}
