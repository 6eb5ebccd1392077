#!/usr/bin/env bash
# Real clients against the built program: from PyPI in build/clients-current and build/clients-older, because they do not all fit into one
# environment, from npm in build/clients-npm. Node.js comes from PyPI, too: Debian 12's is too old for some clients.
set -euo pipefail
cd "$(dirname "$0")/.."

environment() # name
{
    local venv=build/clients-$1 list=tests/clients/$1.txt
    cmp -s "$list" "$venv/list.txt" && return
    echo "clients: installing $(grep -c == "$list") packages into $venv"
    rm -rf "$venv"
    python3 -m venv "$venv"
    # The list is complete. Without looking for more, pip leaves out what the list leaves out.
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r "$list"
    cp "$list" "$venv/list.txt"
}

environment current
environment older
npm=build/clients-npm
export PATH=$PWD/build/clients-current/bin:$PATH
if ! cmp -s tests/clients/package-lock.json $npm/list.json; then
    echo "clients: installing packages from npm into $npm"
    rm -rf $npm
    mkdir -p $npm
    cp tests/clients/package.json tests/clients/package-lock.json $npm/
    (cd $npm && npm ci --silent --ignore-scripts --no-audit --no-fund)
    cp tests/clients/package-lock.json $npm/list.json
fi
cp tests/clients/clients.mjs $npm/ # beside node_modules, where imports are looked for

build/clients-current/bin/pytest -p no:cacheprovider -p no:warnings -q --ignore tests/clients/test_older.py tests/clients
build/clients-older/bin/pytest -p no:cacheprovider -p no:warnings -q tests/clients/test_cohere.py tests/clients/test_older.py
