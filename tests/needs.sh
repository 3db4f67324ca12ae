#!/usr/bin/env bash
# Installs what the tests need and the machine lacks: Debian packages, the Codex CLI and an OpenID provider (npm), the
# tools for the OpenAPI document (npm, PyPI), cargo's tools (crates.io). Nothing comes from anywhere else. All but Debian's packages have a
# fixed version and are kept outside the clone.
#   needs.sh           installs
#   needs.sh --table   prints everything with size and reason, as a Markdown table. A package counts with those dependencies
#                      that no row above and no minimal Debian has.
#   AUTHD_TEST_CACHE   the directory for the other tools
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${AUTHD_TEST_CACHE:-$HOME/.cache/codex-authd-tests}
mkdir -p "$cache"

# A command or a file to look for, its Debian package, and the reason.
debian='
cc                        gcc                   compiles the C code of the cryptography, and programs that tests run in sandboxes
/usr/lib/x86_64-linux-gnu/libc.a|/usr/lib/aarch64-linux-gnu/libc.a libc6-dev links static programs that replace Codex in its sandbox
curl                      curl                  runs the commands that the dashboard prints
tar                       tar                   the installer unpacks Codex
openssl                   openssl               independent certificates and clients
shellcheck                shellcheck            lints every shell script
strace                    strace                records the system calls of the sandbox and of durable writes
npm                       npm                   installs Codex and the OpenID provider; the installer runs it too
node                      nodejs                runs the OpenID provider, the linters of the OpenAPI document, the TypeScript client
python3                   python3               runs the tools for the OpenAPI document, and the Python client
/usr/lib/python3*/ensurepip python3-venv        the virtual environment of these tools
java                      default-jre-headless  runs the generator of the Go client
go                        golang-go             compiles the Go client
/usr/share/gocode/src/gopkg.in/validator.v2 golang-gopkg-validator.v2-dev the Go client imports it
busybox                   busybox               a shell that is not bash, for the wrapper
script                    bsdutils              a terminal for commands with a prompt
setsid                    util-linux            sessions without a terminal, and entering namespaces
mount                     mount                 file systems that are full or read-only
mkfs.ext4                 e2fsprogs             the file system for power cut tests
chromium                  chromium              the dashboard in a real browser
chromedriver              chromium-driver       drives the browser
certutil                  libnss3-tools         gives the browser an admin certificate
mariadbd                  mariadb-server-core   the database
my_print_defaults         mariadb-client-core   the scripts of the cluster need it
/usr/lib/galera/libgalera_smm.so galera-4       a cluster of databases
rsync                     rsync                 copies the state to a node of the cluster
ip                        iproute2              test networks, and their interruption
dpkg-deb                  dpkg                  packs and reads .deb
dpkg-shlibdeps            dpkg-dev              finds the libraries that a .deb depends on
objcopy                   binutils              strips symbols from the program
rpm                       rpm                   reads, installs and signs .rpm
rpm2archive               rpm2cpio              lists the content of an .rpm
lintian                   lintian               lints .deb
rpmlint                   rpmlint               lints .rpm
apt-ftparchive            apt-utils             makes indexes of the repository for apt
createrepo_c              createrepo-c          makes indexes of the repository for dnf
gpg                       gpg                   signs the repository
gpg-agent                 gpg-agent             holds the signing key
gpgv                      gpgv                  checks signatures
dnf                       dnf                   reads the repository as Fedora and RHEL do
aarch64-linux-gnu-gcc     gcc-aarch64-linux-gnu builds a program for another architecture, for the packages
/usr/aarch64-linux-gnu/include/stdio.h libc6-dev-arm64-cross the C library for it
faketime                  faketime              packs at another date, to compare the bytes
systemd-analyze           systemd               checks the units
debootstrap               debootstrap           makes the Debian system that is booted
systemd-nspawn            systemd-container     boots it
man                       man-db                shows the manual pages
mandoc                    mandoc                lints the manual pages
groff                     groff-base            formats the manual pages
zsh                       zsh                   tests the zsh completions
apparmor_parser           apparmor              compiles the profile
'
# Unpacked into the cache and not installed, because they would start a server: DIRECTORY PACKAGE FILE WHY
unpacked='
mariadb-server mariadb-server usr/bin/wsrep_sst_rsync the script that copies the state to a cluster node
prometheus     prometheus     usr/bin/promtool        checks the alerts
nginx          nginx          usr/sbin/nginx          a reverse proxy in front of the daemon
nginx-stream   libnginx-mod-stream usr/lib/nginx/modules/ngx_stream_module.so the nginx module that passes TLS through
caddy          caddy          usr/bin/caddy           another reverse proxy
'
cargo_deny=0.20.2

# A pattern with a slash is a file; "|" separates two files.
is_there() {
  local pattern
  case $1 in
  /*) for pattern in ${1//|/ }; do compgen -G "$pattern" >/dev/null && return; done; return 1 ;;
  *) command -v "$1" >/dev/null ;;
  esac
}
row() { printf '| %s | %s | %s |\n' "$1" "$2" "$3"; }
megabytes() { awk -v kib="$1" 'BEGIN { printf kib < 1024 ? "< 1 MB" : "%.0f MB", kib / 1024 }'; }
directory_row() { [ ! -e "$2" ] || row "$1" "$(megabytes "$(du -sk "$2" | cut -f 1)")" "$3"; }

declare -A counted=()
# Sets $sum, in KiB.
size_of() {
  local one priority size
  sum=0
  while read -r one; do
    [ -z "${counted[$one]:-}" ] || continue
    counted[$one]=1
    read -r priority size < <(dpkg-query -W -f '${Priority} ${Installed-Size}\n' "$one" 2>/dev/null) || continue
    [ "$priority" = required ] || sum=$((sum + size))
  done < <(apt-cache depends --recurse --installed --no-{recommends,suggests,conflicts,breaks,replaces,enhances} "$1" | grep '^[a-z0-9]')
}
if [ "${1:-}" = --table ]; then
  row Tool Size 'What for'
  row --- --: ---
  while read -r _ package why; do
    [ -n "$package" ] || continue
    size_of "$package"
    row "$package" "$(megabytes "$sum")" "$why"
  done <<<"$debian"
  while read -r directory package _ why; do
    [ -z "$package" ] || directory_row "$package (unpacked, not installed)" "$cache/$directory" "$why"
  done <<<"$unpacked"
  directory_row "@openai/codex (npm)" "$(dirname "$(dirname "$(tests/install-codex.sh)")")" "the real Codex"
  directory_row "oidc-provider (npm)" "$(tests/install-oidc-provider.sh)" "a real OpenID provider"
  openapi=$(tests/install-openapi-tools.sh)
  directory_row "redocly, spectral, openapi-typescript, tsc (npm)" "$openapi/node_modules" "lint the OpenAPI document, make the TypeScript client"
  directory_row "schemathesis, openapi-python-client, openapi-generator, mypy (PyPI)" "$openapi/venv" \
    "test the daemon by its OpenAPI document, make the Python and Go clients"
  directory_row "cargo-deny (crates.io)" "$cache/tools" "checks licences and sources of the dependencies"
  directory_row "cargo-deb, cargo-generate-rpm (crates.io)" "$cache/packagers" "make the packages; packaging/package.sh installs them"
  for root in "$cache"/rootfs-*/; do
    directory_row "Debian $(sed -n 's/^VERSION_CODENAME=//p' "$root/etc/os-release") (debootstrap)" "$root" "the machine for the tests of installed packages"
  done
  exit
fi

missing=()
while read -r what package why; do
  [ -n "$what" ] || continue
  [ -n "$why" ] || { echo "needs.sh: $package has no reason" >&2; exit 1; }
  is_there "$what" || missing+=("$package")
done <<<"$debian"
if ((${#missing[@]})); then
  command -v apt-get >/dev/null || { echo "needs.sh: install ${missing[*]} and run this again" >&2; exit 1; }
  echo "installing ${missing[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
while read -r directory package file _; do
  if [ -z "$package" ] || [ -e "$cache/$directory/$file" ]; then continue; fi
  command -v apt-get >/dev/null || { echo "needs.sh: install $package and run this again" >&2; exit 1; }
  download=$(mktemp -d)
  (cd "$download" && apt-get download -qq "$package" >/dev/null 2>&1 && dpkg-deb -x "$package"_*.deb unpacked)
  rm -rf "${cache:?}/$directory"
  mv "$download/unpacked" "$cache/$directory"
  rm -rf "$download"
done <<<"$unpacked"
command -v cargo-deny >/dev/null || packaging/cargo-tool.sh "$cache/tools" cargo-deny "$cargo_deny"
tests/install-codex.sh >/dev/null
tests/install-oidc-provider.sh >/dev/null
tests/install-openapi-tools.sh >/dev/null
