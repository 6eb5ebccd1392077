#!/usr/bin/env bash
# Compiles every C file for macOS on Apple silicon, on any machine: zig, from PyPI, is clang with the headers of macOS. Finds what only Linux
# has; it links and runs nothing. Headers of libraries are those of this machine.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=build/zig-venv
if [[ ! -x $venv/bin/python ]] || ! $venv/bin/python -c 'import ziglang' 2>/dev/null; then
    rm -rf $venv
    { python3 -m venv $venv || /usr/bin/python3 -m venv $venv; } >/dev/null
    $venv/bin/python -m pip install --quiet --disable-pip-version-check ziglang==0.17.1
fi

# Copies: the folder of the system's headers as a whole would hide those of macOS.
include=build/zig-include
rm -rf $include
mkdir -p $include
for header in jansson.h jansson_config.h microhttpd.h utf8proc.h yaml.h cmocka.h openssl/evp.h omp.h curl/curl.h; do
    found=$(find /usr/include /usr/lib/gcc -path "*/$header" -print -quit 2>/dev/null)
    [[ -n $found ]] || continue
    case $header in
    */*) cp -r "$(dirname "$found")" $include ;;
    *) cp "$found" $include ;;
    esac
done
if [[ -d /usr/include/$(uname -m)-linux-gnu/openssl ]]; then cp -r "/usr/include/$(uname -m)-linux-gnu/openssl" $include; fi

defines=(-DQR_VERSION='"0"' -DQR_PLUGIN_DIR='"."' -DQR_PROFILES_FILE='"src/cli/profiles.yaml"' -DQR_WEB_DIR='"src/server/web"' -DQR_TEST_DATA='"."'
    -DQR_SOURCE_DIR='"."' -DQR_BUILTIN_DIR='"models/builtin"')
failed=0 n=0
for file in src/*/*.c bench/*.c tools/*.c tests/unit/*.c tests/abi/*.c; do
    case $file in
    */gemm_blas.c) continue ;; # needs Accelerate.h, which is part of no wheel
    esac
    # libgomp's omp.h has attributes that clang does not know
    $venv/bin/python -m ziglang cc -target aarch64-macos -std=c17 -Wall -Wextra -Werror -Wno-unknown-pragmas -Iinclude -Isrc -Itests \
        -isystem $include "${defines[@]}" -c "$file" -o build/zig.o || { echo "macos_check.sh: $file" >&2 && failed=1; }
    n=$((n + 1))
done
rm -f build/zig.o
((failed == 0)) && echo "macOS: $n files compile"
exit $failed
