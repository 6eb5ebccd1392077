#!/usr/bin/env bash
# Runs the golden tests with one version of PyTorch after the other, each installed into build/ and removed again, and expects those before 2.10
# to be refused. PyPI's builds for Linux come with CUDA: 5 GB each.
#
# usage: scripts/torch_versions.sh VERSION...
set -euo pipefail
cd "$(dirname "$0")/.."

venv=build/backends-venv
dir=$PWD/build/torch-version
trap 'rm -rf "$dir"' EXIT
for version; do
    rm -rf "$dir"
    echo "torch $version: installing"
    $venv/bin/python -m pip install --quiet --disable-pip-version-check --target "$dir" "torch==$version"
    if [[ $(printf '%s\n' "$version" 2.10 | sort -V | head -n 1) == 2.10 ]]; then
        QR_TEST_TORCH_DIR=$dir/torch $venv/bin/pytest -p no:cacheprovider -q tests/backends/test_golden.py tests/backends/test_flash.py -k "pytorch or flash"
    else
        said=$("$QR_BUILD/qwen-rerank" doctor --torch-dir "$dir/torch" --quiet)
        echo "$said" | grep -F "expected PyTorch 2.10 or newer, found $version"
    fi
    echo "torch $version: as expected"
done
