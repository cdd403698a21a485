#!/usr/bin/env bash
# Exports the embedded model and reads the files with Python packages of others: gguf, safetensors, and compressed_tensors
# where it and torch are installed for WATERFILL_PYTHON. Without Python and its package index it
# says so and leaves.
set -euo pipefail
cd "$(dirname "$0")/../.."
place="$PWD/target/readers"
if ! python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 9))' 2>/dev/null; then
    echo "skipped: reading exported files needs python3 (3.9 or later) with venv"
    exit 0
fi
"$place/venv/bin/python" -c 'import gguf, safetensors' 2>/dev/null || {
    python3 -m venv "$place/venv"
    "$place/venv/bin/pip" install -q gguf safetensors || {
        echo "skipped: reading exported files needs Python's package index"
        exit 0
    }
}
cat >"$place/export.yaml" <<YAML
name: export
model: path:calibration-data/tiny
store: $place/results
calibrate: {text: calibration-data/world/calibration.txt, sequences: 8}
allocate: {targets: [{bits_per_weight: 6}, {bits_per_weight: 9}]}
evaluate: {text: calibration-data/world/validation.txt, sequences: 8}
YAML
for target in gguf compressed-tensors; do
    cargo run -q --release -- export "$place/export.yaml" --to "$target" --quiet
done
for artifact in "$place"/results/export/gguf/*/; do
    "$place/venv/bin/python" crates/export/tests/read_gguf.py "$artifact/model.gguf" "$artifact/checkpoint"
done
python="${WATERFILL_PYTHON:-$place/venv/bin/python}"
for artifact in "$place"/results/export/packed/*/; do
    "$python" crates/export/tests/read_compressed.py "$artifact/model" "$artifact/checkpoint"
done
# Tuned checkpoints whose own codes and scales the format holds.
rm -rf "$place/exact" "$place/dense"
while read -r name allocate; do
    sed "s/^allocate:.*/allocate: $allocate/" "$place/export.yaml" >"$place/$name.yaml"
    checkpoint=$(cargo run -q --release -- encode "$place/$name.yaml" --json | grep -o '"checkpoint":"[^"]*"' | cut -d'"' -f4)
    cargo run -q --release -- export "$checkpoint" --to compressed-tensors --out "$place/exact/$name"
    cargo run -q --release -- decode "$checkpoint" "$place/dense/$name" --quiet
    "$python" crates/export/tests/read_compressed.py "$place/exact/$name" "$place/dense/$name"
done <<'POINTS'
channel {lambdas: [1e-7], granularity: channel, rate: {storage: 1, resident: 0.3}}
group {lambdas: [1e-8], granularity: "group:32"}
tensor {lambdas: [1e-9], granularity: tensor, formats: [fp8]}
POINTS
