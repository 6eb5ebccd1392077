#!/usr/bin/env bash
# Tests the page for people in Chromium, against the built program. Playwright comes from npm into build/page, the browser from Debian.
set -euo pipefail
cd "$(dirname "$0")/.."

for file in package.json package-lock.json; do
    if ! cmp -s "tests/page/$file" "build/page/$file"; then
        mkdir -p build/page
        cp tests/page/package.json tests/page/package-lock.json build/page/
        (cd build/page && PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD=1 npm ci --silent --no-audit --no-fund)
        break
    fi
done
NODE_PATH=build/page/node_modules node --test --test-reporter=spec tests/page/test_page.js
