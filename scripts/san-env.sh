#!/usr/bin/env bash
# Runs a command with the settings that a sanitizer needs.
#
# usage: scripts/san-env.sh SANITIZER COMMAND...     SANITIZER: address, undefined, thread or nothing
set -euo pipefail

san=$1
shift
case $san in
# Without detect_stack_use_after_return: gcc before 13.2 misaligns 64-byte vectors on the fake stack and crashes (GCC bug 110027).
address) export ASAN_OPTIONS=${ASAN_OPTIONS-strict_string_checks=1:check_initialization_order=1} ;;
# Built by clang (see the Makefile), whose OpenMP library brings Archer: it tells ThreadSanitizer of OpenMP's barriers, so that parallel
# loops are checked too. oneDNN is not instrumented; what happens inside it is not looked at.
thread) export TSAN_OPTIONS=${TSAN_OPTIONS-halt_on_error=1:ignore_noninstrumented_modules=1} ;;
esac
[[ -z $san ]] || export UBSAN_OPTIONS=${UBSAN_OPTIONS-print_stacktrace=1}
exec "$@"
