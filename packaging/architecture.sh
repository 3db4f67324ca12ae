# shellcheck shell=bash disable=SC2034
# Sourced. Names of ARCH for other tools. ARCH is amd64 or arm64, Debian's names (default: this machine's).
here=$(dpkg --print-architecture)
arch=${ARCH:-$here}
case $arch in
amd64) rpm_arch=x86_64 machine='Advanced Micro Devices X86-64' ;;
arm64) rpm_arch=aarch64 machine=AArch64 ;;
*)
  echo "ARCH is '$arch': use amd64 or arm64 (packaging/architecture.sh)" >&2
  exit 1
  ;;
esac
# Rust's name for the target, and the prefix of the cross tools.
target=$rpm_arch-unknown-linux-gnu
cross=
release=target/release/codex-authd
if [ "$arch" != "$here" ]; then
  cross=$rpm_arch-linux-gnu-
  release=target/$target/release/codex-authd
fi
