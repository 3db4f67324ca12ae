#!/usr/bin/env bash
# Installs what the tests need and the machine lacks: Debian packages, the Codex CLI and an OpenID provider
# (npm), and the OpenAPI validator (PyPI); all but the first pinned and outside the clone.
#   AUTHD_TEST_CACHE   where they go
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${AUTHD_TEST_CACHE:-$HOME/.cache/codex-authd-tests}
mkdir -p "$cache"

# command:package
wanted=(cc:gcc curl:curl tar:tar openssl:openssl shellcheck:shellcheck strace:strace npm:npm node:nodejs python3:python3
  busybox:busybox script:bsdutils setsid:util-linux mount:mount mkfs.ext4:e2fsprogs
  chromium:chromium chromedriver:chromium-driver certutil:libnss3-tools
  mariadbd:mariadb-server-core my_print_defaults:mariadb-client-core rsync:rsync ip:iproute2 nsenter:util-linux
  dpkg-deb:dpkg dpkg-shlibdeps:dpkg-dev objcopy:binutils rpm:rpm rpm2archive:rpm2cpio lintian:lintian rpmlint:rpmlint
  faketime:faketime systemd-analyze:systemd debootstrap:debootstrap systemd-nspawn:systemd-container man:man-db
  mandoc:mandoc groff:groff-base zsh:zsh apparmor_parser:apparmor)
missing=()
for pair in "${wanted[@]}"; do
  command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
# Programs that need no library stand in for Codex in its sandbox.
echo 'int main(void) { return 0; }' | cc -static -x c -o /dev/null - 2>/dev/null || missing+=(libc6-dev)
[ -e /usr/lib/galera/libgalera_smm.so ] || missing+=(galera-4)
python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
if ((${#missing[@]})); then
  command -v apt-get >/dev/null || { echo "needs.sh: install ${missing[*]} and run this again" >&2; exit 1; }
  echo "installing ${missing[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

# How a node of a cluster gets its state: scripts of a package that is unpacked and not installed, since it would start
# a server.
if ! command -v wsrep_sst_rsync >/dev/null && [ ! -x "$cache/mariadb-server/usr/bin/wsrep_sst_rsync" ]; then
  command -v apt-get >/dev/null || { echo "needs.sh: install wsrep_sst_rsync and run this again" >&2; exit 1; }
  package=$(mktemp -d)
  (cd "$package" && apt-get download -qq mariadb-server >/dev/null 2>&1 && dpkg-deb -x mariadb-server_*.deb unpacked)
  rm -rf "$cache/mariadb-server"
  mv "$package/unpacked" "$cache/mariadb-server"
  rm -rf "$package"
fi
if [ ! -x "$cache/python/bin/openapi-spec-validator" ]; then
  python3 -m venv "$cache/python"
  "$cache/python/bin/pip" install -q --disable-pip-version-check openapi-spec-validator==0.9.0
fi
# The licences and sources of what is linked. Minutes to build, once: it is kept in the cache.
cargo_deny=0.20.2
if ! command -v cargo-deny >/dev/null && [ ! -x "$cache/tools/bin/cargo-deny" ]; then
  cargo install --locked --quiet --root "$cache/tools" "cargo-deny@$cargo_deny"
fi
tests/install-codex.sh >/dev/null
tests/install-oidc-provider.sh >/dev/null
