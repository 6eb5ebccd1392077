#!/usr/bin/env bash
# Real clients against the built program: from PyPI in build/clients-venv, from npm in build/clients-npm.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=build/clients-venv npm=build/clients-npm
if ! cmp -s tests/clients/requirements.txt $venv/requirements.txt; then
    rm -rf $venv
    python3 -m venv $venv
    $venv/bin/python -m pip install --quiet --disable-pip-version-check -r tests/clients/requirements.txt
    cp tests/clients/requirements.txt $venv/
fi
if ! cmp -s tests/clients/package.json $npm/package.json; then
    mkdir -p $npm
    cp tests/clients/package.json tests/clients/package-lock.json $npm/
    (cd $npm && npm ci --silent --no-audit --no-fund)
fi
cp tests/clients/clients.mjs $npm/ # beside node_modules, where imports are looked for
$venv/bin/pytest -p no:cacheprovider -q tests/clients
