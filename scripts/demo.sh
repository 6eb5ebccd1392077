#!/usr/bin/env bash
# `make demo`: ranks text found on this machine with a generated checkpoint, to show the program at work without any download.
#
# usage: scripts/demo.sh BUILD_DIR
set -euo pipefail

program=$1/qwen-rerank
data=$1/testdata
here=$(dirname "$0")
"$here/testdata.sh" "$1/make_checkpoint" "$data" small-1 >/dev/null

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
The model is generated: it has the architecture of Qwen3-Reranker and its tokenizer, but RANDOM WEIGHTS. The order below means nothing;
what it shows is the program at work. README.md says how to get a real model.

END
echo "\$ qwen-rerank rank --model $data/small-1 '$query' --lines $documents"
"$program" rank --model "$data/small-1" "$query" --lines "$documents"
