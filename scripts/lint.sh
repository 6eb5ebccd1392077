#!/usr/bin/env bash
# Static checks. The pinned versions are Debian 12's (clang 14, shellcheck 0.9): others find other things.
#
# usage: scripts/lint.sh format|format-check|tidy|shell     tidy needs build/compile_commands.json
set -euo pipefail
cd "$(dirname "$0")/.."

c_files() { git ls-files -co --exclude-standard '*.c' '*.h'; }

clang_format=$(command -v clang-format-14 || command -v clang-format)

case $1 in
format) c_files | xargs "$clang_format" -i ;;
format-check)
    version=$("$clang_format" --version | grep -oE '[0-9]+' | head -1)
    if [[ $version != 14 ]]; then
        echo "format-check: this is clang-format $version, the tree is formatted with 14 (Debian 12's); skipped" >&2
        exit 0
    fi
    c_files | xargs "$clang_format" --dry-run -Werror
    echo "format: $(c_files | wc -l) files checked"
    ;;
tidy)
    # Only files of this build: the compilation database holds no flags for the others.
    git ls-files -co --exclude-standard 'src/*.c' 'tools/*.c' 'bench/*.c' 'tests/unit/*.c' |
        while read -r file; do if grep -qF "/$file\"" build/compile_commands.json; then echo "$file"; fi; done |
        xargs -n 4 -P "$(getconf _NPROCESSORS_ONLN)" clang-tidy --quiet -p build 2> >(grep -vE '^[0-9]+ warnings? (generated|treated)|^Suppressed|^Use -header' >&2)
    echo "clang-tidy: no finding"
    ;;
shell)
    git ls-files -co --exclude-standard '*.sh' .ci/run | xargs shellcheck
    echo "shellcheck: no finding"
    ;;
*) echo "lint.sh: unknown check '$1'" >&2 && exit 2 ;;
esac
