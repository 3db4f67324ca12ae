#!/usr/bin/env bash
# Builds target/release/codex-authd. The bytes are the same wherever it is built: they contain no path of the machine.
#   ARCH   amd64 or arm64: for another architecture than this machine's, target/TARGET/release/codex-authd is cross-built
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=packaging/architecture.sh
. packaging/architecture.sh
pwd=$(pwd -P)
cargo_home=$(realpath "${CARGO_HOME:-$HOME/.cargo}")
sysroot=$(rustc --print sysroot)
# The last match wins, so inner directories come after outer ones.
export RUSTFLAGS="--remap-path-prefix=$cargo_home=/cargo --remap-path-prefix=$sysroot=/rust --remap-path-prefix=$pwd=/codex-authd"
# For the C and assembler files of the cryptography.
export CFLAGS="-ffile-prefix-map=$cargo_home=/cargo -ffile-prefix-map=$pwd=/codex-authd"
export CXXFLAGS=$CFLAGS ASMFLAGS=$CFLAGS
export LC_ALL=C.UTF-8 TZ=UTC
SOURCE_DATE_EPOCH=$(packaging/version.sh date)
export SOURCE_DATE_EPOCH
[ -n "$cross" ] || exec cargo build --release --locked

if ! command -v "${cross}gcc" >/dev/null || [ ! -d "$(rustc --print target-libdir --target "$target")" ]; then
  echo "build.sh: to build for $arch, install ${cross}gcc (Debian: gcc-${cross%-} libc6-dev-$arch-cross) and Rust's library" \
    "for it (rustup target add $target)" >&2
  exit 1
fi
linker=CARGO_TARGET_${target^^}_LINKER
export "${linker//-/_}=${cross}gcc"
exec cargo build --release --locked --target "$target"
