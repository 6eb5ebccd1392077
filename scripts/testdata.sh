#!/usr/bin/env bash
# Makes what the tests need and the tree does not hold: the unpacked tokenizer and small checkpoints with random weights.
#
# usage: scripts/testdata.sh MAKE_CHECKPOINT OUT_DIR [NAME...]
# NAME: micro-1 untied-1 small-1 odd-7 (none: these) 0.6b-1 (1.2 GB, for make bench)
#
# What exists is kept. Weights are checked against the hash of those that the golden scores were computed with: if they differ, tests
# of arithmetic would fail far away from the reason.
set -euo pipefail

make_checkpoint=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
shift 2
cd "$(dirname "$0")/.."

sha256() # file
{
    if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d' ' -f1
}

check() # file expected-sha256
{
    local found
    found=$(sha256 "$1")
    [[ $found == "$2" ]] && return
    echo "testdata.sh: $1 has sha256 $found, expected $2" >&2
    exit 1
}

tokenizer=$out/tokenizer/tokenizer.json
if [[ ! -e $tokenizer ]]; then
    mkdir -p "$out/tokenizer"
    xz -dc tests/golden/tokenizer.json.xz >"$tokenizer.part"
    check "$tokenizer.part" aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4
    mv "$tokenizer.part" "$tokenizer"
fi

checkpoint() # name sha256-of-weights make_checkpoint-arguments...
{
    local name=$1 sum=$2 dir=$out/$1 part=$out/$1.part
    shift 2
    [[ -e $dir/model.safetensors ]] && return
    rm -rf "$part" "$dir"
    # shellcheck disable=SC2086 # MAKE_CHECKPOINT_RUN is a command line: the emulator when the program is for another processor
    ${MAKE_CHECKPOINT_RUN-} "$make_checkpoint" "${@:1:2}" "$part" "${@:3}" --tokenizer "$tokenizer" >/dev/null
    [[ -z $sum ]] || check "$part/model.safetensors" "$sum"
    mv "$part" "$dir"
    echo "made $name"
}

[[ $# == 0 ]] && set -- micro-1 untied-1 small-1 odd-7
for name in "$@"; do
    case $name in
    micro-1) checkpoint "$name" 6998ef6697ff6909860069d81127a0458b9a61ee8b22b05b2be0eb5f4dc9a6b9 micro 1 ;;
    untied-1) checkpoint "$name" 03a6f6e8b8d58aa9c48dc877da4c6078dd40edc13a56cd7b6756944ee87f0a80 untied 1 ;;
    small-1) checkpoint "$name" 0c5f426407fcfd78a86249b4362d5167c6aa9571b110d854dba1710fb371e9d9 small 1 ;;
    odd-7)
        checkpoint "$name" f2da4d27e2ce3c7f0bfc7b9d5e0a9eb423eceb4c68770b1f1953fce05e4da096 custom 7 \
            --hidden 120 --inter 200 --layers 2 --heads 6 --kv-heads 2 --head-dim 48 --untied
        ;;
    0.6b-1) checkpoint "$name" "" 0.6b 1 ;;
    *)
        echo "testdata.sh: unknown checkpoint '$name'" >&2
        exit 2
        ;;
    esac
done
