#!/usr/bin/env bash
# Runs a command with the settings that a sanitizer needs.
#
# usage: scripts/san-env.sh SANITIZER COMMAND...     SANITIZER: address, undefined, thread or nothing
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)

san=$1
shift
case $san in
address) export ASAN_OPTIONS=${ASAN_OPTIONS-strict_string_checks=1:detect_stack_use_after_return=1:check_initialization_order=1} ;;
thread)
    # libgomp is not built for ThreadSanitizer: its barriers are invisible, and every parallel loop would be a report. With one OpenMP
    # thread there is no such loop; the threads of the engine and of its callers, which are ours, are checked as they are.
    export OMP_NUM_THREADS=1
    export TSAN_OPTIONS=${TSAN_OPTIONS-halt_on_error=1:suppressions=$here/scripts/tsan.supp}
    ;;
esac
[[ -z $san ]] || export UBSAN_OPTIONS=${UBSAN_OPTIONS-print_stacktrace=1}
exec "$@"
