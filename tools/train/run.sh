#!/usr/bin/env bash
# Makes the built-in model from nothing: collects text, trains, writes models/builtin, measures it. On 2 cores of a
# Zen 4: 40 minutes until training begins, 92 minutes of training (5,000 steps), 7 of measuring.
#
# usage: tools/train/run.sh [WORK]        WORK is build/train by default; needs Debian 12 (apt-get, dpkg-deb), network, g++; prepare.py took 6 GB of memory
#
# Every step leaves a file in WORK and is skipped if that is there: a run that was cut goes on where it was, training within five minutes.
set -euo pipefail
cd "$(dirname "$0")/../.."

work=${1:-build/train}
tools=tools/train
python=$work/venv/bin/python
mkdir -p "$work"

if [[ ! -e $work/venv/done ]]; then
    python3 -m venv "$work/venv"
    "$python" -m pip install --quiet torch==2.13.0 # alone and first: the small CPU build
    "$python" -m pip install --quiet -r $tools/requirements.txt
    touch "$work/venv/done"
fi

[[ -e $work/pairs.jsonl ]] || "$python" $tools/collect.py "$work"
[[ -e $work/tokenizer.json ]] || "$python" $tools/make_tokenizer.py "$work"
"$python" $tools/prepare.py "$work"
[[ -e $work/initial.pt ]] || "$python" $tools/initialise.py "$work"
"$python" $tools/train.py "$work"
"$python" $tools/export.py "$work/trained.pt" models/builtin
"$python" $tools/export.py --f32 models/builtin "$work/f32"
make build
"$python" $tools/compare.py models/builtin "$work/f32"
"$python" $tools/evaluate.py --rankers random,bm25,teacher,model --plot docs/builtin-reliability.svg
