#!/usr/bin/env bash
# Builds for 64-bit ARM Linux and runs the unit tests and the golden scores under qemu-user.
#
# usage: scripts/arm64.sh [sysroot]      sysroot: only fetch the libraries, for the CMake preset arm64-cross
#
# Debian's arm64 libraries are downloaded through a private apt state and unpacked into build-arm64/sysroot. The machine's own package
# lists and packages stay as they are: adding a foreign architecture to them needs root, and breaks where versions of the two
# architectures differ by a security update.
set -euo pipefail
cd "$(dirname "$0")/.."

build=$PWD/build-arm64
sysroot=$build/sysroot
packages=(libjansson-dev libutf8proc-dev libssl-dev libcmocka-dev libdnnl-dev libmicrohttpd-dev libyaml-dev libcurl4-openssl-dev)

# The list is kept, so that a sysroot from before a library was needed is fetched again.
if [[ "$(cat "$sysroot/.complete" 2>/dev/null)" != "${packages[*]}" ]]; then
    if ! command -v apt-get >/dev/null; then
        echo "arm64.sh: needs apt-get (Debian or Ubuntu) to fetch arm64 libraries" >&2
        exit 1
    fi
    rm -rf "$sysroot" "$build/apt"
    mkdir -p "$sysroot" "$build"/apt/{lists,archives}/partial
    touch "$build/apt/status"
    cat >"$build/apt/apt.conf" <<END
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
APT::Sandbox::User "$(id -un)";
APT::Update::Post-Invoke-Success:: "true";
Dir::State "$build/apt";
Dir::State::status "$build/apt/status";
Dir::State::lists "$build/apt/lists";
Dir::Cache "$build/apt";
Dir::Cache::archives "$build/apt/archives";
Dir::Log "$build/apt";
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
END
    export APT_CONFIG=$build/apt/apt.conf
    # A third-party source of this machine may not serve arm64; what counts is whether the packages are found.
    apt-get -qq update || true
    apt-get -qq install -y --download-only --no-install-recommends "${packages[@]}"
    for deb in "$build"/apt/archives/*.deb; do
        # The C library comes with the cross compiler; a second one would be mixed up with it.
        [[ $(basename "$deb") == libc6* ]] || dpkg-deb -x "$deb" "$sysroot"
    done
    # Where /lib is a link to /usr/lib, as on every Debian; packages still have files in both.
    if [[ -d $sysroot/lib ]]; then cp -a "$sysroot/lib/." "$sysroot/usr/lib/" && rm -rf "${sysroot:?}/lib"; fi
    unset APT_CONFIG
    rm -rf "$build/apt"
    echo "${packages[*]}" >"$sysroot/.complete"
fi
[[ ${1-} == sysroot ]] && exit 0

if [[ ! -e $build/build.ninja ]]; then
    cmake -S . -B "$build" -G Ninja -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux-gnu.cmake -DCMAKE_BUILD_TYPE=Release \
        -DQR_SYSROOT="$sysroot" -DQR_TEST_DATA="$build/testdata" ${CI:+-DQR_WERROR=ON}
fi
cmake --build "$build"

# The emulator, for everything that is not started by ctest. Programs that tests start are wrapped in a script of the same name.
libs=$sysroot/usr/lib/aarch64-linux-gnu
emulator="qemu-aarch64 -L /usr/aarch64-linux-gnu -E LD_LIBRARY_PATH=$libs:/usr/aarch64-linux-gnu/lib"
mkdir -p "$build/run"
printf '#!/bin/sh\nexec %s "%s" "$@"\n' "$emulator" "$build/qwen-rerank" >"$build/run/qwen-rerank"
chmod +x "$build/run/qwen-rerank"

# Made by the arm64 program, so that its hashes are checked too.
MAKE_CHECKPOINT_RUN=$emulator scripts/testdata.sh "$build/make_checkpoint" "$build/testdata"
# The two unit tests that score everything many times over would take an hour in the emulator. What they test beside arithmetic does not
# depend on the architecture; the arithmetic is tested kernel by kernel, and end to end by the golden scores of two checkpoints.
ctest --test-dir "$build" --output-on-failure -E 'test_cpu_backend|test_engine'
scripts/venv.sh
QR_BUILD=$build QR_PROGRAM=$build/run/qwen-rerank QR_TEST_DATA=$build/testdata build/venv/bin/pytest -p no:cacheprovider -q -m golden --ignore tests/clients -k "micro or odd" tests
