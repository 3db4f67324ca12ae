#!/usr/bin/env bash
# target/release/codex-authd, the same bytes wherever it is built: no path of the machine is in it.
set -euo pipefail
cd "$(dirname "$0")/.."
here=$(pwd -P)
cargo_home=$(realpath "${CARGO_HOME:-$HOME/.cargo}")
sysroot=$(rustc --print sysroot)
# The last that fits wins: what is inside comes after what it is inside of.
export RUSTFLAGS="--remap-path-prefix=$cargo_home=/cargo --remap-path-prefix=$sysroot=/rust --remap-path-prefix=$here=/codex-authd"
# The C and assembler files of the cryptography.
export CFLAGS="-ffile-prefix-map=$cargo_home=/cargo -ffile-prefix-map=$here=/codex-authd"
export CXXFLAGS=$CFLAGS ASMFLAGS=$CFLAGS
export LC_ALL=C.UTF-8 TZ=UTC
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
exec cargo build --release --locked
