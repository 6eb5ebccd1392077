#!/usr/bin/env bash
# The manifests of packaging/ against the schemas of Kubernetes and compose; then schemathesis asks the built program what /openapi.json
# allows and what it does not, and holds the answers against it.
#
# usage: scripts/schema.sh BUILD
set -euo pipefail
cd "$(dirname "$0")/.."

build=$1 port=${PORT:-9904} venv=build/schema-venv
if ! cmp -s tests/schema/requirements.txt $venv/requirements.txt; then
    rm -rf $venv
    python3 -m venv $venv
    $venv/bin/python -m pip install --quiet --disable-pip-version-check -r tests/schema/requirements.txt
    cp tests/schema/requirements.txt $venv/
fi
$venv/bin/pytest -p no:cacheprovider -q tests/schema/manifests.py
"$build/qwen-rerank" serve --model builtin --port "$port" --log-level error &
server=$!
trap 'kill $server 2>/dev/null' EXIT
for _ in {1..100}; do
    if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then break; fi
    sleep 0.1
done
# Not asked: whether bad requests are refused (negative_data_rejection): leniency is what clients need, see docs/API.md.
$venv/bin/schemathesis run "http://127.0.0.1:$port/openapi.json" --seed 1 --max-examples "${EXAMPLES:-30}" --phases examples,coverage,fuzzing \
    --checks not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,response_headers_conformance \
    --request-timeout 30 --suppress-health-check all --generation-deterministic
