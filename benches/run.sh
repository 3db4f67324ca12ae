#!/usr/bin/env bash
# `make bench`: builds release and prints one table, each figure beside its baseline of the same run.
#   benches/run.sh [retrieve] [connections] [durable] [growth] [idle] [database] [sandbox] [starts] [rates] [list]   parts of it; none: all
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
    # Without package lists there is nothing to choose from.
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
"$BENCH_NGINX" -v 2>/dev/null || { echo "run.sh: $BENCH_NGINX does not run: install nginx and run this again" >&2; exit 1; }
export BENCH_NGINX

# Where Debian has mariadbd; without one there is no part `database`.
export PATH=$PATH:/usr/sbin
exec cargo bench --locked --quiet --bench fleet -- "$@"
