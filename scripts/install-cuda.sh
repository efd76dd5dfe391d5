#!/usr/bin/env bash
# install-cuda.sh - installs the parts of CUDA 13 that building needs (nvcc and the runtime's headers and static library)
# from NVIDIA's repository for Ubuntu 22.04 or Debian 12. Needs root. Does nothing where nvcc is already.
set -euo pipefail
version=13-0
command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ] && { echo "install-cuda: nvcc is here already"; exit 0; }
. /etc/os-release
case "$ID$VERSION_ID" in
  ubuntu22.04) distribution=ubuntu2204 ;;
  debian12) distribution=debian12 ;;
  *) echo "install-cuda: expected Ubuntu 22.04 or Debian 12, found $PRETTY_NAME" >&2; exit 1 ;;
esac
keyring=$(mktemp --suffix=.deb)
trap 'rm -f "$keyring"' EXIT
curl -fsSL -o "$keyring" \
  "https://developer.download.nvidia.com/compute/cuda/repos/$distribution/x86_64/cuda-keyring_1.1-1_all.deb"
dpkg -i "$keyring"
apt-get update -qq
apt-get install -y -qq --no-install-recommends "cuda-nvcc-$version" "cuda-cudart-dev-$version" "cuda-crt-$version" ninja-build
/usr/local/cuda/bin/nvcc --version
