#!/usr/bin/env bash
# Runs the tests of PyTorch and MLX that compute little with AddressSanitizer: the program and the plug-in are instrumented, PyTorch and MLX are
# not. No suppressions: neither leaks anything that is not reachable in the end.
#
# usage: scripts/backends_asan.sh      after `make build-backends SAN=address`
set -euo pipefail
cd "$(dirname "$0")/.."

export QR_BUILD=$PWD/build-address
pytest=(build/backends-venv/bin/pytest -p no:cacheprovider -q -m "not slow" tests/backends/test_behaviour.py)
scripts/san-env.sh address "${pytest[@]}" tests/backends/test_golden.py -k "(micro or device or memory or int8 or prompt) and not parity"
# The library in Python, which must then have the sanitizer loaded first, with the C++ library whose exceptions it watches. Python itself leaks.
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libstdc++.so.6)" ASAN_OPTIONS=detect_leaks=0 \
    scripts/san-env.sh address "${pytest[@]}" -k "threads or fork or at_once"
