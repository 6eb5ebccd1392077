#!/usr/bin/env bash
# For work on the program: builds, then serves with readable logs that tell everything.
#
# usage: scripts/run_dev.sh [OPTION OF serve]...      for example --model DIR; the built-in model without one
set -euo pipefail
cd "$(dirname "$0")/.."

make --no-print-directory build
exec build/qwen-rerank serve --log-level debug --log-format text "$@"
