#!/usr/bin/env bash
# What HTTP, JSON, tokenizing and scheduling cost: wrk against the service on a backend that answers at once.
#
# usage: scripts/bench_http.sh BUILD [SECONDS]
set -euo pipefail
cd "$(dirname "$0")/.."

build=$1 seconds=${2:-5} port=${PORT:-9903}
url=http://127.0.0.1:$port
"$build/bench_http" "$port" &
server=$!
trap 'kill $server 2>/dev/null' EXIT
for _ in {1..100}; do
    # bash's own sockets: the machine may have no curl
    if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then break; fi
    sleep 0.1
done

report() # title connections
{
    printf '%-34s ' "$1"
    wrk -t 1 -c "$2" -d "${seconds}s" -s bench/http.lua "$url" | tail -1
}

printf 'load average before: %s\n' "$(cut -d ' ' -f 1-3 /proc/loadavg)"
wrk -t 1 -c 4 -d 1s -s bench/http.lua "$url" >/dev/null # warm
report "20 documents, 1 connection" 1
report "20 documents, 16 connections" 16
