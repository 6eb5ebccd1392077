#!/usr/bin/env bash
# Builds Bochs 3.0, which emulates machines with AMX, from Debian 13's source package into build/bochs: Debian 12's is older than AMX, and
# Debian 13's program needs that system's C library and a window toolkit. A minute and a half on one core; does nothing if it is there.
#
# usage: scripts/bochs.sh
set -euo pipefail
cd "$(dirname "$0")/.."

build=$PWD/build/bochs
[[ -x $build/bochs ]] && exit 0
rm -rf "$build"
mkdir -p "$build"/apt/{lists,archives}/partial "$build"/{source,make}

# A private apt state, as in arm64.sh. Debian 13 lies where this machine's own Debian does.
release=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
uri=$(apt-get indextargets --format "\$(RELEASE) \$(REPO_URI)" 'Created-By: Packages' |
    awk -v release="$release" '$1 == release && !found { print $2; found = 1 }')
touch "$build/apt/status"
echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri trixie main" >"$build/apt/sources.list"
cat >"$build/apt/apt.conf" <<END
APT::Sandbox::User "$(id -un)";
Dir::State "$build/apt";
Dir::State::status "$build/apt/status";
Dir::State::lists "$build/apt/lists";
Dir::Cache "$build/apt";
Dir::Etc::SourceList "$build/apt/sources.list";
Dir::Etc::SourceParts "/dev/null";
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
END
export APT_CONFIG=$build/apt/apt.conf
apt-get -qq update
(cd "$build/apt" && apt-get -qq source --download-only --tar-only bochs)
unset APT_CONFIG
tar -xf "$build"/apt/bochs_*.orig.tar.* -C "$build/source" --strip-components 1

fix() # file what-it-is-now sed-expression
{
    grep -qF "$2" "$build/source/$1" || { echo "bochs.sh: $1 is not what it was in Bochs 3.0: no '$2'" >&2 && return 1; }
    sed -i "$3" "$build/source/$1"
}
# Two slips of 3.0. VCVTNE2PS2BF16 takes its second half from behind the register: attention's weights, with AMX or without.
fix cpu/avx/avx512_bf16.cc 'convert_ne_fp32_to_bfloat16(op1.vmm32u(n))' \
    '/other half of the elements/,/}/s/op1\.vmm32u(n)/op1.vmm32u(n - DWORD_ELEMENTS(len))/'
# TDPBSSD takes bytes as unsigned.
fix cpu/avx/amx.cc 'const Bit8u xbyte[4]' '/Bit32u DPBDSS(/,/^}/s/Bit8u/Bit8s/g'

echo "building Bochs in build/bochs: a minute or two"
cd "$build/make"
{
    ../source/configure --with-nogui --enable-x86-64 --enable-cpu-level=6 --enable-avx --enable-evex --enable-amx --enable-repeat-speedups \
        --disable-docbook --disable-plugins --disable-cdrom CFLAGS=-O1 CXXFLAGS=-O1
    make -j "$(nproc)"
} >../log 2>&1 || { tail -n 20 ../log && exit 1; }
mv bochs "$build/"
rm -rf "$build"/{apt,source,make}
