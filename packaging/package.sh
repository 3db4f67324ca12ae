#!/usr/bin/env bash
# dist/*.deb and dist/*.rpm from target/release/codex-authd. The same program makes the same bytes, whatever the umask, the
# time zone and the clock.
#   package.sh [PROGRAM [DIRECTORY]]   another program, another place
#   AUTHD_TEST_CACHE   where the packagers are kept
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022
export LC_ALL=C.UTF-8 TZ=UTC
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH

tools=${AUTHD_TEST_CACHE:-$HOME/.cache/codex-authd-tests}/packagers
install_tool() {
  [ -x "$tools/bin/$1" ] && "$tools/bin/$1" --version | grep -qF "$2" && return
  cargo install --locked --root "$tools" "$1@$2"
}
install_tool cargo-deb 3.8.0
install_tool cargo-generate-rpm 0.21.1

binary=${1:-target/release/codex-authd}
dist=${2:-dist}
[ -x "$binary" ] || { echo "package.sh: $binary is missing: make package builds it" >&2; exit 1; }
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
# The newest format of the state that this version reads, for the scripts that refuse a downgrade.
format=$(sed -n 's/^pub const CURRENT: u32 = \([0-9]*\);$/\1/p' src/daemon/format.rs)
if [ -z "$version" ] || [ -z "$format" ]; then
  echo "package.sh: no version in Cargo.toml, or no CURRENT in src/daemon/format.rs" >&2
  exit 1
fi

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
for name in pre post preun postun; do script "rpm/$name.sh" "$made/rpm/$name.sh"; done

maintainer=$(sed -n 's/^maintainer = "\(.*\)"$/\1/p' Cargo.toml)
packaging/changelog.sh "$version" "$(date -u -R -d "@$SOURCE_DATE_EPOCH")" "$maintainer" <CHANGELOG.md \
  | gzip -9n >"$made/deb/changelog.gz"

# The program stripped, its symbols apart; a debugger finds them by the build id.
build_id=$(readelf -n "$binary" | sed -n 's/^ *Build ID: //p')
symbols=$made/build-id/${build_id:0:2}/${build_id:2}.debug
mkdir -p "$(dirname "$symbols")"
objcopy --only-keep-debug --compress-debug-sections=zlib "$binary" "$symbols"
objcopy --strip-unneeded --remove-section=.comment "$binary" "$made/codex-authd"
chmod 0644 "$symbols"
chmod 0755 "$made/codex-authd"

# What the command line says of itself.
mkdir -p "$made/man" "$made/completions"
"$binary" man "$made/man" >/dev/null
gzip -9n "$made"/man/*
for shell in bash zsh fish; do "$binary" completions "$shell" >"$made/completions/$shell"; done

# They change with the lock file only, and take a while.
notices=target/notices-$(sha256sum <Cargo.lock | cut -c 1-16).gz
if [ ! -s "$notices" ]; then
  packaging/notices.sh | gzip -9n >"$notices.part"
  mv "$notices.part" "$notices"
fi
cp "$notices" "$made/third-party-notices.gz"

rm -f "$dist"/codex-authd[_-]*
"$tools/bin/cargo-deb" deb --no-build --no-strip --quiet --output "$dist/codex-authd_${version}_amd64.deb"
dbgsym=$made/dbgsym
mkdir -p "$dbgsym/DEBIAN" "$dbgsym/usr/share/doc" "$dbgsym/usr/lib/debug"
sed -e "s/@VERSION@/$version/" -e "s/@MAINTAINER@/$maintainer/" -e "s/@BUILD_ID@/$build_id/" debian/dbgsym.control >"$dbgsym/DEBIAN/control"
ln -s codex-authd "$dbgsym/usr/share/doc/codex-authd-dbgsym"
cp -r "$made/build-id" "$dbgsym/usr/lib/debug/.build-id"
# The symbols are compressed already.
dpkg-deb --root-owner-group -Zgzip -z1 --build "$dbgsym" "$dist/codex-authd-dbgsym_${version}_amd64.deb" >/dev/null

# What the program asks of the system's libraries, as rpm writes it: the same on every machine that packs.
{
  echo '[requires]'
  echo 'systemd = ">= 249"'
  objdump -p "$made/codex-authd" | awk '
    $1 == "NEEDED" { printf "\"%s()(64bit)\" = \"*\"\n", $2 }
    $1 == "required" { sub(/:$/, "", $3); library = $3; next }
    library && NF == 4 { printf "\"%s(%s)(64bit)\" = \"*\"\n", library, $4; next }
    { library = "" }'
} >"$made/rpm/requires.toml"
# Its packager takes over when a file was last changed, which is when it was checked out: it packs a copy of one date.
staged=$made/staged
mkdir -p "$staged/target"
cp -r Cargo.toml LICENSE README.md CHANGELOG.md docs migrations openapi packaging systemd wrapper "$staged"
ln -s "$PWD/$made" "$staged/target/package"
find "$made" -type f -exec touch --date "@$SOURCE_DATE_EPOCH" {} +
packed=$(realpath "$dist")
pack_rpm() { (cd "$staged" && "$tools/bin/cargo-generate-rpm" generate-rpm --auto-req no "$@"); }
pack_rpm --variant program --metadata-overwrite target/package/rpm/requires.toml --output "$packed/codex-authd-$version-1.x86_64.rpm"
pack_rpm --variant debuginfo --payload-compress gzip --output "$packed/codex-authd-debuginfo-$version-1.x86_64.rpm"
ls -l "$dist"
