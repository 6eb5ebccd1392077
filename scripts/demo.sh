#!/usr/bin/env bash
# `make demo`: ranks text found on this machine, to show the program at work without any download. With the built-in model; where the
# build has none, with a generated checkpoint.
#
# usage: scripts/demo.sh BUILD_DIR
set -euo pipefail

program=$1/qwen-rerank
data=$1/testdata
here=$(dirname "$0")
mkdir -p "$data"
if "$program" inspect builtin >/dev/null 2>&1; then
    model=builtin
    about="The model is the built-in one: small, made to show what the program does. README.md says how to get a Qwen3-Reranker,
which is far better."
else
    model=$data/small-1
    about="The model is generated: it has the architecture of Qwen3-Reranker and its tokenizer, but RANDOM WEIGHTS. The order below means
nothing; what it shows is the program at work. README.md says how to get a real model."
    "$here/testdata.sh" "$1/make_checkpoint" "$data" small-1 >/dev/null
fi

query="program that makes files smaller"
documents=$data/demo.txt
# Descriptions of packages that this build needed anyway, so that the list is the same on every Debian machine.
if ! dpkg-query -W -f '${binary:Summary}\n' bash cmake coreutils dpkg findutils gcc git grep gzip make sed tar xz-utils \
    >"$documents" 2>/dev/null; then
    # Elsewhere: the paragraphs of the licence, a line each.
    awk 'BEGIN { RS = "" } { gsub(/[ \n]+/, " "); if (length($0) > 80) print substr($0, 2) }' "$here/../LICENSE" | head -12 >"$documents"
    query="conditions for redistributing modified copies"
fi

cat <<END

Ranking $(wc -l <"$documents" | tr -d ' ') texts for "$query".
$about

END
echo "\$ qwen-rerank rank --model $model '$query' --lines $documents"
"$program" rank --quiet --model "$model" "$query" --lines "$documents"
