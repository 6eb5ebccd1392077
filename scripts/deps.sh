#!/usr/bin/env bash
# Makes sure that what a make target needs is on this machine, and installs it on Debian and Ubuntu.
#
# usage: scripts/deps.sh GROUP...     groups: build test cxx memcheck clang lint page bench-http arm64
#
# Looks for the programs and headers themselves, not for package names, so that a compiler from elsewhere is good enough and the usual
# case (nothing missing) costs a few milliseconds. QR_NO_DEPS=1 skips everything: then CMake says what it misses.
set -euo pipefail

[[ -n ${QR_NO_DEPS-} ]] && exit 0

missing=() # Debian package names
brews=()   # Homebrew formulas
why=()

need() # what-for debian-package brew-formula
{
    missing+=("$2")
    [[ $3 == - ]] || brews+=("$3")
    why+=("$(printf '  %-28s %s' "$2" "$1")")
}

program() # command what-for debian-package brew-formula
{
    command -v "$1" >/dev/null || need "${@:2}"
}

header() # file what-for debian-package brew-formula
{
    local dir
    for dir in ${CPATH:+${CPATH//:/ }} /usr/include /usr/include/*-linux-gnu* /usr/local/include /opt/homebrew/include \
        /opt/homebrew/opt/openssl@3/include /opt/homebrew/opt/libomp/include /usr/local/opt/openssl@3/include; do
        [[ -e $dir/$1 ]] && return
    done
    need "${@:2}"
}

# Files of a versioned compiler folder, which only Debian lays out this way.
debian_file() # glob what-for debian-package
{
    [[ -e /etc/debian_version ]] || return 0
    compgen -G "$1" >/dev/null || need "$2" "$3" -
}

has_venv() # python
{
    "$1" -c 'import ensurepip, venv' 2>/dev/null
}

for group in "$@"; do
    case $group in
    build)
        [[ -n ${CC-} ]] || program cc "C compiler" gcc -
        program cmake "build system" cmake cmake
        program ninja "runs the build" ninja-build ninja
        if ! command -v pkg-config >/dev/null; then need "finds libraries" pkg-config pkgconf; fi
        header stdio.h "C library headers" libc6-dev -
        # elsewhere our own kernels do it, see CMakeLists.txt
        [[ $(uname -m) != x86_64 ]] || header dnnl.h "oneDNN: matrix products" libdnnl-dev onednn
        header jansson.h "JSON" libjansson-dev jansson
        header microhttpd.h "HTTP" libmicrohttpd-dev libmicrohttpd
        header yaml.h "profiles" libyaml-dev libyaml
        header utf8proc.h "Unicode normalisation" libutf8proc-dev utf8proc
        # part of macOS
        [[ $(uname) == Darwin ]] || header curl/curl.h "HTTP client" libcurl4-openssl-dev -
        header openssl/evp.h "SHA-256" libssl-dev openssl@3
        [[ $(uname) == Darwin ]] && header omp.h "threads of the CPU engine" - libomp
        header cmocka.h "unit tests" libcmocka-dev cmocka
        program xz "unpacks the test tokenizer" xz-utils xz
        ;;
    test)
        program c++ "the header is tested from C++" g++ -
        program python3 "tests of the program" python3 python
        # Debian splits venv from Python; the module is there, what it needs to work (ensurepip) is not.
        if [[ ! -x build/venv/bin/pytest ]] && ! has_venv python3 && ! has_venv /usr/bin/python3; then
            need "Python environment for pytest" python3-venv -
        fi
        ;;
    cxx) program c++ "compiles the plug-in for MLX" g++ - ;;
    memcheck) program valgrind "finds errors in memory" valgrind - ;;
    clang)
        program clang "C compiler" clang llvm
        debian_file '/usr/lib/llvm-*/lib/libomp.so' "OpenMP for clang" libomp-dev
        debian_file '/usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.fuzzer-*' "sanitizers and libFuzzer" libclang-rt-dev
        ;;
    lint)
        program clang-tidy "static analysis" clang-tidy llvm
        program clang-format "source format" clang-format clang-format
        program shellcheck "checks shell scripts" shellcheck shellcheck
        ;;
    bench-http)
        program wrk "asks as fast as it can" wrk wrk
        ;;
    page)
        program node "runs the tests of the page" nodejs -
        program npm "fetches what they need" npm -
        program chromium "the browser" chromium -
        ;;
    arm64)
        program aarch64-linux-gnu-gcc "cross compiler" gcc-aarch64-linux-gnu -
        debian_file /usr/aarch64-linux-gnu/include/stdio.h "C library for arm64" libc6-dev-arm64-cross
        program qemu-aarch64 "runs arm64 programs" qemu-user -
        ;;
    *)
        echo "deps.sh: unknown group '$group'" >&2
        exit 2
        ;;
    esac
done
[[ ${#missing[@]} == 0 ]] && exit 0

if [[ $(uname) == Darwin ]]; then
    echo "Some tools or libraries are missing. Install them with" >&2
    echo "  brew install ${brews[*]-}" >&2
    exit 1
fi

echo "Missing on this machine:"
printf '%s\n' "${why[@]}"
if ! command -v apt-get >/dev/null; then
    echo "These are Debian's names. There is no apt-get here: please install your system's counterparts, then run make again." >&2
    exit 1
fi

sudo=()
if [[ $(id -u) != 0 ]]; then
    if ! command -v sudo >/dev/null; then
        echo "Only root can install them, and there is no sudo here. Please ask an administrator to run" >&2
        echo "  apt-get install ${missing[*]}" >&2
        exit 1
    fi
    sudo=(sudo)
    [[ -t 0 ]] || sudo+=(-n) # nobody there to type a password: fail instead of waiting for one
fi

install()
{
    # noninteractive, as an argument because sudo drops the environment
    ${sudo[@]+"${sudo[@]}"} env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        -o Dpkg::Use-Pty=0 "${missing[@]}" </dev/null
}

echo "Installing with apt-get: ${missing[*]}"
# Package lists are fetched only if this machine knows a package not at all, or if what it knows is no longer on the mirror.
if apt-cache show "${missing[@]}" >/dev/null 2>&1 && install; then exit 0; fi
if ${sudo[@]+"${sudo[@]}"} apt-get update </dev/null && install; then exit 0; fi
echo "apt-get could not install them (see above). Please install by hand, then run make again:" >&2
echo "  apt-get install ${missing[*]}" >&2
exit 1
