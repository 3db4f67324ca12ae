# shellcheck shell=bash
# Sourced by scripts with checks. Only this function skips a check that this machine cannot make: it prints the reason,
# and it ends the script if AUTHD_REQUIRE_ALL=1 is set (CI sets it). The Rust tests have
# tests/integration/support/skip.rs.
skipped() {
  if [ "${AUTHD_REQUIRE_ALL:-}" = 1 ]; then
    echo "skipped, and AUTHD_REQUIRE_ALL=1 allows no skip: $*" >&2
    exit 1
  fi
  echo "skipped: $*"
}
