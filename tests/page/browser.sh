# Sourced by the scripts beside it, from the root of the repository: sets $chromium and $modules (a folder with playwright-core
# and axe-core in node_modules), or calls skip with the reason why not.
chromium=${GYRE_CHROMIUM:-$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)}
[ -n "$chromium" ] || skip 'Chromium is missing (apt-get install chromium)'
command -v node >/dev/null 2>&1 || skip 'Node.js is missing'
modules=$PWD/target/page
mkdir -p "$modules"
if ! cmp -s tests/page/package-lock.json "$modules/package-lock.json" || [ ! -d "$modules/node_modules/axe-core" ]; then
    command -v npm >/dev/null 2>&1 || skip 'npm is missing'
    cp tests/page/package.json tests/page/package-lock.json "$modules/"
    (cd "$modules" && timeout 120 npm ci --no-audit --no-fund --ignore-scripts --silent) >/dev/null 2>&1 || {
        rm -f "$modules/package-lock.json"
        skip 'npm could not fetch playwright-core and axe-core'
    }
fi
