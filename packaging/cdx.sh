#!/usr/bin/env bash
# Builds the native cdx: target/cdx/cdx-MACHINE, a static program without any path of this machine in it.
#   TARGET   the triple of another machine (default: this one's). On a Mac: aarch64-apple-darwin or x86_64-apple-darwin,
#            which need nothing but Rust and Xcode's tools. For Linux on another architecture: its C compiler, and Rust's
#            library for it (rustup target add TRIPLE).
set -euo pipefail
cd "$(dirname "$0")/.."
target=${TARGET:-$(rustc -vV | sed -n 's/^host: //p')}
case $target in
  x86_64-*-linux-*) machine=x86_64-linux ;;
  aarch64-*-linux-*) machine=aarch64-linux ;;
  x86_64-apple-darwin) machine=x86_64-darwin ;;
  aarch64-apple-darwin) machine=aarch64-darwin ;;
  *) echo "cdx.sh: codex-authd serves no cdx for $target" >&2; exit 1 ;;
esac
pwd=$(pwd -P)
cargo_home=$(cd "${CARGO_HOME:-$HOME/.cargo}" && pwd -P)
sysroot=$(rustc --print sysroot)
flags="-C force-unwind-tables=no --remap-path-prefix=$cargo_home=/cargo --remap-path-prefix=$sysroot=/rust --remap-path-prefix=$pwd=/codex-authd"
link=()
case $target in
  *-linux-*)
    flags="$flags -C target-feature=+crt-static"
    # Unpacked relocations and tables for unwinding would be half a megabyte.
    for argument in "-z,pack-relative-relocs" "--no-eh-frame-hdr" "-T,$pwd/packaging/cdx.ld"; do link+=(-C "link-arg=-Wl,$argument"); done
    ;;
esac
export RUSTFLAGS=$flags
export CFLAGS="-Os -fno-asynchronous-unwind-tables -fno-unwind-tables -ffile-prefix-map=$cargo_home=/cargo -ffile-prefix-map=$pwd=/codex-authd"
export CXXFLAGS=$CFLAGS ASMFLAGS=$CFLAGS
# The jitter entropy would take 60 ms at each start; the system's random numbers are as good.
export AWS_LC_SYS_NO_JITTER_ENTROPY=1
export LC_ALL=C.UTF-8 TZ=UTC
cargo rustc --locked --package cdx --bin cdx --profile cdx --target "$target" -- "${link[@]}"
directory=${CARGO_TARGET_DIR:-target}
mkdir -p target/cdx
cp "$directory/$target/cdx/cdx" "target/cdx/cdx-$machine.new"
mv "target/cdx/cdx-$machine.new" "target/cdx/cdx-$machine"
ls -l "target/cdx/cdx-$machine"
