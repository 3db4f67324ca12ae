#!/usr/bin/env bash
# Makes repo/: a signed repository of the packages in dist/, for apt and for dnf, as files for any web server. See
# RELEASING.md.
#   repo.sh [DIST [OUT]]
#   AUTHD_REPO_KEY     the fingerprint of the signing key; the secret key is in GNUPGHOME (or ~/.gnupg)
#   AUTHD_REPO_URL     the URL at which OUT will be served; it is written into the .sources and the .repo
#   AUTHD_REPO_MORE_KEYS   fingerprints of further keys that machines must trust, such as the next key
#   AUTHD_REPO_ALLOW_PLACEHOLDERS=1   accepts packages without a real maintainer: for tests only
# Files in OUT stay, so that users can go back to older versions. A package whose version is in OUT with other bytes is
# refused. To withdraw a package, remove its file from OUT and run this with an empty DIST.
#
# Readers never see a partial state. New files get new names, and exist before another file names them: first the
# packages, then the indexes (named by their digests), then the signed files, each by one rename. Files of the previous
# state stay readable, so that running apt and dnf can finish. If this is killed at any line, OUT has the old state or
# the new one; run it again.
set -euo pipefail
umask 022
export LC_ALL=C.UTF-8 TZ=UTC
refuse() { printf 'repo.sh: %s\n' "$@" >&2; exit 1; }
here=$(realpath "$(dirname "$0")")
dist=$(realpath -e "${1:-$here/../dist}") || refuse "there is no ${1:-dist}: make package"
out=$(realpath -m "${2:-$here/../repo}")

key=${AUTHD_REPO_KEY:-}
[ -n "$key" ] || refuse "AUTHD_REPO_KEY is not set: set it to the fingerprint of the signing key. To make a key:" \
  "  export GNUPGHOME=~/codex-authd-release    # not in this tree; mkdir -m 0700" \
  "  gpg --quick-generate-key 'codex-authd archive <you@your.domain>' rsa4096 sign 2y" \
  "  export AUTHD_REPO_KEY=\$(gpg --list-keys --with-colons | sed -n 's/^fpr:*\\(.*\\):/\\1/p' | head -n 1)" \
  "packaging/RELEASING.md explains how to keep it."
[[ $key =~ ^[0-9A-F]{40}$ ]] || refuse "AUTHD_REPO_KEY is '$key': it must be the complete fingerprint: 40 digits in capitals, without spaces"
gpg --batch --list-secret-keys "$key" >/dev/null 2>&1 \
  || refuse "no secret key $key in ${GNUPGHOME:-$HOME/.gnupg}: set GNUPGHOME to its directory"
url=${AUTHD_REPO_URL:-}
url=${url%/}
[[ $url =~ ^https?://[^[:space:]\&\|\\]+$ ]] || refuse "AUTHD_REPO_URL is '$url': it must be the http(s) URL at which $out will be served"
placeholder='\.(invalid|example|test)(\.|/|:|>|$)|@localhost>|example\.(com|org|net)'
allow_placeholders=${AUTHD_REPO_ALLOW_PLACEHOLDERS:-}
if [ -z "$allow_placeholders" ] && [[ $url =~ $placeholder ]]; then refuse "AUTHD_REPO_URL is $url, which is a placeholder"; fi
for tool in apt-ftparchive:apt-utils createrepo_c:createrepo-c rpmsign:rpm gpgv:gpgv dpkg-deb:dpkg; do
  command -v "${tool%%:*}" >/dev/null || refuse "${tool%%:*} is missing (Debian: apt install ${tool##*:})"
done

mkdir -p "$out"
exec 9<"$out"
flock --nonblock 9 || refuse "another repo.sh is running on $out"
# On the same file system, so that its files can be renamed into place. A killed run may have left its directory.
rm -rf "$out"/.new-*
work=$(mktemp -d "$out/.new-XXXXXX")
trap 'rm -rf "$work"' EXIT
new=$work/tree
mkdir -p "$new"/pool "$new"/rpm/{x86_64,aarch64}
sign() { gpg --batch --yes --quiet --local-user "$key" --digest-algo SHA512 "$@"; }

# The new tree: first links to the existing files, then the new files.
for place in pool rpm/x86_64 rpm/aarch64; do
  for file in "$out/$place"/*.{deb,rpm}; do [ ! -e "$file" ] || ln "$file" "$new/$place/"; done
done
# For an .rpm: the digests that signing does not change.
contents() { case $1 in *.rpm) rpm -qp --nosignature --qf '%{SHA256HEADER} %{PAYLOADDIGEST}' "$1" 2>/dev/null ;; *) sha256sum <"$1" ;; esac; }
names() {
  case $1 in
  *.rpm) rpm -qp --nosignature --qf '%{PACKAGER} %{VENDOR} %{URL}' "$1" 2>/dev/null ;;
  *) dpkg-deb --field "$1" Maintainer Homepage ;;
  esac
}
add() {
  local file=$1 place=$2 name
  name=$(basename "$file")
  if [ -z "$allow_placeholders" ] && grep -qE "$placeholder" <<<"$(names "$file")"; then
    refuse "$name names a maintainer or a homepage that is a placeholder:" "$(names "$file")" \
      "Set AUTHD_MAINTAINER and AUTHD_HOMEPAGE, and make package again."
  fi
  if [ -e "$new/$place/$name" ]; then
    [ "$(contents "$new/$place/$name")" = "$(contents "$file")" ] || refuse "$place/$name is published with other contents already." \
      "A version is published once: commit what has changed, and make package again."
    return
  fi
  cp "$file" "$new/$place/$name"
  case $name in
  *.rpm)
    rpmsign --define "__gpg $(command -v gpg)" --define "_gpg_name $key" --define '_gpg_digest_algo sha256' \
      --addsign "$new/$place/$name" >/dev/null 2>"$work/rpmsign" \
      || refuse "rpmsign: $(<"$work/rpmsign")"
    # createrepo_c puts the file time into the index. It is set to the build time, because signing changes it.
    touch --date "@$(rpm -qp --nosignature --qf '%{BUILDTIME}' "$new/$place/$name" 2>/dev/null)" "$new/$place/$name"
    ;;
  esac
  echo "added $place/$name"
}
for file in "$dist"/codex-authd*.deb; do [ ! -e "$file" ] || add "$file" pool; done
for arch in x86_64 aarch64; do
  for file in "$dist"/codex-authd*."$arch.rpm"; do [ ! -e "$file" ] || add "$file" "rpm/$arch"; done
done

# The trusted keys, and the address. On machines that have the keyring package, it replaces the keys: this is how a key
# is rotated.
keyring=$new/codex-authd-archive-keyring.gpg
# shellcheck disable=SC2086 # a list
gpg --batch --export --export-options export-minimal "$key" ${AUTHD_REPO_MORE_KEYS:-} >"$keyring"
# shellcheck disable=SC2086 # a list
gpg --batch --armor --export --export-options export-minimal "$key" ${AUTHD_REPO_MORE_KEYS:-} >"$new/rpm/RPM-GPG-KEY-codex-authd"
for wanted in $key ${AUTHD_REPO_MORE_KEYS:-}; do
  grep -q "^fpr:*$wanted:" <<<"$(gpg --batch --show-keys --with-colons "$keyring")" || refuse "AUTHD_REPO_MORE_KEYS: there is no key $wanted"
done
fill() { sed "s|@URL@|$url|" "$here/repo/$1"; }
fill codex-authd.sources >"$new/codex-authd.sources"
fill codex-authd.repo >"$new/rpm/codex-authd.repo"

# The version of the keyring package is the date of its content: the last signature on a key, or the commit, whichever
# is later.
changed=$({ gpg --batch --list-packets "$keyring" | sed -n 's/.*[ ,]created \([0-9]*\),.*/\1/p'; "$here/version.sh" date; } | sort -n | tail -n 1)
version=$(date --utc --date "@$changed" +%Y.%m.%d.%H%M%S)
maintainer=${AUTHD_MAINTAINER:-$(gpg --batch --list-keys --with-colons "$key" | sed -n 's/^uid:\([^:]*:\)\{8\}\([^:]*\):.*/\2/p' | head -n 1)}
tree=$work/keyring
doc=$tree/usr/share/doc/codex-authd-archive-keyring
mkdir -p "$tree/DEBIAN" "$tree/usr/share/keyrings" "$doc/examples"
cp "$keyring" "$tree/usr/share/keyrings/"
cp "$new/codex-authd.sources" "$doc/examples/"
cp "$here/../debian/copyright" "$doc/copyright"
printf 'codex-authd-archive-keyring (%s) unstable; urgency=medium\n\n  * The keys: %s\n\n -- %s  %s\n' "$version" \
  "$(gpg --batch --show-keys --with-colons "$keyring" | sed -n 's/^fpr:*\(.*\):/\1/p' | paste -sd ' ')" "$maintainer" \
  "$(date --utc --rfc-email --date "@$changed")" | gzip -9n >"$doc/changelog.gz"
control=$(<"$here/repo/keyring.control")
control=${control//@VERSION@/"$version"}
control=${control//@URL@/"$url"}
printf '%s\n' "${control//@MAINTAINER@/"$maintainer"}" >"$tree/DEBIAN/control"
(cd "$tree" && find usr -type f -exec md5sum {} + | sort -k 2 >DEBIAN/md5sums)
mkdir "$work/made"
SOURCE_DATE_EPOCH=$changed dpkg-deb --root-owner-group --build "$tree" "$work/made/codex-authd-archive-keyring_${version}_all.deb" >/dev/null
add "$work/made/codex-authd-archive-keyring_${version}_all.deb" pool

# For apt. Only the digest that apt prefers: it looks up by-hash files by that digest.
suite=$new/dists/stable
for arch in amd64 arm64; do
  index=$suite/main/binary-$arch
  mkdir -p "$index/by-hash/SHA256"
  (cd "$new" && apt-ftparchive --arch "$arch" packages pool 2>/dev/null) >"$index/Packages"
  gzip -9n --keep "$index/Packages"
  xz -9 --keep "$index/Packages"
  for file in "$index"/Packages*; do ln "$file" "$index/by-hash/SHA256/$(sha256sum <"$file" | cut -d ' ' -f 1)"; done
done
# The present time, not the commit's: apt refuses a Release that is older than the known one.
now=${SOURCE_DATE_EPOCH:-$(date +%s)}
option() { printf -- '-o\nAPT::FTPArchive::Release::%s\n' "$1"; }
mapfile -t options < <(for name in Origin=codex-authd Label=codex-authd Suite=stable Codename=stable Components=main \
  "Architectures=amd64 arm64" "Description=codex-authd $url" Acquire-By-Hash=yes MD5=no SHA1=no SHA512=no; do option "$name"; done)
apt-ftparchive "${options[@]}" release "$suite" >"$work/Release"
sed -i "s/^Date: .*/Date: $(date --utc --date "@$now" '+%a, %d %b %Y %H:%M:%S UTC')/" "$work/Release"
mv "$work/Release" "$suite/Release"
sign --armor --detach-sign --output "$suite/Release.gpg" "$suite/Release"
sign --clear-sign --output "$suite/InRelease" "$suite/Release"

# For dnf. The names of the indexes contain their digests.
for arch in x86_64 aarch64; do
  createrepo_c --quiet --no-database --revision "$now" --set-timestamp-to-revision "$new/rpm/$arch"
  sign --armor --detach-sign --output "$new/rpm/$arch/repodata/repomd.xml.asc" "$new/rpm/$arch/repodata/repomd.xml"
done

# Verify like a reader, so that an expired key is noticed here and not on a thousand machines.
verify() { gpgv --quiet --keyring "$keyring" "$@" 2>"$work/gpgv" || refuse "the signature of $1 is not valid:" "$(<"$work/gpgv")"; }
verify "$suite/InRelease"
verify "$suite/Release.gpg" "$suite/Release"
for arch in x86_64 aarch64; do verify "$new/rpm/$arch/repodata/repomd.xml.asc" "$new/rpm/$arch/repodata/repomd.xml"; done

# Move into place, in the order that the comment at the top describes.
into_place() {
  local file
  while IFS= read -r file; do
    mkdir -p "$out/$(dirname "$file")"
    # An existing package is a link to the same file.
    [ "$new/$file" -ef "$out/$file" ] || mv -f "$new/$file" "$out/$file"
  done < <(cd "$new" && find . -type f -printf '%P\n' | sort | grep -E "$1" | grep -vE "$2")
}
signed='/(InRelease|Release|Release\.gpg|repomd\.xml|repomd\.xml\.asc)$'
into_place '\.(deb|rpm)$' '^$'
into_place '/by-hash/|/repodata/|^codex-authd|^rpm/[^/]*$' "$signed"
into_place '/Packages[^/]*$' '/by-hash/'
into_place "$signed" '^$'
echo "the repository is ready: serve $out at $url"
