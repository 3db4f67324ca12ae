# shellcheck shell=bash disable=SC2034
# Sourced: what ARCH (amd64 or arm64, as Debian calls them; default: this machine's) is called elsewhere.
here=$(dpkg --print-architecture)
arch=${ARCH:-$here}
case $arch in
amd64) rpm_arch=x86_64 machine='Advanced Micro Devices X86-64' ;;
arm64) rpm_arch=aarch64 machine=AArch64 ;;
*)
  echo "ARCH is '$arch': amd64 and arm64 are known (packaging/architecture.sh)" >&2
  exit 1
  ;;
esac
# Rust's name, and the beginning of the names of the tools for it.
target=$rpm_arch-unknown-linux-gnu
cross=
release=target/release/codex-authd
if [ "$arch" != "$here" ]; then
  cross=$rpm_arch-linux-gnu-
  release=target/$target/release/codex-authd
fi
