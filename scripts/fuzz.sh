#!/usr/bin/env bash
# Runs every libFuzzer target of a build for some seconds each; fails on the first crash, hang or sanitizer report.
#
# usage: scripts/fuzz.sh BUILD_DIR SECONDS [SEED]     SEED: 0 (the default) for another one every time
#
# The corpus lives in BUILD_DIR/corpus/TARGET and grows from run to run. It starts from the golden files and from tests/fuzz/seeds/TARGET
# where that folder exists. A crashing input is left in BUILD_DIR/crashes: add it to the seeds together with the fix.
set -euo pipefail

build=$(realpath "$1")
seconds=$2 random_seed=${3-0}
cd "$(dirname "$0")/.."

shopt -s nullglob
targets=()
for source in tests/fuzz/fuzz_*.c; do targets+=("$(basename "$source" .c)"); done
if [[ ${#targets[@]} == 0 ]]; then
    echo "fuzz.sh: tests/fuzz has no fuzz_*.c" >&2
    exit 1
fi
mkdir -p "$build/crashes"

for target in "${targets[@]}"; do
    corpus=$build/corpus/$target
    if [[ ! -d $corpus ]]; then
        mkdir -p "$corpus"
        for seed in tests/fuzz/seeds/"$target"/* "tests/fuzz/seeds/${target#fuzz_}"/*; do cp "$seed" "$corpus"; done
        # The header of a checkpoint, the config, and the golden texts: small and of the right shape for one target or another.
        for dir in build/testdata/*/; do
            name=$(basename "$dir")
            for file in config.json model.safetensors.index.json; do
                if [[ -e $dir/$file ]]; then cp "$dir/$file" "$corpus/$name-$file"; fi
            done
            if [[ -e $dir/model.safetensors ]]; then head -c 8192 "$dir/model.safetensors" >"$corpus/$name-header"; fi
        done
        cp tests/golden/cases.json "$corpus"
    fi
    echo "== $target, $seconds s"
    # leaks are found at exit, once; -timeout is per input: everything here is linear or n log n in at most 64 KiB
    if ! "$build/$target" -max_total_time="$seconds" -seed="$random_seed" -max_len=65536 -timeout=20 -rss_limit_mb=4096 -print_final_stats=1 -verbosity=0 \
        -artifact_prefix="$build/crashes/$target-" "$corpus" >"$build/$target.log" 2>&1; then
        tail -n 60 "$build/$target.log"
        echo "fuzz.sh: $target failed; the input is in $build/crashes, the whole log in $build/$target.log" >&2
        exit 1
    fi
    awk '/stat::number_of_executed_units/ { units = $2 } /stat::peak_rss_mb/ { rss = $2 } END { printf "   %d inputs, peak memory %d MiB, no finding\n", units, rss }' \
        "$build/$target.log"
done
echo "${#targets[@]} fuzz targets passed"
