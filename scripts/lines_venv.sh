#!/usr/bin/env bash
# lines_venv.sh DIR REQUIREMENTS: makes DIR, a Python environment with these packages, installed one line after another, so that torch can be
# there before what depends on it. Does nothing if it is up to date.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=$1 list=$2
cmp -s "$list" "$venv/requirements.txt" && exit 0
rm -rf "$venv"
{ python3 -m venv "$venv" || { rm -rf "$venv" && /usr/bin/python3 -m venv "$venv"; }; } >/dev/null
echo "installing $(grep -v '^#' "$list" | cut -d';' -f1 | tr '\n' ' ')into $venv"
while read -r line; do
    [[ -z $line || $line == \#* ]] || "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$line"
done <"$list"
cp "$list" "$venv/requirements.txt"
