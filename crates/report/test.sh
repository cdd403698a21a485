#!/usr/bin/env bash
# Runs a small sweep, executes its notebook, and opens its page in a browser's document model (jsdom) and, where there is one, in
# a browser. Without Python, Node or their package indexes it says so and leaves that part out.
set -euo pipefail
cd "$(dirname "$0")/../.."
place="$PWD/target/report"
mkdir -p "$place"
cat >"$place/page.yaml" <<YAML
name: page
model: path:calibration-data/tiny
store: $place/results
calibrate: {text: calibration-data/world/calibration.txt, sequences: 8}
allocate: {lambdas: [1e-7, 1e-8]}
evaluate: {text: calibration-data/world/validation.txt, sequences: 8}
sweep:
  runs: [{label: plain}, {label: channel, allocate.granularity: channel}]
YAML
cargo run -q --release -- sweep "$place/page.yaml" --quiet
cargo run -q --release -- export-notebook page --store "$place/results" --out "$place/notebooks"
if python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 9))' 2>/dev/null && {
    "$place/venv/bin/python" -c 'import nbclient, pandas, pyarrow, matplotlib' 2>/dev/null || {
        python3 -m venv "$place/venv" && "$place/venv/bin/pip" install -q nbformat nbclient ipykernel pandas pyarrow matplotlib
    }
}; then
    "$place/venv/bin/python" crates/report/tests/notebook.py "$place/notebooks/page.ipynb"
else
    echo "skipped: executing the notebook needs python3 (3.9 or later) with venv, and Python's package index"
fi
if command -v node >/dev/null && command -v npm >/dev/null && {
    [ -d "$place/node_modules/jsdom" ] || npm install --silent --no-fund --no-audit --prefix "$place" jsdom@26
}; then
    NODE_PATH="$place/node_modules" node crates/report/tests/page.cjs "$place/results/page/report.html"
    browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)
    if [ -n "$browser" ] && {
        [ -d "$place/node_modules/puppeteer-core" ] || npm install --silent --no-fund --no-audit --prefix "$place" puppeteer-core@24
    }; then
        NODE_PATH="$place/node_modules" node crates/report/tests/browser.cjs "$browser" "$place/results/page/report.html" "$place/page.png"
    else
        echo "skipped: looking at the page needs chromium or google-chrome"
    fi
else
    echo "skipped: opening the page needs node with npm, and its package index"
fi
