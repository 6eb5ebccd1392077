#!/usr/bin/env bash
# Makes build/venv, the Python environment of the tests, from tests/requirements.txt. Does nothing if it is up to date.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=build/venv
stamp=$venv/requirements.txt
cmp -s tests/requirements.txt $stamp && [[ -x $venv/bin/pytest ]] && exit 0

# A python3 from elsewhere (pyenv, conda) may be first on the path and lack ensurepip; the system's own is the second choice.
rm -rf $venv
for python in python3 /usr/bin/python3; do
    if "$python" -m venv $venv >/dev/null 2>&1; then break; fi
    rm -rf $venv
done
if [[ ! -x $venv/bin/python ]]; then
    scripts/deps.sh test
    /usr/bin/python3 -m venv $venv || {
        echo "Could not make a Python environment. On Debian it needs: apt-get install python3-venv" >&2
        exit 1
    }
fi
$venv/bin/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
cp tests/requirements.txt $stamp
