#!/usr/bin/env bash
# Install FFCV, which compiles against OpenCV and libjpeg-turbo; if that is not possible, say in one line what
# is missing. FFCV is optional: only its own backend and the tests of that backend need it.
# usage: tools/install_ffcv.sh PYTHON
set -euo pipefail
python=$1
headers="libopencv-dev libturbojpeg0-dev pkg-config"

skip() {
  echo "FFCV: not installed ($1); to have it, run 'apt-get install $headers' as root, then 'make ffcv'"
  exit 0
}

"$python" -c 'import ffcv' 2>/dev/null && exit 0
if ! { command -v pkg-config && pkg-config --exists opencv4 libturbojpeg; } >/dev/null 2>&1; then
  command -v apt-get >/dev/null || skip "its headers $headers are missing and this system has no apt-get"
  if [ "$(id -u)" = 0 ]; then as_root=""; elif sudo -n true 2>/dev/null; then as_root="sudo -n"; else
    skip "its headers $headers are missing and there is no root or sudo here"
  fi
  { $as_root apt-get update -qq && DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq $headers; } \
    >/dev/null 2>&1 || skip "apt-get could not install $headers"
fi
"$python" -m pip install --quiet --constraint constraints.txt 'ffcv>=1.0.2' opencv-python-headless \
  || skip "it did not compile"
