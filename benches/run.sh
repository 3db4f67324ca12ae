#!/usr/bin/env bash
# `make bench`: builds release and prints one table, each figure with its baseline from the same run.
#   benches/run.sh [retrieve] [connections] [durable] [growth] [idle] [database] [sandbox] [wrapper] [starts] [rates] [list]   some parts; default: all
#   BENCH_SECONDS, BENCH_ROUNDS, BENCH_HOSTS, BENCH_DIR, BENCH_NGINX                  see benches/fleet/main.rs
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${AUTHD_TEST_CACHE:-$HOME/.cache/codex-authd-tests}

# nginx as Debian ships it. Unpacked and not installed: the package would start a web server on this machine.
fetch_nginx() {
  local root=$cache/nginx parts=$cache/nginx.deb
  if [ ! -x "$root/usr/sbin/nginx" ]; then
    command -v apt-get >/dev/null || { echo "run.sh: install nginx and run this again" >&2; exit 1; }
    echo "fetching nginx" >&2
    rm -rf "$parts" "$root" && mkdir -p "$parts" "$root"
    # Without package lists the download fails.
    (cd "$parts" && { apt-get download -qq nginx 2>/dev/null || { apt-get update -qq && apt-get download -qq nginx; }; } >&2)
    dpkg-deb -x "$parts"/nginx_*.deb "$root"
    rm -rf "$parts"
  fi
  BENCH_NGINX=$root/usr/sbin/nginx
}

if [ -z "${BENCH_NGINX:-}" ]; then
  BENCH_NGINX=$(PATH=$PATH:/usr/sbin command -v nginx || true)
  [ -n "$BENCH_NGINX" ] || fetch_nginx
fi
"$BENCH_NGINX" -v 2>/dev/null || { echo "run.sh: $BENCH_NGINX does not start: install nginx and run this again" >&2; exit 1; }
export BENCH_NGINX

# The native cdx, as it is packed.
if [ -z "${BENCH_CDX:-}" ]; then
  packaging/cdx.sh >&2
  BENCH_CDX=$PWD/target/cdx/cdx-$(uname -m)-linux
fi
export BENCH_CDX

# Debian installs mariadbd there. Without it, the part `database` is skipped.
export PATH=$PATH:/usr/sbin
exec cargo bench --locked --quiet --bench fleet -- "$@"
