#!/usr/bin/env bash
# Makes dist/*.deb and dist/*.rpm from target/release/codex-authd. The same program gives the same bytes, with any
# umask, time zone and clock.
#   package.sh [PROGRAM [DIRECTORY]]   another program, another output directory
#   ARCH                   amd64 or arm64 (default: this machine's); PROGRAM must be built for it
#   AUTHD_NATIVE_PROGRAM   the program that writes the manual pages if PROGRAM does not run here (default:
#                          a build for this machine)
#   AUTHD_CDX_DIR          the native programs for hosts, files cdx-TARGET (default: target/cdx, from make cdx). None: hosts
#                          get the bash cdx
#   AUTHD_MAINTAINER       "Name <mail address>"; AUTHD_HOMEPAGE  a URL; AUTHD_VENDOR  (default: the maintainer's name).
#                          Without these, the packages have placeholders, and packaging/repo.sh refuses them
#   AUTHD_TEST_CACHE       where the packaging tools are cached
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022
export LC_ALL=C.UTF-8 TZ=UTC
refuse() { printf 'package.sh: %s\n' "$@" >&2; exit 1; }
version=$(packaging/version.sh)
SOURCE_DATE_EPOCH=$(packaging/version.sh date)
export SOURCE_DATE_EPOCH
# shellcheck source=packaging/architecture.sh
. packaging/architecture.sh

# The values in Cargo.toml are the placeholders.
maintainer=${AUTHD_MAINTAINER:-$(sed -n 's/^maintainer = "\(.*\)"$/\1/p' Cargo.toml)}
homepage=${AUTHD_HOMEPAGE:-$(sed -n 's/^homepage = "\(.*\)"$/\1/p' Cargo.toml)}
vendor=${AUTHD_VENDOR:-${maintainer%% <*}}
[[ $maintainer =~ ^[^\"\\\<\>[:cntrl:]]+\ \<[^\"\\\<\>[:space:]]+@[^\"\\\<\>[:space:]]+\>$ ]] \
  || refuse "AUTHD_MAINTAINER is '$maintainer': it must be \"Name <mail address>\", without quotes"
[[ $homepage =~ ^https?://[^\"\\[:space:]]+$ ]] || refuse "AUTHD_HOMEPAGE is '$homepage': it must be an http(s) URL"
[[ $vendor =~ ^[^\"\\[:cntrl:]]+$ ]] || refuse "AUTHD_VENDOR is '$vendor': it must be a name without quotes"

tools=${AUTHD_TEST_CACHE:-$HOME/.cache/codex-authd-tests}/packagers
packaging/cargo-tool.sh "$tools" cargo-deb 3.8.0
packaging/cargo-tool.sh "$tools" cargo-generate-rpm 0.21.1

binary=${1:-$release}
dist=${2:-dist}
[ -x "$binary" ] || refuse "$binary is missing: make package ARCH=$arch builds it"
grep -q "Machine: *$machine\$" <<<"$(readelf -h "$binary")" || refuse "$binary is not a program for $arch"
native=${AUTHD_NATIVE_PROGRAM:-}
if [ "$arch" = "$here" ]; then
  native=${native:-$binary}
else
  for built in target/release/codex-authd target/debug/codex-authd; do
    [ -n "$native" ] || [ ! -x "$built" ] || native=$built
  done
  [ -n "$native" ] || refuse "there is no program for $here to write the manual pages: make build"
fi
# The newest format of the state that this version reads, for the scripts that refuse a downgrade.
format=$(sed -n 's/^pub const CURRENT: u32 = \([0-9]*\);$/\1/p' src/daemon/format.rs)
[ -n "$format" ] || refuse "no CURRENT in src/daemon/format.rs"

made=target/package
rm -rf "$made"
mkdir -p "$made/deb" "$made/rpm" "$dist"

# A line `#include NAME` is replaced by packaging/scripts/NAME.
script() {
  awk -v scripts=packaging/scripts -v format="$format" -v version="$version" '
    /^#include / { file = scripts "/" $2; while ((getline line < file) > 0) print filled(line); close(file); next }
    { print filled($0) }
    function filled(line) { gsub(/@FORMAT@/, format, line); gsub(/@VERSION@/, version, line); return line }
  ' "$1" >"$2"
  chmod 0755 "$2"
}
for name in preinst postinst prerm postrm; do script "debian/$name" "$made/deb/$name"; done
for file in rpm/*.sh; do script "$file" "$made/rpm/$(basename "$file")"; done

packaging/changelog.sh "$version" "$(date -u -R -d "@$SOURCE_DATE_EPOCH")" "$maintainer" <CHANGELOG.md >"$made/changelog"
newest=$(sed -n '1s/.*(\(.*\)).*/\1/p' "$made/changelog")
[ "$newest" = "$version" ] || refuse "CHANGELOG.md begins with $newest, but this packages $version: add the heading \"## $version (YYYY-MM-DD)\""
gzip -9n <"$made/changelog" >"$made/deb/changelog.gz"

# Strip the program; its symbols go into a separate package. A debugger finds them by the build id.
build_id=$(readelf -n "$binary" | sed -n 's/^ *Build ID: //p')
[ -n "$build_id" ] || refuse "$binary has no build id"
symbols=$made/build-id/${build_id:0:2}/${build_id:2}.debug
mkdir -p "$(dirname "$symbols")"
"${cross}objcopy" --only-keep-debug --compress-debug-sections=zlib "$binary" "$symbols"
"${cross}objcopy" --strip-unneeded --remove-section=.comment "$binary" "$made/codex-authd"
chmod 0644 "$symbols"
chmod 0755 "$made/codex-authd"

# The system libraries that the program needs, read from the program. So the result is the same on every machine and for
# every architecture. Each line is a library, with or without one of its versions.
"${cross}objdump" -p "$made/codex-authd" | awk '
  $1 == "NEEDED" { print $2 }
  $1 == "required" { sub(/:$/, "", $3); library = $3; next }
  library && NF == 4 && $1 ~ /^0x/ { print library, $4; next }
  { library = "" }' >"$made/needed"
others=$(awk '{ print $1 }' "$made/needed" | grep -vE '^(lib(c|m|dl|rt|pthread|gcc_s)\.so\.[0-9]+|ld-linux-.*)$' | sort -u | paste -sd ' ' || true)
[ -z "$others" ] || refuse "the program needs $others: add the Debian package of it here"
# libc6 contains all of these, and depends on the package with libgcc.
libc=$(sed -n 's/.* GLIBC_\([0-9][0-9.]*\)$/\1/p' "$made/needed" | sort -V | tail -n 1)
[ -n "$libc" ] || refuse "$binary needs no version of glibc: it must be linked with glibc"

# The native programs for hosts.
mkdir "$made/wrapper"
for program in "${AUTHD_CDX_DIR:-target/cdx}"/cdx-{x86_64,aarch64}-{linux,darwin}; do
  [ ! -f "$program" ] || install -m 0755 "$program" "$made/wrapper/"
done
programs=$(ls "$made/wrapper")
echo "native programs for hosts: ${programs:-none}" | paste -sd ' '

# Generated from the command line.
mkdir -p "$made/man" "$made/completions"
"$native" man "$made/man" >/dev/null
gzip -9n "$made"/man/*
for shell in bash zsh fish; do "$native" completions "$shell" >"$made/completions/$shell"; done

# The notices change only with the lock file, and take a while.
notices=target/notices-$target-$(sha256sum <Cargo.lock | cut -c 1-16).gz
if [ ! -s "$notices" ]; then
  packaging/notices.sh "$target" | gzip -9n >"$notices.part"
  mv "$notices.part" "$notices"
fi
cp "$notices" "$made/third-party-notices.gz"

# Both packagers read a copy of the tree, so that file times can be set: one of them would package the times of the
# checkout. The maintainer of the packages is set here, and not in Cargo.toml.
staged=$made/staged
mkdir -p "$staged/target"
cp -r Cargo.toml LICENSE README.md CHANGELOG.md debian docs migrations openapi packaging systemd wrapper "$staged"
# The packages have all documents in one directory.
sed -i 's|(docs/|(|g; s|\[docs/|[|g' "$staged/README.md"
ln -s "$PWD/$made" "$staged/target/package"
# Files that cargo requires in a package.
ln -s "$PWD"/{Cargo.lock,src,benches,cdx} "$staged"
awk -v maintainer="$maintainer" -v homepage="$homepage" -v libc="$libc" -v programs="$programs" '
  !programs && /"target\/package\/wrapper\// { next } # a pattern must match a file
  /^maintainer = "/ { $0 = "maintainer = \"" maintainer "\"" }
  /^depends = "/ { sub(/@LIBC@/, "libc6 (>= " libc ")") }
  /^homepage = "/ { $0 = "homepage = \"" homepage "\"" }
  { print }' Cargo.toml >"$staged/Cargo.toml"
find "$made" -type f -exec touch --date "@$SOURCE_DATE_EPOCH" {} +
packed=$(realpath "$dist")

rm -f "$dist"/codex-authd*_"$arch".deb "$dist"/codex-authd*."$rpm_arch".rpm
(cd "$staged" && CARGO_TARGET_DIR=target "$tools/bin/cargo-deb" deb --no-build --no-strip --quiet ${cross:+--target "$target"} \
  --deb-version "$version" --output "$packed/codex-authd_${version}_$arch.deb" >/dev/null)
dbgsym=$made/dbgsym
mkdir -p "$dbgsym/DEBIAN" "$dbgsym/usr/share/doc" "$dbgsym/usr/lib/debug"
control=$(<debian/dbgsym.control)
control=${control//@VERSION@/"$version"}
control=${control//@ARCH@/"$arch"}
control=${control//@MAINTAINER@/"$maintainer"}
printf '%s\n' "${control//@BUILD_ID@/"$build_id"}" >"$dbgsym/DEBIAN/control"
ln -s codex-authd "$dbgsym/usr/share/doc/codex-authd-dbgsym"
cp -r "$made/build-id" "$dbgsym/usr/lib/debug/.build-id"
# The symbols are already compressed.
dpkg-deb --root-owner-group -Zgzip -z1 --build "$dbgsym" "$dist/codex-authd-dbgsym_${version}_$arch.deb" >/dev/null

{
  printf 'version = "%s"\nvendor = "%s"\n' "$version" "$vendor"
  echo '[requires]'
  echo 'systemd = ">= 252"'
  awk '{ printf "\"%s(%s)(64bit)\" = \"*\"\n", $1, $2 }' "$made/needed"
} >"$made/rpm/program.toml"
release_number=$(sed -n 's/^release = "\(.*\)"$/\1/p' Cargo.toml)
pack_rpm() {
  local file=$packed/$1-$version-$release_number.$rpm_arch.rpm
  shift
  (cd "$staged" && CARGO_TARGET_DIR=target "$tools/bin/cargo-generate-rpm" generate-rpm --auto-req no --arch "$rpm_arch" "$@" --output "$file")
  packaging/rpm-changelog.py "$file" "$made/changelog" "$maintainer" "$release_number"
}
pack_rpm codex-authd --variant program --metadata-overwrite target/package/rpm/program.toml
head -n 2 "$made/rpm/program.toml" >"$made/rpm/debuginfo.toml"
pack_rpm codex-authd-debuginfo --variant debuginfo --metadata-overwrite target/package/rpm/debuginfo.toml --payload-compress gzip
ls -l "$dist"
