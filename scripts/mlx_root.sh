#!/usr/bin/env bash
# Prints the folder of MLX, with its headers and its library: of the active Python environment, of build/backends-venv, of python3, or
# Homebrew's. Fails if there is none.
set -euo pipefail
cd "$(dirname "$0")/.."

find_mlx='
import importlib.util as u, os
spec = u.find_spec("mlx")
for d in (spec.submodule_search_locations or []) if spec else []:
    if os.path.exists(os.path.join(d, "include", "mlx", "mlx.h")): print(d); break
'
for python in "${VIRTUAL_ENV-}/bin/python" build/backends-venv/bin/python python3; do
    command -v "$python" >/dev/null || continue
    dir=$("$python" -c "$find_mlx" 2>/dev/null) || continue
    [[ -z $dir ]] || { echo "$dir" && exit 0; }
done
if command -v brew >/dev/null && dir=$(brew --prefix mlx 2>/dev/null) && [[ -e $dir/include/mlx/mlx.h ]]; then
    echo "$dir"
    exit 0
fi
echo "No MLX to build against: activate a Python environment with it (pip install mlx, and on Linux mlx-cpu)." >&2
exit 1
