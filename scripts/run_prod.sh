#!/usr/bin/env bash
# For service: JSON logs, a profile, keys from a file. Restarting is the service manager's (packaging/systemd, Docker).
#
# usage: scripts/run_prod.sh [OPTION OF serve]...
#
#   QWEN_RERANK_PROFILE        default: qwen3_06b_cpu_bf16; see `qwen-rerank config list`
#   QWEN_RERANK_HOST, _PORT    default: 127.0.0.1, 9003
#   QWEN_RERANK_API_KEY_FILE   default: /etc/qwen-rerank/keys if that is there; needed to listen on other addresses than 127.0.0.1
#   QWEN_RERANK_PROGRAM        default: build/qwen-rerank if it was built here, else qwen-rerank on the PATH
# and every other variable of docs/CONFIG.md.
set -euo pipefail
cd "$(dirname "$0")/.."

program=${QWEN_RERANK_PROGRAM-}
[[ -n $program || ! -x build/qwen-rerank ]] || program=build/qwen-rerank
unset QWEN_RERANK_PROGRAM # not one of the program's own
export QWEN_RERANK_PROFILE=${QWEN_RERANK_PROFILE:-qwen3_06b_cpu_bf16}
export QWEN_RERANK_LOG_FORMAT=${QWEN_RERANK_LOG_FORMAT:-json}
if [[ -z ${QWEN_RERANK_API_KEY_FILE-} && -r /etc/qwen-rerank/keys ]]; then
    export QWEN_RERANK_API_KEY_FILE=/etc/qwen-rerank/keys
fi
host=${QWEN_RERANK_HOST:-127.0.0.1}
if [[ $host != 127.0.0.1 && $host != localhost && $host != ::1 && -z ${QWEN_RERANK_API_KEY_FILE-}${QWEN_RERANK_API_KEY-} ]]; then
    echo "run_prod.sh: $host can be reached from other machines, but nobody would be asked for a key." >&2
    echo "Put one key a line into a file and name it in QWEN_RERANK_API_KEY_FILE." >&2
    exit 2
fi
exec "${program:-qwen-rerank}" serve "$@"
