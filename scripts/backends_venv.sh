#!/usr/bin/env bash
# Makes build/backends-venv, a Python environment with PyTorch and MLX for the tests of these backends, from tests/backends/requirements.txt.
# Does nothing if it is up to date. About 1 GB.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=build/backends-venv
stamp=$venv/requirements.txt
cmp -s tests/backends/requirements.txt $stamp && [[ -x $venv/bin/pytest ]] && exit 0
rm -rf $venv
{ python3 -m venv $venv || /usr/bin/python3 -m venv $venv; } >/dev/null
echo "backends: installing PyTorch and MLX into $venv"
while read -r line; do
    [[ -z $line || $line == \#* ]] || $venv/bin/python -m pip install --quiet --disable-pip-version-check "$line"
done <tests/backends/requirements.txt
cp tests/backends/requirements.txt $stamp
