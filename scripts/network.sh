#!/usr/bin/env bash
# The backend vllm against servers with names, certificates and HTTP/2, in an environment of its own, build/network-venv.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=build/network-venv
if ! cmp -s tests/network/requirements.txt $venv/requirements.txt; then
    rm -rf $venv
    python3 -m venv $venv
    $venv/bin/python -m pip install --quiet --disable-pip-version-check -r tests/network/requirements.txt
    cp tests/network/requirements.txt $venv/
fi
$venv/bin/pytest -p no:cacheprovider -q tests/network/dns.py tests/network/tls.py
