#!/usr/bin/env bash
# On an NVIDIA GPU, by PyTorch. Says what is missing before it starts.
#
# usage: scripts/run_cuda.sh [OPTION OF serve]...
#
#   QWEN_RERANK_PROFILE   default: qwen3_06b_cuda
set -euo pipefail
cd "$(dirname "$0")/.."

program=build/qwen-rerank
[[ -x $program ]] || program=$(command -v qwen-rerank || true)
if [[ -z $program ]]; then
    echo "run_cuda.sh: the program is not built: run make" >&2
    exit 1
fi
if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L >/dev/null 2>&1; then
    echo "run_cuda.sh: no NVIDIA GPU: nvidia-smi is missing or finds none. scripts/run_prod.sh serves on the processor." >&2
    exit 1
fi
nvidia-smi -L >&2
if ! "$program" doctor --backend pytorch --model builtin >/dev/null; then # it has said why on standard error
    echo "run_cuda.sh: the backend pytorch cannot be used; '$program doctor' lists those that can." >&2
    exit 1
fi
export QWEN_RERANK_BACKEND=pytorch QWEN_RERANK_DEVICE=${QWEN_RERANK_DEVICE:-cuda} QWEN_RERANK_PROFILE=${QWEN_RERANK_PROFILE:-qwen3_06b_cuda}
exec "$program" serve "$@"
