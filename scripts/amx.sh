#!/usr/bin/env bash
# The code for AMX on an emulated processor: tests/amx. Where it cannot run it says so and succeeds; a test that runs and fails is a failure.
#
# usage: scripts/amx.sh BUILD
set -euo pipefail
cd "$(dirname "$0")/.."

skip() # why
{
    echo "test-amx: SKIPPED, nothing was tested: $1"
    exit 0
}

[[ $(uname -sm) == "Linux x86_64" ]] || skip "the code is for x86-64, and Bochs is built on Linux; this is $(uname -sm)"
if [[ -z ${QR_BOCHS-} ]]; then
    command -v apt-get >/dev/null || skip "Bochs comes from Debian's archive, and there is no apt-get (set QR_BOCHS to a Bochs 3.0 built with --enable-amx and --with-nogui)"
    scripts/bochs.sh || skip "Bochs could not be fetched or built, see above"
    export QR_BOCHS=$PWD/build/bochs/bochs
fi
cmake --build "$1" --target amx
build/venv/bin/pytest -p no:cacheprovider -q tests/amx
