#!/usr/bin/env bash
# Measures a build with CUDA on a machine with a GPU: agreement with the CPU on the embedded model, then calibration
# and evaluation of LAYERS blocks in the layout of Llama-3-8B, with memory and time. Needs no network and no cargo:
# carry the repository, target/cuda/release/waterfill and, where CUDA 13 is not installed, target/cuda-toolkit.
# Usage: experiments/gpu/measure.sh [LAYERS] [FOLDER FOR WEIGHTS AND RESULTS]
set -euo pipefail
cd "$(dirname "$0")/../.."
layers="${1:-4}"
work="${2:-$(mktemp -d)}"
waterfill="${WATERFILL:-target/cuda/release/waterfill}"
export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:-}:$PWD/target/cuda-toolkit/nvidia/cu13/lib"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader

echo "== the embedded model: CPU, then GPU"
for device in cpu cuda:0; do
    "$waterfill" run configs/tiny.yaml --store "$work/${device%:*}" --device "$device" --quiet | sed "s/^/$device: /"
done

echo "== $layers blocks in the layout of Llama-3-8B"
"$waterfill" make-checkpoint --like llama3-8b --layers "$layers" --out "$work/model" --quiet
cat >"$work/layout.yaml" <<YAML
name: layout
model: path:$work/model
store: $work/layout
calibrate: {text: calibration-data/world/calibration.txt, context: 2048, sequences: 16}
allocate: {lambdas: [1e-9]}
evaluate: {text: calibration-data/world/validation.txt, context: 2047, sequences: 8, bos: first}
YAML
used() { nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -i 0; }
for stage in "calibrate" "evaluate --original"; do
    tokens=$((16 * 2048))
    if [ "$stage" != calibrate ]; then tokens=$((8 * 2047)); fi
    most=0
    start=$(date +%s.%N)
    # shellcheck disable=SC2086
    "$waterfill" $stage "$work/layout.yaml" --device cuda:0 &
    while kill -0 $! 2>/dev/null; do
        now=$(used)
        if [ "$now" -gt "$most" ]; then most=$now; fi
        sleep 0.2
    done
    wait $!
    awk -v stage="$stage" -v tokens="$tokens" -v from="$start" -v to="$(date +%s.%N)" -v most="$most" \
        'BEGIN { printf "%s: %.1f s, %.0f tokens/s, at most %d MiB on the GPU\n", stage, to - from, tokens / (to - from), most }'
done
