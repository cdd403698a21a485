#!/usr/bin/env bash
# Builds the wheel, installs it into a virtual environment of its own, and tests it on a checkpoint that the program
# tunes for it. Without Python and its package index it says so and leaves.
set -euo pipefail
cd "$(dirname "$0")/../.."
place="$PWD/target/python"
if ! python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 9))' 2>/dev/null; then
    echo "skipped: the wheel's tests need python3 (3.9 or later) with venv"
    exit 0
fi
[ -x "$place/venv/bin/pytest" ] || {
    python3 -m venv "$place/venv"
    "$place/venv/bin/pip" install -q 'maturin>=1.9,<2' numpy pytest || {
        echo "skipped: the wheel's tests need Python's package index"
        exit 0
    }
}
(cd crates/python && CARGO_TARGET_DIR="$place/build" "$place/venv/bin/maturin" build -q --release --locked --out "$place/wheels")
"$place/venv/bin/pip" install -q --force-reinstall --no-deps "$place"/wheels/waterfill-*.whl
cat >"$place/tune.yaml" <<YAML
name: wheel
model: path:calibration-data/tiny
store: $place/results
calibrate: {text: calibration-data/world/calibration.txt, sequences: 4}
allocate: {lambdas: [1e-9]}
evaluate: {text: calibration-data/world/validation.txt}
YAML
{ cat "$place/tune.yaml"; echo "encode: {layers: {bits: [1.5]}}"; } >"$place/layers.yaml"
sed 's/^allocate:.*/allocate: {rate: {storage: 0, resident: 1}, lambdas: [1e-9]}/' "$place/tune.yaml" >"$place/trellis.yaml"
tuned() {
    cargo run -q --release -- encode "$place/$1.yaml" --json 2>/dev/null |
        "$place/venv/bin/python" -c 'import json, sys; print(json.load(sys.stdin)["points"][0]["checkpoint"])'
}
WATERFILL_CHECKPOINT="$(tuned tune)" WATERFILL_LAYERS="$(tuned layers)" WATERFILL_TRELLIS="$(tuned trellis)" \
    "$place/venv/bin/pytest" -q crates/python/tests
