#!/usr/bin/env bash
# `make run`: starts a daemon in the foreground with its state in ./var, on 127.0.0.1.
set -euo pipefail
binary=$(realpath "$1")
state=$PWD/var
mkdir -p "$state"
chmod 700 "$state"
if [ ! -f "$state/config.toml" ]; then
  cat >"$state/config.toml" <<CONFIG
state_dir = "$state"
public_base_url = "https://127.0.0.1:8443"
[listen]
hosts = "127.0.0.1:8443"
admin = "127.0.0.1:9443"
control = "$state/control.sock"
CONFIG
fi
if [ ! -f "$state/admin/admin.p12" ]; then
  mkdir -p "$state/admin"
  "$binary" --config "$state/config.toml" admin-cert admin --out "$state/admin/admin.p12" --pem "$state/admin" \
    >"$state/admin/README"
  chmod 600 "$state/admin/README"
fi
cat <<TEXT

  The dashboard        https://127.0.0.1:9443/
  The certificate      $state/admin/admin.p12 (its password: $state/admin/README)
  Next, in another terminal:

    $binary --config $state/config.toml auth upload ~/.codex/auth.json

TEXT
exec "$binary" serve --config "$state/config.toml"
