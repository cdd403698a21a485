#!/usr/bin/env bash
# Exports the embedded model and reads the file with ggml's own Python package. Without Python and its package index it
# says so and leaves.
set -euo pipefail
cd "$(dirname "$0")/../.."
place="$PWD/target/readers"
if ! python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 9))' 2>/dev/null; then
    echo "skipped: reading exported files needs python3 (3.9 or later) with venv"
    exit 0
fi
"$place/venv/bin/python" -c 'import gguf' 2>/dev/null || {
    python3 -m venv "$place/venv"
    "$place/venv/bin/pip" install -q gguf || {
        echo "skipped: reading exported files needs Python's package index"
        exit 0
    }
}
cat >"$place/export.yaml" <<YAML
name: export
model: path:calibration-data/tiny
store: $place/results
calibrate: {text: calibration-data/world/calibration.txt, sequences: 8}
allocate: {targets: [{bits_per_weight: 4.5}, {bits_per_weight: 7}]}
evaluate: {text: calibration-data/world/validation.txt, sequences: 8}
YAML
cargo run -q --release -- export "$place/export.yaml" --to gguf --quiet
for artifact in "$place"/results/export/gguf/*/; do
    "$place/venv/bin/python" crates/export/tests/read_gguf.py "$artifact/model.gguf" "$artifact/checkpoint"
done
