#!/usr/bin/env bash
# Tests reading of GGUF rows that llama.cpp's own library quantised; it comes from npm into build/ggml.
set -euo pipefail
cd "$(dirname "$0")/.."

for file in package.json package-lock.json; do
    if ! cmp -s "tests/gguf/$file" "build/ggml/$file"; then
        mkdir -p build/ggml
        cp tests/gguf/package.json tests/gguf/package-lock.json build/ggml/
        (cd build/ggml && npm ci --silent --no-audit --no-fund --ignore-scripts)
        break
    fi
done
build/venv/bin/pytest -p no:cacheprovider -q tests/gguf/ggml_types.py
