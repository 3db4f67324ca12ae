#!/usr/bin/env bash
# Installs a program from crates.io, if this version of it is missing. It is built with little optimisation: the build takes
# longer than all its runs.
#   cargo-tool.sh ROOT NAME VERSION
set -euo pipefail
[ -x "$1/bin/$2" ] && "$1/bin/$2" --version | grep -qF "$3" && exit
export CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16
exec cargo install --locked --quiet --root "$1" "$2@$3"
