#!/usr/bin/env bash
# Checks the packages in dist/: the .deb and the .rpm hold the same files, nothing of the build machine, and no finding of
# lintian and rpmlint. Packing again gives the same bytes. Their scripts work without a running systemd.
# The life of an installed machine is another test (tests/integration/appliance). Needs root for the installations.
#   package.sh [DIRECTORY [PROGRAM]]   the packages, if not dist; the packed program, if not that of target/release
#   AUTHD_TEST_ROOT          a Debian that may be copied (default: each that the other test has made); without one nothing
#                            is installed
set -euo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C.UTF-8
# shellcheck source=tests/skip.sh
. tests/skip.sh
# shellcheck source=tests/checks.sh
. tests/checks.sh
dist=${1:-dist}
deb=$(echo "$dist"/codex-authd_*_amd64.deb)
version=$(dpkg-deb --field "$deb" Version)
rpm=$dist/codex-authd-$version-1.x86_64.rpm
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

dpkg-deb -x "$deb" "$work/deb"
dpkg-deb -e "$deb" "$work/control"
mkdir "$work/rpm"
rpm2archive - <"$rpm" | tar -xzf - -C "$work/rpm"

begin "the same files in both, except those that each family stores differently"
files() { (cd "$1" && find . -type f -exec sha256sum {} + | sed 's/^\([0-9a-f]*\)  \.\(.*\)$/\2 \1/'); }
own() {
  grep -vE '^/usr/share/(doc/codex-authd/(copyright|changelog\.gz)|licenses/codex-authd/LICENSE|lintian/overrides/codex-authd) '
}
files "$work/deb" | own | sed 's|/zsh/vendor-completions/|/zsh/site-functions/|' | sort >"$work/deb.list"
files "$work/rpm" | own | sort >"$work/rpm.list"
quiet "$(diff "$work/deb.list" "$work/rpm.list" || true)"

begin "the libraries that dpkg finds, and the changelog of this version"
mkdir -p "$work/shlibs/debian"
touch "$work/shlibs/debian/control"
found=$(cd "$work/shlibs" && dpkg-shlibdeps -O "$work/deb/usr/bin/codex-authd" 2>/dev/null | sed -n 's/^shlibs:Depends=.*\(libc6 ([^)]*)\).*/\1/p')
wrong=
grep -qF "$found" <<<"$(dpkg-deb --field "$deb" Depends)" || wrong="$found is missing: $(dpkg-deb --field "$deb" Depends)"
grep -qF "($version)" <<<"$(zcat "$work/deb/usr/share/doc/codex-authd/changelog.gz" | sed -n 1p)" || wrong+="another version in the changelog of the .deb"
# Both changelogs are made from the same lines.
deb_lines=$(zcat "$work/deb/usr/share/doc/codex-authd/changelog.gz" | grep -c '^  \* ')
[ "$(rpm -qp --changelog "$rpm" 2>/dev/null | grep -c '^- ')" = "$deb_lines" ] || wrong+="not the same changes in both"
[ "$(rpm -qp --qf '%{PACKAGER}' "$rpm" 2>/dev/null)" = "$(dpkg-deb --field "$deb" Maintainer)" ] || wrong+="not the same maintainer in both"
[ "$(rpm -qp --qf '%{URL}' "$rpm" 2>/dev/null)" = "$(dpkg-deb --field "$deb" Homepage)" ] || wrong+="not the same homepage in both"
rpm -K --nosignature "$rpm" >/dev/null 2>&1 || wrong+="the digests of the .rpm are wrong"
quiet "$wrong"

begin "modes and owners"
modes=$(rpm -qp --qf '[%{FILEMODES:perms} %{FILEUSERNAME}:%{FILEGROUPNAME} %{FILENAMES}\n]' "$rpm" 2>/dev/null)
others=$(grep -vE "^-rw-r--r-- root:root |^-rwxr-xr-x root:root (/usr/bin/codex-authd|/usr/share/codex-authd/wrapper/(cdx|cdx-[a-z0-9_]*-linux|install.sh|start.sh))$" <<<"$modes" || true)
[ -z "$others" ] && rpm_modes= || rpm_modes="in the .rpm: $others"
deb_modes=$(dpkg-deb --fsys-tarfile "$deb" | tar --numeric-owner -tvf - | awk '$1 !~ /^d/ { print $1, $2, substr($6, 2) }' \
  | grep -vE "^-rw-r--r-- 0/0 |^-rwxr-xr-x 0/0 (/usr/bin/codex-authd|/usr/share/codex-authd/wrapper/(cdx|cdx-[a-z0-9_]*-linux|install.sh|start.sh))$" || true)
quiet "$rpm_modes$deb_modes"

begin "the native cdx for hosts: static, without symbols, of this version, at most 4 MB"
program=$work/deb/usr/share/codex-authd/wrapper/cdx-x86_64-linux
wrong=
if [ -f "$program" ]; then
  said=$(env -i CDX_ASKS_CODEX=1 "$program" --version 2>&1) || true
  [ "$said" = "cdx $(cat wrapper/VERSION)" ] || wrong="it says: $said "
  ! readelf -d "$program" | grep -q NEEDED || wrong+="it needs libraries "
  ! readelf -l "$program" | grep -q INTERP || wrong+="it needs a loader "
  ! readelf -S "$program" | grep -qE ' \.(symtab|debug_)' || wrong+="it has symbols "
  [ "$(stat -c %s "$program")" -le 4194304 ] || wrong+="it has $(stat -c %s "$program") bytes"
else
  wrong="it is missing: make cdx"
fi
quiet "$wrong"

begin "nothing in /etc: no upgrade asks about, renames or replaces a file that an operator edits"
conffiles=$(cat "$work/control/conffiles" 2>/dev/null; rpm -qpc "$rpm" 2>/dev/null)
in_etc=$(find "$work/deb" "$work/rpm" -path '*/etc/*' ! -type d)
quiet "$conffiles$in_etc"

begin "the packages require a systemd that reads /etc/credstore"
needed=
deb_needs=$(dpkg-deb -f "$deb" Depends)
rpm_needs=$(rpm -qpR "$rpm" 2>/dev/null)
# Compares whole items: no alternative package may satisfy it.
grep -qx ' *systemd (>= 252)' <<<"${deb_needs//,/$'\n'}" || needed="the .deb: $deb_needs"
grep -qxF 'systemd >= 252' <<<"$rpm_needs" || needed="$needed the .rpm: $(grep systemd <<<"$rpm_needs" || echo "no systemd")"
quiet "$needed"

begin "the packaged configuration holds the daemon's defaults"
set_keys=$(grep -vE '^(#.*|\[[a-z]+\]|)$' "$work/deb/usr/share/codex-authd/config.toml" || true)
checked=$("$work/deb/usr/bin/codex-authd" check-config --config "$work/deb/usr/share/codex-authd/config.toml" 2>&1) && checked=
quiet "$set_keys$checked"

begin "no path of this machine in the programs"
if [ -n "${AUTHD_PACKAGE_UNMAPPED:-}" ]; then
  skipped "AUTHD_PACKAGE_UNMAPPED says that the program was not built for a package"
else
  quiet "$(strings -n 6 "$work"/deb/usr/{bin/codex-authd,share/codex-authd/wrapper/cdx-*} "$(echo target/package/build-id/*/*.debug)" \
    | grep -F -e "$PWD" -e "$(realpath "${CARGO_HOME:-$HOME/.cargo}")" -e "$(rustc --print sysroot)" | sort | uniq -c | sort -rn | head -n 5 || true)"
fi

begin "the scripts know the format that the daemon writes"
mkdir "$work/state"
cat >"$work/config.toml" <<CONFIG
state_dir = "$work/state"
[listen]
hosts = "127.0.0.1:0"
admin = "127.0.0.1:0"
control = "$work/control.sock"
CONFIG
"$work/deb/usr/bin/codex-authd" --config "$work/config.toml" admin-cert test --out "$work/test.p12" >/dev/null
writes=$(cat "$work/state/format")
rpm -qp --scripts "$rpm" 2>/dev/null >"$work/rpm.scripts"
told=$(grep -ho "found\" -gt [0-9]*" "$work/control/preinst" "$work/rpm.scripts" | sort -u)
if [ "$told" = "found\" -gt $writes" ]; then good "$writes"; else bad "the daemon writes $writes, the scripts say: $told"; fi

begin "shellcheck of the packed scripts"
quiet "$(shellcheck -s sh "$work"/control/{preinst,postinst,prerm,postrm} target/package/rpm/*.sh 2>&1 || true)"

begin "lintian"
quiet "$(lintian --allow-root --tag-display-limit 0 --fail-on none --display-level '>=info' "$dist"/*.deb 2>&1 \
  | grep -v '^I: codex-authd-dbgsym: ' || true)"

begin "rpmlint"
found=$(rpmlint -r rpm/rpmlintrc "$dist"/*.rpm 2>&1) || true
if grep -q '; 0 errors, 0 warnings' <<<"$found"; then good; else bad "$found"; fi

begin "the units"
sed "s|/usr/bin/codex-authd|$work/deb/usr/bin/codex-authd|" systemd/codex-authd.service >"$work/codex-authd.service"
sed "s|/usr/bin/codex-authd|$work/deb/usr/bin/codex-authd|" systemd/codex-authd-backup.service >"$work/codex-authd-backup.service"
cp systemd/codex-authd.socket systemd/codex-authd-backup.timer "$work"
verified=$(systemd-analyze verify --man=no "$work"/codex-authd*.{service,socket,timer} 2>&1 || true)
exposure=$(systemd-analyze security --offline=yes "$work/codex-authd.service" | sed -n 's/.*exposure level.*: \([0-9.]*\) .*/\1/p')
# 2.0 is not possible while the sandbox of probes is the daemon's child; the unit lists the permissions that are left.
if [ -z "$verified" ] && awk -v e="$exposure" 'BEGIN { exit !(e > 0 && e <= 2.2) }'; then
  good "systemd-analyze security: $exposure"
else bad "exposure $exposure" "$verified"; fi

begin "AppArmor: the profile is loaded only if the parser knows it"
# Uses a test directory instead of /etc.
mkdir -p "$work/apparmor/etc/apparmor.d" "$work/apparmor/bin"
ln -s "$work/deb/usr" "$work/apparmor/usr"
{ sed "s|/etc/apparmor.d|$work/apparmor&|; s|/usr/share|$work/deb&|; s|/sys/kernel|/none|" packaging/scripts/apparmor.sh; echo apparmor_profile; } >"$work/apparmor/run"
as_parser() { printf '#!/bin/sh\nexit %s\n' "$1" >"$work/apparmor/bin/apparmor_parser"; chmod +x "$work/apparmor/bin/apparmor_parser"; PATH="$work/apparmor/bin:$PATH" sh -e "$work/apparmor/run"; }
said=
as_parser 0 && [ -f "$work/apparmor/etc/apparmor.d/codex-authd" ] || said="not installed although the parser accepts it"
as_parser 1 && [ ! -e "$work/apparmor/etc/apparmor.d/codex-authd" ] || said="$said; still installed although the parser refuses it"
real=$(apparmor_parser -QTK packaging/apparmor 2>&1) && real="this machine's parser accepts it" || real="this machine's parser refuses it: $(tail -n 1 <<<"$real")"
if [ -z "$said" ]; then good "$real"; else bad "$said"; fi

begin "packing again with another umask, time zone and clock, from files of another date, gives the same bytes"
# A later check-out gives them another date.
touch CHANGELOG.md docs/SECURITY.md
clock=()
if command -v faketime >/dev/null; then clock=(faketime '2031-05-06 07:08:09'); else skipped "another clock: faketime is not installed"; fi
# The values of the first packing: the date is that of the commit.
SOURCE_DATE_EPOCH=$(rpm -qp --qf '%{BUILDTIME}' "$rpm" 2>/dev/null)
AUTHD_VENDOR=$(rpm -qp --qf '%{VENDOR}' "$rpm" 2>/dev/null)
AUTHD_MAINTAINER=$(dpkg-deb --field "$deb" Maintainer)
AUTHD_HOMEPAGE=$(dpkg-deb --field "$deb" Homepage)
export SOURCE_DATE_EPOCH AUTHD_VENDOR AUTHD_MAINTAINER AUTHD_HOMEPAGE AUTHD_VERSION=$version
(umask 077 && TZ=Pacific/Kiritimati "${clock[@]}" packaging/package.sh "${2:-target/release/codex-authd}" "$work/again" >/dev/null 2>&1)
packed=$(realpath "$dist")
quiet "$(cd "$work/again" && for file in *; do cmp "$file" "$packed/$file" 2>&1 || true; done)"

begin "rpm into an empty tree"
mkdir "$work/tree"
installed=$(rpm --root "$work/tree" -i --nodeps --noscripts "$rpm" 2>&1 \
  | grep -vE 'does not exist - using root|use Alien instead|assuming you know' || true)
quiet "$installed$(rpm --root "$work/tree" -ql codex-authd | while read -r file; do [ -e "$work/tree$file" ] || echo "$file is missing"; done)"

roots=()
for complete in "${AUTHD_TEST_CACHE:-$HOME/.cache/codex-authd-tests}"/rootfs-*/.complete; do
  [ ! -e "$complete" ] || roots+=("$(dirname "$complete")")
done
[ -z "${AUTHD_TEST_ROOT:-}" ] || roots=("$AUTHD_TEST_ROOT")
if ((${#roots[@]} == 0)) || [ "$(id -u)" != 0 ]; then
  skipped "nothing was installed: that needs root and AUTHD_TEST_ROOT"
  exit "$failed"
fi
for system in "${roots[@]}"; do
  # shellcheck source=tests/package-installed.sh
  . tests/package-installed.sh
done
exit "$failed"
