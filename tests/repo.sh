#!/usr/bin/env bash
# Checks versions from git, packages of another architecture, and the signed repository: its content, and that dnf accepts
# only signed content. The test of apt is on a booted machine (tests/integration/appliance/repository.rs).
#   repo.sh [DIRECTORY [PROGRAM]]   the packages, if not in dist; the program that writes the manual pages, if not that of
#                                   target/release
set -euo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C.UTF-8
# shellcheck source=tests/skip.sh
. tests/skip.sh
# shellcheck source=tests/checks.sh
. tests/checks.sh
dist=$(realpath "${1:-dist}")
program=$(realpath "${2:-target/release/codex-authd}")
work=$(mktemp -d)
export GNUPGHOME=$work/gnupg
trap 'gpgconf --kill all; rm -rf "$work"' EXIT
mkdir -m 0700 "$GNUPGHOME"

begin "versions from git"
tree=$work/tree
mkdir -p "$tree/packaging"
cp packaging/version.sh "$tree/packaging"
export GIT_CONFIG_GLOBAL=/dev/null GIT_{AUTHOR,COMMITTER}_NAME=test GIT_{AUTHOR,COMMITTER}_EMAIL=test@localhost
in_tree() { git -C "$tree" "$@" >/dev/null; }
# Makes a commit: NUMBER, and an hour of the day.
commit() {
  printf '[package]\nname = "codex-authd"\nversion = "%s"\n' "$1" >"$tree/Cargo.toml"
  in_tree add .
  GIT_COMMITTER_DATE="2026-11-30T$2:00:00+02:00" in_tree commit --quiet --allow-empty -m "$1"
}
versions=() wrong=
# Compares its version with a pattern.
called() {
  versions+=("$("$tree/packaging/version.sh")")
  [[ ${versions[-1]} =~ ^$1$ ]] || wrong+="wanted $1, have ${versions[-1]}"$'\n'
}
in_tree init --quiet --initial-branch main
commit 0.2.0 09
called '0\.2\.0~git20261130\.070000\.g[0-9a-f]{10}'
commit 0.2.0 10
called '0\.2\.0~git20261130\.080000\.g[0-9a-f]{10}'
in_tree tag v0.2.0
called '0\.2\.0'
commit 0.2.0 11
called '0\.2\.0\+git20261130\.090000\.g[0-9a-f]{10}'
git clone --quiet --depth 1 "file://$tree" "$work/shallow"
git -C "$work/shallow" fetch --quiet --depth 1 origin 'refs/tags/*:refs/tags/*'
[ "$("$work/shallow/packaging/version.sh")" = "${versions[-1]}" ] || wrong+="a shallow clone gives another version"$'\n'
echo changed >>"$tree/Cargo.toml"
called '0\.2\.0\+git20261130\.090000\.g[0-9a-f]{10}\.dirty'
commit 0.2.1 12
called '0\.2\.1~git20261130\.100000\.g[0-9a-f]{10}'
in_tree tag v0.3.0
wrong+=$(refused "has the tag v0.3.0, but Cargo.toml has 0.2.1" "$tree/packaging/version.sh")
in_tree tag --delete v0.3.0
wrong+=$(refused "AUTHD_VERSION is '1-2'" env AUTHD_VERSION=1-2 "$tree/packaging/version.sh")
mv "$tree/.git/HEAD" "$tree/.git/away"
wrong+=$(refused "git cannot read" "$tree/packaging/version.sh")
rm -rf "$tree/.git"
called '0\.2\.1'
for ((i = 1; i < ${#versions[@]}; i++)); do
  dpkg --compare-versions "${versions[i - 1]}" lt "${versions[i]}" || wrong+="dpkg: ${versions[i - 1]} is not before ${versions[i]}"$'\n'
  [ "$(rpm --eval "%{lua: print(rpm.vercmp('${versions[i - 1]}', '${versions[i]}'))}")" = -1 ] \
    || wrong+="rpm: ${versions[i - 1]} is not before ${versions[i]}"$'\n'
done
quiet "$wrong"

begin "packages for another architecture"
here=$(dpkg --print-architecture)
case $here in amd64) other=arm64 gnu=aarch64 ;; *) other=amd64 gnu=x86_64 ;; esac
if ! command -v "$gnu-linux-gnu-gcc" >/dev/null; then
  skipped "$gnu-linux-gnu-gcc is not installed; it builds a program for $other"
else
  # It replaces the real program, which takes a quarter of an hour to build. The test checks content and names.
  echo 'int main(void) { return 0; }' | "$gnu-linux-gnu-gcc" -g -Wl,--build-id -x c -o "$work/foreign" -
  AUTHD_NATIVE_PROGRAM=$program ARCH=$other packaging/package.sh "$work/foreign" "$work/foreign-dist" >"$work/said" 2>&1 \
    || { bad "$(<"$work/said")"; exit 1; }
  wrong=
  deb=$(echo "$work"/foreign-dist/codex-authd_*_"$other".deb)
  rpm=$(echo "$work"/foreign-dist/codex-authd-[0-9]*."$gnu".rpm)
  symbols=$(echo "$work"/foreign-dist/codex-authd-dbgsym_*_"$other".deb)
  [ "$(dpkg-deb -f "$deb" Architecture)" = "$other" ] && [ "$(dpkg-deb -f "$symbols" Architecture)" = "$other" ] || wrong+="not for $other"
  grep -qE '(^|, )libc6 \(>= 2\.[0-9]+\)(,|$)' <<<"$(dpkg-deb -f "$deb" Depends)" || wrong+="no libc: $(dpkg-deb -f "$deb" Depends)"
  [ "$(rpm -qp --qf '%{ARCH}' "$rpm" 2>/dev/null)" = "$gnu" ] || wrong+="the .rpm is not for $gnu"
  grep -qF 'libc.so.6(GLIBC_2.' <<<"$(rpm -qp --requires "$rpm" 2>/dev/null)" || wrong+="the .rpm needs no libc"
  dpkg-deb -x "$deb" "$work/foreign-tree"
  grep -qi "Machine: *${gnu/x86_64/Advanced Micro}" <<<"$(readelf -h "$work/foreign-tree/usr/bin/codex-authd")" || wrong+="the program in it is not for $other"
  [ -s "$work/foreign-tree/usr/share/man/man1/codex-authd.1.gz" ] || wrong+="no manual page"
  wrong+=$(refused "is not a program for $other" env ARCH="$other" packaging/package.sh "$program" "$work/never")
  quiet "$wrong"
fi

begin "no repository without a key, without a URL, or of packages without a maintainer"
make_repo() { packaging/repo.sh "$dist" "$work/repo"; }
wrong=$(refused "gpg --quick-generate-key" env -u AUTHD_REPO_KEY packaging/repo.sh "$dist" "$work/repo")
gpg --batch --quiet --pinentry-mode loopback --passphrase '' --quick-generate-key "archive of a test <archive@codex-authd.test>" rsa2048 sign 1d 2>/dev/null
AUTHD_REPO_KEY=$(gpg --batch --list-keys --with-colons 2>/dev/null | sed -n 's/^fpr:*\(.*\):/\1/p' | head -n 1)
export AUTHD_REPO_KEY
wrong+=$(refused "AUTHD_REPO_URL is ''" make_repo)
wrong+=$(AUTHD_REPO_URL=https://codex-authd.invalid/ refused "which is a placeholder" make_repo)
wrong+=$(AUTHD_REPO_KEY=${AUTHD_REPO_KEY//[0-9]/A} AUTHD_REPO_URL=https://127.0.0.1 refused "no secret key" make_repo)
# No server listens there: dnf reads the files.
export AUTHD_REPO_URL=http://127.0.0.1:1
if dpkg-deb -f "$(echo "$dist"/codex-authd_*_"$here".deb)" Maintainer | grep -q '\.invalid>'; then
  wrong+=$(refused "names a maintainer or a homepage that is a placeholder" make_repo)
fi
[ ! -e "$work/repo/dists" ] || wrong+="something was published"
export AUTHD_REPO_ALLOW_PLACEHOLDERS=1
quiet "$wrong"

begin "a repository: the signatures cover every file"
# Follows the signature like a client: every file that the index names exists and has that digest.
verify() {
  local arch index
  local stable=$work/repo/dists/stable keys=$work/repo/codex-authd-archive-keyring.gpg
  gpgv --quiet --keyring "$keys" "$stable/InRelease" 2>/dev/null || echo "InRelease is not signed"
  gpgv --quiet --keyring "$keys" "$stable/Release.gpg" "$stable/Release" 2>/dev/null || echo "Release is not signed"
  sed -n '/^SHA256:/,/^-/s/^ \([0-9a-f]*\) *[0-9]* \(.*\)/\1  \2/p' "$stable/InRelease" >"$work/sums"
  (cd "$stable" && sha256sum --check --quiet "$work/sums" 2>&1) || true
  for arch in amd64 arm64; do
    index=$stable/main/binary-$arch
    for file in "$index"/Packages{,.gz,.xz}; do
      cmp "$file" "$index/by-hash/SHA256/$(sha256sum <"$file" | cut -d ' ' -f 1)" 2>&1 || true
    done
    (cd "$work/repo" && sed -n 's/^Filename: //p' "$index/Packages" | while read -r file; do
      grep -qx "SHA256: $(sha256sum <"$file" | cut -d ' ' -f 1)" "$index/Packages" || echo "$file is not what the index says"
    done)
  done
  [ -z "$(find "$work/repo" -name '.new-*')" ] || echo "a temporary file is left"
}
offered() { sed -n "s/^Version: //p" "$work/repo/dists/stable/main/binary-$here/Packages" | sort; }
wrong=$(make_repo 2>&1 >/dev/null || echo failed)
wrong+=$(verify)
version=$(dpkg-deb -f "$(echo "$dist"/codex-authd_*_"$here".deb)" Version)
[ "$(offered | grep -cFx "$version")" = 2 ] || wrong+="the program and its symbols are not offered: $(offered)"
rpm --dbpath "$work/rpmdb" --import "$work/repo/rpm/RPM-GPG-KEY-codex-authd" 2>/dev/null || wrong+="rpm does not accept the key"
for file in "$work"/repo/rpm/*/*.rpm; do
  grep -q 'digests signatures OK' <<<"$(rpmkeys --dbpath "$work/rpmdb" --checksig "$file" 2>/dev/null)" || wrong+="$file is not signed"
done
quiet "$wrong"

begin "lintian of the keyring; it contains the key and the sources, and no other apt file"
keyring=$(echo "$work"/repo/pool/codex-authd-archive-keyring_*_all.deb)
wrong=$(lintian --allow-root --fail-on none --display-level '>=info' "$keyring" 2>&1 || true)
dpkg-deb -x "$keyring" "$work/keyring"
cmp "$work/keyring/usr/share/keyrings/codex-authd-archive-keyring.gpg" "$work/repo/codex-authd-archive-keyring.gpg" >/dev/null \
  || wrong+="another key than the repository offers"
grep -q "Signed-By: /usr/share/keyrings/codex-authd-archive-keyring.gpg" "$work/repo/codex-authd.sources" || wrong+="the sources name another key"
[ ! -e "$work/keyring/etc" ] || wrong+="it installs into /etc"
grep -rlE 'PRIVATE KEY' "$work/repo" && wrong+="a secret key is published"
quiet "$wrong"

begin "made again: the same; with another version: both are offered; with a version of other bytes: refused"
before=$(cd "$work/repo" && find . -name 'Packages*' -o -path '*/by-hash/*' -type f -o -name '*.rpm' -o -name '*.deb' | sort | xargs sha256sum)
wrong=$(make_repo 2>&1 >/dev/null || echo failed)
again=$(cd "$work/repo" && find . -name 'Packages*' -o -path '*/by-hash/*' -type f -o -name '*.rpm' -o -name '*.deb' | sort | xargs sha256sum)
[ "$before" = "$again" ] || wrong+=$(diff <(echo "$before") <(echo "$again") || true)
# Makes an empty package: VERSION and a line of its description.
empty_deb() {
  rm -rf "$work/empty" "$work/next"
  mkdir -p "$work/empty/DEBIAN" "$work/next"
  printf 'Package: codex-authd\nVersion: %s\nArchitecture: %s\nMaintainer: a test <test@codex-authd.test>\nDescription: %s\n' "$1" "$here" "$2" >"$work/empty/DEBIAN/control"
  dpkg-deb --root-owner-group --build "$work/empty" "$work/next/codex-authd_$1_$here.deb" >/dev/null
}
empty_deb 99.0.0 first
wrong+=$(packaging/repo.sh "$work/next" "$work/repo" 2>&1 >/dev/null || echo failed)
wrong+=$(verify)
[ "$(offered | grep -cFx -e "$version" -e 99.0.0)" = 3 ] || wrong+="not all are offered: $(offered)"
[ -z "$(comm -23 <(grep by-hash <<<"$before" | sort) <(cd "$work/repo" && find . -path '*/by-hash/*' -type f -print0 | xargs -0 sha256sum | sort))" ] \
  || wrong+="a client that began before cannot finish: a by-hash file is gone"
empty_deb 99.0.0 second
wrong+=$(refused "is published with other contents already" packaging/repo.sh "$work/next" "$work/repo")
wrong+=$(verify)
quiet "$wrong"

begin "a file appears before the index that names it"
# The order in which files appear, from the system calls.
strace --quiet=all --follow-forks --trace=rename,renameat,renameat2 --output "$work/calls" packaging/repo.sh "$dist" "$work/order" >/dev/null
order=$(sed -n "s|.*\"$work/order/\([^\"]*\)\"[^\"]*= 0\$|\1|p" "$work/calls" | grep -v '^\.new-' | awk '
  /\.(deb|rpm)$/ { print 1; next }
  /\/by-hash\// || /\/repodata\/[0-9a-f]+-/ { print 2; next }
  /(Release|InRelease|Release\.gpg|repomd\.xml|repomd\.xml\.asc)$/ { print 4; next }
  /^dists\// { print 3; next }')
[ "$(wc -l <<<"$order")" -gt 20 ] && wrong= || wrong="only $(wc -l <<<"$order") files appeared"
[ "$order" = "$(sort <<<"$order")" ] || wrong+="the order was $(uniq -c <<<"$order" | paste -sd ' ')"
quiet "$wrong"

begin "dnf accepts signed content"
# A package that replaces the distribution: it provides everything that the packages need.
arch=$(rpm --eval '%_arch')
rpm=$(echo "$dist"/codex-authd-[0-9]*."$arch".rpm)
{
  printf 'Name: distribution\nVersion: 1\nRelease: 1\nSummary: replaces a distribution\nLicense: none\nBuildArch: noarch\n'
  rpm -qp --requires "$rpm" 2>/dev/null | grep -vE '^(rpmlib|config)\(' | sed 's/ [>=]* .*//' | sort -u | sed 's/^systemd$/systemd = 999/; s/^/Provides: /'
  printf '%%description\nIt does.\n%%files\n'
} >"$work/distribution.spec"
mkdir "$work/distribution"
rpmbuild --quiet -bb --define "_topdir $work/rpmbuild" --define "_rpmdir $work/distribution" "$work/distribution.spec" 2>/dev/null
createrepo_c --quiet "$work/distribution"
sed "s|$AUTHD_REPO_URL|file://$work/repo|; s|\$basearch|$arch|" "$work/repo/rpm/codex-authd.repo" >"$work/codex-authd.repo"
printf '[distribution]\nname=distribution\nbaseurl=file://%s\ngpgcheck=0\n' "$work/distribution" >"$work/distribution.repo"
# Runs dnf on a machine without any key or cache.
in_dnf() {
  rm -rf "$work/machine"
  mkdir -p "$work/machine/log"
  dnf --quiet --assumeyes --installroot "$work/machine" --releasever 1 --setopt=reposdir="$work" --setopt=cachedir="$work/machine/cache" \
    --setopt=logdir="$work/machine/log" --setopt=install_weak_deps=0 --setopt=tsflags=noscripts --setopt=skip_if_unavailable=0 \
    "$@" 2>&1
}
said=$(in_dnf install codex-authd) && wrong= || wrong=$said
[ -x "$work/machine/usr/bin/codex-authd" ] || wrong+="the program is not there: $said"
[ "$(grep -c '^gpgcheck=1$\|^repo_gpgcheck=1$' "$work/codex-authd.repo")" = 2 ] || wrong+="the .repo checks no signatures"
grep -q "^- " <<<"$(rpm --root "$work/machine" -q --changelog codex-authd 2>/dev/null)" || wrong+="no changelog"
quiet "$wrong"

begin "dnf refuses a changed index, an unsigned index, a changed package, and an unsigned package"
copy=$work/copy
of_copy() {
  rm -rf "$copy"
  cp -r "$work/repo/rpm/$arch" "$copy"
  sed "s|baseurl=.*|baseurl=file://$copy|" -i "$work/codex-authd.repo"
}
sign_index() { gpg --batch --yes --quiet --armor --local-user "$AUTHD_REPO_KEY" --detach-sign --output "$copy/repodata/repomd.xml.asc" "$copy/repodata/repomd.xml"; }
of_copy
sed -i 's|<revision>|<revision>9|' "$copy/repodata/repomd.xml"
wrong=$(refused "Failed to download metadata for repo 'codex-authd'" in_dnf install codex-authd)
of_copy
rm "$copy/repodata/repomd.xml.asc"
wrong+=$(refused "Failed to download metadata for repo 'codex-authd'" in_dnf install codex-authd)
of_copy
printf x >>"$(echo "$copy"/codex-authd-[0-9]*.rpm)"
wrong+=$(refused "checksum" in_dnf install codex-authd)
of_copy
cp "$rpm" "$copy/"
createrepo_c --quiet "$copy"
sign_index
wrong+=$(refused "is not signed" in_dnf install codex-authd)
of_copy
createrepo_c --quiet "$copy"
sign_index
# Signed again, it is accepted: so the refusals had no other reason.
said=$(in_dnf install codex-authd) || wrong+=$said
quiet "$wrong"
exit "$failed"
