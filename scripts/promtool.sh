#!/usr/bin/env bash
# Prints where promtool is, after fetching it into build/ if this machine has none. The package prometheus, which holds it, is not installed:
# that would start a service.
set -euo pipefail
cd "$(dirname "$0")/.."

if command -v promtool; then exit 0; fi
dir=build/promtool
if [[ ! -x $dir/usr/bin/promtool ]]; then
    mkdir -p $dir
    # As in deps.sh: package lists may be missing or old.
    (cd $dir && { apt-get download prometheus || { apt-get update && apt-get download prometheus; } }) >&2
    dpkg-deb --fsys-tarfile $dir/prometheus_*.deb | tar -x -C $dir ./usr/bin/promtool
    rm $dir/prometheus_*.deb
fi
echo $dir/usr/bin/promtool
