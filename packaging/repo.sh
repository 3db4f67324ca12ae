#!/usr/bin/env bash
# repo/: a signed repository of the packages in dist/, for apt and for dnf, as files for any web server. See RELEASING.md.
#   repo.sh [DIST [OUT]]
#   AUTHD_REPO_KEY     the fingerprint of the key that signs; the secret key is in GNUPGHOME (or ~/.gnupg)
#   AUTHD_REPO_URL     where OUT will be served; it is written into the .sources and the .repo
#   AUTHD_REPO_MORE_KEYS   fingerprints of further keys that machines shall trust, such as the next one
#   AUTHD_REPO_ALLOW_PLACEHOLDERS=1   takes packages that name no maintainer: for tests, not for others
# What OUT has already stays in it: older versions are for going back. A package of a version that is there with other bytes
# is refused. To withdraw a package, remove its file from OUT and run this with an empty DIST.
#
# A reader never sees half of it. New files have new names, and are there before anything names them: the packages, then the
# indexes (named by their digests), then, each by one rename, what is signed and names them. What was named before stays
# readable, so apt and dnf that began with the former state end with it. Killed at any line, this leaves the former state
# or the new one; run it again.
set -euo pipefail
umask 022
export LC_ALL=C.UTF-8 TZ=UTC
refuse() { printf 'repo.sh: %s\n' "$@" >&2; exit 1; }
here=$(realpath "$(dirname "$0")")
dist=$(realpath -e "${1:-$here/../dist}") || refuse "there is no ${1:-dist}: make package"
out=$(realpath -m "${2:-$here/../repo}")

key=${AUTHD_REPO_KEY:-}
[ -n "$key" ] || refuse "AUTHD_REPO_KEY is not set: it names the key that signs, by its fingerprint. To make one:" \
  "  export GNUPGHOME=~/codex-authd-release    # not in this tree; mkdir -m 0700" \
  "  gpg --quick-generate-key 'codex-authd archive <you@your.domain>' rsa4096 sign 2y" \
  "  export AUTHD_REPO_KEY=\$(gpg --list-keys --with-colons | sed -n 's/^fpr:*\\(.*\\):/\\1/p' | head -n 1)" \
  "packaging/RELEASING.md says how it is kept."
[[ $key =~ ^[0-9A-F]{40}$ ]] || refuse "AUTHD_REPO_KEY is '$key': the whole fingerprint is wanted, 40 digits in capitals, without spaces"
gpg --batch --list-secret-keys "$key" >/dev/null 2>&1 \
  || refuse "no secret key $key in ${GNUPGHOME:-$HOME/.gnupg}: set GNUPGHOME to where it is"
url=${AUTHD_REPO_URL:-}
url=${url%/}
[[ $url =~ ^https?://[^[:space:]\&\|\\]+$ ]] || refuse "AUTHD_REPO_URL is '$url': the http(s) URL that $out will be served at is wanted"
placeholder='\.(invalid|example|test)(\.|/|:|>|$)|@localhost>|example\.(com|org|net)'
allow_placeholders=${AUTHD_REPO_ALLOW_PLACEHOLDERS:-}
if [ -z "$allow_placeholders" ] && [[ $url =~ $placeholder ]]; then refuse "AUTHD_REPO_URL is $url, which is a placeholder"; fi
for tool in apt-ftparchive:apt-utils createrepo_c:createrepo-c rpmsign:rpm gpgv:gpgv dpkg-deb:dpkg; do
  command -v "${tool%%:*}" >/dev/null || refuse "${tool%%:*} is missing (Debian: apt install ${tool##*:})"
done

mkdir -p "$out"
exec 9<"$out"
flock --nonblock 9 || refuse "another repo.sh is at work on $out"
# On the same file system, so that what is made there can be renamed. A killed run may have left its own.
rm -rf "$out"/.new-*
work=$(mktemp -d "$out/.new-XXXXXX")
trap 'rm -rf "$work"' EXIT
new=$work/tree
mkdir -p "$new"/pool "$new"/rpm/{x86_64,aarch64}
sign() { gpg --batch --yes --quiet --local-user "$key" --digest-algo SHA512 "$@"; }

# In the new tree: links to what is there already, and then what is new.
for place in pool rpm/x86_64 rpm/aarch64; do
  for file in "$out/$place"/*.{deb,rpm}; do [ ! -e "$file" ] || ln "$file" "$new/$place/"; done
done
# Of an .rpm, what signing does not change.
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
    # It stands in the index, and a file's own time is when it was signed.
    touch --date "@$(rpm -qp --nosignature --qf '%{BUILDTIME}' "$new/$place/$name" 2>/dev/null)" "$new/$place/$name"
    ;;
  esac
  echo "added $place/$name"
}
for file in "$dist"/codex-authd*.deb; do [ ! -e "$file" ] || add "$file" pool; done
for arch in x86_64 aarch64; do
  for file in "$dist"/codex-authd*."$arch.rpm"; do [ ! -e "$file" ] || add "$file" "rpm/$arch"; done
done

# What machines trust, and where they look. The package replaces the key on machines that have it: how a key is rotated.
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

# Its version is the date of what is in it: the last signature on a key, or the commit, whichever is later.
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

# apt. Only the digest that apt prefers, since by-hash files are looked for by that one.
suite=$new/dists/stable
for arch in amd64 arm64; do
  index=$suite/main/binary-$arch
  mkdir -p "$index/by-hash/SHA256"
  (cd "$new" && apt-ftparchive --arch "$arch" packages pool 2>/dev/null) >"$index/Packages"
  gzip -9n --keep "$index/Packages"
  xz -9 --keep "$index/Packages"
  for file in "$index"/Packages*; do ln "$file" "$index/by-hash/SHA256/$(sha256sum <"$file" | cut -d ' ' -f 1)"; done
done
# Now and not the commit's time: apt refuses a Release that is older than the one it knows.
now=${SOURCE_DATE_EPOCH:-$(date +%s)}
option() { printf -- '-o\nAPT::FTPArchive::Release::%s\n' "$1"; }
mapfile -t options < <(for name in Origin=codex-authd Label=codex-authd Suite=stable Codename=stable Components=main \
  "Architectures=amd64 arm64" "Description=codex-authd $url" Acquire-By-Hash=yes MD5=no SHA1=no SHA512=no; do option "$name"; done)
apt-ftparchive "${options[@]}" release "$suite" >"$work/Release"
sed -i "s/^Date: .*/Date: $(date --utc --date "@$now" '+%a, %d %b %Y %H:%M:%S UTC')/" "$work/Release"
mv "$work/Release" "$suite/Release"
sign --armor --detach-sign --output "$suite/Release.gpg" "$suite/Release"
sign --clear-sign --output "$suite/InRelease" "$suite/Release"

# dnf. The names of the indexes carry their digests.
for arch in x86_64 aarch64; do
  createrepo_c --quiet --no-database --revision "$now" --set-timestamp-to-revision "$new/rpm/$arch"
  sign --armor --detach-sign --output "$new/rpm/$arch/repodata/repomd.xml.asc" "$new/rpm/$arch/repodata/repomd.xml"
done

# As a reader will: an expired key is noticed here and not on a thousand machines.
verify() { gpgv --quiet --keyring "$keyring" "$@" 2>"$work/gpgv" || refuse "the signature of $1 is not good:" "$(<"$work/gpgv")"; }
verify "$suite/InRelease"
verify "$suite/Release.gpg" "$suite/Release"
for arch in x86_64 aarch64; do verify "$new/rpm/$arch/repodata/repomd.xml.asc" "$new/rpm/$arch/repodata/repomd.xml"; done

# Into place; the order is what the comment at the top promises.
into_place() {
  local file
  while IFS= read -r file; do
    mkdir -p "$out/$(dirname "$file")"
    # A package that was there is a link to itself.
    [ "$new/$file" -ef "$out/$file" ] || mv -f "$new/$file" "$out/$file"
  done < <(cd "$new" && find . -type f -printf '%P\n' | sort | grep -E "$1" | grep -vE "$2")
}
signed='/(InRelease|Release|Release\.gpg|repomd\.xml|repomd\.xml\.asc)$'
into_place '\.(deb|rpm)$' '^$'
into_place '/by-hash/|/repodata/|^codex-authd|^rpm/[^/]*$' "$signed"
into_place '/Packages[^/]*$' '/by-hash/'
into_place "$signed" '^$'
echo "$out is the repository: serve it at $url"
