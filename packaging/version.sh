#!/usr/bin/env bash
# Prints the version of the packages. Cargo.toml has the number; git knows whether it is released.
#   version.sh         0.2.0                             the commit of the tag v0.2.0, with a clean tree
#                      0.2.0~git20261130.151500.g0123ab  no tag v0.2.0 yet: sorts before 0.2.0, in dpkg and in rpm
#                      0.2.0+git20261130.151500.g0123ab  a commit after the tag: sorts after 0.2.0 and before 0.2.1
#                      ….dirty                           files differ from the commit
#   version.sh date    time of the packaged tree, in seconds since 1970: of the commit, or of Cargo.toml in a tarball
#   AUTHD_VERSION, SOURCE_DATE_EPOCH   are printed instead, if they are set
# The time and the name come from the commit alone, so every clone gives the same version, even a shallow one.
set -euo pipefail
cd "$(dirname "$0")/.."

refuse() { printf 'version.sh: %s\n' "$@" >&2; exit 1; }

# A tree without .git is a tarball. If .git exists but git fails, refuse: the tree would be taken for a release.
in_git() {
  [ -e .git ] || return 1
  git rev-parse --quiet --verify HEAD >/dev/null || refuse "git cannot read the checked-out commit; see above"
}
commit_of() { git rev-parse --quiet --verify "refs/tags/$1^{commit}" || true; }

date_of_tree() {
  if [ -n "${SOURCE_DATE_EPOCH:-}" ]; then echo "$SOURCE_DATE_EPOCH"
  elif in_git; then git log -1 --format=%ct
  else stat --format=%Y Cargo.toml
  fi
}

version() {
  local number head released others dirty=
  if [ -n "${AUTHD_VERSION:-}" ]; then
    # rpm does not accept a hyphen, and dpkg would treat the text after it as a revision.
    [[ $AUTHD_VERSION =~ ^[0-9][0-9A-Za-z.+~]*$ ]] || refuse "AUTHD_VERSION is '$AUTHD_VERSION': use only digits, letters, '.', '+' and '~'"
    echo "$AUTHD_VERSION"
    return
  fi
  number=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
  [[ $number =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]] || refuse "Cargo.toml's version is '$number': it must be three numbers"
  in_git || { echo "$number"; return; }
  head=$(git rev-parse HEAD)
  released=$(commit_of "v$number")
  others=$(git tag --points-at HEAD --list 'v[0-9]*' | grep -vx "v$number" | paste -sd ' ' || true)
  if [ -n "$others" ]; then
    refuse "this commit has the tag $others, but Cargo.toml has $number." \
      "Set the version in Cargo.toml, commit, and tag that commit (packaging/RELEASING.md)."
  fi
  git diff --quiet HEAD || dirty=.dirty
  if [ "$head" = "$released" ] && [ -z "$dirty" ]; then echo "$number"; return; fi
  printf '%s%sgit%s.g%s%s\n' "$number" "$([ -n "$released" ] && echo + || echo '~')" \
    "$(TZ=UTC git log -1 --format=%cd --date=format-local:%Y%m%d.%H%M%S)" "${head:0:10}" "$dirty"
}

case ${1:-version} in
version) version ;;
date) date_of_tree ;;
*) refuse "unknown argument $1" ;;
esac
